"""A task that is cancelled: what has not begun never runs, what runs ends cleanly, and nothing is left behind.

task                        engine
await pool.execute(...)     the job stands in the queue
cancel()                    it is taken out: never runs
-- or --
await pool.execute(...)     a group has taken it
cancel()                    it is committed, and nobody hears of it
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import COUNT_TO, FOREVER, locked_by_another_process
from leftovers import engine_threads, open_descriptors, threads_left_since
from looping import (
    INSERT,
    async_table,
    cancel,
    held,
    kept,
    on_asyncio,
    on_every_loop,
    outcome,
    queue_up,
    run,
    stat,
    until,
    until_reading,
    until_waiting,
)
from torture import Torture

import walpool

LONG_WRITE = f"INSERT INTO t {COUNT_TO}"
needs_timeout = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup are newer")


@asynccontextmanager
async def open_table(database: Path, **settings: object) -> AsyncIterator[walpool.AsyncPool]:
    """Make an empty table t (a) and lend a pool on it; nothing of the pool may be left afterwards."""
    before = engine_threads()
    pool = walpool.AsyncPool(database, **settings)
    await pool.script("CREATE TABLE t (a)")
    try:
        yield pool
    finally:
        await pool.close()
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


async def is_free(pool: walpool.AsyncPool) -> bool:
    """Return whether nobody waits for the writer, has it, or has a reader."""
    stats = await pool.stats()
    return stats["jobs_waiting"] == stats["readers_out"] == stats["reads_waiting"] == 0


async def assert_free(pool: walpool.AsyncPool) -> None:
    """The writer and every reader must be there for the next."""
    await until(lambda: is_free(pool))
    await pool.execute(INSERT, ("after",), timeout=10)
    await pool.execute("DELETE FROM t WHERE a = 'after'", timeout=10)


# Jobs


@on_every_loop
async def test_job_that_waits_for_its_turn_never_runs(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.transaction):
            first, second = await queue_up(pool, [pool.execute(INSERT, (1,)), pool.execute(INSERT, (2,))])
            await cancel(first)
        await outcome(second)
        assert await kept(pool) == [2]
        assert await stat(pool, "jobs_withdrawn") == 1


@on_every_loop
async def test_job_that_is_cancelled_before_its_first_step_never_runs(database: Path) -> None:
    async with open_table(database) as pool:
        await pool.open()
        task = asyncio.create_task(pool.execute(INSERT, (1,)))
        await cancel(task)
        assert await kept(pool) == []


@on_asyncio
async def test_jobs_of_every_kind_never_run_once_they_are_withdrawn(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.transaction):
            tasks: list[asyncio.Task[Any]] = await queue_up(
                pool,
                [
                    pool.executemany(INSERT, [(1,), (2,)]),
                    pool.batch([(INSERT, (3,))]),
                    pool.script("INSERT INTO t VALUES (4)"),
                    pool.run(lambda tx: tx.execute(INSERT, (5,))),
                ],
            )
            for task in tasks:
                await cancel(task)
        await assert_free(pool)
        assert await kept(pool) == []


@on_asyncio
async def test_job_in_a_group_is_finished_and_its_neighbours_with_it(database: Path) -> None:
    """The neighbour runs long, so that the group is under way when the first job's task is cancelled.

    cancelled task              group
                                runs its insert
                                runs the neighbour, for long
    cancel()
                                COMMIT: both are in
    """
    async with open_table(database) as pool:
        async with held(pool.transaction):
            first, second = await queue_up(pool, [pool.execute(INSERT, (1,)), pool.execute(LONG_WRITE, (2_000_000,))])
        await until_waiting(pool, 0)  # the group has taken both
        await cancel(first)
        await outcome(second)
        assert await kept(pool) == [1, 2_000_000]


@on_asyncio
async def test_job_that_is_held_back_by_the_bytes_in_the_queue_never_runs(database: Path) -> None:
    async with open_table(database, max_waiting_bytes="1KiB") as pool:
        async with held(pool.transaction):
            first, second = await queue_up(pool, [pool.execute(INSERT, ("x" * 900,)) for _ in range(2)])
            assert await stat(pool, "jobs_held_back") == 1
            await cancel(second)
        await outcome(first)
        assert await kept(pool) == ["x" * 900]


@on_asyncio
async def test_job_that_waits_for_another_process_never_runs_and_is_not_waited_for(database: Path) -> None:
    async with open_table(database) as pool:
        await pool.open()
        with locked_by_another_process(database):
            task = asyncio.create_task(pool.execute(INSERT, (1,)))
            await until_waiting(pool, 1)
            await cancel(task, within=2)
        await assert_free(pool)
        assert await kept(pool) == []


# Reads


@on_every_loop
async def test_running_read_is_interrupted_and_its_reader_comes_back_clean(database: Path) -> None:
    async with open_table(database, readers=2) as pool:
        reads = [asyncio.create_task(pool.fetch(COUNT_TO, (FOREVER,))) for _ in range(2)]
        await until_reading(pool, 2)
        for read in reads:
            await cancel(read)
        await until_reading(pool, 0)
        assert await pool.fetchval("SELECT 1") == 1
        assert (await pool.stats())["errors_StatementTimeout"] == 0


@on_asyncio
async def test_read_that_waits_for_a_reader_never_runs(database: Path) -> None:
    async with open_table(database, readers=1) as pool:
        async with held(pool.read):
            waiting = asyncio.create_task(pool.fetch(COUNT_TO, (FOREVER,)))
            await until(lambda: _waits_for_a_reader(pool))
            await cancel(waiting)
            assert await stat(pool, "reads_waiting") == 0
        assert await pool.fetchval("SELECT 1") == 1


async def _waits_for_a_reader(pool: walpool.AsyncPool) -> bool:
    return await stat(pool, "reads_waiting") == 1


@on_asyncio
async def test_running_read_of_a_snapshot_is_interrupted_and_the_snapshot_goes_on(database: Path) -> None:
    async with open_table(database) as pool:
        async with pool.read() as snapshot:
            read = asyncio.create_task(snapshot.fetch(COUNT_TO, (FOREVER,)))
            await asyncio.sleep(0.05)  # nothing tells from outside that it runs; either way it must end
            await cancel(read)
            assert await snapshot.fetchval("SELECT 1") == 1
        await assert_free(pool)


# Blocks


@on_every_loop
async def test_transaction_that_waits_for_its_turn_never_begins(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.transaction):
            (waiting,) = await queue_up(pool, [pool.run(lambda tx: tx.execute(INSERT, (1,)))])
            await cancel(waiting)
        await assert_free(pool)
        assert await kept(pool) == []


@on_every_loop
async def test_transaction_is_rolled_back_where_its_task_is_cancelled_inside(database: Path) -> None:
    async def write(pool: walpool.AsyncPool, wrote: asyncio.Event) -> None:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, (1,))
            wrote.set()
            await asyncio.Event().wait()

    async with open_table(database) as pool:
        wrote = asyncio.Event()
        task = asyncio.create_task(write(pool, wrote))
        await outcome(wrote.wait())
        await cancel(task)
        await assert_free(pool)
        assert await kept(pool) == []


@on_asyncio
async def test_transaction_is_rolled_back_where_a_statement_of_it_is_cancelled(database: Path) -> None:
    async def write(pool: walpool.AsyncPool, wrote: asyncio.Event) -> None:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, (1,))
            wrote.set()
            await tx.execute(LONG_WRITE, (FOREVER,))

    async with open_table(database) as pool:
        wrote = asyncio.Event()
        task = asyncio.create_task(write(pool, wrote))
        await outcome(wrote.wait())
        await cancel(task)
        await assert_free(pool)
        assert await kept(pool) == []


@on_asyncio
async def test_transaction_goes_on_after_a_read_of_it_was_cancelled(database: Path) -> None:
    async with open_table(database) as pool:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, (1,))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tx.fetch(COUNT_TO, (FOREVER,)), 0.05)
            await tx.execute(INSERT, (2,))
        assert await kept(pool) == [1, 2]


@on_asyncio
async def test_cancelled_commit_leaves_all_of_it_or_nothing_and_the_writer_free(database: Path) -> None:
    async def write(pool: walpool.AsyncPool, number: int) -> None:
        async with pool.transaction() as tx:
            await tx.executemany(INSERT, [(number,), (number,)])

    async with open_table(database) as pool:
        await pool.open()
        for number in range(60):
            task = asyncio.create_task(write(pool, number))
            for _ in range(number % 12):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await assert_free(pool)
        rows = await kept(pool)
        assert all(rows.count(number) in (0, 2) for number in range(60))


@on_asyncio
async def test_block_that_is_cancelled_twice_still_gives_everything_back(database: Path) -> None:
    async def hold(pool: walpool.AsyncPool, begun: asyncio.Event) -> None:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, (1,))
            begun.set()
            await asyncio.Event().wait()

    async with open_table(database) as pool:
        begun = asyncio.Event()
        task = asyncio.create_task(hold(pool, begun))
        await outcome(begun.wait())
        task.cancel()
        await asyncio.sleep(0)  # it waits for the rollback by now
        task.cancel()
        await asyncio.wait([task])
        await assert_free(pool)
        assert await kept(pool) == []


@on_asyncio
async def test_stream_gives_its_reader_back_where_its_task_is_cancelled(database: Path) -> None:
    async def read(pool: walpool.AsyncPool, begun: asyncio.Event) -> None:
        async with pool.stream(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
        ) as rows:
            async for _ in rows:
                begun.set()
                await asyncio.sleep(0)

    async with open_table(database) as pool:
        begun = asyncio.Event()
        task = asyncio.create_task(read(pool, begun))
        await outcome(begun.wait())
        await cancel(task)
        await assert_free(pool)


# Opening and closing


@on_asyncio
async def test_cancelled_opening_leaves_a_pool_that_opens(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    task = asyncio.create_task(pool.open())
    await asyncio.sleep(0)
    await cancel(task)
    assert await pool.fetchval("SELECT 1") == 1
    await pool.close()


@on_asyncio
async def test_cancelled_close_closes_all_the_same(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.read):
            closing = asyncio.create_task(pool.close())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await cancel(closing)
            assert pool.closed
        with pytest.raises(walpool.ClosedError):
            await pool.fetchval("SELECT 1")


# What people wrap calls in


@on_every_loop
async def test_wait_for_gives_up_and_the_job_never_runs(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.transaction):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pool.execute(INSERT, (1,)), 0.02)
        await assert_free(pool)
        assert await kept(pool) == []


@needs_timeout
@on_every_loop
async def test_timeout_and_task_group_behave_as_with_any_other_call(database: Path) -> None:
    async with open_table(database) as pool:
        async with held(pool.transaction):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await pool.execute(INSERT, (1,))
            with pytest.raises(BaseException, match="unhandled errors in a TaskGroup") as failed:
                await one_of_two_fails(pool)
            assert isinstance(failed.value.exceptions[0], walpool.ProgrammingError)
        await assert_free(pool)
        assert await kept(pool) == []


async def one_of_two_fails(pool: walpool.AsyncPool) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.execute(INSERT, (2,)))
        group.create_task(pool.fetch("NONSENSE"))


@on_asyncio
async def test_shielded_job_runs_although_its_task_was_cancelled(database: Path) -> None:
    async def write(job: asyncio.Task[Any]) -> None:
        await asyncio.shield(job)

    async with open_table(database) as pool:
        async with held(pool.transaction):
            (job,) = await queue_up(pool, [pool.execute(INSERT, (1,))])
            task = asyncio.create_task(write(job))
            await asyncio.sleep(0)
            await cancel(task)
        await outcome(job)
        assert await kept(pool) == [1]


@on_asyncio
async def test_gather_gives_each_its_own_error(database: Path) -> None:
    async with open_table(database) as pool:
        results = await asyncio.gather(
            pool.execute(INSERT, (1,)), pool.execute("NONSENSE"), pool.fetchval("SELECT 7"), return_exceptions=True
        )
        assert isinstance(results[0], walpool.Result)
        assert isinstance(results[1], walpool.ProgrammingError)
        assert results[2] == 7


def timers() -> int:
    gc.collect()  # asked by type(), since another test's objects may lie about their __class__ or raise when asked
    handles = [thing for thing in gc.get_objects() if type(thing) is asyncio.TimerHandle]
    return sum(not handle.cancelled() for handle in handles)


@on_asyncio
async def test_calls_with_near_and_far_deadlines_leave_no_timers_behind(database: Path) -> None:
    async with open_table(database) as pool:
        before = timers()
        for _ in range(500):  # the far deadline is armed, then a nearer one
            far = [asyncio.create_task(pool.execute(INSERT, (n,))) for n in range(2)]
            near = asyncio.create_task(pool.execute(INSERT, (0,), timeout=0.001))
            await asyncio.gather(*far, near, return_exceptions=True)
        assert timers() <= before + 5


# Everything at once


class Load:
    """Calls of every kind under numbers of their own, and what is known of each: it must be there, or must not."""

    def __init__(self, pool: walpool.AsyncPool, seed: int) -> None:
        self.pool, self.random = pool, random.Random(seed)
        self.number = 0
        self.acknowledged: list[int] = []
        self.rolled_back: list[int] = []
        self.cancelled = 0

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self.one()

    async def one(self) -> None:
        self.number += 1
        number, kind = self.number, self.random.choice(self.KINDS)
        task = asyncio.create_task(kind(self, number))
        for _ in range(self.random.choice(self.PAUSES)):
            await asyncio.sleep(0)
        if self.random.random() < 0.1:
            await asyncio.sleep(self.random.random() * 0.002)
        task.cancel()
        await asyncio.wait([task])
        self.cancelled += task.cancelled()

    async def execute(self, number: int) -> None:
        await self.pool.execute(INSERT, (number,))
        self.acknowledged.append(number)

    async def batch(self, number: int) -> None:
        await self.pool.batch([(INSERT, (number,)), "DELETE FROM t WHERE a = -1"])
        self.acknowledged.append(number)

    async def transaction(self, number: int) -> None:
        async with self.pool.transaction() as tx:
            await tx.execute(INSERT, (number,))
        self.acknowledged.append(number)

    async def undone(self, number: int) -> None:
        self.rolled_back.append(number)
        try:
            async with self.pool.transaction() as tx:
                await tx.execute(INSERT, (number,))
                raise LookupError
        except LookupError:
            pass

    async def fetch(self, number: int) -> None:
        await self.pool.fetchval("SELECT count(*) FROM t")

    async def scan(self, number: int) -> None:
        await self.pool.fetchval(COUNT_TO, (20_000,))

    async def snapshot(self, number: int) -> None:
        async with self.pool.read() as snapshot:
            await snapshot.fetchval("SELECT count(*) FROM t")

    async def stream(self, number: int) -> None:
        async for _ in self.pool.stream("SELECT a FROM t LIMIT 300", chunk=100):
            pass

    KINDS = (execute, execute, execute, batch, transaction, undone, fetch, scan, snapshot, stream)
    PAUSES = (0, 0, 1, 1, 2, 3, 4, 5, 8, 13, 21)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_cancellations_at_random_instants_leave_nothing_behind(database: Path, loop: str, torture: Torture) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    cancellations = torture.size(2_000, 10_000)

    async def main(pool: walpool.AsyncPool) -> list[Load]:
        await pool.open()
        loads = [Load(pool, seed) for seed in range(8)]
        for place, load in enumerate(loads):
            load.number = place * 1_000_000
        await asyncio.gather(*(load.run(cancellations // 8) for load in loads))  # one round, to start what stays
        await until(lambda: is_free(pool))
        process = psutil.Process()
        threads, descriptors = threading.active_count(), process.num_fds()
        natives = process.num_threads()
        await asyncio.gather(*(load.run(cancellations // 8) for load in loads))
        await until(lambda: is_free(pool))
        assert (threading.active_count(), process.num_threads()) == (threads, natives)
        assert process.num_fds() == descriptors
        (desk,) = pool._desks.values()
        await until(lambda: desk.mailbox.waiting == 0)
        assert len(asyncio.all_tasks()) <= 2  # this one, and the one that runs it
        return loads

    with async_table(database, readers=3, synchronous="normal") as pool:
        loads = run(main(pool), loop=loop)
        rows = set(run(kept(pool)))
        lost = {number for load in loads for number in load.acknowledged} - rows
        undead = {number for load in loads for number in load.rolled_back} & rows
        torture.tell(
            f"cancellations on {loop}",
            tried=sum(load.cancelled for load in loads),
            unit="calls",
            lost=len(lost | undead),
        )
        assert sum(load.cancelled for load in loads) > cancellations // 4
        assert lost == undead == set()
        assert rows <= {load_number for load in loads for load_number in range(1, load.number + 1)}
