"""What tests of the PostgreSQL pool do to the world around it: see into the server, hold a row, cut connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually

from walpool.postgres import AsyncPostgresPool, PostgresPool

UNHARMED = {"jobs_waiting": 0, "bytes_waiting": 0, "readers_out": 0, "reads_waiting": 0, "leases_out": 0}
TABLE = "CREATE TABLE t (a text PRIMARY KEY, n bigint NOT NULL DEFAULT 0)"
INSERT = "INSERT INTO t (a) VALUES (?)"
TEXTS = "SELECT repeat('x', length::int) FROM unnest(CAST(? AS text)::int[]) AS length"


def array_of(lengths: list[int]) -> str:
    """Return the parameter of TEXTS, whose rows are of these lengths."""
    return "{" + ",".join(map(str, lengths)) + "}"


def kept(pool: PostgresPool) -> list[str]:
    return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY a")]


def stopping_slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have requests to stop a statement wait; return what is set when one begins, and what lets it go on."""
    cancel_safe = psycopg.Connection.cancel_safe
    asked, go_on = threading.Event(), threading.Event()

    def slow(self: Any, **kwargs: Any) -> None:
        asked.set()
        go_on.wait(WITHIN)
        cancel_safe(self, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "cancel_safe", slow)
    return asked, go_on


