"""Jobs and transactions that a loop leaves in the queue: withdrawn, or run whole; nobody else is kept waiting by them.

loop                           writer
await pool.run(...) queues
                               held by another thread
ends, or is closed
                               let go: the turn of the run() comes, and nobody is there
                               goes to the next at once
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WITHIN, Caller, eventually, writer_held
from looping import INSERT, LOOPS, async_table, kept, on_every_loop, outcome, run, until, until_waiting

import walpool

HELD_FOR = 5.0  # seconds: a transaction_timeout
SOON = 2.0  # seconds: well before what is held is taken back


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield an open pool with an empty table."""
    with async_table(database, transaction_timeout=HELD_FOR, slow_threshold=60) as pool:
        run(pool.open())
        yield pool


async def insert(tx: walpool.AsyncTransaction, value: Any) -> None:
    await tx.execute(INSERT, (value,))


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()  # type: ignore[no-any-return, unused-ignore]
    return asyncio.new_event_loop()


async def leave_jobs_queued(pool: walpool.AsyncPool) -> list[asyncio.Task[Any]]:
    """Queue up jobs and a transaction behind a writer that another thread holds."""
    calls: list[Coroutine[Any, Any, Any]] = [
        pool.execute(INSERT, ("queued",)),
        pool.executemany(INSERT, [("queued",)]),
        pool.run(lambda tx: insert(tx, "queued")),
        *(pool.execute(INSERT, ("queued",)) for _ in range(100)),
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    await until_waiting(pool, len(tasks))
    return tasks


def assert_unharmed(pool: walpool.AsyncPool) -> None:
    """The pool is whole: nobody waits, nothing is out, and it reads and writes from a loop of its own."""

    async def main() -> None:
        async def is_free() -> bool:
            stats = await pool.stats()
            return stats["jobs_waiting"] == stats["bytes_waiting"] == stats["readers_out"] == 0

        await until(is_free, within=SOON)
        assert await outcome(kept(pool)) == []
        await outcome(pool.execute(INSERT, ("after",)))
        assert await kept(pool) == ["after"]

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_ends_with_jobs_queued_withdraws_them(table: walpool.AsyncPool, loop: str) -> None:
    with walpool.Pool(table.path) as plain, writer_held(plain):
        tasks = run(leave_jobs_queued(table), loop=loop)
        assert all(task.cancelled() for task in tasks)
        eventually(lambda: plain.stats()["jobs_waiting"] == 0)
    assert_unharmed(table)


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_is_closed_under_queued_jobs_keeps_nobody_waiting_once_the_next_begins(
    table: walpool.AsyncPool, loop: str
) -> None:
    new = new_loop(loop)
    with walpool.Pool(table.path) as plain:
        with writer_held(plain):
            tasks = new.run_until_complete(leave_jobs_queued(table))
            new.close()
        run(table.open())  # whoever begins a loop on the pool sees that the other has ended
        plain.execute("DELETE FROM t WHERE a = 'queued'", timeout=SOON)
        eventually(lambda: plain.stats()["jobs_waiting"] == 0, within=SOON)
        plain.execute("DELETE FROM t WHERE a = 'queued'", timeout=SOON)
    assert_unharmed(table)
    forget(tasks)


def forget(tasks: list[asyncio.Task[Any]]) -> None:
    """Drop tasks whose loop is gone; asyncio would say of each that it was destroyed but is pending."""
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    tasks.clear()
    gc.collect()


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_stands_still_keeps_nobody_waiting_and_gets_its_answers_when_it_goes_on(
    table: walpool.AsyncPool, loop: str
) -> None:
    async def gathered() -> list[walpool.Result]:
        return await asyncio.wait_for(asyncio.gather(*tasks), WITHIN)

    new = new_loop(loop)
    new.run_until_complete(table.open())
    tasks = [new.create_task(table.execute(INSERT, (n,))) for n in range(20)]
    new.call_later(0, new.stop)
    new.run_forever()
    with walpool.Pool(table.path) as plain:
        assert plain.execute(INSERT, ("another's",), timeout=SOON).rowcount == 1
    assert [result.rowcount for result in new.run_until_complete(gathered())] == [1] * 20
    new.close()
    assert sorted(map(str, run(kept(table)))) == sorted([*map(str, range(20)), "another's"])


def test_closing_on_one_loop_waits_for_the_transaction_of_another(table: walpool.AsyncPool) -> None:
    async def hold_and_write() -> object:
        async with table.transaction() as tx:
            begun.set()
            await until(lambda: table.closed)
            await insert(tx, 1)
        return "committed"

    begun = threading.Event()
    other = Caller(lambda: run(hold_and_write()))
    assert begun.wait(WITHIN)
    run(table.close())
    assert other.outcome() == "committed"
    with walpool.Pool(table.path) as plain:
        assert plain.fetch("SELECT a FROM t") == [(1,)]


@on_every_loop
async def test_debug_mode_of_a_loop_finds_nothing_wrong(table: walpool.AsyncPool) -> None:
    asyncio.get_running_loop().set_debug(True)
    await asyncio.gather(*(table.execute(INSERT, (n,)) for n in range(20)))
    async with table.transaction() as tx:
        await insert(tx, 20)
    async with table.read() as snapshot:
        assert await snapshot.fetchval("SELECT count(*) FROM t") == 21
    assert [row async for row in table.stream("SELECT 1 UNION SELECT 2", chunk=1)] == [(1,), (2,)]
