"""Event loops: several at once, one after the other, ones that end with work under way, and of other makes.

loop A                         loop B, threads
await pool.execute(...)        await pool.fetch(...), pool.run(...)
ends, with calls under way
                               are answered as if nothing had been
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import pytest
from helpers import COUNT_TO, FOREVER, WITHIN, Caller, eventually, run_python, run_together, writer_held
from leftovers import engine_threads
from looping import (
    INSERT,
    LOOPS,
    Holder,
    async_table,
    kept,
    on_every_loop,
    outcome,
    run,
    until,
    until_reading,
    until_waiting,
)

import walpool
from walpool import errors

READERS = 4
HELD_FOR = 5.0  # seconds: a transaction_timeout
SOON = 2.0  # seconds: well before what is held is taken back
THREADS = READERS + 6  # readers' and writers' own, those that wait for them, and the keeper's


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool of READERS readers with an empty table that is not open yet."""
    with async_table(database, readers=READERS, transaction_timeout=HELD_FOR, slow_threshold=60) as pool:
        yield pool


async def insert(tx: walpool.AsyncTransaction, value: Any) -> None:
    await tx.execute(INSERT, (value,))


async def use(pool: walpool.AsyncPool, name: str, times: int = 1) -> list[str]:
    """Write and read by every verb, and return the rows that were written."""
    written = []
    for n in range(times):
        values = [f"{name}/{n}/{verb}" for verb in ("execute", "run", "executemany", "task")]
        await pool.execute(INSERT, (values[0],))
        await pool.run(partial(insert_value, values[1]))
        await asyncio.gather(pool.executemany(INSERT, [(values[2],)]), pool.execute(INSERT, (values[3],)))
        async with pool.read() as snapshot:
            assert await snapshot.fetchval("SELECT count(*) FROM t WHERE a = ?", (values[0],)) == 1
        found = [a async for (a,) in pool.stream("SELECT a FROM t WHERE a IN (?, ?, ?, ?)", values, chunk=1)]
        assert sorted(found) == sorted(values)
        assert await pool.fetchval(COUNT_TO, (20_000 + n,)) == 20_000 + n
        written += values
    return written


async def insert_value(value: str, tx: walpool.AsyncTransaction) -> None:
    await insert(tx, value)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform.startswith("linux") else 0


# Several at once


def test_loops_in_several_threads_use_one_pool(table: walpool.AsyncPool) -> None:
    def work(index: int) -> list[str]:
        return run(use(table, f"loop {index}", 10), loop=LOOPS[index % len(LOOPS)])

    written = [*chain(*run_together(6, work))]
    assert sorted(run(kept(table))) == sorted(written)


