"""The LangGraph store in PostgreSQL's terms: its tables, and the operations that differ from `_store_sql`'s; no I/O.

    langgraph_items      one row an item; `id` is from its first put, `version` from its last, both rise with time
    langgraph_vectors    the embeddings of an item, with the version of the value that they are of; where a store
                         has an index: needs pgvector

A search compares all vectors of the namespaces that it is about: exact, as on SQLite. Vectors of another version than
the item's speak of a value that is gone, which a store without an index has replaced; they count for nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from walpool.langgraph import _store_sql
from walpool.langgraph._steps import Read, Statement, Steps, ask
from walpool.langgraph._store_filter import is_operators
from walpool.langgraph._store_sql import COLUMNS, NEWEST, Found, ItemId, Selection, encode_namespace, found, ids_of
from walpool.memory.records import unpack
from walpool.schema import TENANT, TENANT_COLUMN
from walpool.types import Value

MIGRATIONS: Final = (
    (
        f"""CREATE TABLE langgraph_items (
            {TENANT_COLUMN},
            namespace TEXT COLLATE "C" NOT NULL,
            key TEXT COLLATE "C" NOT NULL,
            id TEXT COLLATE "C" NOT NULL,
            version TEXT COLLATE "C" NOT NULL,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            ttl BIGINT,
            expires_at BIGINT,
            value TEXT NOT NULL,
            PRIMARY KEY (tenant, namespace, key),
            UNIQUE (tenant, id)
        )""",
        """CREATE INDEX langgraph_items_expires ON langgraph_items (tenant, expires_at)
            WHERE expires_at IS NOT NULL""",
    ),
)

VECTOR_MIGRATIONS: Final = (
    (
        "CREATE EXTENSION IF NOT EXISTS vector",
        # A foreign key, so that an item which is deleted, or swept by whomever, takes along what another transaction
        # has added to it just now.
        f"""CREATE TABLE langgraph_vectors (
            {TENANT_COLUMN},
            namespace TEXT COLLATE "C" NOT NULL,
            key TEXT COLLATE "C" NOT NULL,
            place BIGINT NOT NULL,
            version TEXT COLLATE "C" NOT NULL,
            path TEXT NOT NULL,
            dims BIGINT NOT NULL,
            embedding vector NOT NULL,
            PRIMARY KEY (tenant, namespace, key, place),
            FOREIGN KEY (tenant, namespace, key) REFERENCES langgraph_items (tenant, namespace, key) ON DELETE CASCADE
        )""",
    ),
)

HAS_VECTORS: Final = """SELECT to_regtype('vector') IS NOT NULL
    OR EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector')"""
"""Asks whether there is pgvector."""

_MINE: Final = f"tenant = {TENANT}"
_IDS: Final = "(SELECT json_array_elements_text(CAST(? AS JSON)))"
_PUT: Final = """INSERT INTO langgraph_items
    (namespace, key, id, version, created_at, updated_at, ttl, expires_at, value)
    VALUES (?1, ?2, ?3, ?3, ?4, ?4, ?5, ?6, ?7)
    ON CONFLICT (tenant, namespace, key) DO UPDATE SET version = excluded.version, updated_at = excluded.updated_at,
        ttl = excluded.ttl, expires_at = excluded.expires_at, value = excluded.value"""
_CLEAR_VECTORS: Final = f"DELETE FROM langgraph_vectors WHERE {_MINE} AND namespace = ? AND key = ?"
_PUT_VECTOR: Final = """INSERT INTO langgraph_vectors (namespace, key, place, version, path, dims, embedding)
    VALUES (?, ?, ?, ?, ?, ?, CAST(? AS vector))"""
_DELETE: Final = f"DELETE FROM langgraph_items WHERE {_MINE} AND namespace = ? AND key = ?"
_REFRESH: Final = f"""UPDATE langgraph_items SET expires_at = greatest(expires_at, CAST(? AS BIGINT) + ttl)
    WHERE {_MINE} AND id IN {_IDS} AND ttl IS NOT NULL"""
_SWEEP: Final = f"""DELETE FROM langgraph_items WHERE {_MINE} AND id IN (
    SELECT id FROM langgraph_items WHERE {_MINE} AND expires_at <= ? ORDER BY expires_at LIMIT ?
    FOR UPDATE SKIP LOCKED)"""

# What Python writes into JSON and PostgreSQL takes out of none: a NUL and half a surrogate pair, which are escaped, and
# numbers that are none. (A text that only looks like one is taken for one, and is looked at in Python too.)
_UNREADABLE: Final = r"value ~ '\\u|NaN|Infinity'"


def select(prefix: Sequence[str], narrowed: Selection, live_at: int | None) -> Selection:
    """Return the selection of a namespace and those below it. See `_store_sql.select`."""
    selection = _store_sql.select(prefix, narrowed, live_at)
    return Selection(" AND ".join(filter(None, (_MINE, selection.condition))), selection.params)


def select_ids(ids: Sequence[ItemId]) -> Selection:
    """Return the selection of exactly these items."""
    return Selection(f"{_MINE} AND id IN {_IDS}", (json.dumps(ids),))


def narrow(conditions: Mapping[Any, Any]) -> tuple[Selection, bool]:
    """Return what SQL can tell of a filter, and whether that is all of it: only where there is no filter.

    Nothing that matches is left out; Python decides on the decoded values.
    """
    terms, params = [], list[Value]()
    for key, given in conditions.items():
        is_equality = isinstance(given, Mapping) and is_operators(given) and list(given) == ["$eq"]
        wanted = given["$eq"] if is_equality else given
        if not isinstance(key, str) or not key.isprintable():
            continue
        field = "CAST(value AS JSON) ->> CAST(? AS TEXT)"
        if wanted is None:
            terms.append(f"CASE WHEN {_UNREADABLE} THEN TRUE ELSE ({field}) IS NULL END")
            params.append(key)
        elif type(wanted) is str and "\0" not in wanted and _store_sql.is_unicode(wanted):
            terms.append(f"CASE WHEN {_UNREADABLE} THEN TRUE ELSE ({field}) = ? END")
            params += [key, wanted]
    return Selection(" AND ".join(terms), tuple(params)), not conditions


