"""The ways to share one SQLite file among the tasks of an event loop, and PostgreSQL beside them.

Owns how each contender opens, locks and queues, and the statements of the backup engine. Must not know how it is timed.
Every contender on SQLite gets WAL, the same `synchronous`, the same page cache, a busy timeout and a statement cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from benches import postgres_server
from benches.contenders import BUSY_TIMEOUT_S, CACHE_KIB, POINT_READ, STATEMENT_CACHE, UPSERT, Row, Walpool, connect

INSERT_CHUNK = 'INSERT INTO chunks (content_hash, pack_id, "offset", length) VALUES (?, ?, ?, ?)'
INSERT_PACK = "INSERT INTO packs (id, chunks, length) VALUES (?, ?, ?)"
UPDATE_SNAPSHOT = "UPDATE snapshots SET chunks = chunks + ?, bytes = bytes + ? WHERE id = ?"


@dataclass(frozen=True)
class Pack:
    """What one transaction of the backup engine records: the parameters of its three statements."""

    chunks: list[tuple[str, int, int, int]]  # content_hash, pack_id, offset, length
    pack: tuple[int, int, int]  # id, chunks, length
    snapshot: tuple[int, int, int]  # chunks and bytes to add, id


class AsyncContender(Protocol):
    """One way to share a database among tasks; every method but `open` and `close` is called from many at once."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    async def open(self, path: str, synchronous: str) -> None:
        """Open what is shared; the file exists, with its tables, in WAL mode."""

    async def upsert(self, key: int, body: str) -> None:
        """Write one row in a transaction of its own; it is committed when this returns."""

    async def point_read(self, key: int) -> str | None:
        """Return the body of one row, None if there is none."""

    async def record(self, pack: Pack) -> None:
        """Write a pack in one transaction; it is committed when this returns."""

    async def transact(self, reads: Sequence[int], key: int, body: str) -> None:
        """Read rows, then write one, in one transaction with one snapshot; it is committed when this returns."""

    async def close(self) -> None:
        """Close every connection; no task is inside a method any more, and the file holds what was written."""


class AsyncWalpool(AsyncContender):
    """`walpool.AsyncPool` with its default settings, but for `synchronous`."""

    name = "walpool"
    requires = ("walpool",)

    async def open(self, path: str, synchronous: str) -> None:
        import walpool

        self.pool = walpool.AsyncPool(path, synchronous=synchronous)
        await self.pool.open()

    async def upsert(self, key: int, body: str) -> None:
        await self.pool.execute(UPSERT, (key, body))

    async def point_read(self, key: int) -> str | None:
        body: str | None = await self.pool.fetchval(POINT_READ, (key,))
        return body

    async def record(self, pack: Pack) -> None:
        chunks = [(INSERT_CHUNK, chunk) for chunk in pack.chunks]
        await self.pool.batch([*chunks, (INSERT_PACK, pack.pack), (UPDATE_SNAPSHOT, pack.snapshot)])

    async def close(self) -> None:
        Walpool.last_stats = await self.pool.stats()
        await self.pool.close()


class AiosqliteOneConnection(AsyncContender):
    """aiosqlite as its documentation has it: one connection, `execute` and `commit`; a read is a cursor and its row.

    The module's own transactions: whoever commits first commits what all tasks have written so far. A pack must not be
    torn by that, so a lock is around each, and its chunks go in one `executemany`.
    """

    name = "aiosqlite"
    requires = ("aiosqlite",)

    async def open(self, path: str, synchronous: str) -> None:
        self._conn = await connect_aiosqlite(path, synchronous)
        self._lock = asyncio.Lock()

    async def upsert(self, key: int, body: str) -> None:
        await self._conn.execute(UPSERT, (key, body))
        await self._conn.commit()

    async def point_read(self, key: int) -> str | None:
        async with self._conn.execute(POINT_READ, (key,)) as cursor:
            row = await cursor.fetchone()
        return None if row is None else row[0]

    async def record(self, pack: Pack) -> None:
        async with self._lock:
            await self._conn.executemany(INSERT_CHUNK, pack.chunks)
            await self._conn.execute(INSERT_PACK, pack.pack)
            await self._conn.execute(UPDATE_SNAPSHOT, pack.snapshot)
            await self._conn.commit()

    async def close(self) -> None:
        await self._conn.close()


class AiosqliteOneHop(AiosqliteOneConnection):
    """aiosqlite with as few hops to its thread as it allows: autocommit, and a read in one call."""

    name = "aiosqlite-one-hop"

    async def open(self, path: str, synchronous: str) -> None:
        self._conn = await connect_aiosqlite(path, synchronous, isolation_level=None)

    async def upsert(self, key: int, body: str) -> None:
        await self._conn.execute(UPSERT, (key, body))

    async def point_read(self, key: int) -> str | None:
        rows = await self._conn.execute_fetchall(POINT_READ, (key,))
        return rows[0][0] if rows else None


