"""AsyncPool's deadlines and timeouts: each ends the wait that it names, in time, and what it refused was never applied.

task                           writer
await pool.execute(timeout=...)
                               held by a transaction()
the time is over: withdrawn
WriteTimeout
                               let go: goes on with the next
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER
from looping import INSERT, Holder, async_table, held, kept, on_asyncio, on_every_loop, outcome, queue_up, stat, until

import walpool
from walpool import errors

SOON = 0.05  # seconds


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool with an empty table that is not open yet."""
    with async_table(database) as pool:
        yield pool


@pytest.fixture
def scarce(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool of two readers with an empty table."""
    with async_table(database, readers=2) as pool:
        yield pool


@pytest.fixture
def impatient(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool whose blocks may last for a moment only."""
    with async_table(database, transaction_timeout=0.1) as pool:
        yield pool


async def insert(tx: walpool.AsyncTransaction, *values: Any) -> None:
    for value in values:
        await tx.execute(INSERT, (value,))


# Deadlines


@on_every_loop
async def test_idle_transaction_is_taken_back_while_its_task_sleeps(impatient: walpool.AsyncPool) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(pytest.raises(errors.TransactionTimeout, match="open for longer than"))
        tx = await stack.enter_async_context(impatient.transaction())
        await insert(tx, 1)
        other = walpool.AsyncPool(impatient.path)

        async def revoked() -> bool:
            return await stat(impatient, "leases_revoked") == 1

        await until(revoked)
        with pytest.raises(errors.TransactionTimeout):
            await insert(tx, 2)
        await other.close()
    assert await kept(impatient) == []
    assert (await impatient.execute(INSERT, (7,), timeout=1)).rowcount == 1


@on_asyncio
async def test_writer_of_a_transaction_that_is_taken_back_goes_to_the_next(impatient: walpool.AsyncPool) -> None:
    holder = await Holder(impatient.transaction, lambda tx: tx.fetch("SELECT 1")).begun()
    await insert(holder.inside, 1)
    assert (await outcome(impatient.execute(INSERT, (7,)))).rowcount == 1
    holder.let_go.set()
    with pytest.raises(errors.TransactionTimeout):
        await outcome(holder.task)
    assert await kept(impatient) == [7]


@on_every_loop
async def test_snapshot_and_stream_are_taken_back_after_transaction_timeout(impatient: walpool.AsyncPool) -> None:
    async def revoked() -> bool:
        return await stat(impatient, "leases_revoked") == 1

    async with impatient.read() as snapshot:
        await until(revoked)
        with pytest.raises(errors.TransactionTimeout, match="held for longer than"):
            await snapshot.fetch("SELECT 1")
    await impatient.pop_stats()
    async with impatient.stream("SELECT 1 UNION SELECT 2", chunk=1) as rows:
        assert await anext(rows) == (1,)
        await until(revoked)
        with pytest.raises(errors.TransactionTimeout, match="held for longer than"):
            await anext(rows)
    assert await stat(impatient, "readers_out") == 0


@on_asyncio
async def test_statement_in_a_block_is_stopped_at_the_blocks_deadline(impatient: walpool.AsyncPool) -> None:
    async with impatient.read() as snapshot:
        with pytest.raises(errors.TransactionTimeout, match="ran past"):
            await outcome(snapshot.fetch(COUNT_TO, (FOREVER,)))
    with pytest.raises(errors.TransactionTimeout):
        async with impatient.transaction() as tx:
            await outcome(tx.fetch(COUNT_TO, (FOREVER,)))
    assert await impatient.fetchval("SELECT 1") == 1
    assert (await impatient.execute(INSERT, (7,))).rowcount == 1


# Waiting

WRITES: dict[str, Callable[[walpool.AsyncPool, float | None], Awaitable[Any]]] = {
    "execute": lambda pool, timeout: pool.execute(INSERT, ("late",), timeout=timeout),
    "executemany": lambda pool, timeout: pool.executemany(INSERT, [("late",)], timeout=timeout),
    "batch": lambda pool, timeout: pool.batch([(INSERT, ("late",))], timeout=timeout),
    "script": lambda pool, timeout: pool.script("INSERT INTO t VALUES ('late')", timeout=timeout),
    "run": lambda pool, timeout: pool.run(lambda tx: insert(tx, "late"), timeout=timeout),
    "transaction": lambda pool, timeout: pool.transaction(timeout=timeout).__aenter__(),
}
READS: dict[str, Callable[[walpool.AsyncPool, float | None], Awaitable[Any]]] = {
    "fetch": lambda pool, timeout: pool.fetch("SELECT 1", timeout=timeout),
    "fetchone": lambda pool, timeout: pool.fetchone("SELECT 1", timeout=timeout),
    "fetchval": lambda pool, timeout: pool.fetchval("SELECT 1", timeout=timeout),
    "read": lambda pool, timeout: pool.read(timeout=timeout).__aenter__(),
    "stream": lambda pool, timeout: pool.stream("SELECT 1", timeout=timeout).__aenter__(),
    "bare stream": lambda pool, timeout: anext(aiter(pool.stream("SELECT 1", timeout=timeout))),
}


@pytest.mark.parametrize("timeout", [0, SOON])
@on_every_loop
async def test_write_whose_turn_does_not_come_is_withdrawn_in_time_and_never_applied(
    table: walpool.AsyncPool, timeout: float
) -> None:
    async with held(table.transaction):
        for verb, write in WRITES.items():
            begun = time.monotonic()
            with pytest.raises(errors.WriteTimeout) as caught:
                await outcome(write(table, timeout))
            assert timeout * 0.9 <= time.monotonic() - begun < timeout + 1, verb
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
            assert await stat(table, "jobs_waiting") == 0
    await table.execute(INSERT, ("next",))
    assert await kept(table) == ["next"]
    assert await stat(table, "jobs_withdrawn") == len(WRITES)


@pytest.mark.parametrize("timeout", [0, SOON])
@on_every_loop
async def test_read_without_a_free_reader_times_out(scarce: walpool.AsyncPool, timeout: float) -> None:
    async with held(scarce.read), held(lambda: scarce.stream("SELECT 1")):
        for verb, read in READS.items():
            begun = time.monotonic()
            with pytest.raises(errors.CheckoutTimeout) as caught:
                await outcome(read(scarce, timeout))
            assert timeout * 0.9 <= time.monotonic() - begun < timeout + 1, verb
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
    assert await scarce.fetchval("SELECT 1") == 1


@on_asyncio
async def test_timeouts_of_the_pool_hold_where_none_is_given(database: Path) -> None:
    async with walpool.AsyncPool(database, readers=1, checkout_timeout=SOON, write_timeout=SOON) as pool:
        await pool.script("CREATE TABLE t (a)")
        async with held(pool.transaction):
            with pytest.raises(errors.WriteTimeout):
                await pool.execute(INSERT, (1,))
        async with held(pool.read):
            with pytest.raises(errors.CheckoutTimeout):
                await pool.fetch("SELECT 1")


@on_every_loop
async def test_job_beyond_max_waiting_is_refused_at_once_and_never_applied(database: Path) -> None:
    async with walpool.AsyncPool(database, max_waiting=2) as pool:
        await pool.script("CREATE TABLE t (a)")
        async with held(pool.transaction):
            tasks = await queue_up(pool, [pool.execute(INSERT, (n,)) for n in range(2)])
            for write in WRITES.values():
                with pytest.raises(errors.QueueFull) as caught:
                    await outcome(write(pool, None), within=1)
                assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
        await asyncio.gather(*tasks)
        assert await kept(pool) == [0, 1]


@on_every_loop
async def test_await_beyond_max_waiting_bytes_waits_and_does_not_fail(database: Path) -> None:
    async with walpool.AsyncPool(database, max_waiting_bytes=4096) as pool:
        await pool.script("CREATE TABLE t (a)")
        big = b"x" * 3000
        async with held(pool.transaction) as holder:
            first = await queue_up(pool, [pool.execute(INSERT, (big,))])
            held_back = [asyncio.create_task(pool.execute(INSERT, (big,))) for _ in range(100)]
            with pytest.raises(errors.WriteTimeout):
                await pool.execute(INSERT, (big,), timeout=SOON)
            assert 3000 <= await stat(pool, "bytes_waiting") <= 4096
            assert not any(task.done() for task in held_back)
            assert await pool.fetchval("SELECT 1") == 1
            await insert(holder.inside, "small")
        await outcome(asyncio.gather(*first, *held_back))
        assert await pool.fetchval("SELECT count(*) FROM t") == 102
        assert await stat(pool, "bytes_waiting_peak") <= 4096
        assert await stat(pool, "bytes_waiting") == 0


@on_asyncio
async def test_job_larger_than_max_waiting_bytes_runs_when_the_queue_is_empty(database: Path) -> None:
    async with walpool.AsyncPool(database, max_waiting_bytes=1024, max_group_bytes=1024) as pool:
        await pool.script("CREATE TABLE t (a)")
        assert (await outcome(pool.execute(INSERT, (b"x" * 100_000,)))).rowcount == 1
