"""Complete close: nothing is left unanswered, nothing is left open, and a pool that nobody closed loses nothing.

callers                        closer
write, write, write ...
                               close(): refuses new work
those in the queue: answered
the others: ClosedError
                               files closed; returns
"""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import WITHIN, Caller, eventually, queue_up, run_python, start_python, writer_held
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool
from walpool import errors

INSERT = "INSERT INTO t VALUES (?)"


@pytest.fixture
def table(database: Path) -> walpool.Pool:
    """Return a pool with an empty table, to be closed by the test."""
    pool = walpool.Pool(database)
    pool.script("CREATE TABLE t (a)")
    return pool


def kept(database: Path) -> list[object]:
    """Return what is in the table, read by a pool that is opened for it."""
    with walpool.Pool(database) as pool:
        return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY rowid")]


# Complete


def test_close_closes_every_file_and_ends_every_thread(database: Path) -> None:
    before = engine_threads()
    for _ in range(10):
        pool = walpool.Pool(database, readers=4)
        pool.script("CREATE TABLE IF NOT EXISTS t (a)")
        with contextlib.ExitStack() as held:
            for _ in range(4):  # opens every reader
                held.enter_context(pool.stream("SELECT 1"))
        pool.close()
        assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_close_leaves_one_file_with_everything_in_it(table: walpool.Pool, database: Path) -> None:
    for n in range(100):
        table.execute(INSERT, (n,))
    table.close()
    assert [path.name for path in database.parent.iterdir()] == [database.name]
    assert kept(database) == list(range(100))


def test_close_is_safe_twice_and_after_a_with_block(table: walpool.Pool) -> None:
    with table:
        table.close()
        assert table.closed
    table.close()
    assert table.closed


def test_closing_from_many_threads_at_once_closes_once(
    table: walpool.Pool, database: Path, threads: Callable[[int, Callable[[int], object]], list[object]]
) -> None:
    threads(8, lambda index: table.close())
    eventually(lambda: open_descriptors(database) == [])  # the second may return before the first is done
    assert kept(database) == []


