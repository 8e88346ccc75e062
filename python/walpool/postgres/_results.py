"""What a statement came to: `Result`, and rows as the caller wants them. Knows no connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import psycopg

if TYPE_CHECKING:
    from walpool.types import Row, RowFactory

__all__ = ["Result", "columns", "made"]


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
    def of(cls, cursor: psycopg.Cursor[Any]) -> Result:
        """Return what the statement of a cursor did, its rows read."""
        names = columns(cursor)
        if not names and cursor.pgresult is not None and not cursor.pgresult.command_tuples:
            written = -1 if cursor.rowcount <= 0 and not _counts(cursor) else cursor.rowcount
            return cls(written)
        return cls(cursor.rowcount, names, cursor.fetchall() if names else ())

    def __repr__(self) -> str:
        return f"Result(rowcount={self.rowcount}, lastrowid=None, rows=<{len(self.rows)}>)"


def columns(cursor: psycopg.Cursor[Any]) -> tuple[str, ...]:
    """Return the names of the columns that a statement gave; none where it gives no rows."""
    return tuple(column.name for column in cursor.description or ())


def made(rows: list[Row], names: tuple[str, ...], row: RowFactory | None) -> list[Any]:
    """Return rows as `row` makes them: tuples, dicts, or what a callable of (names, values) returns."""
    if row is None or row is tuple:
        return rows
    if row is dict:
        return [dict(zip(names, values, strict=True)) for values in rows]
    make = cast("Callable[[tuple[str, ...], Row], Any]", row)
    return [make(names, values) for values in rows]


def _counts(cursor: psycopg.Cursor[Any]) -> bool:
    """Return whether the command is of those that count rows, of which this one wrote none."""
    return (cursor.statusmessage or "").startswith(("INSERT", "UPDATE", "DELETE", "MERGE"))
