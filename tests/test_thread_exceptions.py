"""Exceptions that another thread sets (PyThreadState_SetAsyncExc), or that come between any two steps of walpool's.

worker                         watcher
waits in the engine
                               sets an exception: CPython raises it at the worker's next step in Python
is answered: the call ends
raises it, in the place of the result
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, WITHIN, Caller, eventually, locked_by_another_process, queue_up, run_together, writer_held

import walpool
from tests.stopping import Load, Stop, stop, stopped_at_each_step
from tests.torture import Torture
from walpool import errors

INSERT = "INSERT INTO t VALUES (?)"
UNHARMED = {"readers_out": 0, "jobs_waiting": 0, "bytes_waiting": 0}


@pytest.fixture
def table(database: Path) -> Iterator[walpool.Pool]:
    """Yield a pool of one reader with an empty table."""
    with walpool.Pool(database, readers=1, max_waiting_bytes=4096) as pool:
        pool.script("CREATE TABLE t (a)")
        yield pool


def kept(pool: walpool.Pool) -> list[object]:
    return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY rowid")]


def assert_unharmed(pool: walpool.Pool) -> None:
    """Everything was given back: by the figures, and because a write and a read find their way in time."""
    stats = pool.stats()
    assert {key: stats[key] for key in UNHARMED} == UNHARMED
    with pool.transaction(timeout=WITHIN) as tx:
        tx.execute("SELECT 1")
    assert pool.fetchval("SELECT 1", timeout=WITHIN) == 1


def is_stuck(thread: threading.Thread) -> bool:
    """Return whether it stands at one place for ten times as long as it could, had it not given the GIL up."""

    def place() -> tuple[str, int, int]:
        frame = sys._current_frames()[thread.ident or 0]
        return frame.f_code.co_filename, frame.f_lasti, id(frame)

    since, here = time.monotonic(), place()
    while place() == here and time.monotonic() < since + 10 * sys.getswitchinterval():
        os.sched_yield()
    return place() == here and here[0].endswith("pool.py")


# While it waits


@contextmanager
def reader_held(pool: walpool.Pool) -> Iterator[None]:
    with pool.stream("SELECT 1"):
        yield


@contextmanager
def queue_filled(pool: walpool.Pool) -> Iterator[None]:
    with writer_held(pool):
        queued = queue_up(pool, [partial(pool.execute, INSERT, (4000 * "x",))])
        yield
    assert queued[0].outcome().rowcount == 1


@contextmanager
def file_locked(pool: walpool.Pool) -> Iterator[None]:
    with locked_by_another_process(Path(pool.path)):
        yield


def insert_in_a_transaction(pool: walpool.Pool) -> None:
    with pool.transaction() as tx:
        tx.execute(INSERT, ("of the worker",))


def read_a_snapshot(pool: walpool.Pool) -> None:
    with pool.read() as snapshot:
        snapshot.fetchval("SELECT 1")


def read_a_stream(pool: walpool.Pool) -> None:
    with pool.stream("SELECT 1") as rows:
        list(rows)


Waits = tuple[Callable[[walpool.Pool], Any], Callable[[walpool.Pool], object], list[object]]
WAITS: dict[str, Waits] = {
    # Where it is, what it does, and what of that is in the file afterwards: a job that a group takes is applied.
    "a job in the queue": (writer_held, lambda pool: pool.execute(INSERT, ("of the worker",)), ["of the worker"]),
    "a transaction in the queue": (writer_held, insert_in_a_transaction, []),
    "a checkpoint in the queue": (writer_held, lambda pool: pool.checkpoint(), []),
    "a fetch without a reader": (reader_held, lambda pool: pool.fetch("SELECT 1"), []),
    "a snapshot without a reader": (reader_held, read_a_snapshot, []),
    "a stream without a reader": (reader_held, read_a_stream, []),
    "a job held back": (queue_filled, lambda pool: pool.execute(INSERT, (4000 * "y",)), [4000 * "y"]),
    "a job before a locked file": (
        file_locked,
        lambda pool: pool.execute(INSERT, ("of the worker",)),
        ["of the worker"],
    ),
    "a transaction before a locked file": (file_locked, insert_in_a_transaction, []),
}


@pytest.mark.parametrize("wait", WAITS)
def test_exception_set_during_a_wait_comes_when_the_call_returns_and_leaves_nothing_held(
    table: walpool.Pool, wait: str
) -> None:
    obstacle, call, remains = WAITS[wait]
    with obstacle(table):
        worker = Caller(partial(call, table))
        eventually(partial(is_stuck, worker.thread))
        stop(worker.thread)
        assert worker.thread.is_alive()  # the engine does not hear it
    worker.error(Stop)
    del worker
    assert_unharmed(table)
    assert [value for value in kept(table) if value != 4000 * "x"] == remains


@pytest.mark.parametrize("where", ["fetch", "snapshot", "stream", "transaction"])
def test_exception_set_during_a_statement_comes_at_its_end_and_leaves_nothing_held(
    table: walpool.Pool, where: str
) -> None:
    def run() -> None:
        if where == "fetch":
            table.fetchval(COUNT_TO, (1_000_000,))
        elif where == "snapshot":
            with table.read() as snapshot:
                snapshot.fetchval(COUNT_TO, (1_000_000,))
        elif where == "stream":
            with table.stream(COUNT_TO, (1_000_000,)) as rows:
                next(rows)
        else:
            with table.transaction() as tx:
                tx.execute(INSERT, ("of the worker",))
                tx.fetchval(COUNT_TO, (1_000_000,))

    before = table.stats()["yields_over_budget"]
    worker = Caller(run)
    eventually(lambda: table.stats()["yields_over_budget"] > before)
    stop(worker.thread)
    worker.error(Stop)
    del worker
    assert_unharmed(table)
    assert kept(table) == []


# Between two steps


BLOCKS: dict[str, Callable[[walpool.Pool], object]] = {
    "transaction": insert_in_a_transaction,
    "run": lambda pool: pool.run(lambda tx: tx.execute(INSERT, ("of the worker",))),
    "read": read_a_snapshot,
    "stream": read_a_stream,
    "execute": lambda pool: pool.execute(INSERT, ("of the worker",)),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_exception_at_any_step_of_a_block_leaves_nothing_held_and_nothing_refused(
    table: walpool.Pool, block: str
) -> None:
    steps = 0
    for _ in stopped_at_each_step(partial(BLOCKS[block], table), "walpool/pool.py"):
        steps += 1
        # On this very thread: it must not be taken to be inside the block still.
        assert_unharmed(table)
    assert steps > (2 if block == "execute" else 10)
    assert set(kept(table)) <= {"of the worker"}


# At any moment


def insert_twice(tx: walpool.Transaction, value: str) -> None:
    tx.execute(INSERT, (value,))
    tx.fetchval(COUNT_TO, (2000,))
    tx.execute(INSERT, (value,))


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_exceptions_set_at_any_moment_lose_nothing_and_leave_nothing_held(database: Path, torture: Torture) -> None:
    rounds = torture.size(200, 20_000)
    with walpool.Pool(database, readers=2, synchronous="normal", slow_threshold=60) as pool:
        pool.script("CREATE TABLE t (a)")
        writes: list[Callable[[str], object]] = [
            lambda value: pool.execute("INSERT INTO t VALUES (?), (?)", (value, value)),
            lambda value: pool.executemany(INSERT, [(value,), (value,)]),
            lambda value: pool.batch([(INSERT, (value,)), (INSERT, (value,))]),
            lambda value: pool.run(lambda tx: insert_twice(tx, value)),
        ]
        reads: list[Callable[[], object]] = [
            partial(pool.fetchval, COUNT_TO, (5000,)),
            partial(read_a_snapshot, pool),
            partial(read_a_stream, pool),
        ]
        load = Load(writes, reads)
        load.run(rounds, pause=1 / 200)
        assert_unharmed(pool)
        load.assert_nothing_lost(Counter(kept(pool)), rounds, torture, "exceptions set at any moment")


# Timeouts too short for anything

FILLER = 1500 * "x"  # two of these do not stand in the queue together


def lease_with(pool: walpool.Pool, value: str, timeout: float) -> None:
    with pool.transaction(timeout=timeout) as tx:
        tx.execute(INSERT, (value,))
        with contextlib.suppress(errors.StatementTimeout):
            tx.fetchval(COUNT_TO, (20_000,), timeout=timeout)


def snapshot_with(pool: walpool.Pool, value: str, timeout: float) -> None:
    with pool.read(timeout=timeout) as held:
        held.fetchval(COUNT_TO, (20_000,), timeout=timeout)


def stream_with(pool: walpool.Pool, value: str, timeout: float) -> None:
    with pool.stream("SELECT a FROM t LIMIT 20", timeout=timeout, chunk=3) as rows:
        list(rows)


Timed = Callable[[walpool.Pool, str, float], object]
TIMED_WRITES: list[Timed] = [
    lambda pool, value, timeout: pool.execute(INSERT, (value,), timeout=timeout),
    lambda pool, value, timeout: pool.executemany(INSERT, [(value,), (FILLER,)], timeout=timeout),
    lambda pool, value, timeout: pool.script(f"INSERT INTO t VALUES ('{value}')", timeout=timeout),
    lease_with,
]
TIMED_READS: list[Timed] = [
    lambda pool, value, timeout: pool.fetchval(COUNT_TO, (20_000,), timeout=timeout),
    snapshot_with,
    stream_with,
]


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_timeouts_too_short_for_anything_have_their_class_and_outcome_at_every_stage(
    database: Path, torture: Torture
) -> None:
    rounds = torture.size(300, 30_000)
    with walpool.Pool(database, readers=1, max_waiting_bytes=2000, synchronous="normal", slow_threshold=60) as pool:
        pool.script("CREATE TABLE t (a)")

        def work(index: int) -> dict[str, errors.Error | None]:
            """Return the writes with what came of each."""
            drawn = random.Random(index)
            ended: dict[str, errors.Error | None] = {}
            for n in range(rounds):
                value, timeout = f"{index}/{n}", drawn.choice([0, 0.00001, 0.0001, 0.001])
                with contextlib.suppress(errors.CheckoutTimeout, errors.StatementTimeout):  # and nothing else
                    drawn.choice(TIMED_READS)(pool, value, timeout)
                try:
                    drawn.choice(TIMED_WRITES)(pool, value, timeout)
                    ended[value] = None
                except errors.Error as error:
                    ended[value] = error
            return ended

        ended = {value: error for each in run_together(8, work, timeout=1700) for value, error in each.items()}
        assert_unharmed(pool)
        found = Counter(value for value in kept(pool) if value != FILLER)
        stats = pool.stats()
    wrong = {value for value, error in ended.items() if error is None} ^ found.keys()
    torture.tell("timeouts too short for anything", tried=2 * len(ended), unit="calls", lost=len(wrong))
    assert wrong == set()
    assert set(found.values()) == {1}
    assert {(type(error), error.outcome, error.retryable) for error in ended.values() if error} == {
        (errors.WriteTimeout, "not_applied", True)
    }
    assert min(stats[f"errors_{kind}"] for kind in ("CheckoutTimeout", "StatementTimeout")) > 0


@pytest.mark.parametrize("timeout", [0, 1e-9])
def test_statement_inside_a_transaction_snapshot_or_queue_without_time_ends_at_once(
    table: walpool.Pool, timeout: float
) -> None:
    with table.transaction() as tx:
        tx.execute(INSERT, ("of the block",))
        for read in (tx.fetch, tx.fetchone, tx.fetchval):
            with pytest.raises(errors.StatementTimeout) as caught:
                read(COUNT_TO, (10**9,), timeout=timeout)
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    with table.read() as snapshot, pytest.raises(errors.StatementTimeout):
        snapshot.fetchval(COUNT_TO, (10**9,), timeout=timeout)
    with queue_filled(table), pytest.raises(errors.WriteTimeout, match="max_waiting_bytes") as refused:
        table.execute(INSERT, (4000 * "y",), timeout=timeout)
    assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
    assert_unharmed(table)
    assert "of the block" in kept(table)
    assert 4000 * "y" not in kept(table)
