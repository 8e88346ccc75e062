"""The tables of sessions, and each operation on them as SQL, parameters and what its rows mean; no I/O.

In a file they have the names and columns of the SDK's own `SQLiteSession`, and the items its form, so that a file of
the one is a file of the other: a user may change the class and keep the history, and change it back.

On PostgreSQL, where many write at once, the row of a session is what its writers wait for, and it numbers the items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from walpool.schema import TENANT, TENANT_COLUMN
from walpool.types import Row, Value

Backend: TypeAlias = Literal["sqlite", "postgres"]

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL and its parameters."""

Query: TypeAlias = tuple[str, tuple[Value, ...], Callable[[Sequence[Row]], list[Any]]]
"""SQL, its parameters, and what turns its rows into items."""

NAME: Final = "openai_agents"  # in walpool's table of schema versions

MIGRATIONS: Final = {
    # IF NOT EXISTS: the file may be one of SQLiteSession's.
    "sqlite": (
        (
            """CREATE TABLE IF NOT EXISTS agent_sessions (
                session_id TEXT PRIMARY KEY,
                created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
                updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
            )""",
            # AUTOINCREMENT: what was popped never lends its place to what comes later.
            """CREATE TABLE IF NOT EXISTS agent_messages (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                session_id TEXT NOT NULL,
                message_data TEXT NOT NULL,
                created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
                FOREIGN KEY (session_id) REFERENCES agent_sessions (session_id) ON DELETE CASCADE
            )""",
            "CREATE INDEX IF NOT EXISTS idx_agent_messages_session_id ON agent_messages (session_id, id)",
        ),
    ),
    # Times in microseconds since 1970. No IF NOT EXISTS: tables of these names may be the SDK's SQLAlchemySession's,
    # whose columns are others. Items are numbered within their session.
    "postgres": (
        (
            f"""CREATE TABLE agent_sessions (
                {TENANT_COLUMN},
                session_id TEXT COLLATE "C" NOT NULL,
                created_at BIGINT NOT NULL,
                updated_at BIGINT NOT NULL,
                last_id BIGINT NOT NULL DEFAULT 0,
                PRIMARY KEY (tenant, session_id)
            )""",
            f"""CREATE TABLE agent_messages (
                {TENANT_COLUMN},
                session_id TEXT COLLATE "C" NOT NULL,
                id BIGINT NOT NULL,
                message_data TEXT NOT NULL,
                created_at BIGINT NOT NULL,
                PRIMARY KEY (tenant, session_id, id)
            )""",
        ),
    ),
}

NO_LIMIT: Final = 1 << 62  # items; a number that both backends take

_LATEST: Final = {
    # As bytes: text that is no UTF-8 is then a row that cannot be decoded, like any other, and fails no whole query.
    "sqlite": """SELECT CAST(message_data AS BLOB) FROM agent_messages
        WHERE session_id = ? ORDER BY id DESC LIMIT ?""",
    "postgres": f"""SELECT message_data FROM agent_messages
        WHERE tenant = {TENANT} AND session_id = ? ORDER BY id DESC LIMIT ?""",
}

_POP: Final = """DELETE FROM agent_messages
    WHERE id = (SELECT id FROM agent_messages WHERE session_id = ? ORDER BY id DESC LIMIT 1)
    RETURNING CAST(message_data AS BLOB)"""
# Of two that pop at once the second looks for the newest when the first has committed.
_LOCK: Final = f"SELECT 1 FROM agent_sessions WHERE tenant = {TENANT} AND session_id = ? FOR UPDATE"
_POP_LOCKED: Final = f"""DELETE FROM agent_messages WHERE tenant = {TENANT} AND session_id = ?1 AND id = (
    SELECT id FROM agent_messages WHERE tenant = {TENANT} AND session_id = ?1 ORDER BY id DESC LIMIT 1)
    RETURNING message_data"""

_TOUCH: Final = """INSERT INTO agent_sessions (session_id) VALUES (?)
    ON CONFLICT (session_id) DO UPDATE SET updated_at = CURRENT_TIMESTAMP"""
_ADD: Final = "INSERT INTO agent_messages (session_id, message_data) VALUES (?, ?)"

# The numbers follow the clock, and each other where the clock does not: they go on rising when a session is cleared,
# or was copied from a file, whose numbers are small ones. Under the row's lock, so that no two are the same.
_NUMBER: Final = """INSERT INTO agent_sessions (session_id, created_at, updated_at, last_id) VALUES (?1, ?2, ?2, ?2)
    ON CONFLICT (tenant, session_id) DO UPDATE SET updated_at = excluded.updated_at,
        last_id = greatest(agent_sessions.last_id + ?3, excluded.last_id)"""
_ADD_NUMBERED: Final = f"""INSERT INTO agent_messages (session_id, id, message_data, created_at)
    SELECT session_id, last_id - ?, CAST(? AS TEXT), updated_at FROM agent_sessions
    WHERE tenant = {TENANT} AND session_id = ?"""

_CLEAR: Final = {
    # The items by name too: in a file of SQLiteSession's, which does without foreign keys, they may have no session.
    "sqlite": (
        "DELETE FROM agent_messages WHERE session_id = ?",
        "DELETE FROM agent_sessions WHERE session_id = ?",
    ),
    # The session first: whoever adds to it has its row.
    "postgres": (
        f"DELETE FROM agent_sessions WHERE tenant = {TENANT} AND session_id = ?",
        f"DELETE FROM agent_messages WHERE tenant = {TENANT} AND session_id = ?",
    ),
}


def latest_items(backend: Backend, session_id: str, limit: int) -> Query:
    """Return the query of the `limit` items that were added last; they come out oldest first."""
    return _LATEST[backend], (session_id, limit), _decode_newest_first


def pop_item(backend: Backend, session_id: str) -> tuple[list[Statement], Callable[[Sequence[Row]], list[Any]]]:
    """Return the job that takes away the item that was added last, and what turns its last rows, if any, into it."""
    if backend == "sqlite":
        return [(_POP, (session_id,))], _decode_newest_first
    return [(_LOCK, (session_id,)), (_POP_LOCKED, (session_id,))], _decode_newest_first


def add_items(backend: Backend, session_id: str, items: Sequence[Any]) -> list[Statement]:
    """Return the job that appends items, in their order.

    Raises:
        TypeError: an item has no JSON form.
    """
    # ASCII, as SQLiteSession has it: half a surrogate pair in a model's output has no UTF-8, but has an escape, and so
    # has the NUL that PostgreSQL cannot store.
    texts = [json.dumps(item) for item in items]
    if backend == "sqlite":
        return [(_TOUCH, (session_id,)), *((_ADD, (session_id, text)) for text in texts)]
    numbered: Statement = (_NUMBER, (session_id, time.time_ns() // 1000, len(texts)))
    last = len(texts) - 1
    return [numbered, *((_ADD_NUMBERED, (last - place, text, session_id)) for place, text in enumerate(texts))]


def clear_session(backend: Backend, session_id: str) -> list[Statement]:
    """Return the job that forgets a session and its items."""
    return [(sql, (session_id,)) for sql in _CLEAR[backend]]


def _decode_newest_first(rows: Sequence[Row]) -> list[Any]:
    """Return the items of the rows, oldest first, without those that are no JSON."""
    items = []
    for (data,) in reversed(rows):
        try:
            items.append(json.loads(data))
        except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError too
            continue
    return items
