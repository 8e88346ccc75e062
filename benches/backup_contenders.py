"""Ways in which people write a backup engine's transactions on an event loop: the slow one, and three of the tale.

"The tale" is what is told of SQLite under an asynchronous server: each of its three ways blocks the loop, or waits in
SQLite's busy handler, or holds the write lock across something slow. Owns those; the others are `async_contenders`.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from benches.async_contenders import (
    INSERT_CHUNK,
    INSERT_PACK,
    UPDATE_SNAPSHOT,
    AiosqliteOneConnection,
    AsyncContender,
    Pack,
    connect_aiosqlite,
    record_pack,
)
from benches.contenders import connect


class AiosqliteStatements(AiosqliteOneConnection):
    """aiosqlite with one connection and a lock, a statement per await."""

    name = "aiosqlite-statements"

    async def record(self, pack: Pack) -> None:
        async with self._lock:
            for chunk in pack.chunks:
                await self._conn.execute(INSERT_CHUNK, chunk)
            await self._conn.execute(INSERT_PACK, pack.pack)
            await self._conn.execute(UPDATE_SNAPSHOT, pack.snapshot)
            await self._conn.commit()


class SqliteOnTheLoop(AsyncContender):
    """The tale: `sqlite3` called on the loop's own thread, which meanwhile does nothing else."""

    name = "sqlite3-on-loop"

    async def open(self, path: str, synchronous: str) -> None:
        self._conn = connect(path, synchronous)

    async def record(self, pack: Pack) -> None:
        self._conn.execute("BEGIN IMMEDIATE")
        record_pack(self._conn, pack)
        self._conn.execute("COMMIT")
        await asyncio.sleep(0)  # without it no other task would ever run

    async def close(self) -> None:
        self._conn.close()


class AiosqlitePerJob(AsyncContender):
    """The tale: aiosqlite with a connection for each job and the module's own timeout of five seconds."""

    name = "aiosqlite-per-job"
    requires = ("aiosqlite",)
    upload_s: ClassVar[float] = 0.0  # of the pack, between its chunks and its own row

    async def open(self, path: str, synchronous: str) -> None:
        self._where = (path, synchronous)
        self._conns: dict[asyncio.Task[Any] | None, Any] = {}

    async def record(self, pack: Pack) -> None:
        task = asyncio.current_task()
        conn = self._conns.get(task)
        if conn is None:
            conn = self._conns[task] = await connect_aiosqlite(*self._where, timeout=5.0)
        try:
            await conn.executemany(INSERT_CHUNK, pack.chunks)
            if self.upload_s:
                await asyncio.sleep(self.upload_s)
            await conn.execute(INSERT_PACK, pack.pack)
            await conn.execute(UPDATE_SNAPSHOT, pack.snapshot)
            await conn.commit()
        except BaseException:
            await conn.rollback()
            raise

    async def close(self) -> None:
        for conn in self._conns.values():
            await conn.close()


class HeldAcrossUpload(AiosqlitePerJob):
    """The tale: the same, and the transaction stays open while the pack is uploaded, which takes 5 ms."""

    name = "held-across-upload"
    upload_s = 0.005