VERBS: dict[str, Callable[[walpool.Pool], object]] = {
    "execute": lambda pool: pool.execute(INSERT, (1,)),
    "executemany": lambda pool: pool.executemany(INSERT, [(1,)]),
    "batch": lambda pool: pool.batch([(INSERT, (1,))]),
    "script": lambda pool: pool.script("INSERT INTO t VALUES (1)"),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "fetchone": lambda pool: pool.fetchone("SELECT 1"),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
    "stream": lambda pool: pool.stream("SELECT 1").__enter__(),
    "read": lambda pool: pool.read().__enter__(),
    "transaction": lambda pool: pool.transaction().__enter__(),
    "run": lambda pool: pool.run(lambda tx: None),
    "checkpoint": lambda pool: pool.checkpoint(),
    "backup": lambda pool: pool.backup("never made.db"),
    "check": lambda pool: pool.check(),
    "vacuum": lambda pool: pool.vacuum(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_closed_pool_refuses_every_verb(table: walpool.Pool, verb: str) -> None:
    table.close()
    with pytest.raises(errors.ClosedError, match="the pool is closed") as caught:
        VERBS[verb](table)
    assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)


def test_closed_pool_still_tells_about_itself(table: walpool.Pool, database: Path) -> None:
    table.close()
    assert (table.path, table.closed) == (str(database), True)
    assert table.stats()["jobs"] == 1
    assert repr(table) == f"<walpool.Pool {str(database)!r} closed>"
    assert table.settings.readers >= 2


def test_file_may_be_opened_again_at_once(database: Path) -> None:
    for n in range(20):
        with walpool.Pool(database) as pool:
            pool.script("CREATE TABLE IF NOT EXISTS t (a)")
            pool.execute(INSERT, (n,))
    assert kept(database) == list(range(20))


# Whoever is at work meanwhile


def test_close_answers_every_waiting_job(table: walpool.Pool, database: Path) -> None:
    with writer_held(table):
        callers = queue_up(table, [lambda: table.execute(INSERT, (1,)), lambda: table.execute(INSERT, (2,))])
        leasing = queue_up(table, [lambda: table.run(lambda tx: tx.execute(INSERT, (3,)).rowcount)])
        closing = Caller(table.close)
        eventually(lambda: table.closed)
        with pytest.raises(errors.ClosedError):
            table.execute(INSERT, ("refused",))
        assert closing.thread.is_alive()
    assert closing.outcome() is None
    assert [caller.outcome().rowcount for caller in callers] == [1, 1]
    assert leasing[0].outcome() == 1
    assert open_descriptors(database) == []
    assert kept(database) == [1, 2, 3]


def test_close_waits_for_a_reader_and_lets_it_read_on(table: walpool.Pool, database: Path) -> None:
    table.execute(INSERT, (1,))
    reading, go_on = threading.Event(), threading.Event()

    def read() -> object:
        with table.read() as snapshot:
            reading.set()
            assert go_on.wait(WITHIN)
            return snapshot.fetchval("SELECT a FROM t")

    reader = Caller(read)
    assert reading.wait(WITHIN)
    closing = Caller(table.close)
    eventually(lambda: table.closed)
    assert closing.thread.is_alive()
    go_on.set()
    assert (reader.outcome(), closing.outcome()) == (1, None)
    assert open_descriptors(database) == []


def test_close_waits_for_an_open_transaction_and_lets_it_commit(table: walpool.Pool, database: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with table.transaction() as tx:
            begun.set()
            assert go_on.wait(WITHIN)
            tx.execute(INSERT, (1,))

    writer = Caller(write)
    assert begun.wait(WITHIN)
    closing = Caller(table.close)
    eventually(lambda: table.closed)
    go_on.set()
    assert (writer.outcome(), closing.outcome()) == (None, None)
    assert kept(database) == [1]


def test_close_takes_back_what_is_held_for_too_long(database: Path) -> None:
    pool = walpool.Pool(database, transaction_timeout=0.1)
    forgotten, lease = pool.stream("SELECT 1"), pool.transaction()

    def hold_on() -> None:
        forgotten.__enter__()
        lease.__enter__()

    assert Caller(hold_on).outcome() is None
    pool.close()
    assert open_descriptors(database) == []
    assert pool.stats()["leases_revoked"] == 2


def write_until_closed(pool: walpool.Pool, name: str, begin: threading.Barrier) -> set[object]:
    """Write rows by every verb in turn, and return those that were acknowledged."""
    acknowledged: set[object] = set()
    begin.wait(WITHIN)
    while True:
        value = f"{name}/{len(acknowledged)}"
        writes: list[Callable[[], object]] = [
            partial(pool.execute, INSERT, (value,)),
            partial(pool.executemany, INSERT, [(value,)]),
            partial(pool.run, partial(_insert, value)),
        ]
        try:
            writes[len(acknowledged) % 3]()
        except errors.ClosedError:
            return acknowledged
        acknowledged.add(value)


def _insert(value: str, tx: walpool.Transaction) -> None:
    tx.execute(INSERT, (value,))


def test_every_write_during_close_is_committed_or_refused(database: Path) -> None:
    acknowledged: set[object] = set()
    for number in range(3):
        pool = walpool.Pool(database)
        pool.script("CREATE TABLE IF NOT EXISTS t (a)")
        begin = threading.Barrier(9)
        writers = [Caller(partial(write_until_closed, pool, f"{number}/{index}", begin)) for index in range(8)]
        begin.wait(WITHIN)
        while pool.stats()["jobs"] < 50:
            os.sched_yield()
        pool.close()
        assert open_descriptors(database) == []
        acknowledged.update(*(writer.outcome() for writer in writers))
    found = kept(database)
    assert len(found) == len(set(found))
    assert set(found) == acknowledged
    assert len(acknowledged) > 50


def test_every_read_during_close_gives_rows_or_is_refused(table: walpool.Pool, database: Path) -> None:
    table.executemany(INSERT, [(n,) for n in range(100)])
    goes_on = threading.Barrier(9)

    def read() -> int:
        goes_on.wait(WITHIN)
        count = 0
        while True:
            try:
                assert table.fetchval("SELECT count(*) FROM t") == 100
                with table.stream("SELECT a FROM t", chunk=7) as rows:
                    assert len(list(rows)) == 100
            except errors.ClosedError:
                return count
            count += 1

    readers = [Caller(read) for _ in range(8)]
    goes_on.wait(WITHIN)
    eventually(lambda: table.stats()["reads"] > 50)
    table.close()
    assert open_descriptors(database) == []
    assert sum(reader.outcome() for reader in readers) > 0


# Handles


def test_last_handle_closes_the_file(table: walpool.Pool, database: Path) -> None:
    other, third = walpool.get_pool(database), walpool.Pool(database)
    table.close()
    other.close()
    assert (table.closed, other.closed, third.closed) == (True, True, False)
    assert third.execute(INSERT, (1,)).rowcount == 1
    with pytest.raises(errors.ClosedError):
        other.fetch("SELECT 1")
    third.close()
    assert open_descriptors(database) == []


def test_closing_one_handle_leaves_the_waiting_jobs_of_another(table: walpool.Pool, database: Path) -> None:
    other = walpool.Pool(database)
    with writer_held(table):
        waiting = queue_up(table, [lambda: table.execute(INSERT, (1,))])
        other.close()
    assert waiting[0].outcome().rowcount == 1
    table.close()
    assert kept(database) == [1]


# Nobody closed it


def test_pool_that_nobody_closed_warns_and_closes(database: Path) -> None:
    pools = [walpool.Pool(database)]
    pools[0].script("CREATE TABLE t (a)")
    with pytest.warns(ResourceWarning, match=r"unclosed <walpool.Pool '.*test.db' open>"):
        pools.clear()
    assert open_descriptors(database) == []
    assert kept(database) == []


def test_closed_pool_does_not_warn(table: walpool.Pool) -> None:
    table.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del table
        gc.collect()


def test_pool_that_could_not_be_opened_does_not_warn(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(errors.StorageError):
            walpool.Pool(tmp_path / "no such folder" / "test.db")
        gc.collect()


def test_pool_in_a_reference_cycle_is_collected_with_what_it_holds(database: Path) -> None:
    class Service:
        def __init__(self) -> None:
            self.pool = walpool.Pool(database)
            self.pool.script("CREATE TABLE t (a)")
            self.rows = self.pool.stream("SELECT 1")
            self.rows.__enter__()
            self.block = self.pool.transaction()
            self.block.__enter__().execute(INSERT, ("never committed",))
            self.me = self

    def make_and_forget() -> weakref.ref[Service]:
        return weakref.ref(Service())

    # In a thread of its own: a block that is never left would refuse the pool's verbs to this one.
    gone: weakref.ref[Service] = Caller(make_and_forget).outcome()
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    assert gone() is None
    assert open_descriptors(database) == []
    assert kept(database) == []


UNCLOSED = """
    import sys, threading
    import walpool
    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (a)")
    for n in range(100):
        pool.execute("INSERT INTO t VALUES (?)", (n,))
"""


def test_unclosed_pool_loses_nothing_at_exit(database: Path) -> None:
    assert run_python(UNCLOSED, database) == ("", "")
    assert kept(database) == list(range(100))


def test_unclosed_pool_warns_at_exit_where_warnings_are_shown(database: Path) -> None:
    _, told = run_python(UNCLOSED, database, options=["-W", "always::ResourceWarning"])
    assert "ResourceWarning: unclosed <walpool.Pool" in told
    assert kept(database) == list(range(100))


def test_unclosed_pool_with_an_open_transaction_ends_well_and_keeps_what_was_committed(database: Path) -> None:
    program = (
        UNCLOSED
        + """
    block = pool.transaction()
    tx = block.__enter__()
    tx.execute("INSERT INTO t VALUES ('never committed')")
    """
    )
    run_python(program, database)
    assert kept(database) == list(range(100))


def test_daemon_threads_at_exit_neither_crash_nor_lose_what_they_were_told(database: Path) -> None:
    # They are stopped wherever they are: in a group, in a read, waiting for the writer that nobody gives back.
    program = """
    import sys, threading
    import walpool
    from helpers import COUNT_TO, FOREVER, eventually
    pool = walpool.Pool(sys.argv[1], slow_threshold=60)
    pool.script("CREATE TABLE t (a)")
    def write(index):
        n = 0
        while True:
            pool.execute("INSERT INTO t VALUES (?)", (f"{index}/{n}",))
            sys.stdout.write(f"{index}/{n}\\n")
            n += 1
    def read():
        pool.fetch(COUNT_TO, (FOREVER,))
    for index in range(4):
        threading.Thread(target=write, args=(index,), daemon=True).start()
    threading.Thread(target=read, daemon=True).start()
    eventually(lambda: pool.stats()["jobs"] > 50)
    """
    with start_python(program, database) as process:
        output, told = process.communicate(timeout=2 * WITHIN)
    assert (process.returncode, told) == (0, "")
    acknowledged = set(output.split("\n")[:-1])
    found = kept(database)
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))


def test_daemon_thread_that_waits_for_the_writer_does_not_hold_the_exit_up(database: Path) -> None:
    program = """
    import sys, threading
    import walpool
    from helpers import Caller, eventually
    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (a)")
    block = pool.transaction()
    block.__enter__().execute("INSERT INTO t VALUES (1)")
    waiting = Caller(lambda: pool.execute("INSERT INTO t VALUES (2)"))
    eventually(lambda: pool.stats()["jobs_waiting"] == 1)
    """
    run_python(program, database)
    assert set(kept(database)) <= {2}


def test_database_is_whole_for_sqlite_itself_afterwards(table: walpool.Pool, database: Path) -> None:
    table.executemany(INSERT, [(n,) for n in range(1000)])
    table.close()
    # In another process: two SQLite libraries in one process do not know of each other's locks.
    program = """
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1])
    print(conn.execute("PRAGMA integrity_check").fetchone()[0], conn.execute("SELECT count(*) FROM t").fetchone()[0])
    """
    assert run_python(program, database)[0] == "ok 1000\n"
    assert isinstance(errors.ClosedError(), sqlite3.InterfaceError)
