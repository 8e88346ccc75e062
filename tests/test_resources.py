"""Nothing grows: memory, descriptors and threads are after a million calls what they were after the first thousands.

Memory is what the process has to itself, without files that it maps. It is compared after a warm-up of the same calls,
because caches fill and threads leave their first blocks behind; the bound is a few times what it then still sways by.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from helpers import COUNT_TO, WITHIN, Caller, eventually, run_together
from leftovers import THREADS_END_WITHIN, engine_threads, open_descriptors, threads_left_since

import walpool
from tests.torture import Torture
from walpool import errors

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc"),
]

MIB = 1024 * 1024
SWAY = 8 * MIB  # 300 bytes a call in the short run, 1 byte in the full one
WORKERS = 8
ROWS = 500  # the file does not grow, so that nothing else does

# Small caches, which are full after the warm-up; no fsync, which would be most of the time.
LEAN = {"readers": 4, "cache_size": "256KiB", "synchronous": "normal", "slow_threshold": 60}

UPSERT = "INSERT INTO t VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET a = excluded.a"
FAILING = "INSERT INTO t VALUES (?, 'taken')"


def memory() -> int:
    """Return the bytes in memory that are this process's own, once what is free has been given back."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # musl has none, and gives back by itself
        ctypes.CDLL(None).malloc_trim(0)
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def count_of(what: str) -> int:
    return len(os.listdir(f"/proc/self/{what}"))  # the listing's own descriptor is in it each time


class Growth:
    """What grew over a block, in bytes, descriptors and threads."""

    memory = descriptors = threads = 0

    def told(self) -> str:
        return f"memory {self.memory / MIB:+.1f} MiB"


@contextmanager
def growth() -> Iterator[Growth]:
    """Measure a block; the measure is there after it."""
    grown = Growth()
    before, descriptors, threads = memory(), count_of("fd"), count_of("task")
    yield grown
    grown.descriptors, grown.threads = settled("fd", descriptors) - descriptors, settled("task", threads) - threads
    grown.memory = memory() - before


