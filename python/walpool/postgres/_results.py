"""What a statement came to: `Result`, and rows as the caller wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from walpool.errors import ProgrammingError

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._wire import Connection
    from walpool.types import Row, RowFactory

__all__ = ["Result", "Rows", "made"]


class Rows(NamedTuple):
    """What a query gave."""

    columns: tuple[str, ...]
    rows: list[Row]

    @classmethod
    def of(cls, connection: Connection, result: PGresult) -> Rows:
        """Return the rows of a result, converted; none where the statement gives none."""
        if not result.nfields:
            return cls((), [])
        columns = tuple((result.fname(n) or b"").decode() for n in range(result.nfields))
        return cls(columns, connection.rows(result))


class Result:
    """What one statement did; the fields of `walpool.Result`.

    Attributes:
        rowcount: rows that it wrote; -1 for a statement that counts none, such as CREATE.
        lastrowid: None: PostgreSQL has no such thing, use RETURNING.
        rows: what RETURNING or SELECT gave.
        columns: their names.
    """

    __slots__ = ("columns", "rowcount", "rows")
    __module__ = "walpool.postgres"

    lastrowid = None

    def __init__(self, rowcount: int, columns: tuple[str, ...] = (), rows: Sequence[Row] = ()) -> None:
        self.rowcount = rowcount
        self.columns = columns
        self.rows = list(rows)

    @classmethod
    def of(cls, connection: Connection, result: PGresult) -> Result:
        """Return what a statement did, its rows converted."""
        count = result.command_tuples
        if not result.nfields:
            return cls(-1 if count is None else count)
        found = Rows.of(connection, result)
        return cls(-1 if count is None else count, found.columns, found.rows)

    def __repr__(self) -> str:
        return f"Result(rowcount={self.rowcount}, lastrowid=None, rows=<{len(self.rows)}>)"


def made(rows: list[Row], names: tuple[str, ...], row: RowFactory | None) -> list[Any]:
    """Return rows as `row` makes them: tuples, dicts, or what a callable of (names, values) returns.

    Raises:
        ProgrammingError: it is none of these.
    """
    if row is None or row is tuple:
        return rows
    if row is dict:
        return [dict(zip(names, values, strict=True)) for values in rows]
    if not callable(row):
        raise ProgrammingError("row must be tuple, dict or a callable of (columns, values)")
    make = cast("Callable[[tuple[str, ...], Row], Any]", row)
    return [make(names, values) for values in rows]
