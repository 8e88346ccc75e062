"""The ways to share one SQLite file among the threads of a process, behind one small protocol.

Owns how each contender opens, locks and queues. Must not know what a workload does with it or how it is timed.
Every contender gets WAL, the same `synchronous`, the same page cache, a busy timeout and a statement cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

Row = tuple[Any, ...]

UPSERT = (
    "INSERT INTO items (key, body, version) VALUES (?, ?, 1) "
    "ON CONFLICT (key) DO UPDATE SET body = excluded.body, version = version + 1"
)
POINT_READ = "SELECT body FROM items WHERE key = ?"

BUSY_TIMEOUT_S = 30.0
CACHE_KIB = 16 * 1024  # walpool's default; SQLite's own of 2 MiB would make the others read the file again
STATEMENT_CACHE = 128  # statements; the default of sqlite3, given to apsw too


class Contender(Protocol):
    """One way to share a database among threads; every method but `setup` and `close` is called from many at once."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def setup(self, path: str, synchronous: str) -> None:
        """Open what is shared; the file exists, with its tables, in WAL mode."""

    def upsert(self, key: int, body: str) -> None:
        """Write one row in a transaction of its own; it is committed when this returns."""

    def save(self, rows: Sequence[tuple[int, str]]) -> None:
        """Upsert the rows of one task one after another, each in a transaction of its own."""
        for key, body in rows:
            self.upsert(key, body)

    def point_read(self, key: int) -> str | None:
        """Return the body of one row, None if there is none."""

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        """Return every row of a SELECT."""

    def close(self) -> None:
        """Close every connection; no other thread is inside a method any more."""


def missing(contender: type[Any]) -> str | None:
    """Return why a contender cannot run here, None if it can."""
    for module in contender.requires:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{module} cannot be imported: {error}"
    obstacle: Callable[[], str | None] = getattr(contender, "obstacle", lambda: None)
    return obstacle()


def connect(path: str, synchronous: str) -> sqlite3.Connection:
    """Open one stdlib connection as its documentation advises for WAL; autocommit, so that nothing begins unasked."""
    conn = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENT_CACHE,
    )
    conn.execute(f"PRAGMA synchronous = {synchronous}")
    conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return conn


def _read_one(conn: sqlite3.Connection, key: int) -> str | None:
    row = conn.execute(POINT_READ, (key,)).fetchone()
    return None if row is None else row[0]


class OneConnection(Contender):
    """One connection, one lock around every statement."""

    name = "one-connection"

    def setup(self, path: str, synchronous: str) -> None:
        self._conn = connect(path, synchronous)
        self._lock = threading.Lock()

    def upsert(self, key: int, body: str) -> None:
        with self._lock:
            self._conn.execute(UPSERT, (key, body))

    def point_read(self, key: int) -> str | None:
        with self._lock:
            return _read_one(self._conn, key)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        with self._lock:
            return self._conn.execute(sql, params).fetchall()

    def close(self) -> None:
        self._conn.close()


class GlobalWriteLock(OneConnection):
    """The same, but a task keeps the lock for all its rows: fewer hand-overs, the usual cure for a starved pool."""

    name = "write-lock"

    def save(self, rows: Sequence[tuple[int, str]]) -> None:
        with self._lock:
            for row in rows:
                self._conn.execute(UPSERT, row)


class ConnectionPerThread(Contender):
    """A connection for each thread; writers meet in SQLite's busy handler."""

    name = "per-thread"

    def setup(self, path: str, synchronous: str) -> None:
        self._where = (path, synchronous)
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []

    def _conn(self) -> sqlite3.Connection:
        conn: sqlite3.Connection | None = getattr(self._local, "conn", None)
        if conn is None:
            conn = self._local.conn = connect(*self._where)
            self._opened.append(conn)
        return conn

    def upsert(self, key: int, body: str) -> None:
        self._conn().execute(UPSERT, (key, body))

    def point_read(self, key: int) -> str | None:
        return _read_one(self._conn(), key)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        return self._conn().execute(sql, params).fetchall()

    def close(self) -> None:
        for conn in self._opened:
            conn.close()


