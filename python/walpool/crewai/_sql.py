"""The tables of the CrewAI integration, and each operation on them as SQL and parameters; no I/O.

They have the names and columns of CrewAI's own tables, so that what reads those reads these: a query of one's own, a
file that CrewAI wrote before, and, for checkpoints, `crewai checkpoint` and a restore without walpool. Checkpoints lie
in the file that the user named, with nothing but that table in it; the others lie beside the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from walpool.types import Value

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL and its parameters."""

# IF NOT EXISTS: the file may be one of CrewAI's own, with these tables in it.
MIGRATIONS: Final = (
    (
        """CREATE TABLE IF NOT EXISTS flow_states (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            flow_uuid TEXT NOT NULL,
            method_name TEXT NOT NULL,
            timestamp DATETIME NOT NULL,
            state_json TEXT NOT NULL
        )""",
        "CREATE INDEX IF NOT EXISTS idx_flow_states_uuid ON flow_states (flow_uuid)",
        """CREATE TABLE IF NOT EXISTS pending_feedback (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            flow_uuid TEXT NOT NULL UNIQUE,
            context_json TEXT NOT NULL,
            state_json TEXT NOT NULL,
            created_at DATETIME NOT NULL
        )""",
        """CREATE TABLE IF NOT EXISTS latest_kickoff_task_outputs (
            task_id TEXT PRIMARY KEY,
            task_key TEXT,
            expected_output TEXT,
            output JSON,
            task_index INTEGER,
            inputs JSON,
            was_replayed BOOLEAN,
            timestamp DATETIME DEFAULT CURRENT_TIMESTAMP
        )""",
    ),
)

# What CrewAI up to 1.9.3 learned from its tasks; a set of tables of its own, as its file may hold nothing else.
LONG_TERM_MIGRATIONS: Final = (
    (
        """CREATE TABLE IF NOT EXISTS long_term_memories (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            task_description TEXT,
            metadata TEXT,
            datetime TEXT,
            score REAL
        )""",
        """CREATE INDEX IF NOT EXISTS idx_long_term_memories_task
            ON long_term_memories (task_description, datetime DESC, score)""",
    ),
)

CREATE_CHECKPOINTS: Final = """CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    parent_id TEXT,
    branch TEXT NOT NULL DEFAULT 'main',
    data JSONB NOT NULL
)"""

KICKOFF_COLUMNS: Final = (
    "task_id",
    "task_key",
    "expected_output",
    "output",
    "task_index",
    "inputs",
    "was_replayed",
    "timestamp",
)

DELETE_OUTPUTS: Final = "DELETE FROM latest_kickoff_task_outputs"
LOAD_OUTPUTS: Final = f"SELECT {', '.join(KICKOFF_COLUMNS)} FROM latest_kickoff_task_outputs ORDER BY task_index"

CLEAR_LONG_TERM: Final = "DELETE FROM long_term_memories"

_ADD_OUTPUT: Final = """INSERT INTO latest_kickoff_task_outputs
    (task_id, task_key, expected_output, output, task_index, inputs, was_replayed) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (task_id) DO UPDATE SET task_key = excluded.task_key, expected_output = excluded.expected_output,
        output = excluded.output, task_index = excluded.task_index, inputs = excluded.inputs,
        was_replayed = excluded.was_replayed, timestamp = CURRENT_TIMESTAMP"""

# TEXT, where CrewAI writes JSONB: its reader, `json(data)`, takes both, on every SQLite; JSONB needs SQLite 3.45.
_PUT_CHECKPOINT: Final = "INSERT INTO checkpoints (id, created_at, parent_id, branch, data) VALUES (?, ?, ?, ?, ?)"
_PRUNE_CHECKPOINTS: Final = """DELETE FROM checkpoints WHERE branch = ?1 AND rowid NOT IN (
    SELECT rowid FROM checkpoints WHERE branch = ?1 ORDER BY rowid DESC LIMIT ?2)"""


