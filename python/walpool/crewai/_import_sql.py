"""CrewAI's own tables as an import reads them, and what it reads and writes of walpool's; no I/O.

In a file both have the same names and columns (`_sql`), so what is asked of both sides stands here for each backend,
and a source is asked what a file is. Times are read as text: a column that CrewAI declares DATETIME makes numbers of
texts that look like some.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, TypeAlias

from walpool.crewai._sql import Backend, Statement
from walpool.schema import TENANT
from walpool.types import Value

Query: TypeAlias = Mapping[Backend, str]
"""One question, as each backend takes it."""

OWN_TABLES: Final[Query] = {
    "sqlite": "SELECT name FROM sqlite_schema WHERE type = 'table'",
    "postgres": "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND pg_table_is_visible(oid)",
}
OWN_MARK: Final = "walpool_schema"
"""A table that only walpool's own databases have."""

FLOW_COLUMNS: Final = ("flow_uuid", "method_name", "timestamp", "state_json")
FEEDBACK_COLUMNS: Final = ("flow_uuid", "context_json", "state_json", "created_at")
OUTPUT_COLUMNS: Final = ("task_id", "expected_output", "output", "task_index", "inputs", "was_replayed", "timestamp")
LONG_TERM_COLUMNS: Final = ("task_description", "metadata", "datetime", "score")
CHECKPOINT_COLUMNS: Final = ("id", "created_at", "parent_id", "branch", "data")

_MINE: Final = f"tenant = {TENANT}"

FLOWS: Final = "SELECT DISTINCT flow_uuid FROM flow_states ORDER BY 1"
_STATES: Final = "SELECT id, method_name, CAST(timestamp AS TEXT), state_json FROM flow_states WHERE"
STATES: Final[Query] = {
    "sqlite": f"{_STATES} flow_uuid = ? ORDER BY id",
    "postgres": f"{_STATES} {_MINE} AND flow_uuid = ? ORDER BY id, tie",
}
_FEEDBACK: Final = "SELECT context_json, state_json, CAST(created_at AS TEXT) FROM pending_feedback WHERE"
FEEDBACK: Final[Query] = {
    "sqlite": f"{_FEEDBACK} flow_uuid = ?",
    "postgres": f"{_FEEDBACK} {_MINE} AND flow_uuid = ?",
}
FEEDBACK_FLOWS: Final = "SELECT flow_uuid FROM pending_feedback ORDER BY 1"

_OUTPUTS: Final = """SELECT task_id, {task_key}, expected_output, output, task_index, inputs, was_replayed,
    CAST(timestamp AS TEXT) FROM latest_kickoff_task_outputs"""
_OUTPUTS_IN_ORDER: Final = "ORDER BY task_index, task_id"
OUTPUTS: Final = f"{_OUTPUTS} {_OUTPUTS_IN_ORDER}"
OWN_OUTPUTS: Final[Query] = {
    "sqlite": OUTPUTS.format(task_key="task_key"),
    "postgres": f"{_OUTPUTS.format(task_key='task_key')} WHERE {_MINE} {_OUTPUTS_IN_ORDER}",
}
_PUT_OUTPUT: Final = """INSERT INTO latest_kickoff_task_outputs
    (task_id, task_key, expected_output, output, task_index, inputs, was_replayed, timestamp)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

LONG_TERM: Final = "SELECT id, task_description, metadata, datetime, score FROM long_term_memories ORDER BY id"
_OWN_LONG_TERM: Final = "SELECT task_description, metadata, datetime, score FROM long_term_memories"
OWN_LONG_TERM: Final[Query] = {
    "sqlite": f"{_OWN_LONG_TERM} ORDER BY id",
    "postgres": f"{_OWN_LONG_TERM} WHERE {_MINE} ORDER BY id, tie",
}

CHECKPOINT_KEYS: Final[Query] = {
    "sqlite": "SELECT id, created_at FROM checkpoints ORDER BY rowid",
    "postgres": f"SELECT id, created_at FROM crewai_checkpoints WHERE {_MINE} ORDER BY place, id",
}
NEWEST_CHECKPOINT: Final[Query] = {
    "sqlite": "SELECT max(created_at) FROM checkpoints",
    "postgres": f'SELECT max(created_at COLLATE "C") FROM crewai_checkpoints WHERE {_MINE}',
}
CHECKPOINT: Final = "SELECT id, created_at, parent_id, branch, data FROM checkpoints WHERE id = ?"
OWN_CHECKPOINT: Final[Query] = {
    "sqlite": """SELECT id, created_at, parent_id, branch,
        CASE typeof(data) WHEN 'text' THEN data ELSE json(data) END FROM checkpoints WHERE id = ?""",
    "postgres": f"""SELECT id, created_at, parent_id, branch, data FROM crewai_checkpoints
        WHERE {_MINE} AND id = ?""",
}
AS_JSON: Final = "SELECT CASE WHEN json_valid(?1, 8) THEN json(?1) END"
"""The text of SQLite's own binary JSON; NULL if it is not in order. Only SQLite knows it."""

_PUT_CHECKPOINT: Final = """INSERT INTO checkpoints (id, created_at, parent_id, branch, data)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""
# Pruning keeps the checkpoints with the highest rowids: what is older than all that is there goes below it.
_PUT_CHECKPOINT_BELOW: Final = """INSERT INTO checkpoints (rowid, id, created_at, parent_id, branch, data)
    VALUES ((SELECT coalesce(min(rowid), 0) - 1 FROM checkpoints), ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""
# And on PostgreSQL those of a branch with the highest places, which begin at the time.
_PUT_ON_SERVER: Final = """INSERT INTO crewai_checkpoints (id, created_at, parent_id, branch, data, place)
    SELECT CAST(?1 AS TEXT), CAST(?2 AS TEXT), CAST(?3 AS TEXT), CAST(?4 AS TEXT), CAST(?5 AS TEXT), {place}
    FROM crewai_checkpoints WHERE {mine} AND branch = ?4 ON CONFLICT (tenant, id) DO NOTHING"""
_NEXT_PLACE: Final = _PUT_ON_SERVER.format(
    mine=_MINE, place="greatest(coalesce(max(place), 0) + 1, CAST(?6 AS BIGINT))"
)
_PLACE_BELOW: Final = _PUT_ON_SERVER.format(mine=_MINE, place="coalesce(min(place), CAST(?6 AS BIGINT)) - 1")


def put_output(row: tuple[Value, ...]) -> Statement:
    """Return the statement that stores a row of `OUTPUTS`."""
    return _PUT_OUTPUT, row


def put_checkpoint(backend: Backend, row: tuple[Value, ...], *, is_newest: bool) -> Statement:
    """Return the statement that stores a row of `OWN_CHECKPOINT`, above or below all that are there."""
    if backend == "sqlite":
        return (_PUT_CHECKPOINT if is_newest else _PUT_CHECKPOINT_BELOW), row
    return (_NEXT_PLACE if is_newest else _PLACE_BELOW), (*row, time.time_ns() // 1000)
