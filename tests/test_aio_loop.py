"""The event loop is never blocked: a heartbeat goes on, whatever a call of AsyncPool has to wait for or to work at.

loop                           native threads, other processes
await pool.fetch(...)          a query that takes BLOCKED seconds
heartbeat, heartbeat ...
                               done
goes on with the rows

Nothing here is about speed: what would block the loop takes BLOCKED seconds or more; it may not stand still for STILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER, locked_by_another_process
from looping import (
    INSERT,
    STILL,
    Heartbeat,
    Holder,
    async_table,
    held,
    make_table,
    on_asyncio,
    on_every_loop,
    outcome,
    run,
    stat,
    until_reading,
)

import walpool
from tests.torture import Torture
from walpool import errors

BLOCKED = 2 * STILL  # seconds
LONG_WRITE = f"INSERT INTO t {COUNT_TO}"
ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i, 'row ' || i FROM n"


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool of two readers with an empty table that is not open yet."""
    with async_table(database, readers=2) as pool:
        yield pool


async def insert(tx: walpool.AsyncTransaction, value: Any) -> None:
    await tx.execute(INSERT, (value,))


async def in_transaction(
    pool: walpool.AsyncPool, work: Callable[[walpool.AsyncTransaction], Awaitable[object]]
) -> None:
    async with pool.transaction() as tx:
        await work(tx)


async def in_read(pool: walpool.AsyncPool, work: Callable[[walpool.AsyncSnapshot], Awaitable[object]]) -> None:
    async with pool.read() as snapshot:
        await work(snapshot)


async def streamed(pool: walpool.AsyncPool) -> None:
    async for _ in pool.stream(COUNT_TO, (COUNT_LONG,)):
        pass


