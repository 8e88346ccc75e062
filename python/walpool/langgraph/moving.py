"""The tables of savers, store and cache, as a file and PostgreSQL have them in common: for `walpool migrate`.

What differs is said here, for each table once; what a column holds, its `_sql` says.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

from walpool.langgraph import _cache_sql, _postgres_sql, _sql
from walpool.langgraph._store_dialects import ITEMS, VECTORS
from walpool.migrating.sets import Face, Part, Set, blob, integer, text, vector, versioned
from walpool.schema import TENANT

__all__ = ["SETS"]


def _typed(value: str, lacks: Sequence[str] = (), reads: Mapping[str, str] | None = None, **more: Any) -> Face:
    """Return how a file has serialized values: bytes or text, where PostgreSQL has bytes and notes it in the type."""
    was_text = "substr(given.type, 1, 5) = 'text' || char(31)"
    return Face(
        reads={
            "type": f"CASE typeof({value}) WHEN 'text' THEN 'text' || char(31) || type ELSE type END",
            value: f"CAST({value} AS BLOB)",
            **(reads or {}),
        },
        writes={
            "type": f"CASE WHEN {was_text} THEN substr(given.type, 6) ELSE given.type END",
            value: f"CASE WHEN {was_text} THEN CAST(given.{value} AS TEXT) ELSE given.{value} END",
        },
        lacks=lacks,
        **more,
    )


# The channels that are deltas are named by the metadata, in a file as well.
_DELTAS: Final = """(SELECT json_group_array(d.key) FROM json_each(metadata, '$.counters_since_delta_snapshot') AS d
    WHERE typeof(d.key) = 'text' AND d.key IN (SELECT c.key FROM json_each(channels) AS c))"""
# Blobs that no checkpoint names, and writes whose checkpoint is not there: a file finds them by these columns.
_STRAY: Final = """UPDATE langgraph_blobs SET stray = thread_id
    WHERE stray IS NULL AND (blob_key, thread_id, checkpoint_ns, channel) NOT IN (
        SELECT v.value, c.thread_id, c.checkpoint_ns, v.key
        FROM langgraph_checkpoints AS c CROSS JOIN json_each(c.channels) AS v WHERE v.type = 'text')"""
_EARLY: Final = """UPDATE langgraph_writes SET early = thread_id
    WHERE early IS NULL AND NOT EXISTS (SELECT 1 FROM langgraph_checkpoints AS c
        WHERE c.thread_id = langgraph_writes.thread_id AND c.checkpoint_ns = langgraph_writes.checkpoint_ns
            AND c.checkpoint_id = langgraph_writes.checkpoint_id)"""

_CHECKPOINTS: Final = Part(
    name="langgraph_checkpoints",
    columns=(
        text("thread_id"),
        text("checkpoint_ns"),
        text("checkpoint_id"),
        text("parent_checkpoint_id", required=False),
        text("run_id", required=False),
        text("channels"),
        text("deltas", required=False, compared=False),
        text("metadata"),
        text("type"),
        blob("checkpoint"),
    ),
    key=("thread_id", "checkpoint_ns", "checkpoint_id"),
    sqlite=_typed("checkpoint", lacks=("deltas",), reads={"deltas": _DELTAS}),
)
_BLOBS: Final = Part(
    name="langgraph_blobs",
    columns=(
        text("thread_id"),
        text("checkpoint_ns"),
        text("channel"),
        text("blob_key"),
        text("type"),
        blob("value"),
    ),
    key=("thread_id", "checkpoint_ns", "channel", "blob_key"),
    sqlite=_typed("value", order=("blob_key", "thread_id", "checkpoint_ns", "channel"), finish=(_STRAY,)),
)
_WRITES: Final = Part(
    name="langgraph_writes",
    columns=(
        text("thread_id"),
        text("checkpoint_ns"),
        text("checkpoint_id"),
        text("task_id"),
        integer("idx"),
        text("task_path"),
        text("channel"),
        text("type"),
        blob("value"),
    ),
    key=("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx"),
    sqlite=_typed("value", order=("checkpoint_id", "thread_id", "checkpoint_ns", "task_id", "idx"), finish=(_EARLY,)),
)

# The later of two items that were put at one moment has the larger id: a number in a file, a text that begins with the
# time on PostgreSQL. Those that come from a file are below those that are put there; those that come into a file are
# written in the order of their ids.
_ID: Final = "printf('%033x', {id})"

_ITEMS: Final = Part(
    name="langgraph_items",
    columns=(
        text("namespace"),
        text("key"),
        text("id", compared=False),
        text("version", compared=False),
        integer("created_at"),
        integer("updated_at"),
        integer("ttl", required=False),
        integer("expires_at", required=False),
        text("value"),
    ),
    key=("namespace", "key"),
    sqlite=Face(reads={"id": _ID.format(id="id"), "version": _ID.format(id="id")}, lacks=("id", "version")),
    postgres=Face(order=("id",)),
)


def _sent(embedding: Any) -> Any:
    """Return a packed embedding as pgvector sends one: its length, two bytes, and its numbers with the sign first.

    One that pgvector does not hold is as long as it is, whatever its head says, and so found in the plan.
    """
    if not isinstance(embedding, bytes) or len(embedding) % 4:
        return embedding
    return min(len(embedding) // 4, 2**16 - 1).to_bytes(2, "big") + bytes(2) + _swapped(embedding)


def _packed(sent: Any) -> Any:
    """Return what pgvector sends as a packed embedding."""
    return _swapped(sent[4:])


def _swapped(numbers: bytes) -> bytes:
    found = array("f", numbers)
    found.byteswap()
    return found.tobytes()


_OF_ITEM: Final = "v.id BETWEEN i.id << 16 AND (i.id << 16) + 65535"
_VECTORS: Final = Part(
    name="langgraph_vectors",
    columns=(text("namespace"), text("key"), integer("place"), text("path"), vector("embedding")),
    key=("namespace", "key"),
    is_grouped=True,
    sqlite=Face(
        rows=f"FROM langgraph_items AS i CROSS JOIN langgraph_vectors AS v ON {_OF_ITEM}",
        reads={"namespace": "i.namespace", "key": "i.key", "place": "v.id & 65535"},
        given="given JOIN langgraph_items AS i ON i.namespace = given.namespace AND i.key = given.key",
        writes={"id": "(i.id << 16) + given.place"},
        lacks=("namespace", "key", "place"),
        order=("namespace", "key", "place"),
        drop=f"""DELETE FROM langgraph_vectors WHERE id IN (
            SELECT v.id FROM langgraph_items AS i CROSS JOIN langgraph_vectors AS v ON {_OF_ITEM}
            WHERE i.namespace = ? AND i.key = ?)""",
        codes={"embedding": (_sent, _packed)},
    ),
    # Those of another version than the item's speak of a value that is gone.
    postgres=Face(
        rows=f"""FROM langgraph_vectors AS v JOIN langgraph_items AS i ON i.tenant = v.tenant
            AND i.namespace = v.namespace AND i.key = v.key AND i.version = v.version WHERE v.tenant = {TENANT}""",
        reads={"namespace": "v.namespace", "key": "v.key", "embedding": "vector_send(v.embedding)"},
        given=f"""given JOIN langgraph_items AS i ON i.tenant = {TENANT}
            AND i.namespace = given.namespace AND i.key = given.key""",
        writes={"version": "i.version", "dims": "vector_dims(given.embedding)"},
        order=("namespace", "key", "place"),
    ),
)
_CACHE: Final = Part(
    name="langgraph_cache",
    columns=(text("namespace"), text("key"), integer("expires_at", required=False), text("encoding"), blob("value")),
    key=("namespace", "key"),
)


SETS: Final[Mapping[str, Sequence[Set]]] = {
    _sql.SCHEMA: (
        Set(
            parts=(_CHECKPOINTS, _BLOBS, _WRITES),
            schemas=versioned(_sql.SCHEMA, {"sqlite": _sql.MIGRATIONS, "postgres": _postgres_sql.MIGRATIONS}),
        ),
    ),
    ITEMS.name: (
        Set(parts=(_ITEMS,), schemas=versioned(ITEMS.name, ITEMS.migrations)),
        Set(
            parts=(_VECTORS,),
            schemas={
                "sqlite": {ITEMS.name: ITEMS.migrations["sqlite"]},
                "postgres": {VECTORS.name: VECTORS.migrations["postgres"]},
            },
            needs=VECTORS.needs,
        ),
    ),
    _cache_sql.NAME: (Set(parts=(_CACHE,), schemas=versioned(_cache_sql.NAME, _cache_sql.MIGRATIONS)),),
}
"""The sets by the names that `walpool_schema` has for them."""
