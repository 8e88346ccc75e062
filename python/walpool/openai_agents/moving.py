"""The tables of sessions, as a file and PostgreSQL have them in common: for `walpool migrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from walpool.migrating.sets import Face, Part, Set, integer, text, versioned
from walpool.openai_agents import _sql

__all__ = ["SETS"]

# Times: a file has them as CURRENT_TIMESTAMP writes them, perhaps with a fraction behind; PostgreSQL in microseconds.
_MICROS: Final = """CAST(strftime('%s', substr({0}, 1, 19)) AS INTEGER) * 1000000
    + CAST(substr(substr({0}, 21) || '000000', 1, 6) AS INTEGER)"""
_TEXT: Final = """strftime('%Y-%m-%d %H:%M:%S', given.{0} / 1000000, 'unixepoch')
    || CASE WHEN given.{0} % 1000000 THEN printf('.%06d', given.{0} % 1000000) ELSE '' END"""

_SESSIONS: Final = Part(
    name="agent_sessions",
    columns=(text("session_id"), integer("created_at"), integer("updated_at")),
    key=("session_id",),
    sqlite=Face(
        reads={name: _MICROS.format(name) for name in ("created_at", "updated_at")},
        writes={name: _TEXT.format(name) for name in ("created_at", "updated_at")},
    ),
)

# The items of a session are one thing, in their order. Their numbers are kept on the way to PostgreSQL, where what
# follows has larger ones; a file, where no two sessions may have one number, numbers them anew.
_MESSAGES: Final = Part(
    name="agent_messages",
    columns=(text("session_id"), integer("id", compared=False), text("message_data"), integer("created_at")),
    key=("session_id",),
    is_grouped=True,
    sqlite=Face(
        reads={"created_at": _MICROS.format("created_at")},
        writes={"created_at": _TEXT.format("created_at")},
        lacks=("id",),
        order=("session_id", "id"),
    ),
    postgres=Face(order=("session_id", "id")),
)

SETS: Final[Mapping[str, Sequence[Set]]] = {
    _sql.NAME: (Set(parts=(_SESSIONS, _MESSAGES), schemas=versioned(_sql.NAME, _sql.MIGRATIONS)),)
}

"""The set by the name that `walpool_schema` has for it."""