async def connect_aiosqlite(path: str, synchronous: str, **options: Any) -> Any:
    """Open one connection of aiosqlite; `options` are those of `sqlite3.connect`."""
    import aiosqlite

    conn = await aiosqlite.connect(
        path, **({"timeout": BUSY_TIMEOUT_S, "cached_statements": STATEMENT_CACHE} | options)
    )
    await conn.execute(f"PRAGMA synchronous = {synchronous}")
    await conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return conn


class ApswAsync(AsyncContender):
    """apsw's own async: one connection, the thread that apsw gives it, autocommit."""

    name = "apsw-async"
    requires = ("apsw.aio",)

    async def open(self, path: str, synchronous: str) -> None:
        import apsw

        self._conn: Any = await apsw.Connection.as_async(path, statementcachesize=STATEMENT_CACHE)
        await self._conn.set_busy_timeout(int(BUSY_TIMEOUT_S * 1000))
        await self._conn.execute(f"PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -{CACHE_KIB}")

    async def upsert(self, key: int, body: str) -> None:
        await self._conn.execute(UPSERT, (key, body))

    async def point_read(self, key: int) -> str | None:
        row: Row | None = await (await self._conn.execute(POINT_READ, (key,))).fetchone()
        return None if row is None else row[0]

    async def close(self) -> None:
        await self._conn.aclose()


class _Job:
    """One caller's work on its way to a thread, and the future that the loop will answer."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: Exception | None = None


class _GroupThread:
    """A thread with a connection that takes what waits as one group, under one transaction, and answers it at once.

    No savepoints: where a job of a group fails all is rolled back, and each job is done again in a transaction of its
    own. One `call_soon_threadsafe` wakes the loop for the whole group.
    """

    max_group: ClassVar[int] = 512  # jobs, as walpool

    def __init__(self, path: str, synchronous: str, begin: str, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._conn = connect(path, synchronous)
        self._begin = begin
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def submit(self, work: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        """Return a future of what `work` returns; it is answered after COMMIT."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(work, future))
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._conn.close()

    def _run(self) -> None:
        jobs = self._jobs
        while (first := jobs.get()) is not None:
            group = [first]
            for _ in range(min(jobs.qsize(), self.max_group - 1)):  # the only consumer: what is counted is there
                job = jobs.get_nowait()
                if job is None:
                    jobs.put(None)  # the end, for the loop above, after this group
                    break
                group.append(job)
            if not self._commit(group):
                for job in group:
                    self._commit([job])
            self._loop.call_soon_threadsafe(_answer, group)

    def _commit(self, group: Sequence[_Job]) -> bool:
        job, conn = group[0], self._conn
        try:
            conn.execute(self._begin)
            for job in group:
                job.result = job.work(conn)
            conn.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is the caller's; the thread must go on
            job.error = error
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            return False
        for job in group:
            job.error = None  # of the group that it was in first
        return True


def _answer(group: Iterable[_Job]) -> None:
    for job in group:
        if job.future.done():  # cancelled
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


class AsyncWriterThread(AsyncContender):
    """Group commit in pure Python, the honest baseline: a thread that writes and one that reads, each in groups."""

    name = "writer-thread"

    async def open(self, path: str, synchronous: str) -> None:
        self._writer = _GroupThread(path, synchronous, "BEGIN IMMEDIATE", "bench-writer")
        self._reader = _GroupThread(path, synchronous, "BEGIN", "bench-reader")

    async def upsert(self, key: int, body: str) -> None:
        await self._writer.submit(lambda conn: conn.execute(UPSERT, (key, body)))

    async def point_read(self, key: int) -> str | None:
        row: Row | None = await self._reader.submit(lambda conn: conn.execute(POINT_READ, (key,)).fetchone())
        return None if row is None else row[0]

    async def record(self, pack: Pack) -> None:
        await self._writer.submit(lambda conn: record_pack(conn, pack))

    async def close(self) -> None:
        self._writer.close()
        self._reader.close()


def record_pack(conn: sqlite3.Connection, pack: Pack) -> None:
    """Run the three statements of a pack on a stdlib connection, inside whatever transaction it is in."""
    conn.executemany(INSERT_CHUNK, pack.chunks)
    conn.execute(INSERT_PACK, pack.pack)
    conn.execute(UPDATE_SNAPSHOT, pack.snapshot)


def _dollars(sql: str) -> str:
    """Return a statement with `$1`, `$2`, ... in place of its question marks."""
    head, *rest = sql.split("?")
    return head + "".join(f"${number}{part}" for number, part in enumerate(rest, start=1))


