"""Timeouts: each has its class, ends the wait that it names and no other, and what it refused was never applied.

caller                         writer
execute(timeout=...) queues
                               held by a transaction()
the time is over: withdrawn
WriteTimeout
                               let go: goes on with the next
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import (
    COUNT_TO,
    FOREVER,
    Caller,
    eventually,
    locked_by_another_process,
    queue_up,
    run_queued,
    writer_held,
)

import walpool
from walpool import errors

SOON = 0.05  # seconds
INSERT = "INSERT INTO t VALUES (?)"


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table."""
    pool.script("CREATE TABLE t (a)")
    return pool


def kept(pool: walpool.Pool) -> list[object]:
    return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY rowid")]


def lease(pool: walpool.Pool, timeout: float | None = None) -> None:
    with pool.transaction(timeout=timeout):
        pytest.fail("the block began")


# The writer

WRITES: dict[str, Callable[[walpool.Pool, float | None], object]] = {
    "execute": lambda pool, timeout: pool.execute(INSERT, ("late",), timeout=timeout),
    "executemany": lambda pool, timeout: pool.executemany(INSERT, [("late",)], timeout=timeout),
    "batch": lambda pool, timeout: pool.batch([(INSERT, ("late",))], timeout=timeout),
    "script": lambda pool, timeout: pool.script("INSERT INTO t VALUES ('late')", timeout=timeout),
    "transaction": lease,
    "run": lambda pool, timeout: pool.run(lambda tx: tx.execute(INSERT, ("late",)), timeout=timeout),
}


@pytest.mark.parametrize("timeout", [0, SOON])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write_whose_turn_does_not_come_is_withdrawn_and_never_applied(
    table: walpool.Pool, write: Callable[[walpool.Pool, float | None], object], timeout: float
) -> None:
    with writer_held(table):
        with pytest.raises(errors.WriteTimeout, match="that stays open keeps everybody waiting") as caught:
            write(table, timeout)
        assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
        assert table.stats()["jobs_waiting"] == 0
    table.execute(INSERT, ("next",))
    assert kept(table) == ["next"]
    assert table.stats()["jobs_withdrawn"] == 1


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write_timeout_of_the_pool_holds_where_none_is_given(
    database: Path, write: Callable[[walpool.Pool, float | None], object]
) -> None:
    with walpool.Pool(database, write_timeout=SOON) as pool:
        pool.script("CREATE TABLE t (a)")
        with writer_held(pool), pytest.raises(errors.WriteTimeout):
            write(pool, None)
        assert kept(pool) == []


def test_withdrawn_job_leaves_its_neighbours_in_the_queue(table: walpool.Pool) -> None:
    with writer_held(table):
        callers = queue_up(
            table,
            [
                partial(table.execute, INSERT, (1,)),
                partial(table.execute, INSERT, ("late",), timeout=SOON),
                partial(table.execute, INSERT, (2,)),
            ],
        )
        callers[1].error(errors.WriteTimeout)
    assert callers[0].outcome().rowcount == callers[2].outcome().rowcount == 1
    assert kept(table) == [1, 2]


def test_write_that_finds_the_writer_free_needs_no_time(table: walpool.Pool) -> None:
    assert table.execute(INSERT, (1,), timeout=0).rowcount == 1
    with table.transaction(timeout=0) as tx:
        tx.execute(INSERT, (2,))
    assert kept(table) == [1, 2]


def test_job_that_a_group_has_taken_runs_to_its_end_past_its_timeout(table: walpool.Pool) -> None:
    # Its own thread leads, so it is taken at once; then it runs for longer than its timeout.
    done = table.execute(f"INSERT INTO t {COUNT_TO} RETURNING a", (300_000,), timeout=0.001)
    assert done.rows == [(300_000,)]