def settled(what: str, wanted: int) -> int:
    """Return how many there are, once what ends by itself had time to: a thread after join(), a checkpoint's file."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: count_of(what) <= wanted, within=THREADS_END_WITHIN)
    return count_of(what)


@pytest.fixture
def lean(database: Path) -> Iterator[walpool.Pool]:
    with walpool.Pool(database, **LEAN) as pool:
        pool.script("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
        pool.executemany(UPSERT, [(n, "taken") for n in range(ROWS)])
        yield pool


# A day in miniature


def half_a_stream(pool: walpool.Pool, n: int) -> None:
    with pool.stream("SELECT * FROM t", chunk=5) as rows:
        for _ in range(7):
            next(rows)


def dropped_stream(pool: walpool.Pool, n: int) -> None:
    def generate() -> Iterator[object]:
        with pool.stream("SELECT * FROM t WHERE id > ?", (n % ROWS,), chunk=5) as rows:
            yield from rows

    next(generate(), None)  # the generator goes half-way, and its reader with it


def snapshot(pool: walpool.Pool, n: int) -> None:
    with pool.read() as held:
        held.fetchval("SELECT a FROM t WHERE id = ?", (n % ROWS,))
        held.fetch("SELECT * FROM t LIMIT 3", row=dict)


def transaction(pool: walpool.Pool, n: int) -> None:
    with pool.transaction() as tx:
        tx.execute(UPSERT, (n % ROWS, n))
        with contextlib.suppress(errors.IntegrityError), tx.transaction():
            tx.execute(FAILING, (n % ROWS,))


def failed_transaction(pool: walpool.Pool, n: int) -> None:
    with pool.transaction() as tx:
        tx.execute(UPSERT, (n % ROWS, "undone"))
        raise LookupError(n)


def another_handle(pool: walpool.Pool, n: int) -> None:
    with walpool.get_pool(pool.path) as other:
        other.fetchval("SELECT 1")


def refused_value(pool: walpool.Pool, n: int) -> None:
    pool.execute(UPSERT, (n % ROWS, object()))


OFTEN: list[Callable[[walpool.Pool, int], object]] = [
    lambda pool, n: pool.execute(UPSERT, (n % ROWS, "x" * (n % 300))),
    lambda pool, n: pool.fetchval("SELECT a FROM t WHERE id = ?", (n % ROWS,)),
    lambda pool, n: pool.fetchone("SELECT * FROM t WHERE id = :id", {"id": n % ROWS}),
    lambda pool, n: pool.fetch("SELECT * FROM t LIMIT 10", row=dict),
]
SELDOM: list[Callable[[walpool.Pool, int], object]] = [
    lambda pool, n: pool.execute(FAILING, (n % ROWS,)),
    lambda pool, n: pool.execute(f"INSERT INTO no_table_{n} VALUES (1)"),
    lambda pool, n: pool.execute(UPSERT + " RETURNING *", (n % ROWS, n)).rows,
    lambda pool, n: pool.executemany(UPSERT, [(n % ROWS, k) for k in range(5)]),
    lambda pool, n: pool.executemany(FAILING, [(n % ROWS,)]),
    lambda pool, n: pool.batch([(UPSERT, (n % ROWS, n)), (FAILING, (n % ROWS,))]),
    lambda pool, n: pool.execute("INSERT OR ROLLBACK INTO t VALUES (?, 1)", (n % ROWS,)),  # its group runs again
    lambda pool, n: pool.execute(UPSERT, (n % ROWS, n), timeout=0),
    lambda pool, n: pool.fetch("SELECT * FROM t", timeout=0),
    lambda pool, n: pool.fetchval(COUNT_TO, (10**9,), timeout=0.0005),
    lambda pool, n: pool.fetch("SELECT 1", row=lambda columns, values: 1 // 0),
    lambda pool, n: pool.stats(),
    half_a_stream,
    dropped_stream,
    snapshot,
    transaction,
    failed_transaction,
    another_handle,
    refused_value,
]
EXPECTED = (errors.Error, LookupError, ZeroDivisionError)


def live(pool: walpool.Pool, calls: int) -> int:
    """Make so many mixed calls from WORKERS threads, and return how many of them failed as they should."""

    def work(index: int) -> int:
        failed = 0
        for turn in range(calls // WORKERS):
            # Each thread begins elsewhere, so that they meet in every combination.
            call = OFTEN[turn % len(OFTEN)] if turn % 8 else SELDOM[(turn // 8 + index) % len(SELDOM)]
            try:
                call(pool, turn * WORKERS + index)
            except EXPECTED:
                failed += 1
        return failed

    return sum(run_together(WORKERS, work, timeout=3000))


@pytest.mark.timeout(3600)
def test_millions_of_good_and_failing_calls_leave_nothing_behind(lean: walpool.Pool, torture: Torture) -> None:
    calls = torture.size(30_000, 10_000_000)
    live(lean, 30_000)
    with growth() as grown:
        failed = live(lean, calls)
    torture.tell("mixed calls, good and failing", tried=calls, unit="calls", lost=0, note=grown.told())
    assert failed > calls / 50
    assert max(grown.descriptors, grown.threads) <= 0
    assert grown.memory < SWAY
    stats = lean.stats()
    assert (stats["readers_out"], stats["jobs_waiting"], stats["bytes_waiting"]) == (0, 0, 0)


def test_every_kind_of_call_of_that_day_does_what_it_stands_for(lean: walpool.Pool) -> None:
    outcomes = []
    for call in (*OFTEN, *SELDOM):
        try:
            call(lean, 7)
        except EXPECTED as error:
            outcomes.append(type(error).__name__)
    assert sorted(outcomes) == [
        "IntegrityError",
        "IntegrityError",
        "IntegrityError",
        "IntegrityError",
        "LookupError",
        "ProgrammingError",
        "ProgrammingError",
        "StatementTimeout",
        "StatementTimeout",
        "ZeroDivisionError",
    ]


# Open and close


def open_and_close(database: Path, times: int) -> None:
    for n in range(times):
        with walpool.Pool(database, **LEAN) as pool, walpool.Pool(database) as other:
            pool.execute("CREATE TABLE IF NOT EXISTS t (a)")
            other.fetch("SELECT * FROM t")
            if n % 2:  # one that is closed while it is at work in another thread
                at_work = Caller(partial(pool.fetchval, COUNT_TO, (1000,)))
        if n % 2:
            outcome = at_work.outcome()
            assert outcome == 1000 or isinstance(outcome, errors.ClosedError)


@pytest.mark.timeout(1800)
def test_opening_and_closing_over_and_over_leaves_nothing_behind(database: Path, torture: Torture) -> None:
    times = torture.size(200, 10_000)
    before = engine_threads()
    open_and_close(database, 50)
    assert threads_left_since(before) == {}  # so that those of the warm-up are not counted as fallen
    with growth() as grown:
        open_and_close(database, times)
        left = open_descriptors(database), threads_left_since(before)
    torture.tell("opening and closing one file", tried=times, unit="cycles", lost=0, note=grown.told())
    assert left == ([], {})
    assert max(grown.descriptors, grown.threads) <= 0
    assert grown.memory < SWAY


def test_opening_that_fails_leaves_nothing_behind(tmp_path: Path, torture: Torture) -> None:
    times = torture.size(200, 10_000)
    no_database = tmp_path / "text"
    no_database.write_text("no database, but long enough to be taken for one" * 100)
    before = engine_threads()

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(errors.CorruptError):
                walpool.Pool(no_database)
            with pytest.raises(errors.StorageError):
                walpool.Pool(tmp_path / "no folder" / "test.db")

    fail(50)
    with growth() as grown:
        fail(times)
    torture.tell("openings that fail", tried=2 * times, unit="openings", lost=0, note=grown.told())
    assert threads_left_since(before) == {}
    assert grown.descriptors <= 0
    assert open_descriptors(no_database) == []
    assert grown.memory < SWAY


# Many users of one file


def test_hundreds_of_threads_and_sessions_cost_no_descriptor_and_no_thread_each(database: Path) -> None:
    readers, sessions = 8, 200
    before, descriptors = engine_threads(), count_of("fd")
    all_have_one, all_have_looked = threading.Barrier(sessions + 1), threading.Event()
    with walpool.Pool(database, readers=readers) as pool:
        pool.script("CREATE TABLE t (a)")

        def session(index: int) -> object:
            with walpool.get_pool(database) as own:
                own.execute("INSERT INTO t VALUES (?)", (index,))
                with own.read() as snapshot:
                    assert snapshot.fetchval("SELECT count(*) FROM t") > 0
                with own.stream("SELECT a FROM t", chunk=10) as rows:
                    next(rows)
                all_have_one.wait(WITHIN)
                assert all_have_looked.wait(WITHIN)
                return own.fetchval("SELECT a FROM t WHERE a = ?", (index,))

        users = [Caller(partial(session, index)) for index in range(sessions)]
        all_have_one.wait(WITHIN)
        opened, running = count_of("fd") - descriptors, len(engine_threads().keys() - before.keys())
        all_have_looked.set()
        assert [user.outcome() for user in users] == list(range(sessions))
    assert opened <= 2 * (readers + 2) + 1  # a file and its WAL for each connection, and the WAL's index
    assert running <= 3  # the two of the keeper, and the one that opens readers
    assert open_descriptors(database) == []


# What is large


def test_job_of_a_million_rows_is_one_job_and_its_memory_comes_back(lean: walpool.Pool, torture: Torture) -> None:
    count = torture.size(100_000, 1_000_000)
    lean.script("CREATE TABLE many (a, b)")
    jobs = lean.stats()["jobs"]
    with growth() as grown:
        done = lean.executemany("INSERT INTO many VALUES (?, ?)", ((n, "some text") for n in range(count)))
    torture.tell("one job of many rows", tried=count, unit="rows", lost=count - done.rowcount, note=grown.told())
    assert done.rowcount == count == lean.fetchval("SELECT count(*) FROM many")
    assert lean.stats()["jobs"] == jobs + 1
    assert grown.memory < SWAY


def test_job_of_many_rows_whose_last_one_fails_leaves_none(lean: walpool.Pool) -> None:
    rows = [*range(ROWS, 50_000), 0]
    with pytest.raises(errors.IntegrityError, match=f"in row {len(rows)} of executemany"):
        lean.executemany(FAILING, [(row,) for row in rows])
    assert lean.fetchval("SELECT count(*) FROM t") == ROWS


def test_large_blob_goes_in_and_out_whole_and_its_memory_comes_back(lean: walpool.Pool, torture: Torture) -> None:
    size = torture.size(20, 100) * MIB
    lean.script("CREATE TABLE large (a)")
    with growth() as grown:
        blob = os.urandom(MIB) * (size // MIB)
        lean.execute("INSERT INTO large VALUES (?)", (blob,))
        assert lean.fetchval("SELECT a FROM large") == blob
        with lean.transaction() as tx:
            assert len(tx.fetchval("SELECT a FROM large")) == size
        lean.execute("DELETE FROM large")
        del blob
    torture.tell("one blob, written and read", tried=size, unit="bytes", lost=0, note=grown.told())
    assert grown.memory < SWAY


def test_statement_of_a_million_characters_runs(lean: walpool.Pool) -> None:
    text = "x" * 1_000_000
    assert lean.fetchval(f"SELECT '{text}'") == text
    assert lean.execute(f"UPDATE t SET a = length('{text}') WHERE id = 1").rowcount == 1
    assert lean.fetchval("SELECT a FROM t WHERE id = 1") == len(text)


def test_tens_of_thousands_of_parameters_are_bound(lean: walpool.Pool) -> None:
    numbers = list(range(30_000))
    marks = ", ".join(["(?)"] * len(numbers))
    assert lean.fetch(f"VALUES {marks}", numbers) == [(n,) for n in numbers]
    lean.script("CREATE TABLE many (a)")
    assert lean.execute(f"INSERT INTO many VALUES {marks}", numbers).rowcount == len(numbers)
    assert lean.fetchval("SELECT sum(a) FROM many") == sum(numbers)


def test_table_of_two_thousand_columns_is_written_and_read(lean: walpool.Pool) -> None:
    names = [f"c{n}" for n in range(2000)]  # SQLite's own limit
    lean.script(f"CREATE TABLE wide ({', '.join(names)})")
    lean.execute(f"INSERT INTO wide VALUES ({', '.join('?' * len(names))})", list(range(2000)))
    assert lean.fetchone("SELECT * FROM wide", row=dict) == dict(zip(names, range(2000), strict=True))


# Statements


def test_different_statements_push_each_other_out_of_the_caches(lean: walpool.Pool, torture: Torture) -> None:
    count = torture.size(5_000, 100_000)

    def run(numbers: range) -> None:
        for n in numbers:
            assert lean.fetchval(f"SELECT {n} AS a_name_of_its_own_{n}") == n
            lean.execute(f"UPDATE t SET a = {n} WHERE id = 1")
            if n % 10 == 0:
                with lean.transaction() as tx:
                    tx.execute(f"UPDATE t SET a = {n} + 1 WHERE id = 2")

    run(range(1000))
    with growth() as grown:
        run(range(1000, 1000 + count))
    torture.tell("different statements", tried=2 * count, unit="statements", lost=0, note=grown.told())
    assert grown.memory < SWAY


def test_failing_statements_grow_neither_the_figures_nor_the_log(lean: walpool.Pool, torture: Torture) -> None:
    count = torture.size(5_000, 100_000)
    keys = lean.stats().keys()

    def fail(numbers: range) -> None:
        for n in numbers:
            with contextlib.suppress(errors.OperationalError, errors.ProgrammingError):
                lean.fetch(f"SELECT no_column_{n} FROM no_table_{n}")
            with contextlib.suppress(errors.OperationalError, errors.ProgrammingError):
                lean.execute(f"no statement at all {n}")
            with contextlib.suppress(errors.IntegrityError):
                lean.execute(FAILING, (n % ROWS,))

    fail(range(1000))
    failed = lean.stats()["jobs_failed"]
    with growth() as grown:
        fail(range(1000, 1000 + count))
    torture.tell("failing statements", tried=3 * count, unit="statements", lost=0, note=grown.told())
    stats = lean.stats()
    assert stats["jobs_failed"] == failed + 2 * count
    assert stats.keys() == keys
    assert grown.memory < SWAY