def one(namespace: Sequence[str], key: str, live_at: int | None) -> Read[Found | None]:
    """Return the read of one item."""
    live = "" if live_at is None else "AND (expires_at IS NULL OR expires_at > ?)"
    params: tuple[Value, ...] = (encode_namespace(namespace), key, *(() if live_at is None else (live_at,)))
    sql = f"SELECT {COLUMNS} FROM langgraph_items WHERE {_MINE} AND namespace = ? AND key = ? {live}"
    return Read(sql, params, lambda rows: found(rows[0]) if rows else None)


def items(ids: Sequence[ItemId]) -> Read[dict[ItemId, Found]]:
    """Return the read of these items, by id."""
    selection = select_ids(ids)
    sql = f"SELECT {COLUMNS} FROM langgraph_items {selection.where()}"
    return Read(sql, selection.params, lambda rows: {row[0]: found(row) for row in rows})


def unscored(selection: Selection, dims: int, *, limit: int, offset: int) -> Read[list[ItemId]]:
    """Return the read of one page of the selected items that have no vector of these dims, last put first."""
    lacking = """NOT EXISTS (SELECT 1 FROM langgraph_vectors AS v
        WHERE v.tenant = langgraph_items.tenant AND v.namespace = langgraph_items.namespace
            AND v.key = langgraph_items.key AND v.version = langgraph_items.version AND v.dims = ?)"""
    sql = f"SELECT id FROM langgraph_items {selection.where(lacking)} ORDER BY {NEWEST} LIMIT ? OFFSET ?"
    return Read(sql, (*selection.params, dims, limit, offset), ids_of)


def nearest(embedding: bytes, selection: Selection, *, limit: int) -> Steps[list[tuple[ItemId, float]]]:
    """Return the reads of the `limit` selected items nearest to `embedding`: ids and cosines, by falling cosine.

    The cosine of an item is that of its best vector; with a vector of zeros it is 0, where pgvector knows none.
    """
    sql = f"""SELECT id, max(coalesce(1 - nullif(distance, CAST('NaN' AS DOUBLE PRECISION)), 0)) AS score
        FROM (SELECT i.id, v.embedding <=> CAST(? AS vector) AS distance
            FROM (SELECT tenant, namespace, key, id, version FROM langgraph_items {selection.where()}) AS i
            JOIN langgraph_vectors AS v ON v.tenant = i.tenant AND v.namespace = i.namespace AND v.key = i.key
                AND v.version = i.version
            WHERE v.dims = ?) AS distances
        GROUP BY id ORDER BY score DESC, id LIMIT ?"""
    params = (_vector(embedding), *selection.params, len(embedding) // 4, limit)
    return (yield from ask(Read(sql, params, lambda rows: [(row[0], row[1]) for row in rows])))


def namespaces(prefix: Sequence[str], live_at: int | None) -> Read[list[tuple[str, ...]]]:
    """Return the read of the namespaces that hold items, those at and below `prefix`. See `_store_sql.namespaces`."""
    return _store_sql.namespaces(prefix, live_at, f"{_MINE} AND")


def put(
    namespace: Sequence[str],
    key: str,
    value: str,
    vectors: Sequence[tuple[str, bytes]],
    *,
    now: int,
    ttl: int | None,
    place: int,
    is_indexed: bool,
) -> list[Statement]:
    """Return the statements that put an item with its vectors, each with its path; what was there is replaced."""
    path, version = encode_namespace(namespace), item_id(now, place)
    expires_at = None if ttl is None else now + ttl
    statements: list[Statement] = [(_PUT, (path, key, version, now, ttl, expires_at, value))]
    if is_indexed:
        statements += put_vectors(path, key, version, vectors)
    return statements


def put_vectors(path: str, key: str, version: str, vectors: Sequence[tuple[str, bytes]]) -> list[Statement]:
    """Return the statements that replace the vectors of an item, whose namespace is an encoded one.

    They come after the one of the item, whose row makes writers of one key wait for each other.
    """
    statements: list[Statement] = [(_CLEAR_VECTORS, (path, key))]
    for number, (of, embedding) in enumerate(vectors):
        row = (path, key, number, version, of, len(embedding) // 4, _vector(embedding))
        statements.append((_PUT_VECTOR, row))
    return statements


def item_id(now: int, place: int) -> str:
    """Return an id, or a version, that no other item gets, and that sorts by the time and the place in a batch."""
    return f"{now:014x}{place:05x}{secrets.token_hex(7)}"


def delete(namespace: Sequence[str], key: str) -> Statement:
    """Return the statement that deletes an item; its vectors go along."""
    return _DELETE, (encode_namespace(namespace), key)


def refresh(ids: Sequence[ItemId], now: int) -> Statement:
    """Return the statement that makes these items expire one TTL from now; those without a TTL stay as they are."""
    return _REFRESH, (now, json.dumps(ids))


def sweep(now: int, limit: int) -> Statement:
    """Return the statement that deletes what has expired, `limit` items at most, the oldest first."""
    return _SWEEP, (now, limit)


def _vector(embedding: bytes) -> str:
    """Return a packed embedding as pgvector reads it; nine digits give each float32 back as it was."""
    return f"[{','.join(format(number, '.9g') for number in unpack(embedding))}]"
