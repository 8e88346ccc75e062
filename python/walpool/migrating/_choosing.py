"""Which tables of a source are copied, which go with a set of walpool's own, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from walpool.migrating import _sqlite_sql
from walpool.migrating.plan import Plan
from walpool.migrating.sets import DERIVED, OWN, LooksAhead, set_of

if TYPE_CHECKING:
    from walpool.migrating._own import Own
    from walpool.migrating._sides import Side
    from walpool.migrating.migration import Options

__all__ = ["choose"]


def choose(source: Side, plan: Plan, options: Options, own: Own) -> list[str]:
    """Take out of a plan what is not to be copied table by table, and return the sets that go part by part.

    A set goes as a whole, whichever of its tables is asked for.
    """
    present = _present(source)
    owners = {
        table.name: set_of(source.backend, table.name, [column.name for column in table.columns], present)
        for table in plan.tables
        if table.name not in OWN
    }
    wanted = set(owners) if options.tables is None else set(options.tables)
    unknown = sorted(wanted - set(owners) - {owner for owner in owners.values() if owner})
    plan.obstacles += [f"there is no table {name} in the source" for name in unknown]
    asked = {owner for name, owner in owners.items() if owner and not wanted.isdisjoint((name, owner))}
    lacking = {owner: own.lacks(owner) for owner in asked - set(options.movers)}
    for name, owner in owners.items():
        if name not in wanted and owner not in asked:
            plan.left_out.append((name, "not asked for"))
        elif owner in options.movers:
            plan.left_out.append((name, f"of the set {owner}, which is moved as a whole"))
        elif owner is not None and (why := lacking[owner]):
            plan.left_out.append((name, why))
    plan.tables = [table for table in plan.tables if owners.get(table.name, "") is None and table.name in wanted]
    plan.moved = sorted(asked & set(options.movers))
    chosen = sorted(owner for owner, why in lacking.items() if not why)
    _forget_what_is_made(plan, owners, {*chosen, *plan.moved})
    _tell(plan, options, is_without_memory="memory" in present - set(options.movers))
    return chosen


def _forget_what_is_made(plan: Plan, owners: dict[str, str | None], going: set[str]) -> None:
    """Say nothing of the triggers, views and virtual tables of sets that go: the target has its own."""
    triggers = tuple(f"a trigger of {name}:" for name, owner in owners.items() if owner in going)
    derived = [pattern for name, pattern in DERIVED.items() if name in going]
    plan.left_out = [
        (name, why)
        for name, why in plan.left_out
        if not why.startswith(triggers) and not any(pattern.fullmatch(name) for pattern in derived)
    ]


def _present(source: Side) -> set[str]:
    """Return the sets that a database has."""
    if "walpool_schema" not in source.names():
        return set()
    return {name for (name,) in source.fetch(_sqlite_sql.SETS)}


def _tell(plan: Plan, options: Options, *, is_without_memory: bool) -> None:
    """Note what a person should know of what is left out."""
    silent = [name for name in plan.moved if not isinstance(options.movers[name], LooksAhead)]
    plan.notes += [f"the set {name} is moved as a whole" for name in silent]
    if is_without_memory:
        plan.notes.append("memories go by walpool export and walpool import")
    names = {table.name for table in plan.tables}
    plan.notes += [
        f"{table.name}: its foreign key to {foreign.parent} is left out, as that table is"
        for table in plan.tables
        for foreign in table.foreign
        if foreign.parent not in names
    ]
