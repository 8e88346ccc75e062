"""Jobs that tell by themselves whether they are whole, programs that write them in every way, and what is found later.

A job has a writer and a number, and is one to five rows that each say which part of how many they are. A trigger counts
the jobs of each writer, and keeps a blob that grows and shrinks, so that pages are written anew and come free.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sqlite3
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import walpool
from walpool import errors

SCHEMA = """
    CREATE TABLE IF NOT EXISTS part (
        seq INTEGER PRIMARY KEY, writer INTEGER, number INTEGER, part INTEGER, parts INTEGER, body BLOB,
        UNIQUE (writer, number, part)
    );
    CREATE TABLE IF NOT EXISTS tally (writer INTEGER PRIMARY KEY, jobs INTEGER, body BLOB);
    CREATE TRIGGER IF NOT EXISTS last_part AFTER INSERT ON part WHEN new.part = new.parts - 1 BEGIN
        INSERT INTO tally VALUES (new.writer, 1, NULL)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1, body = zeroblob(jobs * 997 % 6000);
    END;
"""
COPY = "copy.db"
INSERT = "INSERT INTO part (writer, number, part, parts, body) VALUES (?, ?, ?, ?, ?)"

Row = tuple[int, int, int, int, bytes]
JobId = tuple[int, int]


def rows_of(writer: int, number: int) -> list[Row]:
    """Return the rows of a job."""
    parts = 1 + (writer + number) % 5
    return [(writer, number, part, parts, body(writer, number, part)) for part in range(parts)]


def body(writer: int, number: int, part: int) -> bytes:
    """Return what a row carries: mostly a few bytes, at times more than a page."""
    size = 9_000 if (number + part) % 23 == 0 else 20 + (number * 31 + part * 7) % 300
    text = b"%d/%d/%d " % (writer, number, part)
    return (text * (size // len(text) + 1))[:size]


class UndoneError(Exception):
    """Makes a savepoint undo what was done in it."""


def in_one_statement(pool: walpool.Pool, rows: list[Row]) -> None:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * len(rows))
    pool.execute(INSERT[: INSERT.index("VALUES")] + f"VALUES {values}", [value for row in rows for value in row])


def in_executemany(pool: walpool.Pool, rows: list[Row]) -> None:
    pool.executemany(INSERT, rows)


def in_a_batch(pool: walpool.Pool, rows: list[Row]) -> None:
    pool.batch([(INSERT, row) for row in rows])


def in_a_transaction(pool: walpool.Pool, rows: list[Row]) -> None:
    with pool.transaction() as tx:
        for row in rows[1:]:
            tx.execute(INSERT, row)
        with suppress(UndoneError), tx.transaction():
            tx.execute(INSERT, (-1, 0, 0, 1, b"undone"))
            raise UndoneError
        with tx.transaction():
            tx.execute(INSERT, rows[0])


def in_run(pool: walpool.Pool, rows: list[Row]) -> None:
    pool.run(lambda tx: tx.executemany(INSERT, rows))


def after_a_neighbour_failed(pool: walpool.Pool, rows: list[Row]) -> None:
    with suppress(errors.IntegrityError):  # where there is no row yet it inserts none; else it ends the whole group
        pool.execute("INSERT OR ROLLBACK INTO part SELECT * FROM part LIMIT 1")
    pool.batch([(INSERT, row) for row in rows])


WAYS = [
    in_one_statement,
    in_executemany,
    in_a_batch,
    in_a_transaction,
    in_run,
    after_a_neighbour_failed,
]


@dataclass
class Writers:
    """Threads that write jobs into a pool, over and over, while it is opened and closed under them.

    They tell, each in a line of its own, after the call has returned: `acked WRITER NUMBER`, `refused WRITER NUMBER`.
    The thread that opens and closes tells `opening`, `opened`, `closing`, `closed`, `checkpointing`, `checkpointed`.
    """

    database: Path
    tell: Callable[[str], object]
    synchronous: str
    count: int  # of threads
    jobs: int  # acknowledged between an open and a close
    first: int = 0  # number of the first job of each
    wal_limit: int = 256 * 1024  # the smallest but few: the WAL is started anew and truncated often

    def __post_init__(self) -> None:
        self._next = [itertools.count(self.first) for _ in range(self.count)]
        self._modes = itertools.cycle(("passive", "full", "restart", "truncate", "vacuum"))

    def work(self, rounds: int | None = None) -> None:
        """Open, write, close while they write, again and again; for ever if `rounds` is None."""
        for number in itertools.count() if rounds is None else range(rounds):
            self.tell("opening")
            pool = walpool.Pool(self.database, synchronous=self.synchronous, readers=4, wal_limit=self.wal_limit)
            pool.script(SCHEMA)
            self.tell("opened")
            acked, enough = list[JobId](), threading.Event()
            writing = [
                threading.Thread(target=self._write, args=(pool, writer, acked, enough), daemon=True)
                for writer in range(self.count)
            ]
            for thread in writing:
                thread.start()
            # In every other round walpool's own checkpoints meet a reader that pins the WAL.
            beside = self._maintain if number % 2 else self._read
            while not enough.wait(0.01):
                beside(pool)
            self.tell("closing")
            pool.close()
            self.tell("closed")
            for thread in writing:
                thread.join()

    def _maintain(self, pool: walpool.Pool) -> None:
        mode = next(self._modes)
        if mode == "vacuum":
            pool.vacuum()
            return
        self.tell("checkpointing")
        was_busy, in_wal, moved = pool.checkpoint(mode)
        if not was_busy and in_wal == moved:
            self.tell("checkpointed")

    def _read(self, pool: walpool.Pool) -> None:
        with pool.read() as snapshot:
            for _ in range(3):
                snapshot.fetchval("SELECT sum(length(body)) FROM part")

    def _write(self, pool: walpool.Pool, writer: int, acked: list[JobId], enough: threading.Event) -> None:
        for number in self._next[writer]:
            try:
                WAYS[number % len(WAYS)](pool, rows_of(writer, number))
            except errors.ClosedError as error:
                if error.outcome != "not_applied":
                    raise
                self.tell(f"refused {writer} {number}")
                return
            self.tell(f"acked {writer} {number}")
            acked.append((writer, number))
            if len(acked) >= self.jobs:
                enough.set()


@dataclass(frozen=True)
class Told:
    """What the writers told until a moment."""

    acked: set[JobId]
    refused: set[JobId]

    @classmethod
    def by(cls, lines: list[str]) -> Told:
        told: dict[str, set[JobId]] = defaultdict(set)
        for verb, *numbers in map(str.split, lines):
            if numbers:
                told[verb].add((int(numbers[0]), int(numbers[1])))
        return cls(told["acked"], told["refused"])


@dataclass(frozen=True)
class Found:
    """What is in the file: what is wrong with it, and the rows in the order in which they were committed."""

    problems: list[str]
    rows: list[tuple[int, int, int, int, int, bytes]]
    tally: list[tuple[int, int, int]]

    def jobs(self) -> dict[JobId, list[Row]]:
        """Return the rows of each job, in the order of their parts."""
        jobs: dict[JobId, list[Row]] = defaultdict(list)
        for _, *row in self.rows:
            jobs[row[0], row[1]].append(tuple(row))
        return {job: sorted(rows) for job, rows in jobs.items()}

    def torn(self) -> list[JobId]:
        """Return the jobs of which only a part is there, or another content."""
        return [job for job, rows in self.jobs().items() if rows != rows_of(*job)]

    def is_counted(self) -> bool:
        """Return whether the trigger's table tells of just these jobs."""
        jobs: dict[int, int] = defaultdict(int)
        for writer, _ in self.jobs():
            jobs[writer] += 1
        return self.tally == [(writer, n, (n - 1) * 997 % 6000) for writer, n in sorted(jobs.items())]


