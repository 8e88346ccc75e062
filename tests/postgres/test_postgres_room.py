"""A server that has no room for as many connections as a pool would open: callers take turns on those that there are.

call           pool                     server, one connection at most
read           opens a reader           takes it
write          opens one for the group  refuses: too many connections
               closes the idle reader   ends it
               opens one for the group  takes it
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator

import pytest
from helpers import Caller
from looping import run

from benches.postgres_server import PostgresServer
from tests.postgres.plugin import ROLE, new_database
from walpool import errors, get_async_pool, get_pool
from walpool.postgres import PostgresPool
from walpool.postgres._room import Room

CALLERS = 24


@pytest.fixture(params=[1, 2, 5])
def crowded_url(own_postgres_server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a database whose user may have so many connections, and a table t."""
    user = f"crowded_{secrets.token_hex(4)}"
    server = own_postgres_server
    server.execute(f"CREATE ROLE {user} LOGIN CONNECTION LIMIT {request.param}")
    with new_database(server) as url:
        with get_pool(url) as pool:
            pool.script(f"CREATE TABLE t (a int); GRANT ALL ON t TO {user}")
        yield url.replace(f"{ROLE}@", f"{user}@", 1)
    server.execute(f"DROP ROLE {user}")


def use(pool: PostgresPool, number: int) -> None:
    if number % 3 == 0:
        pool.fetchval("SELECT count(*) FROM t")
    elif number % 3 == 1:
        pool.execute("INSERT INTO t VALUES (?)", (number,))
    else:
        pool.run(lambda tx: tx.execute("INSERT INTO t VALUES (?)", (number,)))


def test_every_call_of_many_threads_is_served(crowded_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with get_pool(crowded_url, readers=8) as pool:
        callers = [Caller(lambda number=number: use(pool, number)) for number in range(CALLERS)]  # type: ignore[misc]
        assert [caller.outcome() for caller in callers] == [None] * CALLERS
        assert pool.fetchval("SELECT count(*) FROM t") == CALLERS * 2 // 3
        assert pool.stats().get("errors_OperationalError", 0) == 0
    assert all("no more connections for the" in record.message for record in caplog.records)


def test_every_call_of_many_tasks_is_served(crowded_url: str) -> None:
    async def insert(tx: object) -> None:
        await tx.execute("INSERT INTO t VALUES (1)")  # type: ignore[attr-defined]

    async def main() -> None:
        async with get_async_pool(crowded_url, readers=8) as pool:
            calls = [
                (
                    pool.fetchval("SELECT 1")
                    if number % 3 == 0
                    else pool.execute("INSERT INTO t VALUES (1)")
                    if number % 3 == 1
                    else pool.run(insert)  # type: ignore[arg-type]
                )
                for number in range(CALLERS)
            ]
            await asyncio.gather(*calls)
            assert await pool.fetchval("SELECT count(*) FROM t") == CALLERS * 2 // 3

    run(main())


@pytest.mark.parametrize("crowded_url", [1], indirect=True)
def test_call_that_waits_in_vain_says_what_the_server_said(crowded_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "walpool")
    with get_pool(crowded_url, checkout_timeout=0.5, write_timeout=0.5) as pool:
        with pool.transaction() as held:
            for call in (lambda: pool.fetchval("SELECT 1"), lambda: pool.execute("INSERT INTO t VALUES (1)")):
                error = Caller(call).error(errors.OperationalError)
                assert "too many connections" in str(error)
                assert "lower readers, or put PgBouncer between" in str(error)
                assert (error.retryable, error.outcome) == (True, "not_applied")
            held.execute("INSERT INTO t VALUES (2)")
        assert pool.fetch("SELECT a FROM t") == [(2,)]
    assert "no more connections for the readers, which have 0" in caplog.text


@pytest.mark.parametrize("crowded_url", [1], indirect=True)
def test_first_call_of_a_process_is_refused_at_once(crowded_url: str) -> None:
    with get_pool(crowded_url):
        with pytest.raises(errors.OperationalError, match="too many connections") as caught:
            PostgresPool(f"{crowded_url}&application_name=another")
        assert caught.value.retryable


def test_room_that_was_found_is_forgotten_and_then_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("walpool.postgres._room.time.monotonic", lambda: now[0])
    room = Room(8)
    assert room.limit == 8
    assert room.fits(3, "full")
    assert not room.fits(2, "full")  # no news
    assert (room.limit, room.is_short) == (2, True)
    now[0] += 1
    assert (room.limit, room.is_short) == (8, False)
    assert room.fits(0, "full")
    now[0] += 1
    assert room.limit == 1  # two seconds this time; none at all would be nobody's turn
    now[0] += 1
    room.grows()
    assert room.fits(5, "full")
    now[0] += 1
    assert room.limit == 8  # one again
