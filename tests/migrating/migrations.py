"""What is migrated in tests, and what came of it: a schema with one of everything, and rows of either side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import walpool
from walpool.migrating import Report

Migrated = Callable[..., Report]

EVERYTHING = """
    CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, flag BOOLEAN, price DECIMAL(10, 2));
    CREATE TABLE children (
        tenant TEXT, number INTEGER, parent INTEGER REFERENCES parents (id) ON DELETE CASCADE,
        body BLOB, score REAL DEFAULT 0.5, data JSON, PRIMARY KEY (tenant, number)
    ) WITHOUT ROWID;
    CREATE INDEX by_score ON children (score DESC, parent);
    CREATE TABLE log (at TEXT DEFAULT CURRENT_TIMESTAMP, said TEXT DEFAULT 'nothing', level INT DEFAULT 3);
    CREATE TABLE empty (id TEXT PRIMARY KEY, n REAL);
    CREATE TABLE "select ""odd"" from" ("group by" INTEGER PRIMARY KEY, "ü ""x"" 'y'" TEXT, "a:b?" INTEGER);
"""


def fill(path: Path, script: str, *jobs: tuple[str, list[tuple[Any, ...]]]) -> None:
    """Make a SQLite file with these tables and rows."""
    with walpool.Pool(path, foreign_keys=False) as pool:
        pool.script(script)
        for sql, rows in jobs:
            pool.executemany(sql, rows)


def rows_of(path: str | Path, table: str) -> list[tuple[Any, ...]]:
    """Return all rows of a table, of either backend, in an order of their own."""
    with walpool.get_pool(str(path)) as pool:
        quoted = table.replace('"', '""')
        return sorted(pool.fetch(f'SELECT * FROM "{quoted}"'), key=repr)
