"""What the LangGraph savers do to whole threads, and walks along the chain of parents, as SQL; no I/O.

A delta channel has no value of its own at most checkpoints: it is rebuilt from the nearest ancestor that has one and
from the writes of those in between. Which channels are of that kind, LangGraph says in the metadata of the checkpoints
(`counters_since_delta_snapshot`). Nothing here removes an ancestor that a checkpoint which stays needs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from walpool.langgraph._sql import Statement

# The value that a channel has at a checkpoint, as the row of its blob; NULL where it has none there.
_BLOB_AT: Final = """(SELECT b.rowid FROM json_each(c.channel_versions) AS v CROSS JOIN langgraph_blobs AS b
        ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns AND b.channel = v.key AND b.version = v.value
        WHERE v.key = {channel})"""

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
            CASE WHEN EXISTS (SELECT 1 FROM json_each(c.channel_versions) WHERE key = d.channel)
                AND {_BLOB_AT.format(channel="d.channel")} IS NULL THEN c.parent_checkpoint_id END
        FROM roots AS r CROSS JOIN langgraph_checkpoints AS c ON c.thread_id = r.thread_id
            AND c.checkpoint_ns = r.checkpoint_ns AND c.checkpoint_id = r.checkpoint_id
            CROSS JOIN deltas AS d ON d.thread_id = c.thread_id AND d.checkpoint_ns = c.checkpoint_ns
        UNION
        SELECT c.thread_id, c.checkpoint_ns, c.checkpoint_id, k.channel,
            CASE WHEN {_BLOB_AT.format(channel="k.channel")} IS NULL THEN c.parent_checkpoint_id END
        FROM walk AS k CROSS JOIN langgraph_checkpoints AS c ON c.thread_id = k.thread_id
            AND c.checkpoint_ns = k.checkpoint_ns AND c.checkpoint_id = k.next_id
    ),
    kept(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, checkpoint_id FROM roots
        UNION SELECT thread_id, checkpoint_ns, checkpoint_id FROM walk
    )"""

_LATEST: Final = f"""WITH RECURSIVE
    roots(thread_id, checkpoint_ns, checkpoint_id) AS MATERIALIZED (
        SELECT thread_id, checkpoint_ns, max(checkpoint_id) FROM langgraph_checkpoints
        WHERE thread_id IN (SELECT value FROM json_each(?1)) GROUP BY thread_id, checkpoint_ns
    ), {_KEPT},
    doomed(id) AS MATERIALIZED (
        SELECT rowid FROM langgraph_checkpoints WHERE thread_id IN (SELECT value FROM json_each(?1))
            AND (thread_id, checkpoint_ns, checkpoint_id) NOT IN kept
    )"""
