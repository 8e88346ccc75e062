"""`probe`: what a server is and offers, as far as it matters to walpool. For `walpool doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar

from walpool.errors import DatabaseError
from walpool.postgres._engine import transactions
from walpool.postgres._line import LEADERS

if TYPE_CHECKING:
    from walpool.postgres.pool import PostgresPool

__all__ = ["Server", "connections", "probe"]

T = TypeVar("T")

_ROUNDS: Final = 20
_FLAVOURS: Final = {"CockroachDB": "CockroachDB", "-YB-": "YugabyteDB", "Redshift": "Redshift"}
_SETTINGS: Final = ("fsync", "full_page_writes", "max_connections", "server_encoding", "synchronous_commit")
_EXTENSIONS: Final = """SELECT name, installed_version FROM pg_available_extensions WHERE name IN ('citus', 'vector')"""
_ROLE: Final = "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
_TLS: Final = "SELECT coalesce((SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), '')"
_WORDS: Final = "SELECT to_tsvector('simple', 'a b') @@ websearch_to_tsquery('simple', 'b')"


@dataclass(frozen=True, slots=True)
class Server:
    """What was found; None is what the server did not say."""

    version: str
    """Its own words."""
    flavour: str
    """PostgreSQL, or what speaks its protocol: Citus, CockroachDB, YugabyteDB."""
    settings: dict[str, str]
    """Those that bear on durability and on the number of connections."""
    vector: str | None
    """The version of pgvector; empty if it is there and not created in this database; None where it is not there."""
    has_words: bool
    """Whether it has full-text search."""
    is_superuser: bool | None
    bypasses_rls: bool | None
    can_create: bool | None
    """Whether this role may make tables."""
    tls: str | None
    """The version of TLS; empty without."""
    is_pooled: bool
    """Whether a pooler stands between."""
    round_trip_ms: float


def probe(pool: PostgresPool) -> Server:
    """Return what the server of a pool is and offers; each question that it refuses is left unanswered."""
    version = str(pool.fetchval("SELECT version()"))
    extensions = dict(_asked(lambda: pool.fetch(_EXTENSIONS)) or [])
    role = _asked(lambda: pool.fetchone(_ROLE)) or (None, None)
    return Server(
        version=version,
        flavour="Citus" if extensions.get("citus") else _flavour(version),
        settings={name: value for name in _SETTINGS if (value := _asked(lambda: _setting(pool, name))) is not None},  # noqa: B023
        vector=(extensions["vector"] or "") if "vector" in extensions else None,
        has_words=bool(_asked(lambda: pool.fetchval(_WORDS))),
        is_superuser=role[0],
        bypasses_rls=role[1],
        can_create=_asked(lambda: pool.fetchval("SELECT has_schema_privilege(current_schema(), 'CREATE')")),
        tls=_asked(lambda: pool.fetchval(_TLS)),
        is_pooled=pool.is_pooled,
        round_trip_ms=_round_trip_ms(pool),
    )


def connections(readers: int) -> int:
    """Return how many connections one process opens at most, with so many readers."""
    return readers + LEADERS + transactions(readers)


def _asked(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except DatabaseError:
        return None


def _setting(pool: PostgresPool, name: str) -> Any:
    return pool.fetchval("SELECT current_setting(?)", (name,))


def _flavour(version: str) -> str:
    return next((name for mark, name in _FLAVOURS.items() if mark in version), "PostgreSQL")


def _round_trip_ms(pool: PostgresPool) -> float:
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        pool.fetchval("SELECT 1")
        taken.append((time.perf_counter() - began) * 1000)
    return median(taken)
