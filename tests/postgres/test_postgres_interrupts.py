"""Exceptions from outside (Ctrl-C, PyThreadState_SetAsyncExc) on the PostgreSQL pool, between any two of its steps.

leader                       its neighbours
takes the group
is stopped                   are told, or go on in another group
leaves the lead              lead the next
"""

from __future__ import annotations

import contextlib
import gc
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from inspect import isgeneratorfunction
from typing import Any

import psycopg
import pytest
from helpers import WITHIN, eventually, start_python

from tests.postgres.pools import INSERT, assert_unharmed, groups_held, kept, plain, queue_up, running
from tests.stopping import Load, Stop, stop, stopped_at_each_step
from tests.torture import Torture
from walpool import errors
from walpool.postgres import PostgresPool, Transaction, _writer
from walpool.postgres._steps import Answers


def write_in_a_transaction(pool: PostgresPool) -> None:
    with pool.transaction() as tx:
        tx.execute(INSERT, ("x",))


def read_a_snapshot(pool: PostgresPool) -> None:
    with pool.read() as snapshot:
        snapshot.fetchval("SELECT 1")


def read_a_stream(pool: PostgresPool) -> None:
    with pool.stream("SELECT generate_series(1, 3)", chunk=2) as rows:
        list(rows)


def refused(pool: PostgresPool) -> None:
    with contextlib.suppress(errors.DataError):
        pool.execute("SELECT 1 / 0")


CALLS: dict[str, Callable[[PostgresPool], object]] = {
    "execute": lambda pool: pool.execute(INSERT, ("x",)),
    "batch": lambda pool: pool.batch([(INSERT, ("x",)), "SELECT 1"]),
    "script": lambda pool: pool.script("INSERT INTO t (a) VALUES ('x')"),
    "refused": refused,
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "transaction": write_in_a_transaction,
    "read": read_a_snapshot,
    "stream": read_a_stream,
}


@pytest.mark.torture
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's, of what was being opened
@pytest.mark.timeout(600)
def test_exception_at_any_step_leaves_nothing_held_and_the_line_led(
    pg: PostgresPool, call: str, torture: Torture
) -> None:
    stride = torture.size(5, 1)
    CALLS[call](pg)
    pg.execute("DELETE FROM t")
    steps = 0
    called = partial(CALLS[call], pg)
    for place in stopped_at_each_step(called, "walpool/postgres/", stride=stride, may_fail=(errors.Error,)):
        steps += stride
        line = pg._engine.writer.line
        stats = pg.stats()
        left = (stats["leases_out"], stats["readers_out"], pg._engine._groups.out, stats["jobs_waiting"])
        assert (left, line._leaders, line._unanswered, line._bytes) == ((0, 0, 0, 0), set(), set(), 0), place
        assert pg.execute("DELETE FROM t", timeout=WITHIN).rowcount in (0, 1), place
    assert steps > 20
    assert_unharmed(pg)


