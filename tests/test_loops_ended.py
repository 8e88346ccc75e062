"""What becomes of an AsyncPool's work when its task, its loop or its interpreter ends first."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from helpers import COUNT_TO, FOREVER, WITHIN, run_python, start_python
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


QUIETLY = """
    import asyncio, sys, walpool
    COUNT_TO = sys.argv[2]
    FOREVER = 10**12
    pool = walpool.AsyncPool(sys.argv[1], readers=4)

    async def writing():
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES ('never', 1)")
            await tx.fetch(COUNT_TO, (FOREVER,))

    async def holding():
        async with pool.read() as snapshot:
            await snapshot.fetch(COUNT_TO, (FOREVER,))

    async def streaming():
        async for row in pool.stream("SELECT 1 UNION SELECT 2", chunk=1):
            await asyncio.sleep(1000)

    async def main():
        await pool.script("CREATE TABLE IF NOT EXISTS t (who, a)")
        await pool.execute("INSERT INTO t VALUES ('kept', 1)")
        tasks = [asyncio.create_task(begin()) for begin in (writing, holding, streaming)]
        tasks.append(asyncio.create_task(pool.fetch(COUNT_TO, (FOREVER,))))
        while not ((figures := await pool.stats())["leases"] and figures["readers_out"] == 3):
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(pool.execute("INSERT INTO t VALUES ('perhaps', 2)")) for _ in range(20)]
        while (await pool.stats())["jobs_waiting"] < 20:
            await asyncio.sleep(0.001)
        return tasks
"""


def in_another_python(program: str, database: Path) -> str:
    """Run it after QUIETLY, and return what it had to say on its error output."""
    source = textwrap.dedent(QUIETLY) + textwrap.dedent(program)
    return run_python(source, database, COUNT_TO, options=["-X", "dev"], within=WITHIN)[1]


def kept(database: Path) -> list[str]:
    """Return what is in the table, but for jobs that were cancelled when the writer may have been free already."""
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [who for (who,) in conn.execute("SELECT who FROM t WHERE who <> 'perhaps'")]


def test_loops_that_end_with_much_under_way_have_nothing_to_say(database: Path) -> None:
    program = """
    import gc
    for _ in range(3):
        asyncio.run(main())
        gc.collect()
    asyncio.run(pool.execute("INSERT INTO t VALUES ('kept', 2)", timeout=10))
    asyncio.run(pool.close())
    """
    assert in_another_python(program, database) == ""
    assert kept(database) == ["kept"] * 4


@pytest.mark.parametrize("make", ["asyncio.SelectorEventLoop", "Unwatchful"])
def test_interpreter_ends_with_an_open_pool_after_a_warning_and_keeps_what_it_acknowledged(
    database: Path, make: str
) -> None:
    program = f"""
    from loopmakes import Unwatchful
    loop = {make}()
    tasks = loop.run_until_complete(main())
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    """
    told = in_another_python(program, database)
    assert "ResourceWarning: unclosed <walpool.AsyncPool" in told
    assert len(told.splitlines()) == 1, told
    assert kept(database) == ["kept"]


ENDING = """
    import asyncio, random, sys, walpool
    from loopmakes import Unwatchful
    make, sql, longest = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    pools = [walpool.AsyncPool(":memory:") for _ in range(4)]

    async def main():
        for pool in pools:
            await pool.fetchval("SELECT 1")
        lengths = [random.randrange(longest // 20, longest) for _ in range(4)]
        tasks = [asyncio.create_task(pool.fetch(sql, (length,))) for pool in pools for length in lengths]
        await asyncio.sleep(0.005)
        return tasks

    loop = make()
    kept = loop.run_until_complete(main())
"""


@pytest.mark.parametrize(
    ("make", "sql", "longest"),
    [
        ("Unwatchful", COUNT_TO, 400_000),
        ("asyncio.SelectorEventLoop", COUNT_TO.replace("count(*)", "i"), 60_000),
    ],
    ids=["that rings a bell by a thread", "that makes rows on native threads"],
)
def test_interpreter_ends_while_native_threads_have_something_to_tell_a_loop(make: str, sql: str, longest: int) -> None:
    for _ in range(4):
        ending = [start_python(ENDING, make, sql, longest) for _ in range(4)]
        for process in ending:
            _, told = process.communicate(timeout=WITHIN)
            assert process.returncode == 0, told


def test_interpreter_ends_in_the_middle_of_a_loop_and_keeps_what_it_acknowledged(database: Path) -> None:
    program = """
    import threading
    begun = threading.Event()

    async def in_a_thread():
        tasks = await main()
        begun.set()
        await asyncio.gather(*tasks)

    threading.Thread(target=lambda: asyncio.run(in_a_thread()), daemon=True).start()
    assert begun.wait(10)
    """
    told = in_another_python(program, database)
    assert "Traceback" not in told, told
    assert kept(database) == ["kept"]
