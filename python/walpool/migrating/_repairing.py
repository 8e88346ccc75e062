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
    A row that has changed is changed, not deleted and written anew: what refers to it stays. (Of several rows that are
    one thing none is referred to.)

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
            if not each.table.is_grouped:
                for rows in _read(source, each.table, each.changed):
                    number += put(target.replace, each.table, rows, cleaner)
        for each in found:
            number += _added(source, target, each, _lacking(each, found, only_adds=only_adds), cleaner)
            if not each.table.key and not each.is_same and not only_adds:
                number += _whole(source, target, each.table, cleaner)
        for each in found:
            if each.table.part is not None:
                target.finish(each.table)
    return number


def _lacking(one: Comparison, found: Sequence[Comparison], *, only_adds: bool) -> list[Row]:
    """Return the keys whose rows are written anew: rows that are one thing are changed as one.

    What belongs to a row that differs, and is to stay as it is, is left alone with it: an item with its vectors.
    """
    if not only_adds:
        return one.missing + (one.changed if one.table.is_grouped else [])
    kin = [each for each in found if each.table.owner and each.table.owner == one.table.owner]
    differing = {key for each in kin if each.table.key == one.table.key for key in each.changed}
    return [key for key in one.missing if key not in differing]


def _added(source: Side, target: Side, one: Comparison, keys: Sequence[Row], cleaner: Cleaner) -> int:
    number = 0
    for some in _parts(keys):
        if one.table.is_grouped:
            target.delete(one.table, some)
        for rows in _read(source, one.table, some):
            number += put(target.insert, one.table, rows, cleaner)
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