def test_statement_in_a_transaction_is_stopped_by_its_own_timeout(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        tx.execute(INSERT, (1,))
        with pytest.raises(errors.StatementTimeout):
            tx.fetch(COUNT_TO, (FOREVER,), timeout=SOON)
        tx.execute(INSERT, (2,))
    assert kept(table) == [1, 2]


# The queue's bounds


def test_job_beyond_max_waiting_is_refused_at_once_and_never_applied(database: Path) -> None:
    with walpool.Pool(database, max_waiting=2) as pool:
        pool.script("CREATE TABLE t (a)")
        with writer_held(pool):
            callers = queue_up(pool, [partial(pool.execute, INSERT, (n,)) for n in range(2)])
            with pytest.raises(errors.QueueFull, match="2 jobs are waiting already") as caught:
                pool.execute(INSERT, ("refused",))
            with pytest.raises(errors.QueueFull):
                lease(pool)
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
        assert [caller.outcome().rowcount for caller in callers] == [1, 1]
        assert kept(pool) == [0, 1]
        pool.execute(INSERT, (2,))
        assert pool.stats()["errors_QueueFull"] == 2


def test_max_waiting_of_one_lets_a_lone_writer_write(database: Path) -> None:
    with walpool.Pool(database, max_waiting=1) as pool:
        pool.script("CREATE TABLE t (a)")
        assert run_queued(pool, [partial(pool.execute, INSERT, (1,))])[0].rowcount == 1


def test_caller_beyond_max_waiting_bytes_is_held_back_until_there_is_room(database: Path) -> None:
    with walpool.Pool(database, max_waiting_bytes=4096) as pool:
        pool.script("CREATE TABLE t (a)")
        big = b"x" * 3000
        with writer_held(pool):
            callers = queue_up(pool, [partial(pool.execute, INSERT, (big,))])
            held_back = Caller(lambda: pool.execute(INSERT, (big,)))
            small = Caller(lambda: pool.execute(INSERT, (1,)))
            eventually(lambda: pool.stats()["jobs_waiting"] == 2)
            with pytest.raises(errors.WriteTimeout, match="max_waiting_bytes") as caught:
                pool.execute(INSERT, (big,), timeout=SOON)
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
            stats = pool.stats()
            assert (stats["jobs_waiting"], held_back.thread.is_alive()) == (2, True)
            assert 3000 <= stats["bytes_waiting"] <= 4096
        assert [caller.outcome().rowcount for caller in (*callers, held_back, small)] == [1, 1, 1]
        assert pool.fetchval("SELECT count(*) FROM t") == 3
        assert pool.stats()["bytes_waiting_peak"] <= 4096


def test_job_larger_than_max_waiting_bytes_runs_when_the_queue_is_empty(database: Path) -> None:
    with walpool.Pool(database, max_waiting_bytes=1024, max_group_bytes=1024) as pool:
        pool.script("CREATE TABLE t (a)")
        assert pool.execute(INSERT, (b"x" * 100_000,)).rowcount == 1


# The readers


def test_read_without_a_free_reader_times_out_and_names_who_has_them(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool, pool.read() as snapshot:
        snapshot.fetchval("SELECT 'of the holder'")
        for timeout in (0, SOON):
            error = Caller(partial(pool.fetch, "SELECT 1", timeout=timeout)).error(errors.CheckoutTimeout)
            assert "all 1 are out" in str(error)
            assert "SELECT 'of the holder'" in str(error)
            assert (error.outcome, error.retryable) == ("not_applied", True)


def test_every_way_to_read_times_out_waiting_for_a_reader(database: Path) -> None:
    def snapshot(pool: walpool.Pool) -> None:
        with pool.read(timeout=SOON):
            pytest.fail("the block began")

    def stream(pool: walpool.Pool) -> None:
        with pool.stream("SELECT 1", timeout=SOON):
            pytest.fail("the block began")

    with walpool.Pool(database, readers=2) as pool, pool.stream("SELECT 1"), pool.stream("SELECT 2"):
        reads: list[Callable[[], object]] = [
            partial(pool.fetchone, "SELECT 1", timeout=SOON),
            partial(pool.fetchval, "SELECT 1", timeout=SOON),
            partial(snapshot, pool),
            partial(stream, pool),
        ]
        for read in reads:
            Caller(read).error(errors.CheckoutTimeout)


def test_checkout_timeout_of_the_pool_holds_where_none_is_given(database: Path) -> None:
    with walpool.Pool(database, readers=1, checkout_timeout=SOON) as pool, pool.read():
        Caller(lambda: pool.fetch("SELECT 1")).error(errors.CheckoutTimeout)


def test_reader_that_comes_home_goes_to_the_one_who_waits(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool:
        with pool.read():
            waiting = Caller(lambda: pool.fetchval("SELECT 7"))
            eventually(lambda: pool.stats()["yields_to_wait"] > 0)
        assert waiting.outcome() == 7


def test_writers_never_use_up_the_readers(database: Path, threads: Callable[..., list[object]]) -> None:
    with walpool.Pool(database, readers=1, checkout_timeout=SOON * 20) as pool:
        pool.script("CREATE TABLE t (a)")
        with writer_held(pool):
            writers = queue_up(pool, [partial(pool.execute, INSERT, (n,)) for n in range(16)])
            assert pool.fetchval("SELECT count(*) FROM t") == 0
        assert all(writer.outcome().rowcount == 1 for writer in writers)


@pytest.mark.parametrize("sql", [COUNT_TO, f"SELECT * FROM ({COUNT_TO})"])
def test_read_that_runs_past_its_timeout_is_interrupted(table: walpool.Pool, sql: str) -> None:
    for read in (table.fetch, table.fetchone, table.fetchval):
        with pytest.raises(errors.StatementTimeout, match="ran past its timeout") as caught:
            read(sql, (FOREVER,), timeout=SOON)
        assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    assert table.stats()["readers_out"] == 0
    assert table.fetchval("SELECT 1") == 1


def test_read_in_a_snapshot_is_interrupted_by_its_own_timeout_and_the_snapshot_lives_on(table: walpool.Pool) -> None:
    with table.read() as snapshot:
        with pytest.raises(errors.StatementTimeout):
            snapshot.fetchval(COUNT_TO, (FOREVER,), timeout=SOON)
        assert snapshot.fetchval(COUNT_TO, (10,)) == 10


def test_read_without_a_timeout_runs_on(table: walpool.Pool) -> None:
    assert table.fetchval(COUNT_TO, (300_000,)) == 300_000


# Another process


def test_write_waits_for_another_process_and_then_goes_through(table: walpool.Pool) -> None:
    with locked_by_another_process(Path(table.path)) as process:
        waiting = Caller(lambda: table.execute(INSERT, (1,)))
        leasing = Caller(lambda: table.run(lambda tx: tx.execute(INSERT, (2,)).rowcount))
        eventually(lambda: table.stats()["jobs_waiting"] >= 1)
        assert kept(table) == []
        process.communicate()
    assert waiting.outcome().rowcount == 1
    assert leasing.outcome() == 1
    assert sorted(map(str, kept(table))) == ["1", "2"]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write_is_busy_when_another_process_keeps_the_file(
    database: Path, write: Callable[[walpool.Pool, float | None], object]
) -> None:
    with walpool.Pool(database, busy_timeout=SOON) as pool:
        pool.script("CREATE TABLE t (a)")
        with locked_by_another_process(database):
            with pytest.raises(errors.BusyError, match="another process") as caught:
                write(pool, None)
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", True)
            assert pool.fetch("SELECT a FROM t") == []
        pool.execute(INSERT, ("next",))
        assert kept(pool) == ["next"]


def test_every_queued_job_is_told_that_the_file_is_busy(database: Path) -> None:
    with walpool.Pool(database, busy_timeout=SOON) as pool:
        pool.script("CREATE TABLE t (a)")
        with locked_by_another_process(database):
            callers = [Caller(partial(pool.execute, INSERT, (n,))) for n in range(4)]
            for caller in callers:
                caller.error(errors.BusyError)
        assert kept(pool) == []
        assert pool.stats()["jobs_waiting"] == 0


def test_timeout_of_the_call_ends_the_wait_for_another_process_too(table: walpool.Pool) -> None:
    with locked_by_another_process(Path(table.path)), pytest.raises(errors.WriteTimeout, match="another process"):
        table.execute(INSERT, (1,), timeout=SOON)
    assert kept(table) == []


def test_busy_timeout_of_zero_does_not_wait(database: Path) -> None:
    with walpool.Pool(database, busy_timeout=0) as pool:
        pool.script("CREATE TABLE t (a)")
        with locked_by_another_process(database), pytest.raises(errors.BusyError):
            pool.execute(INSERT, (1,))
        assert kept(pool) == []


def test_opening_a_file_that_is_locked_while_wal_is_off_is_busy(database: Path) -> None:
    with locked_by_another_process(database, "EXCLUSIVE"), pytest.raises(errors.BusyError):
        walpool.Pool(database, busy_timeout=SOON)
    with walpool.Pool(database) as pool:
        assert pool.execute("PRAGMA journal_mode").rows == [("wal",)]


# The argument


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan])
def test_timeout_that_is_no_length_of_time_is_refused(table: walpool.Pool, timeout: float) -> None:
    for call in (
        lambda: table.execute(INSERT, (1,), timeout=timeout),
        lambda: table.fetch("SELECT 1", timeout=timeout),
        lambda: table.run(lambda tx: None, timeout=timeout),
    ):
        with pytest.raises(errors.ProgrammingError, match="timeout must be seconds"):
            call()
    assert kept(table) == []