class ConnectionPerOperation(Contender):
    """A connection opened and closed for each operation, as many frameworks do; no page cache outlives it."""

    name = "per-operation"

    def setup(self, path: str, synchronous: str) -> None:
        self._path, self._synchronous = path, synchronous

    @contextlib.contextmanager
    def _conn(self) -> Iterator[sqlite3.Connection]:
        conn = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            if self._synchronous != "full":  # what a connection has unless it is told otherwise
                conn.execute(f"PRAGMA synchronous = {self._synchronous}")
            yield conn
        finally:
            conn.close()

    def upsert(self, key: int, body: str) -> None:
        with self._conn() as conn:
            conn.execute(UPSERT, (key, body))

    def point_read(self, key: int) -> str | None:
        with self._conn() as conn:
            return _read_one(conn, key)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        with self._conn() as conn:
            return conn.execute(sql, params).fetchall()

    def close(self) -> None:
        """Nothing stays open between operations."""


class SymmetricPool(Contender):
    """Five equal connections and a checkout timeout; a task keeps its connection, waiting for SQLite's lock or not."""

    name = "symmetric-5"
    size: ClassVar[int] = 5
    checkout_timeout: ClassVar[float] = 5.0  # seconds

    def setup(self, path: str, synchronous: str) -> None:
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()  # the last one back has the warmest cache
        for _ in range(self.size):
            self._idle.put(connect(path, synchronous))

    @contextlib.contextmanager
    def _checkout(self) -> Iterator[sqlite3.Connection]:
        try:
            conn = self._idle.get(timeout=self.checkout_timeout)
        except queue.Empty:
            raise TimeoutError("timed out waiting for a connection of the pool") from None
        try:
            yield conn
        finally:
            self._idle.put(conn)

    def upsert(self, key: int, body: str) -> None:
        with self._checkout() as conn:
            conn.execute(UPSERT, (key, body))

    def save(self, rows: Sequence[tuple[int, str]]) -> None:
        with self._checkout() as conn:
            for row in rows:
                conn.execute(UPSERT, row)

    def point_read(self, key: int) -> str | None:
        with self._checkout() as conn:
            return _read_one(conn, key)

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        with self._checkout() as conn:
            return conn.execute(sql, params).fetchall()

    def close(self) -> None:
        for _ in range(self.size):
            self._idle.get_nowait().close()


class PoolWithWriterLock(SymmetricPool):
    """Eight connections; a writer takes a lock of the process first, so that none waits in SQLite's busy handler."""

    name = "pool-8-writer-lock"
    size = 8
    checkout_timeout = 30.0

    def setup(self, path: str, synchronous: str) -> None:
        super().setup(path, synchronous)
        self._writing = threading.Lock()

    def upsert(self, key: int, body: str) -> None:
        with self._writing:
            super().upsert(key, body)

    def save(self, rows: Sequence[tuple[int, str]]) -> None:
        for key, body in rows:
            self.upsert(key, body)


class _Job:
    """One caller's row on its way to the writer thread; `done` is held until the job is answered."""

    __slots__ = ("done", "error", "row")

    def __init__(self, row: tuple[int, str]) -> None:
        self.row = row
        self.error: Exception | None = None
        self.done = threading.Lock()
        self.done.acquire()


class WriterThread(ConnectionPerThread):
    """Group commit in pure Python, the honest baseline: one writer thread, a queue, one transaction for what waits.

    A job is one statement, whose failure SQLite undoes by itself: no savepoint. Answers go out after COMMIT. Reads use
    a connection per thread.
    """

    name = "writer-thread"
    max_group: ClassVar[int] = 512  # jobs, as walpool

    def setup(self, path: str, synchronous: str) -> None:
        super().setup(path, synchronous)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = connect(path, synchronous)
        self._thread = threading.Thread(target=self._write, name="bench-writer")
        self._thread.start()

    def upsert(self, key: int, body: str) -> None:
        job = _Job((key, body))
        self._queue.put(job)
        job.done.acquire()
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        super().close()
        self._writer.close()

    def _write(self) -> None:
        jobs = self._queue
        while (first := jobs.get()) is not None:
            group = [first]
            for _ in range(min(jobs.qsize(), self.max_group - 1)):  # the only consumer: what is counted is there
                job = jobs.get_nowait()
                if job is None:
                    jobs.put(None)  # the end, for the loop above, after this group
                    break
                group.append(job)
            self._commit(group)

    def _commit(self, group: list[_Job]) -> None:
        execute = self._writer.execute
        try:
            execute("BEGIN IMMEDIATE")
            for job in group:
                try:
                    execute(UPSERT, job.row)
                except sqlite3.Error as error:
                    job.error = error
            execute("COMMIT")
        except sqlite3.Error as error:
            for job in group:
                job.error = error
            if self._writer.in_transaction:
                execute("ROLLBACK")
        for job in group:
            job.done.release()


