"""Parent and child go on with the same pool: the child opens anew, closes nothing that it inherited, loses nothing.

SQLite keeps a table of the files that a process has open, and of the locks that it holds on them. A child inherits the
table, but not the locks (https://www.sqlite.org/howtocorrupt.html, 2.6):

    parent                      child
    open, write
    fork                        opens a new connection: the table says that the locks are held
                                INSERT, COMMIT returns
    close: nobody has a lock,
    so it removes the WAL
                                INSERT, COMMIT returns: into a WAL that no longer has a name
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import run_python, start_python

from tests.layers import environment_with
from tests.torture import Torture

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# `together(child)` forks, runs child() there, and returns its exit code; `fork(child)` returns its process at once.
FORKING = """
    import json, os, random, sys, threading, time, traceback, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads: they are the point

    def fork(child):
        pid = os.fork()
        if pid:
            return pid
        try:
            child()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def ended_well(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    path = sys.argv[1]
"""


def forking(program: str, database: Path, *args: object, env: Mapping[str, str] = os.environ) -> Any:
    """Run a program that forks, which must end well, and return what it printed as JSON."""
    output, errors = run_python(_dedented(FORKING) + _dedented(program), database, *args, env=env)
    assert "Traceback" not in errors, errors
    return json.loads(output) if output else None


def _dedented(program: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in program.splitlines()) + "\n"


def rows(database: Path, sql: str = "SELECT a FROM t ORDER BY a") -> list[Any]:
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in conn.execute(sql)]


CHILD_OUTLIVES_CLOSE = """
    to_child, from_parent = os.pipe()[::-1]
    to_parent, from_child = os.pipe()[::-1]
    first = connect()
    insert(first, "parent")

    def child():
        conn = inherit(first)
        insert(conn, "child, before the parent closed")
        os.write(to_parent, b".")
        os.read(from_parent, 1)
        insert(conn, "child, after the parent closed")

    pid = fork(child)
    os.read(from_child, 1)
    first.close()
    os.write(to_child, b".")
    assert ended_well(pid)
"""

WITH_SQLITE3 = """
    import sqlite3
    def connect():
        conn = sqlite3.connect(path, isolation_level=None)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE IF NOT EXISTS t (a)")
        return conn
    inherit = lambda conn: connect()
    insert = lambda conn, text: conn.execute("INSERT INTO t VALUES (?)", (text,))
"""

WITH_WALPOOL = """
    import walpool
    def connect():
        pool = walpool.Pool(path)
        pool.script("CREATE TABLE t (a)")
        return pool
    inherit = lambda pool: pool
    insert = lambda pool, text: pool.execute("INSERT INTO t VALUES (?)", (text,))
"""


def test_child_with_a_new_connection_loses_what_it_committed_without_the_cure(database: Path) -> None:
    forking(WITH_SQLITE3 + CHILD_OUTLIVES_CLOSE, database)
    assert rows(database) == ["child, before the parent closed", "parent"], "the hazard is real"


@pytest.mark.parametrize("locks", ["ofd", "posix"])
def test_child_keeps_what_it_committed_when_the_parent_closes(database: Path, tmp_path: Path, locks: str) -> None:
    env = os.environ if locks == "ofd" else environment_with("posix_locks", tmp_path)
    forking(WITH_WALPOOL + CHILD_OUTLIVES_CLOSE, database, env=env)
    assert rows(database) == ["child, after the parent closed", "child, before the parent closed", "parent"]


def test_parent_and_child_and_its_child_go_on_with_the_same_pool(database: Path) -> None:
    program = """
    import walpool
    pool = walpool.Pool(path)
    other = walpool.Pool(path)
    pool.script("CREATE TABLE t (a)")

    def grandchild():
        pool.execute("INSERT INTO t VALUES ('grandchild')")
        pool.close()

    def child():
        assert not pool.closed
        assert pool.fetchval("SELECT count(*) FROM t") == 0
        pool.execute("INSERT INTO t VALUES ('child')")
        with other.transaction() as tx:
            tx.execute("INSERT INTO t VALUES ('child, transaction')")
        assert ended_well(fork(grandchild))
        with pool.read() as snapshot:
            assert snapshot.fetchval("SELECT count(*) FROM t") == 3
        assert pool.stats()["jobs"] == 1, "the child counts for itself"
        pool.close()
        assert pool.closed and not other.closed
        other.execute("INSERT INTO t VALUES ('child, the other handle')")
        other.close()

    assert ended_well(fork(child))
    pool.execute("INSERT INTO t VALUES ('parent')")
    assert pool.fetchval("SELECT count(*) FROM t") == 5
    pool.close()
    other.close()
    """
    forking(program, database)
    assert rows(database) == ["child", "child, the other handle", "child, transaction", "grandchild", "parent"]


def test_child_takes_locks_of_its_own(database: Path) -> None:
    program = """
    import subprocess, walpool
    pool = walpool.Pool(path)
    pool.script("CREATE TABLE t (a)")
    stranger = '''
import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
'''

    def is_locked_out():
        asked = subprocess.run([sys.executable, "-c", stranger, path], capture_output=True, text=True, timeout=30)
        return "locked" in asked.stderr

    def child():
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t VALUES ('child')")
            assert is_locked_out()
        assert not is_locked_out()

    assert ended_well(fork(child))
    with pool.transaction() as tx:
        tx.execute("INSERT INTO t VALUES ('parent')")
        assert is_locked_out()
    """
    forking(program, database)


def test_fork_inside_blocks_leaves_them_to_the_parent(database: Path) -> None:
    program = """
    import walpool
    pool = walpool.Pool(path)
    pool.script("CREATE TABLE t (a); INSERT INTO t VALUES ('before')")

    def refused(use):
        try:
            use()
        except walpool.errors.InterfaceError as error:
            assert "parent process" in str(error) and error.outcome == "not_applied", error
        else:
            raise AssertionError("not refused")

    def reading(snapshot, stream):
        refused(lambda: snapshot.fetch("SELECT a FROM t"))
        refused(lambda: next(stream))
        assert pool.fetch("SELECT a FROM t") == [("before",)]

    def writing(tx):
        refused(lambda: tx.execute("INSERT INTO t VALUES ('nowhere')"))
        refused(lambda: tx.fetch("SELECT a FROM t"))
        assert pool.fetch("SELECT a FROM t") == [("before",)]

    def left_by_an_exception(open_block):
        pid = os.fork()
        if pid == 0:
            # As a child of multiprocessing leaves them: nobody catches it inside.
            sys.stderr = open(os.devnull, "w")
            raise SystemExit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    with pool.stream("SELECT a FROM t") as stream, pool.read() as snapshot:
        assert ended_well(fork(lambda: reading(snapshot, stream)))
        left_by_an_exception(snapshot)
        assert snapshot.fetch("SELECT a FROM t") == [("before",)]
        assert list(stream) == [("before",)]
    with pool.transaction() as tx:
        tx.execute("INSERT INTO t VALUES ('parent')")
        assert ended_well(fork(lambda: writing(tx)))
        left_by_an_exception(tx)
        tx.execute("INSERT INTO t VALUES ('parent again')")
    """
    forking(program, database)
    assert rows(database) == ["before", "parent", "parent again"]


def test_memory_of_a_parent_is_not_taken_from_it_by_a_child(tmp_path: Path) -> None:
    program = """
    import walpool
    pool = walpool.Pool(":memory:")
    pool.script("CREATE TABLE t (a)")

    def child():
        pool.execute("INSERT INTO t VALUES (1)")
        pool.close()

    assert ended_well(fork(child))
    assert pool.fetchval("SELECT count(*) FROM t") == 1
    folder = os.path.dirname(pool.path)
    pool.close()
    assert not os.path.exists(folder)
    """
    forking(program, tmp_path)


def test_child_does_not_keep_the_locks_of_a_parent_that_was_killed(database: Path) -> None:
    program = """
    import signal, walpool
    pool = walpool.Pool(path)
    pool.script("CREATE TABLE t (a)")
    told, tell = os.pipe()

    def outliving():
        os.write(tell, str(os.getpid()).encode())
        signal.pause()

    def killed():
        pool.execute("INSERT INTO t VALUES ('one of its own')")
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t VALUES ('never committed')")
            fork(outliving)
            signal.pause()

    pid = fork(killed)
    child = int(os.read(told, 32))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        pool.execute("INSERT INTO t VALUES ('after the kill')", timeout=20)
    finally:
        os.kill(child, signal.SIGKILL)
    """
    forking(program, database)
    assert rows(database) == ["after the kill", "one of its own"]


def test_parent_and_child_draw_different_random_keys(database: Path) -> None:
    program = """
    import walpool
    pool = walpool.Pool(path)
    draw = lambda: pool.fetchval("SELECT hex(randomblob(16))")
    draw()
    read, write = os.pipe()
    for _ in range(2):
        assert ended_well(fork(lambda: os.write(write, draw().encode())))
    print(json.dumps([draw(), *(os.read(read, 32).decode() for _ in range(2))]))
    """
    keys = forking(program, database)
    assert len(set(keys)) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_child_keeps_no_descriptor_of_the_parent_open(database: Path) -> None:
    program = """
    import walpool
    pool = walpool.Pool(path)
    pool.script("CREATE TABLE t (a)")
    pool.fetch("SELECT a FROM t")

    def leads_to(name):
        try:
            return os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            return ""

    def child():
        links = map(leads_to, os.listdir("/proc/self/fd"))
        print(json.dumps([link for link in links if link.startswith(path)]), flush=True)

    assert ended_well(fork(child))
    """
    assert forking(program, database) == []


IN_THE_MIDDLE = """
    import walpool
    rounds, writers, seed = int(sys.argv[2]), 8, int(sys.argv[3])
    chance = random.Random(seed)
    pool = walpool.Pool(path)
    pool.script("CREATE TABLE t (who TEXT, number INTEGER); CREATE INDEX i ON t (who)")
    stop, acknowledged = threading.Event(), [0] * writers

    def write(n):
        while not stop.is_set():
            what = acknowledged[n] % 4
            if what == 0:
                with pool.transaction() as tx:
                    tx.execute("INSERT INTO t VALUES (?, ?)", (f"parent {n}", acknowledged[n]))
            elif what == 1:
                pool.batch([("INSERT INTO t VALUES (?, ?)", (f"parent {n}", acknowledged[n]))])
            else:
                pool.execute("INSERT INTO t VALUES (?, ?)", (f"parent {n}", acknowledged[n]))
            acknowledged[n] += 1
            pool.fetch("SELECT count(*) FROM t WHERE who = ?", (f"parent {n}",))
            if what == 3:  # the forks must meet an opening and a closing too
                with walpool.Pool(path + "-other") as other:
                    other.fetchval("SELECT 1")

    def child(round):
        workers = [threading.Thread(target=work, args=(round, n)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with walpool.Pool(path + "-other") as other:
            other.execute("CREATE TABLE IF NOT EXISTS t (a)")
        pool.close()

    def work(round, n):
        for number in range(4):
            pool.execute("INSERT INTO t VALUES (?, ?)", (f"child {round}.{n}", number))
        assert pool.fetchval("SELECT count(*) FROM t WHERE who = ?", (f"child {round}.{n}",)) == 4

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    children = []
    for round in range(rounds):
        until = time.perf_counter() + chance.random() * 0.005
        while time.perf_counter() < until:
            pass
        children.append(fork(lambda: child(round)))
        if len(children) == 4:
            assert ended_well(children.pop(0)), round
    assert all([ended_well(pid) for pid in children])
    stop.set()
    for thread in threads:
        thread.join()
    pool.close()
    print(json.dumps(acknowledged))
"""


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("locks", ["ofd", "posix"])
def test_fork_in_the_middle_of_other_threads_work_loses_nothing_and_leaves_nobody_waiting(
    database: Path, tmp_path: Path, torture: Torture, locks: str
) -> None:
    rounds = torture.size(25, 400)
    env = os.environ if locks == "ofd" else environment_with("posix_locks", tmp_path)
    process = start_python(_dedented(FORKING) + _dedented(IN_THE_MIDDLE), database, rounds, 1, env=env)
    try:
        output, errors = process.communicate(timeout=50 + rounds * 2)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    acknowledged = json.loads(output)
    with closing(sqlite3.connect(database)) as conn:
        found = dict(conn.execute("SELECT who, count(DISTINCT number) FROM t GROUP BY who"))
        problems = conn.execute("PRAGMA integrity_check").fetchall()
    wanted = {f"parent {n}": count for n, count in enumerate(acknowledged) if count}
    wanted |= {f"child {number}.{n}": 4 for number in range(rounds) for n in range(3)}
    lost = sum(max(0, count - found.get(who, 0)) for who, count in wanted.items())
    torture.tell(f"fork among writing threads ({locks} locks)", tried=rounds, unit="forks", lost=lost)
    assert problems == [("ok",)]
    assert found == wanted


def test_workers_of_multiprocessing_share_the_pool_of_their_parent(database: Path) -> None:
    program = """
    import multiprocessing, concurrent.futures, walpool
    pool = walpool.get_pool(path)
    pool.script("CREATE TABLE t (a)")

    def insert(n):
        pool.execute("INSERT INTO t VALUES (?)", (n,))
        return pool.fetchval("SELECT count(*) FROM t WHERE a = ?", (n,))

    context = multiprocessing.get_context("fork")
    with context.Pool(3) as workers:
        assert workers.map(insert, range(60)) == [1] * 60
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as workers:
        assert list(workers.map(insert, range(60, 120))) == [1] * 60
    pool.execute("INSERT INTO t VALUES (120)")
    pool.close()
    """
    forking(program, database)
    assert rows(database) == list(range(121))
