"""fork() with a PostgreSQL pool open: the child has connections of its own, and the parent keeps those it has.

parent                       child
holds connections            has their descriptors: to send on one would speak in the parent's name
                             opens new ones at its first call
goes on                      leaves the parent's blocks without a word on the wire
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually
from looping import run

from tests.postgres.pools import INSERT, assert_unharmed, kept, others, plain
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")


@pytest.fixture(autouse=True)
def forks_are_meant() -> Iterator[None]:
    """Let a process with threads fork, which newer Pythons warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def in_child(work: Callable[[], object]) -> None:
    """Run it in a forked child, which must end well, and as a program does: what it inherited is finalized."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - told by the status
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    eventually_ended(pid)


def eventually_ended(pid: int) -> None:
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    eventually(has_ended)
    assert ended == [0]


def assert_refused(call: Callable[[], object]) -> None:
    with pytest.raises(errors.InterfaceError, match="parent process"):
        call()


def backends(connection: psycopg.Connection[Any]) -> set[int]:
    return set(others(connection))


def test_child_uses_the_pool_anew_and_leaves_the_parents_connections_alone(pg: PostgresPool, postgres_url: str) -> None:
    pg.fetch("SELECT 1")
    with pg.transaction() as tx:
        tx.execute(INSERT, ("before",))

    def work() -> None:
        pg.execute(INSERT, ("child",))
        assert pg.fetch("SELECT a FROM t ORDER BY a") == [("before",), ("child",)]
        with pg.transaction() as tx, plain(postgres_url) as other:
            tx.execute(INSERT, ("child's transaction",))
            assert backends(other) > before
        pg.close()
        with plain(postgres_url) as other:
            eventually(lambda: backends(other) == before)

    with plain(postgres_url) as other:
        before = backends(other)
        for _ in range(3):
            in_child(work)
            pg.execute("DELETE FROM t WHERE a <> 'before'")
        assert backends(other) == before
    assert kept(pg) == ["before"]
    assert_unharmed(pg)


def test_child_of_a_busy_parent_has_connections_of_its_own(pg: PostgresPool) -> None:
    is_over = threading.Event()

    def write(name: int) -> int:
        n = 0
        while not is_over.is_set():
            n += 1
            pg.execute(INSERT, (f"{name}/{n}",))
            pg.fetch("SELECT 1")
            with pg.transaction() as tx:
                tx.execute("UPDATE t SET n = 1 WHERE a = ?", (f"{name}/{n}",))
        return n

    callers = [Caller(partial(write, name)) for name in range(4)]
    for n in range(6):
        in_child(partial(pg.execute, INSERT, (f"child {n}",)))
    is_over.set()
    written = sum(caller.outcome() for caller in callers)
    assert pg.fetchone("SELECT count(*), sum(n) FROM t") == (written + 6, written)
    assert_unharmed(pg)


def test_transaction_of_the_parent_is_refused_to_the_child_and_goes_on(pg: PostgresPool) -> None:
    def work() -> None:
        calls: list[Callable[[], object]] = [
            lambda: tx.execute(INSERT, ("child",)),
            lambda: tx.fetch("SELECT 1"),
            lambda: tx.transaction().__enter__(),
        ]
        for call in calls:
            assert_refused(call)

    with pg.transaction() as tx:
        tx.execute(INSERT, ("x",))
        in_child(work)
        tx.execute(INSERT, ("y",))
    with pg.read() as tx:  # type: ignore[assignment]
        in_child(lambda: assert_refused(lambda: tx.fetch("SELECT 1")))
        assert tx.fetchval("SELECT count(*) FROM t") == 2
    with pg.stream("SELECT generate_series(1, 10)", chunk=2) as rows:
        next(rows)
        in_child(lambda: assert_refused(lambda: list(rows)))
        assert len(list(rows)) == 9
    assert_unharmed(pg)


class Leave(Exception):
    """How a child leaves the blocks that it was born in."""


@pytest.mark.parametrize("how", ["by an exception", "by their ends"])
def test_child_that_leaves_the_parents_blocks_sends_nothing_in_its_name(pg: PostgresPool, how: str) -> None:
    """The child runs on in the parent's frames, as with `multiprocessing` or `os.fork()` in the midst of a program."""
    is_child = False
    pid = 0
    status = 1
    try:
        with pg.transaction() as tx, tx.transaction():
            tx.execute(INSERT, ("x",))
            pid = os.fork()
            is_child = pid == 0
            if is_child and how == "by an exception":
                raise Leave
            if not is_child:
                eventually_ended(pid)
                tx.execute(INSERT, ("y",))
    except Leave:
        status = 0
    except errors.InterfaceError:
        status = 0 if how == "by their ends" else 1
    finally:
        if is_child:
            os._exit(status)
    with pg.stream("SELECT generate_series(1, 10)", chunk=2) as rows:
        next(rows)
        pid = os.fork()
        if pid != 0:
            eventually_ended(pid)
        left = list(rows) if pid != 0 else []
    if pid == 0:
        os._exit(0)
    assert len(left) == 9
    assert kept(pg) == ["x", "y"]
    assert_unharmed(pg)


def test_child_may_close_what_it_inherited(pg: PostgresPool) -> None:
    pg.fetch("SELECT 1")
    in_child(pg.close)
    assert pg.fetchval("SELECT 1") == 1
    assert_unharmed(pg)


def of_a_process(url: str, value: str, pool: PostgresPool) -> None:
    pool.execute(INSERT, (value,))
    with pool.transaction() as tx:
        tx.execute("UPDATE t SET n = n + 1 WHERE a = ?", (value,))
    with PostgresPool(url) as another:
        assert another.fetchval("SELECT n FROM t WHERE a = ?", (value,)) == 1
    pool.close()


def test_processes_of_multiprocessing_use_the_pool_that_they_inherit(pg: PostgresPool, postgres_url: str) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=of_a_process, args=(postgres_url, str(n), pg)) for n in range(4)]
    for process in processes:
        process.start()
    pg.execute(INSERT, ("parent",))
    for process in processes:
        process.join(WITHIN)
        assert process.exitcode == 0
    assert kept(pg) == ["0", "1", "2", "3", "parent"]
    assert_unharmed(pg)


def test_child_of_a_loops_process_runs_a_loop_of_its_own(pg: PostgresPool, postgres_url: str) -> None:
    pool = AsyncPostgresPool(postgres_url)

    async def write(value: str) -> Any:
        await pool.execute(INSERT, (value,))
        async with pool.transaction() as tx:
            await tx.execute("UPDATE t SET n = 1 WHERE a = ?", (value,))
        return await pool.fetchval("SELECT n FROM t WHERE a = ?", (value,))

    assert run(write("parent")) == 1

    def work() -> None:
        assert run(write("child")) == 1
        run(pool.close())

    in_child(work)
    assert run(write("parent again")) == 1
    run(pool.close())
    assert kept(pg) == ["child", "parent", "parent again"]
    assert_unharmed(pg)
