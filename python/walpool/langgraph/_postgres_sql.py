"""The tables of the LangGraph savers on PostgreSQL, and each operation on them as SQL and parameters; no I/O.

What is kept is what `_sql` describes, but that keys begin with the tenant and the thread: many write at once, and none
waits for a page of another's. `deltas` says which channels are rebuilt, as a JSON list.

So all that is a thread's is found by its id, and whatever removes or copies it is one statement, which sees one
snapshot: a checkpoint that comes meanwhile is not taken for one that was there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from walpool.langgraph._sql import Key, Search, Statement, find_keys
from walpool.schema import TENANT, TENANT_COLUMN
from walpool.types import Value

MIGRATIONS: Final = (
    (
        f"""CREATE TABLE langgraph_checkpoints (
            {TENANT_COLUMN},
            thread_id TEXT COLLATE "C" NOT NULL,
            checkpoint_ns TEXT COLLATE "C" NOT NULL,
            checkpoint_id TEXT COLLATE "C" NOT NULL,
            parent_checkpoint_id TEXT COLLATE "C",
            run_id TEXT COLLATE "C",
            channels TEXT NOT NULL,
            deltas TEXT,
            metadata TEXT NOT NULL,
            type TEXT NOT NULL,
            checkpoint BYTEA NOT NULL,
            PRIMARY KEY (tenant, thread_id, checkpoint_ns, checkpoint_id)
        )""",
        """CREATE INDEX langgraph_checkpoints_run ON langgraph_checkpoints (tenant, run_id)
            WHERE run_id IS NOT NULL""",
        f"""CREATE TABLE langgraph_blobs (
            {TENANT_COLUMN},
            thread_id TEXT COLLATE "C" NOT NULL,
            checkpoint_ns TEXT COLLATE "C" NOT NULL,
            channel TEXT COLLATE "C" NOT NULL,
            blob_key TEXT COLLATE "C" NOT NULL,
            type TEXT NOT NULL,
            value BYTEA NOT NULL,
            PRIMARY KEY (tenant, thread_id, checkpoint_ns, channel, blob_key)
        )""",
        f"""CREATE TABLE langgraph_writes (
            {TENANT_COLUMN},
            thread_id TEXT COLLATE "C" NOT NULL,
            checkpoint_ns TEXT COLLATE "C" NOT NULL,
            checkpoint_id TEXT COLLATE "C" NOT NULL,
            task_id TEXT COLLATE "C" NOT NULL,
            idx BIGINT NOT NULL,
            task_path TEXT NOT NULL,
            channel TEXT COLLATE "C" NOT NULL,
            type TEXT NOT NULL,
            value BYTEA NOT NULL,
            PRIMARY KEY (tenant, thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
        )""",
    ),
)

FIND_STOCK_TABLES: Final = """SELECT CAST(to_regclass('checkpoint_blobs') IS NOT NULL AS INTEGER)
    + CAST(to_regclass('checkpoint_writes') IS NOT NULL AS INTEGER)"""
"""Counts the tables of `langgraph-checkpoint-postgres`: 2 in a database of its own."""

PUT_WRITES: Final = """INSERT INTO langgraph_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET
        task_path = excluded.task_path, channel = excluded.channel, type = excluded.type, value = excluded.value
        WHERE excluded.idx < 0"""

_REPLACE_CHECKPOINT: Final = """ON CONFLICT (tenant, thread_id, checkpoint_ns, checkpoint_id) DO UPDATE SET
        parent_checkpoint_id = excluded.parent_checkpoint_id, run_id = excluded.run_id,
        channels = excluded.channels, deltas = excluded.deltas, metadata = excluded.metadata, type = excluded.type,
        checkpoint = excluded.checkpoint"""
_REPLACE_BLOB: Final = """ON CONFLICT (tenant, thread_id, checkpoint_ns, channel, blob_key) DO UPDATE SET
        type = excluded.type, value = excluded.value"""
_PUT_CHECKPOINT: Final = f"""INSERT INTO langgraph_checkpoints (thread_id, checkpoint_ns, checkpoint_id,
        parent_checkpoint_id, run_id, channels, deltas, metadata, type, checkpoint)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {_REPLACE_CHECKPOINT}"""
_PUT_BLOB: Final = f"""INSERT INTO langgraph_blobs (blob_key, thread_id, checkpoint_ns, channel, type, value)
    VALUES (?, ?, ?, ?, ?, ?) {_REPLACE_BLOB}"""

_MINE: Final = f"tenant = {TENANT} AND"
# The keys of the blobs that a checkpoint `c` names; the function gives a key with its value, which is JSON.
_NAMED: Final = "CROSS JOIN LATERAL json_each(CAST(c.channels AS JSON)) AS v"
_IS_KEY: Final = "json_typeof(v.value) = 'string'"
_KEY: Final = "v.value #>> '{}'"
_IDS: Final = "(SELECT json_array_elements_text(CAST(?1 AS JSON)))"

# OFFSET 0 keeps the order of the loops: each inner step is one index lookup, whatever the planner thinks of the number
# of keys in a JSON that it cannot look into.
_ROWS: Final = f"""
    SELECT 0, id, thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, metadata, type, checkpoint FROM target
    UNION ALL
    SELECT 1, c.id, b.channel, NULL, NULL, NULL, NULL, b.type, b.value
    FROM target AS c {_NAMED} CROSS JOIN LATERAL (
        SELECT channel, type, value FROM langgraph_blobs WHERE {_MINE} thread_id = c.thread_id
            AND checkpoint_ns = c.checkpoint_ns AND channel = v.key AND blob_key = {_KEY} OFFSET 0) AS b
    WHERE {_IS_KEY}
    UNION ALL
    SELECT 2, c.id, w.task_path, w.task_id, CAST(w.idx AS TEXT), w.channel, NULL, w.type, w.value
    FROM target AS c CROSS JOIN LATERAL (
        SELECT * FROM langgraph_writes WHERE {_MINE} thread_id = c.thread_id
            AND checkpoint_ns = c.checkpoint_ns AND checkpoint_id = c.checkpoint_id OFFSET 0) AS w"""
_TARGET: Final = f"""WITH target AS MATERIALIZED (SELECT 0 AS id, * FROM langgraph_checkpoints
    WHERE {_MINE} thread_id = ? AND checkpoint_ns = ?"""
_GET_LATEST: Final = f"{_TARGET} ORDER BY checkpoint_id DESC LIMIT 1) {_ROWS}"
_GET_ONE: Final = f"{_TARGET} AND checkpoint_id = ?) {_ROWS}"
_GET_MANY: Final = f"""WITH target AS MATERIALIZED (
        SELECT CAST(k.value ->> 0 AS BIGINT) AS id, c.*
        FROM json_array_elements(CAST(? AS JSON)) AS k(value) CROSS JOIN LATERAL (
            SELECT * FROM langgraph_checkpoints WHERE {_MINE} thread_id = k.value ->> 1
                AND checkpoint_ns = k.value ->> 2 AND checkpoint_id = k.value ->> 3 OFFSET 0) AS c) {_ROWS}"""

# Where the value of a channel is at a checkpoint, as JSON: a key in quotes, or 0; NULL where there is none.
_VALUE_AT: Final = "nullif(CAST(CAST(c.channels AS JSON) -> {channel} AS TEXT), 'null')"
_IS_AT: Final = "CAST(c.channels AS JSON) -> {channel} IS NOT NULL"
# Which of a checkpoint's channels are deltas, where another program copied the row here: from the metadata, which may
# hold what PostgreSQL's JSON does not take (a NUL, half a surrogate pair), and is looked into only if it must be.
_COUNTERS: Final = """CASE WHEN c.deltas IS NULL AND strpos(c.metadata, '"counters_since_delta_snapshot"') > 0
        THEN CASE json_typeof(CAST(c.metadata AS JSON) -> 'counters_since_delta_snapshot') WHEN 'object'
            THEN CAST(c.metadata AS JSON) -> 'counters_since_delta_snapshot' END END"""

# See `_upkeep_sql`: `roots` are checkpoints that stay.
_KEPT: Final = f"""
    deltas(thread_id, checkpoint_ns, channel) AS MATERIALIZED (
        SELECT DISTINCT c.thread_id, c.checkpoint_ns, j.channel
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM roots) AS r JOIN langgraph_checkpoints AS c
            ON c.{_MINE} c.thread_id = r.thread_id AND c.checkpoint_ns = r.checkpoint_ns
            CROSS JOIN LATERAL (
                SELECT json_array_elements_text(CAST(c.deltas AS JSON)) UNION ALL SELECT json_object_keys({_COUNTERS})
            ) AS j(channel)
    ),
    walk(thread_id, checkpoint_ns, checkpoint_id, channel, next_id) AS (
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, d.channel,
            CASE WHEN {_IS_AT.format(channel="d.channel")} AND {_VALUE_AT.format(channel="d.channel")} IS NULL
                THEN c.parent_checkpoint_id END
        FROM roots AS r JOIN langgraph_checkpoints AS c ON c.{_MINE} c.thread_id = r.thread_id
            AND c.checkpoint_ns = r.checkpoint_ns AND c.checkpoint_id = r.checkpoint_id
            JOIN deltas AS d ON d.thread_id = c.thread_id AND d.checkpoint_ns = c.checkpoint_ns
        UNION
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, k.channel,
            CASE WHEN {_VALUE_AT.format(channel="k.channel")} IS NULL THEN c.parent_checkpoint_id END
        FROM walk AS k JOIN langgraph_checkpoints AS c ON c.{_MINE} c.thread_id = k.thread_id
            AND c.checkpoint_ns = k.checkpoint_ns AND c.checkpoint_id = k.next_id
    ),
    kept(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM roots
        UNION SELECT thread_id, checkpoint_ns, checkpoint_id FROM walk
    )"""
_THREE: Final = "(thread_id, checkpoint_ns, checkpoint_id)"
_OF_C: Final = "(c.thread_id, c.checkpoint_ns, c.checkpoint_id)"

_BUT_LATEST: Final = f"""WITH RECURSIVE
    roots{_THREE} AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, max(checkpoint_id) FROM langgraph_checkpoints
        WHERE {_MINE} thread_id IN {_IDS} GROUP BY thread_id, checkpoint_ns
    ), {_KEPT},
    doomed{_THREE} AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM langgraph_checkpoints WHERE {_MINE} thread_id IN {_IDS}
            AND {_THREE} NOT IN (SELECT * FROM kept)
    )"""
_OF_RUNS: Final = f"""WITH RECURSIVE
    named{_THREE} AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM langgraph_checkpoints WHERE {_MINE} run_id IN {_IDS}
    ),
    roots{_THREE} AS MATERIALIZED (
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM named) AS n JOIN langgraph_checkpoints AS c
            ON c.{_MINE} c.thread_id = n.thread_id AND c.checkpoint_ns = n.checkpoint_ns
        WHERE {_OF_C} NOT IN (SELECT * FROM named)
    ), {_KEPT},
    doomed{_THREE} AS MATERIALIZED (SELECT * FROM named WHERE {_THREE} NOT IN (SELECT * FROM kept))"""

# One statement for all three tables. Of the blobs those go that only doomed checkpoints have.
_REMOVE: Final = f""",
    blobs_gone AS (
        DELETE FROM langgraph_blobs AS b USING (
            SELECT c.thread_id, c.checkpoint_ns, v.key, {_KEY}
            FROM doomed AS d JOIN langgraph_checkpoints AS c ON c.{_MINE} {_OF_C} = (d.thread_id, d.checkpoint_ns,
                d.checkpoint_id) {_NAMED} WHERE {_IS_KEY}
            EXCEPT
            SELECT c.thread_id, c.checkpoint_ns, v.key, {_KEY}
            FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM doomed) AS t JOIN langgraph_checkpoints AS c
                ON c.{_MINE} c.thread_id = t.thread_id AND c.checkpoint_ns = t.checkpoint_ns
                AND {_OF_C} NOT IN (SELECT * FROM doomed) {_NAMED} WHERE {_IS_KEY}
        ) AS x(thread_id, checkpoint_ns, channel, blob_key)
        WHERE b.{_MINE} b.thread_id = x.thread_id AND b.checkpoint_ns = x.checkpoint_ns AND b.channel = x.channel
            AND b.blob_key = x.blob_key
    ),
    writes_gone AS (
        DELETE FROM langgraph_writes AS w USING doomed AS d WHERE w.{_MINE} w.thread_id = d.thread_id
            AND w.checkpoint_ns = d.checkpoint_ns AND w.checkpoint_id = d.checkpoint_id
    )
    DELETE FROM langgraph_checkpoints AS c USING doomed AS d WHERE c.{_MINE} c.thread_id = d.thread_id
        AND c.checkpoint_ns = d.checkpoint_ns AND c.checkpoint_id = d.checkpoint_id"""
_KEEP_LATEST: Final = _BUT_LATEST + _REMOVE
_DELETE_RUNS: Final = _OF_RUNS + _REMOVE
_DELETE_THREADS: Final = f"""WITH ids AS MATERIALIZED {_IDS},
    blobs_gone AS (DELETE FROM langgraph_blobs WHERE {_MINE} thread_id IN (SELECT * FROM ids)),
    writes_gone AS (DELETE FROM langgraph_writes WHERE {_MINE} thread_id IN (SELECT * FROM ids))
    DELETE FROM langgraph_checkpoints WHERE {_MINE} thread_id IN (SELECT * FROM ids)"""

_COPY: Final = f"""WITH blobs AS (
        INSERT INTO langgraph_blobs (thread_id, blob_key, checkpoint_ns, channel, type, value)
        SELECT CAST(?2 AS TEXT), blob_key, checkpoint_ns, channel, type, value
        FROM langgraph_blobs WHERE {_MINE} thread_id = ?1 {_REPLACE_BLOB}
    ),
    writes AS (
        INSERT INTO langgraph_writes
            (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value)
        SELECT CAST(?2 AS TEXT), checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value
        FROM langgraph_writes WHERE {_MINE} thread_id = ?1
        ON CONFLICT (tenant, thread_id, checkpoint_ns, checkpoint_id, task_id, idx) DO UPDATE SET
            task_path = excluded.task_path, channel = excluded.channel, type = excluded.type, value = excluded.value
    )
    INSERT INTO langgraph_checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
        run_id, channels, deltas, metadata, type, checkpoint)
    SELECT CAST(?2 AS TEXT), checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, channels, deltas, metadata,
        type, checkpoint
    FROM langgraph_checkpoints WHERE {_MINE} thread_id = ?1 {_REPLACE_CHECKPOINT}"""

# See `_upkeep_sql`; a seed is JSON here.
_HISTORY: Final = f"""
    wanted(channel) AS (SELECT json_array_elements_text(CAST(?3 AS JSON))),
    walk(channel, checkpoint_id, next_id, seed) AS (
        SELECT w.channel, c.checkpoint_id, c.parent_checkpoint_id, {_VALUE_AT.format(channel="w.channel")}
        FROM start CROSS JOIN wanted AS w JOIN langgraph_checkpoints AS c
            ON c.{_MINE} c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = start.parent_checkpoint_id
        UNION
        SELECT k.channel, c.checkpoint_id, c.parent_checkpoint_id, {_VALUE_AT.format(channel="k.channel")}
        FROM walk AS k JOIN langgraph_checkpoints AS c
            ON c.{_MINE} c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = k.next_id
        WHERE k.seed IS NULL
    )
    SELECT 0, NULL, parent_checkpoint_id, NULL, NULL, NULL, NULL FROM start
    UNION ALL
    SELECT 1, walk.channel, walk.checkpoint_id, walk.next_id, NULL, b.type, b.value
    FROM walk LEFT JOIN LATERAL (
        SELECT type, value FROM langgraph_blobs WHERE {_MINE} thread_id = ?1 AND checkpoint_ns = ?2
            AND channel = walk.channel AND blob_key = CAST(walk.seed AS JSON) #>> '{{}}' OFFSET 0) AS b ON TRUE
    WHERE walk.seed IS DISTINCT FROM '0'
    UNION ALL
    SELECT 2, walk.channel, walk.checkpoint_id, walk.next_id, NULL, c.type, c.checkpoint
    FROM walk JOIN langgraph_checkpoints AS c ON c.{_MINE} c.thread_id = ?1 AND c.checkpoint_ns = ?2
        AND c.checkpoint_id = walk.checkpoint_id WHERE walk.seed = '0'
    UNION ALL
    SELECT 3, w.channel, w.checkpoint_id, w.task_id, CAST(json_build_array(w.task_path, w.idx) AS TEXT), w.type, w.value
    FROM walk CROSS JOIN LATERAL (
        SELECT * FROM langgraph_writes WHERE {_MINE} thread_id = ?1 AND checkpoint_ns = ?2
            AND checkpoint_id = walk.checkpoint_id AND channel = walk.channel OFFSET 0) AS w"""
_START: Final = f"""WITH RECURSIVE start AS MATERIALIZED (SELECT parent_checkpoint_id FROM langgraph_checkpoints
        WHERE {_MINE} thread_id = ?1 AND checkpoint_ns = ?2"""
_HISTORY_OF_LATEST: Final = f"{_START} ORDER BY checkpoint_id DESC LIMIT 1), {_HISTORY}"
_HISTORY_OF_ONE: Final = f"{_START} AND checkpoint_id = ?4), {_HISTORY}"

_COUNTERS_NAME: Final = "counters_since_delta_snapshot"

# The type of a value that a serializer gave as text: the column has bytes.
_TEXT: Final = "text\x1f"


def stored(typed: tuple[str, bytes | str]) -> tuple[str, bytes]:
    """Return a serialized value as the tables have it: bytes, whichever of the two the serializer gave."""
    kind, value = typed
    return (_TEXT + kind, value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else (kind, value)


def loaded(kind: str, value: bytes) -> tuple[str, bytes | str]:
    """Return a serialized value as the serializer gave it."""
    return (kind[len(_TEXT) :], value.decode("utf-8", "surrogatepass")) if kind.startswith(_TEXT) else (kind, value)


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
    place = (thread_id, checkpoint_ns, checkpoint_id, parent_id, run_id)
    return _PUT_CHECKPOINT, (*place, channels, _deltas(channels, metadata), metadata, *stored(typed))


def _deltas(channels: str, metadata: str) -> str:
    """Return which of the channels are deltas, as a JSON list: what LangGraph says of it in the metadata."""
    if _COUNTERS_NAME not in metadata:
        return "[]"
    counters = json.loads(metadata).get(_COUNTERS_NAME)
    known = json.loads(channels)
    return json.dumps([name for name in counters if name in known] if isinstance(counters, dict) else [])


def put_blob(blob_key: str, thread_id: str, checkpoint_ns: str, channel: str, typed: tuple[str, bytes]) -> Statement:
    """Return the statement that stores the value that a channel has at a version."""
    return _PUT_BLOB, (blob_key, thread_id, checkpoint_ns, channel, *stored(typed))


def get(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None) -> Statement:
    """Return the query of one checkpoint, the latest where no id is given, with its values and its pending writes."""
    if checkpoint_id is None:
        return _GET_LATEST, (thread_id, checkpoint_ns)
    return _GET_ONE, (thread_id, checkpoint_ns, checkpoint_id)


def get_many(keys: Sequence[Key]) -> Statement:
    """Return the query of these checkpoints, each as `get` has it, in no order."""
    return _GET_MANY, (json.dumps([(key.row, key.thread_id, key.checkpoint_ns, key.checkpoint_id) for key in keys]),)


def find(search: Search, after: Key | None, limit: int) -> Statement:
    """Return the query of the next `limit` keys that a search finds, newest first, after the one given."""
    return find_keys("NULL", [f"tenant = {TENANT}"], search, after, limit)


def delete_threads(thread_ids: Sequence[str]) -> list[Statement]:
    """Return the statement that removes all that belongs to these threads."""
    return [(_DELETE_THREADS, (json.dumps(thread_ids),))]


def keep_latest(thread_ids: Sequence[str]) -> list[Statement]:
    """Return the statement that keeps the latest checkpoint of each namespace, and what its delta channels need."""
    return [(_KEEP_LATEST, (json.dumps(thread_ids),))]


def delete_runs(run_ids: Sequence[str]) -> list[Statement]:
    """Return the statement that removes the checkpoints of these runs, but for what others' delta channels need."""
    return [(_DELETE_RUNS, (json.dumps(run_ids),))]


def copy_thread(source_id: str, target_id: str) -> list[Statement]:
    """Return the statement that copies a whole thread; what the target has under the same key is replaced."""
    return [(_COPY, (source_id, target_id))]


def history(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]) -> Statement:
    """Return the query of what `channels` are rebuilt from at a checkpoint; its rows are those of `_upkeep_sql`."""
    given: tuple[Value, ...] = (thread_id, checkpoint_ns, json.dumps(channels))
    return (_HISTORY_OF_LATEST, given) if checkpoint_id is None else (_HISTORY_OF_ONE, (*given, checkpoint_id))
