"""The tables of the CrewAI integration, and each operation on them as SQL and parameters; no I/O.

In a file they have the names and columns of CrewAI's own tables, so that what reads those reads these: a query of one's
own, a file that CrewAI wrote before, and, for checkpoints, `crewai checkpoint` and a restore without walpool.
Checkpoints lie in the file that the user named, with nothing but that table in it; the others lie beside the memory.

On PostgreSQL, where many write at once and nothing numbers the rows, what comes last has the largest `id`: the time,
or one more than the largest that was there, so that clocks which differ change no order. Two that are written at the
same moment have no order; `tie` keeps their keys apart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from walpool.schema import TENANT, TENANT_COLUMN
from walpool.types import Value

Backend: TypeAlias = Literal["sqlite", "postgres"]

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL and its parameters."""

# IF NOT EXISTS: the file may be one of CrewAI's own, with these tables in it.
_FILE_MIGRATIONS: Final = (
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
_FILE_LONG_TERM: Final = (
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

_FILE_CHECKPOINTS: Final = """CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    parent_id TEXT,
    branch TEXT NOT NULL DEFAULT 'main',
    data JSONB NOT NULL
)"""

_NO_LIMIT: Final = 1 << 62  # rows
_MINE: Final = f"tenant = {TENANT} AND"

_SERVER_MIGRATIONS: Final = (
    (
        f"""CREATE TABLE flow_states (
            {TENANT_COLUMN},
            flow_uuid TEXT COLLATE "C" NOT NULL,
            id BIGINT NOT NULL,
            tie TEXT COLLATE "C" NOT NULL DEFAULT '',
            method_name TEXT NOT NULL,
            timestamp TEXT NOT NULL,
            state_json TEXT NOT NULL,
            PRIMARY KEY (tenant, flow_uuid, id, tie)
        )""",
        f"""CREATE TABLE pending_feedback (
            {TENANT_COLUMN},
            flow_uuid TEXT COLLATE "C" NOT NULL,
            context_json TEXT NOT NULL,
            state_json TEXT NOT NULL,
            created_at TEXT NOT NULL,
            PRIMARY KEY (tenant, flow_uuid)
        )""",
        f"""CREATE TABLE latest_kickoff_task_outputs (
            {TENANT_COLUMN},
            task_id TEXT COLLATE "C" NOT NULL,
            task_key TEXT,
            expected_output TEXT,
            output TEXT,
            task_index BIGINT,
            inputs TEXT,
            was_replayed BIGINT,
            timestamp TEXT,
            PRIMARY KEY (tenant, task_id)
        )""",
    ),
)
# An index has no room for a whole task; `load_long_term` compares its first characters by it.
_SERVER_LONG_TERM: Final = (
    (
        f"""CREATE TABLE long_term_memories (
            {TENANT_COLUMN},
            id BIGINT NOT NULL,
            tie TEXT COLLATE "C" NOT NULL DEFAULT '',
            task_description TEXT COLLATE "C",
            metadata TEXT,
            datetime TEXT COLLATE "C",
            score DOUBLE PRECISION,
            PRIMARY KEY (tenant, id, tie)
        )""",
        """CREATE INDEX idx_long_term_memories_task
            ON long_term_memories (tenant, left(task_description, 400), datetime DESC, score)""",
    ),
)
# Not `checkpoints`, which is LangGraph's name for its own.
_SERVER_CHECKPOINTS: Final = (
    (
        f"""CREATE TABLE crewai_checkpoints (
            {TENANT_COLUMN},
            id TEXT COLLATE "C" NOT NULL,
            place BIGINT NOT NULL,
            created_at TEXT NOT NULL,
            parent_id TEXT,
            branch TEXT COLLATE "C" NOT NULL DEFAULT 'main',
            data TEXT NOT NULL,
            PRIMARY KEY (tenant, id)
        )""",
        "CREATE INDEX crewai_checkpoints_place ON crewai_checkpoints (tenant, branch, place DESC, id DESC)",
    ),
)

MIGRATIONS: Final = {"sqlite": _FILE_MIGRATIONS, "postgres": _SERVER_MIGRATIONS}
LONG_TERM_MIGRATIONS: Final = {"sqlite": _FILE_LONG_TERM, "postgres": _SERVER_LONG_TERM}
# The one statement of a file is no migration: nothing but CrewAI's own table is to lie there.
CREATE_CHECKPOINTS: Final = _FILE_CHECKPOINTS
CHECKPOINT_MIGRATIONS: Final = _SERVER_CHECKPOINTS

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

DELETE_OUTPUTS: Final = {
    "sqlite": "DELETE FROM latest_kickoff_task_outputs",
    "postgres": f"DELETE FROM latest_kickoff_task_outputs WHERE tenant = {TENANT}",
}
LOAD_OUTPUTS: Final = {
    "sqlite": f"SELECT {', '.join(KICKOFF_COLUMNS)} FROM latest_kickoff_task_outputs ORDER BY task_index",
    "postgres": f"""SELECT {", ".join(KICKOFF_COLUMNS)} FROM latest_kickoff_task_outputs WHERE tenant = {TENANT}
        ORDER BY task_index NULLS FIRST, task_id""",
}

CLEAR_LONG_TERM: Final = {
    "sqlite": "DELETE FROM long_term_memories",
    "postgres": f"DELETE FROM long_term_memories WHERE tenant = {TENANT}",
}

_REPLACE_OUTPUT: Final = """DO UPDATE SET task_key = excluded.task_key, expected_output = excluded.expected_output,
        output = excluded.output, task_index = excluded.task_index, inputs = excluded.inputs,
        was_replayed = excluded.was_replayed, timestamp = """
_ADD_OUTPUT: Final = {
    "sqlite": f"""INSERT INTO latest_kickoff_task_outputs
        (task_id, task_key, expected_output, output, task_index, inputs, was_replayed) VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (task_id) {_REPLACE_OUTPUT} CURRENT_TIMESTAMP""",
    "postgres": f"""INSERT INTO latest_kickoff_task_outputs
        (task_id, task_key, expected_output, output, task_index, inputs, was_replayed, timestamp)
        VALUES (?, ?, ?, ?, ?, ?, ?, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))
        ON CONFLICT (tenant, task_id) {_REPLACE_OUTPUT} excluded.timestamp""",
}

_SAVE_STATE: Final = {
    "sqlite": "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json) VALUES (?, ?, ?, ?)",
    "postgres": f"""INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json, id, tie)
        SELECT CAST(?1 AS TEXT), CAST(?2 AS TEXT), CAST(?3 AS TEXT), CAST(?4 AS TEXT),
            greatest(coalesce(max(id), 0) + 1, CAST(?5 AS BIGINT)), CAST(?6 AS TEXT)
        FROM flow_states WHERE {_MINE} flow_uuid = ?1""",
}
_LOAD_STATE: Final = {
    "sqlite": "SELECT state_json FROM flow_states WHERE flow_uuid = ? ORDER BY id DESC LIMIT 1",
    "postgres": f"""SELECT state_json FROM flow_states WHERE {_MINE} flow_uuid = ?
        ORDER BY id DESC, tie DESC LIMIT 1""",
}
_SAVE_FEEDBACK: Final = {
    backend: f"""INSERT INTO pending_feedback (flow_uuid, context_json, state_json, created_at) VALUES (?, ?, ?, ?)
        ON CONFLICT {key} DO UPDATE SET context_json = excluded.context_json, state_json = excluded.state_json,
            created_at = excluded.created_at"""
    for backend, key in (("sqlite", "(flow_uuid)"), ("postgres", "(tenant, flow_uuid)"))
}
_LOAD_FEEDBACK: Final = {
    "sqlite": "SELECT state_json, context_json FROM pending_feedback WHERE flow_uuid = ?",
    "postgres": f"SELECT state_json, context_json FROM pending_feedback WHERE {_MINE} flow_uuid = ?",
}
_CLEAR_FEEDBACK: Final = {
    "sqlite": "DELETE FROM pending_feedback WHERE flow_uuid = ?",
    "postgres": f"DELETE FROM pending_feedback WHERE {_MINE} flow_uuid = ?",
}

_PUT_CHECKPOINT: Final = {
    # TEXT, where CrewAI writes JSONB: its reader, `json(data)`, takes both, on every SQLite; JSONB needs SQLite 3.45.
    "sqlite": "INSERT INTO checkpoints (id, created_at, parent_id, branch, data) VALUES (?, ?, ?, ?, ?)",
    "postgres": f"""INSERT INTO crewai_checkpoints (id, created_at, parent_id, branch, data, place)
        SELECT CAST(?1 AS TEXT), CAST(?2 AS TEXT), CAST(?3 AS TEXT), CAST(?4 AS TEXT), CAST(?5 AS TEXT),
            greatest(coalesce(max(place), 0) + 1, CAST(?6 AS BIGINT))
        FROM crewai_checkpoints WHERE {_MINE} branch = ?4""",
}
_LOAD_CHECKPOINT: Final = {
    "sqlite": "SELECT CASE typeof(data) WHEN 'text' THEN data ELSE json(data) END FROM checkpoints WHERE id = ?",
    "postgres": f"SELECT data FROM crewai_checkpoints WHERE {_MINE} id = ?",
}
_PRUNE_CHECKPOINTS: Final = {
    "sqlite": """DELETE FROM checkpoints WHERE branch = ?1 AND rowid NOT IN (
        SELECT rowid FROM checkpoints WHERE branch = ?1 ORDER BY rowid DESC LIMIT ?2)""",
    "postgres": f"""DELETE FROM crewai_checkpoints WHERE {_MINE} branch = ?1 AND id NOT IN (
        SELECT id FROM crewai_checkpoints WHERE {_MINE} branch = ?1 ORDER BY place DESC, id DESC LIMIT ?2)""",
}

_SAVE_LONG_TERM: Final = {
    "sqlite": "INSERT INTO long_term_memories (task_description, metadata, datetime, score) VALUES (?, ?, ?, ?)",
    "postgres": """INSERT INTO long_term_memories (task_description, metadata, datetime, score, id, tie)
        VALUES (?, ?, ?, ?, ?, ?)""",
}
_LOAD_LONG_TERM: Final = {
    "sqlite": """SELECT metadata, datetime, score FROM long_term_memories WHERE task_description = ?
        ORDER BY datetime DESC, score ASC LIMIT ?""",
    "postgres": f"""SELECT metadata, datetime, score FROM long_term_memories
        WHERE {_MINE} left(task_description, 400) = left(?1, 400) AND task_description = ?1
        ORDER BY datetime DESC NULLS LAST, score ASC NULLS FIRST, id, tie LIMIT ?2""",
}


def save_state(backend: Backend, flow_uuid: str, method_name: str, timestamp: str, state_json: str) -> Statement:
    """Return the statement that appends a state to a flow's history."""
    return _SAVE_STATE[backend], (flow_uuid, method_name, timestamp, state_json, *_place(backend))


def load_state(backend: Backend, flow_uuid: str) -> Statement:
    """Return the query of the state that was saved last for a flow: one row, one column, or no row."""
    return _LOAD_STATE[backend], (flow_uuid,)


def save_feedback(backend: Backend, flow_uuid: str, context_json: str, state_json: str, timestamp: str) -> Statement:
    """Return the statement that notes what a flow waits for, in place of what it waited for before."""
    return _SAVE_FEEDBACK[backend], (flow_uuid, context_json, state_json, timestamp)


def load_feedback(backend: Backend, flow_uuid: str) -> Statement:
    """Return the query of what a flow waits for: its state and its context, or no row."""
    return _LOAD_FEEDBACK[backend], (flow_uuid,)


def clear_feedback(backend: Backend, flow_uuid: str) -> Statement:
    """Return the statement that forgets what a flow waited for."""
    return _CLEAR_FEEDBACK[backend], (flow_uuid,)


def add_output(
    backend: Backend,
    task_id: str,
    task_key: str,
    expected_output: str | None,
    output: str,
    task_index: int,
    inputs: str,
    was_replayed: bool,
) -> Statement:
    """Return the statement that stores a task's output, or replaces it; `output` and `inputs` are JSON."""
    return _ADD_OUTPUT[backend], (task_id, task_key, expected_output, output, task_index, inputs, was_replayed)


def update_outputs(backend: Backend, task_index: int, changes: Mapping[str, Value]) -> Statement:
    """Return the statement that changes columns of the outputs at `task_index`; names of no column change nothing."""
    columns = [
        column for column in KICKOFF_COLUMNS if column in changes
    ]  # ours, not the caller's: they become SQL text
    assignments = ", ".join(f"{column} = ?" for column in columns)
    mine = "" if backend == "sqlite" else _MINE
    sql = f"UPDATE latest_kickoff_task_outputs SET {assignments} WHERE {mine} task_index = ?"
    return sql, (*(changes[column] for column in columns), task_index)


def put_checkpoint(
    backend: Backend, checkpoint_id: str, created_at: str, parent_id: str | None, branch: str, data: str
) -> Statement:
    """Return the statement that stores a checkpoint; `data` is JSON."""
    return _PUT_CHECKPOINT[backend], (checkpoint_id, created_at, parent_id, branch, data, *_place(backend)[:1])


def load_checkpoint(backend: Backend, checkpoint_id: str) -> Statement:
    """Return the query of a checkpoint's JSON, whichever way it was stored: one row, one column, or no row."""
    return _LOAD_CHECKPOINT[backend], (checkpoint_id,)


def prune_checkpoints(backend: Backend, branch: str, max_keep: int) -> Statement:
    """Return the statement that keeps the `max_keep` checkpoints of a branch that were stored last; below 0, all."""
    return _PRUNE_CHECKPOINTS[backend], (branch, _limit(max_keep))


def save_long_term(
    backend: Backend, task_description: Value, metadata: Value, datetime: Value, score: Value
) -> Statement:
    """Return the statement that adds what a task taught; `metadata` is JSON."""
    return _SAVE_LONG_TERM[backend], (task_description, metadata, datetime, score, *_place(backend))


def load_long_term(backend: Backend, task_description: str, latest_n: int) -> Statement:
    """Return the query of what a task taught: metadata, datetime and score, the latest first, then the worst first.

    A `latest_n` below 0 asks for all of it.
    """
    return _LOAD_LONG_TERM[backend], (task_description, _limit(latest_n))


def _limit(number: int) -> int:
    """Return a limit as both backends take it: to SQLite one below 0 is none, to PostgreSQL an error."""
    return number if number >= 0 else _NO_LIMIT


def _place(backend: Backend) -> tuple[Value, ...]:
    """Return the time and something random, for a row of PostgreSQL's."""
    return () if backend == "sqlite" else (time.time_ns() // 1000, secrets.token_hex(4))
