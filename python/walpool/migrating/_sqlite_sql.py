"""The SQL of a migration's SQLite side: looking at a file, reading pages of rows, writing rows. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating._faults import Garbled
from walpool.migrating.plan import Column, ForeignKey, Index, Table
from walpool.postgres.binary import Form
from walpool.types import Row

if TYPE_CHECKING:
    from walpool.migrating.sets import Backend

__all__: list[str] = []

TABLES: Final = """SELECT l.name, l.type, l.wr, coalesce(s.sql, '')
    FROM pragma_table_list AS l LEFT JOIN sqlite_schema AS s ON s.type = 'table' AND s.name = l.name
    WHERE l.schema = 'main' AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY l.name"""
TRIGGERS: Final = """SELECT name, sql FROM sqlite_schema
    WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE ORDER BY name"""
OTHERS: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE type IN ('view', 'trigger') ORDER BY name"
NAMES: Final = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
COLUMNS: Final = 'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid'
INDEXES: Final = """SELECT l.name, l."unique", l.origin, l.partial, coalesce(s.sql, '')
    FROM pragma_index_list(?) AS l LEFT JOIN sqlite_schema AS s ON s.type = 'index' AND s.name = l.name
    ORDER BY l.seq DESC"""
INDEX_COLUMNS: Final = 'SELECT name, "desc", coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno'
FOREIGN: Final = """SELECT id, "from", "table", "to", on_delete, on_update FROM pragma_foreign_key_list(?)
    ORDER BY id, seq"""
ORPHANS: Final = 'SELECT "table", count(*) FROM pragma_foreign_key_check GROUP BY 1'
SETS: Final = "SELECT name FROM walpool_schema"
HAS_SETS: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'walpool_schema'"

CREATE_STATE: Final = """CREATE TABLE IF NOT EXISTS walpool_migration
    (name TEXT PRIMARY KEY, state TEXT NOT NULL, document TEXT NOT NULL)"""

_AFFINITIES: Final = (
    (("INT",), "INTEGER"),
    (("CHAR", "CLOB", "TEXT"), "TEXT"),
    (("BLOB",), "BLOB"),
    (("REAL", "FLOA", "DOUB"), "REAL"),
)
_STORED: Final = ("integer", "real", "text", "blob", "null")
AT_ONCE: Final = 80  # columns that are counted by one statement


def quoted(name: str) -> str:
    """Return a name as an identifier, in either dialect."""
    return '"' + name.replace('"', '""') + '"'


def listed(names: Sequence[str]) -> str:
    """Return names as identifiers with commas between them."""
    return ", ".join(map(quoted, names))


def affinity(declared: str) -> str:
    """Return what a column of a declared type makes of values. https://www.sqlite.org/datatype3.html."""
    for words, found in _AFFINITIES:
        if any(word in declared.upper() for word in words):
            return found
    return "NUMERIC" if declared else "BLOB"


def count(table: str) -> str:
    """Return the query for how many rows there are."""
    return f"SELECT count(*) FROM {quoted(table)}"


def relation(table: Table) -> str:
    """Return what the rows of a table are read from."""
    return table.part.relation("sqlite") if table.part is not None else quoted(table.name)


def stored(table: str, columns: Sequence[str]) -> str:
    """Return the query for how many values of each storage class the columns hold, and how long they are.

    Six figures a column: integers, reals, texts, blobs, NULLs, bytes.
    """
    figures = ", ".join(
        ", ".join(f"coalesce(sum(typeof({name}) = '{kind}'), 0)" for kind in _STORED)
        + f", coalesce(sum(coalesce(octet_length({name}), 0)), 0)"
        for name in map(quoted, columns)
    )
    return f"SELECT {figures} FROM {quoted(table)}"


def largest_integers(table: str, column: str) -> str:
    """Return the query for whether integers beyond what a double holds, and infinities, stand in a column."""
    name = quoted(column)
    beyond = f"typeof({name}) = 'integer' AND ({name} > 9007199254740992 OR {name} < -9007199254740992)"
    infinite = f"typeof({name}) = 'real' AND abs({name}) > 1.7976931348623157e308"
    return f"SELECT coalesce(max({beyond}), 0), coalesce(max({infinite}), 0) FROM {quoted(table)}"