STEPS = ["take", "lend", "run", "answer"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's, of what was being lent
@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_leader_that_is_stopped_leaves_nobody_waiting(
    pg: PostgresPool, postgres_url: str, monkeypatch: pytest.MonkeyPatch, where: str, when: str
) -> None:
    writer = pg._engine.writer
    holder, name = {
        "take": (writer.line, "take"),
        "lend": (pg._engine._groups, "lending"),
        "run": (_writer, "running"),
        "answer": (_writer.Writer, "_answer"),
    }[where]
    original: Callable[..., Any] = getattr(holder, name)
    stopped = []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        first = not stopped
        stopped.append(1)
        if first and when == "before":
            raise Stop
        result = original(*args, **kwargs)
        if first:
            raise Stop
        return result

    def stopping_steps(*args: Any, **kwargs: Any) -> Any:
        first = not stopped
        stopped.append(1)
        if first and when == "before":
            raise Stop
        result = yield from original(*args, **kwargs)
        if first:
            raise Stop
        return result

    with groups_held(postgres_url, pg):
        callers = queue_up(pg, [partial(pg.execute, INSERT, (str(n),)) for n in range(12)])
        monkeypatch.setattr(holder, name, stopping_steps if isgeneratorfunction(original) else stopping)
    told = [caller.outcome() for caller in callers]
    caller = None
    monkeypatch.undo()
    assert stopped
    applied = {str(n) for n, each in enumerate(told) if not isinstance(each, BaseException)}
    doubtful = {str(n) for n, each in enumerate(told) if isinstance(each, BaseException)}
    for each in told:
        assert not isinstance(each, errors.Error) or each.outcome == "unknown"
    del told, each, caller  # their exceptions keep the frames of who was stopped
    callers.clear()
    gc.collect()
    assert applied <= set(kept(pg)) <= applied | doubtful
    assert not pg._engine.writer.line._leaders
    assert_unharmed(pg)


def test_waiter_that_is_stopped_is_withdrawn_and_its_neighbours_are_not(pg: PostgresPool, postgres_url: str) -> None:
    with groups_held(postgres_url, pg):
        callers = queue_up(pg, [partial(pg.execute, INSERT, (str(n),)) for n in range(6)])
        for caller in callers[::2]:
            stop(caller.thread)
        for caller in callers[::2]:
            caller.error(Stop)
        assert pg.stats()["jobs_waiting"] == 3
    assert [caller.outcome().rowcount for caller in callers[1::2]] == [1, 1, 1]
    assert kept(pg) == ["1", "3", "5"]
    assert_unharmed(pg)


INTERRUPTED = """
    import sys, signal
    from walpool.postgres import PostgresPool
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with PostgresPool(sys.argv[1]) as pool:
        calls = {
            "execute": lambda: pool.execute("SELECT pg_sleep(60)"),
            "fetch": lambda: pool.fetch("SELECT pg_sleep(60)"),
            "script": lambda: pool.script("SELECT pg_sleep(60)"),
            "transaction": lambda: pool.run(lambda tx: tx.execute("SELECT pg_sleep(60)")),
        }
        print("ready", flush=True)
        try:
            calls[sys.argv[2]]()
        except KeyboardInterrupt:
            print("stopped", flush=True)
        pool.execute("INSERT INTO t (a) VALUES ('after')")
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t (a) VALUES ('after too')")
        print(pool.fetchval("SELECT count(*) FROM t"), flush=True)
"""


def test_interrupt_between_the_send_and_the_wait_stops_what_runs_on_the_server(
    pg: PostgresPool, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plain(postgres_url) as other:

        def interrupted(self: Answers) -> object:
            eventually(lambda: len(running(other, "pg_sleep(60)")) == 1)
            raise KeyboardInterrupt

        monkeypatch.setattr(Answers, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pg.execute("SELECT pg_sleep(60)")
        monkeypatch.undo()
        eventually(lambda: running(other, "pg_sleep(60)") == [])
    assert_unharmed(pg)


@pytest.mark.parametrize("call", ["execute", "fetch", "script", "transaction"])
def test_interrupt_stops_what_runs_on_the_server_and_leaves_the_pool_to_go_on(
    pg: PostgresPool, postgres_url: str, call: str
) -> None:
    with plain(postgres_url) as other, start_python(INTERRUPTED, postgres_url, call) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            eventually(lambda: len(running(other, "pg_sleep(60)")) == 1)
            process.send_signal(signal.SIGINT)
            output, problem = process.communicate(timeout=WITHIN)
        finally:
            process.kill()
        assert (output, process.returncode) == ("stopped\n2\n", 0), problem
        eventually(lambda: running(other, "pg_sleep(60)") == [])


def _twice(tx: Transaction, value: str) -> None:
    tx.execute("INSERT INTO d VALUES (?)", (value,))
    tx.execute("INSERT INTO d VALUES (?)", (value,))


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's, of what was being opened
def test_exceptions_set_at_any_moment_lose_nothing_and_leave_nothing_held(pg: PostgresPool, torture: Torture) -> None:
    rounds = torture.size(150, 10_000)
    pg.script("CREATE TABLE d (a text)")
    insert = "INSERT INTO d (a) VALUES (?)"
    writes: list[Callable[[str], object]] = [
        lambda value: pg.execute("INSERT INTO d VALUES (?1), (?1)", (value,)),
        lambda value: pg.executemany(insert, [(value,), (value,)]),
        lambda value: pg.batch([(insert, (value,)), (insert, (value,))]),
        lambda value: pg.run(lambda tx: _twice(tx, value)),
    ]
    reads: list[Callable[[], object]] = [
        partial(pg.fetchval, "SELECT count(*) FROM d"),
        partial(read_a_snapshot, pg),
        partial(read_a_stream, pg),
    ]
    load = Load(writes, reads, may_fail=(errors.DatabaseError,))  # whose leader was stopped
    load.run(rounds, pause=1 / 100)
    gc.collect()
    assert_unharmed(pg)
    line = pg._engine.writer.line
    assert (line._leaders, line._unanswered) == (set(), set())
    found = Counter(a for (a,) in pg.fetch("SELECT a FROM d"))
    load.assert_nothing_lost(found, rounds, torture, "exceptions set at any moment, on PostgreSQL")


def test_process_that_dies_leaves_nothing_on_the_server(pg: PostgresPool, postgres_url: str) -> None:
    program = """
        import sys, os
        from walpool.postgres import PostgresPool
        pool = PostgresPool(sys.argv[1])
        pool.execute("INSERT INTO t (a) VALUES ('acknowledged')")
        block = pool.transaction()
        tx = block.__enter__()
        tx.execute("INSERT INTO t (a) VALUES ('open')")
        print("ready", flush=True)
        sys.stdin.read()
    """
    with start_python(program, postgres_url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    with psycopg.connect(postgres_url) as other:
        eventually(lambda: other.execute("SELECT a FROM t").fetchall() == [("acknowledged",)])
    pg.execute(INSERT, ("open",), timeout=WITHIN)
