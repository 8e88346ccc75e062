"""Making a target equal to its source again, where a comparison found that they differ: only those rows are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from walpool.migrating._copying import put
from walpool.migrating.plan import Table

if TYPE_CHECKING:
    from walpool.migrating._cleaning import Cleaner
    from walpool.migrating._comparing import Comparison
    from walpool.migrating._sides import Side
    from walpool.types import Row

__all__ = ["repair"]

_AT_ONCE: Final = 1000  # keys


def repair(
    source: Side, target: Side, found: Sequence[Comparison], cleaner: Cleaner, *, only_adds: bool = False
) -> int:
    """Copy the rows that differ, in one transaction, and return how many were written or deleted.

    Rows are deleted first and added last, so that a value that has moved from one row to another is never there twice.
    A row that has changed is changed, not deleted and written anew: what refers to it stays.

    Args:
        source: where rows are read.
        target: where they are written.
        found: what differs.
        cleaner: as for the copy.
        only_adds: whether rows that only the target has, or has with other values, are left as they are.
    """
    number = 0
    with target.transaction():
        target.defer()
        for each in () if only_adds else found:
            for keys in _parts(each.extra):
                target.delete(each.table, keys)
                number += len(keys)
        for each in () if only_adds else found:
            for rows in _read(source, each.table, each.changed):
                number += put(target.replace, each.table, rows, cleaner)
        for each in found:
            for rows in _read(source, each.table, each.missing):
                number += put(target.insert, each.table, rows, cleaner)
            if not each.table.key and not each.is_same and not only_adds:
                number += _whole(source, target, each.table, cleaner)
    return number


def _whole(source: Side, target: Side, table: Table, cleaner: Cleaner) -> int:
    target.clear(table)
    return sum(put(target.insert, table, rows, cleaner) for rows in source.pages(table))


def _read(source: Side, table: Table, keys: Sequence[Row]) -> Iterator[list[Row]]:
    for some in _parts(keys):
        if rows := source.by_keys(table, some):
            yield rows


def _parts(keys: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]