def figures(columns: Sequence[Column], given: str) -> str:
    """Return the query for how many rows there are of what is read from, and how many bytes, in either dialect."""
    long = [quoted(column.name) for column in columns if column.form in (Form.TEXT, Form.BYTEA, Form.VECTOR)]
    lengths = " + ".join(f"coalesce(octet_length({name}), 0)" for name in long) or "0"
    return f"SELECT count(*), CAST(coalesce(sum({lengths}), 0) AS BIGINT) FROM {given}"


def any_row(given: str) -> str:
    """Return the query that gives a row if there is one to be read, in either dialect."""
    return f"SELECT 1 FROM {given} LIMIT 1"


def only_booleans(table: str, column: str) -> str:
    """Return the query for whether a column has nothing but 0, 1 and NULL in it."""
    name = quoted(column)
    is_one = f"typeof({name}) IN ('integer', 'null') AND coalesce({name}, 0) IN (0, 1)"
    return f"SELECT coalesce(min({is_one}), 1) FROM {quoted(table)}"


def false_json(table: str, column: str) -> str:
    """Return the query that gives a row if a column has texts that are no JSON by RFC 8259."""
    name = quoted(column)
    return f"SELECT 1 FROM {quoted(table)} WHERE typeof({name}) = 'text' AND NOT json_valid({name}) LIMIT 1"


def long_row(table: str, columns: Sequence[str], size: int) -> str:
    """Return the query that gives a row if the columns have one with more bytes than that together."""
    lengths = " + ".join(f"coalesce(octet_length({quoted(name)}), 0)" for name in columns)
    return f"SELECT 1 FROM {quoted(table)} WHERE {lengths} > {int(size)} LIMIT 1"


def page(table: Table, after: Row | None, upto: Row | None, limit: int | None, *, raw: bool) -> tuple[str, list[Any]]:
    """Return the query for the rows after one key and up to another, in the order of keys.

    Where nothing orders a table it is SQLite's own number of the row, which then stands behind the columns.

    Args:
        table: which.
        after: a key; None is before the first row.
        upto: a key; None is behind the last row.
        limit: rows at most.
        raw: texts as their bytes, and at the end of a row the storage class of each column.
    """
    params: list[Any] = []
    bounds = []
    order = listed(table.order("sqlite")) or table.rowid
    for sign, key in ((">", after), ("<=", upto)):
        if key is not None:
            marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, Garbled) else "?" for value in key)
            bounds.append(f"({order}) {sign} ({marks})")
            params += [bytes(value) if isinstance(value, Garbled) else value for value in key]
    where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
    sql = f"{select(table, raw=raw)}{where} ORDER BY {order}"
    if limit is not None:
        sql += " LIMIT ?"
        params.append(limit)
    return sql, params


def key_after(table: Table, after: Row | None, number: int) -> tuple[str, list[Any]]:
    """Return the query for the key that stands `number` rows behind another one, or behind the beginning."""
    keys = listed(table.key)
    where = f" WHERE ({keys}) > ({', '.join('?' * len(table.key))})" if after is not None else ""
    sql = f"SELECT {keys} FROM {relation(table)}{where} ORDER BY {keys} LIMIT 1 OFFSET ?"
    return sql, [*(after or ()), number - 1]


def select(table: Table, *, raw: bool = False) -> str:
    """Return the query for all rows; see `page`."""
    names = [quoted(column.name) for column in table.columns]
    shown = [_raw(name) for name in names] if raw else list(names)
    shown += [] if table.order("sqlite") else [table.rowid]
    shown += [f"typeof({name})" for name in names] if raw else []
    return f"SELECT {', '.join(shown)} FROM {relation(table)}"


def _raw(name: str) -> str:
    return f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END"


