"""A server that does not answer, and is not gone either: who set a limit waits little longer than that."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually
from looping import on_every_loop, until

from tests.postgres.pools import assert_unharmed, plain, running
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool, _driving, _wire

SLEEP = "SELECT 1 FROM pg_sleep(60)"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a server given up after less than five seconds."""
    for module in (_wire, _driving):
        monkeypatch.setattr(module, "CANCEL_S", 0.5)


@contextmanager
def stopped(connection: psycopg.Connection[Any], what: str) -> Iterator[None]:
    """Stop the process that runs something, until the block's end; wait for it to see then that nobody wants it."""
    (process,) = running(connection, what)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
    eventually(lambda: process not in running(connection, what))


def read(pool: PostgresPool) -> None:
    pool.fetch(SLEEP, timeout=2.5)


def read_inside(pool: PostgresPool) -> None:
    with pool.transaction() as tx:
        tx.fetch(SLEEP, timeout=2.5)


def read_of_a_snapshot(pool: PostgresPool) -> None:
    with pool.read() as snapshot:
        snapshot.fetch(SLEEP, timeout=2.5)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (read, errors.StatementTimeout),
        (read_inside, errors.OperationalError),
        (read_of_a_snapshot, errors.OperationalError),
    ],
)
def test_limit_holds_where_the_server_does_not_answer(
    own_postgres_url: str, call: Callable[[PostgresPool], None], kind: type[errors.Error]
) -> None:
    with PostgresPool(own_postgres_url, readers=2) as pool, plain(own_postgres_url) as other:
        caller = Caller(partial(call, pool))
        eventually(lambda: len(running(other, SLEEP)) == 1)
        with stopped(other, SLEEP):
            failure = caller.error(kind)
        assert "has not answered in time" in str(failure)
        assert failure.outcome == "not_applied"
        assert_unharmed(pool)


@on_every_loop
async def test_limit_of_a_task_holds_where_the_server_does_not_answer(own_postgres_url: str) -> None:
    with plain(own_postgres_url) as other:
        async with AsyncPostgresPool(own_postgres_url, readers=2) as pool:
            task = asyncio.create_task(pool.fetch(SLEEP, timeout=2.5))
            await until(lambda: len(running(other, SLEEP)) == 1)
            with stopped(other, SLEEP):
                await asyncio.wait([task], timeout=WITHIN)
            with pytest.raises(errors.StatementTimeout, match="has not answered in time"):
                await task
            assert await pool.fetchval("SELECT 1") == 1


@on_every_loop
async def test_cancelled_task_ends_where_the_server_does_not_answer(own_postgres_url: str) -> None:
    async def inside(pool: AsyncPostgresPool) -> None:
        async with pool.transaction() as tx:
            await tx.fetch(SLEEP)

    with plain(own_postgres_url) as other:
        async with AsyncPostgresPool(own_postgres_url, readers=2) as pool:
            for work in (pool.fetch(SLEEP), inside(pool)):
                task = asyncio.create_task(work)
                await until(lambda: len(running(other, SLEEP)) == 1)
                with stopped(other, SLEEP):
                    task.cancel()
                    await asyncio.wait([task], timeout=WITHIN)
                    assert task.cancelled()
            assert await pool.fetchval("SELECT 1") == 1


def test_transaction_ends_where_the_server_does_not_answer(own_postgres_url: str) -> None:
    with PostgresPool(own_postgres_url, transaction_timeout=2.5) as pool, plain(own_postgres_url) as other:

        def hold() -> None:
            with pool.transaction() as tx:
                tx.execute(SLEEP)

        caller = Caller(hold)
        eventually(lambda: len(running(other, SLEEP)) == 1)
        with stopped(other, SLEEP):
            assert caller.error(errors.TransactionTimeout).outcome == "not_applied"
        assert_unharmed(pool)
