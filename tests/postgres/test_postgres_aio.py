"""AsyncPostgresPool: the verbs awaited, loops that are never blocked, tasks that are cancelled.

task                        a thread of the pool's           server
await pool.fetch(...)       sends it, waits                  runs it
cancel()                    asks the server to stop it       stops it
CancelledError              gives the reader back
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
from helpers import WITHIN, eventually
from looping import Heartbeat, cancel, held, on_asyncio, on_every_loop, outcome, run, stat, until, until_waiting

from tests.postgres.pools import (
    INSERT,
    Proxy,
    assert_unharmed,
    groups_held,
    kept,
    nothing_is_out,
    plain,
    running,
    stopping_slowly,
    terminate,
)
from walpool import errors
from walpool.postgres import AsyncPostgresPool, AsyncTransaction, PostgresPool


@on_every_loop
async def test_verbs_are_those_of_the_plain_pool(apg: AsyncPostgresPool) -> None:
    async with apg as pool:
        assert (await pool.execute(f"{INSERT} RETURNING a", ("x",))).rows == [("x",)]
        assert (await pool.executemany(INSERT, [("y",), ("z",)])).rowcount == 2
        assert [each.rowcount for each in await pool.batch([(INSERT, ("w",)), "UPDATE t SET n = 1"])] == [1, 4]
        assert await pool.batch([]) == []
        await pool.script("INSERT INTO t (a) VALUES ('v'); SELECT 1")
        assert await pool.fetch("SELECT a FROM t ORDER BY a", row=dict) == [{"a": a} for a in "vwxyz"]
        assert await pool.fetchone("SELECT a FROM t WHERE a = ?", ("y",)) == ("y",)
        assert await pool.fetchval("SELECT count(*) FROM t") == 5
        assert [row async for row in pool.stream("SELECT a FROM t ORDER BY a", chunk=2)] == [(a,) for a in "vwxyz"]
        async with pool.read() as snapshot:
            assert await snapshot.fetchval("SELECT count(*) FROM t") == 5
        async with pool.transaction() as tx:
            await tx.executemany("UPDATE t SET n = ? WHERE a = ?", [(5, "x"), (6, "y")])
            with pytest.raises(errors.IntegrityError):
                await tx.execute(INSERT, ("x",))
            with pytest.raises(ZeroDivisionError):
                async with tx.transaction():
                    await tx.execute("DELETE FROM t")
                    raise ZeroDivisionError
            assert await tx.fetchone("SELECT sum(n) FROM t WHERE n > 1") == (11,)
        assert await pool.run(lambda tx: tx.fetchval("SELECT n FROM t WHERE a = 'x'")) == 5
        assert (await pool.stats())["jobs"] > 0
        for verb in (pool.checkpoint, pool.check, pool.vacuum, partial(pool.backup, "x")):
            with pytest.raises(errors.NotSupportedError):
                await verb()
    with pytest.raises(errors.ClosedError):
        await apg.fetch("SELECT 1")


@on_asyncio
async def test_errors_are_those_of_the_plain_pool(apg: AsyncPostgresPool) -> None:
    await apg.execute(INSERT, ("x",))
    with pytest.raises(errors.IntegrityError, match="in row 2 of executemany") as refused:
        await apg.executemany(INSERT, [("y",), ("x",)])
    assert refused.value.outcome == "not_applied"
    with pytest.raises(errors.ProgrammingError):
        await apg.fetch(INSERT, ("y",))
    with pytest.raises(errors.StatementTimeout):
        await apg.fetch("SELECT pg_sleep(30)", timeout=0.1)
    with pytest.raises(ValueError, match="chunk"):
        apg.stream("SELECT 1", chunk=0)
    with pytest.raises(errors.ProgrammingError, match="key"):
        await apg.execute(INSERT, ("y",), key=1)  # type: ignore[arg-type]


@on_every_loop
async def test_two_hundred_tasks_are_served(apg: AsyncPostgresPool) -> None:
    async def work(n: int) -> None:
        await apg.execute(INSERT, (str(n),))
        assert await apg.fetchval("SELECT a FROM t WHERE a = ?", (str(n),)) == str(n)
        if n % 10 == 0:
            async with apg.transaction() as tx:
                await tx.execute("UPDATE t SET n = 1 WHERE a = ?", (str(n),))
        if n % 3 == 0:
            assert [row async for row in apg.stream("SELECT a FROM t WHERE a = ?", (str(n),))] == [(str(n),)]

    await asyncio.gather(*(work(n) for n in range(200)))
    assert await apg.fetchone("SELECT count(*), sum(n) FROM t") == (200, 20)


@on_asyncio
async def test_slow_server_does_not_block_the_loop(apg: AsyncPostgresPool) -> None:
    async def in_transaction() -> None:
        async with apg.transaction() as tx:
            await tx.fetch("SELECT pg_sleep(0.2)")

    async with Heartbeat() as heart:
        await asyncio.gather(
            *(apg.fetch("SELECT pg_sleep(0.1)") for _ in range(8)),  # there are two readers
            *(apg.execute("SELECT pg_sleep(0.1)") for _ in range(8)),
            *(in_transaction() for _ in range(30)),  # and sixteen connections for these
        )
    heart.assert_free()
    assert heart.beats > 20


@on_asyncio
async def test_connection_that_takes_long_to_open_does_not_block_the_loop(postgres_url: str) -> None:
    let_go = threading.Event()

    def wait(data: bytes) -> None:
        let_go.wait(WITHIN)

    with Proxy(postgres_url, wait) as proxy:
        pool = AsyncPostgresPool(proxy.url)
        async with Heartbeat() as heart:
            opening = asyncio.create_task(pool.open())
            await until(lambda: heart.beats > 50)
            assert not opening.done()
            let_go.set()
            await outcome(opening)
            await pool.close()
        heart.assert_free()


# Cancelled tasks


@on_every_loop
async def test_job_that_is_cancelled_in_line_never_runs(
    apg: AsyncPostgresPool, pg: PostgresPool, postgres_url: str
) -> None:
    await apg.open()
    with ExitStack() as stack:
        stack.enter_context(groups_held(postgres_url, pg))
        tasks = []
        for n in range(6):
            tasks.append(asyncio.create_task(apg.execute(INSERT, (str(n),))))
            await until_waiting(apg, n + 1)  # type: ignore[arg-type]
        for task in tasks[::2]:
            await cancel(task)
        assert await stat(apg, "jobs_waiting") == 3  # type: ignore[arg-type]
    assert [(await outcome(task)).rowcount for task in tasks[1::2]] == [1, 1, 1]
    assert await apg.fetch("SELECT a FROM t ORDER BY a") == [("1",), ("3",), ("5",)]


@on_every_loop
async def test_jobs_of_tasks_go_by_one_that_takes_long(apg: AsyncPostgresPool) -> None:
    await apg.open()
    slow = asyncio.create_task(apg.execute("SELECT pg_sleep(2)"))
    quick = [asyncio.create_task(apg.execute(INSERT, (str(n),))) for n in range(20)]  # before it has taken long
    await asyncio.gather(*quick)
    assert not slow.done()
    await slow


@on_asyncio
async def test_job_that_is_held_back_and_cancelled_never_runs_and_ends_at_once(postgres_url: str) -> None:
    with PostgresPool(postgres_url, max_waiting_bytes=3000) as plain_pool:
        plain_pool._warns_on_loop = False
        plain_pool.script("CREATE TABLE t (a text)")
        pool = AsyncPostgresPool(postgres_url)
        await pool.open()
        with groups_held(postgres_url, plain_pool):
            first = asyncio.create_task(pool.execute(INSERT, ("1" + 2000 * "x",)))
            await until_waiting(pool, 1)  # type: ignore[arg-type]
            async with Heartbeat() as heart:
                held_back = [asyncio.create_task(pool.execute(INSERT, (f"{n}" + 2000 * "x",))) for n in (2, 3)]
                await until(lambda: heart.beats > 30)
                await cancel(held_back[0], within=5)
                assert not held_back[1].done()
            heart.assert_free()
        await outcome(first)
        await outcome(held_back[1])
        assert sorted(a[0] for a in kept(plain_pool)) == ["1", "3"]
        assert plain_pool.stats()["bytes_waiting"] == 0
        await pool.close()
        assert_unharmed(plain_pool)


@on_asyncio
async def test_job_whose_turn_does_not_come_in_time_never_runs(
    apg: AsyncPostgresPool, pg: PostgresPool, postgres_url: str
) -> None:
    await apg.open()
    with groups_held(postgres_url, pg):
        with pytest.raises(errors.WriteTimeout) as refused:
            await apg.execute(INSERT, ("late",), timeout=0.1)
        assert refused.value.outcome == "not_applied"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(apg.execute(INSERT, ("late",)), 0.1)
    assert await apg.fetch("SELECT a FROM t") == []


@on_every_loop
async def test_cancelled_read_waits_for_no_thread_of_the_loop(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    loop, over = asyncio.get_running_loop(), threading.Event()
    await apg.fetchval("SELECT 1")  # it is opened by one
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, over.wait)
    try:
        task = asyncio.create_task(apg.fetch("SELECT pg_sleep(60)"))
        await until(lambda: len(running(other, "pg_sleep(60)")) == 1)
        await cancel(task, within=5)
        assert not busy.done()
    finally:
        over.set()
        await busy


@on_every_loop
async def test_read_that_is_cancelled_is_stopped_on_the_server(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    for _ in range(3):
        tasks = [asyncio.create_task(apg.fetch("SELECT pg_sleep(60)")) for _ in range(4)]  # two of them run
        await until(lambda: len(running(other, "pg_sleep(60)")) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=WITHIN)
        assert all(task.cancelled() for task in tasks)
        assert running(other, "pg_sleep(60)") == []
        assert await apg.fetchval("SELECT 1", timeout=5) == 1


@on_asyncio
async def test_statement_that_is_cancelled_is_undone_and_leaves_its_transaction_open(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    async with apg.transaction() as tx:
        await tx.execute(INSERT, ("x",))
        statement = asyncio.create_task(tx.execute("INSERT INTO t (a) SELECT 'y' FROM pg_sleep(60)"))
        await until(lambda: len(running(other, "pg_sleep(60)")) == 1)
        await cancel(statement)
        assert running(other, "pg_sleep(60)") == []
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(tx.fetch("SELECT pg_sleep(60)"), 0.1)
        await tx.execute(INSERT, ("z",))
    assert await apg.fetch("SELECT a FROM t ORDER BY a") == [("x",), ("z",)]


@on_asyncio
async def test_task_that_is_cancelled_again_while_it_ends_still_gives_all_back(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = stopping_slowly(monkeypatch)

    async def block(begin: Callable[[], Any]) -> None:
        async with begin() as held:
            await held.fetch("SELECT pg_sleep(60)")

    calls: list[Callable[[], Any]] = [
        partial(block, apg.transaction),
        partial(block, apg.read),
        partial(apg.fetch, "SELECT pg_sleep(60)"),
    ]
    for call in calls:
        asked.clear()
        go_on.clear()
        task = asyncio.create_task(call())
        await until(lambda: len(running(other, "pg_sleep(60)")) == 1)
        task.cancel()
        await until(asked.is_set)
        for _ in range(5):  # while the request to stop it is on its way
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([task], timeout=WITHIN)
        assert task.cancelled()
        assert running(other, "pg_sleep(60)") == []
        assert (await stat(apg, "leases_out"), await stat(apg, "readers_out")) == (0, 0)  # type: ignore[arg-type]


@on_asyncio
async def test_transaction_that_is_cancelled_before_it_begins_leaves_no_connection_out(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    async def begin() -> None:
        async with apg.transaction():
            await asyncio.Event().wait()

    async def read() -> None:
        async with apg.read():
            await asyncio.Event().wait()

    for delay in (0, 0, 1, 2, 3, 5, 8, 13):
        tasks = [asyncio.create_task(work()) for work in (begin, read) for _ in range(20)]
        for _ in range(delay):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=WITHIN)
        assert all(task.cancelled() for task in tasks)

    await until(partial(nothing_is_out, apg))
    assert other.execute("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'").fetchone() == (0,)


@on_asyncio
async def test_block_that_is_cancelled_is_rolled_back(apg: AsyncPostgresPool) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with apg.transaction() as tx, tx.transaction():
            await tx.execute(INSERT, ("x",))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await outcome(inside.wait())
    await cancel(task)
    assert await apg.fetch("SELECT a FROM t") == []


@on_asyncio
async def test_stream_that_is_left_cancelled_or_broken_gives_its_reader_back(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    async with apg.stream("SELECT generate_series(1, 100000)", chunk=10) as rows:
        assert await anext(rows) == (1,)
    stream = apg.stream("SELECT generate_series(1, 100000)", chunk=10)
    async for _ in stream:
        break
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(errors.InterfaceError):
        async with stream:
            pass
    with pytest.raises(errors.DataError):
        async for _ in apg.stream("SELECT 1 / (5 - i) FROM generate_series(1, 9) AS i", chunk=2):
            pass

    async def slow() -> None:
        async for _ in apg.stream("SELECT pg_sleep(60)"):
            pass

    task = asyncio.create_task(slow())
    await until(lambda: bool(other.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone()))
    await cancel(task)
    assert await stat(apg, "readers_out") == 0  # type: ignore[arg-type]


@on_asyncio
async def test_pools_own_verbs_inside_a_block_are_refused(apg: AsyncPostgresPool) -> None:
    async with apg.transaction():
        for call in (partial(apg.execute, "SELECT 1"), partial(apg.fetch, "SELECT 1"), apg.close):
            with pytest.raises(errors.ReentrantError):
                await call()
    async with apg.transaction() as tx:
        both = await asyncio.gather(
            tx.fetch("SELECT pg_sleep(0.2)"), tx.fetch("SELECT pg_sleep(0.2)"), return_exceptions=True
        )
    assert sorted(type(each).__name__ for each in both) == ["InterfaceError", "list"]


@on_asyncio
async def test_run_calls_again_until_nobody_is_in_the_way(apg: AsyncPostgresPool, pg: PostgresPool) -> None:
    await apg.execute(INSERT, ("x",))
    seen: list[int] = []

    async def add(tx: AsyncTransaction) -> int:
        seen.append(await tx.fetchval("SELECT n FROM t"))
        if len(seen) < 3:
            await asyncio.get_running_loop().run_in_executor(None, pg.execute, "UPDATE t SET n = n + 10")
        await tx.execute("UPDATE t SET n = ?", (seen[-1] + 1,))
        return len(seen)

    assert (await apg.run(add), seen) == (3, [0, 10, 20])
    assert await apg.fetchval("SELECT n FROM t") == 21


@on_asyncio
async def test_connections_that_are_lost_are_told_as_to_the_plain_pool(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    await apg.execute(INSERT, ("x",))
    await apg.fetch("SELECT 1")
    terminate(other)
    await apg.execute(INSERT, ("y",))
    assert await apg.fetchval("SELECT count(*) FROM t") == 2
    with pytest.raises(errors.OperationalError) as refused:
        async with apg.transaction() as tx:
            await tx.execute(INSERT, ("z",))
            terminate(other)
            await tx.execute(INSERT, ("w",))
    assert refused.value.outcome == "not_applied"
    assert await apg.fetchval("SELECT count(*) FROM t") == 2


# Loops


def test_two_loops_in_two_threads_share_one_pool(apg: AsyncPostgresPool, threads: Any) -> None:
    async def work(index: int) -> None:
        for n in range(20):
            await asyncio.gather(*(apg.execute(INSERT, (f"{index}/{n}/{k}",)) for k in range(3)))
            assert await apg.fetchval("SELECT 1") == 1
            async with apg.transaction() as tx:
                await tx.execute("UPDATE t SET n = 1 WHERE a = ?", (f"{index}/{n}/0",))

    threads(2, lambda index: run(work(index)))
    assert run(apg.fetchone("SELECT count(*), sum(n) FROM t")) == (120, 40)


@on_asyncio
async def test_transaction_of_one_loop_is_refused_on_another(apg: AsyncPostgresPool) -> None:
    async with apg.transaction() as tx:
        with pytest.raises(errors.InterfaceError, match="loop"):
            await asyncio.to_thread(run, tx.fetch("SELECT 1"))
        assert await tx.fetchval("SELECT 1") == 1


def test_loop_that_is_closed_with_things_open_harms_nobody(
    apg: AsyncPostgresPool, pg: PostgresPool, other: psycopg.Connection[Any]
) -> None:
    """No task is cancelled, and no generator ended: the loop is just not run any more."""
    pg.execute(INSERT, ("x",))
    loop = asyncio.new_event_loop()
    open_now: list[Any] = []

    async def hold() -> None:
        block = apg.transaction()
        tx = await block.__aenter__()
        await tx.execute(INSERT, ("lost",))
        open_now.append(block)

    async def stream() -> None:
        rows = apg.stream("SELECT generate_series(1, 1000)", chunk=2)
        await anext(rows)
        open_now.append(rows)

    async def leave_open() -> None:
        await asyncio.gather(*(asyncio.create_task(work()) for work in (hold, stream)))
        slow = "UPDATE t SET n = 5 WHERE a IN (SELECT 'x' FROM pg_sleep(0.3))"
        for call in (apg.execute(slow), apg.fetch("SELECT pg_sleep(0.3)")):
            task = asyncio.create_task(call)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        await until(lambda: len(running(other, "pg_sleep(0.3)")) == 2)

    loop.run_until_complete(leave_open())
    loop.close()
    open_now.clear()
    gc.collect()
    eventually(lambda: pg.fetchval("SELECT n FROM t WHERE a = 'x'") == 5)  # what a group had taken is applied
    assert_unharmed(pg)
    assert kept(pg) == ["x"]
    assert run(apg.fetchval("SELECT 1")) == 1


@on_asyncio
async def test_close_answers_what_waits_and_is_safe_twice(
    apg: AsyncPostgresPool, pg: PostgresPool, postgres_url: str
) -> None:
    pg.close()
    pool = AsyncPostgresPool(postgres_url, readers=2)
    tasks = [
        asyncio.create_task(pool.execute(f"INSERT INTO t (a) SELECT '{n}' FROM pg_sleep(0.05)")) for n in range(20)
    ]
    async with held(pool.transaction) as holder:
        await until(lambda: any(task.done() for task in tasks))
        closing = [asyncio.create_task(pool.close()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not closing[0].done()
        del holder
    await asyncio.gather(*closing)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await pool.close()
    with plain(postgres_url) as connection:
        (count,) = connection.execute("SELECT count(*) FROM t").fetchone() or (None,)
    assert count == sum(not isinstance(each, BaseException) for each in ended)
    assert {type(each) for each in ended if isinstance(each, BaseException)} <= {errors.ClosedError}
    pg.__init__(postgres_url, readers=2)  # type: ignore[misc]  # for what the fixtures look at


@on_asyncio
async def test_call_beside_the_close_of_a_pool_opens_it_no_more(postgres_url: str) -> None:
    for _ in range(5):
        pool = AsyncPostgresPool(postgres_url)
        calls = [asyncio.create_task(pool.fetchval("SELECT 1")) for _ in range(5)]
        await asyncio.sleep(0)
        await pool.close()
        for each in await asyncio.gather(*calls, return_exceptions=True):
            assert each == 1 or isinstance(each, errors.ClosedError)
    with plain(postgres_url) as connection:
        found = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        await until(lambda: connection.execute(found).fetchone() == (1,))