def save_state(flow_uuid: str, method_name: str, timestamp: str, state_json: str) -> Statement:
    """Return the statement that appends a state to a flow's history."""
    sql = "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json) VALUES (?, ?, ?, ?)"
    return sql, (flow_uuid, method_name, timestamp, state_json)


def load_state(flow_uuid: str) -> Statement:
    """Return the query of the state that was saved last for a flow: one row, one column, or no row."""
    return "SELECT state_json FROM flow_states WHERE flow_uuid = ? ORDER BY id DESC LIMIT 1", (flow_uuid,)


def save_feedback(flow_uuid: str, context_json: str, state_json: str, timestamp: str) -> Statement:
    """Return the statement that notes what a flow waits for, in place of what it waited for before."""
    sql = """INSERT INTO pending_feedback (flow_uuid, context_json, state_json, created_at) VALUES (?, ?, ?, ?)
        ON CONFLICT (flow_uuid) DO UPDATE SET context_json = excluded.context_json, state_json = excluded.state_json,
            created_at = excluded.created_at"""
    return sql, (flow_uuid, context_json, state_json, timestamp)


def load_feedback(flow_uuid: str) -> Statement:
    """Return the query of what a flow waits for: its state and its context, or no row."""
    return "SELECT state_json, context_json FROM pending_feedback WHERE flow_uuid = ?", (flow_uuid,)


def clear_feedback(flow_uuid: str) -> Statement:
    """Return the statement that forgets what a flow waited for."""
    return "DELETE FROM pending_feedback WHERE flow_uuid = ?", (flow_uuid,)


def add_output(
    task_id: str,
    task_key: str,
    expected_output: str | None,
    output: str,
    task_index: int,
    inputs: str,
    was_replayed: bool,
) -> Statement:
    """Return the statement that stores a task's output, or replaces it; `output` and `inputs` are JSON."""
    return _ADD_OUTPUT, (task_id, task_key, expected_output, output, task_index, inputs, was_replayed)


def update_outputs(task_index: int, changes: Mapping[str, Value]) -> Statement:
    """Return the statement that changes columns of the outputs at `task_index`; names of no column change nothing."""
    columns = [
        column for column in KICKOFF_COLUMNS if column in changes
    ]  # ours, not the caller's: they become SQL text
    assignments = ", ".join(f"{column} = ?" for column in columns)
    sql = f"UPDATE latest_kickoff_task_outputs SET {assignments} WHERE task_index = ?"
    return sql, (*(changes[column] for column in columns), task_index)


def put_checkpoint(checkpoint_id: str, created_at: str, parent_id: str | None, branch: str, data: str) -> Statement:
    """Return the statement that stores a checkpoint; `data` is JSON."""
    return _PUT_CHECKPOINT, (checkpoint_id, created_at, parent_id, branch, data)


def load_checkpoint(checkpoint_id: str) -> Statement:
    """Return the query of a checkpoint's JSON, whichever way it was stored: one row, one column, or no row."""
    sql = "SELECT CASE typeof(data) WHEN 'text' THEN data ELSE json(data) END FROM checkpoints WHERE id = ?"
    return sql, (checkpoint_id,)


def prune_checkpoints(branch: str, max_keep: int) -> Statement:
    """Return the statement that keeps the `max_keep` checkpoints of a branch that were stored last."""
    return _PRUNE_CHECKPOINTS, (branch, max_keep)


def save_long_term(task_description: Value, metadata: Value, datetime: Value, score: Value) -> Statement:
    """Return the statement that adds what a task taught; `metadata` is JSON."""
    sql = "INSERT INTO long_term_memories (task_description, metadata, datetime, score) VALUES (?, ?, ?, ?)"
    return sql, (task_description, metadata, datetime, score)


def load_long_term(task_description: str, latest_n: int) -> Statement:
    """Return the query of what a task taught: metadata, datetime and score, the latest first, then the worst first."""
    sql = """SELECT metadata, datetime, score FROM long_term_memories WHERE task_description = ?
        ORDER BY datetime DESC, score ASC LIMIT ?"""
    return sql, (task_description, latest_n)
