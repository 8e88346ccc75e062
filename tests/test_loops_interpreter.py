"""An interpreter whose loops end, or which itself ends, with an AsyncPool's work under way: nothing is lost or said."""

from __future__ import annotations

import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from helpers import COUNT_TO, WITHIN, run_python, start_python

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


# Not each time, hence not strict: the thread that rings may be waiting for the GIL when the interpreter begins to end.
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
    ending = [start_python(ENDING, make, sql, longest) for _ in range(4)]
    told = [process.communicate(timeout=WITHIN)[1] for process in ending]
    assert [process.returncode for process in ending] == [0] * 4, told


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