HAS_TABLE = "SELECT count(*) FROM sqlite_schema WHERE name = 'last_part'"
ROWS = "SELECT seq, writer, number, part, parts, body FROM part ORDER BY seq"
TALLY = "SELECT writer, jobs, ifnull(length(body), 0) FROM tally ORDER BY writer"


def found_by_walpool(database: Path) -> Found:
    """Open the file as a process does that comes after the crash."""
    with walpool.Pool(database, readers=2) as pool:
        return _found(pool.check(), pool.fetch)


def found_by_sqlite3(database: Path) -> Found:
    """As `found_by_walpool`, with the standard library's SQLite."""
    conn = sqlite3.connect(database, isolation_level=None)
    try:
        problems = [line for (line,) in conn.execute("PRAGMA integrity_check") if line != "ok"]
        return _found(problems, lambda sql: conn.execute(sql).fetchall())
    finally:
        conn.close()


def _found(problems: list[str], fetch: Callable[[str], list[tuple[object, ...]]]) -> Found:
    if fetch(HAS_TABLE) == [(0,)]:
        return Found(problems, [], [])
    return Found(problems, fetch(ROWS), fetch(TALLY))


def write_until_killed(database: str, synchronous: str, first: str) -> None:
    """The program of a process that is killed: tells on its standard output, in one system call each."""

    def tell(line: str) -> None:
        os.write(1, line.encode() + b"\n")

    end_with_any_thread()
    Writers(Path(database), tell, synchronous, count=16, jobs=120, first=int(first)).work()


def write_under_the_recorder(database: str, synchronous: str, first: str = "0") -> None:
    """The program of a process that is recorded: tells in marks among its writes and syncs."""
    end_with_any_thread()
    Writers(Path(database), mark(), synchronous, count=8, jobs=40, first=int(first)).work(rounds=4)


def write_with_sqlite3(database: str, synchronous: str) -> None:
    """The program of a process that is recorded, and writes with the standard library's SQLite, one job a commit."""
    tell = mark()
    conn = sqlite3.connect(database, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute(f"PRAGMA synchronous = {synchronous}")
    conn.execute("PRAGMA wal_autocheckpoint = 60")
    conn.executescript(SCHEMA)
    for number in range(100):
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(INSERT, rows_of(0, number))
        conn.execute("COMMIT")
        tell(f"acked 0 {number}")
    conn.close()


def back_up_under_the_recorder(database: str, synchronous: str) -> None:
    """The program of a process that is recorded while it copies its database."""
    tell = mark()
    with walpool.Pool(database, synchronous=synchronous) as pool:
        pool.script(SCHEMA)
        for number in range(40):
            in_a_batch(pool, rows_of(0, number))
        pool.backup(Path(database).with_name(COPY))
        tell("copied")


def mark() -> Callable[[str], object]:
    """Return what enters a line into the record."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    return lambda line: library.power_mark(line.encode())


def end_with_any_thread() -> None:
    """Let a thread's error end the process."""

    def end(unhandled: threading.ExceptHookArgs) -> None:
        sys.__excepthook__(unhandled.exc_type, unhandled.exc_value or SystemExit(), unhandled.exc_traceback)
        os._exit(1)

    threading.excepthook = end
