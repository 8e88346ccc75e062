"""Tables that the target has already: whether rows can be written into them as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from walpool.migrating import _postgres_sql, _sqlite_sql
from walpool.migrating._catalog import ServerColumn, Type, columns_of
from walpool.migrating._sqlite_text import event
from walpool.migrating.plan import Column, Element, Plan, Table
from walpool.postgres.binary import Form
from walpool.postgres.policies import is_secured

if TYPE_CHECKING:
    from walpool.migrating._sides import Side

__all__ = ["fit_into"]


def fit_into(source: Side, target: Side, plan: Plan) -> None:
    """Take the tables that are there as they are; what does not fit becomes an obstacle of the plan."""
    there = target.names()
    fit = _fit_postgres if target.backend == "postgres" else _fit_sqlite
    plan.tables = [fit(source, target, plan, table) if table.name in there else table for table in plan.tables]


def _fit_postgres(_: Side, target: Side, plan: Plan, table: Table) -> Table:
    name = _sqlite_sql.quoted(table.name)
    oid = target.fetch(_postgres_sql.OID, (name,))[0][0]
    found = {each.name: each for each in columns_of(target, oid)}
    is_bytewise = bool(target.fetch(_postgres_sql.COLLATION)[0][0])
    columns: list[Column] = []
    for column in table.columns:
        given = found.pop(column.name, None)
        if given is None or given.is_generated:
            plan.obstacles.append(f"{table.name}: the table that is there has no column {column.name}")
        elif (fit := _fitted(column, given, is_bytewise=is_bytewise)) is None:
            plan.obstacles.append(_no_use(table, given))
        else:
            columns.append(fit)
    if is_secured(target.fetch, name):
        plan.notes.append(f"{table.name} is under row-level security: its rows are those of --tenant, by INSERT")
    plan.obstacles += [
        f"{table.name}.{each.name}: the source has no such column, and the one that is there must be filled"
        for each in found.values()
        if _must_be_filled(each)
    ]
    firing = target.fetch(_postgres_sql.FIRING, (oid,))
    return _existing(table, columns, [_fires(trigger, *when) for trigger, *when in firing])


def _must_be_filled(given: ServerColumn) -> bool:
    is_required = given.is_required or given.type.is_required
    return is_required and given.default is None and not given.is_identity and not given.is_generated


def _fitted(column: Column, given: ServerColumn, *, is_bytewise: bool) -> Column | None:
    """Return a column as the target has it; None if it is of a type that is not filled."""
    kind, form = given.type, given.type.form
    if form is None:
        return None
    alike = column.sorts_alike and form.spelling.sorts_alike
    if form is Form.TEXT:
        alike = alike and (given.collation in ("C", "POSIX") or (given.collation == "default" and is_bytewise))
    return replace(
        column,
        form=form,
        postgres=given.shown,
        is_required=given.is_required or kind.is_required,
        is_counted=False,
        sorts_alike=alike,
        limits=kind.limits,
        element=_element(kind),
        domain=", ".join(domain.name for domain in kind.judges),
        behind=kind.behind,
    )


def _element(kind: Type) -> Element | None:
    inner = kind.element
    return None if inner is None or inner.form is None else Element(inner.form, inner.limits, inner.oid)


def _no_use(table: Table, given: ServerColumn) -> str:
    """Return what is said of a column whose type is not filled, and what to do."""
    name = _sqlite_sql.quoted(given.name)
    change = f"ALTER TABLE {_sqlite_sql.quoted(table.name)} ALTER COLUMN {name} TYPE {given.shown}"
    return (
        f"{table.name}.{given.name}: a column of type {given.shown} cannot be filled: make it text, and change its "
        f"type afterwards ({change} USING {name}::{given.shown})"
    )


def _fit_sqlite(source: Side, target: Side, plan: Plan, table: Table) -> Table:
    found = {row[0]: row[1] for row in target.fetch(_sqlite_sql.COLUMNS, (table.name,)) if row[5] == 0}
    for column in table.columns:
        declared = found.get(column.name)
        if declared is None:
            plan.obstacles.append(f"{table.name}: the table that is there has no column {column.name}")
        elif becomes := _becomes(source, table, column, declared):
            plan.obstacles.append(
                f"{table.name}.{column.name}: a column that is declared {declared} makes {becomes}: declare it "
                f"{column.sqlite}"
            )
    firing = target.fetch(_sqlite_sql.TRIGGERS, (table.name,))
    fired = [_fires(trigger, event(ddl) == "INSERT", True) for trigger, ddl in firing]
    return _existing(table, list(table.columns), fired)


def _becomes(source: Side, table: Table, column: Column, declared: str) -> str:
    """Return what SQLite makes of a column's values where that are others. https://www.sqlite.org/datatype3.html."""
    affinity = _sqlite_sql.affinity(declared)
    if column.form in (Form.BIGINT, Form.BOOLEAN, Form.DOUBLE) and affinity == "TEXT":
        return "texts of numbers"
    if column.form in (Form.BIGINT, Form.BOOLEAN) and affinity == "REAL":
        return "numbers with a point of integers"
    is_text = column.form is Form.TEXT and affinity in ("INTEGER", "REAL", "NUMERIC")
    if is_text and source.fetch(_postgres_sql.numeric_text(table, column)):
        return "numbers of texts that look like one"
    return ""


def _fires(trigger: str, is_on_insert: bool, is_by_row: bool) -> str:
    """Return what is said of a trigger of the table that is there: it is left on."""
    if not is_on_insert:
        return f"its trigger {trigger} fires for what --repair changes or deletes"
    return f"its trigger {trigger} fires for each {'row' if is_by_row else 'batch of rows'} that is copied"


def _existing(table: Table, columns: list[Column], fired: list[str]) -> Table:
    if len(columns) < len(table.columns):
        return table
    note = "it is there already, and taken as it is: no index and no foreign key is made"
    return replace(
        table, columns=tuple(columns), exists=True, indexes=(), foreign=(), notes=(*table.notes, note, *fired)
    )