_RUNS: Final = f"""WITH RECURSIVE
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

# In this order: what goes with a checkpoint is found through it. Writes whose checkpoint is not there (yet) stay:
# LangGraph stores a task's writes while the checkpoint before them is still under way. Of the blobs those go that only
# a doomed checkpoint names.
_REMOVE: Final = (
    """{doomed} DELETE FROM langgraph_blobs WHERE rowid IN (
        SELECT b.rowid FROM doomed CROSS JOIN langgraph_checkpoints AS c ON c.rowid = doomed.id
            CROSS JOIN json_each(c.channel_versions) AS v CROSS JOIN langgraph_blobs AS b
            ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns
            AND b.channel = v.key AND b.version = v.value
        EXCEPT
        SELECT b.rowid
        FROM (SELECT DISTINCT thread_id, checkpoint_ns FROM langgraph_checkpoints
                WHERE rowid IN (SELECT id FROM doomed)) AS t
            CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = t.thread_id AND c.checkpoint_ns = t.checkpoint_ns AND c.rowid NOT IN doomed
            CROSS JOIN json_each(c.channel_versions) AS v CROSS JOIN langgraph_blobs AS b
            ON b.thread_id = c.thread_id AND b.checkpoint_ns = c.checkpoint_ns
            AND b.channel = v.key AND b.version = v.value
    )""",
    """{doomed} DELETE FROM langgraph_writes WHERE rowid IN (
        SELECT w.rowid FROM doomed CROSS JOIN langgraph_checkpoints AS c ON c.rowid = doomed.id
            CROSS JOIN langgraph_writes AS w ON w.thread_id = c.thread_id
            AND w.checkpoint_ns = c.checkpoint_ns AND w.checkpoint_id = c.checkpoint_id
    )""",
    """{doomed} DELETE FROM langgraph_checkpoints WHERE rowid IN (SELECT id FROM doomed)""",
)
_KEEP_LATEST: Final = tuple(sql.format(doomed=_LATEST) for sql in _REMOVE)
_DELETE_RUNS: Final = tuple(sql.format(doomed=_RUNS) for sql in _REMOVE)

_COPY: Final = (
    """INSERT OR REPLACE INTO langgraph_checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
        run_id, channel_versions, metadata, type, checkpoint)
    SELECT ?2, checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id, channel_versions, metadata, type, checkpoint
    FROM langgraph_checkpoints WHERE thread_id = ?1 ORDER BY rowid""",
    """INSERT OR REPLACE INTO langgraph_blobs (thread_id, checkpoint_ns, channel, version, type, value)
    SELECT ?2, checkpoint_ns, channel, version, type, value
    FROM langgraph_blobs WHERE thread_id = ?1 ORDER BY rowid""",
    """INSERT OR REPLACE INTO langgraph_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value)
    SELECT ?2, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, value
    FROM langgraph_writes WHERE thread_id = ?1 ORDER BY rowid""",
)

# The ancestors of a checkpoint, for each channel as far as the first that has a value of it, and what was written to
# the channel there. Rows of three kinds: where the walk begins, its steps with the value found, and the writes.
_HISTORY: Final = f"""
    wanted(channel) AS (SELECT value FROM json_each(?3)),
    walk(channel, checkpoint_id, next_id, seed) AS MATERIALIZED (
        SELECT w.channel, c.checkpoint_id, c.parent_checkpoint_id, {_BLOB_AT.format(channel="w.channel")}
        FROM start CROSS JOIN wanted AS w CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = start.parent_checkpoint_id
        UNION
        SELECT k.channel, c.checkpoint_id, c.parent_checkpoint_id, {_BLOB_AT.format(channel="k.channel")}
        FROM walk AS k CROSS JOIN langgraph_checkpoints AS c
            ON c.thread_id = ?1 AND c.checkpoint_ns = ?2 AND c.checkpoint_id = k.next_id
        WHERE k.seed IS NULL
    )
    SELECT 0, NULL, parent_checkpoint_id, NULL, NULL, NULL, NULL FROM start
    UNION ALL
    SELECT 1, walk.channel, walk.checkpoint_id, walk.next_id, NULL, b.type, b.value
    FROM walk LEFT JOIN langgraph_blobs AS b ON b.rowid = walk.seed
    UNION ALL
    SELECT 2, w.channel, w.checkpoint_id, w.task_id, json_array(w.task_path, w.idx), w.type, w.value
    FROM walk CROSS JOIN langgraph_writes AS w ON w.thread_id = ?1 AND w.checkpoint_ns = ?2
        AND w.checkpoint_id = walk.checkpoint_id AND w.channel = walk.channel"""
_START: Final = """WITH RECURSIVE start AS MATERIALIZED (SELECT parent_checkpoint_id FROM langgraph_checkpoints
        WHERE thread_id = ?1 AND checkpoint_ns = ?2"""
_HISTORY_OF_LATEST: Final = f"{_START} ORDER BY checkpoint_id DESC LIMIT 1), {_HISTORY}"
_HISTORY_OF_ONE: Final = f"{_START} AND checkpoint_id = ?4), {_HISTORY}"

KIND_START, KIND_STEP, KIND_WRITE = 0, 1, 2


def delete_threads(thread_ids: Sequence[str]) -> list[Statement]:
    """Return the statements that remove all that belongs to these threads."""
    given = (json.dumps(thread_ids),)
    tables = ("langgraph_checkpoints", "langgraph_blobs", "langgraph_writes")
    return [(f"DELETE FROM {table} WHERE thread_id IN (SELECT value FROM json_each(?))", given) for table in tables]


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
    of the channel there); (2, channel, ancestor's id, task id, JSON of task path and index, type, value written).
    """
    if checkpoint_id is None:
        return _HISTORY_OF_LATEST, (thread_id, checkpoint_ns, json.dumps(channels))
    return _HISTORY_OF_ONE, (thread_id, checkpoint_ns, json.dumps(channels), checkpoint_id)
