"""Closing an AsyncPool: all that was accepted is answered, the rest is refused, and what nobody closed loses nothing.

tasks                          closer
write, read, write ...
                               await close(): refuses new work
those in the queue: answered
the others: ClosedError
                               files closed; returns
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, eventually, run_python
from leftovers import engine_threads, open_descriptors, threads_left_since
from looping import (
    INSERT,
    Holder,
    kept,
    make_table,
    on_asyncio,
    on_every_loop,
    outcome,
    queue_up,
    run,
    until,
    until_reading,
    until_waiting,
)

import walpool
from walpool import errors


@pytest.fixture
def table(database: Path) -> walpool.AsyncPool:
    """Return a pool with an empty table that is not open yet, to be closed by the test."""
    make_table(database)
    return walpool.AsyncPool(database)


def found(database: Path) -> list[Any]:
    """Return what is in the table, read by a pool that is opened for it."""
    with walpool.Pool(database) as pool:
        return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY rowid")]


async def insert(tx: walpool.AsyncTransaction, value: Any) -> None:
    await tx.execute(INSERT, (value,))


# Complete


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_close_closes_every_file_and_ends_every_thread(database: Path, loop: str) -> None:
    before = engine_threads()

    async def use(number: int) -> None:
        async with walpool.AsyncPool(database, readers=4) as pool:
            await pool.script("CREATE TABLE IF NOT EXISTS t (a)")
            writes = [pool.execute(INSERT, (n,)) for n in range(10)]
            await asyncio.gather(*writes, *(pool.fetchval(COUNT_TO, (20_000,)) for _ in range(10)))
        assert open_descriptors(database) == []

    for number in range(5):
        run(use(number), loop=loop)
    assert threads_left_since(before) == {}
    assert [path.name for path in database.parent.iterdir()] == [database.name]


@on_every_loop
async def test_close_is_safe_twice_and_by_many_and_after_a_block(table: walpool.AsyncPool, database: Path) -> None:
    async with table:
        await table.execute(INSERT, (1,))
        await asyncio.gather(*(table.close() for _ in range(8)))
        assert table.closed
        assert open_descriptors(database) == [], "each of them returns only when it is done"
    await table.close()
    assert table.closed


@on_asyncio
async def test_pool_that_was_never_opened_closes_and_makes_no_file(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    await pool.close()
    assert pool.closed
    with pytest.raises(errors.ClosedError):
        await pool.fetch("SELECT 1")
    assert not database.exists()


VERBS: dict[str, Callable[[walpool.AsyncPool], Awaitable[Any]]] = {
    "open": lambda pool: pool.open(),
    "execute": lambda pool: pool.execute(INSERT, (1,)),
    "executemany": lambda pool: pool.executemany(INSERT, [(1,)]),
    "batch": lambda pool: pool.batch([(INSERT, (1,))]),
    "script": lambda pool: pool.script("INSERT INTO t VALUES (1)"),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "fetchone": lambda pool: pool.fetchone("SELECT 1"),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
    "stream": lambda pool: pool.stream("SELECT 1").__aenter__(),
    "bare stream": lambda pool: anext(aiter(pool.stream("SELECT 1"))),
    "read": lambda pool: pool.read().__aenter__(),
    "transaction": lambda pool: pool.transaction().__aenter__(),
    "run": lambda pool: pool.run(lambda tx: insert(tx, 1)),
    "checkpoint": lambda pool: pool.checkpoint(),
    "backup": lambda pool: pool.backup("never made.db"),
    "check": lambda pool: pool.check(),
    "vacuum": lambda pool: pool.vacuum(),
}


@on_every_loop
async def test_closed_pool_refuses_every_verb_and_still_tells_about_itself(
    table: walpool.AsyncPool, database: Path
) -> None:
    await table.execute(INSERT, (7,))
    await table.close()
    for call in VERBS.values():
        with pytest.raises(errors.ClosedError, match="the pool is closed") as caught:
            await call(table)
        assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    assert (table.path, table.closed) == (str(database.resolve()), True)
    assert (await table.stats())["jobs"] == 1
    assert repr(table) == f"<walpool.AsyncPool {table.path!r} closed>"


@on_asyncio
async def test_last_handle_of_either_kind_closes_the_file(table: walpool.AsyncPool, database: Path) -> None:
    plain = await asyncio.to_thread(walpool.Pool, database)
    other = walpool.AsyncPool(database)
    await other.open()
    await table.execute(INSERT, (1,))
    await table.close()
    await asyncio.to_thread(plain.close)
    assert (await other.execute(INSERT, (2,))).rowcount == 1
    assert open_descriptors(database) != []
    await other.close()
    assert open_descriptors(database) == []


# Whoever is at work meanwhile


@on_every_loop
async def test_close_answers_all_that_was_accepted_and_refuses_the_rest(
    table: walpool.AsyncPool, database: Path
) -> None:
    reading = await Holder(table.read, lambda snapshot: snapshot.fetchval("SELECT count(*) FROM t")).begun()
    writing = await Holder(table.transaction, lambda tx: insert(tx, 1)).begun()
    queued = await queue_up(table, [table.execute(INSERT, (2,)), table.executemany(INSERT, [(3,), (4,)])])
    leased = asyncio.create_task(table.run(lambda tx: insert(tx, 5)))
    long_read = asyncio.create_task(table.fetchval(COUNT_TO, (3_000_000,)))
    await until_waiting(table, 3)
    await until_reading(table, 2)
    closing = asyncio.create_task(table.close())
    await until(lambda: table.closed)
    with pytest.raises(errors.ClosedError):
        await table.execute(INSERT, ("refused",))
    assert await reading.inside.fetchval("SELECT count(*) FROM t") == 0
    await insert(writing.inside, 0)
    assert not closing.done()
    await writing.end()
    await reading.end()
    await outcome(asyncio.gather(*queued, leased, closing))
    assert await long_read == 3_000_000
    assert open_descriptors(database) == []
    assert await asyncio.to_thread(found, database) == [0, 1, 2, 3, 4, 5]


@on_every_loop
async def test_every_call_during_close_is_answered_or_refused(database: Path) -> None:
    acknowledged: list[str] = []

    async def write(pool: walpool.AsyncPool, name: str) -> None:
        for n in range(10_000):
            value = f"{name}/{n}"
            match n % 3:
                case 0:
                    await pool.execute(INSERT, (value,))
                case 1:
                    await pool.executemany(INSERT, [(value,)])
                case _:
                    async with pool.transaction() as tx:
                        await insert(tx, value)
            acknowledged.append(value)

    async def read(pool: walpool.AsyncPool) -> None:
        while True:
            assert await pool.fetchval("SELECT ?", (7,)) == 7
            await asyncio.sleep(0)
            assert [row async for row in pool.stream("SELECT 1 UNION SELECT 2", chunk=1)] == [(1,), (2,)]

    for number in range(3):
        pool = walpool.AsyncPool(database)
        await pool.script("CREATE TABLE IF NOT EXISTS t (a)")
        already = len(acknowledged)
        tasks = [asyncio.create_task(write(pool, f"{number}/{index}")) for index in range(8)]
        tasks += [asyncio.create_task(read(pool)) for _ in range(4)]
        await until(lambda already=already: len(acknowledged) > already + 50)  # type: ignore[misc]
        await outcome(pool.close())
        ends = await outcome(asyncio.gather(*tasks, return_exceptions=True))
        assert {type(end) for end in ends} == {errors.ClosedError}
        assert open_descriptors(database) == []
    kept_values = await asyncio.to_thread(found, database)
    assert sorted(kept_values) == sorted(acknowledged)


@on_asyncio
async def test_close_takes_back_what_is_held_for_too_long(database: Path) -> None:
    pool = walpool.AsyncPool(database, transaction_timeout=0.1)
    reading, writing = await Holder(pool.read).begun(), await Holder(pool.transaction).begun()
    await outcome(pool.close())
    assert open_descriptors(database) == []
    for holder in (reading, writing):
        holder.let_go.set()
    await reading.task
    with pytest.raises(errors.TransactionTimeout):
        await writing.task


# Nobody closed it


def test_pool_that_nobody_closed_warns_and_closes(database: Path) -> None:
    pools = [walpool.AsyncPool(database)]
    run(pools[0].script("CREATE TABLE t (a)"))
    with pytest.warns(ResourceWarning, match=r"unclosed <walpool.AsyncPool '.*test.db' open>"):
        pools.clear()
        gc.collect()
    eventually(lambda: open_descriptors(database) == [])
    assert found(database) == []


@on_asyncio
async def test_pool_that_nobody_closed_warns_while_its_loop_goes_on(database: Path) -> None:
    pools = [walpool.AsyncPool(database)]
    await pools[0].script("CREATE TABLE t (a)")
    with pytest.warns(ResourceWarning, match="unclosed"):
        pools.clear()
        gc.collect()
    await until(lambda: open_descriptors(database) == [])


def test_pool_that_is_closed_or_was_never_opened_does_not_warn(database: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = walpool.AsyncPool(database)
        run(closed.script("CREATE TABLE t (a)"))
        run(closed.close())
        never_opened = walpool.AsyncPool(database)
        failed = walpool.AsyncPool(tmp_path / "no such folder" / "test.db")
        with contextlib.suppress(errors.StorageError):
            run(failed.open())
        del closed, never_opened, failed
        gc.collect()


UNCLOSED = """
    import asyncio, sys
    import walpool
    async def main():
        global pool
        pool = walpool.AsyncPool(sys.argv[1])
        await pool.script("CREATE TABLE t (a)")
        for n in range(100):
            await pool.execute("INSERT INTO t VALUES (?)", (n,))
    asyncio.run(main())
