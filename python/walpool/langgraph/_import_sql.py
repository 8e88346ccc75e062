"""The tables of `langgraph-checkpoint-sqlite`, and what an import reads of them and of walpool's own; no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final, NamedTuple

from walpool.langgraph import _store_sql
from walpool.langgraph._steps import Statement
from walpool.types import Row, Value

THREADS: Final = """SELECT thread_id FROM checkpoints {or_writes} ORDER BY 1"""
OR_WRITES: Final = "UNION SELECT thread_id FROM writes"
CHECKPOINTS: Final = """SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id"""
WRITES: Final = """SELECT checkpoint_ns, checkpoint_id, task_id, idx, {task_path}, channel, type, value
    FROM writes WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx"""
ITEMS: Final = """SELECT prefix, key, value, created_at, updated_at, {expiry} FROM store ORDER BY prefix, key"""
VECTORS: Final = "SELECT field_name, embedding FROM store_vectors WHERE prefix = ? AND key = ? ORDER BY field_name"

# Walpool's own.

OWN_CHECKPOINTS: Final = "SELECT checkpoint_ns, checkpoint_id FROM langgraph_checkpoints WHERE thread_id = ?"
OWN_WRITES: Final = """SELECT checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value
    FROM langgraph_writes WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx"""
OWN_WRITE_KEYS: Final = (
    """SELECT checkpoint_ns, checkpoint_id, task_id, idx FROM langgraph_writes WHERE thread_id = ?"""
)
_OWN_ITEMS: Final = """SELECT i.namespace, i.key, i.created_at, i.updated_at, i.ttl, i.expires_at, i.value,
        (SELECT json_group_array(json_array(v.path, hex(v.embedding)) ORDER BY v.path) FROM langgraph_vectors AS v
            WHERE v.id BETWEEN i.id << 16 AND (i.id << 16) + 65535)
    FROM json_each(?) AS wanted CROSS JOIN langgraph_items AS i
        ON i.namespace = wanted.value ->> 0 AND i.key = wanted.value ->> 1"""
_PUT_ITEM: Final = """INSERT INTO langgraph_items (namespace, key, created_at, updated_at, ttl, expires_at, value)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (namespace, key) DO UPDATE SET created_at = excluded.created_at, updated_at = excluded.updated_at,
        ttl = excluded.ttl, expires_at = excluded.expires_at, value = excluded.value"""


class Item(NamedTuple):
    """An item of either store: times in microseconds since 1970, each vector with its path, ordered by it."""

    namespace: str
    key: str
    created_at: int
    updated_at: int
    ttl: int | None
    expires_at: int | None
    value: str
    vectors: tuple[tuple[str, bytes], ...]


def source_item(row: Sequence[Value], vectors: Sequence[tuple[str, bytes]]) -> Item:
    """Return an item of `ITEMS`.

    Raises:
        ValueError: its value is no JSON, or a time is none.
    """
    prefix, key, value, created_at, updated_at, expires_at, ttl_minutes = row
    text = value.decode() if isinstance(value, bytes) else str(value)
    json.loads(text)
    return Item(
        namespace=str(prefix),
        key=str(key),
        created_at=_micros(created_at),
        updated_at=_micros(updated_at),
        ttl=_store_sql.ttl_micros(float(ttl_minutes)) if isinstance(ttl_minutes, (int, float)) else None,
        expires_at=None if expires_at is None else _micros(expires_at),
        value=text,
        vectors=tuple((path, bytes(embedding)) for path, embedding in vectors),
    )


def own_items(places: Sequence[tuple[str, str]]) -> Statement:
    """Return the query of the items at these namespaces and keys."""
    return _OWN_ITEMS, (json.dumps(places),)


def own_item(row: Row) -> Item:
    """Return an item of `own_items`."""
    return Item._make((*row[:7], tuple((path, bytes.fromhex(embedding)) for path, embedding in json.loads(row[7]))))


def put_item(item: Item) -> list[Statement]:
    """Return the statements that store an item as it was, or replace it."""
    return [(_PUT_ITEM, item[:7]), *_store_sql.put_vectors(item.namespace, item.key, item.vectors)]


def _micros(text: Value) -> int:
    """Return a time as SQLite's CURRENT_TIMESTAMP and Python's adapter write it, in microseconds."""
    instant = datetime.fromisoformat(str(text))
    return _store_sql.micros(instant.replace(tzinfo=timezone.utc) if instant.tzinfo is None else instant)
