"""Rows with values that a domain of PostgreSQL's refuses: which a plan has found, and what they become. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from walpool.migrating._faults import nothing
from walpool.migrating._long_keys import key_hash, part_of

if TYPE_CHECKING:
    from walpool.migrating.plan import Barred, Table
    from walpool.types import Row

__all__ = ["barred", "irreplaceable", "let_in"]


def barred(table: Table, row: Row) -> list[tuple[str, str]]:
    """Return the columns of a row whose values a domain refuses, and why."""
    return [(one.column, f"a value that the domain {one.domain} refuses") for one in _of(table, row)]


def let_in(table: Table, row: Row) -> Row:
    """Return a row with NULL in place of such values, or the nothing of their type."""
    names = {one.column for one in _of(table, row)}
    return tuple(
        nothing(column) if column.name in names else value for column, value in zip(table.columns, row, strict=True)
    )


def irreplaceable(table: Table) -> list[str]:
    """Return why such values cannot be replaced, in sentences: the domain refuses what they would become, too."""
    row = tuple(map(nothing, table.columns))
    return [
        f"{table.name}.{one.column}: the domain {one.domain} refuses what bad values are replaced with, too: leave "
        "their rows out, or change them in the source"
        for one in _of(table, row)
    ]


def _of(table: Table, row: Row) -> list[Barred]:
    by_name = dict(zip((column.name for column in table.columns), row, strict=True))
    return [one for one in table.barred if _is_among(table, one, by_name[one.column])]


def _is_among(table: Table, one: Barred, value: Any) -> bool:
    number = key_hash(part_of(table, (one.column,)), (value,))
    if number is None:
        return False
    place = bisect_left(one.hashes, number)
    return one.hashes[place : place + 1] == (number,)
