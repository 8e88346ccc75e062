"""The LangGraph store in SQLite's terms: each operation as SQL, parameters and a decoder; no I/O.

`_store_schema` has the tables, `_store_nearest` the search by embedding, `_store_postgres` PostgreSQL's own. Every
value a caller gave is a parameter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple, TypeAlias

from walpool.langgraph._steps import Read, Statement
from walpool.langgraph._store_filter import is_operators
from walpool.types import Row, Value

MAX_VECTORS: Final = 1 << 16
"""Vectors that one item may have."""

ItemId: TypeAlias = int | str
"""What tells an item from the others of a database: a number on SQLite, a text on PostgreSQL."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_EXACT: Final = 1 << 53  # whole numbers up to here are the same in Python, in JSON and in SQLite
NEWEST: Final = "updated_at DESC, id DESC"
COLUMNS: Final = "id, namespace, key, value, created_at, updated_at, ttl, expires_at"

_PUT: Final = """INSERT INTO langgraph_items (namespace, key, created_at, updated_at, ttl, expires_at, value)
    VALUES (?1, ?2, ?3, ?3, ?4, ?3 + ?4, ?5)
    ON CONFLICT (namespace, key) DO UPDATE SET updated_at = excluded.updated_at, ttl = excluded.ttl,
        expires_at = excluded.expires_at, value = excluded.value"""
_PUT_VECTOR: Final = """INSERT INTO langgraph_vectors (id, path, embedding)
    SELECT (id << 16) + ?3, ?4, ?5 FROM langgraph_items WHERE namespace = ?1 AND key = ?2
    ON CONFLICT (id) DO UPDATE SET path = excluded.path, embedding = excluded.embedding
        WHERE embedding <> excluded.embedding OR path <> excluded.path"""
_ITEM: Final = "(SELECT id << 16 FROM langgraph_items WHERE namespace = ?1 AND key = ?2)"
_CLEAR_VECTORS: Final = f"DELETE FROM langgraph_vectors WHERE id BETWEEN {_ITEM} + ?3 AND {_ITEM} + 65535"
_SWEEP: Final = """DELETE FROM langgraph_items WHERE id IN (
    SELECT id FROM langgraph_items WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"""


