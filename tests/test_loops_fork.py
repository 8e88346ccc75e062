"""AsyncPool and fork: the child uses the pool in a loop of its own, and the parent's loops go on.

parent                         child
asyncio.run: pool used
fork                           asyncio.run: the same pool, opened anew
goes on, in the same loop
or another
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_fork import forking, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# `insert(value)` and `use(name)` write and read by every verb.
USING = """
    import asyncio, walpool
    from helpers import COUNT_TO
    INSERT = "INSERT INTO t VALUES (?)"
    pool = walpool.AsyncPool(path)

    async def make():
        await pool.script("CREATE TABLE t (a)")

    async def insert(value):
        await pool.execute(INSERT, (value,))

    async def use(name):
        await insert(f"{name}, execute")
        async with pool.transaction() as tx:
            await tx.execute(INSERT, (f"{name}, transaction",))
        async with pool.read() as snapshot:
            assert await snapshot.fetchval("SELECT count(*) FROM t WHERE a LIKE ?", (f"{name},%",)) == 2
        assert [row async for row in pool.stream("SELECT 1")] == [(1,)]
        assert len(await asyncio.gather(*(pool.fetchval("SELECT ?", (n,)) for n in range(20)))) == 20
        assert await pool.fetchval(COUNT_TO, (100_000,)) == 100_000  # on a native thread
"""


def of(*names: str) -> list[str]:
    return sorted(f"{name}, {verb}" for name in names for verb in ("execute", "transaction"))


def test_child_of_a_parent_whose_loop_is_over_uses_the_pool_in_a_loop_of_its_own(database: Path) -> None:
    program = """
    asyncio.run(make())
    asyncio.run(use("parent"))

    def child():
        assert not pool.closed
        asyncio.run(use("child"))
        asyncio.run(use("child again"))
        asyncio.run(pool.close())

    assert ended_well(fork(child))
    asyncio.run(use("parent again"))
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == of("child", "child again", "parent", "parent again")


def test_child_that_never_uses_the_pool_leaves_it_to_the_parent(database: Path) -> None:
    program = """
    asyncio.run(make())
    assert ended_well(fork(lambda: None))
    asyncio.run(use("parent"))
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == of("parent")


def test_pool_that_is_not_open_yet_is_opened_by_each(database: Path) -> None:
    program = """
    first = walpool.Pool(path)
    first.script("CREATE TABLE t (a)")
    first.close()

    def child():
        asyncio.run(use("child"))
        asyncio.run(pool.close())

    assert ended_well(fork(child))
    asyncio.run(use("parent"))
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == of("child", "parent")


def test_loop_of_the_parent_goes_on_while_another_thread_forks(database: Path) -> None:
    program = """
    asyncio.run(make())
    begun, enough = threading.Event(), threading.Event()
    written = []

    async def write(name):
        while not enough.is_set():
            value = f"parent, {name}/{len(written)}"
            await insert(value)
            written.append(value)
            await pool.fetchval("SELECT count(*) FROM t")
            if len(written) > 20:
                begun.set()

    async def write_all():
        await asyncio.gather(*(write(name) for name in range(4)))

    thread = threading.Thread(target=lambda: asyncio.run(write_all()))
    thread.start()
    begun.wait(30)

    def child():
        asyncio.run(use(f"child {number}"))
        asyncio.run(pool.close())

    for number in range(5):
        assert ended_well(fork(child))
        before = len(written)
        while len(written) < before + 20:
            assert thread.is_alive()
            os.sched_yield()
    enough.set()
    thread.join()
    asyncio.run(pool.close())
    print(json.dumps(written))
    """
    written = forking(USING + program, database)
    children = of(*(f"child {number}" for number in range(5)))
    assert sorted(rows(database)) == sorted([*written, *children])


def test_child_that_is_forked_on_the_loop_itself_uses_the_pool_in_a_loop_of_its_own(database: Path) -> None:
    program = """
    async def main():
        await make()
        async with pool.transaction() as tx:
            await tx.execute(INSERT, ("parent's, not yet committed",))
            pid = fork(child)
        await use("parent")
        return ended_well(pid)

    def child():
        # The write lock is the parent's until its block ends; the child knows nothing of the block.
        thread = threading.Thread(target=lambda: asyncio.run(use("child")))
        thread.start()
        thread.join()
        assert len(thread_errors) == 0

    thread_errors = []
    threading.excepthook = thread_errors.append
    assert asyncio.run(main())
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == sorted([*of("child", "parent"), "parent's, not yet committed"])


def test_workers_of_multiprocessing_share_the_pool_of_their_parent(database: Path) -> None:
    program = """
    import multiprocessing
    asyncio.run(make())
    asyncio.run(use("parent"))
    forked = multiprocessing.get_context("fork")

    def work(number):
        asyncio.run(use(f"worker {number}"))

    with forked.Pool(3) as workers:
        workers.map(work, range(6))
        workers.close()
        workers.join()
    asyncio.run(use("parent again"))
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == of("parent", "parent again", *(f"worker {number}" for number in range(6)))


def test_grandchildren_and_several_pools_go_on(database: Path) -> None:
    program = """
    other = walpool.Pool(path)
    asyncio.run(make())

    def grandchild():
        asyncio.run(use("grandchild"))

    def child():
        asyncio.run(use("child"))
        other.execute(INSERT, ("child, plain",))
        assert ended_well(fork(grandchild))
        asyncio.run(pool.close())
        other.execute(INSERT, ("child, plain again",))
        other.close()

    assert ended_well(fork(child))
    other.close()
    asyncio.run(use("parent"))
    asyncio.run(pool.close())
    """
    forking(USING + program, database)
    assert rows(database) == sorted([*of("child", "grandchild", "parent"), "child, plain", "child, plain again"])
