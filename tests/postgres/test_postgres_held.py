"""Transactions, snapshots and streams of tasks: the loop takes them through by itself, whatever others do meanwhile.

the loop's thread                server                      others
sends a statement                works                       cancel its task, close the loop, fork,
hears of it                      answers, or was stopped     or wait for the connection
goes on, undoes it, or ends
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from helpers import WITHIN
from looping import Heartbeat, cancel, held, on_asyncio, on_every_loop, outcome, stat, until

from tests.postgres.pools import (
    INSERT,
    Proxy,
    assert_unharmed,
    nothing_is_out,
    others,
    plain,
    refuse_threads,
    running,
    stopping_slowly,
    terminate,
)
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool

SOON = 0.5  # seconds


async def fill(apg: AsyncPostgresPool) -> None:
    """Have all connections opened that tasks can hold."""

    async def hold(block: Callable[[], Any]) -> None:
        async with block() as opened:
            await opened.fetch("SELECT pg_sleep(0.05)")

    await asyncio.gather(*(hold(block) for block in (apg.transaction, apg.read) for _ in range(16)))


async def count(apg: AsyncPostgresPool, key: str) -> int | float:
    return await stat(apg, key)  # type: ignore[arg-type]


async def enter(block: Callable[[], Any]) -> None:
    async with block():
        await asyncio.Event().wait()


@pytest.mark.usefixtures("watching")
@on_every_loop
async def test_loop_takes_what_tasks_hold_through_without_a_thread(
    apg: AsyncPostgresPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(apg)
    refuse_threads(await apg._here("stats"), monkeypatch)

    async def work(n: int) -> None:
        async with apg.transaction() as tx:
            await tx.execute(INSERT, (str(n),))
            with pytest.raises(errors.IntegrityError):
                await tx.execute(INSERT, (str(n),))
            with contextlib.suppress(ZeroDivisionError):
                async with tx.transaction():
                    await tx.execute("DELETE FROM t WHERE a = ?", (str(n),))
                    raise ZeroDivisionError
            assert await tx.fetchval("SELECT a FROM t WHERE a = ?", (str(n),)) == str(n)
        async with apg.read() as snapshot:
            with pytest.raises(errors.DataError):
                await snapshot.fetch("SELECT 1 / 0")
            assert await snapshot.fetchval("SELECT a FROM t WHERE a = ?", (str(n),)) == str(n)
        assert [row async for row in apg.stream("SELECT generate_series(1, 5)", chunk=2)] == [(k,) for k in range(1, 6)]

    await asyncio.gather(*(work(n) for n in range(64)))
    assert await apg.fetchval("SELECT count(*) FROM t") == 64


# Cancelled


@on_every_loop
async def test_task_that_is_cancelled_in_line_for_a_connection_leaves_the_line_at_once(apg: AsyncPostgresPool) -> None:
    async with held(apg.read), held(apg.read):  # there are two readers
        waiting = [asyncio.create_task(enter(apg.read)) for _ in range(3)]
        await until(partial(_is, apg, "reads_waiting", 3))
        for left in (2, 1, 0):
            await cancel(waiting[left])
            assert await count(apg, "reads_waiting") == left
    assert await apg.fetchval("SELECT 1") == 1


async def _is(apg: AsyncPostgresPool, key: str, value: int) -> bool:
    return await count(apg, key) == value


@on_asyncio
async def test_task_that_is_cancelled_while_its_connection_is_opened_does_not_wait_for_it(postgres_url: str) -> None:
    let_go, asked = threading.Event(), threading.Event()
    let_go.set()

    def hold(data: bytes) -> None:
        asked.set()
        let_go.wait(WITHIN)

    with Proxy(postgres_url, hold) as proxy:
        async with AsyncPostgresPool(proxy.url) as pool:
            calls: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                ("leases_out", partial(enter, pool.transaction)),
                ("readers_out", partial(enter, pool.read)),
            ]
            for key, call in calls:
                let_go.clear()
                asked.clear()
                task = asyncio.create_task(call())  # type: ignore[arg-type]
                await until(asked.is_set)
                await cancel(task, within=5)
                assert await count(pool, key) == 1  # the connection that is opened still counts
                let_go.set()
                await until(partial(nothing_is_out, pool))
            opened = await count(pool, "connections_opened")
            async with pool.transaction() as tx:
                await tx.fetch("SELECT 1")
            assert await pool.fetchval("SELECT 1") == 1
            assert await count(pool, "connections_opened") == opened  # what was opened for nobody is of use


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")
@on_every_loop
async def test_task_that_is_cancelled_while_its_snapshot_begins_does_not_wait_and_its_connection_is_kept(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    async with apg.read() as snapshot:
        pid = await snapshot.fetchval("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    try:
        tasks = [asyncio.create_task(enter(apg.read))]
        await until(partial(_is, apg, "readers_out", 1))
        await cancel(tasks[0], within=5)
        assert await count(apg, "readers_out") == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(partial(nothing_is_out, apg))
    assert others(other, f"state = 'idle' AND pid = {pid}") == [pid]
    assert await apg.fetchval("SELECT pg_backend_pid()") == pid


@on_every_loop
async def test_task_that_is_cancelled_while_it_commits_waits_for_the_servers_word(
    postgres_url: str, apg: AsyncPostgresPool
) -> None:
    let_go, asked = threading.Event(), threading.Event()

    def hold(data: bytes) -> None:
        if b"COMMIT\0" in data:
            asked.set()
            let_go.wait(WITHIN)

    async def write(pool: AsyncPostgresPool) -> None:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, ("x",))

    with Proxy(postgres_url, hold) as proxy:
        async with AsyncPostgresPool(proxy.url) as pool:
            task = asyncio.create_task(write(pool))
            await until(asked.is_set)
            for _ in range(5):
                task.cancel()
                await asyncio.sleep(0.01)
            assert not task.done()
            let_go.set()
            await asyncio.wait([task], timeout=WITHIN)
            assert task.cancelled()
            assert await nothing_is_out(pool)
    assert await apg.fetch("SELECT a FROM t") == [("x",)]


@pytest.mark.parametrize("where", ["before", "after"])
@on_every_loop
async def test_commit_whose_answer_is_lost_is_unknown_to_the_task(
    postgres_url: str, apg: AsyncPostgresPool, where: str
) -> None:
    cuts: list[str] = []
    with Proxy(postgres_url, lambda data: cuts.pop() if cuts and b"COMMIT\0" in data else None) as proxy:
        async with AsyncPostgresPool(proxy.url) as pool:
            with pytest.raises(errors.OperationalError) as refused:
                async with pool.transaction() as tx:
                    await tx.execute(INSERT, ("x",))
                    cuts.append(where)
            assert (refused.value.outcome, refused.value.retryable) == ("unknown", False)
            assert await nothing_is_out(pool)
    expected = [] if where == "before" else [("x",)]
    await until(partial(_has, apg, expected))


async def _has(apg: AsyncPostgresPool, rows: list[tuple[str]]) -> bool:
    return await apg.fetch("SELECT a FROM t") == rows


@on_every_loop
async def test_connection_is_nobody_elses_while_the_server_is_told_to_stop_its_statement(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = stopping_slowly(monkeypatch)

    async def hold(block: Callable[[], Any]) -> None:
        async with block() as opened:
            await opened.fetch("SELECT pg_sleep(0.2)")

    calls: list[tuple[str, Callable[[], Any]]] = [
        ("readers_out", partial(apg.fetch, "SELECT pg_sleep(0.2)")),
        ("readers_out", partial(hold, apg.read)),
        ("leases_out", partial(hold, apg.transaction)),
    ]
    for key, call in calls:
        asked.clear()
        go_on.clear()
        async with Heartbeat() as heart:
            task = asyncio.create_task(call())
            await until(lambda: len(running(other, "pg_sleep(0.2)")) == 1)
            task.cancel()
            await until(asked.is_set)
            await until(lambda: running(other, "pg_sleep(0.2)") == [])  # it has ended by itself
            assert await apg.fetchval("SELECT 1") == 1  # on another connection
            assert (await count(apg, key), task.done()) == (1, False)
        heart.assert_free()
        go_on.set()
        await asyncio.wait([task], timeout=WITHIN)
        assert task.cancelled()
        assert await nothing_is_out(apg)


@on_asyncio
async def test_savepoint_that_was_cancelled_leaves_those_around_it_in_order(apg: AsyncPostgresPool) -> None:
    async with apg.transaction() as tx:
        await tx.execute(INSERT, ("x",))
        with contextlib.suppress(ZeroDivisionError):
            async with tx.transaction():
                await tx.execute(INSERT, ("undone",))
                inner = asyncio.create_task(enter(tx.transaction))
                await asyncio.sleep(0)  # SAVEPOINT is on its way
                await cancel(inner)
                raise ZeroDivisionError
        async with tx.transaction():
            await tx.execute(INSERT, ("y",))
    assert await apg.fetch("SELECT a FROM t ORDER BY a") == [("x",), ("y",)]


# Connections and servers


@on_every_loop
async def test_connection_that_died_idle_costs_no_task_an_error(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    async def read() -> None:
        async with apg.read() as snapshot:
            assert await snapshot.fetchval("SELECT 1") == 1

    async def mark() -> None:
        async with apg.transaction() as tx, tx.transaction():
            await tx.execute(INSERT, ("y",))

    async def stream() -> None:
        assert [row async for row in apg.stream("SELECT 1")] == [(1,)]

    async def late() -> None:
        async with apg.transaction() as tx:
            terminate(other)  # nothing of the transaction was lost
            await tx.execute(INSERT, ("z",))

    calls = (partial(apg.run, lambda tx: tx.execute(INSERT, ("x",))), read, mark, stream, late)
    for call in calls:
        await fill(apg)
        assert terminate(other) >= 18
        await call()
    assert await apg.fetch("SELECT a FROM t ORDER BY a") == [("x",), ("y",), ("z",)]


@on_asyncio
async def test_transactions_that_wait_for_a_row_do_not_hold_up_the_one_that_has_it(apg: AsyncPostgresPool) -> None:
    await _queue_at_a_row(apg)


@pytest.mark.usefixtures("unwatched")
@on_asyncio
async def test_transactions_do_not_hold_up_each_other_where_threads_wait_for_the_answers(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    await _queue_at_a_row(apg)
    async with apg.transaction() as tx:
        statement = asyncio.create_task(tx.execute("INSERT INTO t (a) SELECT 'y' FROM pg_sleep(60)"))
        await until(lambda: len(running(other, "pg_sleep(60)")) == 1)
        await cancel(statement)
        assert running(other, "pg_sleep(60)") == []
        await tx.execute(INSERT, ("z",))
    assert [row async for row in apg.stream("SELECT a FROM t ORDER BY a", chunk=1)] == [("x",), ("z",)]


async def _queue_at_a_row(apg: AsyncPostgresPool) -> None:
    async def change() -> None:
        async with apg.transaction() as tx:
            await tx.execute("UPDATE t SET n = n + 1 WHERE a = 'x'")

    await apg.execute(INSERT, ("x",))
    blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with held(apg.transaction) as holder:
        await holder.inside.execute("UPDATE t SET n = n + 1 WHERE a = 'x'")
        waiting = [asyncio.create_task(change()) for _ in range(15)]  # all of the other connections
        while await holder.inside.fetchval(blocked) < 15:
            await asyncio.sleep(0.001)
    ended = await outcome(asyncio.gather(*waiting, return_exceptions=True))
    assert {type(each) for each in ended} == {errors.BusyError}
    assert await apg.fetchval("SELECT n FROM t") == 1


@pytest.mark.usefixtures("unwatched")
@on_asyncio
async def test_commit_that_no_thread_is_there_to_hear_of_is_unknown(postgres_url: str, apg: AsyncPostgresPool) -> None:
    pool = AsyncPostgresPool(postgres_url.replace("?", "?application_name=walpool&"))  # an engine of its own
    with pytest.raises(errors.ClosedError) as refused:
        async with pool.transaction() as tx:
            await tx.execute(INSERT, ("x",))
            assert pool._engine is not None
            pool._engine.hands.close()
    assert (refused.value.outcome, refused.value.retryable) == ("unknown", False)
    await pool.close()


# Loops


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_loop_that_is_closed_in_the_midst_of_statements_leaves_no_connection_out(
    apg: AsyncPostgresPool, pg: PostgresPool, other: psycopg.Connection[Any], loop: str
) -> None:
    closed = pytest.importorskip("uvloop").new_event_loop() if loop == "uvloop" else asyncio.new_event_loop()
    tasks: list[asyncio.Task[None]] = []

    async def hold(block: Callable[[], Any]) -> None:
        async with block() as opened:
            await opened.fetch("SELECT pg_sleep(0.5)")

    async def stream() -> None:
        async for _ in apg.stream("SELECT pg_sleep(0.5)"):
            pass

    async def leave() -> None:
        await fill(apg)
        for call in (partial(hold, apg.transaction), partial(hold, apg.read), stream):
            tasks.append(asyncio.create_task(call()))
            tasks[-1]._log_destroy_pending = False  # type: ignore[attr-defined]
        await until(lambda: len(running(other, "pg_sleep(0.5)")) + len(running(other, "walpool_rows")) == 3)

    closed.run_until_complete(leave())
    closed.close()
    tasks.clear()
    gc.collect()
    assert_unharmed(pg)


def test_permit_of_a_loop_that_does_not_run_goes_to_who_waits_once_the_time_is_up(
    postgres_url: str, pg: PostgresPool
) -> None:
    pg.close()
    loop = asyncio.new_event_loop()
    apool = AsyncPostgresPool(postgres_url, readers=2, transaction_timeout=SOON)

    async def hold() -> None:
        async with apool.read() as snapshot:
            await snapshot.fetch("SELECT pg_sleep(60)")

    async def leave() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(hold()) for _ in range(2)]  # all readers
        await until(lambda: len(running(other, "pg_sleep(60)")) == 2)
        return tasks

    with PostgresPool(postgres_url, readers=2, transaction_timeout=SOON) as pool, plain(postgres_url) as other:
        tasks = loop.run_until_complete(leave())
        with pool.read(timeout=WITHIN) as snapshot:
            assert snapshot.fetchval("SELECT 1") == 1
        assert pool.stats()["leases_revoked"] >= 1
        ended = loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))  # it runs again
        assert {type(each) for each in ended} == {errors.TransactionTimeout}
        assert_unharmed(pool)
        loop.run_until_complete(apool.close())
        loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@pytest.mark.usefixtures("watching")
@on_every_loop
async def test_child_is_refused_what_its_parents_tasks_hold_and_leaves_it_without_a_word(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    """The child runs on in the parent's frames, as with `os.fork()` in the midst of a program."""
    slow = asyncio.create_task(apg.run(lambda tx: tx.execute("INSERT INTO t (a) SELECT 'slow' FROM pg_sleep(0.3)")))
    await until(lambda: len(running(other, "pg_sleep(0.3)")) == 1)
    rows = apg.stream("SELECT generate_series(1, 10)", chunk=2)
    assert await anext(rows) == (1,)
    is_child, status = False, 1
    try:
        async with apg.transaction() as tx, tx.transaction():
            await tx.execute(INSERT, ("x",))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            is_child = pid == 0
            if is_child:
                with pytest.raises(errors.InterfaceError):
                    await tx.fetch("SELECT 1")
                await rows.aclose()
                slow.get_coro().close()  # type: ignore[union-attr]
                raise ZeroDivisionError
            assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
            await tx.execute(INSERT, ("y",))
    except ZeroDivisionError:
        status = 0
    finally:
        if is_child:
            os._exit(status)
    await outcome(slow)
    assert [row async for row in rows] == [(n,) for n in range(2, 11)]
    assert await apg.fetch("SELECT a FROM t ORDER BY a") == [("slow",), ("x",), ("y",)]


def test_nothing_is_left_on_a_loop_that_opened_and_closed_pools(postgres_url: str) -> None:
    async def cycle() -> None:
        async with AsyncPostgresPool(postgres_url, readers=2) as pool:
            await pool.run(lambda tx: tx.fetchval("SELECT 1"))
        await asyncio.sleep(0)

    async def main() -> None:
        await cycle()
        before = descriptors()
        for _ in range(5):
            await cycle()
        await until(lambda: descriptors() == before)

    asyncio.run(main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
