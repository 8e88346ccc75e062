"""The plan for a PostgreSQL schema that goes to a SQLite file: its tables, and what each column becomes there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating import _postgres_sql as sql
from walpool.migrating.plan import Column, ForeignKey, Index, Plan, Table
from walpool.postgres.binary import Form

if TYPE_CHECKING:
    from walpool.migrating._postgres import PostgresSide

__all__ = ["look", "refuse_names"]

_FORMS: Final = {
    "int2": Form.BIGINT,
    "int4": Form.BIGINT,
    "int8": Form.BIGINT,
    "float4": Form.DOUBLE,
    "float8": Form.DOUBLE,
    "bool": Form.BOOLEAN,
    "bytea": Form.BYTEA,
    "text": Form.TEXT,
    "varchar": Form.TEXT,
    "bpchar": Form.TEXT,
    "name": Form.TEXT,
    "json": Form.TEXT,
}
"""Those whose values SQLite holds as they are; all others go as their text."""

_DECLARED: Final = {
    Form.BIGINT: "INTEGER",
    Form.DOUBLE: "REAL",
    Form.BOOLEAN: "BOOLEAN",
    Form.BYTEA: "BLOB",
    Form.TEXT: "TEXT",
}
_BYTEWISE: Final = frozenset({"C", "POSIX", "ucs_basic"})
_ACTIONS: Final = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_CAST: Final = re.compile(r"^\(?('(?:[^']|'')*'|[+-]?\d+(?:\.\d+)?|true|false)\)?(?:::[\w\s\"().,]+)?$", re.IGNORECASE)


def look(side: PostgresSide, plan: Plan) -> None:
    """Put into a plan what is in the current schema."""
    is_bytewise = bool(side.fetch(sql.COLLATION)[0][0])
    for oid, name, kind, is_partition, has_policies, size in side.fetch(sql.TABLES):
        if kind in _KINDS:
            plan.left_out.append((name, f"{_KINDS[kind]}: make it anew in the target"))
        elif is_partition:
            plan.left_out.append((name, "a partition: its rows go with the table that it is a part of"))
        else:
            plan.tables.append(_table(side, oid, name, size, is_bytewise=is_bytewise))
            if has_policies:
                plan.notes.append(f"{name} has row-level security: only the rows that this role sees are copied")


def refuse_names(plan: Plan) -> None:
    """Make obstacles of what SQLite cannot name: names that differ in case only are one to it."""
    for names, where in (
        ([table.name for table in plan.tables], "tables"),
        *(([column.name for column in table.columns], f"columns of {table.name}") for table in plan.tables),
    ):
        seen: dict[str, str] = {}
        for name in names:
            if name.lower() in seen:
                plan.obstacles.append(f"the {where} {seen[name.lower()]} and {name} are one name to SQLite")
            seen[name.lower()] = name
        plan.obstacles += [
            f"{name}: SQLite keeps names that begin so for itself"
            for name in names
            if where == "tables" and name.lower().startswith("sqlite_")
        ]
    for table in plan.tables:
        if not table.columns:
            plan.obstacles.append(f"{table.name}: it has no column that could be copied")


def _table(side: PostgresSide, oid: int, name: str, size: int, *, is_bytewise: bool) -> Table:
    notes: list[str] = []
    found = side.fetch(sql.COLUMNS, (oid,))
    attributes = {row[8]: row[0] for row in found}
    columns = [_column(row, notes, is_bytewise=is_bytewise) for row in found if not row[6]]
    notes += [f"{row[0]} is a generated column, and not copied: add it by hand" for row in found if row[6]]
    foreign: list[ForeignKey] = []
    for kind, constraint, keys, theirs, parent, on_delete, on_update, parent_oid in side.fetch(sql.CONSTRAINTS, (oid,)):
        if kind == "f" and parent_oid is not None:
            names = dict(side.fetch(sql.ATTRIBUTES, (parent_oid,)))
            ours = tuple(attributes[key] for key in keys)
            foreign.append(
                ForeignKey(ours, parent, tuple(names[key] for key in theirs), _ACTIONS[on_delete], _ACTIONS[on_update])
            )
        elif kind in ("c", "x"):
            notes.append(f"the constraint {constraint} is not carried over: add it by hand")
    notes += [f"the trigger {trigger} is not carried over" for (trigger,) in side.fetch(sql.TRIGGERS, (oid,))]
    primary, uniques, indexes = _indexes(side, oid, attributes, notes)
    required = {column.name for column in columns if column.is_required}
    key = primary or next((unique for unique in uniques if required.issuperset(unique)), ())
    if not key:
        notes.append("it has no key: it is copied whole, and compared as a whole")
    count = side.count(name)
    columns = [
        replace(column, is_counted=True, default=None)
        if (column.name,) == primary and column.form is Form.BIGINT
        else column
        for column in columns
    ]
    return Table(
        name,
        tuple(columns),
        primary=primary,
        key=key,
        indexes=tuple(indexes),
        foreign=tuple(foreign),
        rows=count,
        row_bytes=max(16, size // max(count, 1)),
        notes=tuple(notes),
    )


def _column(row: tuple[Any, ...], notes: list[str], *, is_bytewise: bool) -> Column:
    name, postgres, base, required, default, identity, _, collation, _ = row
    form = _FORMS.get(base, Form.TEXT)
    if base not in _FORMS:
        notes.append(f"{name}: {postgres} becomes its text")
    made = None
    if default is not None and not default.startswith("nextval("):
        found = _CAST.match(default)
        if found and form is not Form.BYTEA:
            made = _literal(found[1], form)
        if made is None:
            notes.append(f"{name}: its default is not carried over: {default}")
    elif (identity or default) and form is Form.BIGINT:
        notes.append(f"{name}: its numbers go on from the largest where it is the primary key alone")
    alike = form is not Form.TEXT or base == "uuid"
    if base in ("text", "varchar"):
        alike = collation in _BYTEWISE or (collation == "default" and is_bytewise)
    return Column(name, form, postgres, _DECLARED[form], required, made, sorts_alike=alike)


def _literal(text: str, form: Form) -> str | None:
    if form is Form.TEXT:
        return text if text.startswith("'") else f"'{text}'"
    plain = text.strip("'")
    plain = {"true": "1", "false": "0", "t": "1", "f": "0"}.get(plain.lower(), plain)
    return plain if re.fullmatch(r"[+-]?\d+(\.\d+)?", plain) else None


def _indexes(
    side: PostgresSide, oid: int, attributes: dict[int, str], notes: list[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[Index]]:
    """Return the primary key, what else is unique, and the indexes to be made."""
    primary: tuple[str, ...] = ()
    uniques: list[tuple[str, ...]] = []
    indexes: list[Index] = []
    for _, name, unique, is_primary, is_odd, keys, falling, definition in side.fetch(sql.INDEXES, (oid,)):
        if is_odd:
            notes.append(
                f"the index {name} is on a part or expressions, or of a kind that SQLite lacks: not made: {definition}"
            )
            continue
        columns = tuple(attributes[key] for key in keys)
        if is_primary:
            primary = columns
            continue
        if unique:
            uniques.append(columns)
        indexes.append(Index(name, columns, unique, tuple(bool(flag) for flag in (falling or [])[: len(columns)])))
    return primary, uniques, indexes
