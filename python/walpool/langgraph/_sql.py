"""The tables of the LangGraph savers, and each operation on them as SQL, parameters and row shapes; no I/O.

Three tables: a checkpoint is one row that says where the value of each channel is; a channel's value lies once for each
version, however many checkpoints have it; pending writes lie beside the checkpoint that they follow. They do not have
the names of `langgraph-checkpoint-sqlite`'s tables, which keep other things: both may lie in one file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from walpool.types import Value

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL and its parameters."""

SCHEMA: Final = "langgraph"

# What a commit costs is the pages that it changes, and the jobs of a group come from many threads. So the keys of blobs
# and writes begin with the time (`blob_key`, ids of checkpoints), as rows do by themselves: a group shares its pages.
# Keyed by thread first, as one would, each row changes a page of its own, and storing a write took three times as long.
# Tables without rowids would have one tree less, but rows of 1 to 4 KB took up to twice the space in them.
#
# `channels` is a JSON object, for each channel with a version: the key of its blob; 0 where its short value lies in the
# checkpoint itself; null where it has none. Through it the blobs of a thread are found, and through checkpoints its
# writes, but for those that `stray` and `early` name: blobs whose checkpoint was stored again without them, and writes
# that came before their checkpoint. A serializer may give bytes or text, hence ANY.
MIGRATIONS: Final = (
    (
        """CREATE TABLE langgraph_checkpoints (
            thread_id TEXT NOT NULL,
            checkpoint_ns TEXT NOT NULL,
            checkpoint_id TEXT NOT NULL,
            parent_checkpoint_id TEXT,
            run_id TEXT,
            channels TEXT NOT NULL,
            metadata TEXT NOT NULL,
            type TEXT NOT NULL,
            checkpoint ANY NOT NULL,
            PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
        ) STRICT""",
        "CREATE INDEX langgraph_checkpoints_run ON langgraph_checkpoints (run_id) WHERE run_id IS NOT NULL",
        """CREATE TABLE langgraph_blobs (
            blob_key TEXT NOT NULL,
            thread_id TEXT NOT NULL,
            checkpoint_ns TEXT NOT NULL,
            channel TEXT NOT NULL,
            stray TEXT,
            type TEXT NOT NULL,
            value ANY NOT NULL,
            PRIMARY KEY (blob_key, thread_id, checkpoint_ns, channel)
        ) STRICT""",
        "CREATE INDEX langgraph_blobs_stray ON langgraph_blobs (stray) WHERE stray IS NOT NULL",
        """CREATE TRIGGER langgraph_checkpoints_replaced AFTER UPDATE OF channels ON langgraph_checkpoints
        WHEN old.channels IS NOT new.channels
        BEGIN
            UPDATE langgraph_blobs SET stray = old.thread_id
            WHERE (blob_key, thread_id, checkpoint_ns, channel) IN (
                SELECT value, old.thread_id, old.checkpoint_ns, key FROM json_each(old.channels));
        END""",
        """CREATE TABLE langgraph_writes (
            checkpoint_id TEXT NOT NULL,
            thread_id TEXT NOT NULL,
            checkpoint_ns TEXT NOT NULL,
            task_id TEXT NOT NULL,
            idx INTEGER NOT NULL,
            task_path TEXT NOT NULL,
            channel TEXT NOT NULL,
            early TEXT,
            type TEXT NOT NULL,
            value ANY NOT NULL,
            PRIMARY KEY (checkpoint_id, thread_id, checkpoint_ns, task_id, idx)
        ) STRICT""",
        "CREATE INDEX langgraph_writes_early ON langgraph_writes (early) WHERE early IS NOT NULL",
    ),
)

FIND_STOCK_TABLES: Final = """SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND (
    name = 'checkpoints' AND sql LIKE '%parent_checkpoint_id%' OR name = 'writes' AND sql LIKE '%checkpoint_ns%')"""
"""Counts the tables of `langgraph-checkpoint-sqlite`: 2 in a file of its own."""

PUT_WRITES: Final = """INSERT INTO langgraph_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value, early)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, CASE WHEN NOT EXISTS (SELECT 1 FROM langgraph_checkpoints
        WHERE thread_id = ?1 AND checkpoint_ns = ?2 AND checkpoint_id = ?3) THEN ?1 END)
    ON CONFLICT (checkpoint_id, thread_id, checkpoint_ns, task_id, idx) DO UPDATE SET task_path = excluded.task_path,
        channel = excluded.channel, type = excluded.type, value = excluded.value
        WHERE excluded.idx < 0"""
"""Stores one write. What is there already stays, but for the special channels, whose index is negative."""

# Also what `copy_thread` does where the target has the checkpoint already.
REPLACE_CHECKPOINT: Final = """ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
        parent_checkpoint_id = excluded.parent_checkpoint_id, run_id = excluded.run_id,
        channels = excluded.channels, metadata = excluded.metadata, type = excluded.type,
        checkpoint = excluded.checkpoint"""
REPLACE_BLOB: Final = """ON CONFLICT (blob_key, thread_id, checkpoint_ns, channel) DO UPDATE SET
        type = excluded.type, value = excluded.value"""

_PUT_CHECKPOINT: Final = f"""INSERT INTO langgraph_checkpoints (thread_id, checkpoint_ns, checkpoint_id,
        parent_checkpoint_id, run_id, channels, metadata, type, checkpoint)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) {REPLACE_CHECKPOINT}"""
