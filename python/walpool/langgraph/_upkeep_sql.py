"""What the LangGraph savers do to whole threads, and walks along the chain of parents, as SQL; no I/O.

A delta channel has no value of its own at most checkpoints: it is rebuilt from the nearest ancestor that has one and
from the writes of those in between. Which channels are of that kind, LangGraph says in the metadata of the checkpoints
(`counters_since_delta_snapshot`). Nothing here removes an ancestor that a checkpoint which stays needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from walpool.langgraph._sql import REPLACE_BLOB, REPLACE_CHECKPOINT, Statement

# Where the value of a channel is at a checkpoint (see `_sql`), and whether it has a version there.
_VALUE_AT: Final = "(SELECT value FROM json_each(c.channels) WHERE key = {channel})"
_IS_AT: Final = "EXISTS (SELECT 1 FROM json_each(c.channels) WHERE key = {channel})"

# `roots` are checkpoints that stay: (thread_id, checkpoint_ns, checkpoint_id). UNION, not UNION ALL: a chain of parents
# that bites its own tail ends, and chains that meet are walked once.
_KEPT: Final = f"""
    deltas(thread_id, checkpoint_ns, channel) AS MATERIALIZED (
        SELECT DISTINCT c.thread_id, c.checkpoint_ns, j.key
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM roots) AS r CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = r.thread_id AND c.checkpoint_ns = r.checkpoint_ns
            CROSS JOIN json_each(c.metadata, '$.counters_since_delta_snapshot') AS j
    ),
    walk(thread_id, checkpoint_ns, checkpoint_id, channel, next_id) AS (
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, d.channel,
            CASE WHEN {_IS_AT.format(channel="d.channel")} AND {_VALUE_AT.format(channel="d.channel")} IS NULL
                THEN c.parent_checkpoint_id END
        FROM roots AS r CROSS JOIN langgraph_checkpoints AS c ON c.thread_id = r.thread_id
            AND c.checkpoint_ns = r.checkpoint_ns AND c.checkpoint_id = r.checkpoint_id
            CROSS JOIN deltas AS d ON d.thread_id = c.thread_id AND d.checkpoint_ns = c.checkpoint_ns
        UNION
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, k.channel,
            CASE WHEN {_VALUE_AT.format(channel="k.channel")} IS NULL THEN c.parent_checkpoint_id END
        FROM walk AS k CROSS JOIN langgraph_checkpoints AS c ON c.thread_id = k.thread_id
            AND c.checkpoint_ns = k.checkpoint_ns AND c.checkpoint_id = k.next_id
    ),
    kept(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM roots
        UNION SELECT thread_id, checkpoint_ns, checkpoint_id FROM walk
    )"""

_BUT_LATEST: Final = f"""WITH RECURSIVE
    roots(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, max(checkpoint_id) FROM langgraph_checkpoints
        WHERE thread_id IN (SELECT value FROM json_each(?1)) GROUP BY thread_id, checkpoint_ns
    ), {_KEPT},
    doomed(id) AS MATERIALIZED (
        SELECT rowid FROM langgraph_checkpoints WHERE thread_id IN (SELECT value FROM json_each(?1))
            AND (thread_id, checkpoint_ns, checkpoint_id) NOT IN kept
    )"""
_OF_RUNS: Final = f"""WITH RECURSIVE
    named(id, thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT rowid, thread_id, checkpoint_ns, checkpoint_id FROM langgraph_checkpoints
        WHERE run_id IN (SELECT value FROM json_each(?1))
    ),
    roots(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM named) AS n CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = n.thread_id AND c.checkpoint_ns = n.checkpoint_ns
        WHERE c.rowid NOT IN (SELECT id FROM named)
    ), {_KEPT},
    doomed(id) AS MATERIALIZED (
        SELECT id FROM named WHERE (thread_id, checkpoint_ns, checkpoint_id) NOT IN kept
    )"""
_OF_THREADS: Final = """WITH doomed(id) AS MATERIALIZED (
        SELECT rowid FROM langgraph_checkpoints WHERE thread_id IN (SELECT value FROM json_each(?1))
    )"""

# In this order: what goes with a checkpoint is found through it. Of the blobs those go that only doomed checkpoints
# have. Writes whose checkpoint is not there (yet) stay: LangGraph stores a task's writes while the checkpoint before
# them may still be under way.
_REMOVE: Final = (
    """{doomed} DELETE FROM langgraph_blobs WHERE (blob_key, thread_id, checkpoint_ns, channel) IN (
        SELECT v.value, c.thread_id, c.checkpoint_ns, v.key
        FROM doomed CROSS JOIN langgraph_checkpoints AS c ON c.rowid = doomed.id
            CROSS JOIN json_each(c.channels) AS v WHERE v.type = 'text'
        EXCEPT
        SELECT v.value, c.thread_id, c.checkpoint_ns, v.key
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM langgraph_checkpoints
                WHERE rowid IN (SELECT id FROM doomed)) AS t
            CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = t.thread_id AND c.checkpoint_ns = t.checkpoint_ns AND c.rowid NOT IN doomed
            CROSS JOIN json_each(c.channels) AS v WHERE v.type = 'text'
    )""",
    """{doomed} DELETE FROM langgraph_writes WHERE (checkpoint_id, thread_id, checkpoint_ns) IN (
        SELECT c.checkpoint_id, c.thread_id, c.checkpoint_ns
        FROM doomed CROSS JOIN langgraph_checkpoints AS c ON c.rowid = doomed.id
    )""",
    """{doomed} DELETE FROM langgraph_checkpoints WHERE rowid IN (SELECT id FROM doomed)""",
)
_KEEP_LATEST: Final = tuple(sql.format(doomed=_BUT_LATEST) for sql in _REMOVE)
_DELETE_RUNS: Final = tuple(sql.format(doomed=_OF_RUNS) for sql in _REMOVE)
_DELETE_THREADS: Final = (
    *(sql.format(doomed=_OF_THREADS) for sql in _REMOVE),
    "DELETE FROM langgraph_blobs WHERE stray IN (SELECT value FROM json_each(?1))",
    "DELETE FROM langgraph_writes WHERE early IN (SELECT value FROM json_each(?1))",
)

# `WHERE true` keeps the parser from taking ON for a join's.
_COPY: Final = (
    f"""INSERT INTO langgraph_checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
        run_id, channels, metadata, type, checkpoint)
    SELECT ?2, checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, channels, metadata, type, checkpoint
    FROM langgraph_checkpoints WHERE thread_id = ?1 ORDER BY rowid {REPLACE_CHECKPOINT}""",
    f"""INSERT INTO langgraph_blobs (blob_key, thread_id, checkpoint_ns, channel, type, value)
    SELECT b.blob_key, ?2, b.checkpoint_ns, b.channel, b.type, b.value
    FROM (SELECT DISTINCT v.value, c.checkpoint_ns, v.key FROM langgraph_checkpoints AS c
            CROSS JOIN json_each(c.channels) AS v WHERE c.thread_id = ?1 AND v.type = 'text') AS k
        CROSS JOIN langgraph_blobs AS b ON b.blob_key = k.value AND b.thread_id = ?1
        AND b.checkpoint_ns = k.checkpoint_ns AND b.channel = k.key WHERE true {REPLACE_BLOB}""",
    """INSERT OR REPLACE INTO langgraph_writes
        (checkpoint_id, thread_id, checkpoint_ns, task_id, idx, task_path, channel, early, type, value)
    SELECT w.checkpoint_id, ?2, w.checkpoint_ns, w.task_id, w.idx, w.task_path, w.channel, NULL, w.type, w.value
    FROM langgraph_checkpoints AS c CROSS JOIN langgraph_writes AS w ON w.checkpoint_id = c.checkpoint_id
        AND w.thread_id = ?1 AND w.checkpoint_ns = c.checkpoint_ns WHERE c.thread_id = ?1
    UNION ALL
    SELECT checkpoint_id, ?2, checkpoint_ns, task_id, idx, task_path, channel, ?2, type, value
    FROM langgraph_writes WHERE early = ?1""",
)

# The ancestors of a checkpoint, for each channel as far as the first that has a value of it, and what was written to
# the channel there. Rows by kind: where the walk begins; its steps, the last of them with the value found, or with the
# checkpoint in which it lies; and the writes.
_HISTORY: Final = f"""
    wanted(channel) AS (SELECT value FROM json_each(?3)),
    walk(channel, checkpoint_id, next_id, seed) AS MATERIALIZED (
        SELECT w.channel, c.checkpoint_id, c.parent_checkpoint_id, {_VALUE_AT.format(channel="w.channel")}
        FROM start CROSS JOIN wanted AS w CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = start.parent_checkpoint_id
        UNION
        SELECT k.channel, c.checkpoint_id, c.parent_checkpoint_id, {_VALUE_AT.format(channel="k.channel")}
        FROM walk AS k CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = k.next_id
        WHERE k.seed IS NULL
    )
    SELECT 0, NULL, parent_checkpoint_id, NULL, NULL, NULL, NULL FROM start
    UNION ALL
    SELECT 1, walk.channel, walk.checkpoint_id, walk.next_id, NULL, b.type, b.value
    FROM walk LEFT JOIN langgraph_blobs AS b ON b.blob_key = walk.seed AND b.thread_id = ?1 AND b.checkpoint_ns = ?2
        AND b.channel = walk.channel WHERE walk.seed IS NOT 0
    UNION ALL
    SELECT 2, walk.channel, walk.checkpoint_id, walk.next_id, NULL, c.type, c.checkpoint
    FROM walk CROSS JOIN langgraph_checkpoints AS c ON c.thread_id = ?1 AND c.checkpoint_ns = ?2
        AND c.checkpoint_id = walk.checkpoint_id WHERE walk.seed = 0
    UNION ALL
    SELECT 3, w.channel, w.checkpoint_id, w.task_id, json_array(w.task_path, w.idx), w.type, w.value
    FROM walk CROSS JOIN langgraph_writes AS w ON w.checkpoint_id = walk.checkpoint_id AND w.thread_id = ?1
        AND w.checkpoint_ns = ?2 AND w.channel = walk.channel"""
_START: Final = """WITH RECURSIVE start AS MATERIALIZED (SELECT parent_checkpoint_id FROM langgraph_checkpoints
        WHERE thread_id = ?1 AND checkpoint_ns = ?2"""
_HISTORY_OF_LATEST: Final = f"{_START} ORDER BY checkpoint_id DESC LIMIT 1), {_HISTORY}"
_HISTORY_OF_ONE: Final = f"{_START} AND checkpoint_id = ?4), {_HISTORY}"

KIND_START, KIND_STEP, KIND_INLINED, KIND_WRITE = 0, 1, 2, 3


def delete_threads(thread_ids: Sequence[str]) -> list[Statement]:
    """Return the statements that remove all that belongs to these threads."""
    return [(sql, (json.dumps(thread_ids),)) for sql in _DELETE_THREADS]


def keep_latest(thread_ids: Sequence[str]) -> list[Statement]:
    """Return the statements that keep the latest checkpoint of each namespace, and what its delta channels need."""
    return [(sql, (json.dumps(thread_ids),)) for sql in _KEEP_LATEST]


def delete_runs(run_ids: Sequence[str]) -> list[Statement]:
    """Return the statements that remove the checkpoints of these runs, but for what others' delta channels need."""
    return [(sql, (json.dumps(run_ids),)) for sql in _DELETE_RUNS]


def copy_thread(source_id: str, target_id: str) -> list[Statement]:
    """Return the statements that copy a whole thread; what the target has under the same key is replaced."""
    return [(sql, (source_id, target_id)) for sql in _COPY]


def history(thread_id: str, checkpoint_ns: str, checkpoint_id: str | None, channels: Sequence[str]) -> Statement:
    """Return the query of what `channels` are rebuilt from at a checkpoint, the latest where no id is given.

    Rows, by kind: (0, None, id of the first ancestor); (1, channel, ancestor's id, its parent's id, None, type, value
    of the channel there); (2, ...) as 1, with the checkpoint in which the value lies; (3, channel, ancestor's id, task
    id, JSON of task path and index, type, value written).
    """
    if checkpoint_id is None:
        return _HISTORY_OF_LATEST, (thread_id, checkpoint_ns, json.dumps(channels))
    return _HISTORY_OF_ONE, (thread_id, checkpoint_ns, json.dumps(channels), checkpoint_id)
