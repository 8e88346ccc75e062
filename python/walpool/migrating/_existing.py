"""Tables that the target has already: whether rows can be written into them as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from walpool.migrating import _postgres_sql, _sqlite_sql
from walpool.migrating.plan import Column, Plan, Table
from walpool.postgres.binary import Form

if TYPE_CHECKING:
    from walpool.migrating._sides import Side

__all__ = ["fit_into"]

_FORMS: Final = {
    "smallint": Form.SMALLINT,
    "integer": Form.INTEGER,
    "bigint": Form.BIGINT,
    "double precision": Form.DOUBLE,
    "text": Form.TEXT,
    "character varying": Form.TEXT,
    "bytea": Form.BYTEA,
    "boolean": Form.BOOLEAN,
    "numeric": Form.NUMERIC,
    "json": Form.JSON,
}
"""What COPY fills; a type with a length or a scale would change values."""

_OID: Final = "SELECT to_regclass(?)::oid::bigint"


def fit_into(target: Side, plan: Plan) -> None:
    """Take the tables that are there as they are; what does not fit becomes an obstacle of the plan."""
    there = target.names()
    fit = _fit_postgres if target.backend == "postgres" else _fit_sqlite
    plan.tables = [fit(target, plan, table) if table.name in there else table for table in plan.tables]


def _fit_postgres(target: Side, plan: Plan, table: Table) -> Table:
    oid = target.fetch(_OID, (_sqlite_sql.quoted(table.name),))[0][0]
    found = {row[0]: row for row in target.fetch(_postgres_sql.COLUMNS, (oid,))}
    is_bytewise = bool(target.fetch(_postgres_sql.COLLATION)[0][0])
    columns: list[Column] = []
    for column in table.columns:
        row = found.get(column.name)
        form = _FORMS.get(row[1]) if row else None
        if row is None or row[6]:
            plan.obstacles.append(f"{table.name}: the table that is there has no column {column.name}")
        elif form is None:
            plan.obstacles.append(f"{table.name}.{column.name}: a column of type {row[1]} cannot be filled as it is")
        else:
            bytewise = row[7] in ("C", "POSIX") or (row[7] == "default" and is_bytewise)
            alike = column.sorts_alike and (form is not Form.TEXT or bytewise)
            columns.append(
                replace(column, form=form, postgres=row[1], is_required=row[3], is_counted=False, sorts_alike=alike)
            )
    return _existing(table, columns)


def _fit_sqlite(target: Side, plan: Plan, table: Table) -> Table:
    found = {row[0] for row in target.fetch(_sqlite_sql.COLUMNS, (table.name,)) if row[5] == 0}
    for column in table.columns:
        if column.name not in found:
            plan.obstacles.append(f"{table.name}: the table that is there has no column {column.name}")
    return _existing(table, list(table.columns))


def _existing(table: Table, columns: list[Column]) -> Table:
    if len(columns) < len(table.columns):
        return table
    note = "it is there already, and taken as it is: no index and no foreign key is made"
    return replace(table, columns=tuple(columns), exists=True, indexes=(), foreign=(), notes=(*table.notes, note))
