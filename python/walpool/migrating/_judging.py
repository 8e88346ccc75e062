"""Values that a domain of the target refuses, found before anything is written, by asking the server.

Only it can say what a condition makes of a value. It is asked about each value once, many of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating._barred import barred
from walpool.migrating._canonical import as_given_back
from walpool.migrating._checking import noted
from walpool.migrating._faults import fault, nothing
from walpool.migrating._long_keys import key_hash, part_of
from walpool.migrating.plan import Barred, Column, Plan, Table

if TYPE_CHECKING:
    from walpool.migrating._postgres import PostgresSide
    from walpool.migrating._sides import Side

__all__ = ["find_barred"]

_MOST: Final = 10_000  # values of one column that a plan names


def find_barred(source: Side, target: PostgresSide, plan: Plan) -> None:
    """Put into a plan the rows whose values a domain of the target refuses."""
    plan.tables = [_judged(source, target, plan, table) for table in plan.tables]


def _judged(source: Side, target: PostgresSide, plan: Plan, table: Table) -> Table:
    found: list[Barred] = []
    for column in table.columns:
        if not column.domain:
            continue
        refused = _refused(source, target, table, column)
        if len(refused) > _MOST:
            plan.obstacles.append(
                f"{table.name}.{column.name}: the domain {column.domain} refuses more than {_MOST} values: change them "
                "in the source, or make the column text"
            )
        elif refused:
            found.append(Barred(column.name, column.domain, tuple(sorted(refused))))
    return noted(source, plan, replace(table, barred=tuple(found), is_suspect=True), barred) if found else table


def _refused(source: Side, target: PostgresSide, table: Table, column: Column) -> set[int]:
    """Return the hashes of the values that a domain does not take, and of what would replace them if it is one."""
    part = part_of(table, (column.name,))
    found: set[int] = set()
    wanted = table.only({column.name})
    place = wanted.columns.index(column)
    for rows in source.pages(wanted):
        found |= _asked(target, part, list(dict.fromkeys(row[place] for row in rows)))
        if len(found) > _MOST:
            break
    return found | (_asked(target, part, [nothing(column)]) if found else set())


def _asked(target: PostgresSide, part: Table, values: Sequence[Any]) -> set[int]:
    """Return the hashes of those values that have no other fault, and that a domain refuses."""
    (column,) = part.columns
    given = as_given_back(part, [(value,) for value in values if fault(column, value) is None])
    refused = target.refused(column, [value for (value,) in given])
    return {number for place in refused if (number := key_hash(part, given[place])) is not None}
