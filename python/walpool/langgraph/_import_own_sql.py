"""Walpool's own tables as an import reads and writes them, in the SQL of each backend; no I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from walpool.langgraph import _dialects, _store_postgres, _store_sql
from walpool.langgraph._import_sql import Item
from walpool.langgraph._steps import Statement
from walpool.memory.records import pack
from walpool.schema import TENANT
from walpool.types import Row

Places = Sequence[tuple[str, str]]
"""Namespaces, encoded, and keys."""


@dataclass(frozen=True)
class Own:
    """The statements of one backend."""

    savers: _dialects.Dialect
    checkpoints: str
    """The keys of a thread's checkpoints."""
    writes: str
    """A thread's writes in the order of their keys, as `_import_sql.WRITES` has those of a source."""
    write_keys: str
    items: Callable[[Places, bool], Statement]
    """The query of the items at these places; whether there is a table of their vectors."""
    item: Callable[[Row], Item]
    """An item of `items`."""
    put_item: Callable[[Item], list[Statement]]
    """The statements that store an item as it was, or replace it."""
    refusal: Callable[[Item], str | None]
    """Why an item cannot be stored as it is; None if it can, as far as can be told."""


_CHECKPOINTS: Final = "SELECT checkpoint_ns, checkpoint_id FROM langgraph_checkpoints WHERE {mine} thread_id = ?"
_WRITES: Final = """SELECT checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value
    FROM langgraph_writes WHERE {mine} thread_id = ? ORDER BY checkpoint_ns, checkpoint_id, task_id, idx"""
_WRITE_KEYS: Final = """SELECT checkpoint_ns, checkpoint_id, task_id, idx
    FROM langgraph_writes WHERE {mine} thread_id = ?"""
_ITEM: Final = "i.namespace, i.key, i.created_at, i.updated_at, i.ttl, i.expires_at, i.value"

# In a file

_ITEMS: Final = f"""SELECT {_ITEM},
        (SELECT json_group_array(json_array(v.path, hex(v.embedding)) ORDER BY v.path) FROM langgraph_vectors AS v
            WHERE v.id BETWEEN i.id << 16 AND (i.id << 16) + 65535)
    FROM json_each(?) AS wanted CROSS JOIN langgraph_items AS i
        ON i.namespace = wanted.value ->> 0 AND i.key = wanted.value ->> 1"""
_PUT_ITEM: Final = """INSERT INTO langgraph_items (namespace, key, created_at, updated_at, ttl, expires_at, value)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (namespace, key) DO UPDATE SET created_at = excluded.created_at, updated_at = excluded.updated_at,
        ttl = excluded.ttl, expires_at = excluded.expires_at, value = excluded.value"""


def _items(places: Places, _: bool) -> Statement:
    return _ITEMS, (json.dumps(places),)


def _item(row: Row) -> Item:
    return Item._make((*row[:7], tuple((path, bytes.fromhex(embedding)) for path, embedding in json.loads(row[7]))))


def _put_item(item: Item) -> list[Statement]:
    return [(_PUT_ITEM, item[:7]), *_store_sql.put_vectors(item.namespace, item.key, item.vectors)]


SQLITE: Final = Own(
    savers=_dialects.SQLITE,
    checkpoints=_CHECKPOINTS.format(mine=""),
    writes=_WRITES.format(mine=""),
    write_keys=_WRITE_KEYS.format(mine=""),
    items=_items,
    item=_item,
    put_item=_put_item,
    refusal=lambda _: None,
)

# On a server

HAS_VECTORS: Final = "SELECT to_regclass('langgraph_vectors') IS NOT NULL"
"""Asks whether a server has the table: a store without an index makes none."""

_MINE: Final = f"tenant = {TENANT} AND"
# Vectors of another version than the item's are those of a value that is gone. pgvector writes as many digits as give
# each number back as it was.
_VECTORS_OF: Final = """SELECT json_agg(json_build_array(v.path, CAST(v.embedding AS TEXT)) ORDER BY v.path COLLATE "C")
    FROM langgraph_vectors AS v WHERE v.tenant = i.tenant AND v.namespace = i.namespace AND v.key = i.key
        AND v.version = i.version"""
_SERVER_ITEMS: Final = f"""SELECT {_ITEM}, coalesce(CAST(({{vectors}}) AS TEXT), '[]')
    FROM json_array_elements(CAST(? AS JSON)) AS wanted(place) JOIN langgraph_items AS i
        ON i.tenant = {TENANT} AND i.namespace = wanted.place ->> 0 AND i.key = wanted.place ->> 1"""
_PUT_SERVER_ITEM: Final = """INSERT INTO langgraph_items
        (namespace, key, created_at, updated_at, ttl, expires_at, value, id, version)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, namespace, key) DO UPDATE SET created_at = excluded.created_at,
        updated_at = excluded.updated_at, ttl = excluded.ttl, expires_at = excluded.expires_at, value = excluded.value,
        version = excluded.version"""


def _server_items(places: Places, has_vectors: bool) -> Statement:
    return _SERVER_ITEMS.format(vectors=_VECTORS_OF if has_vectors else "SELECT NULL"), (json.dumps(places),)


def _server_item(row: Row) -> Item:
    vectors = ((path, map(float, text[1:-1].split(","))) for path, text in json.loads(row[7]))
    return Item._make((*row[:7], tuple((path, pack(list(numbers))) for path, numbers in vectors)))


def _put_server_item(item: Item) -> list[Statement]:
    ids = (_id(item.created_at), version := _id(item.updated_at))
    statements: list[Statement] = [(_PUT_SERVER_ITEM, (*item[:7], *ids))]
    if item.vectors:
        return statements + _store_postgres.put_vectors(item.namespace, item.key, version, item.vectors)
    return statements


def _id(micros: int) -> str:
    """Return an id that says when, as the store's own do."""
    return _store_postgres.item_id(max(micros, 0), 0)


def _server_refusal(item: Item) -> str | None:
    texts = (item.namespace, item.key, item.value, *(path for path, _ in item.vectors))
    return "a text of it holds a NUL, which PostgreSQL cannot" if any("\0" in text for text in texts) else None


POSTGRES: Final = Own(
    savers=_dialects.POSTGRES,
    checkpoints=_CHECKPOINTS.format(mine=_MINE),
    writes=_WRITES.format(mine=_MINE),
    write_keys=_WRITE_KEYS.format(mine=_MINE),
    items=_server_items,
    item=_server_item,
    put_item=_put_server_item,
    refusal=_server_refusal,
)


def of(backend: Literal["sqlite", "postgres"]) -> Own:
    """Return the statements of a backend."""
    return SQLITE if backend == "sqlite" else POSTGRES
