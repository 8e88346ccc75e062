"""Finding the rows that the target cannot take, before anything is written: one reading of the whole source."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from walpool.migrating._canonical import as_given_back, as_one
from walpool.migrating._cleaning import faults_of
from walpool.migrating._faults import as_json
from walpool.migrating._hashing import key_hashes
from walpool.migrating.plan import Plan, Table
from walpool.postgres.binary import Form, Unfit
from walpool.postgres.binary import check as fits

if TYPE_CHECKING:
    from walpool.migrating._sides import Side
    from walpool.types import Row

__all__ = ["check", "noted"]

_SHOWN: Final = 4  # keys that an obstacle names


def check(source: Side, plan: Plan, tick: Callable[[Table, int], None]) -> None:
    """Put into a plan the values that its target cannot take.

    Args:
        source: where they are read.
        plan: changed in its place.
        tick: is told of each table, and how many rows of it were read.
    """
    plan.tables = [_checked(source, plan, table, tick) for table in plan.tables]
    for table in plan.tables:
        if any(not column.spelling.sorts_alike for column in table.key_columns):
            _refuse_twins(source, plan, table)


def noted(source: Side, plan: Plan, table: Table, look: Callable[[Table, Row], list[tuple[str, str]]]) -> Table:
    """Enter the bad rows of a table into a plan, and return the table as it is to be compared.

    Args:
        source: where they are read.
        plan: changed in its place; what else is wrong with a row is in it already.
        table: whose.
        look: returns the columns of a row that are bad, and why.
    """
    faulty: set[str] = set()
    number = 0
    for rows in source.pages(table):
        for place, row in enumerate(rows, number + 1):
            if found := look(table, row):
                for fault in faults_of(table, row, place):
                    faulty.add(fault.column)
                    if (fault.column, fault.why) in found:
                        plan.found(fault)
        number += len(rows)
    return _sorted_otherwise(table, faulty)


def _sorted_otherwise(table: Table, faulty: set[str]) -> Table:
    """Return a table with bad columns: a range of keys that are mended, or left out, is other rows on each side."""
    columns = tuple(replace(each, sorts_alike=each.sorts_alike and each.name not in faulty) for each in table.columns)
    return replace(table, columns=columns)


def _checked(source: Side, plan: Plan, table: Table, tick: Callable[[Table, int], None]) -> Table:
    odd = {column.name for column in table.columns if source.has_odd(table, column)}
    if not odd:
        return table
    looked_at = table.only(odd)
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
    forms = {Form.JSON} if plan.direction == "to_postgres" else {Form.DOUBLE, Form.ARRAY}
    return replace(
        _sorted_otherwise(table, faulty),
        is_suspect=any(
            column.name in faulty and (column.form in forms or column.is_required) for column in table.columns
        ),
    )


def _refuse_twins(source: Side, plan: Plan, table: Table) -> None:
    """Make an obstacle of keys that differ in the file and are one to the server, as UUIDs in capitals and without."""
    part = table.only(set())
    seen = array("q")  # 8 bytes a row
    for rows in source.pages(part):
        seen.extend(key for key in _key_hashes(part, rows) if key is not None)
    seen = array("q", sorted(seen))
    twins = {key for key, following in pairwise(seen) if key == following}
    if not twins:
        return
    shown = [
        json.dumps([as_json(value) for value in part.key_of(row)])
        for rows in source.pages(part)
        for row, key in zip(rows, _key_hashes(part, rows), strict=True)
        if key in twins
    ]
    plan.obstacles.append(
        f"{table.name}: {len(shown)} keys are only several spellings of fewer to PostgreSQL: change them in the source "
        f"({', '.join(sorted(shown)[:_SHOWN])})"
    )


def _key_hashes(part: Table, rows: list[Row]) -> list[int | None]:
    try:
        return [*key_hashes(part, as_one(part, as_given_back(part, rows)))]
    except Unfit:  # a fault of its own
        return [_key_hashes(part, [row])[0] for row in rows] if len(rows) > 1 else [None]


def _is_fit(table: Table, rows: list[Row]) -> bool:
    try:
        fits(table.wires, as_given_back(table, rows))
    except Unfit:
        return False
    if not (table.exists or table.owner):
        return True  # what must not be NULL follows from there being none
    required = [place for place, column in enumerate(table.columns) if column.is_required]
    return not any(row[place] is None for row in rows for place in required)