class Found(NamedTuple):
    """An item as it was read; times in microseconds since 1970, the TTL in microseconds."""

    id: ItemId
    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    ttl: int | None
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of `langgraph_items` take part."""

    condition: str = ""
    """On that table; empty for all of its rows."""
    params: tuple[Value, ...] = ()
    is_namespace: bool = False
    """Whether it is about nothing but `namespace`, so that other tables with that column may be asked as well."""

    def where(self, further: str = "") -> str:
        """Return the WHERE clause, with a further condition if there is one."""
        conditions = [condition for condition in (self.condition, further) if condition]
        return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def select(prefix: Sequence[str], narrowed: Selection, live_at: int | None) -> Selection:
    """Return the selection of a namespace and those below it.

    Args:
        prefix: the namespace; empty for all of them.
        narrowed: what else is asked for, from `narrow`.
        live_at: leave out what has expired at this time; None leaves out nothing.
    """
    conditions, params = [], list[Value]()
    if prefix:
        path = encode_namespace(prefix)
        # "/" is the character after ".": the range holds what lies below, and no neighbour such as a-b.
        conditions.append("(namespace = ? OR namespace >= ? AND namespace < ?)")
        params += [path, path + ".", path + "/"]
    if narrowed.condition:
        conditions.append(narrowed.condition)
        params += narrowed.params
    if live_at is not None:
        conditions.append("(expires_at IS NULL OR expires_at > ?)")
        params.append(live_at)
    is_namespace = bool(prefix) and len(conditions) == 1
    return Selection(" AND ".join(conditions), tuple(params), is_namespace)


def select_ids(ids: Sequence[ItemId]) -> Selection:
    """Return the selection of exactly these items."""
    return Selection("id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))


def narrow(conditions: Mapping[Any, Any]) -> tuple[Selection, bool]:
    """Return what SQL can tell of a filter, and whether that is all of it.

    Nothing that matches is left out. Where it is not all, Python decides on the decoded values.
    """
    terms, params, is_exact = [], list[Value](), True
    for key, wanted in conditions.items():
        term, values, term_is_exact = _narrow(key, wanted)
        is_exact = is_exact and term_is_exact
        if term:
            terms.append(term)
            params += values
    return Selection(" AND ".join(terms), tuple(params)), is_exact


def _narrow(key: Any, wanted: Any) -> tuple[str, list[Value], bool]:
    # A path in quotes has no way to say these characters that every SQLite reads alike.
    if not isinstance(key, str) or not key.isprintable() or '"' in key or "\\" in key:
        return "", [], False
    path = f'$."{key}"'
    if isinstance(wanted, Mapping) and is_operators(wanted):
        if list(wanted) != ["$eq"]:
            return _narrow_order(path, wanted)
        wanted = wanted["$eq"]
    if wanted is None:
        return "coalesce(json_type(value, ?), 'null') = 'null'", [path], True
    if type(wanted) is str and is_unicode(wanted):
        # The type, since an array is extracted as its text.
        return "json_type(value, ?) = 'text' AND json_extract(value, ?) = ?", [path, path, wanted], True
    if isinstance(wanted, int) and abs(wanted) <= _EXACT:
        return "json_extract(value, ?) = ?", [path, int(wanted)], False
    return "", [], False


def _narrow_order(path: str, wanted: Mapping[str, Any]) -> tuple[str, list[Value], bool]:
    terms, params = [], list[Value]()
    for name, operand in wanted.items():
        if name in ("$eq", "$ne") or not isinstance(operand, (int, float)) or not abs(operand) <= _EXACT:
            continue
        # A little to spare: SQLite may read the last digits of a number otherwise than Python. Texts and booleans have
        # numbers too, in Python.
        spare = abs(operand) * 1e-12
        comparison, bound = (">=", operand - spare) if name in ("$gt", "$gte") else ("<=", operand + spare)
        terms.append(
            f"(json_type(value, ?) NOT IN ('integer', 'real') OR json_extract(value, ?) {comparison} ?)",
        )
        params += [path, path, float(bound)]
    return " AND ".join(terms), params, False


def one(namespace: Sequence[str], key: str, live_at: int | None) -> Read[Found | None]:
    """Return the read of one item."""
    live = "" if live_at is None else "AND (expires_at IS NULL OR expires_at > ?)"
    params: tuple[Value, ...] = (encode_namespace(namespace), key, *(() if live_at is None else (live_at,)))
    sql = f"SELECT {COLUMNS} FROM langgraph_items WHERE namespace = ? AND key = ? {live}"
    return Read(sql, params, lambda rows: found(rows[0]) if rows else None)


def items(ids: Sequence[ItemId]) -> Read[dict[ItemId, Found]]:
    """Return the read of these items, by id."""
    selection = select_ids(ids)
    sql = f"SELECT {COLUMNS} FROM langgraph_items {selection.where()}"
    return Read(sql, selection.params, lambda rows: {row[0]: found(row) for row in rows})


def newest(selection: Selection, *, limit: int, offset: int) -> Read[list[ItemId]]:
    """Return the read of one page of the selected items' ids, last put first."""
    sql = f"SELECT id FROM langgraph_items {selection.where()} ORDER BY {NEWEST} LIMIT ? OFFSET ?"
    return Read(sql, (*selection.params, limit, offset), ids_of)


def unscored(selection: Selection, dims: int, *, limit: int, offset: int) -> Read[list[ItemId]]:
    """Return the read of one page of the selected items that have no vector of these dims, last put first."""
    # A plus, so that each item's few sketches are looked at, and not all that the index of the space has.
    lacking = """NOT EXISTS (SELECT 1 FROM langgraph_sketches AS s
        WHERE s.key BETWEEN langgraph_items.id << 16 AND (langgraph_items.id << 16) + 65535
            AND +s.space = ? AND s.gone = 0)"""
    sql = f"SELECT id FROM langgraph_items {selection.where(lacking)} ORDER BY {NEWEST} LIMIT ? OFFSET ?"
    return Read(sql, (*selection.params, dims, limit, offset), ids_of)