def refuse_threads(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an engine's threads fail whoever asks one of them."""

    def refuse(*_: object) -> None:
        raise AssertionError("a thread was asked")

    for threads in (engine.hands.steps, engine.hands.alone):
        monkeypatch.setattr(threads, "submit", refuse)


def assert_unharmed(pool: PostgresPool) -> None:
    """Everything was given back: by the figures, and because a write, a transaction and a read find their way."""
    eventually(lambda: UNHARMED.items() <= pool.stats().items())
    pool.execute("CREATE TABLE IF NOT EXISTS t_unharmed (a int)", timeout=WITHIN)
    with pool.transaction(timeout=WITHIN) as tx:
        tx.execute("INSERT INTO t_unharmed VALUES (1)")
    assert pool.fetchval("SELECT count(*) > 0 FROM t_unharmed", timeout=WITHIN) is True


@contextmanager
def plain(url: str, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """Lend a connection of psycopg's own: somebody else on the server."""
    with psycopg.connect(url, autocommit=True, **options) as connection:
        yield connection


@contextmanager
def row_locked(url: str, a: str) -> Iterator[psycopg.Connection[Any]]:
    """Let somebody else hold a row of t."""
    with plain(url) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE t SET n = n WHERE a = %s", (a,))
        yield connection
        with contextlib.suppress(psycopg.Error):  # the test ended it
            connection.execute("ROLLBACK")


def others(connection: psycopg.Connection[Any], where: str = "true") -> list[int]:
    """Return the processes of the pools' connections to the database."""
    query = f"""SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND application_name = 'walpool' AND {where}"""
    return [pid for (pid,) in connection.execute(query)]  # type: ignore[arg-type]


def terminate(connection: psycopg.Connection[Any], where: str = "true") -> int:
    """End connections of the pools' to the database, as the server's keeper may at any time; return how many."""
    pids = others(connection, where)
    for pid in pids:
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    return len(pids)


def until_running(connection: psycopg.Connection[Any], text: str, count: int = 1) -> None:
    """Return once so many connections of the pools' run a statement that holds the text."""
    eventually(lambda: len(running(connection, text)) == count)


def running(connection: psycopg.Connection[Any], text: str) -> list[int]:
    return others(connection, f"state = 'active' AND position('{text}' in query) > 0")


def until_waiting_for_a_lock(connection: psycopg.Connection[Any], count: int = 1) -> None:
    eventually(lambda: len(others(connection, "wait_event_type = 'Lock'")) == count)


@contextmanager
def groups_held(url: str, pool: PostgresPool) -> Iterator[None]:
    """Keep every connection that groups run on busy, so that jobs queue up inside the block."""
    from walpool.postgres._line import LEADERS

    key = 4711
    with plain(url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (key,))
        callers = []
        for number in range(LEADERS):
            sql = f"SELECT set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared({key}), {number}"
            with pool_paused(pool, sql, callers):
                eventually(partial(_has_waiters, connection, number + 1))
        try:
            yield
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (key,))
    for caller in callers:
        caller.outcome()


@contextmanager
def pool_paused(pool: PostgresPool, sql: str, callers: list[Caller]) -> Iterator[None]:
    callers.append(Caller(partial(pool.batch, ["SELECT set_config('lock_timeout', '0', true)", sql])))
    yield


def _has_waiters(connection: psycopg.Connection[Any], count: int) -> bool:
    return len(others(connection, "wait_event = 'advisory'")) == count


def queue_up(pool: PostgresPool, calls: list[Callable[[], object]]) -> list[Caller]:
    """Start a thread for each call, in this order in the line; the groups must be held."""
    callers = []
    for call in calls:
        length = pool.stats()["jobs_waiting"]
        callers.append(Caller(call))
        eventually(partial(_is_longer, pool, length))
    return callers


def _is_longer(pool: PostgresPool, length: float) -> bool:
    return pool.stats()["jobs_waiting"] > length


class End(Protocol):
    """One end of a connection."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Proxy:
    """A way to the server that a test may cut: it looks at what the client sends, and tells the bytes to `look`.

    `look` is called with each piece before it is sent on; if it returns "before" the connection is cut in its place, if
    "after" it is sent on and cut before anything comes back. "hold" keeps it, and all after it, until `let_go`.
    """

    def __init__(self, url: str, look: Callable[[bytes], str | None] = lambda data: None) -> None:
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self._target = f"{query['host']}/.s.PGSQL.{query['port']}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[End] = []
        self.look = look
        self.cuts = 0
        port = self._listener.getsockname()[1]
        self.url = f"{parts.scheme}://{quote(parts.username or '')}@127.0.0.1:{port}{parts.path}?sslmode=disable"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            _shut(each)
        for thread in list(self._threads):
            thread.join(WITHIN)

    def has_closed_the_newest(self) -> bool:
        """Return whether nobody is left at this end of the connection that was opened last."""
        return not any(thread.is_alive() for thread in self._threads[-2:])

    def _accept(self) -> None:
        while True:
            try:
                client = self._end(self._listener.accept()[0])
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                server.close()
                continue
            self._open += [client, server]
            for work in (partial(self._forward, client, server), partial(self._back, server, client)):
                thread = threading.Thread(target=work, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _end(self, client: socket.socket) -> End:
        return client

    def _forward(self, client: End, server: End) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                found = self.look(data)
                if found:
                    self.cuts += 1
                if found == "before":
                    break
                if found == "after":
                    _shut(client)  # first: nothing of the answer gets through
                server.sendall(data)
                if found == "after":
                    break
        _shut(client)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _back(self, server: socket.socket, client: End) -> None:
        with contextlib.suppress(OSError):
            while data := self._answer(server):
                client.sendall(data)
        _shut(client)
        _shut(server)
        client.close()
        server.close()

    def _answer(self, server: socket.socket) -> bytes:
        return server.recv(1 << 16)


def _shut(end: End) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


async def warm(pool: AsyncPostgresPool) -> None:
    """Have the connections opened that two groups and two reads need."""
    await asyncio.gather(*(pool.execute("SELECT pg_sleep(0.05)") for _ in range(8)))
    await asyncio.gather(*(pool.fetchval("SELECT pg_sleep(0.05)") for _ in range(4)))


async def nothing_is_out(pool: AsyncPostgresPool) -> bool:
    """Return whether no task holds a connection, or waits for one."""
    stats = await pool.stats()
    return stats["leases_out"] == stats["readers_out"] == stats["leases_waiting"] == stats["reads_waiting"] == 0
