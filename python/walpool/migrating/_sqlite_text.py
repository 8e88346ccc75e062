"""What no pragma of SQLite's tells, but the text of a CREATE: when a foreign key is looked at, what fires a trigger.

Pure.
"""

from __future__ import annotations

import re
from typing import Final

from walpool.postgres.scan import scan

__all__ = ["bare", "deferred", "event"]

_SILENT: Final = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | --[^\n]* | /\*.*?\*/""", re.VERBOSE | re.DOTALL
)


def bare(ddl: str) -> str:
    """Return a statement without what is quoted, and without comments."""
    return _SILENT.sub(" ", ddl)


def deferred(ddl: str) -> list[bool]:
    """Return whether each foreign key of a CREATE TABLE is looked at when a transaction ends, in the text's order.

    As SQLite reads it a clause is of the last REFERENCES before it, whatever stands between the two, and
    NOT DEFERRABLE is immediate whatever follows. https://www.sqlite.org/foreignkeys.html#fk_deferred
    """
    shapes = [token.shape for token in scan(bare(ddl))]
    found: list[bool] = []
    for place, shape in enumerate(shapes):
        if shape == "REFERENCES":
            found.append(False)
        elif shape == "DEFERRABLE" and found:
            is_late = shapes[place + 1 : place + 3] == ["INITIALLY", "DEFERRED"]
            found[-1] = is_late and shapes[place - 1] != "NOT"
    return found


def event(ddl: str) -> str:
    """Return what fires a trigger: INSERT, UPDATE or DELETE, which is no name unless it is quoted."""
    return next((token.shape for token in scan(bare(ddl)) if token.shape in ("INSERT", "UPDATE", "DELETE")), "")