def test_sync_and_async_callers_share_a_file_under_load(table: walpool.AsyncPool, database: Path) -> None:
    def work(index: int) -> list[str]:
        if index % 2:
            return run(use(table, f"loop {index}", 10), loop=LOOPS[index // 2 % len(LOOPS)])
        written = []
        for n in range(40):
            plain.execute(INSERT, (f"thread {index}/{n}",))
            with plain.transaction() as tx:
                tx.execute(INSERT, (f"thread {index}/{n}/tx",))
            assert plain.fetchval("SELECT count(*) FROM t WHERE a LIKE ?", (f"thread {index}/{n}%",)) >= 2
            written += [f"thread {index}/{n}", f"thread {index}/{n}/tx"]
        return written

    run(table.open())
    with walpool.Pool(database) as plain:
        written = [*chain(*run_together(8, work))]
    assert sorted(run(kept(table))) == sorted(written)


def test_loop_that_closes_the_pool_waits_for_the_calls_of_another(table: walpool.AsyncPool) -> None:
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


def test_block_is_refused_on_another_loop(table: walpool.AsyncPool) -> None:
    async def ask(block: Any) -> None:
        with pytest.raises(errors.InterfaceError, match="event loop on which it was begun"):
            await block.fetchval("SELECT 1")

    async def main() -> None:
        async with table.read() as snapshot:
            await asyncio.to_thread(lambda: asyncio.run(ask(snapshot)))
            assert await snapshot.fetchval("SELECT 1") == 1
        async with table.transaction() as tx:
            await asyncio.to_thread(lambda: asyncio.run(ask(tx)))
            await insert(tx, 1)

    run(main())


# One after the other


@pytest.mark.parametrize("loop", LOOPS)
def test_one_loop_after_the_other_uses_one_pool_and_nothing_grows(table: walpool.AsyncPool, loop: str) -> None:
    written = [*chain(*(run(use(table, f"warm {n}"), loop=loop) for n in range(5)))]
    opened = descriptors()
    for n in range(20):
        written += run(use(table, str(n)), loop=loop)
    gc.collect()
    assert descriptors() <= opened
    assert len(engine_threads()) <= THREADS
    assert sorted(run(kept(table))) == sorted(written)


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_stands_still_gets_its_answers_when_it_goes_on(table: walpool.AsyncPool, loop: str) -> None:
    new = new_loop(loop)
    new.run_until_complete(table.open())
    tasks = [new.create_task(table.execute(INSERT, (n,))) for n in range(20)]
    new.call_later(0, new.stop)
    new.run_forever()
    results = new.run_until_complete(asyncio.wait_for(gathered(tasks), WITHIN))
    assert [result.rowcount for result in results] == [1] * 20
    new.close()


async def gathered(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks)


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()  # type: ignore[no-any-return, unused-ignore]
    return asyncio.new_event_loop()


# Ones that end with work under way


async def leave_work_under_way(pool: walpool.AsyncPool) -> list[asyncio.Task[Any]]:
    """Begin blocks and reads of every kind, none of which can end by itself."""
    holders = [Holder(pool.transaction), Holder(pool.read), Holder(lambda: pool.stream("SELECT 1"))]
    for holder in holders:
        await holder.begun()
    await insert(holders[0].inside, "never committed")
    calls: list[Coroutine[Any, Any, Any]] = [
        pool.fetchval(COUNT_TO, (FOREVER,)),
        holders[1].inside.fetchval(COUNT_TO, (FOREVER,)),
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    await until_reading(pool, 3)
    return [*tasks, *(holder.task for holder in holders)]


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


def assert_unharmed(pool: walpool.AsyncPool, rows: list[object]) -> None:
    """The pool is whole: nobody waits, nothing is out, and it reads and writes from a loop of its own."""

    async def main() -> None:
        async def is_free() -> bool:
            stats = await pool.stats()
            return stats["jobs_waiting"] == stats["bytes_waiting"] == stats["readers_out"] == 0

        await until(is_free, within=SOON)
        assert await outcome(kept(pool)) == rows
        await outcome(pool.execute(INSERT, ("after",)))
        assert await kept(pool) == [*rows, "after"]

    run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_ends_with_blocks_and_reads_under_way_cancels_them(table: walpool.AsyncPool, loop: str) -> None:
    tasks = run(leave_work_under_way(table), loop=loop)
    assert all(task.cancelled() for task in tasks)
    assert_unharmed(table, [])


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_ends_with_jobs_queued_withdraws_them(table: walpool.AsyncPool, loop: str) -> None:
    run(table.open())
    with walpool.Pool(table.path) as plain, writer_held(plain):
        tasks = run(leave_jobs_queued(table), loop=loop)
        assert all(task.cancelled() for task in tasks)
        assert plain.stats()["jobs_waiting"] == 0
    assert_unharmed(table, [])


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_is_closed_under_blocks_and_reads_leaves_the_pool_unharmed(
    table: walpool.AsyncPool, loop: str
) -> None:
    new = new_loop(loop)
    tasks = new.run_until_complete(leave_work_under_way(table))
    new.close()
    forget(tasks)
    assert_unharmed(table, [])


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_that_is_closed_under_queued_jobs_leaves_each_whole(table: walpool.AsyncPool, loop: str) -> None:
    run(table.open())
    new = new_loop(loop)
    with walpool.Pool(table.path) as plain:
        with writer_held(plain):
            tasks = new.run_until_complete(leave_jobs_queued(table))
            new.close()
        forget(tasks)
        eventually(lambda: plain.stats()["jobs_waiting"] == 0, within=SOON)
        plain.execute("DELETE FROM t WHERE a = 'queued'")
    assert_unharmed(table, [])


def forget(tasks: list[asyncio.Task[Any]]) -> None:
    """Drop tasks whose loop is gone; asyncio would say of each that it was destroyed but is pending."""
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    tasks.clear()
    gc.collect()


ENDING = """
    import asyncio, sys, threading
    import walpool
    from helpers import COUNT_TO, FOREVER
    INSERT = "INSERT INTO t VALUES (?)"
    pool = walpool.AsyncPool(sys.argv[1])
    async def hold(block):
        async with block as inside:
            await asyncio.sleep(3600)
    async def main():
        await pool.script("CREATE TABLE IF NOT EXISTS t (a)")
        await pool.execute(INSERT, ("acknowledged",))
        global tasks
        calls = [hold(pool.transaction()), hold(pool.read()), pool.fetchval(COUNT_TO, (FOREVER,))]
        calls += [pool.execute(INSERT, ("queued",)) for _ in range(10)]
        tasks = [asyncio.create_task(call) for call in calls]
        while (await pool.stats())["jobs_waiting"] < 10 or (await pool.stats())["readers_out"] < 2:
            await asyncio.sleep(0.001)
"""
ENDS: dict[str, str] = {
    "by asyncio.run": "asyncio.run(main())",
    "and another one closes the pool": "asyncio.run(main()); asyncio.run(pool.close())",
    "by closing the pool itself and leaving": """
    async def leave():
        await main()
        for task in tasks:
            task.cancel()
        await pool.close()
    asyncio.run(leave())
    """,
    "by an exception": """
    async def fail():
        await main()
        raise SystemExit(0)
    asyncio.run(fail())
    """,
    "with its daemon thread": """
    begun = threading.Event()
    async def for_ever():
        await main()
        begun.set()
        await asyncio.sleep(3600)
    threading.Thread(target=asyncio.run, args=(for_ever(),), daemon=True).start()
    begun.wait()
    """,
}


@pytest.mark.parametrize("end", ENDS)
def test_process_whose_loop_ends_with_calls_under_way_ends_well(database: Path, end: str) -> None:
    program = ENDING + "    " + ENDS[end].strip() + "\n"
    assert run_python(program, database, within=WITHIN) == ("", "")
    with walpool.Pool(database) as pool:  # who is cancelled first, the holder of the writer or they, nobody says
        found = pool.fetch("SELECT a FROM t")
    assert found == [("acknowledged",), *[("queued",)] * (len(found) - 1)]


# Of other makes


class WithoutReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, as Windows' proactor."""

    def add_reader(self, *args: object) -> None:
        raise NotImplementedError

    remove_reader = add_reader  # type: ignore[assignment]


def test_loop_that_watches_no_descriptors_serves_all_the_same(table: walpool.AsyncPool) -> None:
    for n in range(3):
        loop = WithoutReaders()
        written = loop.run_until_complete(asyncio.wait_for(use(table, str(n), 5), WITHIN))
        loop.close()
        assert set(written) <= set(run(kept(table)))
    loop = WithoutReaders()
    tasks = loop.run_until_complete(leave_work_under_way(table))
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks, timeout=WITHIN))
    loop.close()
    assert all(task.cancelled() for task in tasks)
    assert_unharmed(table, run(kept(table)))


@on_every_loop
async def test_debug_mode_of_a_loop_finds_nothing_wrong(table: walpool.AsyncPool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 5.0  # type: ignore[attr-defined, unused-ignore]
    await use(table, "debug", 3)


# anyio

ANYIO = [pytest.param({"use_uvloop": loop == "uvloop"}, id=loop) for loop in LOOPS]


@pytest.mark.parametrize("options", ANYIO)
def test_anyios_task_groups_wait_for_calls_and_cancel_them(table: walpool.AsyncPool, options: dict[str, Any]) -> None:
    async def fail() -> None:
        await until_reading(table, 1)
        raise ZeroDivisionError

    async def main() -> list[Any]:
        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(partial(table.execute, INSERT, (n,)))
        with pytest.raises(Exception, match="unhandled errors") as caught:  # an ExceptionGroup, where Python has it
            async with anyio.create_task_group() as group:
                group.start_soon(partial(table.fetchval, COUNT_TO, (FOREVER,)))
                group.start_soon(fail)
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]  # type: ignore[attr-defined]
        await until_reading(table, 0)
        return await kept(table)

    assert sorted(anyio.run(main, backend_options=options)) == list(range(10))
    assert_unharmed(table, run(kept(table)))


@pytest.mark.parametrize("options", ANYIO)
def test_anyios_cancel_scopes_end_calls_and_roll_blocks_back(table: walpool.AsyncPool, options: dict[str, Any]) -> None:
    # A scope cancels each await anew, those of a block's end too.
    async def hold(block: Any, work: Callable[[Any], Awaitable[object]]) -> None:
        async with block as inside:
            await work(inside)
            await anyio.sleep_forever()

    async def scan(inside: Any) -> object:
        return await inside.fetchval(COUNT_TO, (FOREVER,))

    async def streamed() -> None:
        async for _ in table.stream(COUNT_TO, (FOREVER,)):
            pytest.fail("there was a row")

    async def main() -> None:
        await table.open()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: table.fetchval(COUNT_TO, (FOREVER,)),
            lambda: hold(table.transaction(), lambda tx: insert(tx, "never committed")),
            lambda: hold(table.transaction(), scan),
            lambda: hold(table.read(), lambda snapshot: snapshot.fetchval("SELECT 1")),
            lambda: hold(table.read(), scan),
            streamed,
        ]
        for call in calls:
            with anyio.move_on_after(0.03) as scope:
                await call()
            assert scope.cancelled_caught
            assert (await table.execute(INSERT, ("next",), timeout=WITHIN)).rowcount == 1
            await until_reading(table, 0)
        assert await kept(table) == ["next"] * len(calls)

    anyio.run(main, backend_options=options)
    assert_unharmed(table, ["next"] * 6)
