"""Event loops that do badly: closed or blocked with work under way, cut off from the server, inherited by a child.

the loop's thread                     the server, or another thread
leads a group, watches its socket     cuts the connection / closes the loop / forks
hears of it, or is gone
                                      the group goes on, and nobody waits for ever
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually
from looping import on_asyncio, on_every_loop, run, until

from tests.postgres.pools import (
    INSERT,
    Proxy,
    kept,
    nothing_is_out,
    others,
    plain,
    row_locked,
    running,
    terminate,
    warm,
)
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool, _watching

if TYPE_CHECKING:
    from tests.torture import Torture
    from walpool.postgres._engine import Engine

AT_ONCE = 100  # calls that are under way at most


@pytest.mark.usefixtures("watching")
@on_every_loop
async def test_connection_that_breaks_while_a_large_group_is_sent_costs_one_more_attempt(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    await warm(apg)
    for _ in range(6):  # the server does not read while it sleeps: the group is sent by halves when it breaks
        sleeping = ("SELECT pg_sleep(?) /* by halves */", (0.3,))
        job = asyncio.create_task(apg.batch([sleeping, ("SELECT length(?)", ("x" * 900_000,))]))
        await until(lambda: running(other, "by halves") != [])
        assert terminate(other, "query LIKE '%by halves%' AND state = 'active'") == 1
        assert (await job)[1].rows == [(900_000,)]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")
@pytest.mark.usefixtures("watching")
@on_every_loop
async def test_read_that_the_server_resets_before_it_took_it_in_is_tried_again(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    for size in (10, 900_000, 10):  # at once in the socket's buffer, and by halves
        pid = await apg.fetchval("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            read = asyncio.create_task(apg.fetchval("SELECT length(?)", ("x" * size,)))
            await asyncio.sleep(0.05)  # it is sent, as far as it goes
            assert terminate(other, f"pid = {pid}") == 1
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await asyncio.wait_for(read, WITHIN) == size


@on_every_loop
async def test_number_of_a_socket_that_was_reset_is_free_for_others(
    other: psycopg.Connection[Any], postgres_url: str
) -> None:
    with Proxy(postgres_url) as proxy:
        async with AsyncPostgresPool(proxy.url, readers=2) as pool:
            lower = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            for number in lower:  # the next connection has one of these, not that of the one which breaks
                os.close(number)
            assert terminate(other, f"pid = {pid}") == 1
            await until(lambda: proxy.has_closed_the_newest())  # who sends is told that nobody is there
            assert await asyncio.wait_for(pool.fetchval("SELECT 1"), WITHIN) == 1
            with contextlib.ExitStack() as open_ones:
                for each in [end for _ in range(32) for end in socket.socketpair()]:
                    open_ones.enter_context(each)
                    asyncio.get_running_loop().add_reader(each, lambda: None)
                    asyncio.get_running_loop().remove_reader(each)


@on_asyncio
async def test_jobs_that_wait_alone_for_a_row_do_not_hold_up_reads_and_groups(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any], postgres_url: str
) -> None:
    await warm(apg)
    await apg.execute(INSERT, ("x",))
    with row_locked(postgres_url, "x"):
        stuck = [asyncio.create_task(apg.execute("UPDATE t SET n = n + 1 WHERE a = 'x'")) for _ in range(40)]
        await until(lambda: len(others(other, "wait_event_type = 'Lock'")) >= 16)
        assert len(await asyncio.wait_for(apg.fetch("SELECT generate_series(1, 1000)"), 3)) == 1000
        await asyncio.wait_for(apg.executemany(INSERT, [(str(n),) for n in range(2_000)]), 3)
        with pytest.raises(errors.IntegrityError):
            await asyncio.wait_for(apg.execute(INSERT, ("1",)), 3)
        assert not any(task.done() for task in stuck)
    await asyncio.gather(*stuck, return_exceptions=True)


@on_asyncio
async def test_read_that_is_cancelled_while_its_connection_is_opened_never_runs(postgres_url: str) -> None:
    let_go, asked = threading.Event(), threading.Event()
    let_go.set()
    sent: list[bytes] = []

    def hold(data: bytes) -> None:
        sent.append(data)
        asked.set()
        let_go.wait(WITHIN)

    with Proxy(postgres_url, hold) as proxy:
        async with AsyncPostgresPool(proxy.url) as pool:
            let_go.clear()
            asked.clear()
            read = asyncio.create_task(pool.fetch("SELECT pg_sleep(60) /* never */"))
            await until(asked.is_set)
            read.cancel()
            await asyncio.sleep(0)
            let_go.set()
            await asyncio.wait([read], timeout=WITHIN)
            assert read.cancelled()
    assert not any(b"never" in data for data in sent)


def test_jobs_of_threads_go_in_groups_where_a_blocked_loop_was_to_lead(
    apg: AsyncPostgresPool, pg: PostgresPool
) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        await warm(apg)
        tasks = [asyncio.create_task(apg.execute(INSERT, (f"loop-{n}",))) for n in range(4)]
        await asyncio.sleep(0)  # they are in line, and the first two are to lead
        blocked.set()
        assert go_on.wait(WITHIN)
        await asyncio.gather(*tasks)

    on_a_loop = Caller(partial(run, main()))
    assert blocked.wait(WITHIN)
    callers = [Caller(partial(pg.execute, f"SELECT pg_sleep(0.01), {n}")) for n in range(100)]
    for caller in callers:
        caller.outcome()
    eventually(lambda: len(kept(pg)) == 4 or pg.execute("SELECT 1") is None)  # threads led in its place
    assert pg.stats()["groups"] < 100
    go_on.set()
    assert on_a_loop.outcome() is None


@pytest.mark.parametrize("turns", range(6))
def test_loop_that_is_closed_at_any_moment_leaves_nothing_in_line(
    apg: AsyncPostgresPool, pg: PostgresPool, turns: int
) -> None:
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[Any]] = []  # whoever keeps them keeps their jobs

    async def leave() -> None:
        await warm(apg)
        for n in range(6):
            tasks.append(asyncio.create_task(apg.execute(INSERT, (str(n),))))
            tasks[-1]._log_destroy_pending = False  # type: ignore[attr-defined]
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.03)

    loop.run_until_complete(leave())
    loop.close()
    engine = apg._engine
    assert engine is not None
    line = engine.writer.line

    def is_clear() -> bool:
        pg.execute("SELECT 1", timeout=WITHIN)
        return not line._tickets and not line._leaders and not line._unanswered and not engine._groups.out

    eventually(is_clear)
    tasks.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
@on_asyncio
async def test_child_that_goes_through_the_parents_loop_does_not_touch_what_is_under_way(
    apg: AsyncPostgresPool, other: psycopg.Connection[Any]
) -> None:
    await warm(apg)
    write = asyncio.create_task(apg.execute("INSERT INTO t (a) SELECT 'x' FROM pg_sleep(0.5)"))
    read = asyncio.create_task(apg.fetchval("SELECT 1 FROM pg_sleep(0.5)"))
    await until(lambda: len(running(other, "pg_sleep(0.5)")) == 2)
    engine = await apg._here("stats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # as where SystemExit goes through its loop: the tasks are cancelled, what is kept for them goes
        for coroutine in (write.get_coro(), read.get_coro()):
            coroutine.close()  # type: ignore[union-attr]
        engine.driver = None  # type: ignore[assignment, method-assign]
        engine._drivers.clear()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (await asyncio.wait_for(write, WITHIN)).rowcount == 1
    assert await asyncio.wait_for(read, WITHIN) == 1


@pytest.mark.usefixtures("watching")
@on_every_loop
async def test_tasks_that_are_cancelled_at_any_moment_leave_nothing_behind(
    apg: AsyncPostgresPool, pg: PostgresPool, torture: Torture
) -> None:
    await warm(apg)
    rng = random.Random(4711)
    acknowledged: set[str] = set()

    async def work(n: int) -> None:
        with contextlib.suppress(errors.Error):
            await one_of_many(n)

    async def one_of_many(n: int) -> None:
        choice = rng.randrange(7)
        if choice == 0:
            await apg.fetch("SELECT generate_series(1, ?)", (rng.choice((1, 600)),))
        elif choice == 1:
            await apg.batch([(INSERT, (f"{n}-{each}",)) for each in range(3)])
            acknowledged.update(f"{n}-{each}" for each in range(3))
        elif choice == 2:
            await apg.executemany(INSERT, [(f"{n}-{each}",) for each in range(rng.choice((2, 1_200)))])
        elif choice == 3:
            async with apg.transaction() as tx, tx.transaction():
                await tx.executemany(INSERT, [(f"{n}-{each}",) for each in range(3)])
                await tx.fetch("SELECT generate_series(1, ?)", (rng.choice((1, 600)),))
            acknowledged.update(f"{n}-{each}" for each in range(3))
        elif choice == 4:
            async with apg.read() as snapshot:
                first = await snapshot.fetchval("SELECT count(*) FROM t")
                assert await snapshot.fetchval("SELECT count(*) FROM t") == first
        elif choice == 5:
            assert [k async for (k,) in apg.stream("SELECT generate_series(1, 7)", chunk=3)] == list(range(1, 8))
        else:
            await apg.execute(INSERT, (f"{n}",))
            acknowledged.add(f"{n}")

    with connections_cut(pg.settings.url or ""):
        await all_of([partial(work, n) for n in range(torture.size(1_500, 10_000))], rng)
    found = {a for (a,) in await apg.fetch("SELECT a FROM t")}
    assert acknowledged <= found
    assert {a.partition("-")[0] for a in found if a.endswith("-0")} == {
        a.partition("-")[0] for a in found if a.endswith("-1")
    }
    engine = await apg._here("stats")
    await until(lambda: watched(engine) == 0)
    await until(partial(nothing_is_out, apg))


@contextmanager
def connections_cut(url: str) -> Iterator[None]:
    """Have connections of the pools' ended now and then."""
    is_over = threading.Event()

    def cut() -> None:
        with plain(url) as connection:
            while not is_over.wait(0.1):
                terminate(connection, "random() < 0.2")

    cutter = Caller(cut)
    yield
    is_over.set()
    assert cutter.outcome() is None


async def all_of(calls: list[Callable[[], Coroutine[Any, Any, None]]], rng: random.Random) -> None:
    """Make calls, some at once, and cancel one for each three; all of them must end."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    for n, call in enumerate(calls):
        tasks.add(asyncio.create_task(call()))
        if n % 3 == 0:
            loop.call_later(rng.random() * 0.02, rng.choice(list(tasks)).cancel)
        if n % 10 == 0:
            await asyncio.sleep(rng.random() * 0.01)
            await until(lambda: sum(not task.done() for task in tasks) < AT_ONCE)  # noqa: B023
            tasks -= {task for task in tasks if task.done()}
    done, pending = await asyncio.wait(tasks, timeout=WITHIN)
    assert not pending
    assert [task for task in done if not task.cancelled() and task.exception()] == []


def watched(engine: Engine) -> int:
    """Return how many sockets this loop watches for an engine."""
    sockets = engine.driver().sockets
    if isinstance(sockets, _watching._Single):
        return sum(handle() is not None for handle in sockets._handles.values())
    assert isinstance(sockets, _watching._Nested)
    board = sockets._board()
    return len(board.listeners) if board is not None else 0
