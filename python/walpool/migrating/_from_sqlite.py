"""The plan for a SQLite file that goes to PostgreSQL: its tables, and what each column becomes there.

What a column becomes follows from what is stored in it, and only where nothing is from what was declared: SQLite lets a
column hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from walpool.migrating import _sqlite_sql as sql
from walpool.migrating._conditions import checks_of, index_of
from walpool.migrating._postgres_sql import NAME_BYTES
from walpool.migrating._sqlite_text import bare, deferred
from walpool.migrating.plan import Column, ForeignKey, Index, Plan, Table
from walpool.postgres.binary import Form

if TYPE_CHECKING:
    from walpool.migrating._sqlite import SqliteSide

__all__ = ["look", "no_index", "refuse_names"]

_LITERAL: Final = re.compile(
    r"""[+-]?\s*\d+ | [+-]?\s*\d*\.?\d+(?:e[+-]?\d+)? | '(?:[^']|'')*' | null | true | false""",
    re.IGNORECASE | re.VERBOSE,
)
_NOW: Final = {
    "current_timestamp": "YYYY-MM-DD HH24:MI:SS",
    "current_date": "YYYY-MM-DD",
    "current_time": "HH24:MI:SS",
}
_TRUTH: Final = "becomes boolean: write TRUE and FALSE for 1 and 0 in SQL, and give a bool as the parameter"
_RESERVED: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_TYPES: Final = {Form.TEXT: "TEXT", Form.BYTEA: "BYTEA"}


class _Stored(NamedTuple):
    """How many values of each storage class a column holds, and how many bytes."""

    integers: int
    reals: int
    texts: int
    blobs: int
    nulls: int
    bytes: int


def look(side: SqliteSide, plan: Plan) -> None:
    """Put into a plan what is in a file."""
    others = side.fetch(sql.OTHERS)
    for name, kind, wr, ddl in side.fetch(sql.TABLES):
        if kind == "table":
            plan.tables.append(_table(side, name, ddl, is_without_rowid=bool(wr)))
        elif kind == "virtual":
            plan.left_out.append((name, "a virtual table: make it anew in the target from the tables that it is about"))
        elif kind == "shadow":
            plan.left_out.append((name, "belongs to a virtual table"))
    for kind, name, table, _ in others:
        of = f" of {table}" if kind == "trigger" else ""
        plan.left_out.append((name, f"a {kind}{of}: its SQL is SQLite's; write it anew in the target"))


def refuse_names(plan: Plan) -> None:
    """Make obstacles of what PostgreSQL cannot name."""
    for table in plan.tables:
        for name in (table.name, *(column.name for column in table.columns)):
            where = name if name == table.name else f"{table.name}.{name}"
            if not name or "\0" in name or len(name.encode()) > NAME_BYTES:
                plan.obstacles.append(f"{where or table.name!r}: PostgreSQL's names have 1 to {NAME_BYTES} bytes")
        plan.obstacles += [
            f"{table.name}.{column.name}: PostgreSQL keeps that name for a column of its own"
            for column in table.columns
            if column.name in _RESERVED
        ]
        if not table.columns:
            plan.obstacles.append(f"{table.name}: it has no column that could be copied")


def no_index(name: str, made: str) -> str:
    """Return what is said of an index on a part or on expressions that is not made.

    Args:
        name: of it.
        made: its SQL.
    """
    return f"the index {name} is on a part or on expressions, and not made: {' '.join(made.split())}"


def _table(side: SqliteSide, name: str, ddl: str, *, is_without_rowid: bool) -> Table:
    found = side.fetch(sql.COLUMNS, (name,))
    kept = [row for row in found if row[5] == 0]
    counts = _counts(side, name, [row[0] for row in kept])
    notes = _notes(bare(ddl), [row[0] for row in found if row[5] in (2, 3)], is_without_rowid=is_without_rowid)
    primary = [row[0] for row in sorted(kept, key=lambda row: row[4]) if row[4]]
    is_counted = len(primary) == 1 and not is_without_rowid and _is_rowid(side, name, primary[0], kept)
    columns = []
    for column, declared, required, default, place, _ in kept:
        stored = counts[column]
        form, said = _form(side, name, column, declared, stored)
        notes += [f"{column}: {said}"] if said else []
        made, said = _default(default, form)
        notes += [f"{column}: {said}"] if said else []
        columns.append(
            Column(
                column,
                form,
                _type(form),
                declared,
                is_required=bool(required) or (bool(place) and not stored.nulls),
                default=None if is_counted and place else made,
                is_counted=is_counted and bool(place),
            )
        )
    checks, others = checks_of(ddl, columns)
    if others:
        some = f"{others} of its CHECKs" if checks else "its CHECKs"
        notes.append(f"{some} are not carried over: add them by hand")
    table = Table(name, tuple(columns), rows=side.count(name), checks=tuple(checks))
    return _with_keys(side, table, ddl, primary, counts, notes)


