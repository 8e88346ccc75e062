"""Python's own SQLite, and plain reads, on a file that walpool has open in the same process.

POSIX locks belong to a process, and any `close` of the file drops all of them
(https://www.sqlite.org/howtocorrupt.html, 2.2):

    walpool                     sqlite3, same process       another process
    BEGIN, INSERT
                                open, read, close
                                (our locks are gone, and as the last one it removes the WAL)
                                                            BEGIN IMMEDIATE succeeds
    COMMIT returns              the row is nowhere
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, other_process, run_python

import walpool
from tests.layers import environment_with
from tests.torture import Torture
from walpool.errors import StorageError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these locks are Linux's")

# Tells what became of a transaction in the midst of which sqlite3 opened, read and closed the file.
ANOTHER_LIBRARY_CLOSES = """
    import json, os, sqlite3, subprocess, sys
    import walpool

    path = sys.argv[1]
    stranger = '''
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
    try:
        conn.execute("BEGIN IMMEDIATE")
        print("written")
    except sqlite3.OperationalError as error:
        print(error)
    '''
    told = {}
    pool = walpool.Pool(path)
    told["ofd_locks"] = pool.stats()["ofd_locks"]
    pool.script("CREATE TABLE t (a)")
    try:
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t VALUES ('acknowledged')")
            foreign = sqlite3.connect(path)
            foreign.execute("SELECT count(*) FROM t").fetchall()
            foreign.close()
            told["has_wal"] = os.path.exists(path + "-wal")
            done = subprocess.run([sys.executable, "-c", stranger, path], capture_output=True)
            told["stranger"] = done.stdout.decode().strip()
        told["commit"] = "acknowledged"
    except walpool.Error as error:
        told["commit"] = type(error).__name__, error.outcome
    try:
        pool.close()
    except walpool.Error:
        pass
    conn = sqlite3.connect(path)
    told["rows"] = conn.execute("SELECT count(*) FROM t").fetchone()[0]
    print(json.dumps(told))
"""


def what_became(database: Path, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    output, _ = run_python(ANOTHER_LIBRARY_CLOSES, database, env=env)
    told: dict[str, Any] = json.loads(output)
    return told


def test_another_library_that_closes_the_file_takes_locks_away_that_belong_to_the_process(
    database: Path, tmp_path: Path
) -> None:
    told = what_became(database, environment_with("posix_locks", tmp_path))
    assert told["ofd_locks"] == 0
    assert not told["has_wal"], "the hazard is real: sqlite3 removed the WAL under an open transaction"
    assert told["rows"] == 0, "and the row is nowhere"
    assert told["commit"] == ["StorageError", "unknown"], "so the commit is not acknowledged"


def test_another_library_that_closes_the_file_takes_nothing_from_locks_that_belong_to_a_descriptor(
    database: Path,
) -> None:
    told = what_became(database)
    assert told == {
        "ofd_locks": 1,
        "has_wal": True,
        "stranger": "database is locked",
        "commit": "acknowledged",
        "rows": 1,
    }


def test_another_library_gets_a_clean_refusal_while_the_writer_is_held(pool: walpool.Pool) -> None:
    pool.script("CREATE TABLE t (a)")
    with closing(sqlite3.connect(pool.path, timeout=0, isolation_level=None)) as foreign:
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                foreign.execute("INSERT INTO t VALUES (2)")
        foreign.execute("INSERT INTO t VALUES (3)")
        pool.execute("INSERT INTO t VALUES (4)")
        assert foreign.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (3,), (4,)]


# Its locks are safe from us too

FOREIGN_LOCKS = """
    import os, sqlite3, subprocess, sys
    import walpool

    path, stranger = sys.argv[1:]
    with walpool.Pool(path) as pool:
        pool.script("CREATE TABLE t (a)")
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    foreign.execute("INSERT INTO t VALUES ('foreign')")

    def is_locked_out():
        asked = subprocess.run([sys.executable, "-c", stranger, path], capture_output=True, text=True, timeout=30)
        return "locked" in asked.stderr

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    assert is_locked_out()
    for _ in range(3):
        with walpool.Pool(path) as pool:
            pool.fetch("SELECT a FROM t")
            during = descriptors()
        parked = descriptors()
    assert is_locked_out(), "closing the pool dropped them"
    assert parked <= during, "descriptors are used again, not added to"
    foreign.execute("COMMIT")
    foreign.close()
    with walpool.Pool(path + "-other"):
        pass
    print(parked - descriptors())
