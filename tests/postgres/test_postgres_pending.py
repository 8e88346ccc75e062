"""What libpq leaves pending in its layer of TLS, whichever libpq is installed: it is read at once, or after a while.

libpq                                     whoever waits
reads, leaves a rest that is decrypted    looks at the socket, which is empty, and has libpq read again
reads again, leaves another rest          waits for the socket, and looks again when a while has passed
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Caller
from looping import cancel, on_asyncio, on_every_loop, outcome, until
from psycopg.waiting import Ready, Wait

from tests.postgres.pools import INSERT, TABLE, TEXTS, array_of, plain, running
from walpool.postgres import AsyncPostgresPool, PostgresPool, _driving, _pending, _steps, _wire
from walpool.postgres._wire import Connection, Exchange

if TYPE_CHECKING:
    from psycopg.abc import PQGen


class Leaving:
    """libpq's connection as older ones have it: what came is pending until it is asked again so many times."""

    def __init__(self, pgconn: Any, looks: int) -> None:
        self._pgconn = pgconn
        self._looks = looks
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)

    def consume_input(self) -> None:
        if self._left:
            self._left -= 1
        else:
            self._pgconn.consume_input()
            self._left = self._looks

    def is_busy(self) -> int:
        return self._left > 0 or self._pgconn.is_busy()


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function after which whatever comes is pending until libpq was asked so many times more."""

    def leave(looks: int) -> None:
        make = Exchange.__init__

        def made(self: Any, connection: Connection, **how: Any) -> None:
            make(self, connection, **how)
            self._pgconn = Leaving(connection.pgconn, looks)

        monkeypatch.setattr(Exchange, "__init__", made)
        monkeypatch.setattr(_wire, "may_be_pending", lambda pgconn: True)

    return leave


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody look again by the clock: who depends on it waits for longer than a test may take."""
    wait = Connection.wait
    monkeypatch.setattr(_driving, "SLICE", 3600.0)
    monkeypatch.setattr(Connection, "wait", lambda self, gen: wait(self, gen, interval=3600.0))


async def use(pool: AsyncPostgresPool) -> None:
    for lengths in [[100] * 99, [300_000], [1] * 2000]:
        rows = await outcome(pool.fetch(TEXTS, (array_of(lengths),)))
        assert [len(text) for (text,) in rows] == lengths
    await outcome(asyncio.gather(*(pool.execute(INSERT, (str(n),)) for n in range(20))))
    async with pool.transaction() as tx:
        await outcome(tx.execute("UPDATE t SET n = 1"))
    assert [row async for row in pool.stream("SELECT n FROM t", chunk=3)] == [(1,)] * 20


@on_every_loop
async def test_what_is_pending_is_read_at_once(
    postgres_url: str, leaving: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_look(monkeypatch)
    leaving(1)
    async with AsyncPostgresPool(postgres_url, readers=2) as pool:
        await outcome(pool.script(TABLE))
        await use(pool)


@on_every_loop
async def test_what_is_pending_once_more_is_read_after_a_while(
    postgres_url: str, leaving: Callable[[int], None]
) -> None:
    leaving(2)
    async with AsyncPostgresPool(postgres_url, readers=2) as pool:
        await outcome(pool.script(TABLE))
        await outcome(asyncio.gather(*(pool.execute(INSERT, (str(n),)) for n in range(20))))
        assert len(await outcome(pool.fetch(TEXTS, (array_of([100] * 99),)))) == 99
        reads = [asyncio.create_task(pool.fetch("SELECT pg_sleep(60)")) for _ in range(2)]
        with plain(postgres_url) as other:
            await until(lambda: len(running(other, "pg_sleep(60)")) == 2)
        for read in reads:
            await cancel(read)


@pytest.mark.parametrize("looks", [1, 2])
def test_what_is_pending_is_read_by_threads(
    postgres_url: str, leaving: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    if looks == 1:
        never_look(monkeypatch)
    leaving(looks)

    def work() -> list[int]:
        with PostgresPool(postgres_url, readers=2) as pool:
            pool.script(TABLE)
            pool.executemany(INSERT, [(str(n),) for n in range(20)])
            with pool.stream("SELECT n FROM t", chunk=15) as rows:
                counts = [len(list(rows))]
            return [*counts, len(pool.fetch(TEXTS, (array_of([100] * 99),)))]

    assert Caller(work).outcome() == [20, 99]


def like_psycopgs(pgconn: Any, looks: int) -> PQGen[str]:
    """Return what stands for psycopg's own generators: it reads only when it is told that there is something to read.

    Args:
        pgconn: a connection on which an answer is on its way.
        looks: how often it wants to be told, once the answer was read.
    """
    for _ in range(1 + looks):
        while not ((yield Wait.R) or Ready.NONE) & Ready.R:
            continue
        pgconn.consume_input()
    return "all"


@pytest.mark.parametrize(("looks", "interval"), [(1, 3600.0), (3, 0.01)])
def test_psycopgs_own_waits_see_what_is_pending(postgres_url: str, looks: int, interval: float) -> None:
    with plain(postgres_url) as connection:
        connection.pgconn.send_query(b"SELECT 1")
        generator = _pending.seeing(connection.pgconn, like_psycopgs(connection.pgconn, looks))
        assert Caller(partial(connection.wait, generator, interval)).outcome() == "all"
        connection.pgconn.finish()


@on_asyncio
async def test_connection_in_the_clear_is_looked_at_only_when_something_came(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked for what cannot be pending")

    told: list[Ready] = []
    advance = _driving.Drive.advance
    monkeypatch.setattr(_driving.Drive, "advance", lambda self, ready: (told.append(ready), advance(self, ready)))
    for owner, name in ((_steps, "told"), (_wire, "seeing")):
        monkeypatch.setattr(owner, name, refuse)
    async with AsyncPostgresPool(postgres_url) as pool:
        await outcome(pool.script(TABLE))
        await use(pool)
        await outcome(pool.fetch("SELECT pg_sleep(?)", (4 * _driving.SLICE,)))
    assert Ready.R in told
    assert Ready.NONE not in told
