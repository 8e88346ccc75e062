"""CHECKs, and indexes on expressions or a part of a table: those that the server does not take are said in the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from walpool.migrating import _postgres_sql as sql
from walpool.migrating._from_sqlite import no_index
from walpool.migrating.plan import Index, Plan, Table

if TYPE_CHECKING:
    from walpool.migrating._postgres import PostgresSide

__all__ = ["try_conditions"]


def try_conditions(target: PostgresSide, plan: Plan) -> None:
    """Take out of a plan the conditions that the server refuses on tables with such columns."""
    plan.tables = [_tried(target, table) for table in plan.tables]


def _tried(target: PostgresSide, table: Table) -> Table:
    if table.part is not None:
        return table
    if table.exists:
        return replace(table, checks=())
    notes: list[str] = []
    checks: list[str] = []
    indexes: list[Index] = []
    for condition in table.checks:
        if _takes_check(target, table, condition):
            checks.append(condition)
        else:
            notes.append(f"the CHECK {condition} is not carried over: the server does not take it")
    for index in table.indexes:
        is_plain = not (index.parts or index.where)
        if is_plain or _takes_index(target, table, index):
            indexes.append(index)
        else:
            notes.append(no_index(index.name, f"the server does not take ({', '.join(index.parts)}) {index.where}"))
    return replace(table, checks=tuple(checks), indexes=tuple(indexes), notes=(*table.notes, *notes))


def _takes_check(target: PostgresSide, table: Table, condition: str) -> bool:
    return target.takes(table, lambda probe: sql.add_check(probe, condition))


def _takes_index(target: PostgresSide, table: Table, index: Index) -> bool:
    return target.takes(table, lambda probe: sql.create_index(probe, index, None))