"""
STRANGER = """
import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
"""


def test_locks_of_another_library_outlast_the_close_of_a_pool(database: Path) -> None:
    output, errors = run_python(FOREIGN_LOCKS, database, STRANGER)
    assert "Traceback" not in errors
    assert int(output) > 1, "what was parked is closed once the other library has gone"


def test_another_library_on_the_file_is_told_once(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as foreign:
        foreign.execute("PRAGMA journal_mode = WAL")
        foreign.execute("CREATE TABLE t (a)")
        with caplog.at_level(logging.WARNING, "walpool"), walpool.Pool(database) as pool:
            for n in range(50):
                pool.execute("INSERT INTO t VALUES (?)", (n,))
            assert pool.stats()["second_library"] == 1
    warnings = [record.getMessage() for record in caplog.records if "another SQLite library" in record.getMessage()]
    assert len(warnings) == 1
    assert str(database) in warnings[0]


def test_walpool_alone_is_no_second_library(pool: walpool.Pool, threads: Any) -> None:
    pool.script("CREATE TABLE t (a)")
    threads(4, lambda n: pool.fetch("SELECT a FROM t"))
    assert pool.stats()["second_library"] == 0


# Files that go away

GONE = {
    "removed WAL": lambda path: Path(f"{path}-wal").unlink(),
    "moved WAL": lambda path: Path(f"{path}-wal").rename(f"{path}-elsewhere"),
    "removed database": lambda path: path.unlink(),
    "moved database": lambda path: path.rename(f"{path}-elsewhere"),
    "replaced database": lambda path: (shutil.copyfile(path, f"{path}-copy"), os.replace(f"{path}-copy", path)),
}


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_nothing_is_acknowledged_into_files_that_are_gone(database: Path, how: str, synchronous: str) -> None:
    with walpool.Pool(database, synchronous=synchronous) as pool:
        pool.script("CREATE TABLE t (a)")
        pool.execute("INSERT INTO t VALUES (1)")
        GONE[how](database)
        write = partial(pool.execute, "INSERT INTO t VALUES (2)")
        with pytest.raises(StorageError, match="removed or replaced") as caught:
            deque((write() for _ in range(1_000_000)), maxlen=0)  # it is looked for each millisecond
        assert caught.value.outcome in ("unknown", "not_applied")
        for use in (lambda: pool.execute("INSERT INTO t VALUES (3)"), lambda: pool.fetch("SELECT a FROM t")):
            with pytest.raises(StorageError, match="open it anew") as caught:
                use()
            assert caught.value.outcome == "not_applied"
        with pytest.raises(StorageError), pool.transaction():
            pytest.fail("a transaction began on files that are gone")


def test_transaction_learns_at_its_end_that_the_files_are_gone(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a)")

        def remove(tx: walpool.Transaction) -> None:
            tx.execute("INSERT INTO t VALUES (1)")
            database.unlink()
            removed = time.monotonic()
            eventually(lambda: time.monotonic() - removed > 0.002)  # a look is a millisecond old at most

        with pytest.raises(StorageError) as caught:
            pool.run(remove)
        assert caught.value.outcome == "unknown"


def test_pool_on_files_that_are_gone_leaves_those_alone_that_lie_there_now(database: Path) -> None:
    pool = walpool.Pool(database)
    pool.script("CREATE TABLE t (a)")
    for path in database.parent.iterdir():
        path.unlink()
    stranger = """
        import sqlite3, sys
        conn = sqlite3.connect(sys.argv[1], isolation_level=None)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE t (a)")
        conn.execute("INSERT INTO t VALUES ('the new file')")
        print("open", flush=True)
        sys.stdin.read()
    """
    with other_process(stranger, database):
        pool.close()
        assert Path(f"{database}-wal").exists()
    with walpool.Pool(database) as anew:
        assert anew.fetchval("SELECT a FROM t") == "the new file"


# All at once

OUTSIDE = """
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
    conn.execute("PRAGMA synchronous = FULL")
    print("open", flush=True)
    acknowledged = 0
    for line in sys.stdin:
        try:
            conn.execute("INSERT INTO t VALUES ('outside', ?)", (acknowledged,))
        except sqlite3.OperationalError:
            continue
        acknowledged += 1
        print(acknowledged, flush=True)
