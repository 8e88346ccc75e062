"""Another SQLite on the file does what it may: meanwhile we write and read on, meet no error and lose nothing."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import WITHIN, eventually, other_process, run_python

import walpool
from tests.torture import Torture

pytestmark = [pytest.mark.torture, pytest.mark.crash]

THREADS = 4

# What a stranger's program begins with: each statement commits by itself, and waits for a lock as SQLite does.
STRANGER = """
    import sqlite3, sys, time
    conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
"""

# Writes much without a commit: with so small a cache its pages spill into the WAL.
FILLING = f"""{STRANGER}
    conn.execute("PRAGMA cache_size = 10")
    conn.execute("BEGIN IMMEDIATE")
    conn.executemany("INSERT INTO strange VALUES (?)", [("x" * 1000,)] * 3000)
    print("written", flush=True)
    sys.stdin.read()
"""

# Commits row after row, and tells the number of each afterwards.
COMMITTING = f"""{STRANGER}
    start = conn.execute("SELECT coalesce(max(n), -1) + 1 FROM strange").fetchone()[0]
    print("ready", flush=True)
    for n in range(start, start + 10**9):
        conn.execute("INSERT INTO strange VALUES (?)", (n,))
        print(n, flush=True)
"""


class Traffic:
    """Threads that write through one pool and read back what was acknowledged, without a pause."""

    def __init__(self, pool: walpool.Pool) -> None:
        self.pool = pool
        self.told = [0] * THREADS  # rows that each thread was told of
        self.errors: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            while not self._is_over.is_set():
                n = self.told[number]
                self.pool.execute("INSERT INTO t (who, n) VALUES (?, ?)", (number, n))
                self.told[number] = n + 1
                assert self.pool.fetchval("SELECT max(n) FROM t WHERE who = ?", (number,)) == n
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread in `end`
            self.errors.append(error)

    def goes_on(self) -> None:
        """Return when each thread has written something more."""
        before = list(self.told)
        eventually(lambda: self.errors != [] or all(map(int.__lt__, before, self.told)))

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * WITHIN)
        assert self.errors == []

    def lost(self) -> int:
        """Return how many rows that were acknowledged are not there."""
        found = dict(self.pool.fetch("SELECT who, count(*) FROM t GROUP BY who"))
        return sum(count - found.get(n, 0) for n, count in enumerate(self.told))


@pytest.fixture
def table(database: Path) -> Iterator[walpool.Pool]:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (who, n, UNIQUE (who, n)); CREATE TABLE strange (n)")
        yield pool
        assert pool.check() == []


@contextmanager
def traffic(pool: walpool.Pool) -> Iterator[Traffic]:
    """Write and read throughout the block; in the end there are the rows that were acknowledged, and no others."""
    running = Traffic(pool)
    try:
        running.goes_on()
        yield running
        running.goes_on()
    finally:
        running.end()
    assert dict(pool.fetch("SELECT who, count(*) FROM t GROUP BY who")) == dict(enumerate(running.told))
    assert pool.stats()["jobs_failed"] == 0


def tell(torture: Torture, running: Traffic, what: str, rounds: int) -> None:
    torture.tell(what, tried=rounds, unit="rounds", lost=running.lost(), note=f"{sum(running.told):,} writes meanwhile")


def test_command_line_tool_writes_beside_us(table: walpool.Pool, torture: Torture) -> None:
    rows = torture.size(60, 5_000)
    statements = [f"INSERT INTO strange VALUES ({n});" for n in range(rows)]
    tool = shutil.which("sqlite3")
    with traffic(table) as running:
        if tool is None:
            run_python(f"{STRANGER}\n    for line in sys.argv[2:]: conn.execute(line)", table.path, *statements)
        else:
            script = "\n".join([".bail on", ".timeout 30000", *statements])
            subprocess.run([tool, table.path], check=True, input=script, text=True, timeout=50)
    tell(torture, running, "writes of the sqlite3 tool beside ours", rows)
    assert table.fetch("SELECT n FROM strange ORDER BY rowid") == [(n,) for n in range(rows)]


def test_exclusive_transaction_is_waited_for_and_keeps_no_reader_out(table: walpool.Pool, torture: Torture) -> None:
    """In WAL mode EXCLUSIVE is IMMEDIATE: https://www.sqlite.org/lang_transaction.html

    stranger              writers               reader
    BEGIN EXCLUSIVE
                          busy, wait            reads, reads, ...
    COMMIT
                          go on
    """
    rounds, seconds = torture.size((1, 0.5), (10, 2.0))
    program = (
        f"{STRANGER}\n"
        "    conn.execute('BEGIN EXCLUSIVE')\n"
        "    conn.execute('INSERT INTO strange VALUES (1)')\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    conn.execute('COMMIT')\n"
    )
    with traffic(table) as running:
        for _ in range(rounds):
            with other_process(program, table.path) as stranger:
                until = time.monotonic() + seconds
                before = table.fetchval("SELECT count(*) FROM t")
                while time.monotonic() < until:
                    assert table.fetchval("SELECT count(*) FROM t") == before
                stranger.communicate("go\n", timeout=WITHIN)
            running.goes_on()
    tell(torture, running, f"BEGIN EXCLUSIVE held for {seconds} s", rounds)
    assert table.fetchval("SELECT count(*) FROM strange") == rounds
    assert table.stats()["busy_waits"] >= rounds


@pytest.mark.parametrize(
    "act",
    ["PRAGMA wal_checkpoint(PASSIVE)", "PRAGMA wal_checkpoint(RESTART)", "PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM"],
)
def test_stranger_tidies_up_beside_us(table: walpool.Pool, torture: Torture, act: str) -> None:
    rounds = torture.size(5, 1_000)
    program = (
        f"{STRANGER}\n"
        "    print('ready', flush=True)\n"
        "    for line in sys.stdin:\n"
        f"        conn.execute('{act}').fetchall()\n"
        "        print('done', flush=True)\n"
    )
    with traffic(table) as running, other_process(program, table.path) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None
        for _ in range(rounds):
            stranger.stdin.write("go\n")
            stranger.stdin.flush()
            assert stranger.stdout.readline() == "done\n", stranger.communicate()[1]
            running.goes_on()
    tell(torture, running, f"{act} by a stranger", rounds)


def test_journal_mode_stays_wal_whatever_a_stranger_tries(table: walpool.Pool, torture: Torture) -> None:
    rounds = torture.size(20, 5_000)
    program = (
        f"{STRANGER}\n"
        "    conn.execute('PRAGMA busy_timeout = 0')\n"
        "    refused = 0\n"
        "    for _ in range(int(sys.argv[2])):\n"
        "        try:\n"
        "            refused += conn.execute('PRAGMA journal_mode = DELETE').fetchone() == ('wal',)\n"
        "        except sqlite3.OperationalError as error:\n"
        "            refused += 'locked' in str(error)\n"
        "    print(refused)\n"
    )
    with traffic(table) as running:
        assert run_python(program, table.path, rounds)[0] == f"{rounds}\n"
        assert table.fetchval("PRAGMA journal_mode") == "wal"
    tell(torture, running, "PRAGMA journal_mode = DELETE by a stranger", rounds)


def test_stranger_keeps_its_snapshot_while_we_write(table: walpool.Pool, torture: Torture) -> None:
    rounds = torture.size(2, 30)
    program = (
        f"{STRANGER}\n"
        "    conn.execute('BEGIN')\n"
        "    count = lambda: conn.execute('SELECT count(*) FROM t').fetchone()\n"
        "    before = count()\n"
        "    print('reading', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(count() == before)\n"
    )
    with traffic(table) as running:
        for _ in range(rounds):
            with other_process(program, table.path) as stranger:
                running.goes_on()
                assert stranger.communicate("go\n", timeout=WITHIN)[0] == "True\n"
    tell(torture, running, "snapshots of a stranger held while we write", rounds)


def last_told_before_its_kill(program: str, path: object) -> int:
    """Kill a stranger after a few of its lines, and return the number in its last whole one; -1 where there is none."""
    with other_process(program, path) as stranger:
        assert stranger.stdout is not None
        lines = [stranger.stdout.readline() for _ in range(5)] if program is COMMITTING else []
        stranger.kill()
        lines += stranger.stdout.readlines()
    return max([int(line) for line in lines if line.endswith("\n")], default=-1)


@pytest.mark.parametrize("instant", ["in a transaction that has filled the WAL", "between and in commits"])
def test_stranger_is_killed_while_it_writes(table: walpool.Pool, torture: Torture, instant: str) -> None:
    """What it was told is there; what it had only written to the WAL is not, and nothing of ours is missing."""
    rounds, is_open = torture.size(2, 60), instant.startswith("in a")
    told = -1
    with traffic(table) as running:
        for _ in range(rounds):
            told = max(told, last_told_before_its_kill(FILLING if is_open else COMMITTING, table.path))
            running.goes_on()
            assert table.fetchval("SELECT count(*) FROM strange") >= told + 1
    tell(torture, running, f"kills of a stranger {instant}", rounds)
    strange = [n for (n,) in table.fetch("SELECT n FROM strange ORDER BY rowid")]
    assert strange == ([] if is_open else list(range(len(strange))))


def test_wal_of_a_killed_stranger_is_recovered_when_we_open_the_file(database: Path, torture: Torture) -> None:
    """Nobody else has the file: whoever opens it first recovers the WAL."""
    rounds, told, lost = torture.size(3, 100), -1, 0
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE strange (n)")
    for number in range(rounds):
        told = max(told, last_told_before_its_kill(COMMITTING, database))
        if number % 2:
            last_told_before_its_kill(FILLING, database)
        with walpool.Pool(database) as pool:
            strange = [n for (n,) in pool.fetch("SELECT n FROM strange ORDER BY rowid")]
            assert pool.check() == []
        lost += max(0, told + 1 - len(strange))
        assert strange == list(range(len(strange)))
    torture.tell("openings after a stranger was killed", tried=rounds, unit="openings", lost=lost)
    assert lost == 0


def test_statements_of_ours_follow_the_schema_that_a_stranger_changes(table: walpool.Pool, torture: Torture) -> None:
    rounds = torture.size(5, 200)
    program = (
        f"{STRANGER}\n"
        "    print('ready', flush=True)\n"
        "    for n, line in enumerate(sys.stdin):\n"
        "        conn.execute(f'ALTER TABLE strange ADD COLUMN c{n} DEFAULT {n}')\n"
        "        conn.execute('DROP INDEX IF EXISTS i')\n"
        "        conn.execute('CREATE INDEX i ON t (n, who)')\n"
        "        print('done', flush=True)\n"
    )
    table.execute("INSERT INTO strange VALUES (-1)")
    with traffic(table) as running, other_process(program, table.path) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None
        for n in range(rounds):
            stranger.stdin.write("go\n")
            stranger.stdin.flush()
            assert stranger.stdout.readline() == "done\n", stranger.communicate()[1]
            (row,) = table.fetch("SELECT * FROM strange", row=dict)
            assert row == {"n": -1} | {f"c{column}": column for column in range(n + 1)}
            assert table.execute("UPDATE strange SET n = n RETURNING *").rows == [tuple(row.values())]
            running.goes_on()
    tell(torture, running, "changes of the schema by a stranger", rounds)
