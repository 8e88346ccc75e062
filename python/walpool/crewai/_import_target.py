"""The database that an import writes, or only looks at; and what copying one table is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, Protocol

from walpool.copying import Part
from walpool.crewai import _import_sql as sql
from walpool.crewai._database import make_tables
from walpool.crewai._sql import Statement
from walpool.pool import Pool
from walpool.types import Row, Value

__all__ = ["Copy", "Target", "storable"]


class Copy(Protocol):
    """One table on its way into the target."""

    part: Part

    def add(self) -> None:
        """Store what the target lacks."""

    def compare(self) -> None:
        """Read both sides, and note what differs."""

    def finish(self) -> None:
        """Show that it is done."""


class Target:
    """The database, with the integration's tables in it.

    Args:
        pool: None if it is not there, and shall not be made.
        is_dry: nothing is written, and no table made.
    """

    def __init__(self, pool: Pool | None, *, is_dry: bool) -> None:
        self.pool: Final = pool
        self.is_dry: Final = is_dry
        if pool is not None and not is_dry:
            make_tables(pool)
        self._tables = set() if pool is None else {name for (name,) in pool.fetch(sql.OWN_TABLES)}

    def has(self, table: str) -> bool:
        """Return whether there is this table."""
        return table in self._tables

    def fetch(self, table: str, statement: str, params: Sequence[Value] = ()) -> list[Row]:
        """Return the rows of a query of this table; none if there is no such table yet."""
        return self.pool.fetch(statement, params) if self.pool is not None and self.has(table) else []

    def write(self, job: Sequence[Statement]) -> None:
        """Run one job, unless the run is dry."""
        if self.pool is not None and not self.is_dry:
            self.pool.batch(job)


def storable(row: Sequence[Any], required: Sequence[int]) -> str | None:
    """Return why a row of CrewAI's cannot be stored as it is; None if it can.

    Args:
        row: as sqlite3 read it.
        required: the places where NULL is not allowed.
    """
    for value in row:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                return "a text of it is no UTF-8"
    return "a column of it that must have a value has none" if any(row[place] is None for place in required) else None


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether both paths lead to one file that is there."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
