"""Another process on the same file: nothing is lost, each sees what the other committed, and a killed one lets go."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import WITHIN, Caller, eventually, other_process, run_python, start_python

import walpool
from walpool import errors

pytestmark = pytest.mark.crash

INSERT = "INSERT INTO t VALUES (?)"

# Writes rows by every verb, and says when it has begun.
WRITING = """
    import sys
    import walpool
    name, count = sys.argv[2], int(sys.argv[3])
    with walpool.Pool(sys.argv[1]) as pool:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(count):
            insert = "INSERT INTO t VALUES (?)", (f"{name}/{n}",)
            match n % 3:
                case 0:
                    pool.execute(*insert)
                case 1:
                    pool.batch([insert])
                case _:
                    pool.run(lambda tx: tx.execute(*insert))
"""

INSERTING = """
    import sys
    import walpool
    with walpool.Pool(sys.argv[1]) as pool:
        pool.execute("INSERT INTO t VALUES (?)", (int(sys.argv[2]),))
"""

# Begins a transaction, says so, and never ends it.
HOLDING = """
    import sys
    import walpool
    pool = walpool.Pool(sys.argv[1])
    with pool.transaction() as tx:
        tx.execute("INSERT INTO t VALUES ('never committed')")
        print("holding", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def table(pool: walpool.Pool) -> Iterator[walpool.Pool]:
    """Yield a pool with an empty table; whatever the other process does, the file stays whole."""
    pool.script("CREATE TABLE t (a)")
    yield pool
    assert pool.check() == []


def kept(pool: walpool.Pool) -> list[object]:
    return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY rowid")]


def test_processes_that_write_at_once_lose_nothing(table: walpool.Pool) -> None:
    with ExitStack() as running:
        others = [running.enter_context(other_process(WRITING, table.path, name, 60)) for name in ("a", "b")]
        for other in others:
            assert other.stdin is not None
            other.stdin.write("go\n")
            other.stdin.flush()
        for n in range(60):
            table.execute(INSERT, (f"here/{n}",))
        for other in others:
            assert other.wait(WITHIN) == 0, other.stderr and other.stderr.read()
    found = kept(table)
    assert len(found) == 180
    assert set(found) == {f"{name}/{n}" for name in ("a", "b", "here") for n in range(60)}
    assert table.stats()["jobs_failed"] == 0


def test_what_the_other_process_committed_is_seen_by_the_next_read(table: walpool.Pool) -> None:
    for n in range(3):
        with table.read() as snapshot:
            run_python(INSERTING, table.path, n)
            assert snapshot.fetchval("SELECT count(*) FROM t") == n
        assert kept(table) == list(range(n + 1))


def test_tables_that_the_other_process_made_or_changed_are_seen(table: walpool.Pool) -> None:
    table.execute(INSERT, (1,))
    assert table.fetchval("SELECT a FROM t") == 1
    program = """
    import sys, walpool
    with walpool.Pool(sys.argv[1]) as pool:
        pool.script("CREATE TABLE u (b); INSERT INTO u VALUES (7); UPDATE t SET a = 2")
    """
    run_python(program, table.path)
    assert table.fetchval("SELECT a FROM t") == 2
    assert table.fetchval("SELECT b FROM u") == 7
    assert table.execute("UPDATE u SET b = 8 RETURNING b").rows == [(8,)]


def test_writer_waits_for_the_other_processs_transaction(table: walpool.Pool) -> None:
    with other_process(HOLDING, table.path) as other:
        waiting = Caller(lambda: table.execute(INSERT, (1,)))
        eventually(lambda: table.stats()["jobs_waiting"] == 1)
        assert kept(table) == []
        other.communicate("go\n")
        assert waiting.outcome().rowcount == 1
    assert kept(table) == ["never committed", 1]  # it ended well after all, and so was committed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_lets_go_of_the_writer_and_leaves_nothing_behind(table: walpool.Pool, number: int) -> None:
    with other_process(HOLDING, table.path) as other:
        waiting = Caller(lambda: table.execute(INSERT, (1,)))
        eventually(lambda: table.stats()["jobs_waiting"] == 1)
        other.send_signal(number)
        assert waiting.outcome().rowcount == 1
    assert kept(table) == [1]


def test_killed_process_has_lost_nothing_that_it_was_told(database: Path) -> None:
    program = """
    import itertools, sys
    import walpool
    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (a)")
    for n in itertools.count():
        pool.execute("INSERT INTO t VALUES (?)", (n,))
        print(n, flush=True)
    """
    with start_python(program, database) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(50)]
        process.kill()
        told += process.stdout.readlines()
    acknowledged = [int(line) for line in told if line.endswith("\n")]
    with walpool.Pool(database) as pool:
        found = kept(pool)
        assert pool.check() == []
    assert found == list(range(len(found)))
    assert len(found) in (
        len(acknowledged),
        len(acknowledged) + 1,
    )  # the last may have been killed before it could tell


def test_processes_that_open_a_new_file_at_once_all_get_it(database: Path) -> None:
    program = """
    import sys
    import walpool
    print("ready", flush=True)
    sys.stdin.readline()
    with walpool.Pool(sys.argv[1]) as pool:
        pool.script("CREATE TABLE IF NOT EXISTS t (a)")
        pool.execute("INSERT INTO t VALUES (1)")
    """
    with ExitStack() as running:
        others = [running.enter_context(other_process(program, database)) for _ in range(4)]
        for other in others:
            assert other.stdin is not None
            other.stdin.write("go\n")
            other.stdin.flush()
        for other in others:
            assert other.wait(WITHIN) == 0, other.stderr and other.stderr.read()
    with walpool.Pool(database) as pool:
        assert kept(pool) == [1] * 4


def test_file_that_the_other_process_deleted_the_wal_of_is_still_whole(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        run_python("import sys, walpool\nwalpool.Pool(sys.argv[1]).close()", database)  # the last close there, not here
        assert Path(f"{database}-wal").exists()
        pool.execute(INSERT, (2,))
    with walpool.Pool(database) as pool:
        assert kept(pool) == [1, 2]


def test_settings_of_another_process_are_its_own(table: walpool.Pool) -> None:
    program = """
    import sys, walpool
    with walpool.Pool(sys.argv[1], readers=1, synchronous="normal") as pool:
        print(pool.execute("INSERT INTO t VALUES (1)").rowcount)
    """
    assert run_python(program, table.path)[0] == "1\n"


def test_reader_here_does_not_keep_the_other_process_from_writing(table: walpool.Pool) -> None:
    with table.read() as snapshot:
        program = (
            "import sys, walpool\nwith walpool.Pool(sys.argv[1], busy_timeout=5) as pool: pool.execute('DELETE FROM t')"
        )
        run_python(program, table.path)
        assert snapshot.fetchval("SELECT count(*) FROM t") == 0


def test_other_process_is_told_that_the_file_is_busy(table: walpool.Pool) -> None:
    program = """
    import sys, walpool
    with walpool.Pool(sys.argv[1], busy_timeout=0.05) as pool:
        try:
            pool.execute("INSERT INTO t VALUES (1)")
        except walpool.errors.BusyError as error:
            print(error.outcome, error.retryable)
    """
    with table.transaction():
        assert run_python(program, table.path)[0] == "not_applied True\n"
    assert issubclass(errors.BusyError, errors.OperationalError)
    assert kept(table) == []