_PUT_BLOB: Final = f"""INSERT INTO langgraph_blobs (blob_key, thread_id, checkpoint_ns, channel, type, value)
    VALUES (?, ?, ?, ?, ?, ?) {REPLACE_BLOB}"""

# What a reader of checkpoints needs comes in one statement, so from one snapshot: rows of three kinds, each of them
# headed by the row id of its checkpoint. CROSS JOIN keeps the order of the loops: each inner step is one index lookup,
# and `v.type` saves those for what is no key.
_ROWS: Final = """
    SELECT 0, id, thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata, type, checkpoint FROM target
    UNION ALL
    SELECT 1, target.id, b.channel, NULL, NULL, NULL, NULL, b.type, b.value
    FROM target CROSS JOIN json_each(target.channels) AS v CROSS JOIN langgraph_blobs AS b
        ON b.blob_key = v.value AND b.thread_id = target.thread_id AND b.checkpoint_ns = target.checkpoint_ns
        AND b.channel = v.key
    WHERE v.type = 'text'
    UNION ALL
    SELECT 2, target.id, w.task_path, w.task_id, w.idx, w.channel, NULL, w.type, w.value
    FROM target CROSS JOIN langgraph_writes AS w
        ON w.checkpoint_id = target.checkpoint_id AND w.thread_id = target.thread_id
        AND w.checkpoint_ns = target.checkpoint_ns"""
_TARGET: Final = "WITH target AS MATERIALIZED (SELECT rowid AS id, * FROM langgraph_checkpoints WHERE "
_GET_LATEST: Final = f"""{_TARGET} thread_id = ? AND checkpoint_ns = ?
    ORDER BY checkpoint_id DESC LIMIT 1) {_ROWS}"""
_GET_ONE: Final = f"{_TARGET} thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?) {_ROWS}"
_GET_MANY: Final = f"{_TARGET} rowid IN (SELECT value FROM json_each(?))) {_ROWS}"

KIND_CHECKPOINT, KIND_BLOB, KIND_WRITE = 0, 1, 2


class Key(NamedTuple):
    """A checkpoint found by `find`: a number for it, its place in the order of `list`, and its metadata as JSON."""

    row: int
    checkpoint_id: str
    thread_id: str
    checkpoint_ns: str
    metadata: str


class Search(NamedTuple):
    """What a `list` is about; None where it does not say."""

    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    before_id: str | None = None
    run_id: str | None = None


def put_checkpoint(
    thread_id: str,
    checkpoint_ns: str,
    checkpoint_id: str,
    parent_id: str | None,
    run_id: str | None,
    channels: str,
    metadata: str,
    typed: tuple[str, bytes],
) -> Statement:
    """Return the statement that stores a checkpoint, or replaces it; `channels` and `metadata` are JSON."""
    return _PUT_CHECKPOINT, (thread_id, checkpoint_ns, checkpoint_id, parent_id, run_id, channels, metadata, *typed)


def put_blob(blob_key: str, thread_id: str, checkpoint_ns: str, channel: str, typed: tuple[str, bytes]) -> Statement:
    """Return the statement that stores the value that a channel has at a version."""
    return _PUT_BLOB, (blob_key, thread_id, checkpoint_ns, channel, *typed)


def get(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Statement:
    """Return the query of one checkpoint, the latest where no id is given, with its values and its pending writes."""
    if checkpoint_id is None:
        return _GET_LATEST, (thread_id, checkpoint_ns)
    return _GET_ONE, (thread_id, checkpoint_ns, checkpoint_id)


def get_many(keys: Sequence[Key]) -> Statement:
    """Return the query of these checkpoints, each as `get` has it, in no order."""
    return _GET_MANY, (json.dumps([key.row for key in keys]),)


def find(search: Search, after: Key | None, limit: int) -> Statement:
    """Return the query of the next `limit` keys that a search finds, newest first, after the one given."""
    return find_keys("rowid", [], search, after, limit)


def find_keys(row: str, wheres: Sequence[str], search: Search, after: Key | None, limit: int) -> Statement:
    """Return what `find` does, with the SQL of a key's row, and conditions that all of them meet."""
    wheres = list(wheres)
    params: list[Value] = []
    for column, value in (
        ("thread_id = ?", search.thread_id),
        ("checkpoint_ns = ?", search.checkpoint_ns),
        ("checkpoint_id = ?", search.checkpoint_id),
        ("checkpoint_id < ?", search.before_id),
        ("run_id = ?", search.run_id),
    ):
        if value is not None:
            wheres.append(column)
            params.append(value)
    if after is not None:
        # The first comparison says nothing new: it is what an index can begin at.
        wheres.append("checkpoint_id <= ? AND (checkpoint_id, thread_id, checkpoint_ns) < (?, ?, ?)")
        params += [after.checkpoint_id, after.checkpoint_id, after.thread_id, after.checkpoint_ns]
    where = f"WHERE {' AND '.join(wheres)}" if wheres else ""
    sql = f"""SELECT {row}, checkpoint_id, thread_id, checkpoint_ns, metadata FROM langgraph_checkpoints {where}
        ORDER BY checkpoint_id DESC, thread_id DESC, checkpoint_ns DESC LIMIT ?"""
    return sql, (*params, limit)


def keys(rows: Sequence[Sequence[Any]]) -> list[Key]:
    """Return what a `find` found; where the backend's rows have no number, each has its place in this answer."""
    return [Key(place if row[0] is None else row[0], *row[1:]) for place, row in enumerate(rows)]
