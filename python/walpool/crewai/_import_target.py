"""The database that an import writes, or only looks at; and what copying one table is."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from walpool.copying import Part
from walpool.crewai import _import_sql as sql
from walpool.crewai._database import make_tables
from walpool.crewai._sql import Backend, Statement
from walpool.pool import Pool
from walpool.types import Row, Value

if TYPE_CHECKING:
    from walpool.postgres import PostgresPool

__all__ = ["Copy", "Target"]

_ON_SERVER: Final = {"checkpoints": "crewai_checkpoints"}
"""Tables that have another name there."""


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
        pool: None if it is a file that is not there, and shall not be made.
        is_dry: nothing is written, and no table made.

    Attributes:
        backend: which SQL it takes.
    """

    def __init__(self, pool: Pool | PostgresPool | None, *, is_dry: bool) -> None:
        self.pool: Final = pool
        self.is_dry: Final = is_dry
        self.backend: Final[Backend] = "sqlite" if pool is None else pool.backend
        if pool is not None and not is_dry:
            make_tables(pool)
        self._sqlite: Pool | None = None
        self._tables = set() if pool is None else {name for (name,) in pool.fetch(sql.OWN_TABLES[pool.backend])}

    def has(self, table: str) -> bool:
        """Return whether there is this table, by the name that it has in a file."""
        return (table if self.backend == "sqlite" else _ON_SERVER.get(table, table)) in self._tables

    def fetch(self, table: str, query: sql.Query, params: Sequence[Value] = ()) -> list[Row]:
        """Return the rows of a query of this table; none if there is no such table yet."""
        return self.pool.fetch(query[self.backend], params) if self.pool is not None and self.has(table) else []

    def write(self, job: Sequence[Statement]) -> None:
        """Run one job, unless the run is dry."""
        if self.pool is not None and not self.is_dry:
            self.pool.batch(job)

    def as_json(self, data: bytes) -> str | None:
        """Return the text of SQLite's own binary JSON; None if it is not in order."""
        if self._sqlite is None:
            # In memory: the target may be no SQLite, or not be there yet, and Python's own may not know that form.
            self._sqlite = Pool(":memory:")
        found = self._sqlite.fetchval(sql.AS_JSON, (data,))
        return None if found is None else str(found)

    def close(self) -> None:
        """Close what was opened here; the database is its owner's."""
        if self._sqlite is not None:
            self._sqlite.close()

    def refusal(self, row: Sequence[Any], required: Collection[int], numbers: Collection[int] = ()) -> str | None:
        """Return why a row of CrewAI's cannot be stored as it is; None if it can.

        Args:
            row: as sqlite3 read it.
            required: the places where NULL is not allowed.
            numbers: the places of columns that hold numbers; the others hold text.
        """
        for value in row:
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return "a text of it is no UTF-8"
        if any(row[place] is None for place in required):
            return "a column of it that must have a value has none"
        return self._refusal_of_server(row, numbers) if self.backend == "postgres" else None

    def _refusal_of_server(self, row: Sequence[Any], numbers: Collection[int]) -> str | None:
        """Return what a column of SQLite's can hold, and one of PostgreSQL's cannot."""
        for place, value in enumerate(row):
            if isinstance(value, str) and "\0" in value:
                return "a text of it holds a NUL, which PostgreSQL cannot"
            if value is not None and isinstance(value, str) == (place in numbers):
                return f"column {place + 1} of it is of another type than PostgreSQL's"
        return None


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether both paths lead to one file that is there."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
