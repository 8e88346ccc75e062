"""What is asked of a database that somebody else wrote; no I/O."""

from typing import Final

TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table'"
COLUMNS: Final = "SELECT name FROM pragma_table_info(?)"
CHECK: Final = "PRAGMA quick_check(1)"
BEGIN: Final = "BEGIN"

COUNT: Final = "SELECT count(*) FROM {table}"
"""For a table whose name stands in the code that asks, never one that was read."""
