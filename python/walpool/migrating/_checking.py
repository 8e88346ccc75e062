"""Finding the rows that the target cannot take, before anything is written: one reading of the whole source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from walpool.migrating._cleaning import faults_of
from walpool.migrating.plan import Plan, Table
from walpool.postgres.binary import Form, Unfit
from walpool.postgres.binary import check as fits

if TYPE_CHECKING:
    from walpool.migrating._sides import Side
    from walpool.types import Row

__all__ = ["check"]


def check(source: Side, plan: Plan, tick: Callable[[Table, int], None]) -> None:
    """Put into a plan the values that its target cannot take.

    Args:
        source: where they are read.
        plan: changed in its place.
        tick: is told of each table, and how many rows of it were read.
    """
    plan.tables = [_checked(source, plan, table, tick) for table in plan.tables]


def _checked(source: Side, plan: Plan, table: Table, tick: Callable[[Table, int], None]) -> Table:
    looked_at = table.only({column.name for column in table.columns if _may_be_bad(plan, column.form)})
    if not any(_may_be_bad(plan, column.form) for column in table.columns):
        return table
    faulty: set[str] = set()
    number = 0
    # Whether a text is JSON is seen in each value alone: SQLite says if it is worth looking.
    is_suspect = any(column.form is Form.JSON and source.has_false_json(table, column) for column in table.columns)
    for rows in source.pages(looked_at):
        if is_suspect or not _is_fit(looked_at, rows):
            for place, row in enumerate(rows, number + 1):
                for fault in faults_of(looked_at, row, place):
                    plan.found(fault)
                    faulty.add(fault.column)
        number += len(rows)
        tick(table, len(rows))
    forms = {Form.JSON} if plan.direction == "to_postgres" else {Form.DOUBLE}
    return replace(
        table,
        # Where a key is mended or left out, a range of keys is no longer the same rows on both sides.
        columns=tuple(
            replace(column, sorts_alike=column.sorts_alike and column.name not in faulty) for column in table.columns
        ),
        is_suspect=any(
            column.name in faulty and (column.form in forms or column.is_required) for column in table.columns
        ),
    )


def _may_be_bad(plan: Plan, form: Form) -> bool:
    """Return whether a column of the source can hold what the target cannot: PostgreSQL's types keep their word."""
    return plan.direction == "to_postgres" or form is Form.DOUBLE


def _is_fit(table: Table, rows: list[Row]) -> bool:
    try:
        fits(table.forms, rows)
    except Unfit:
        return False
    if not (table.exists or table.owner):
        return True  # what must not be NULL follows from there being none
    required = [place for place, column in enumerate(table.columns) if column.is_required]
    return not any(row[place] is None for row in rows for place in required)