def _with_keys(
    side: SqliteSide, table: Table, ddl: str, primary: list[str], counts: dict[str, _Stored], notes: list[str]
) -> Table:
    uniques: list[tuple[str, ...]] = []
    indexes: list[Index] = []
    loose: set[str] = set()  # columns whose order is not that of their bytes
    for name, unique, origin, partial, made in side.fetch(sql.INDEXES, (table.name,)):
        parts = side.fetch(sql.INDEX_COLUMNS, (name,))
        if partial or any(column is None for column, _, _ in parts):
            index = index_of(made, name, ddl, table.columns, is_unique=bool(unique))
            indexes += [index] if index else []
            notes += [] if index else [no_index(name, made)]
            continue
        columns = tuple(column for column, _, _ in parts)
        odd = [column for column, _, collation in parts if collation.upper() != "BINARY"]
        loose |= set(odd)
        notes += [f"{name}: {column} is compared byte by byte on PostgreSQL" for column in odd]
        if unique:
            uniques.append(columns)
        if origin != "pk" or (primary and any(counts[column].nulls for column in primary)):
            shown = "" if origin != "c" else name
            indexes.append(Index(shown, columns, bool(unique), tuple(bool(desc) for _, desc, _ in parts)))
    if any(counts[column].nulls for column in primary):
        notes.append("its primary key holds NULLs, which PostgreSQL's never do: it becomes a UNIQUE index")
        primary = []
    required = {column.name for column in table.columns if column.is_required}
    key = tuple(primary) or next((columns for columns in uniques if required.issuperset(columns)), ())
    if not key:
        notes.append("it has no key: it is copied whole, and compared as a whole")
    foreign = tuple(_foreign(side, table.name, ddl, notes))
    return replace(
        table,
        columns=tuple(replace(column, sorts_alike=column.name not in loose) for column in table.columns),
        primary=tuple(primary),
        key=key,
        indexes=tuple(indexes),
        foreign=foreign,
        row_bytes=max(16, sum(found.bytes for found in counts.values()) // max(table.rows, 1)),
        notes=tuple(notes),
    )


def _is_rowid(side: SqliteSide, table: str, column: str, kept: Sequence[tuple[str, ...]]) -> bool:
    """Return whether a primary key is SQLite's number of the row: declared INTEGER, and with no index of its own."""
    declared = next(row[1] for row in kept if row[0] == column)
    return declared.upper() == "INTEGER" and not any(row[2] == "pk" for row in side.fetch(sql.INDEXES, (table,)))


def _foreign(side: SqliteSide, table: str, ddl: str, notes: list[str]) -> list[ForeignKey]:
    found: dict[int, list[tuple[str, str, str | None, str, str]]] = {}
    for number, *rest in side.fetch(sql.FOREIGN, (table,)):
        found.setdefault(number, []).append(tuple(rest))
    is_deferred = deferred(ddl)[::-1]  # SQLite numbers the last one 0
    if len(is_deferred) != len(found):
        notes.append("whether its foreign keys are INITIALLY DEFERRED was not found: they become INITIALLY IMMEDIATE")
        is_deferred = [False] * len(found)
    made = []
    for number, parts in found.items():
        parent = parts[0][1]
        targets: tuple[str, ...] = tuple(part[2] for part in parts if part[2] is not None)
        if not targets:  # the parent's primary key is meant
            keys = sorted((row[4], row[0]) for row in side.fetch(sql.COLUMNS, (parent,)) if row[4])
            targets = tuple(name for _, name in keys)
        ours = tuple(part[0] for part in parts)
        if len(targets) == len(parts):
            made.append(ForeignKey(ours, parent, targets, parts[0][3], parts[0][4], is_deferred[number]))
        else:
            notes.append(f"the foreign key ({', '.join(ours)}) is not carried over: {parent} has no such primary key")
    return made


def _counts(side: SqliteSide, table: str, columns: Sequence[str]) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for start in range(0, len(columns), sql.AT_ONCE):
        some = columns[start : start + sql.AT_ONCE]
        figures = side.fetch(sql.stored(table, some))[0]
        for place, name in enumerate(some):
            found[name] = _Stored(*figures[6 * place : 6 * place + 6])
    return found


def _notes(code: str, generated: Sequence[str], *, is_without_rowid: bool) -> list[str]:
    notes = [f"{name} is a generated column, and not copied: add it by hand" for name in generated]
    if re.search(r"\bCOLLATE\s+(?!BINARY\b)\w+", code, re.IGNORECASE):
        notes.append('a collation other than BINARY becomes the order of bytes (COLLATE "C")')
    if re.search(r"\bAUTOINCREMENT\b", code, re.IGNORECASE):
        notes.append("AUTOINCREMENT becomes an identity, whose numbers are not used twice either")
    if is_without_rowid:
        notes.append("WITHOUT ROWID means nothing on PostgreSQL")
    return notes


def _type(form: Form) -> str:
    return _TYPES.get(form) or form.type.upper()


def _form(side: SqliteSide, table: str, column: str, declared: str, stored: _Stored) -> tuple[Form, str]:
    """Return what a column becomes, and what a person should know of it."""
    wanted = _declared(declared)
    integers, reals, texts, blobs = stored[:4]
    if not any(stored[:4]):
        return wanted or Form.TEXT, _TRUTH if wanted is Form.BOOLEAN else ""
    if wanted is Form.BOOLEAN:
        if side.fetch(sql.only_booleans(table, column))[0][0]:
            return Form.BOOLEAN, _TRUTH
        wanted = Form.BIGINT
    if wanted is Form.JSON and texts:
        return Form.JSON, _mixed(stored, stored.texts)
    if (reals or (integers and wanted is Form.NUMERIC)) and not texts and not blobs:
        return _numbers(side, table, column, wanted, integers)
    held = {Form.BIGINT: integers, Form.DOUBLE: reals, Form.TEXT: texts, Form.BYTEA: blobs}
    form = wanted if wanted is not None and held.get(wanted) else max(held, key=held.__getitem__)
    if reals and form is Form.BIGINT and wanted is not Form.BIGINT:
        form = Form.DOUBLE
    taken = integers + reals if form is Form.DOUBLE else held[form]
    said = _mixed(stored, taken)
    if not said and wanted not in (form, None, Form.NUMERIC):
        said = f"declared {declared}, but what it holds is {form.type}"
    return form, said


def _numbers(side: SqliteSide, table: str, column: str, wanted: Form | None, integers: int) -> tuple[Form, str]:
    """Return what a column of numbers becomes, some of which are REAL, or which was declared for decimals."""
    is_beyond, is_infinite = side.fetch(sql.largest_integers(table, column))[0]
    if (wanted is Form.NUMERIC or is_beyond) and not is_infinite:
        return Form.NUMERIC, "becomes numeric, and TEXT on the way back"
    if integers:
        return Form.DOUBLE, "its integers become numbers with a point"
    return Form.DOUBLE, "" if wanted is Form.DOUBLE else "it holds REAL values"


def _mixed(stored: _Stored, taken: int) -> str:
    kinds = {"INTEGER": stored.integers, "REAL": stored.reals, "TEXT": stored.texts, "BLOB": stored.blobs}
    if sum(kinds.values()) == taken:
        return ""
    return "values of several types: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)


def _declared(declared: str) -> Form | None:
    """Return the form of a declared type; None where it says nothing. https://www.sqlite.org/datatype3.html#affname."""
    upper = declared.upper()
    for words, form in (
        (("BOOL",), Form.BOOLEAN),
        (("JSON",), Form.JSON),
        (("INT",), Form.BIGINT),
        (("CHAR", "CLOB", "TEXT"), Form.TEXT),
        (("BLOB", "BINARY", "BYTEA"), Form.BYTEA),
        (("REAL", "FLOA", "DOUB"), Form.DOUBLE),
        (("NUMERIC", "DECIMAL"), Form.NUMERIC),
        (("DATE", "TIME"), Form.TEXT),
    ):
        if any(word in upper for word in words):
            return form
    return None


def _default(text: str | None, form: Form) -> tuple[str | None, str]:
    """Return a default as PostgreSQL has it, and what a person should know of it."""
    if text is None:
        return None, ""
    plain = text.strip()
    while plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1].strip()
    if plain.lower() in _NOW and form is Form.TEXT:
        return f"to_char(now() AT TIME ZONE 'UTC', '{_NOW[plain.lower()]}')", ""
    if plain.lower() == "null":
        return None, ""
    if _LITERAL.fullmatch(plain) and (made := _literal(plain, form)) is not None:
        return made, ""
    return None, f"its default is not carried over: {text}"


def _literal(text: str, form: Form) -> str | None:
    """Return a literal as one of the column's type."""
    is_text = text.startswith("'")
    if form in (Form.TEXT, Form.JSON):
        return text if is_text else None if text.lower() in ("true", "false") else f"'{text}'"
    if is_text or form is Form.BYTEA:
        return None
    number = {"true": "1", "false": "0"}.get(text.lower(), text)
    if form is Form.BOOLEAN:
        return {"1": "TRUE", "0": "FALSE"}.get(number)
    if form is Form.BIGINT and not re.fullmatch(r"[+-]?\s*\d+", number):
        return None
    return number
