"""The SQL of a migration's PostgreSQL side: looking at a schema, reading pages of rows, hashing them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from walpool.migrating._hashing import hashed_form
from walpool.migrating._sqlite_sql import deferrable, listed, quoted
from walpool.migrating.plan import Column, ForeignKey, Index, Table
from walpool.postgres.binary import Form
from walpool.postgres.spelling import arrays
from walpool.types import Row

__all__: list[str] = []

NAMES: Final = """SELECT c.relname FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace(current_schema()::text) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"""
TABLES: Final = """SELECT c.oid::bigint, c.relname::text, c.relkind::text, c.relispartition, c.relrowsecurity,
        pg_total_relation_size(c.oid)::bigint
    FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace(current_schema()::text) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        AND NOT EXISTS (SELECT 1 FROM pg_depend AS d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY c.relname"""
COLUMNS: Final = """SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
        coalesce(co.collname::text, ''), a.attnum::int
    FROM pg_attribute AS a
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_collation AS co ON co.oid = a.attcollation
    WHERE a.attrelid = CAST(? AS oid) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
# For each column its type, and what that is made of, and so on: a domain of another type, an array of its elements.
TYPES: Final = """WITH RECURSIVE made AS (
        SELECT a.attnum, 0 AS level, a.atttypid AS oid, a.atttypmod AS modifier FROM pg_attribute AS a
        WHERE a.attrelid = CAST(? AS oid) AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT m.attnum, m.level + 1, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE e.oid END,
            CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE m.modifier END
        FROM made AS m JOIN pg_type AS t ON t.oid = m.oid
        LEFT JOIN pg_type AS e ON e.oid = t.typelem AND e.typarray = t.oid
        WHERE t.typtype = 'd' OR e.oid IS NOT NULL)
    SELECT m.attnum::int, t.oid::bigint, format_type(t.oid, m.modifier), t.typtype::text,
        EXISTS (SELECT 1 FROM pg_type AS e WHERE e.oid = t.typelem AND e.typarray = t.oid), t.typnotnull,
        ARRAY(SELECT n.conname::text || ' ' || pg_get_constraintdef(n.oid) FROM pg_constraint AS n
            WHERE n.contypid = t.oid AND n.contype = 'c' ORDER BY n.conname),
        ARRAY(SELECT l.enumlabel::text FROM pg_enum AS l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder)
    FROM made AS m JOIN pg_type AS t ON t.oid = m.oid ORDER BY m.attnum, m.level"""
# By JSON: a server before PostgreSQL 15 has no column indnullsnotdistinct.
INDEXES: Final = """SELECT i.indexrelid::bigint, c.relname::text, i.indisunique, i.indisprimary,
        i.indpred IS NOT NULL OR i.indexprs IS NOT NULL OR m.amname <> 'btree' OR NOT i.indisvalid,
        (SELECT array_agg(u.k::int ORDER BY u.n) FROM unnest(i.indkey) WITH ORDINALITY AS u (k, n)
            WHERE u.n <= i.indnkeyatts),
        (SELECT array_agg((o & 1)::int) FROM unnest(i.indoption) AS o),
        (SELECT array_agg(((o & 2) / 2)::int) FROM unnest(i.indoption) AS o),
        coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false), pg_get_indexdef(i.indexrelid)
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS m ON m.oid = c.relam
    WHERE i.indrelid = CAST(? AS oid) ORDER BY i.indexrelid"""
CONSTRAINTS: Final = """SELECT n.contype::text, n.conname::text, n.conkey::int[], n.confkey::int[], p.relname::text,
        n.confdeltype::text, n.confupdtype::text, p.oid::bigint, n.condeferrable, n.condeferred,
        n.confmatchtype::text = 'f'
    FROM pg_constraint AS n LEFT JOIN pg_class AS p ON p.oid = n.confrelid
    WHERE n.conrelid = CAST(? AS oid) ORDER BY n.conname"""
TRIGGERS: Final = "SELECT tgname::text FROM pg_trigger WHERE tgrelid = CAST(? AS oid) AND NOT tgisinternal ORDER BY 1"
# Those that are on, and whether each fires on INSERT, and by row: TRIGGER_TYPE_* in pg_trigger.h, 32 is TRUNCATE.
FIRING: Final = """SELECT tgname::text, tgtype & 4 <> 0, tgtype & 1 <> 0 FROM pg_trigger
    WHERE tgrelid = CAST(? AS oid) AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 28 <> 0 ORDER BY 1"""
RULES: Final = "SELECT rulename::text FROM pg_rewrite WHERE ev_class = CAST(? AS oid) ORDER BY 1"
ATTRIBUTES: Final = "SELECT attnum::int, attname::text FROM pg_attribute WHERE attrelid = CAST(? AS oid)"
OID: Final = "SELECT to_regclass(?)::oid::bigint"
CONSTRAINT: Final = "SELECT 1 FROM pg_constraint WHERE conname = ? AND conrelid = CAST(? AS regclass)"
TAKEN: Final = """SELECT relname::text FROM pg_class
    WHERE relnamespace = to_regnamespace(current_schema()::text)"""
COLLATION: Final = """SELECT datcollate IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8') FROM pg_database
    WHERE datname = current_database()"""
ENCODING: Final = "SELECT current_setting('server_encoding') = 'UTF8'"
SETS: Final = "SELECT name FROM walpool_schema"

CREATE_STATE: Final = """CREATE TABLE IF NOT EXISTS walpool_migration
    (name TEXT COLLATE "C" PRIMARY KEY, state TEXT NOT NULL, document TEXT NOT NULL)"""

PROBE: Final = "walpool_probe"
"""A table in which things are tried; undone."""

NAME_BYTES: Final = 63
"""PostgreSQL cuts longer names off."""


def count(table: str) -> str:
    """Return the query for how many rows there are."""
    return f"SELECT count(*) FROM {quoted(table)}"


def value(column: Column) -> str:
    """Return the expression whose value is read: as a number, as bytes, or as a text."""
    name, form = quoted(column.name), hashed_form(column.form)
    if column.form is Form.ARRAY:
        return _array(column)
    return name if form in (Form.BYTEA, Form.BOOLEAN) else f"{name}::{form.type}"


def _array(column: Column) -> str:
    """Return the JSON of an array; subscripts that do not begin at 1 stand before it, see `spelling.arrays`."""
    name, element = quoted(column.name), hashed_form(column.element.form) if column.element is not None else Form.TEXT
    cast = "text" if element is Form.BYTEA else element.type
    made = f"array_to_json({name}::{cast}[])::text"
    return f"CASE WHEN {_is_odd(column)} THEN array_dims({name}) || '=' || {made} ELSE {made} END"


ODD: Final = frozenset({Form.DOUBLE, Form.ARRAY})
"""Forms with values that a file cannot hold: a NaN, an array whose subscripts do not begin at 1."""


def _is_odd(column: Column) -> str:
    """Return the condition that a column has such a value; NULL where it is NULL."""
    name = quoted(column.name)
    return f"{name} = 'NaN'" if column.form is Form.DOUBLE else f"array_dims({name}) <> array_dims({name}[:])"


def _mended(column: Column) -> str:
    """Return what a column has in place of such a value, as `Cleaner` replaces it."""
    name = quoted(column.name)
    if column.form is Form.ARRAY:
        return f"{name}[:] AS {name}"  # a slice begins at 1
    return f"CASE WHEN {_is_odd(column)} THEN {0 if column.is_required else 'NULL'} ELSE {name} END AS {name}"


def odd_row(table: Table, column: Column) -> str:
    """Return the query that gives a row if a column has a value that a file cannot hold."""
    return f"SELECT 1 FROM {source(table)} WHERE {_is_odd(column)} LIMIT 1"


def source(table: Table) -> str:
    """Return what the rows of a table are read from."""
    return table.part.relation("postgres") if table.part is not None else quoted(table.name)


def key_values(table: Table) -> str:
    """Return the expressions whose values are a key, as `as_given_back` spells them."""
    return ", ".join(map(spelled, table.key_columns))


def spelled(column: Column) -> str:
    """Return a column's value in the one spelling that both sides compare: see `_canonical`."""
    name, form = quoted(column.name), hashed_form(column.form)
    if column.form is Form.NUMERIC:
        return f"trim_scale({name})::text"
    if column.form is Form.ARRAY:
        return _array(column)
    if form is Form.DOUBLE:
        return f"{name}::double precision + 0.0::double precision"  # -0.0 as 0.0
    return f"{name}::{form.type}"


def hashed(columns: Sequence[Column]) -> str:
    """Return the SHA-256 of columns, as `digests_form` spells them."""
    return f"sha256(record_send(ROW({', '.join(map(spelled, columns))})))"


def hash_number(expression: str) -> str:
    """Return the first 8 bytes of a hash as a signed number."""
    return f"('x' || encode(substr({expression}, 1, 8), 'hex'))::bit(64)::bigint"


def relation(table: Table) -> str:
    """Return what a table is hashed from: its rows as the other side is to have them."""
    odd = [column for column in table.columns if column.form in ODD]
    if table.is_grouped:
        place = f"row_number() OVER (PARTITION BY {listed(table.key)} ORDER BY {listed(table.order('postgres'))})"
        return f"(SELECT *, {place} AS walpool_place FROM {source(table)}) AS numbered"
    if not table.on_odd or not odd:
        return source(table)
    if table.on_odd == "skip":
        kept = " AND ".join(f"({_is_odd(column)}) IS NOT TRUE" for column in odd)
        return f"(SELECT * FROM {source(table)} WHERE {kept}) AS kept"
    mended = [_mended(column) if column in odd else quoted(column.name) for column in table.columns]
    return f"(SELECT {', '.join(mended)} FROM {source(table)}) AS mended"


def within(table: Table, after: Row | None, upto: Row | None) -> tuple[str, list[Any]]:
    """Return the WHERE for the rows after one key and up to another, and its parameters."""
    params: list[Any] = []
    bounds = []
    ordering = table.ordering_columns("postgres")
    order, marks = ", ".join(map(_compared, ordering)), ", ".join(map(_mark, ordering))
    for sign, key in ((">", after), ("<=", upto)):
        if key is not None:
            bounds.append(f"({order}) {sign} ({marks})")
            params += parameters(ordering, key)
    return (f" WHERE {' AND '.join(bounds)}" if bounds else ""), params


def parameters(columns: Sequence[Column], values: Sequence[Any]) -> list[Any]:
    """Return values, as they are read, as parameters that are cast to the types of their columns."""
    return [
        arrays.literal(value) if column.form is Form.ARRAY and value is not None else value
        for column, value in zip(columns, values, strict=True)
    ]


def cast_all(column: Column, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """Return the query that fails if the type of a column refuses one of several values that it would give back."""
    given = parameters([column] * len(values), values)
    texts = [f"\\x{value.hex()}" if isinstance(value, bytes) else value for value in given]
    made = f"{{{','.join(map(arrays.quoted, texts))}}}"
    return f"SELECT count(CAST(v.given AS {column.postgres})) FROM unnest(CAST(? AS text[])) AS v (given)", [made]


def page(table: Table, after: Row | None, upto: Row | None, limit: int | None) -> tuple[str, list[Any]]:
    """Return the query for the rows after one key and up to another, in the order of keys."""
    where, params = within(table, after, upto)
    sql = f"{select(table)}{where}{ordered(table)}"
    return sql + (f" LIMIT {int(limit)}" if limit is not None else ""), params


def select(table: Table) -> str:
    """Return the query for all rows."""
    return f"SELECT {', '.join(map(value, table.columns))} FROM {source(table)}"


def ordered(table: Table) -> str:
    """Return the ORDER BY of what is read in pages; nothing where nothing orders a table.

    A name alone would be that of what is selected: the text of a key, which has another order.
    """
    of = "part" if table.part is not None else quoted(table.name)
    order = ", ".join(f"{of}.{quoted(name)}" for name in table.order("postgres"))
    return f" ORDER BY {order}" if order else ""


def digest(table: Table, after: Row | None, upto: Row | None) -> tuple[str, list[Any]]:
    """Return the query for count and sum of the hashes of a range of keys."""
    where, params = within(table, after, upto)
    number = hash_number(hashed(table.hashed_columns))
    return f"SELECT count(*), coalesce(sum({number}), 0) FROM {relation(table)}{where}", params


def hashes(table: Table, after: Row | None, upto: Row | None) -> tuple[str, list[Any]]:
    """Return the query for key and hash of each row of a range of keys."""
    where, params = within(table, after, upto)
    number = hash_number(hashed(table.hashed_columns))
    return f"SELECT {key_values(table)}, {number} FROM {relation(table)}{where}", params


def buckets(table: Table) -> str:
    """Return the query for count and sum of the hashes in each bucket: by the key's hash, or the row's."""
    number = hash_number(hashed(table.hashed_columns))
    by = f"get_byte({hashed(table.key_columns or table.hashed_columns)}, 0)"
    return f"SELECT {by}, count(*), sum({number}) FROM {relation(table)} GROUP BY 1"


def bucket_hashes(table: Table, wanted: Sequence[int]) -> str:
    """Return the query for the key of each row in some buckets, and the sum of the hashes that have it."""
    by = f"get_byte({hashed(table.key_columns)}, 0)"
    where = f"WHERE {by} IN ({', '.join(map(str, map(int, wanted)))})"
    keys, number = key_values(table), hash_number(hashed(table.hashed_columns))
    return f"SELECT {keys}, sum({number}) FROM {relation(table)} {where} GROUP BY {keys}"


def by_key(table: Table) -> str:
    """Return the query for the rows of one key, each at its place."""
    return f"{select(table)} WHERE {_is_key(table)}{ordered(table)}"


def delete(table: Table) -> str:
    """Return the statement that deletes what has one key."""
    if table.part is not None:
        return table.part.delete("postgres")
    return f"DELETE FROM {quoted(table.name)} WHERE {_is_key(table)}"


def _is_key(table: Table) -> str:
    return " AND ".join(f"{_compared(column)} = {_mark(column)}" for column in table.key_columns)


def _compared(column: Column) -> str:
    """Return a column as it is compared with a value."""
    return f"{quoted(column.name)}::{column.behind}" if column.behind else quoted(column.name)


def _mark(column: Column) -> str:
    """Return the place of a value that a column is compared with."""
    return f"CAST(? AS {column.behind or column.postgres})"


def numeric_text(table: Table, column: Column) -> str:
    """Return the query that gives a row if a column has a value whose text SQLite takes for a number."""
    looks = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$"
    return f"SELECT 1 FROM {quoted(table.name)} WHERE {value(column)} ~ '{looks}' LIMIT 1"


def insert(table: Table) -> str:
    """Return the statement that writes one row; its values are parameters."""
    marks = ", ".join(f"CAST(? AS {column.postgres})" for column in table.columns)
    return f"INSERT INTO {quoted(name(table))} ({listed([c.name for c in table.columns])}) VALUES ({marks})"


def clear(table: Table) -> str:
    """Return the statement that deletes all rows."""
    return table.part.clear("postgres") if table.part is not None else f"DELETE FROM {quoted(table.name)}"


def name(table: Table) -> str:
    """Return the name of a table."""
    return table.part.table("postgres") if table.part is not None else table.name


def given(table: Table) -> str:
    """Return the statement that makes a table, gone at the end of the transaction, for rows that are to be written."""
    columns = ", ".join(f"{quoted(column.name)} {column.postgres}" for column in table.columns)
    return f"CREATE TEMPORARY TABLE given ({columns}) ON COMMIT DROP"


def update(table: Table) -> str:
    """Return the statement that changes the row of one key; what is not its key comes first among the parameters."""
    others = [column for column in table.columns if column.name not in table.key]
    setting = ", ".join(f"{quoted(column.name)} = CAST(? AS {column.postgres})" for column in others)
    return f"UPDATE {quoted(table.name)} SET {setting} WHERE {_is_key(table)}"


def create(table: Table) -> str:
    """Return the statement that makes a table with its primary key; the rest is made after the copy."""
    parts = [_column(column) for column in table.columns]
    if table.primary:
        parts.append(f"PRIMARY KEY ({listed(table.primary)})")
    return f"CREATE TABLE {quoted(table.name)} ({', '.join(parts)})"


def _column(column: Column) -> str:
    collation = ' COLLATE "C"' if column.form is Form.TEXT else ""
    required = " NOT NULL" if column.is_required else ""
    default = f" DEFAULT {column.default}" if column.default is not None else ""
    counted = " GENERATED BY DEFAULT AS IDENTITY" if column.is_counted else ""
    return f"{quoted(column.name)} {column.postgres}{collation}{required}{default}{counted}"


def create_index(table: Table, index: Index, name: str | None) -> str:
    """Return the statement that makes an index, by a name of the server's own if none is given."""
    parts = index.parts or tuple(map(quoted, index.columns))
    listed_ = ", ".join(
        part + (" DESC" if is_falling else "")
        for part, is_falling in zip(parts, index.falling or [False] * len(parts), strict=True)
    )
    unique = "UNIQUE " if index.is_unique else ""
    where = f" WHERE {index.where}" if index.where else ""
    return f"CREATE {unique}INDEX {quoted(name) if name else ''} ON {quoted(table.name)} ({listed_}){where}"


def analyze(table: Table) -> str:
    """Return the statement that lets the server know what is in a table, without which it reads all for a range."""
    return f"ANALYZE {quoted(name(table))}"


def count_on(table: Table, column: Column, following: int) -> str:
    """Return the statement after which a column's next number is `following`."""
    return f"ALTER TABLE {quoted(table.name)} ALTER COLUMN {quoted(column.name)} RESTART WITH {int(following)}"


def largest(table: Table, column: Column) -> str:
    """Return the query for the largest value of a column."""
    return f"SELECT max({quoted(column.name)}) FROM {quoted(table.name)}"


def probe(part: Table) -> list[str]:
    """Return the statements that make a table for as long as a transaction, with an index on all of its columns."""
    listed_ = listed([column.name for column in part.columns])
    return [create_probe(part), f"CREATE INDEX ON pg_temp.{PROBE} ({listed_})"]


def create_probe(table: Table) -> str:
    """Return the statement that makes a table with these columns for as long as a transaction."""
    columns = ", ".join(_column(replace(column, is_counted=False, default=None)) for column in table.columns)
    return f"CREATE TEMP TABLE {PROBE} ({columns}) ON COMMIT DROP"


def add_foreign(table: Table, foreign: ForeignKey, name: str) -> str:
    """Return the statement that adds a foreign key without looking at the rows that are there."""
    return (
        f"ALTER TABLE {quoted(table.name)} ADD CONSTRAINT {quoted(name)} FOREIGN KEY ({listed(foreign.columns)}) "
        f"REFERENCES {quoted(foreign.parent)} ({listed(foreign.parent_columns)}) ON DELETE {foreign.on_delete} "
        f"ON UPDATE {foreign.on_update} {deferrable(foreign)} NOT VALID"
    )


def add_check(table: Table, condition: str, name: str | None = None) -> str:
    """Return the statement that adds a CHECK, by its name without looking at the rows that are there."""
    named = f" CONSTRAINT {quoted(name)}" if name else ""
    return f"ALTER TABLE {quoted(table.name)} ADD{named} CHECK ({condition}){' NOT VALID' if name else ''}"


def validate(table: Table, name: str) -> str:
    """Return the statement that looks at the rows that are there."""
    return f"ALTER TABLE {quoted(table.name)} VALIDATE CONSTRAINT {quoted(name)}"


def lock(tables: Sequence[Table]) -> str:
    """Return the statement that keeps everybody from writing the tables, and lets them read."""
    return f"LOCK TABLE {listed([name(table) for table in tables])} IN SHARE MODE"
