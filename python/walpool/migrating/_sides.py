"""`Side`: what both databases of a migration can do, whichever backend each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from walpool.migrating.plan import Column, Table
    from walpool.migrating.sets import Backend, Part
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool
    from walpool.types import Row

__all__ = ["Side"]


class Side(Protocol):
    """A database, the source or the target; see `SqliteSide` and `PostgresSide`."""

    name: str

    @property
    def backend(self) -> Backend:
        """`sqlite` or `postgres`."""

    @property
    def pool(self) -> Pool | PostgresPool:
        """The pool on the database."""

    def fetch(self, query: str, params: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""

    def execute(self, statement: str, params: Sequence[Any] = ()) -> None:
        """Run a statement."""

    def transaction(self, *, waits_for_disk: bool = True) -> AbstractContextManager[None]:
        """Run the block's statements in one transaction."""

    def frozen(self, tables: Sequence[Table]) -> AbstractContextManager[None]:
        """Keep everybody else from writing the tables."""

    def names(self) -> set[str]:
        """Return the names of the tables and views that there are."""

    def count(self, table: str) -> int:
        """Return how many rows a table has."""

    def figures(self, part: Part) -> tuple[int, int]:
        """Return how many rows there are of a part of a set, and how many bytes."""

    def has_rows(self, table: Table) -> bool:
        """Return whether a table has rows."""

    def has_odd(self, table: Table, column: Column) -> bool:
        """Return whether a column may hold what the other side cannot."""

    def has_false_json(self, table: Table, column: Column) -> bool:
        """Return whether a column of JSON has texts that are none."""

    def page(self, table: Table, after: Row | None, upto: Row | None = None, limit: int | None = None) -> list[Row]:
        """Return the rows after one key and up to another in the order of keys."""

    def pages(self, table: Table) -> Iterator[list[Row]]:
        """Yield all rows."""

    def by_keys(self, table: Table, keys: Sequence[Row]) -> list[Row]:
        """Return the rows of these keys."""

    def create(self, tables: Sequence[Table]) -> None:
        """Make tables."""

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows that are not there."""

    def replace(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows in place of those that have their keys."""

    def delete(self, table: Table, keys: Sequence[Row]) -> None:
        """Delete the rows of these keys."""

    def clear(self, table: Table) -> None:
        """Delete all rows."""

    def defer(self) -> None:
        """Let foreign keys be looked at when the transaction ends."""

    def finish(self, table: Table) -> None:
        """Make the indexes of a table."""

    def relate(self, tables: Sequence[Table]) -> list[str]:
        """Add the foreign keys, and return what is wrong with them."""
