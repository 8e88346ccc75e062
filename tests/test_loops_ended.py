"""What becomes of an AsyncPool's work when its task, its loop or its interpreter ends first."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from helpers import COUNT_TO, FOREVER, WITHIN
from leftovers import open_descriptors
from loopmakes import ADD, Make, counts, is_free, on_each_make, run, shared_pool

import walpool

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup  # anyio brings it

Scene = Callable[[walpool.AsyncPool], Awaitable[object]]
FILL = "INSERT INTO t " + COUNT_TO.replace("SELECT count(*)", "SELECT 'never', i")


@pytest.fixture
def shared(database: Path) -> Iterator[walpool.AsyncPool]:
    with shared_pool(database) as pool:
        yield pool


# What is under way when it is cut off; each has something to lose


async def reading(pool: walpool.AsyncPool) -> None:
    await pool.fetch(COUNT_TO, (FOREVER,))


async def reading_a_snapshot(pool: walpool.AsyncPool) -> None:
    async with pool.read() as snapshot:
        await snapshot.fetch(COUNT_TO, (FOREVER,))


async def holding_a_snapshot(pool: walpool.AsyncPool) -> None:
    async with pool.read() as snapshot:
        await snapshot.fetch("SELECT 1")
        await asyncio.sleep(WITHIN)


async def holding_a_stream(pool: walpool.AsyncPool) -> None:
    async with pool.stream("SELECT 1 UNION SELECT 2", chunk=1) as rows:
        async for _ in rows:
            await asyncio.sleep(WITHIN)


async def iterating(pool: walpool.AsyncPool) -> None:
    async for _ in pool.stream("SELECT 1 UNION SELECT 2", chunk=1):
        await asyncio.sleep(WITHIN)


async def holding_the_writer(pool: walpool.AsyncPool) -> None:
    async with pool.transaction() as tx:
        await tx.execute(ADD, ("never", 1))
        async with tx.transaction():
            await asyncio.sleep(WITHIN)


async def writing_in_a_transaction(pool: walpool.AsyncPool) -> None:
    async with pool.transaction() as tx:
        await tx.execute(ADD, ("never", 1))
        await tx.execute(FILL, (FOREVER,))


async def reading_in_a_transaction(pool: walpool.AsyncPool) -> None:
    async def main(tx: walpool.AsyncTransaction) -> None:
        await tx.execute(ADD, ("never", 1))
        await tx.fetch(COUNT_TO, (FOREVER,))

    await pool.run(main)


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        reading,
        reading_a_snapshot,
        holding_a_snapshot,
        holding_a_stream,
        iterating,
        holding_the_writer,
        writing_in_a_transaction,
        reading_in_a_transaction,
    )
}
on_each_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())


async def under_way(pool: walpool.AsyncPool, scene: Scene) -> asyncio.Task[object]:
    """Return the scene as a task, once it has a reader or the writer."""

    async def play() -> object:
        return await scene(pool)

    leases = (await pool.stats())["leases"]
    task = asyncio.create_task(play())
    while not task.done():
        figures = await pool.stats()
        if figures["readers_out"] or figures["leases"] > leases:
            break
        await asyncio.sleep(0.001)
    assert not task.done(), repr(task)
    return task


# Tasks that are cancelled


@on_each_make
@on_each_scene
def test_what_is_cancelled_gives_back_what_it_held(shared: walpool.AsyncPool, scene: Scene, make: Make) -> None:
    async def main() -> None:
        task = await under_way(shared, scene)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, WITHIN)
        assert await is_free(shared)
        assert await counts(shared) == {}

    run(main(), make)


@on_each_make
def test_jobs_of_many_tasks_are_kept_or_never_run_when_half_of_them_are_cancelled(
    shared: walpool.AsyncPool, make: Make
) -> None:
    async def main() -> None:
        held, let_go = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with shared.transaction():
                held.set()
                await let_go.wait()

        holder = asyncio.create_task(hold())
        await held.wait()
        jobs = [asyncio.create_task(shared.execute(ADD, ("job", number))) for number in range(1000)]
        await asyncio.sleep(0)
        for job in jobs[::2]:
            job.cancel()
        await asyncio.wait(jobs[::2])
        let_go.set()
        await holder
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        assert all(isinstance(answer, walpool.Result) for answer in answers[1::2])
        assert [a for (a,) in await shared.fetch("SELECT a FROM t ORDER BY a")] == list(range(1, 1000, 2))

    run(main(), make)


@on_each_scene
def test_move_on_after_of_anyio_cuts_off_and_gives_back(shared: walpool.AsyncPool, scene: Scene) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.05) as scope:
            await scene(shared)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(0.02):
            await scene(shared)
        assert await is_free(shared)
        assert await counts(shared) == {}

    anyio.run(main, backend="asyncio")


def test_task_group_of_anyio_takes_the_verbs_and_fails_as_a_whole(shared: walpool.AsyncPool) -> None:
    async def fail_together() -> None:
        async with anyio.create_task_group() as group:
            for scene in (reading, holding_the_writer):
                group.start_soon(scene, shared)
            while (await shared.stats())["leases"] == 0:
                await anyio.sleep(0.001)
            group.start_soon(shared.fetch, "NONSENSE")

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(shared.execute, ADD, ("group", number))
        assert await counts(shared) == {"group": 100}
        with pytest.raises(BaseExceptionGroup) as failed:
            await fail_together()
        assert failed.group_contains(walpool.errors.ProgrammingError)
        assert await is_free(shared)
        assert await counts(shared) == {"group": 100}

    anyio.run(main, backend="asyncio")


def test_pool_whose_block_ends_in_a_cancelled_scope_is_closed_all_the_same(database: Path) -> None:
    async def main() -> None:
        pool = walpool.AsyncPool(database)
        with anyio.CancelScope() as scope:
            async with pool:
                await pool.script("CREATE TABLE t (who, a)")
                scope.cancel()
        assert pool.closed
        await pool.close()
        assert open_descriptors(database) == []

    anyio.run(main, backend="asyncio")


# Loops that end


@on_each_make
@on_each_scene
def test_loop_that_ends_with_work_under_way_leaves_the_pool_to_the_next(
    shared: walpool.AsyncPool, scene: Scene, make: Make
) -> None:
    run(under_way(shared, scene), make)
    assert run(is_free(shared), make)
    assert run(counts(shared), make) == {}


@on_each_scene
def test_loop_that_is_closed_without_cancelling_leaves_the_pool_to_the_next(
    shared: walpool.AsyncPool, scene: Scene
) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # tasks are destroyed while they are pending: that is the point
    loop.run_until_complete(under_way(shared, scene))
    loop.close()
    del loop
    run(shared.fetchval("SELECT 1"))  # whoever begins a loop sees that the other has ended
    gc.collect()
    assert run(is_free(shared))
    assert run(counts(shared)) == {}