@asynccontextmanager
async def beating(*, at_least: float = BLOCKED) -> AsyncIterator[None]:
    """Run a block that takes at least so many seconds, during which the loop may not stand still."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with Heartbeat() as heart:
        yield
    assert loop.time() - begun >= at_least, "this was over too soon to tell anything"
    heart.assert_free()


# What works

COUNT_LONG = 6_000_000  # STILL and more

LONG_CALLS: dict[str, Callable[[walpool.AsyncPool], Awaitable[Any]]] = {
    "fetch": lambda pool: pool.fetch(COUNT_TO, (COUNT_LONG,)),
    "stream": streamed,
    "read": lambda pool: in_read(pool, lambda snapshot: snapshot.fetchval(COUNT_TO, (COUNT_LONG,))),
    "execute": lambda pool: pool.execute(LONG_WRITE, (COUNT_LONG,)),
    "transaction, reading": lambda pool: in_transaction(pool, lambda tx: tx.fetchval(COUNT_TO, (COUNT_LONG,))),
    "transaction, writing": lambda pool: in_transaction(pool, lambda tx: tx.execute(LONG_WRITE, (COUNT_LONG,))),
}


@pytest.mark.parametrize("call", LONG_CALLS.values(), ids=LONG_CALLS)
@on_asyncio
async def test_long_statement_leaves_the_loop_free(
    table: walpool.AsyncPool, call: Callable[[walpool.AsyncPool], Awaitable[Any]]
) -> None:
    async with beating(at_least=STILL):
        await outcome(call(table))


@on_every_loop
async def test_long_statements_of_every_kind_at_once_leave_the_loop_free(table: walpool.AsyncPool) -> None:
    async with beating():
        with contextlib.suppress(errors.StatementTimeout):
            await asyncio.gather(
                table.fetch(COUNT_TO, (FOREVER,), timeout=BLOCKED),
                table.fetchval(COUNT_TO, (COUNT_LONG,)),
                table.fetchval(COUNT_TO, (COUNT_LONG,)),
                table.execute(LONG_WRITE, (COUNT_LONG,)),
            )


@on_asyncio
async def test_many_rows_and_many_parameters_leave_the_loop_free(table: walpool.AsyncPool) -> None:
    async with beating(at_least=STILL):
        rows = await table.fetch(ROWS, (600_000,))
        await table.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(600_000)))
    assert rows[-1] == (600_000, "row 600000")
    assert await table.fetchval("SELECT count(*) FROM t") == 600_000


@on_asyncio
async def test_many_rows_in_shapes_of_their_own_leave_the_loop_free(table: walpool.AsyncPool) -> None:
    async with beating(at_least=STILL):
        dicts = await table.fetch(ROWS, (300_000,), row=dict)
        made = await table.fetch(ROWS, (300_000,), row=lambda columns, values: values[0])
        async with table.transaction() as tx:
            assert len(await tx.fetch(ROWS, (300_000,))) == 300_000
        async with table.stream(ROWS, (300_000,), chunk=300_000) as stream:
            assert await anext(stream) == (1, "row 1")
    assert (len(dicts), sum(made)) == (300_000, 300_000 * 300_001 // 2)


@on_asyncio
async def test_backup_check_and_vacuum_of_a_large_file_leave_the_loop_free(
    table: walpool.AsyncPool, tmp_path: Path
) -> None:
    await table.executemany(INSERT, [(os.urandom(100_000),) for _ in range(1000)])
    await table.execute("DELETE FROM t WHERE rowid % 2")
    async with beating(at_least=STILL):
        await table.backup(tmp_path / "copy.db")
        assert await table.check() == []
        await table.vacuum()
        await table.checkpoint("truncate")


# What waits


@on_every_loop
async def test_file_that_another_process_keeps_leaves_the_loop_free(table: walpool.AsyncPool) -> None:
    await table.open()
    with locked_by_another_process(Path(table.path)):
        async with beating():
            ends = await asyncio.gather(
                table.execute(INSERT, (1,), timeout=BLOCKED),
                table.batch([(INSERT, (1,))], timeout=BLOCKED),
                table.run(lambda tx: insert(tx, 1), timeout=BLOCKED),
                *(table.execute(INSERT, (n,), timeout=BLOCKED) for n in range(100)),
                return_exceptions=True,
            )
            assert await table.fetchval("SELECT count(*) FROM t") == 0, "readers are not in the way of each other"
    assert {type(end) for end in ends} == {errors.WriteTimeout}


@on_every_loop
async def test_opening_a_file_that_another_process_keeps_leaves_the_loop_free(database: Path) -> None:
    with locked_by_another_process(database, "EXCLUSIVE"):
        pool = walpool.AsyncPool(database, busy_timeout=BLOCKED)
        async with beating():
            with pytest.raises(errors.BusyError):
                await pool.open()
        async with beating():
            ends = await asyncio.gather(pool.fetch("SELECT 1"), pool.execute(INSERT, (1,)), return_exceptions=True)
            assert {type(end) for end in ends} == {errors.BusyError}
    await pool.close()


@on_every_loop
async def test_closing_while_a_long_read_and_a_block_go_on_leaves_the_loop_free(table: walpool.AsyncPool) -> None:
    holder = await Holder(table.transaction).begun()
    reading = asyncio.create_task(table.fetch(COUNT_TO, (FOREVER,), timeout=BLOCKED))
    await until_reading(table, 1)
    async with beating(at_least=STILL):
        closing = asyncio.create_task(table.close())
        with pytest.raises(errors.StatementTimeout):
            await reading
        assert not closing.done()
        await holder.end()
        await outcome(closing)


@on_every_loop
async def test_full_queue_and_held_writer_and_readers_leave_the_loop_free(database: Path) -> None:
    async with walpool.AsyncPool(database, readers=1, max_waiting_bytes=4096) as pool:
        await pool.script("CREATE TABLE t (a)")
        async with held(pool.transaction), held(pool.read), beating():
            ends = await asyncio.gather(
                *(pool.execute(INSERT, (bytes(3000),), timeout=BLOCKED) for _ in range(100)),
                *(pool.run(lambda tx: insert(tx, 1), timeout=BLOCKED) for _ in range(100)),
                *(pool.fetchval("SELECT 1", timeout=BLOCKED) for _ in range(100)),
                return_exceptions=True,
            )
        assert {type(end) for end in ends} == {errors.WriteTimeout, errors.CheckoutTimeout}


# Short reads, which run on the loop's own thread


@on_every_loop
async def test_task_that_only_reads_lets_the_others_run(table: walpool.AsyncPool, torture: Torture) -> None:
    reads = torture.size(60_000, 1_000_000)
    async with Heartbeat() as heart:
        for n in range(reads):
            assert await table.fetchval("SELECT ?", (n,)) == n
    heart.assert_free()
    assert heart.beats > 10


@on_every_loop
async def test_statement_that_outgrows_its_budget_gives_the_same_answer(table: walpool.AsyncPool) -> None:
    made: list[int] = []

    def make(columns: tuple[str, ...], values: tuple[Any, ...]) -> object:
        made.append(values[0])
        return values[0]

    expected = []
    async with Heartbeat() as heart:
        for n in range(300):
            count = 200_000 + n if n % 30 == 29 else n + 1  # short for so long that it is trusted, then long
            expected.append(count)
            match n % 3:
                case 0:
                    assert await table.fetchval(COUNT_TO, (count,)) == count
                    made.append(count)
                case 1:
                    assert await table.fetchone(COUNT_TO, (count,), row=make) == count
                case _:
                    assert await table.fetch(COUNT_TO, (count,), row=make) == [count]
    assert made == expected, "each row was made once, in the order of the calls"
    heart.assert_free()
    assert await stat(table, "readers_out") == 0


@on_asyncio
async def test_rows_of_a_statement_that_outgrows_its_budget_are_given_once(table: walpool.AsyncPool) -> None:
    for count in (3, 5, 50_000, 2, 50_000):
        rows = await table.fetch(ROWS, (count,))
        assert [n for n, _ in rows] == list(range(1, count + 1))


# A synchronous pool on the loop


def streamed_plainly(pool: walpool.Pool) -> int:
    with pool.stream("SELECT 1") as rows:
        return len(list(rows))


def read_plainly(pool: walpool.Pool) -> Any:
    with pool.read() as snapshot:
        return snapshot.fetchval("SELECT 1")


def write_plainly(pool: walpool.Pool) -> int:
    with pool.transaction() as tx:
        return tx.execute(INSERT, (1,)).rowcount


def script_plainly(pool: walpool.Pool) -> int:
    pool.script("INSERT INTO t VALUES (1)")
    return 1


def vacuum_plainly(pool: walpool.Pool) -> int:
    pool.vacuum()
    return 1


PLAIN_CALLS: dict[str, Callable[[walpool.Pool], Any]] = {
    "execute": lambda pool: pool.execute(INSERT, (1,)).rowcount,
    "executemany": lambda pool: pool.executemany(INSERT, [(1,)]).rowcount,
    "batch": lambda pool: len(pool.batch([(INSERT, (1,))])),
    "script": script_plainly,
    "fetch": lambda pool: len(pool.fetch("SELECT 1")),
    "fetchone": lambda pool: len(pool.fetchone("SELECT 1")),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
    "stream": streamed_plainly,
    "read": read_plainly,
    "transaction": write_plainly,
    "checkpoint": lambda pool: len(pool.checkpoint()) - 2,
    "check": lambda pool: len(pool.check()) + 1,
    "vacuum": vacuum_plainly,
}


@pytest.mark.parametrize("verb", PLAIN_CALLS)
def test_synchronous_call_on_a_running_loop_works_and_warns_once_by_name(database: Path, verb: str) -> None:
    make_table(database)

    async def call_twice(pool: walpool.Pool) -> list[Any]:
        return [PLAIN_CALLS[verb](pool) for _ in range(2)]

    with walpool.Pool(database) as pool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert asyncio.run(call_twice(pool)) == [1, 1]
        told = [warning for warning in caught if warning.category is RuntimeWarning]
        assert len(told) == 1
        assert f"Pool.{verb}()" in str(told[0].message)
        assert told[0].filename == __file__, "it points at the call"
        assert PLAIN_CALLS[verb](pool) == 1  # off the loop: warnings are errors here


def test_synchronous_call_off_the_loops_thread_does_not_warn(database: Path) -> None:
    make_table(database)

    async def main(pool: walpool.Pool) -> None:
        for call in PLAIN_CALLS.values():
            assert await asyncio.to_thread(call, pool) == 1

    with walpool.Pool(database) as pool:
        run(main(pool))