def by_key(table: Table) -> str:
    """Return the query for the rows of one key, each at its place."""
    where = " AND ".join(f"{quoted(name)} = ?" for name in table.key)
    return f"{select(table)} WHERE {where} ORDER BY {listed(table.order('sqlite'))}"


def insert(table: Table, *, replaces: bool) -> str:
    """Return the statement that writes a row, in place of one with its key if `replaces`."""
    names = [column.name for column in table.columns]
    values = f"VALUES ({', '.join('?' * len(names))})"
    if table.part is not None:
        sql = f"WITH given ({listed(names)}) AS ({values}) {table.part.insert('sqlite')}"
    else:
        sql = f"INSERT INTO {quoted(table.name)} ({listed(names)}) {values}"
    return sql + (upsert(table, "sqlite") if replaces else "")


def upsert(table: Table, backend: Backend) -> str:
    """Return what makes an INSERT change the row that has its key, in either dialect."""
    if table.part is not None:
        return table.part.upsert(backend)
    others = [quoted(column.name) for column in table.columns if column.name not in table.key]
    setting = ", ".join(f"{name} = excluded.{name}" for name in others)
    return f" ON CONFLICT ({listed(table.key)}) DO " + (f"UPDATE SET {setting}" if setting else "NOTHING")


def delete(table: Table) -> str:
    """Return the statement that deletes what has one key."""
    if table.part is not None:
        return table.part.delete("sqlite")
    return f"DELETE FROM {quoted(table.name)} WHERE " + " AND ".join(f"{quoted(name)} = ?" for name in table.key)


def clear(table: Table) -> str:
    """Return the statement that deletes all rows."""
    return table.part.clear("sqlite") if table.part is not None else f"DELETE FROM {quoted(table.name)}"


def create(table: Table, there: set[str]) -> str:
    """Return the statement that makes a table, its CHECKs and foreign keys in it: SQLite adds none later.

    Args:
        table: which.
        there: the tables that there will be.
    """
    is_rowid = [column.name for column in table.columns if column.is_counted] == list(table.primary)
    parts = [_column(column, is_rowid=is_rowid and column.is_counted) for column in table.columns]
    if table.primary and not is_rowid:
        parts.append(f"PRIMARY KEY ({listed(table.primary)})")
    parts += [f"CHECK ({condition})" for condition in table.checks]
    parts += [_foreign(foreign) for foreign in table.foreign if foreign.parent in there]
    return f"CREATE TABLE {quoted(table.name)} ({', '.join(parts)})"


def _column(column: Column, *, is_rowid: bool) -> str:
    if is_rowid:
        return f"{quoted(column.name)} INTEGER PRIMARY KEY"
    required = " NOT NULL" if column.is_required else ""
    default = f" DEFAULT {column.default}" if column.default is not None else ""
    return f"{quoted(column.name)} {column.sqlite}{required}{default}"


def _foreign(foreign: ForeignKey) -> str:
    return (
        f"FOREIGN KEY ({listed(foreign.columns)}) REFERENCES {quoted(foreign.parent)} "
        f"({listed(foreign.parent_columns)}) ON DELETE {foreign.on_delete} ON UPDATE {foreign.on_update} "
        f"{deferrable(foreign)}"
    )


def deferrable(foreign: ForeignKey) -> str:
    """Return when a foreign key is looked at, in either dialect; DEFERRABLE lets a repair write in any order."""
    return f"DEFERRABLE INITIALLY {'DEFERRED' if foreign.is_deferred else 'IMMEDIATE'}"


def create_index(table: Table, index: Index, name: str) -> str:
    """Return the statement that makes an index; once it is there it does nothing."""
    columns = ", ".join(
        quoted(column) + (" DESC" if is_falling else "")
        for column, is_falling in zip(index.columns, index.falling or [False] * len(index.columns), strict=True)
    )
    unique = "UNIQUE " if index.is_unique else ""
    return f"CREATE {unique}INDEX IF NOT EXISTS {quoted(name)} ON {quoted(table.name)} ({columns})"
