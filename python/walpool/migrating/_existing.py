"""Tables that the target has already: whether rows can be written into them as they are."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating import _postgres_sql, _sqlite_sql
from walpool.migrating._canonical import SPELLED
from walpool.migrating.plan import Column, Plan, Table
from walpool.postgres.binary import Form
from walpool.postgres.policies import is_secured

if TYPE_CHECKING:
    from walpool.migrating._sides import Side

__all__ = ["fit_into"]

_FORMS: Final = {
    "smallint": Form.SMALLINT,
    "integer": Form.INTEGER,
    "bigint": Form.BIGINT,
    "real": Form.REAL,
    "double precision": Form.DOUBLE,
    "numeric": Form.NUMERIC,
    "text": Form.TEXT,
    "character varying": Form.TEXT,
    "character": Form.CHAR,
    "bpchar": Form.CHAR,
    "bytea": Form.BYTEA,
    "boolean": Form.BOOLEAN,
    "json": Form.JSON,
    "jsonb": Form.JSONB,
    "uuid": Form.UUID,
    "date": Form.DATE,
    "timestamp without time zone": Form.TIMESTAMP,
    "timestamp with time zone": Form.TIMESTAMPTZ,
}
"""What COPY fills, by the name of a type without its limits."""

_LIMITED: Final = re.compile(r"([^(]+)\((\d+)(?:,(-?\d+))?\)(.*)")


def fit_into(source: Side, target: Side, plan: Plan) -> None:
    """Take the tables that are there as they are; what does not fit becomes an obstacle of the plan."""
    there = target.names()
    fit = _fit_postgres if target.backend == "postgres" else _fit_sqlite
    plan.tables = [fit(source, target, plan, table) if table.name in there else table for table in plan.tables]


def _fit_postgres(_: Side, target: Side, plan: Plan, table: Table) -> Table:
    name = _sqlite_sql.quoted(table.name)
    oid = target.fetch(_postgres_sql.OID, (name,))[0][0]
    found = {row[0]: row for row in target.fetch(_postgres_sql.COLUMNS, (oid,))}
    is_bytewise = bool(target.fetch(_postgres_sql.COLLATION)[0][0])
    columns: list[Column] = []
    for column in table.columns:
        row = found.pop(column.name, None)
        if row is None or row[6]:
            plan.obstacles.append(f"{table.name}: the table that is there has no column {column.name}")
        elif (fit := _fitted(column, row, is_bytewise=is_bytewise)) is None:
            plan.obstacles.append(
                f"{table.name}.{column.name}: a column of type {row[1]} cannot be filled: make it text, and change its "
                f"type afterwards (ALTER TABLE ... ALTER COLUMN ... TYPE {row[1]} USING ...)"
            )
        else:
            columns.append(fit)
    if is_secured(target.fetch, name):
        plan.notes.append(f"{table.name} is under row-level security: its rows are those of --tenant, by INSERT")
    plan.obstacles += [
        f"{table.name}.{lacking}: the source has no such column, and the one that is there must be filled"
        for lacking, row in found.items()
        if row[3] and row[4] is None and not row[5] and not row[6]
    ]
    return _existing(table, columns)


def _fitted(column: Column, row: tuple[Any, ...], *, is_bytewise: bool) -> Column | None:
    """Return a column as the target has it; None if it is of a type that is not filled."""
    name, limits = _type(row[1])
    form = _FORMS.get(name)
    if form is None:
        return None
    alike = column.sorts_alike and form not in SPELLED
    if form is Form.TEXT:
        alike = alike and (row[7] in ("C", "POSIX") or (row[7] == "default" and is_bytewise))
    return replace(
        column, form=form, postgres=row[1], is_required=row[3], is_counted=False, sorts_alike=alike, limits=limits
    )


def _type(shown: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of a type without its limits, and the limits."""
    found = _LIMITED.fullmatch(shown)
    if found is None:
        return shown, ()
    return found[1] + found[4], tuple(int(limit) for limit in found.groups()[1:3] if limit is not None)


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
    return _existing(table, list(table.columns))


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


def _existing(table: Table, columns: list[Column]) -> Table:
    if len(columns) < len(table.columns):
        return table
    note = "it is there already, and taken as it is: no index and no foreign key is made"
    return replace(table, columns=tuple(columns), exists=True, indexes=(), foreign=(), notes=(*table.notes, note))
