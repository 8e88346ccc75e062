"""The GIL is given up lazily: by whatever waits, by whatever runs for long, and by nothing that is over in a moment.

`yields_to_wait` and `yields_over_budget` count it. Counts are asserted, never times. The clock has a say in the second:
where the system stops a short statement in its middle, it counts as long for the next runs, so some are allowed for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from helpers import (
    COUNT_TO,
    FOREVER,
    WITHIN,
    Caller,
    eventually,
    locked_by_another_process,
    queue_up,
    writer_held,
)

import walpool
from walpool import errors

MANY = 2000
SOME = MANY // 4


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with a table of MANY rows whose figures begin here."""
    pool.script("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
    pool.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"row {n}") for n in range(MANY)])
    pool.fetchval("SELECT a FROM t WHERE id = ?", (0,))  # prepared, and in the cache
    pool.pop_stats()
    return pool


class Spinner:
    """A thread that is busy with Python and counts."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = False
        self.thread = threading.Thread(target=self._spin, daemon=True)

    def _spin(self) -> None:
        while not self._stop:
            self.count += 1

    @contextmanager
    def running(self) -> Iterator[Spinner]:
        self.thread.start()
        eventually(lambda: self.count > 0)
        try:
            yield self
        finally:
            self._stop = True
            self.thread.join(WITHIN)


def read_points(pool: walpool.Pool) -> None:
    for n in range(MANY):
        assert pool.fetchval("SELECT a FROM t WHERE id = ?", (n,)) == f"row {n}"


# What is short


def test_point_reads_keep_the_gil(table: walpool.Pool) -> None:
    read_points(table)
    stats = table.stats()
    assert stats["yields_to_wait"] == 0
    assert stats["yields_over_budget"] < SOME


def test_point_reads_beside_a_busy_python_thread_keep_the_gil(table: walpool.Pool) -> None:
    with Spinner().running():
        read_points(table)
    stats = table.stats()
    assert stats["yields_to_wait"] == 0
    assert stats["yields_over_budget"] < SOME


def test_point_reads_in_a_snapshot_keep_the_gil(table: walpool.Pool) -> None:
    with table.read() as snapshot:
        for n in range(MANY):
            snapshot.fetchval("SELECT a FROM t WHERE id = ?", (n,))
    stats = table.stats()
    assert stats["yields_to_wait"] == 0
    assert stats["yields_over_budget"] < SOME


def test_small_writes_that_wait_for_no_disk_keep_the_gil(database: Path) -> None:
    with walpool.Pool(database, synchronous="normal") as pool:
        pool.script("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
        pool.execute("INSERT INTO t VALUES (1, 0)")
        pool.pop_stats()
        for n in range(MANY):
            pool.execute("UPDATE t SET a = ? WHERE id = 1", (n,))
        stats = pool.stats()
        assert stats["jobs"] == MANY
        # Nothing is waited for but a checkpoint, where a slow machine takes so long that one is due.
        assert stats["yields_to_wait"] <= 1 + stats["checkpoints"]
        assert stats["yields_over_budget"] < MANY


# What waits


def test_write_that_waits_for_the_disk_gives_the_gil_up_once(table: walpool.Pool) -> None:
    for n in range(20):
        table.execute("UPDATE t SET a = ? WHERE id = 1", (n,))
    assert table.stats()["yields_to_wait"] == 20


def wait_and_let_go(pool: walpool.Pool, wait: Callable[[], object]) -> Caller:
    """Begin to wait in a thread and run Python meanwhile: with the GIL held there, this would never return."""
    before = pool.stats()["yields_to_wait"]
    waiting = Caller(wait)
    eventually(lambda: pool.stats()["yields_to_wait"] > before)
    assert sum(range(100_000)) == 4_999_950_000
    assert waiting.thread.is_alive()
    return waiting


def test_waiting_for_the_writer_lets_others_run(table: walpool.Pool) -> None:
    with writer_held(table):
        job = wait_and_let_go(table, lambda: table.execute("DELETE FROM t"))
        lease = wait_and_let_go(table, lambda: table.run(lambda tx: tx.fetchval("SELECT count(*) FROM t")))
    assert (job.outcome().rowcount, lease.outcome()) == (MANY, 0)


def test_waiting_for_a_reader_lets_others_run(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool:
        with pool.read():
            reads: list[Callable[[], object]] = [
                lambda: pool.fetchval("SELECT 1"),
                lambda: pool.read().__enter__(),
                lambda: pool.stream("SELECT 1").__enter__(),
            ]
            waiting = [wait_and_let_go(pool, read) for read in reads]
        assert waiting[0].outcome() == 1
        assert all(not isinstance(read.outcome(), Exception) for read in waiting)


def test_waiting_for_another_process_lets_others_run(table: walpool.Pool) -> None:
    with locked_by_another_process(Path(table.path)) as process:
        waiting = wait_and_let_go(table, lambda: table.execute("DELETE FROM t"))
        process.communicate()
    assert waiting.outcome().rowcount == MANY


def test_being_held_back_by_max_waiting_bytes_lets_others_run(database: Path) -> None:
    with walpool.Pool(database, max_waiting_bytes=1024) as pool:
        pool.script("CREATE TABLE t (a)")
        insert = partial(pool.execute, "INSERT INTO t VALUES (?)", (bytes(1000),))
        with writer_held(pool):
            queued = queue_up(pool, [insert])
            held_back = Caller(insert)
            assert sum(range(100_000)) == 4_999_950_000
            assert held_back.thread.is_alive()
        assert queued[0].outcome().rowcount == held_back.outcome().rowcount == 1


def test_closing_lets_others_run(database: Path) -> None:
    pool = walpool.Pool(database)
    with pool.stream("SELECT 1 UNION SELECT 2", chunk=1) as rows:
        closing = Caller(pool.close)
        eventually(lambda: pool.closed)
        assert list(rows) == [(1,), (2,)]
        assert closing.thread.is_alive()
    assert closing.outcome() is None


def test_opening_a_locked_file_lets_others_run(database: Path) -> None:
    with locked_by_another_process(database, "EXCLUSIVE") as process:
        opening = Caller(lambda: walpool.Pool(database))
        assert sum(range(100_000)) == 4_999_950_000
        assert opening.thread.is_alive()
        process.communicate()
    opening.outcome().close()


# What runs for long


def test_long_query_gives_the_gil_up_once(table: walpool.Pool) -> None:
    assert table.fetchval(COUNT_TO, (200_000,)) == 200_000
    assert table.stats()["yields_over_budget"] == 1


@pytest.mark.parametrize("where", ["fetch", "snapshot", "stream", "transaction", "execute"])
def test_long_statement_gives_the_gil_up_wherever_it_runs(table: walpool.Pool, where: str) -> None:
    if where == "fetch":
        table.fetch(COUNT_TO, (200_000,))
    elif where == "snapshot":
        with table.read() as snapshot:
            snapshot.fetch(COUNT_TO, (200_000,))
    elif where == "stream":
        with table.stream(COUNT_TO, (200_000,)) as rows:
            list(rows)
    elif where == "transaction":
        with table.transaction() as tx:
            tx.fetch(COUNT_TO, (200_000,))
    else:
        table.execute(f"UPDATE t SET a = ({COUNT_TO}) WHERE id = 1", (200_000,))
    stats = table.stats()
    assert stats["yields_over_budget"] + (where == "execute") * stats["yields_to_wait"] >= 1


def test_python_goes_on_while_a_query_runs(table: walpool.Pool) -> None:
    with Spinner().running() as spinner:
        before = spinner.count
        with pytest.raises(errors.StatementTimeout):
            table.fetch(COUNT_TO, (FOREVER,), timeout=0.3)
        counted = spinner.count - before
    # A query that gave the GIL up at its end alone would let the thread count for one switch interval, 5 ms.
    assert counted > 300_000


def test_statement_that_was_long_lately_gives_the_gil_up_at_its_start(table: walpool.Pool) -> None:
    for _ in range(2):  # one long run may be the scheduler's doing
        table.fetchval(COUNT_TO, (200_000,))
    table.pop_stats()
    table.fetchval(COUNT_TO, (1,))
    assert table.pop_stats()["yields_over_budget"] == 1


def test_statement_that_has_been_short_again_is_trusted_again(table: walpool.Pool) -> None:
    for _ in range(2):
        table.fetchval(COUNT_TO, (200_000,))
    for _ in range(50):
        table.fetchval(COUNT_TO, (1,))
    table.pop_stats()
    for _ in range(MANY):
        table.fetchval(COUNT_TO, (1,))
    assert table.stats()["yields_over_budget"] < SOME


def test_sixteen_threads_read_without_giving_the_gil_up(
    table: walpool.Pool, threads: Callable[[int, Callable[[int], object]], list[object]]
) -> None:
    def read(index: int) -> None:
        for n in range(index, MANY, 16):
            assert table.fetchval("SELECT a FROM t WHERE id = ?", (n,)) == f"row {n}"

    threads(16, read)
    stats = table.stats()
    assert stats["reads"] == MANY
    assert stats["yields_to_wait"] + stats["yields_over_budget"] < SOME