class ApswPerThread(Contender):
    """A connection for each thread through apsw, which brings a newer SQLite than most Pythons and a thinner layer."""

    name = "apsw"
    requires = ("apsw",)

    def setup(self, path: str, synchronous: str) -> None:
        self._where = (path, synchronous)
        self._local = threading.local()
        self._opened: list[Any] = []

    def _conn(self) -> Any:
        conn = getattr(self._local, "conn", None)
        if conn is None:
            import apsw

            path, synchronous = self._where
            conn = self._local.conn = apsw.Connection(path, statementcachesize=STATEMENT_CACHE)
            self._opened.append(conn)
            conn.set_busy_timeout(int(BUSY_TIMEOUT_S * 1000))
            conn.execute(f"PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -{CACHE_KIB}")
        return conn

    def upsert(self, key: int, body: str) -> None:
        self._conn().execute(UPSERT, (key, body))

    def point_read(self, key: int) -> str | None:
        row: Row | None = self._conn().execute(POINT_READ, (key,)).fetchone()
        return None if row is None else row[0]

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        rows: list[Row] = self._conn().execute(sql, params).fetchall()
        return rows

    def close(self) -> None:
        for conn in self._opened:
            conn.close()


class Walpool(Contender):
    """walpool with its default settings, but for `synchronous`."""

    name = "walpool"
    requires = ("walpool",)
    settings: ClassVar[dict[str, Any]] = {}
    last_stats: ClassVar[dict[str, float]] = {}  # of the pool that was closed last: what --profile prints

    def setup(self, path: str, synchronous: str) -> None:
        import walpool

        self.pool = walpool.Pool(path, synchronous=synchronous, **self.settings)

    def upsert(self, key: int, body: str) -> None:
        self.pool.execute(UPSERT, (key, body))

    def point_read(self, key: int) -> str | None:
        body: str | None = self.pool.fetchval(POINT_READ, (key,))
        return body

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[Row]:
        rows: list[Row] = self.pool.fetch(sql, params)
        return rows

    def close(self) -> None:
        Walpool.last_stats = self.pool.stats()
        self.pool.close()


class WalpoolOfFive(Walpool):
    """walpool cut down to the size and the patience of the symmetric pool: five readers, five seconds for anything."""

    settings: ClassVar[dict[str, Any]] = {
        "readers": SymmetricPool.size,
        "checkout_timeout": SymmetricPool.checkout_timeout,
        "write_timeout": SymmetricPool.checkout_timeout,
    }


class Aiosqlite:
    """aiosqlite on a loop of its own: writes share one connection, each task reads through one of its own."""

    name: ClassVar[str] = "aiosqlite"
    requires: ClassVar[tuple[str, ...]] = ("aiosqlite",)

    def setup(self, path: str, synchronous: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._where = (path, synchronous)
        self._readers: dict[asyncio.Task[Any] | None, Any] = {}
        self._writer = self.loop.run_until_complete(self._connect())

    async def _connect(self) -> Any:
        import aiosqlite

        path, synchronous = self._where
        conn = await aiosqlite.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=STATEMENT_CACHE
        )
        await conn.execute(f"PRAGMA synchronous = {synchronous}")
        await conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        return conn

    async def upsert(self, key: int, body: str) -> None:
        """Write one row in a transaction of its own."""
        await self._writer.execute(UPSERT, (key, body))

    async def save(self, rows: Sequence[tuple[int, str]]) -> None:
        """Upsert the rows of one task one after another."""
        for key, body in rows:
            await self.upsert(key, body)

    async def point_read(self, key: int) -> str | None:
        """Return the body of one row, None if there is none."""
        task = asyncio.current_task()
        conn = self._readers.get(task)
        if conn is None:
            conn = self._readers[task] = await self._connect()
        rows = await conn.execute_fetchall(POINT_READ, (key,))  # one hop to the thread instead of two
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Close every connection and the loop."""
        for conn in [*self._readers.values(), self._writer]:
            self.loop.run_until_complete(conn.close())
        self.loop.close()