def namespaces(prefix: Sequence[str], live_at: int | None, also: str = "") -> Read[list[tuple[str, ...]]]:
    """Return the read of the namespaces that hold items, those at and below `prefix`.

    `also` is a condition on each row that is looked at, with its AND.

    The recursion jumps through the index from each namespace to the next one: its cost is the number of namespaces,
    not that of items. https://www.sqlite.org/lang_with.html#recursive_common_table_expressions
    """
    path = encode_namespace(prefix)
    # What sorts between a prefix and those below it, such as a-b, is read and left out by whoever matches.
    upto = "AND namespace < ?2" if prefix else ""
    params: tuple[Value, ...] = (path, path + "/") if prefix else (path,)
    live = ""
    if live_at is not None:
        params = (*params, live_at)
        live = f"""AND EXISTS (SELECT 1 FROM langgraph_items AS i WHERE {also} i.namespace = found.namespace
            AND (i.expires_at IS NULL OR i.expires_at > ?{len(params)}))"""
    sql = f"""WITH RECURSIVE found (namespace) AS (
            SELECT min(namespace) FROM langgraph_items WHERE {also} namespace >= ?1 {upto}
            UNION ALL
            SELECT (SELECT min(namespace) FROM langgraph_items
                WHERE {also} namespace > found.namespace {upto})
            FROM found WHERE namespace IS NOT NULL)
        SELECT namespace FROM found WHERE namespace IS NOT NULL {live}"""
    return Read(sql, params, lambda rows: [decode_namespace(row[0]) for row in rows])


def put(
    namespace: Sequence[str],
    key: str,
    value: str,
    vectors: Sequence[tuple[str, bytes]],
    *,
    now: int,
    ttl: int | None,
    place: int = 0,
    is_indexed: bool = True,
) -> list[Statement]:
    """Return the statements that put an item with its vectors, each with its path; what was there is replaced.

    Args:
        namespace: where it is.
        key: its key there.
        value: JSON.
        vectors: a path and a packed embedding each.
        now: microseconds since 1970.
        ttl: microseconds.
        place: how many were put before it by the same job; for PostgreSQL, where nothing numbers rows.
        is_indexed: whether the table of vectors is there; for PostgreSQL.
    """
    del place, is_indexed
    path = encode_namespace(namespace)
    statements: list[Statement] = [(_PUT, (path, key, now, ttl, value))]
    return statements + put_vectors(path, key, vectors)


def put_vectors(namespace: str, key: str, vectors: Sequence[tuple[str, bytes]]) -> list[Statement]:
    """Return the statements that give an item these vectors and no others; the namespace is an encoded one."""
    statements: list[Statement] = [(_CLEAR_VECTORS, (namespace, key, len(vectors)))]
    for place, (path, embedding) in enumerate(vectors):
        statements.append((_PUT_VECTOR, (namespace, key, place, path, embedding)))
    return statements


def delete(namespace: Sequence[str], key: str) -> Statement:
    """Return the statement that deletes an item; triggers take its vectors along."""
    return "DELETE FROM langgraph_items WHERE namespace = ? AND key = ?", (encode_namespace(namespace), key)


def refresh(ids: Sequence[ItemId], now: int) -> Statement:
    """Return the statement that makes these items expire one TTL from now; those without a TTL stay as they are."""
    sql = """UPDATE langgraph_items SET expires_at = max(expires_at, ? + ttl)
        WHERE id IN (SELECT value FROM json_each(?)) AND ttl IS NOT NULL"""
    return sql, (now, json.dumps(ids))


def sweep(now: int, limit: int) -> Statement:
    """Return the statement that deletes what has expired, `limit` items at most, the oldest first."""
    return _SWEEP, (now, limit)


def encode_namespace(namespace: Sequence[str]) -> str:
    """Return a namespace as the tables have it; its labels hold no period."""
    return ".".join(namespace)


def decode_namespace(path: str) -> tuple[str, ...]:
    """Return the namespace of a row."""
    return tuple(path.split(".")) if path else ()


def now() -> int:
    """Return the time as the tables have it: microseconds since 1970."""
    return time.time_ns() // 1000


def micros(instant: datetime) -> int:
    """Return an instant as the tables have it."""
    return (instant - _EPOCH) // _MICROSECOND


def ttl_micros(minutes: float) -> int:
    """Return a TTL in minutes as the tables have it; one of more than ten thousand years is ten thousand years.

    Raises:
        ValueError: it is not a number.
    """
    if math.isnan(minutes):
        raise ValueError("a TTL is a number of minutes")
    longest = 10_000 * 366 * 24 * 60
    return int(min(max(minutes, -longest), longest) * 60_000_000)


def ids_of(rows: list[Row]) -> list[ItemId]:
    return [row[0] for row in rows]


def found(row: Row) -> Found:
    return Found(
        id=row[0],
        namespace=decode_namespace(row[1]),
        key=row[2],
        value=json.loads(row[3]),
        created_at=_EPOCH + timedelta(microseconds=row[4]),
        updated_at=_EPOCH + timedelta(microseconds=row[5]),
        ttl=row[6],
        expires_at=row[7],
    )


def is_unicode(text: str) -> bool:
    """Return whether SQLite can take a text: a lone surrogate has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
