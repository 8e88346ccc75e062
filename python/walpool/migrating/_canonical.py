"""What the server gives back for a value of a file: one value, in one spelling, whatever it was written as. Pure.

Both sides are compared in this form. What is known of each type stands in `walpool.postgres.spelling`; this is about
columns, and about rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from walpool.migrating._hashing import hashed_form
from walpool.postgres.binary import Form, Unfit
from walpool.postgres.spelling.spelling import Bad, Read

if TYPE_CHECKING:
    from walpool.migrating.plan import Column, Table
    from walpool.types import Row

__all__ = ["as_given_back", "as_one", "as_sent", "is_typed", "nearest"]


def is_typed(column: Column) -> bool:
    """Return whether a column's values have another spelling on the server, or a limit of their own."""
    return not column.spelling.is_plain or bool(column.limits)


def as_given_back(table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows as the server gives them back, in the form in which they are compared.

    Raises:
        Unfit: a column cannot hold a value.
    """
    return _read(table, rows, [column.spelling.read for column in table.columns])


def as_sent(table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows as they are written: some have more than is compared.

    Raises:
        Unfit: a column cannot hold a value.
    """
    return _read(table, rows, [column.spelling.sent or column.spelling.read for column in table.columns])


def as_one(table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows that `as_given_back` returned, with one text for all values that are one to an index."""
    makers = {
        place: column.spelling.same
        for place, column in enumerate(table.columns)
        if column.spelling.same is not None and hashed_form(column.form) is Form.TEXT
    }
    if not makers:
        return rows
    return [
        tuple(value if value is None or at not in makers else makers[at](value) for at, value in enumerate(row))
        for row in rows
    ]


def nearest(column: Column, value: Any) -> Any:
    """Return the value nearest to one that a column cannot hold, which it may refuse too; None if there is none."""
    try:
        return column.spelling.nearest(value, column.limits)
    except (ArithmeticError, ValueError, TypeError):
        return None


def _read(table: Table, rows: Sequence[Row], readers: Sequence[Read]) -> Sequence[Row]:
    places = [place for place, column in enumerate(table.columns) if is_typed(column)]
    required = [place for place, column in enumerate(table.columns) if column.is_required] if table.exists else []
    if not (places or required) or not rows:
        return rows
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for place in required:  # a table that is made here is as strict as its source
        if None in columns[place]:
            raise Unfit(place)
    for place in places:
        read, limits = readers[place], table.columns[place].limits
        try:
            columns[place] = [None if value is None else read(value, limits) for value in columns[place]]
        except Bad:
            raise Unfit(place) from None
    return list(zip(*columns, strict=True)) if places else rows
