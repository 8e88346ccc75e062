"""Why no connection came about, by libpq's words: whether trying again may help, and what to do.

libpq gives no SQLSTATE then. What the server says is in its own language, so what is not known here counts as passing.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg

from walpool.errors import ConfigError, Error, OperationalError
from walpool.postgres._errors import mapped

__all__ = ["has_no_room", "no_room", "unreached"]

_NO_ROOM: Final = re.compile(
    "too many (?:clients|connections)|connection slots are reserved|no more connections allowed"
)
_UNSENT: Final = re.compile(
    "^connection is bad: (?:invalid |definition of service|service file|syntax error in service|could not match)"
)
"""What libpq refuses before it sends anything."""
_LASTING: Final = (
    (r"password authentication failed", "look at the user and the password (PGPASSWORD, the password file)"),
    (r"no password supplied", "give one by PGPASSWORD, the password file or a service file"),
    (r"server does not support SSL", "sslmode=disable in the URL goes on without, in plain text"),
    (r"authentication failed for user|no pg_hba\.conf entry|pg_hba\.conf rejects", ""),
    (r"(?:role|database) \".*\" does not exist|is not permitted to log in|permission denied for database", ""),
    (r"certificate verify failed|root certificate file|server certificate for|certificate file", ""),
    (r"invalid value for parameter|unrecognized configuration parameter", ""),
)
_ADVICE_ON_ROOM: Final = "lower readers, or put PgBouncer between: walpool doctor says how many one process opens"
_EACH: Final = "\n- host: "  # psycopg's, before what it says of each of several hosts


def unreached(error: psycopg.Error, name: str) -> Error:
    """Return the error of walpool that says why there is no connection.

    Args:
        error: psycopg's.
        name: of the database, without its password.
    """
    what = f"connecting to {name}"
    said = str(error)
    if _UNSENT.search(said):
        return ConfigError(str(mapped(error, what)))
    if _NO_ROOM.search(said):
        return mapped(error, what, place=f": {_ADVICE_ON_ROOM}")
    advice = _lasting(said)
    failure = mapped(error, what, place=f": {advice}" if advice else "")
    if advice is not None:
        failure.retryable = False
    return failure


def has_no_room(error: Error) -> bool:
    """Return whether a connection failed because the server has as many as it takes."""
    return error.retryable and _NO_ROOM.search(str(error)) is not None


def no_room(said: str) -> OperationalError:
    """Return such an error once more, for one who waited in vain for another's connection."""
    error = OperationalError(said)
    error.retryable = True
    return error


def _lasting(said: str) -> str | None:
    """Return what to do about what will be so the next time too; None if it may be otherwise, on one host at least."""
    _, *each = said.split(_EACH)
    advice = None
    for attempt in each or [said]:
        for pattern, advised in _LASTING:
            if re.search(pattern, attempt):
                advice = advised
                break
        else:
            return None
    return advice