class OnPostgres(AsyncContender):
    """A PostgreSQL server of its own, reached by a socket.

    The tables of the file go into the server when it opens and back into the file when it closes, for the check. With
    `normal` it has `synchronous_commit = off`, the nearest to what SQLite does: no commit waits for the disk.
    """

    obstacle = staticmethod(postgres_server.obstacle)
    connections: ClassVar[int] = 16

    async def open(self, path: str, synchronous: str) -> None:
        self._path = path
        self._server = await asyncio.to_thread(postgres_server.PostgresServer, Path(path).parent)
        async with self._asyncpg(1, synchronous) as pool:
            with contextlib.closing(sqlite3.connect(path)) as file:
                self._tables = file.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
                for table, sql in self._tables:
                    await pool.execute(sql)
                    await pool.copy_records_to_table(table, records=file.execute(f"SELECT * FROM {table}"))
            await pool.execute("CHECKPOINT")

    async def close(self) -> None:
        async with self._asyncpg(1, "full") as pool:
            with contextlib.closing(connect(self._path, "off")) as file:
                file.execute("BEGIN")
                for table, _ in self._tables:
                    file.execute(f"DELETE FROM {table}")
                    rows = await pool.fetch(f"SELECT * FROM {table}")
                    if rows:
                        marks = ", ".join("?" * len(rows[0]))
                        file.executemany(f"INSERT INTO {table} VALUES ({marks})", map(tuple, rows))
                file.execute("COMMIT")
        await asyncio.to_thread(self._server.close)

    def _asyncpg(self, connections: int, synchronous: str) -> Any:
        import asyncpg  # type: ignore[import-untyped]

        return asyncpg.create_pool(
            self._server.url(),
            min_size=connections,
            max_size=connections,
            server_settings={"synchronous_commit": "on" if synchronous == "full" else "off"},
        )


class Asyncpg(OnPostgres):
    """asyncpg as people write it by hand: a pool of sixteen connections, rows sorted by their key."""

    name = "asyncpg"
    requires = ("asyncpg",)

    async def open(self, path: str, synchronous: str) -> None:
        await super().open(path, synchronous)
        self._pool: Any = await self._asyncpg(self.connections, synchronous)

    async def upsert(self, key: int, body: str) -> None:
        await self._pool.execute(_PG_UPSERT, key, body)

    async def point_read(self, key: int) -> str | None:
        body: str | None = await self._pool.fetchval(_PG_POINT_READ, key)
        return body

    async def record(self, pack: Pack) -> None:
        async with self._pool.acquire() as conn, conn.transaction():
            await conn.executemany(_PG_INSERT_CHUNK, sorted(pack.chunks))  # unsorted ones may deadlock
            await conn.execute(_PG_INSERT_PACK, *pack.pack)
            await conn.execute(_PG_UPDATE_SNAPSHOT, *pack.snapshot)

    async def transact(self, reads: Sequence[int], key: int, body: str) -> None:
        """REPEATABLE READ, as walpool's; but a statement that fails ends the transaction, where walpool's goes on."""
        async with self._pool.acquire() as conn, conn.transaction(isolation="repeatable_read"):
            for read in reads:
                await conn.fetchval(_PG_POINT_READ, read)
            await conn.execute(_PG_UPSERT, key, body)

    async def close(self) -> None:
        await self._pool.close()
        await super().close()


class AsyncpgSavepoints(Asyncpg):
    """asyncpg with what walpool guarantees: a savepoint for each statement, so that one that fails undoes no other."""

    name = "asyncpg-savepoints"

    async def transact(self, reads: Sequence[int], key: int, body: str) -> None:
        """REPEATABLE READ, and a transaction that goes on where a statement failed."""
        async with self._pool.acquire() as conn, conn.transaction(isolation="repeatable_read"):
            for read in reads:
                async with conn.transaction():
                    await conn.fetchval(_PG_POINT_READ, read)
            async with conn.transaction():
                await conn.execute(_PG_UPSERT, key, body)


class AsyncWalpoolOnPostgres(OnPostgres):
    """The same calls as `AsyncWalpool`, on a `postgresql://` URL."""

    name = "walpool-postgres"
    requires = ("walpool", "psycopg", "asyncpg")

    async def open(self, path: str, synchronous: str) -> None:
        import walpool

        await super().open(path, synchronous)
        self.pool = walpool.get_async_pool(self._server.url(), synchronous=synchronous)
        await self.pool.open()

    async def upsert(self, key: int, body: str) -> None:
        await self.pool.execute(_PORTABLE_UPSERT, (key, body))

    async def point_read(self, key: int) -> str | None:
        body: str | None = await self.pool.fetchval(POINT_READ, (key,))
        return body

    async def record(self, pack: Pack) -> None:
        chunks = [(INSERT_CHUNK, chunk) for chunk in sorted(pack.chunks)]
        statements = [*chunks, (INSERT_PACK, pack.pack), (UPDATE_SNAPSHOT, pack.snapshot)]
        await self.pool.batch(statements)

    async def transact(self, reads: Sequence[int], key: int, body: str) -> None:
        """REPEATABLE READ; a statement that fails undoes itself, and the transaction goes on."""
        async with self.pool.transaction() as tx:
            for read in reads:
                await tx.fetchval(POINT_READ, (read,))
            await tx.execute(_PORTABLE_UPSERT, (key, body))

    async def close(self) -> None:
        await self.pool.close()
        await super().close()


_PORTABLE_UPSERT = UPSERT.replace("version = version", "version = items.version")
_PG_UPSERT = _dollars(_PORTABLE_UPSERT)
_PG_POINT_READ = _dollars(POINT_READ)
_PG_INSERT_CHUNK, _PG_INSERT_PACK, _PG_UPDATE_SNAPSHOT = map(_dollars, (INSERT_CHUNK, INSERT_PACK, UPDATE_SNAPSHOT))
