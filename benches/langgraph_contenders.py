"""LangGraph's checkpointers: its own AsyncSqliteSaver, one that commits in groups in pure Python, and walpool's.

Owns how each is opened and closed. Must not know what a workload asks of it: all share LangGraph's interface.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from benches.contenders import BUSY_TIMEOUT_S, CACHE_KIB, STATEMENT_CACHE, Row, Walpool, connect
from benches.harness import by_name

Statement = tuple[str, Sequence[Sequence[Any]]]  # SQL, and a row of parameters for each time that it is run


class Saver(Protocol):
    """One checkpointer."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]

    def opened(self, path: Path, synchronous: str) -> AbstractAsyncContextManager[Any]:
        """Yield LangGraph's object on a file that is not there yet; afterwards nothing of it is open or runs."""
        raise NotImplementedError


class StockSaver(Saver):
    """LangGraph's own: one connection of aiosqlite, a lock around each call, the whole state in each checkpoint."""

    name = "langgraph"
    requires = ("langgraph.checkpoint.sqlite.aio", "aiosqlite")

    @asynccontextmanager
    async def opened(self, path: Path, synchronous: str) -> AsyncIterator[Any]:
        import aiosqlite
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S, cached_statements=STATEMENT_CACHE) as conn:
            await conn.execute(f"PRAGMA synchronous = {synchronous}")
            await conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            saver = AsyncSqliteSaver(conn)
            await saver.setup()
            yield saver


class WalpoolSaver(Saver):
    """walpool's, with its default settings, but for `synchronous`."""

    name = "walpool"
    requires = ("walpool.langgraph",)

    @asynccontextmanager
    async def opened(self, path: Path, synchronous: str) -> AsyncIterator[Any]:
        from walpool.langgraph import AsyncWalpoolSaver

        async with AsyncWalpoolSaver(path, synchronous=synchronous) as saver:
            yield saver
            Walpool.last_stats = await saver.pool.stats()


class WriterThreadSaver(Saver):
    """Group commit in pure Python, the honest baseline: one thread that writes, four that read."""

    name = "writer-thread"
    requires = ("langgraph.checkpoint.base",)

    @asynccontextmanager
    async def opened(self, path: Path, synchronous: str) -> AsyncIterator[Any]:
        with sqlite3.connect(path) as conn:
            conn.executescript(f"PRAGMA journal_mode = WAL; {_SCHEMA}")
        conn.close()
        writer, readers = GroupWriter(str(path), synchronous), Readers(str(path), synchronous)
        try:
            yield group_saver(writer, readers)
        finally:
            readers.close()
            writer.close()


