"""`Own`: walpool's own sets in a migration: which of them go part by part, and their tables in the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from walpool import schema
from walpool.errors import ConfigError, DatabaseError
from walpool.migrating.plan import Plan, Table

if TYPE_CHECKING:
    from walpool.migrating._sides import Side
    from walpool.migrating.sets import Part, Set

__all__ = ["Own"]

_ANOTHERS: Final = "SELECT 1 FROM {table} WHERE tenant <> {tenant} LIMIT 1"


class Own:
    """The sets that are moved part by part.

    Args:
        sets: what goes by each name; asked for only where a source has it, since that may import a framework.
    """

    def __init__(self, sets: Mapping[str, Sequence[Set]]) -> None:
        self._sets = sets

    def lacks(self, owner: str) -> str | None:
        """Return why a set cannot be moved; None if it can."""
        if owner not in self._sets:
            return f"of walpool's set {owner}, whose tables differ there: not copied"
        try:
            self._sets[owner]
        except ImportError as error:
            return f"of walpool's set {owner}, which needs a package that is not installed: {error.name}"
        return None

    def look(self, owner: str, source: Side, target: Side | None, plan: Plan) -> None:
        """Put into a plan what a source has of a set.

        Args:
            owner: the set's name.
            source: where it is.
            target: where it goes; None where nothing is there yet.
            plan: changed in its place.
        """
        for each in self._sets[owner]:
            if self._is_there(each, source, plan):
                tables = [_table(source, part, owner) for part in each.parts]
                if self._may_go(each, tables, target, plan):
                    plan.tables += tables
                    for part in each.parts:
                        _tell_of_others(source, part, plan)

    def attach(self, plan: Plan) -> None:
        """Give the tables of a plan that was written down their parts.

        Raises:
            ConfigError: a set cannot be moved here.
        """
        for owner in {table.owner for table in plan.tables if table.owner}:
            if why := self.lacks(owner):
                raise ConfigError(f"the migration has tables {why}")
            parts = {part.name: part for each in self._sets[owner] for part in each.parts}
            plan.tables = [
                replace(table, part=parts[table.name]) if table.owner == owner else table for table in plan.tables
            ]

    def make(self, plan: Plan, target: Side) -> None:
        """Make the tables of the sets in the target, as the sets themselves make them; what is there stays."""
        names = {table.name for table in plan.tables if table.owner}
        for owner in {table.owner for table in plan.tables if table.owner}:
            for each in self._sets[owner]:
                if names.isdisjoint(part.name for part in each.parts):
                    continue
                for name, migrations in each.schemas[target.backend].items():
                    schema.migrate(target.pool, name, migrations)
                if each.unversioned and target.backend == "sqlite":
                    target.execute(each.unversioned)

    def _is_there(self, each: Set, source: Side, plan: Plan) -> bool:
        for name, migrations in each.schemas[source.backend].items():
            found = schema.version(source.pool, name)
            if not found:
                return False
            if found != len(migrations):
                what = "open it once with this one" if found < len(migrations) else "upgrade walpool"
                plan.obstacles.append(f"the set {name} in the source is of another version of walpool: {what}")
        return True

    def _may_go(self, each: Set, tables: Sequence[Table], target: Side | None, plan: Plan) -> bool:
        if each.needs is not None and not any(table.rows for table in tables):
            plan.left_out += [(table.name, "it has no rows") for table in tables]
            return False
        if target is None:
            return True
        if each.needs is not None and target.backend == "postgres" and not target.fetch(each.needs[0])[0][0]:
            plan.obstacles.append(f"{tables[0].name}: {each.needs[1]}")
            return False
        versions = [(schema.version(target.pool, name), known) for name, known in each.schemas[target.backend].items()]
        if any(found > len(known) for found, known in versions):
            plan.obstacles.append(f"{tables[0].name}: the target was written by a newer walpool: upgrade walpool")
        is_made = all(found for found, _ in versions) or target.backend == "sqlite"
        there = target.names()
        for table in tables:
            name = table.part.table(target.backend) if table.part is not None else table.name
            if name in there and not (is_made and _has_columns(target, table)):
                plan.obstacles.append(f"{table.name}: the target has a table {name} which is not walpool's")
        return True


def _table(source: Side, part: Part, owner: str) -> Table:
    rows, length = source.figures(part)
    row_bytes = max(16, length // max(rows, 1))
    return Table(part.name, part.columns, key=part.key, rows=rows, row_bytes=row_bytes, owner=owner, part=part)


def _tell_of_others(source: Side, part: Part, plan: Plan) -> None:
    query = _ANOTHERS.format(table=part.table(source.backend), tenant=schema.TENANT)
    said = "the source has rows of other tenants: each goes by itself, named by --tenant"
    if source.backend == "postgres" and said not in plan.notes and source.fetch(query):
        plan.notes.append(said)


def _has_columns(target: Side, table: Table) -> bool:
    try:
        target.has_rows(table)
    except DatabaseError:
        return False
    return True
