"""Groups and reads that an event loop takes through by itself: what it leaves to threads, and what if it goes away.

the loop's thread                               server                  a thread
leads a group, sends it                         works
(blocked by somebody's code, or closed)         answers
                                                                        goes on with the group
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually
from looping import cancel, on_asyncio, on_every_loop, run, until

from tests.postgres.pools import INSERT, kept, others, refuse_threads, running, warm
from walpool.postgres import AsyncPostgresPool, PostgresPool, _driving, _wire
from walpool.postgres._hands import Mailbox
from walpool.postgres._wire import Connection

SLOW = "INSERT INTO t (a) SELECT 'slow' FROM pg_sleep(0.4)"


def threading_out(call: Callable[[], Any]) -> Any:
    """Return what a call returns on another thread, and block this one meanwhile."""
    return Caller(call).outcome()


@on_every_loop
async def test_loop_sends_groups_and_reads_without_a_thread(
    apg: AsyncPostgresPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(apg)
    refuse_threads(await apg._here("stats"), monkeypatch)

    async def work(n: int) -> None:
        await apg.execute(INSERT, (str(n),))
        assert await apg.fetchval("SELECT n FROM t WHERE a = ?", (str(n),)) == 0

    await asyncio.gather(*(work(n) for n in range(64)))
    assert await apg.fetchval("SELECT count(*) FROM t") == 64


@on_asyncio
async def test_calls_leave_nothing_for_the_collector(apg: AsyncPostgresPool) -> None:
    await warm(apg)

    async def work(n: int) -> None:
        await apg.batch([(INSERT, (f"{n}-{each}",)) for each in range(3)])
        await apg.fetchval("SELECT n FROM t WHERE a = ?", (f"{n}-1",))
        async with apg.transaction() as tx, tx.transaction():
            await tx.fetchval("SELECT n FROM t WHERE a = ?", (f"{n}-1",))
        assert [row async for row in apg.stream("SELECT generate_series(1, 3)", chunk=2)] == [(1,), (2,), (3,)]

    async def garbage() -> set[str]:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await asyncio.gather(*(work(n) for n in range(16)))  # more than there are readers: some wait for their turn
            gc.collect()
            return {type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("walpool")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    assert await garbage() == set()


@on_every_loop
async def test_rows_of_a_large_result_are_converted_on_a_thread(
    apg: AsyncPostgresPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[tuple[int, bool]] = []
    rows = Connection.rows

    def watched(self: Connection, result: Any) -> Any:
        converted.append((result.ntuples, threading.current_thread() is threading.main_thread()))
        return rows(self, result)

    monkeypatch.setattr(Connection, "rows", watched)
    few, many = _wire.AT_ONCE, _wire.AT_ONCE + 1
    for count in (few, many):
        assert len(await apg.fetch("SELECT generate_series(1, ?)", (count,))) == count
        assert len((await apg.execute("SELECT generate_series(1, CAST(? AS bigint))", (count,))).rows) == count
        async with apg.transaction() as tx:
            assert len(await tx.fetch("SELECT generate_series(1, ?)", (count,))) == count
            assert len((await tx.execute("SELECT generate_series(1, CAST(? AS bigint))", (count,))).rows) == count
        async with apg.stream("SELECT generate_series(1, 9999)", chunk=count) as stream:
            assert await anext(stream) == (1,)
    assert converted == [(few, True)] * 5 + [(many, False)] * 5
    converted.clear()
    monkeypatch.setattr(_wire, "PIECES_AT_ONCE", 0)  # a busy loop takes in few pieces, large ones
    async with apg.read() as snapshot:
        await snapshot.fetch("SELECT repeat('x', 4000000) FROM generate_series(1, 8)")
    for call in (apg.fetch, apg.execute):
        await call("SELECT repeat('x', 4000000) FROM generate_series(1, 8)")
    assert converted == [(8, False)] * 3


@on_asyncio
async def test_group_that_is_too_large_for_the_loop_is_sent_by_a_thread(
    apg: AsyncPostgresPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(apg)
    begun: list[object] = []
    begin = _driving.Driver.begin
    monkeypatch.setattr(_driving.Driver, "begin", lambda self, steps: (begun.append(steps), begin(self, steps)))
    await apg.executemany(INSERT, [(str(n),) for n in range(2_000)])
    await apg.execute("SELECT length(?)", ("x" * 2**21,))
    assert begun == []
    await apg.execute(INSERT, ("small",))
    assert len(begun) == 1


def test_jobs_of_threads_do_not_wait_for_a_loop_that_is_blocked(apg: AsyncPostgresPool, pg: PostgresPool) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        await warm(apg)
        tasks = [asyncio.create_task(apg.execute(INSERT, (f"loop-{n}",))) for n in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # a group is under way
        blocked.set()
        assert go_on.wait(WITHIN)
        await asyncio.gather(*tasks)

    on_a_loop = Caller(partial(run, main()))
    assert blocked.wait(WITHIN)
    assert pg.execute(INSERT, ("thread",), timeout=WITHIN).rowcount == 1
    go_on.set()
    assert on_a_loop.outcome() is None
    assert kept(pg) == [*(f"loop-{n}" for n in range(4)), "thread"]


def test_group_is_finished_where_one_of_its_tasks_is_cancelled_and_the_loop_then_blocked(
    apg: AsyncPostgresPool, pg: PostgresPool, other: psycopg.Connection[Any]
) -> None:
    applied: list[str] = []

    async def main() -> None:
        await warm(apg)
        jobs = [asyncio.create_task(apg.execute(sql, ())) for sql in (SLOW, "INSERT INTO t (a) VALUES ('beside')")]
        await until(lambda: running(other, "pg_sleep(0.4)") != [])
        jobs[0].cancel()
        await asyncio.sleep(0)
        applied.extend(threading_out(lambda: eventually(lambda: "slow" in kept(pg)) or kept(pg)))  # blocks the loop
        assert isinstance((await asyncio.gather(*jobs, return_exceptions=True))[0], asyncio.CancelledError)

    run(main())
    assert "slow" in applied
    assert kept(pg) == ["beside", "slow"]


@pytest.mark.parametrize(
    "close", [asyncio.AbstractEventLoop.close, asyncio.AbstractEventLoop.stop], ids=["closed", "left"]
)
def test_loop_that_no_longer_runs_leaves_no_row_locked_for_long(
    apg: AsyncPostgresPool, pg: PostgresPool, close: Callable[[asyncio.AbstractEventLoop], None]
) -> None:
    pg.execute(INSERT, ("x",))
    loop = asyncio.new_event_loop()

    async def leave_open() -> None:
        await warm(apg)
        task = asyncio.create_task(apg.execute("UPDATE t SET n = n + 1 WHERE a = 'x'"))
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        kept_alive.append(task)

    kept_alive: list[asyncio.Task[Any]] = []
    loop.run_until_complete(leave_open())
    if close is asyncio.AbstractEventLoop.close:
        loop.close()
        kept_alive.clear()
        eventually(lambda: pg.fetchval("SELECT n FROM t WHERE a = 'x'") == 1)
    else:  # nobody takes the group's steps until the loop runs again; whoever wants the row is told in time
        loop.run_until_complete(kept_alive[0])
        loop.close()
    assert pg.execute("UPDATE t SET n = n + 1 WHERE a = 'x'", timeout=WITHIN).rowcount == 1


@on_every_loop
async def test_readers_that_all_are_out_come_back_in_the_order_in_which_tasks_asked(apg: AsyncPostgresPool) -> None:
    begun = "SELECT CAST(extract(epoch FROM statement_timestamp()) AS FLOAT8) FROM pg_sleep(0.02)"
    await warm(apg)
    at = await asyncio.gather(*(apg.fetchval(begun) for _ in range(10)))
    assert all(first <= later for first, later in zip(at, at[2:], strict=False))  # two at a time


@on_asyncio
async def test_two_groups_that_meet_at_one_row_end_and_lose_nothing(apg: AsyncPostgresPool) -> None:
    await apg.execute(INSERT, ("hot",))

    async def work() -> None:
        for _ in range(10):
            await apg.execute("UPDATE t SET n = n + 1 WHERE a = 'hot'")

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(16)))
    assert time.monotonic() - began < WITHIN
    assert await apg.fetchval("SELECT n FROM t WHERE a = 'hot'") == 160


@on_asyncio
async def test_read_on_a_loops_thread_does_not_wait_for_its_tasks_readers(postgres_url: str) -> None:
    async with AsyncPostgresPool(postgres_url, readers=2, checkout_timeout=5) as apool:
        with PostgresPool(postgres_url) as pool:
            tasks = [asyncio.create_task(apool.fetchval(f"SELECT {n} FROM pg_sleep(0.05)")) for n in range(2)]
            while (await apool.stats())["readers_out"] < 2:
                await asyncio.sleep(0)
            with pytest.warns(RuntimeWarning, match="on the thread of a running event loop"):
                assert pool.fetchval("SELECT 7", timeout=5) == 7
            assert await asyncio.gather(*tasks) == [0, 1]


@on_every_loop
async def test_read_that_a_thread_was_handed_ends_as_its_task_would_have_it(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    await warm(apg)
    engine = await apg._here("stats")
    opened = set(others(other))
    for ends in (cancel, give_up):
        task = asyncio.create_task(apg.fetchval("SELECT 7 FROM pg_sleep(0.4)"))
        await until(lambda: len(running(other, "pg_sleep(0.4)")) == 1)
        engine.driver().hand_over()
        engine.driver().hand_over()  # once is enough
        await ends(task)
        await until_all_are_back(apg)
    task = asyncio.create_task(apg.fetchval("SELECT 7 FROM pg_sleep(0.4)"))
    await until(lambda: len(running(other, "pg_sleep(0.4)")) == 1)
    engine.driver().hand_over()
    assert await task == 7
    assert set(others(other)) == opened  # none was closed, with a thread in the midst of it


async def give_up(task: asyncio.Task[Any]) -> None:
    """Close what a task runs, as where its loop is going away."""
    task.get_coro().close()  # type: ignore[union-attr]
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception()


async def until_all_are_back(apg: AsyncPostgresPool) -> None:
    while (await apg.stats())["readers_out"]:
        await asyncio.sleep(0.01)


@on_asyncio
async def test_loop_that_looks_now_and_then_has_one_timer_for_all() -> None:
    loop = asyncio.get_running_loop()
    driver = _driving.Driver(Mailbox(loop), ThreadPoolExecutor(), ThreadPoolExecutor())
    looks: list[object] = []

    class Looking:
        def look(self) -> None:
            looks.append(self)
            driver.look_after(self)  # type: ignore[arg-type]

    several = [Looking(), Looking()]
    for each in several:
        driver.look_after(each)  # type: ignore[arg-type]
    await until(lambda: len(looks) >= 8)
    assert sum("Driver._look" in repr(each) for each in loop._scheduled) == 1  # type: ignore[attr-defined]
    for each in several:
        driver.look_away(each)  # type: ignore[arg-type]
    await until(lambda: not any("Driver._look" in repr(each) for each in loop._scheduled))  # type: ignore[attr-defined]
    driver.close()