# The tables of langgraph-checkpoint-sqlite.
_SCHEMA = """
CREATE TABLE checkpoints (
    thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
    parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id));
CREATE TABLE writes (
    thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', checkpoint_id TEXT NOT NULL,
    task_id TEXT NOT NULL, task_path TEXT NOT NULL DEFAULT '', idx INTEGER NOT NULL, channel TEXT NOT NULL,
    type TEXT, value BLOB, PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx));
"""
_PUT = "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?)"
_PUT_WRITE = "INSERT OR IGNORE INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_GET = """SELECT checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata FROM checkpoints
    WHERE thread_id = ? AND checkpoint_ns = ? ORDER BY checkpoint_id DESC LIMIT 1"""
_GET_WRITES = """SELECT task_id, channel, type, value FROM writes
    WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? ORDER BY task_path, task_id, idx"""


class GroupWriter:
    """One thread with one connection: what waits is one transaction; its loop is woken once for a group's answers."""

    max_group: ClassVar[int] = 512  # jobs, as walpool

    def __init__(self, path: str, synchronous: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Statement, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._conn = connect(path, synchronous)
        self._thread = threading.Thread(target=self._write, name="bench-writer")
        self._thread.start()

    def run(self, sql: str, rows: Sequence[Sequence[Any]]) -> asyncio.Future[None]:
        """Return a future that is done when the statement is committed for all of its rows."""
        future = self._loop.create_future()
        self._jobs.put(((sql, rows), future))
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._conn.close()

    def _write(self) -> None:
        jobs = self._jobs
        while (first := jobs.get()) is not None:
            group = [first]
            for _ in range(min(jobs.qsize(), self.max_group - 1)):  # the only consumer: what is counted is there
                job = jobs.get_nowait()
                if job is None:
                    jobs.put(None)  # the end, for the loop above, after this group
                    break
                group.append(job)
            answers = self._commit([statement for statement, _ in group])
            self._loop.call_soon_threadsafe(_answer, [future for _, future in group], answers)

    def _commit(self, statements: list[Statement]) -> list[Exception | None]:
        """Commit statements together; if that fails, each on its own, so that one fails alone."""
        try:
            self._transaction(statements)
        except sqlite3.Error as error:
            if len(statements) == 1:
                return [error]
            return [answer for statement in statements for answer in self._commit([statement])]
        return [None] * len(statements)

    def _transaction(self, statements: list[Statement]) -> None:
        execute = self._conn.execute
        try:
            execute("BEGIN IMMEDIATE")
            for sql, rows in statements:
                for row in rows:
                    execute(sql, row)
            execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                execute("ROLLBACK")
            raise


def _answer(futures: list[asyncio.Future[None]], answers: list[Exception | None]) -> None:
    for future, error in zip(futures, answers, strict=True):
        if future.done():
            continue  # its task was cancelled
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class Readers:
    """Four threads, each with a connection of its own."""

    def __init__(self, path: str, synchronous: str) -> None:
        self._local = threading.local()
        self._where = (path, synchronous)
        self._opened: list[sqlite3.Connection] = []
        self._threads = ThreadPoolExecutor(4, "bench-reader", initializer=self._open)

    def run(self, query: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        """Call `query` with a connection on one of the threads."""
        return asyncio.get_running_loop().run_in_executor(self._threads, lambda: query(self._local.conn))

    def close(self) -> None:
        self._threads.shutdown()
        for conn in self._opened:
            conn.close()

    def _open(self) -> None:
        self._local.conn = connect(*self._where)
        self._opened.append(self._local.conn)


def _read(conn: sqlite3.Connection, thread_id: str, checkpoint_ns: str) -> tuple[Row, list[Row]] | None:
    """Read a thread's latest checkpoint and its writes: one hop to the thread for both."""
    row = conn.execute(_GET, (thread_id, checkpoint_ns)).fetchone()
    return None if row is None else (row, conn.execute(_GET_WRITES, (thread_id, checkpoint_ns, row[0])).fetchall())


def group_saver(writer: GroupWriter, readers: Readers) -> Any:
    """Return a checkpointer on a writer and readers: as much of LangGraph's interface as the workloads call."""
    from langgraph.checkpoint.base import (
        WRITES_IDX_MAP,
        BaseCheckpointSaver,
        CheckpointTuple,
        get_checkpoint_metadata,
    )

    class GroupSaver(BaseCheckpointSaver[str]):
        def get_next_version(self, current: str | None, channel: None) -> str:
            return f"{1 if current is None else int(current) + 1:032}"

        async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
            at = config["configurable"]
            key = (at["thread_id"], at["checkpoint_ns"], checkpoint["id"])
            typed = self.serde.dumps_typed(checkpoint)
            told = json.dumps(get_checkpoint_metadata(config, metadata), ensure_ascii=False).encode("utf-8", "ignore")
            await writer.run(_PUT, [(*key, at.get("checkpoint_id"), *typed, told)])
            return _config(*key)

        async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            at = config["configurable"]
            key = (at["thread_id"], at["checkpoint_ns"], at["checkpoint_id"], task_id, task_path)
            dumps, special = self.serde.dumps_typed, WRITES_IDX_MAP
            rows = [
                (*key, special.get(channel, idx), channel, *dumps(value)) for idx, (channel, value) in enumerate(writes)
            ]
            await writer.run(_PUT_WRITE, rows)

        async def aget_tuple(self, config: Any) -> Any:
            thread_id, ns = config["configurable"]["thread_id"], config["configurable"]["checkpoint_ns"]
            found = await readers.run(lambda conn: _read(conn, thread_id, ns))
            if found is None:
                return None
            (checkpoint_id, parent_id, type_, checkpoint, metadata), writes = found
            loads = self.serde.loads_typed
            return CheckpointTuple(
                _config(thread_id, ns, checkpoint_id),
                loads((type_, checkpoint)),
                json.loads(metadata),
                None if parent_id is None else _config(thread_id, ns, parent_id),
                [(task_id, channel, loads((kind, value))) for task_id, channel, kind, value in writes],
            )

    return GroupSaver()


def _config(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}


SAVERS = by_name(StockSaver, WriterThreadSaver, WalpoolSaver)
SIZES = by_name(StockSaver, WalpoolSaver)
