"""The tables of sessions, and each operation on them as SQL, parameters and what its rows mean; no I/O.

They have the names and columns of the SDK's own `SQLiteSession`, and the items its form, so that a file of the one is a
file of the other: a user may change the class and keep the history, and change it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from walpool.types import Row, Value

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL and its parameters."""

Query: TypeAlias = tuple[str, tuple[Value, ...], Callable[[Sequence[Row]], list[Any]]]
"""SQL, its parameters, and what turns its rows into items."""

NAME: Final = "openai_agents"  # in walpool's table of schema versions

# IF NOT EXISTS: the file may be one of SQLiteSession's.
MIGRATIONS: Final = (
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
)

NO_LIMIT: Final = -1  # https://www.sqlite.org/lang_select.html#limitoffset: a negative LIMIT is none

# As bytes: text that is no UTF-8 is then a row that cannot be decoded, like any other, and fails no whole query.
_LATEST: Final = """SELECT CAST(message_data AS BLOB) FROM agent_messages
    WHERE session_id = ? ORDER BY id DESC LIMIT ?"""

_POP: Final = """DELETE FROM agent_messages
    WHERE id = (SELECT id FROM agent_messages WHERE session_id = ? ORDER BY id DESC LIMIT 1)
    RETURNING CAST(message_data AS BLOB)"""

_TOUCH: Final = """INSERT INTO agent_sessions (session_id) VALUES (?)
    ON CONFLICT (session_id) DO UPDATE SET updated_at = CURRENT_TIMESTAMP"""

_ADD: Final = "INSERT INTO agent_messages (session_id, message_data) VALUES (?, ?)"


def latest_items(session_id: str, limit: int) -> Query:
    """Return the query of the `limit` items that were added last; they come out oldest first."""
    return _LATEST, (session_id, limit), _decode_newest_first


def pop_item(session_id: str) -> Query:
    """Return the statement that takes away the item that was added last: no row where there is none."""
    return _POP, (session_id,), _decode_newest_first


def add_items(session_id: str, items: Sequence[Any]) -> list[Statement]:
    """Return the job that appends items, in their order.

    Raises:
        TypeError: an item has no JSON form.
    """
    # ASCII, as SQLiteSession has it: half a surrogate pair in a model's output has no UTF-8, but has an escape.
    added: list[Statement] = [(_ADD, (session_id, json.dumps(item))) for item in items]
    return [(_TOUCH, (session_id,)), *added]


def clear_session(session_id: str) -> list[Statement]:
    """Return the job that forgets a session and its items."""
    # The items by name too: in a file of SQLiteSession's, which does without foreign keys, they may have no session.
    return [
        ("DELETE FROM agent_messages WHERE session_id = ?", (session_id,)),
        ("DELETE FROM agent_sessions WHERE session_id = ?", (session_id,)),
    ]


def _decode_newest_first(rows: Sequence[Row]) -> list[Any]:
    """Return the items of the rows, oldest first, without those that are no JSON."""
    items = []
    for (data,) in reversed(rows):
        try:
            items.append(json.loads(data))
        except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError too
            continue
    return items