"""


class Crowd:
    """Threads that do one thing each, over and over, until told to stop; what each was acknowledged is counted."""

    def __init__(self, database: Path, pool: walpool.Pool) -> None:
        self.database, self.pool = database, pool
        self.stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.errors: list[BaseException] = []

    def run(self, name: str, work: Any) -> threading.Thread:
        def repeat() -> None:
            self.acknowledged[name] = 0
            try:
                while not self.stop.is_set():
                    work(name)
            except BaseException as error:  # noqa: BLE001 - raised by the test
                self.errors.append(error)
                self.stop.set()

        thread = threading.Thread(target=repeat, daemon=True, name=name)
        thread.start()
        return thread

    def engine(self, name: str) -> None:
        self.pool.execute("INSERT INTO t VALUES (?, ?)", (name, self.acknowledged[name]))
        self.acknowledged[name] += 1
        assert self.pool.fetchval("SELECT count(*) FROM t WHERE who = ?", (name,)) == self.acknowledged[name]

    def foreign_for_a_moment(self, name: str) -> None:
        with closing(sqlite3.connect(self.database, timeout=60, isolation_level=None)) as conn:
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("SELECT count(*) FROM t").fetchall()
            conn.execute("INSERT INTO t VALUES (?, ?)", (name, self.acknowledged[name]))
        self.acknowledged[name] += 1

    def plain_read(self, name: str) -> None:
        with open(self.database, "rb") as file:
            assert file.read(16) == b"SQLite format 3\x00"
            file.read()

    def copy(self, name: str) -> None:
        shutil.copyfile(self.database, f"{self.database}.copy")


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_two_libraries_plain_reads_and_another_process_lose_nothing(database: Path, torture: Torture) -> None:
    seconds = torture.size(20.0, 180.0)
    acknowledged_outside = 0
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (who TEXT, number INTEGER); CREATE INDEX i ON t (who)")
        crowd = Crowd(database, pool)
        long_lived = sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)

        def stay(name: str) -> None:
            long_lived.execute("INSERT INTO t VALUES (?, ?)", (name, crowd.acknowledged[name]))
            crowd.acknowledged[name] += 1

        with other_process(OUTSIDE, database) as outside:
            assert outside.stdin is not None
            assert outside.stdout is not None
            running = [crowd.run(f"engine {n}", crowd.engine) for n in range(4)]
            running += [crowd.run(f"foreign {n}", crowd.foreign_for_a_moment) for n in range(2)]
            running += [crowd.run("long-lived", stay), crowd.run("reads", crowd.plain_read)]
            running += [crowd.run("copies", crowd.copy)]
            until = time.monotonic() + seconds
            while time.monotonic() < until and not crowd.stop.is_set():
                outside.stdin.write("one more\n")
                outside.stdin.flush()
                acknowledged_outside = int(outside.stdout.readline())
            crowd.stop.set()
            for thread in running:
                thread.join(60)
        long_lived.close()
        assert pool.stats()["second_library"] == 1
    with closing(sqlite3.connect(database)) as conn:
        found = dict(conn.execute("SELECT who, count(DISTINCT number) FROM t GROUP BY who"))
        total = conn.execute("SELECT count(*) FROM t").fetchone()[0]
        problems = conn.execute("PRAGMA integrity_check").fetchall()
    acknowledged = {who: count for who, count in crowd.acknowledged.items() if count} | {
        "outside": acknowledged_outside
    }
    lost = sum(max(0, count - found.get(who, 0)) for who, count in acknowledged.items())
    note = f"{seconds:.0f} s, {len(acknowledged)} writers through two libraries and two processes"
    torture.tell("two libraries on one file", tried=sum(acknowledged.values()), unit="writes", lost=lost, note=note)
    assert crowd.errors == []
    assert problems == [("ok",)]
    assert found == acknowledged
    assert total == sum(acknowledged.values())
