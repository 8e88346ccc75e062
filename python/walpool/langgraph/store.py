"""`WalpoolStore` and `AsyncWalpoolStore`: LangGraph's long-term memory in a walpool database. Knows no SQL text."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from langgraph.store.base import BaseStore, IndexConfig, Op, Result, TTLConfig

from walpool.errors import ReadOnlyError
from walpool.langgraph import _store_dialects
from walpool.langgraph import _store_sql as sql
from walpool.langgraph._handles import Handles
from walpool.langgraph._steps import Statement, run, run_async
from walpool.langgraph._store_batch import Batch
from walpool.langgraph._store_dialects import ITEMS, VECTORS
from walpool.langgraph._store_index import Index

if TYPE_CHECKING:
    from typing_extensions import Self

    from walpool.aio import AsyncPool
    from walpool.pool import Pool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = ["AsyncWalpoolStore", "WalpoolStore"]

_SWEPT_AT_ONCE: Final = 1000  # expired items a job deletes at most: other writers wait meanwhile


class _Store(BaseStore):
    """What the two stores have in common: both kinds of methods, on pools that share one engine."""

    supports_ttl = True

    __slots__ = ("_handles", "_index", "_next_sweep", "_sql", "_sweep_lock", "ttl_config")

    def __init__(
        self,
        pool_or_path_or_url: Pool | PostgresPool | AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        **settings: Any,
    ) -> None:
        tables = [ITEMS, VECTORS] if index else [ITEMS]
        self._handles = Handles(pool_or_path_or_url, tables, settings)
        self._sql = _store_dialects.of(self._handles.backend)
        self._index = Index(index) if index else None
        self.ttl_config = ttl
        self._next_sweep = 0.0  # monotonic seconds
        self._sweep_lock = threading.Lock()  # guards it; held for an instant

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Return the answers of several operations, in order.

        The reads see one snapshot, from before the batch; the writes are one job, durable when this returns. Texts are
        embedded before either, outside of any transaction.

        Raises:
            InvalidNamespaceError: a label is empty, no text, or holds a period.
            ValueError: a filter or a match condition is none.
            TypeError, DataError: a value has no JSON form, or is nested too deep.
            EmbeddingError: the embedding function answered with something that is no embedding of the configured dims.
            WriteTimeout, BusyError, QueueFull, CheckoutTimeout: its turn did not come; nothing was written (retryable).
            StorageError: the disk refused; see `.outcome`.
        """
        batch = self._batch(ops)
        queries, embeddings = self._embed(batch)
        pool = self._handles.pool()
        results: list[Result] = [None] * len(batch)
        if batch.is_one_read:
            results = run(pool, batch.reads(queries))
        elif batch.has_reads:
            with pool.read() as snapshot:
                results = run(snapshot, batch.reads(queries))
        if job := self._job(batch, embeddings):
            with _may_fail(batch):
                pool.batch(job)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Return the answers of several operations, in order; see `batch`."""
        batch = self._batch(ops)
        queries, embeddings = await self._embed_async(batch)
        pool = await self._handles.async_pool()
        results: list[Result] = [None] * len(batch)
        if batch.is_one_read:
            results = await run_async(pool, batch.reads(queries))
        elif batch.has_reads:
            async with pool.read() as snapshot:
                results = await run_async(snapshot, batch.reads(queries))
        if job := self._job(batch, embeddings):
            with _may_fail(batch):
                await pool.batch(job)
        return results

    def _batch(self, ops: Iterable[Op]) -> Batch:
        return Batch(self._sql, ops, self._index, omit_expired=bool((self.ttl_config or {}).get("omit_expired")))

    def _job(self, batch: Batch, embeddings: Mapping[str, bytes]) -> list[Statement]:
        return batch.job(embeddings, sweep=_SWEPT_AT_ONCE if batch.has_puts and self._is_sweep_due() else 0)

    def _is_sweep_due(self) -> bool:
        """Return whether the sweep interval has passed since this was last true."""
        minutes = (self.ttl_config or {}).get("sweep_interval_minutes")
        if minutes is None:
            return False
        now = time.monotonic()
        with self._sweep_lock:
            if now < self._next_sweep:
                return False
            self._next_sweep = now + minutes * 60
        return True

    def _embed(self, batch: Batch) -> tuple[Mapping[str, bytes], Mapping[str, bytes]]:
        """Return the embeddings of the batch's queries and texts."""
        index = self._index
        if index is None:
            return {}, {}
        queries = {query: index.pack(index.embeddings.embed_query(query)) for query in batch.queries}
        texts = batch.texts
        return queries, index.pack_all(texts, index.embeddings.embed_documents(texts)) if texts else {}

    async def _embed_async(self, batch: Batch) -> tuple[Mapping[str, bytes], Mapping[str, bytes]]:
        index = self._index
        if index is None:
            return {}, {}
        found = await asyncio.gather(*(index.embeddings.aembed_query(query) for query in batch.queries))
        queries = {query: index.pack(embedding) for query, embedding in zip(batch.queries, found, strict=True)}
        texts = batch.texts
        return queries, index.pack_all(texts, await index.embeddings.aembed_documents(texts)) if texts else {}


