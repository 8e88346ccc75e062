"""What tests of migrations share: a SQLite file with rows of every kind, and migrations that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", exc_type=ImportError)

from migrations import EVERYTHING, Migrated, fill

from walpool.migrating import Options, Report, migrate


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """Return a SQLite file with rows of every kind that PostgreSQL takes."""
    path = tmp_path / "everything.db"
    fill(
        path,
        EVERYTHING,
        (
            "INSERT INTO parents VALUES (?, ?, ?, ?)",
            [(-(2**63), "least", 1, 1.25), (7, "", 0, 3), (2**63 - 1, "ünïcode \U0001f600\n\t\\", None, 1e-7)],
        ),
        (
            "INSERT INTO children VALUES (?, ?, ?, ?, ?, ?)",
            [
                (f"t{n % 7}", n, 7, bytes(range(n % 256)), n / 7, '{"a": [1, 2.50, null]}' if n % 3 else None)
                for n in range(2500)
            ],
        ),
        ("INSERT INTO log VALUES (?, ?, ?)", [("x", "y", 1), ("x", "y", 1), (None, None, None)]),
        ('INSERT INTO "select ""odd"" from" VALUES (?, ?, ?)', [(1, "'\"?:x$1", 5), (2, None, None)]),
    )
    return path


@pytest.fixture
def migrated() -> Migrated:
    """Return `migrated(source, target, **options)`, which runs a migration."""

    def run(source: str | Path, target: str | Path, **options: Any) -> Report:
        return migrate(str(source), str(target), Options(**options))

    return run
