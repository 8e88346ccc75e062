"""Copying the rows of a table, so that it can be stopped at any moment and go on from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from walpool.migrating.plan import Table
from walpool.postgres.binary import Unfit

if TYPE_CHECKING:
    from walpool.migrating._cleaning import Cleaner
    from walpool.migrating._sides import Side
    from walpool.migrating._state import Progressed, State
    from walpool.types import Row

__all__ = ["copy", "put"]


def copy(
    source: Side,
    target: Side,
    table: Table,
    state: State,
    cleaner: Cleaner,
    tick: Callable[[int], None],
) -> Progressed:
    """Copy the rows of a table that are not copied yet, and return how far it is then.

    With each batch the key of its last row is written down, in the same transaction: whatever happens, the target has
    the rows up to that key, each once. A table that nothing orders is copied in one transaction.
    """
    progressed = state.table(table)
    tick(progressed.rows)
    if progressed.phase != "copying":
        return progressed
    if not table.order(source.backend):
        _copy_whole(source, target, table, state, progressed, cleaner, tick)
        return progressed
    while rows := source.page(table, progressed.after, limit=table.page):
        progressed.after = table.place_of(rows[-1], source.backend)
        # COMMIT does not wait for the disk: the last one does, and what a power cut takes is copied again.
        with target.transaction(waits_for_disk=False):
            _put(target, table, rows, progressed, cleaner)
            state.set_table(table, progressed)
        tick(len(rows))
    progressed.phase = "copied"
    with target.transaction():
        state.set_table(table, progressed)
    return progressed


def _copy_whole(
    source: Side,
    target: Side,
    table: Table,
    state: State,
    progressed: Progressed,
    cleaner: Cleaner,
    tick: Callable[[int], None],
) -> None:
    with target.transaction():
        for rows in source.pages(table):
            _put(target, table, rows, progressed, cleaner)
            tick(len(rows))
        progressed.phase = "copied"
        state.set_table(table, progressed)


def _put(target: Side, table: Table, rows: Sequence[Row], progressed: Progressed, cleaner: Cleaner) -> None:
    skipped, replaced = cleaner.skipped, cleaner.replaced
    progressed.rows += put(target.insert, table, rows, cleaner, tells=True)
    progressed.skipped += cleaner.skipped - skipped
    progressed.replaced += cleaner.replaced - replaced


def put(
    write: Callable[[Table, Sequence[Row]], None],
    table: Table,
    rows: Sequence[Row],
    cleaner: Cleaner,
    *,
    tells: bool = False,
) -> int:
    """Write rows as the target takes them, and return how many there were."""
    if not table.is_suspect:
        try:
            write(table, rows)
        except Unfit:
            pass
        else:
            return len(rows)
    kept = cleaner.kept(table, rows, tells=tells)
    write(table, kept)
    return len(kept)
