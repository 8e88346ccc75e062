"""The tables of `langgraph-checkpoint-sqlite`, and what an import reads of them; no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final, NamedTuple

from walpool.langgraph import _store_sql
from walpool.types import Value

THREADS: Final = """SELECT thread_id FROM checkpoints {or_writes} ORDER BY 1"""
OR_WRITES: Final = "UNION SELECT thread_id FROM writes"
CHECKPOINTS: Final = """SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
    FROM checkpoints WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id"""
WRITES: Final = """SELECT checkpoint_ns, checkpoint_id, task_id, idx, {task_path}, channel, type, value
    FROM writes WHERE thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx"""
ITEMS: Final = """SELECT prefix, key, value, created_at, updated_at, {expiry} FROM store ORDER BY prefix, key"""
VECTORS: Final = "SELECT field_name, embedding FROM store_vectors WHERE prefix = ? AND key = ? ORDER BY field_name"


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


def _micros(text: Value) -> int:
    """Return a time as SQLite's CURRENT_TIMESTAMP and Python's adapter write it, in microseconds."""
    instant = datetime.fromisoformat(str(text))
    return _store_sql.micros(instant.replace(tzinfo=timezone.utc) if instant.tzinfo is None else instant)
