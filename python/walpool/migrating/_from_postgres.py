"""The plan for a PostgreSQL schema that goes to a SQLite file: its tables, and what each column becomes there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from walpool.migrating import _postgres_sql as sql
from walpool.migrating._catalog import ServerColumn, Type, columns_of
from walpool.migrating._hashing import hashed_form
from walpool.migrating._sqlite_sql import quoted
from walpool.migrating.plan import Column, Element, ForeignKey, Index, Plan, Table
from walpool.postgres.binary import Form

if TYPE_CHECKING:
    from walpool.migrating._postgres import PostgresSide

__all__ = ["look", "refuse_names"]

_DECLARED: Final = {
    Form.BIGINT: "INTEGER",
    Form.DOUBLE: "REAL",
    Form.BOOLEAN: "BOOLEAN",
    Form.BYTEA: "BLOB",
    Form.TEXT: "TEXT",
    Form.ARRAY: "TEXT",
}
_TEXTS: Final = frozenset({Form.TEXT, Form.CHAR, Form.NAME, Form.JSON})
"""Those whose text is the value itself."""

_LOCAL: Final = "money"
_BYTEWISE: Final = frozenset({"C", "POSIX", "ucs_basic"})
_ACTIONS: Final = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_CAST: Final = re.compile(r"^\(?('(?:[^']|'')*'|[+-]?\d+(?:\.\d+)?|true|false)\)?(?:::[\w\s\"().,]+)?$", re.IGNORECASE)


class _Constraint(NamedTuple):
    """A row of `sql.CONSTRAINTS`; keys are numbers of columns."""

    kind: str
    name: str
    keys: Sequence[int]
    theirs: Sequence[int]
    parent: str
    on_delete: str
    on_update: str
    parent_oid: int | None
    is_deferrable: bool
    is_deferred: bool
    is_full: bool


class _ServerIndex(NamedTuple):
    """A row of `sql.INDEXES`; keys are numbers of columns, and flags 0 or 1 for each of them."""

    oid: int
    name: str
    is_unique: bool
    is_primary: bool
    is_odd: bool
    keys: Sequence[int]
    falling: Sequence[int] | None
    nulls_first: Sequence[int] | None
    has_one_null: bool
    definition: str


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
    found = columns_of(side, oid)
    attributes = {each.number: each.name for each in found}
    kept = [each for each in found if not each.is_generated]
    columns = [_column(each, notes, is_bytewise=is_bytewise) for each in kept]
    notes += [
        f"{each.name} is a generated column, and not copied: add it by hand" for each in found if each.is_generated
    ]
    foreign = _constraints(side, oid, attributes, notes)
    notes += [f"the trigger {trigger} is not carried over" for (trigger,) in side.fetch(sql.TRIGGERS, (oid,))]
    notes += [f"the rule {rule} is not carried over" for (rule,) in side.fetch(sql.RULES, (oid,))]
    required = {column.name for column in columns if column.is_required}
    primary, uniques, indexes = _indexes(side, oid, attributes, required, notes)
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
        foreign=foreign,
        checks=tuple(_labels(each) for each in kept if each.type.form is Form.ENUM and each.type.limits),
        rows=count,
        row_bytes=max(16, size // max(count, 1)),
        notes=tuple(notes),
    )


def _column(given: ServerColumn, notes: list[str], *, is_bytewise: bool) -> Column:
    name, kind = given.name, given.type
    form = Form.ARRAY if kind.element is not None else _read_as(kind)
    notes += [f"{name}: {said}" for said in _said(given)]
    is_counted = given.is_identity or (given.default or "").startswith("nextval(")
    made = None
    if given.default is not None and not is_counted:
        made = _default(given.default, form)
        notes += [f"{name}: its default is not carried over: {given.default}"] if made is None else []
    elif is_counted and form is Form.BIGINT:
        notes.append(f"{name}: its numbers go on from the largest where it is the primary key alone")
    alike = form in (Form.BIGINT, Form.DOUBLE, Form.BOOLEAN, Form.BYTEA) or kind.form is Form.UUID
    if kind.form is Form.TEXT:
        alike = given.collation in _BYTEWISE or (given.collation == "default" and is_bytewise)
    element = Element(_read_as(kind.element)) if kind.element is not None else None
    return Column(
        name,
        form,
        given.shown,
        _DECLARED[form],
        given.is_required,
        made,
        sorts_alike=alike,
        element=element,
        behind=kind.behind,
    )


def _read_as(kind: Type) -> Form:
    """Return the form in which values of a type are read: as what SQLite has a class for, else as text."""
    return Form.TEXT if kind.form is None else hashed_form(kind.form)


def _said(given: ServerColumn) -> list[str]:
    """Return what a person should know of what a column becomes."""
    kind, shown = given.type, given.shown
    said: list[str] = []
    if kind.element is not None:
        said.append(f"{shown} becomes JSON")
    elif kind.form is Form.ENUM:
        said.append(f"{shown} becomes its text, with a CHECK that it is a label")
    elif kind.form is Form.INTERVAL:
        said.append(f"{shown} becomes its text, a duration of ISO 8601")
    elif kind.shown == _LOCAL:
        said.append(f"{shown} becomes its text, as the server's locale writes it: numeric would be a number")
    elif _read_as(kind) is Form.TEXT and kind.form not in _TEXTS:
        said.append(f"{shown} becomes its text")
    for domain in [*kind.domains, *(kind.element.domains if kind.element is not None else ())]:
        said += [
            f"the constraint {check} of {domain.name} is not carried over: add it by hand" for check in domain.checks
        ]
        said += [f"the NOT NULL of {domain.name} is not carried over: add it by hand"] if domain.is_required else []
    return said


def _labels(given: ServerColumn) -> str:
    """Return the condition that a text is a label of an enum."""
    listed = ", ".join("'" + str(label).replace("'", "''") + "'" for label in given.type.limits)
    return f"{quoted(given.name)} IN ({listed})"


def _default(default: str, form: Form) -> str | None:
    """Return a default as SQLite has it; None if it has none."""
    found = _CAST.match(default)
    return _literal(found[1], form) if found and form is not Form.BYTEA else None


def _literal(text: str, form: Form) -> str | None:
    if form is Form.ARRAY:
        return "'[]'" if text == "'{}'" else None
    if form is Form.TEXT:
        return text if text.startswith("'") else f"'{text}'"
    plain = text.strip("'")
    plain = {"true": "1", "false": "0", "t": "1", "f": "0"}.get(plain.lower(), plain)
    return plain if re.fullmatch(r"[+-]?\d+(\.\d+)?", plain) else None


def _constraints(side: PostgresSide, oid: int, attributes: dict[int, str], notes: list[str]) -> tuple[ForeignKey, ...]:
    """Return the foreign keys, and say what becomes of the other constraints."""
    foreign: list[ForeignKey] = []
    for each in map(_Constraint._make, side.fetch(sql.CONSTRAINTS, (oid,))):
        if each.kind == "f" and each.parent_oid is not None:
            foreign.append(_foreign(side, each, attributes))
            if each.is_full and len(each.keys) > 1:  # of one column it means what it means without
                notes.append(f"the foreign key {each.name} loses MATCH FULL: one NULL in it, and it refers to nothing")
        elif each.kind in ("c", "x"):
            notes.append(f"the constraint {each.name} is not carried over: add it by hand")
        elif each.kind in ("u", "p") and each.is_deferrable:
            notes.append(f"the constraint {each.name} is no longer DEFERRABLE: SQLite looks at it with each row")
    return tuple(foreign)


def _foreign(side: PostgresSide, given: _Constraint, attributes: dict[int, str]) -> ForeignKey:
    names = dict(side.fetch(sql.ATTRIBUTES, (given.parent_oid,)))
    return ForeignKey(
        tuple(attributes[key] for key in given.keys),
        given.parent,
        tuple(names[key] for key in given.theirs),
        _ACTIONS[given.on_delete],
        _ACTIONS[given.on_update],
        given.is_deferred,
    )


def _indexes(
    side: PostgresSide, oid: int, attributes: dict[int, str], required: set[str], notes: list[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[Index]]:
    """Return the primary key, what else is unique, and the indexes to be made."""
    primary: tuple[str, ...] = ()
    uniques: list[tuple[str, ...]] = []
    indexes: list[Index] = []
    for each in map(_ServerIndex._make, side.fetch(sql.INDEXES, (oid,))):
        if each.is_odd:
            notes.append(
                f"the index {each.name} is on a part or expressions, or of a kind that SQLite lacks: "
                f"not made: {each.definition}"
            )
            continue
        columns = tuple(attributes[key] for key in each.keys)
        if each.is_primary:
            primary = columns
            continue
        if each.is_unique:
            uniques.append(columns)
        notes += _said_of_nulls(each, columns, required)
        falling = tuple(bool(flag) for flag in (each.falling or [])[: len(columns)])
        indexes.append(Index(each.name, columns, each.is_unique, falling))
    return primary, uniques, indexes


def _said_of_nulls(given: _ServerIndex, columns: Sequence[str], required: set[str]) -> list[str]:
    """Return what a person should know of NULLs in an index; of columns that have none it is nothing."""
    said: list[str] = []
    if given.has_one_null and not required.issuperset(columns):
        said.append(
            f"the index {given.name} is no longer NULLS NOT DISTINCT: SQLite lets several rows have the same values "
            "where one is NULL"
        )
    # To SQLite a NULL is below all values, to PostgreSQL above them: what was written here is the other one's default.
    for name, falls, is_first in zip(columns, given.falling or (), given.nulls_first or (), strict=False):
        if falls != is_first and name not in required:
            shown = f"{name} DESC" if falls else name
            said.append(
                f"the index {given.name}: {shown} NULLS {'FIRST' if is_first else 'LAST'} becomes {shown}, which has "
                "its NULLs there on SQLite, and at the other end if it goes back"
            )
    return said