"""


def test_unclosed_pool_loses_nothing_at_exit_and_warns_where_warnings_are_shown(database: Path, tmp_path: Path) -> None:
    assert run_python(UNCLOSED, database) == ("", "")
    assert found(database) == list(range(100))
    _, told = run_python(UNCLOSED, tmp_path / "other.db", options=["-W", "always::ResourceWarning"])
    assert "ResourceWarning: unclosed <walpool.AsyncPool" in told


def test_unclosed_pool_with_blocks_open_ends_well_and_keeps_what_was_committed(database: Path) -> None:
    program = UNCLOSED.replace(
        "asyncio.run(main())",
        """
    async def hold():
        async with pool.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES ('never committed')")
            await asyncio.sleep(3600)
    async def read():
        async with pool.read() as snapshot:
            await snapshot.fetchval("SELECT 1")
            await asyncio.sleep(3600)
    async def all_of_it():
        await main()
        global tasks
        tasks = [asyncio.create_task(hold()), asyncio.create_task(read())]
        while (await pool.stats())["readers_out"] < 1 or (await pool.stats())["leases"] < 1:
            await asyncio.sleep(0)
    asyncio.run(all_of_it())
""",
    )
    assert run_python(program, database) == ("", "")
    assert found(database) == list(range(100))


@on_every_loop
async def test_close_and_open_again_and_again_keep_everything(database: Path) -> None:
    for n in range(20):
        async with walpool.AsyncPool(database) as pool:
            await pool.script("CREATE TABLE IF NOT EXISTS t (a)")
            await pool.execute(INSERT, (n,))
            assert await kept(pool) == list(range(n + 1))
