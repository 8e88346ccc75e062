"""The LangGraph cache as SQL: its table, and each operation as SQL, parameters and a decoder; no I/O.

A namespace is kept as the JSON list of its labels, which may hold any character: no two are the same text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from walpool.langgraph._steps import Read, Statement
from walpool.schema import TENANT, TENANT_COLUMN, Migration
from walpool.types import Row

Backend: TypeAlias = Literal["sqlite", "postgres"]

NAME: Final = "langgraph_cache"  # in walpool's table of schema versions

MIGRATIONS: Final[Mapping[Backend, Sequence[Migration]]] = {
    "sqlite": (
        (
            """CREATE TABLE langgraph_cache (
                id INTEGER PRIMARY KEY,
                namespace TEXT NOT NULL,
                key TEXT NOT NULL,
                expires_at INTEGER,
                encoding TEXT NOT NULL,
                value BLOB NOT NULL,
                UNIQUE (namespace, key)
            ) STRICT""",
            "CREATE INDEX langgraph_cache_expires ON langgraph_cache (expires_at) WHERE expires_at IS NOT NULL",
        ),
    ),
    "postgres": (
        (
            f"""CREATE TABLE langgraph_cache (
                {TENANT_COLUMN},
                namespace TEXT COLLATE "C" NOT NULL,
                key TEXT COLLATE "C" NOT NULL,
                expires_at BIGINT,
                encoding TEXT NOT NULL,
                value BYTEA NOT NULL,
                PRIMARY KEY (tenant, namespace, key)
            )""",
            """CREATE INDEX langgraph_cache_expires ON langgraph_cache (tenant, expires_at)
                WHERE expires_at IS NOT NULL""",
        ),
    ),
}

_SWEPT_AT_ONCE: Final = 100  # expired entries that a write deletes on its way, at most

_MINE: Final = f"tenant = {TENANT}"
_GET: Final = {
    "sqlite": """SELECT c.namespace, c.key, c.encoding, c.value
        FROM json_each(?) AS wanted CROSS JOIN langgraph_cache AS c
            ON c.namespace = wanted.value ->> 0 AND c.key = wanted.value ->> 1
        WHERE c.expires_at IS NULL OR c.expires_at > ?""",
    "postgres": f"""SELECT c.namespace, c.key, c.encoding, c.value
        FROM json_array_elements(CAST(? AS JSON)) AS wanted(value) JOIN langgraph_cache AS c
            ON c.{_MINE} AND c.namespace = wanted.value ->> 0 AND c.key = wanted.value ->> 1
        WHERE c.expires_at IS NULL OR c.expires_at > ?""",
}
_PUT: Final = {
    backend: f"""INSERT INTO langgraph_cache (namespace, key, expires_at, encoding, value) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT {key} DO UPDATE SET expires_at = excluded.expires_at, encoding = excluded.encoding,
            value = excluded.value"""
    for backend, key in (("sqlite", "(namespace, key)"), ("postgres", "(tenant, namespace, key)"))
}
_SWEEP: Final = {
    "sqlite": """DELETE FROM langgraph_cache WHERE id IN (
        SELECT id FROM langgraph_cache WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)""",
    # What somebody else is writing is left to the next sweep: nobody waits for it.
    "postgres": f"""DELETE FROM langgraph_cache WHERE {_MINE} AND (namespace, key) IN (
        SELECT namespace, key FROM langgraph_cache WHERE {_MINE} AND expires_at <= ? ORDER BY expires_at LIMIT ?
        FOR UPDATE SKIP LOCKED)""",
}
_CLEAR: Final = {
    "sqlite": "DELETE FROM langgraph_cache",
    "postgres": f"DELETE FROM langgraph_cache WHERE {_MINE}",
}
_CLEAR_SOME: Final = {
    "sqlite": "DELETE FROM langgraph_cache WHERE namespace IN (SELECT value FROM json_each(?))",
    "postgres": f"""DELETE FROM langgraph_cache WHERE {_MINE}
        AND namespace IN (SELECT json_array_elements_text(CAST(? AS JSON)))""",
}

FullKey = tuple[tuple[str, ...], str]


class Entry(NamedTuple):
    """One entry to put: its value as the serializer made it, and its TTL in seconds."""

    namespace: tuple[str, ...]
    key: str
    encoding: str
    value: bytes
    ttl: float | None


def get(backend: Backend, keys: Iterable[FullKey]) -> Read[dict[FullKey, tuple[str, bytes]]]:
    """Return the read of those entries that are there and have not expired: encoding and value of each."""
    wanted = json.dumps([(_encode(namespace), key) for namespace, key in keys])

    def decode(rows: list[Row]) -> dict[FullKey, tuple[str, bytes]]:
        return {(tuple(json.loads(row[0])), row[1]): (row[2], row[3]) for row in rows}

    return Read(_GET[backend], (wanted, _now()), decode)


def put(backend: Backend, entries: Iterable[Entry]) -> list[Statement]:
    """Return the statements that put the entries, and delete some of those that have expired."""
    now = _now()
    statements: list[Statement] = []
    # In the order of their keys: jobs of other processes that write the same ones wait for this one, and none for none.
    for entry in sorted(entries, key=lambda entry: (entry.namespace, entry.key)):
        expires_at = None if entry.ttl is None else now + int(entry.ttl * 1_000_000)
        values = (_encode(entry.namespace), entry.key, expires_at, entry.encoding, entry.value)
        statements.append((_PUT[backend], values))
    if statements:
        statements.append((_SWEEP[backend], (now, _SWEPT_AT_ONCE)))
    return statements


def clear(backend: Backend, namespaces: Sequence[Sequence[str]] | None) -> Statement:
    """Return the statement that deletes the entries of these namespaces, not of those below them; None for all."""
    if namespaces is None:
        return _CLEAR[backend], ()
    encoded = json.dumps([_encode(namespace) for namespace in namespaces])
    return _CLEAR_SOME[backend], (encoded,)


def _encode(namespace: Sequence[str]) -> str:
    return json.dumps(list(namespace))


def _now() -> int:
    """Return the time as the table has it: microseconds since 1970."""
    return time.time_ns() // 1000
