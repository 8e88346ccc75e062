"""CrewAI's own tables as an import reads them, and what it reads and writes of walpool's; no I/O.

Both have the same names and columns (`_sql`), so most of these are asked of both sides.
"""

from __future__ import annotations

from typing import Final

from walpool.crewai._sql import Statement
from walpool.types import Value

OWN_TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table'"
OWN_MARK: Final = "walpool_schema"
"""A table that only walpool's own databases have."""

FLOW_COLUMNS: Final = ("flow_uuid", "method_name", "timestamp", "state_json")
FEEDBACK_COLUMNS: Final = ("flow_uuid", "context_json", "state_json", "created_at")
OUTPUT_COLUMNS: Final = ("task_id", "expected_output", "output", "task_index", "inputs", "was_replayed", "timestamp")
LONG_TERM_COLUMNS: Final = ("task_description", "metadata", "datetime", "score")
CHECKPOINT_COLUMNS: Final = ("id", "created_at", "parent_id", "branch", "data")

FLOWS: Final = "SELECT DISTINCT flow_uuid FROM flow_states ORDER BY 1"
STATES: Final = "SELECT id, method_name, timestamp, state_json FROM flow_states WHERE flow_uuid = ? ORDER BY id"
FEEDBACK: Final = "SELECT context_json, state_json, created_at FROM pending_feedback WHERE flow_uuid = ?"
FEEDBACK_FLOWS: Final = "SELECT flow_uuid FROM pending_feedback ORDER BY 1"

OUTPUTS: Final = """SELECT task_id, {task_key}, expected_output, output, task_index, inputs, was_replayed, timestamp
    FROM latest_kickoff_task_outputs ORDER BY task_index, task_id"""
_PUT_OUTPUT: Final = """INSERT INTO latest_kickoff_task_outputs
    (task_id, task_key, expected_output, output, task_index, inputs, was_replayed, timestamp)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

LONG_TERM: Final = "SELECT id, task_description, metadata, datetime, score FROM long_term_memories ORDER BY id"
OWN_LONG_TERM: Final = "SELECT task_description, metadata, datetime, score FROM long_term_memories ORDER BY id"

CHECKPOINT_KEYS: Final = "SELECT id, created_at FROM checkpoints ORDER BY rowid"
NEWEST_CHECKPOINT: Final = "SELECT max(created_at) FROM checkpoints"
CHECKPOINT: Final = "SELECT id, created_at, parent_id, branch, data FROM checkpoints WHERE id = ?"
OWN_CHECKPOINT: Final = """SELECT id, created_at, parent_id, branch,
    CASE typeof(data) WHEN 'text' THEN data ELSE json(data) END FROM checkpoints WHERE id = ?"""
AS_JSON: Final = "SELECT CASE WHEN json_valid(?1, 8) THEN json(?1) END"
"""The text of SQLite's own binary JSON; NULL if it is not in order."""

_PUT_CHECKPOINT: Final = """INSERT INTO checkpoints (id, created_at, parent_id, branch, data)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""
# Pruning keeps the checkpoints with the highest rowids: what is older than all that is there goes below it.
_PUT_CHECKPOINT_BELOW: Final = """INSERT INTO checkpoints (rowid, id, created_at, parent_id, branch, data)
    VALUES ((SELECT coalesce(min(rowid), 0) - 1 FROM checkpoints), ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"""


def put_output(row: tuple[Value, ...]) -> Statement:
    """Return the statement that stores a row of `OUTPUTS`."""
    return _PUT_OUTPUT, row


def put_checkpoint(row: tuple[Value, ...], *, is_newest: bool) -> Statement:
    """Return the statement that stores a row of `OWN_CHECKPOINT`, above or below all that are there."""
    return (_PUT_CHECKPOINT if is_newest else _PUT_CHECKPOINT_BELOW), row
