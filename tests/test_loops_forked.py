"""Parent and child go on with one AsyncPool, each on loops of its own; test_fork.py says what a fork can break."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.test_fork import forking, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# `loop_of(who, n)` does n pieces of work on a loop that begins and ends there.
POOL = """
import asyncio, walpool
pool = walpool.AsyncPool(path)
asyncio.run(pool.script("CREATE TABLE t (a)"))
LONG = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT max(i) FROM n"

async def piece(text):
    await pool.execute("INSERT INTO t VALUES (?)", (text,))
    async with pool.transaction() as tx:
        assert await tx.fetchval("SELECT count(*) FROM t WHERE a = ?", (text,)) == 1
        await tx.execute("INSERT INTO t VALUES (?)", (text + ", transaction",))
    assert await pool.fetchval(LONG) == 3000
    assert [row async for row in pool.stream("SELECT 1 UNION SELECT 2", chunk=1)] == [(1,), (2,)]

async def pieces(who, n):
    await asyncio.gather(*(piece(f"{who} {i}") for i in range(n)))

def loop_of(who, n):
    asyncio.run(asyncio.wait_for(pieces(who, n), 20))

def waited(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def forking_async(program: str, database: Path) -> Any:
    return forking(textwrap.indent(POOL, "    ") + program, database)


def of(who: str, n: int) -> list[str]:
    return [f"{who} {i}{kind}" for i in range(n) for kind in ("", ", transaction")]


def test_child_and_its_child_go_on_with_a_pool_whose_loop_has_ended(database: Path) -> None:
    program = """
    def grandchild():
        loop_of("grandchild", 3)
        asyncio.run(pool.close())
        assert pool.closed

    def child():
        assert not pool.closed
        loop_of("child", 10)
        loop_of("child again", 3)
        assert ended_well(fork(grandchild))
        loop_of("child at last", 3)
        asyncio.run(pool.close())

    loop_of("parent", 10)
    pids = [fork(child)]
    loop_of("parent again", 10)
    assert ended_well(pids[0])
    asyncio.run(pool.close())
    """
    forking_async(program, database)
    family = {"parent": 10, "parent again": 10, "child": 10, "child again": 3, "grandchild": 3, "child at last": 3}
    assert rows(database) == sorted(text for who, n in family.items() for text in of(who, n))


def test_workers_of_multiprocessing_begin_loops_on_the_pool_of_their_parent(database: Path) -> None:
    program = """
    import multiprocessing

    def work(n):
        loop_of(f"worker {n}", 2)
        return n

    loop_of("parent", 2)
    with multiprocessing.get_context("fork").Pool(3) as workers:
        assert workers.map(work, range(12)) == list(range(12))
    loop_of("parent again", 2)
    asyncio.run(pool.close())
    """
    forking_async(program, database)
    family = {"parent": 2, "parent again": 2} | {f"worker {n}": 2 for n in range(12)}
    assert rows(database) == sorted(text for who, n in family.items() for text in of(who, n))


def test_fork_beside_a_running_loop_loses_nothing_of_it_and_its_children_begin_their_own(database: Path) -> None:
    program = """
    stop, done = threading.Event(), []

    async def go_on(n):
        number = 0
        while not stop.is_set():
            await piece(f"parent {n}.{number}")
            done.append(f"parent {n}.{number}")
            number += 1

    async def main():
        await asyncio.gather(*(go_on(n) for n in range(6)))

    running = threading.Thread(target=lambda: asyncio.run(main()))
    running.start()
    for round in range(25):
        had = len(done)
        pids = [fork(lambda: loop_of(f"child {round}", 2)), fork(lambda: asyncio.run(pool.close()))]
        assert all([ended_well(pid) for pid in pids]), round
        while len(done) == had:  # the parent's loop goes on
            time.sleep(0.001)
    stop.set()
    running.join()
    asyncio.run(pool.close())
    print(json.dumps(done))
    """
    done = forking_async(program, database)
    wanted = [text for who in done for text in (who, f"{who}, transaction")]
    wanted += [text for n in range(25) for text in of(f"child {n}", 2)]
    assert rows(database) == sorted(wanted)


def test_fork_of_a_running_task_leaves_its_blocks_to_the_parent(database: Path) -> None:
    program = """
    async def refused(use):
        try:
            await use
        except walpool.errors.InterfaceError:
            return
        raise AssertionError("not refused")

    def reading(snapshot):
        async def main():
            await refused(snapshot.fetch("SELECT 1"))
            await pool.execute("INSERT INTO t VALUES ('child')")
            await pool.close()
        asyncio.run(main())

    def writing(tx):
        async def main():
            await refused(tx.execute("INSERT INTO t VALUES ('nowhere')"))
            assert await pool.fetch("SELECT a FROM t") == [("child",)]
        asyncio.run(main())

    async def main():
        async with pool.read() as snapshot:
            assert ended_well(fork(lambda: reading(snapshot)))
            assert await snapshot.fetch("SELECT a FROM t") == []
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES ('parent')")
            assert ended_well(fork(lambda: writing(tx)))
            await tx.execute("INSERT INTO t VALUES ('parent again')")
        await pool.close()

    asyncio.run(main())
    """
    forking_async(program, database)
    assert rows(database) == ["child", "parent", "parent again"]


@pytest.mark.parametrize(
    "block",
    ["pool.transaction()", "pool.read()", "pool.stream('SELECT 1')"],
)
def test_child_that_leaves_a_block_by_an_exception_ends_with_it_and_ends_nothing_of_the_parent(
    database: Path, block: str
) -> None:
    program = f"""
    async def main():
        async with {block} as inside:
            if hasattr(inside, "execute"):
                await inside.execute("INSERT INTO t VALUES ('parent')")
            pid = os.fork()
            if pid == 0:
                sys.stderr = open(os.devnull, "w")
                raise SystemExit(7)
            assert waited(pid) == 7
            if hasattr(inside, "execute"):
                await inside.execute("INSERT INTO t VALUES ('parent')")
            elif hasattr(inside, "fetch"):
                assert await inside.fetch("SELECT 1") == [(1,)]
            else:
                assert [row async for row in inside] == [(1,)]
        await piece("the end")
        await pool.close()

    asyncio.run(main())
    """
    forking_async(program, database)
    assert rows(database)[-2:] == ["the end", "the end, transaction"]
