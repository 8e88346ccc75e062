"""Nothing grows with asyncio either: no thread for a task, a pool or a loop, no descriptor, and no memory.

Measured as in test_resources: after a warm-up of the same calls, since caches fill and threads leave blocks behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER, locked_by_another_process
from leftovers import engine_threads, open_descriptors, threads_left_since
from looping import LOOPS, Holder, run, until
from test_resources import FAILING, LEAN, ROWS, SWAY, UPSERT, count_of, growth

import walpool
from tests.torture import Torture
from walpool import errors

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc"),
]

READERS = 4
THREADS = READERS + 6  # those that read, lead and wait, and the keeper's; never one for each task, pool or loop
TASKS = 16
SOON = 2.0  # seconds

Call = Callable[[walpool.AsyncPool, int], Awaitable[object]]


def make_rows(database: Path) -> None:
    with walpool.Pool(database, **LEAN) as pool:
        pool.script("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
        pool.executemany(UPSERT, [(n, "taken") for n in range(ROWS)])


async def open_all_readers(pool: walpool.AsyncPool) -> None:
    """Have every reader opened, which costs descriptors, and is done when it is needed."""
    holders = [await Holder(pool.read).begun() for _ in range(READERS)]
    for holder in holders:
        await holder.end()


# Many users of one file


@pytest.mark.parametrize("loop", LOOPS)
def test_hundreds_of_tasks_and_pools_cost_no_thread_and_no_descriptor_each(database: Path, loop: str) -> None:
    sessions = 200
    make_rows(database)
    before, descriptors_before = engine_threads(), count_of("fd")

    async def session(index: int) -> object:
        async with walpool.AsyncPool(database, readers=READERS) as own:
            opened.append(index)
            await until(lambda: len(opened) == sessions)  # a pool has a thread while it is being opened
            await own.execute(UPSERT, (index, index))
            async with own.read() as snapshot:
                assert await snapshot.fetchval("SELECT count(*) FROM t") == ROWS
            async with own.stream("SELECT a FROM t", chunk=10) as rows:
                await anext(rows)
            async with own.transaction() as tx:
                await tx.execute(UPSERT, (index, index))
            assert await own.fetchval(COUNT_TO, (20_000,)) == 20_000
            most.append((count_of("fd") - descriptors_before, len(engine_threads().keys() - before.keys())))
            return await own.fetchval("SELECT a FROM t WHERE id = ?", (index,))

    async def main() -> None:
        async with walpool.AsyncPool(database, readers=READERS):
            assert await asyncio.gather(*(session(index) for index in range(sessions))) == list(range(sessions))

    opened: list[int] = []
    most: list[tuple[int, int]] = []
    run(main(), loop=loop)
    descriptors, running = (max(column) for column in zip(*most, strict=True))
    # A file and its WAL for each connection, the WAL's index; for each pool on a loop a bell, for the loop a few.
    assert descriptors <= 2 * (READERS + 2) + 1 + 2 * sessions + 8
    assert running <= THREADS
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_opening_of_many_pools_at_once_leaves_the_threads_of_one(database: Path) -> None:
    """Each opening has a thread for as long as it takes, here while another process keeps the file."""
    before = engine_threads()

    async def main() -> None:
        pools = [walpool.AsyncPool(database) for _ in range(200)]
        with locked_by_another_process(database, "EXCLUSIVE") as process:
            opening = [asyncio.create_task(pool.open()) for pool in pools]
            await asyncio.wait(opening, timeout=0.1)  # nothing tells that the last of them waits
            process.communicate()
        await asyncio.gather(*opening)
        await until(lambda: len(engine_threads().keys() - before.keys()) <= THREADS)
        await asyncio.gather(*(pool.close() for pool in pools))

    run(main())
    assert threads_left_since(before) == {}


@pytest.mark.parametrize("loop", LOOPS)
def test_tasks_that_wait_and_hold_cost_no_thread_and_no_descriptor(database: Path, loop: str) -> None:
    make_rows(database)
    before = engine_threads()

    async def main() -> tuple[int, int]:
        async with walpool.AsyncPool(database, readers=READERS) as pool:
            descriptors = count_of("fd")
            holders = [await Holder(pool.read).begun() for _ in range(READERS)]
            holders.append(await Holder(pool.transaction).begun())
            waiting = [asyncio.ensure_future(pool.fetchval("SELECT 1")) for _ in range(500)]
            waiting += [asyncio.ensure_future(pool.execute(UPSERT, (n % ROWS, n))) for n in range(500)]
            blocks = [Holder(block) for _ in range(100) for block in (pool.read, pool.transaction)]

            async def all_wait() -> bool:
                return (await pool.stats())["jobs_waiting"] == 600

            await until(all_wait)
            found = count_of("fd") - descriptors, len(engine_threads().keys() - before.keys())
            for holder in (*holders, *blocks):
                holder.let_go.set()
            await asyncio.gather(*waiting, *(holder.task for holder in (*holders, *blocks)))
            return found

    opened, running = run(main(), loop=loop)
    assert opened <= 2 * (READERS + 2) + 1
    assert running <= THREADS
    assert threads_left_since(before) == {}


# A day in miniature


async def half_a_stream(pool: walpool.AsyncPool, n: int) -> None:
    async with pool.stream("SELECT * FROM t", chunk=5) as rows:
        for _ in range(7):
            await anext(rows)


async def dropped_stream(pool: walpool.AsyncPool, n: int) -> None:
    async for _ in pool.stream("SELECT * FROM t WHERE id > ?", (n % ROWS,), chunk=5):
        break


async def snapshot(pool: walpool.AsyncPool, n: int) -> None:
    async with pool.read() as held:
        await held.fetchval("SELECT a FROM t WHERE id = ?", (n % ROWS,))
        await held.fetch("SELECT * FROM t LIMIT 3", row=dict)


async def transaction(pool: walpool.AsyncPool, n: int) -> None:
    async with pool.transaction() as tx:
        await tx.execute(UPSERT, (n % ROWS, n))
        with contextlib.suppress(errors.IntegrityError):
            async with tx.transaction():
                await tx.execute(FAILING, (n % ROWS,))


async def failed_transaction(pool: walpool.AsyncPool, n: int) -> None:
    async with pool.transaction() as tx:
        await tx.execute(UPSERT, (n % ROWS, "undone"))
        raise LookupError(n)


async def another_handle(pool: walpool.AsyncPool, n: int) -> None:
    async with walpool.get_async_pool(pool.path) as other:
        await other.fetchval("SELECT 1")


async def given_up(call: Awaitable[object]) -> None:
    await asyncio.wait_for(call, 0.0005)


OFTEN: list[Call] = [
    lambda pool, n: pool.execute(UPSERT, (n % ROWS, "x" * (n % 300))),
    lambda pool, n: pool.fetchval("SELECT a FROM t WHERE id = ?", (n % ROWS,)),
    lambda pool, n: pool.fetchone("SELECT * FROM t WHERE id = :id", {"id": n % ROWS}),
    lambda pool, n: pool.fetch("SELECT * FROM t LIMIT 10", row=dict),
]
SELDOM: list[Call] = [
    lambda pool, n: pool.execute(FAILING, (n % ROWS,)),
    lambda pool, n: pool.execute(f"INSERT INTO no_table_{n} VALUES (1)"),
    lambda pool, n: pool.executemany(UPSERT, [(n % ROWS, k) for k in range(5)]),
    lambda pool, n: pool.batch([(UPSERT, (n % ROWS, n)), (FAILING, (n % ROWS,))]),
    lambda pool, n: pool.execute(UPSERT, (n % ROWS, n), timeout=0),
    lambda pool, n: pool.fetch("SELECT * FROM t", timeout=0),
    lambda pool, n: pool.fetchval(COUNT_TO, (FOREVER,), timeout=0.0005),
    lambda pool, n: pool.fetchval(COUNT_TO, (20_000,)),
    lambda pool, n: pool.fetch("SELECT 1", row=lambda columns, values: 1 // 0),
    lambda pool, n: pool.execute(UPSERT, (n % ROWS, object())),  # type: ignore[arg-type]
    lambda pool, n: given_up(pool.fetchval(COUNT_TO, (FOREVER,))),
    lambda pool, n: given_up(pool.execute(UPSERT, (n % ROWS, n))),
    lambda pool, n: given_up(transaction(pool, n)),
    lambda pool, n: given_up(snapshot(pool, n)),
    lambda pool, n: pool.stats(),
    half_a_stream,
    dropped_stream,
    snapshot,
    transaction,
    failed_transaction,
    another_handle,
]
EXPECTED = (errors.Error, LookupError, ZeroDivisionError, asyncio.TimeoutError)


async def live(pool: walpool.AsyncPool, calls: int) -> int:
    """Make so many mixed calls from TASKS tasks, and return how many of them failed as they should."""

    async def work(index: int) -> int:
        failed = 0
        for turn in range(calls // TASKS):
            call = OFTEN[turn % len(OFTEN)] if turn % 4 else SELDOM[(turn // 4 + index) % len(SELDOM)]
            try:
                await call(pool, turn * TASKS + index)
            except EXPECTED:
                failed += 1
        return failed

    return sum(await asyncio.gather(*(work(index) for index in range(TASKS))))


@pytest.mark.timeout(3600)
def test_millions_of_good_failing_and_cancelled_calls_leave_nothing_behind(database: Path, torture: Torture) -> None:
    calls = torture.size(10_000, 3_000_000)
    make_rows(database)

    pool = walpool.AsyncPool(database, **LEAN)

    async def is_free() -> bool:
        stats = await pool.stats()
        return stats["readers_out"] == stats["jobs_waiting"] == stats["bytes_waiting"] == 0

    async def day(calls: int) -> int:
        failed = await live(pool, calls)
        await until(is_free)
        return failed

    asyncio.run(open_all_readers(pool))
    asyncio.run(day(10_000))
    with growth() as grown:
        failed = asyncio.run(day(calls))
    torture.tell("mixed async calls", tried=calls, unit="calls", lost=0, note=grown.told())
    asyncio.run(pool.close())
    assert failed > calls / 50
    assert grown.descriptors <= 0
    assert grown.threads <= READERS  # each is begun when it is needed
    assert grown.memory < SWAY


# Open and close


async def use(pool: walpool.AsyncPool, n: int) -> None:
    await pool.execute(UPSERT, (n % ROWS, n))
    await pool.fetchval("SELECT a FROM t WHERE id = ?", (n % ROWS,))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loop", LOOPS)
def test_opening_and_closing_over_and_over_leaves_nothing_behind(database: Path, loop: str, torture: Torture) -> None:
    times = torture.size(50, 10_000)
    make_rows(database)
    before = engine_threads()

    async def open_and_close(times: int) -> None:
        for n in range(times):
            async with walpool.AsyncPool(database, **LEAN) as pool, walpool.AsyncPool(database) as other:
                await use(pool, n)
                await use(other, n)
                at_work = asyncio.ensure_future(pool.fetchval(COUNT_TO, (1000,))) if n % 2 else None
            if at_work:
                with contextlib.suppress(errors.ClosedError):
                    assert await at_work == 1000

    def run_loops(times: int) -> None:
        for _ in range(times // 50):
            asyncio.run(open_and_close(50)) if loop == "asyncio" else run(open_and_close(50), loop=loop)

    run_loops(50)
    assert threads_left_since(before) == {}
    with growth() as grown:
        run_loops(times)
        gc.collect()  # a loop that ended is a cycle, and may hold a mailbox that was to leave it a moment later
        left = open_descriptors(database), threads_left_since(before)
    torture.tell(f"opening and closing on {loop}", tried=times, unit="cycles", lost=0, note=grown.told())
    assert left == ([], {})
    assert max(grown.descriptors, grown.threads) <= 0
    assert grown.memory < SWAY


@pytest.mark.timeout(3600)
def test_loops_that_come_and_go_on_one_pool_leave_nothing_behind(database: Path, torture: Torture) -> None:
    times = torture.size(200, 10_000)
    make_rows(database)
    pool = walpool.AsyncPool(database, **LEAN)

    async def work(n: int) -> None:
        await use(pool, n)
        asyncio.ensure_future(pool.fetchval(COUNT_TO, (FOREVER,)))  # noqa: RUF006  # cancelled as the loop ends
        await asyncio.sleep(0)

    asyncio.run(open_all_readers(pool))
    for n in range(50):
        asyncio.run(work(n))
    with growth() as grown:
        for n in range(times):
            asyncio.run(work(n))
    torture.tell("loops on one pool", tried=times, unit="loops", lost=0, note=grown.told())
    asyncio.run(pool.close())
    assert grown.descriptors <= 0
    assert grown.threads <= READERS  # each is begun when it is needed
    assert grown.memory < SWAY


def test_opening_that_fails_leaves_nothing_behind(tmp_path: Path, torture: Torture) -> None:
    times = torture.size(100, 10_000)
    no_database = tmp_path / "text"
    no_database.write_text("no database, but long enough to be taken for one" * 100)
    before = engine_threads()

    async def fail(times: int) -> None:
        for _ in range(times):
            pools: list[Any] = [walpool.AsyncPool(no_database), walpool.AsyncPool(tmp_path / "no folder" / "test.db")]
            ends = await asyncio.gather(*(pool.open() for pool in pools), return_exceptions=True)
            assert [type(end) for end in ends] == [errors.CorruptError, errors.StorageError]

    async def fail_and_wait(times: int) -> None:
        await fail(times)
        await until(lambda: count_of("fd") <= descriptors[0], within=SOON)  # while the loop still runs

    descriptors = [sys.maxsize]
    asyncio.run(fail_and_wait(50))

    async def main() -> None:
        await fail(1)
        descriptors[0] = count_of("fd")
        await fail_and_wait(times)

    with growth() as grown:
        asyncio.run(main())
    torture.tell("async openings that fail", tried=2 * times, unit="openings", lost=0, note=grown.told())
    assert grown.descriptors <= 0
    assert grown.memory < SWAY
    assert threads_left_since(before) == {}
    assert open_descriptors(no_database) == []