class WalpoolStore(_Store):
    """A LangGraph `BaseStore` in a walpool database, for synchronous programs.

    Safe to share between threads and with other users of the file. What a put wrote is durable when it returns, if
    the pool's `synchronous` is `full`. The a* methods work too, on an `AsyncPool` of the same engine.

    Values are kept as JSON: tuples come back as lists. `search` without a query gives the items put last first;
    with one, the nearest first, then those that have no vector. `created_at` is when the key was first put.

    Args:
        pool_or_path_or_url: a pool of either kind, which stays yours to close, or a path or URL; None takes
            `WALPOOL_URL`.
        index: LangGraph's index configuration: `dims`, `embed`, `fields`; None stores no vectors.
        ttl: LangGraph's TTL configuration: `default_ttl` and `refresh_on_read` as documented there; `omit_expired`
            hides at once what has expired; with `sweep_interval_minutes`, a put deletes up to 1000 expired items on its
            way, when so much time has passed since one last did. Nothing runs in the background.
        **settings: as `walpool.Pool` takes them; only with a path or a URL.

    Attributes:
        ttl_config: `ttl`, as given.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.
        NotSupportedError: the tables come from a newer walpool; or an index on a PostgreSQL without pgvector.
        StorageError, OperationalError: the database cannot be opened.
    """

    __slots__ = ()

    def __init__(
        self,
        pool_or_path_or_url: Pool | PostgresPool | AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(pool_or_path_or_url, index=index, ttl=ttl, **settings)
        try:
            self._handles.pool()
        except BaseException:
            self._handles.close()
            raise

    @classmethod
    @contextmanager
    def from_conn_string(cls, conn_string: str, **options: Any) -> Iterator[WalpoolStore]:
        """Yield a store on a path or URL and close it at the end of the block.

        Args:
            conn_string: a path, a `walpool://` or `postgresql://` URL, or `:memory:`.
            **options: as the class takes them.
        """
        with cls(conn_string, **options) as store:
            yield store

    def setup(self) -> None:
        """Do nothing: the tables are made when the store is. Other stores must be set up, so it may be called."""

    def sweep_ttl(self) -> int:
        """Delete what has expired, in jobs of a thousand items; return how many there were."""
        pool = self._handles.pool()
        swept = 0
        while deleted := pool.execute(*self._sql.sweep(sql.now(), _SWEPT_AT_ONCE)).rowcount:
            swept += deleted
        return swept

    def close(self) -> None:
        """Give the database back; safe to call twice. A pool that was given stays open."""
        self._handles.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncWalpoolStore(_Store):
    """A LangGraph `BaseStore` in a walpool database, for programs on an event loop.

    As `WalpoolStore`, but that making one opens nothing: the first operation does, without blocking the loop. It may be
    used from several loops and tasks. The synchronous methods are for other threads, where LangGraph runs synchronous
    nodes: they use a `Pool` of the same engine.

    Args:
        pool_or_path_or_url: a pool of either kind, which stays yours to close, or a path or URL; None takes
            `WALPOOL_URL`.
        index: as for `WalpoolStore`; an asynchronous embedding function serves the asynchronous methods only.
        ttl: as for `WalpoolStore`.
        **settings: as `walpool.AsyncPool` takes them; only with a path or a URL.

    Attributes:
        ttl_config: `ttl`, as given.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.
    """

    __slots__ = ()

    def __init__(
        self,
        pool_or_path_or_url: Pool | PostgresPool | AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(pool_or_path_or_url, index=index, ttl=ttl, **settings)

    @classmethod
    @asynccontextmanager
    async def from_conn_string(cls, conn_string: str, **options: Any) -> AsyncIterator[AsyncWalpoolStore]:
        """Yield a store on a path or URL and close it at the end of the block.

        Args:
            conn_string: a path, a `walpool://` or `postgresql://` URL, or `:memory:`.
            **options: as the class takes them.
        """
        async with cls(conn_string, **options) as store:
            yield store

    async def setup(self) -> None:
        """Make the tables, which the first operation does as well: other stores must be set up, so it may be called."""
        await self._handles.async_pool()

    async def sweep_ttl(self) -> int:
        """Delete what has expired, in jobs of a thousand items; return how many there were."""
        pool = await self._handles.async_pool()
        swept = 0
        while deleted := (await pool.execute(*self._sql.sweep(sql.now(), _SWEPT_AT_ONCE))).rowcount:
            swept += deleted
        return swept

    async def close(self) -> None:
        """Give the database back; safe to call twice. A pool that was given stays open."""
        await self._handles.close_async()

    async def __aenter__(self) -> Self:
        try:
            await self._handles.async_pool()
        except BaseException:
            await self._handles.close_async()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _may_fail(batch: Batch) -> AbstractContextManager[None]:
    """Let go of a job that a retired file refuses, where it writes no more than the TTLs of what was read."""
    return nullcontext() if batch.has_puts else suppress(ReadOnlyError)


WalpoolStore.__module__ = "walpool.langgraph"
AsyncWalpoolStore.__module__ = "walpool.langgraph"
