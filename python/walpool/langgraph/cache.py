"""`WalpoolCache`: LangGraph's cache of node results in a walpool database. Knows no SQL text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from langgraph.cache.base import BaseCache, FullKey, Namespace, ValueT
from langgraph.checkpoint.serde.base import SerializerProtocol

from walpool.langgraph import _cache_sql as sql
from walpool.langgraph._handles import Handles, Tables

if TYPE_CHECKING:
    from typing_extensions import Self

    from walpool.aio import AsyncPool
    from walpool.pool import Pool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = ["WalpoolCache"]


class WalpoolCache(BaseCache[ValueT]):
    """A LangGraph `BaseCache` in a walpool database, for `compile(cache=...)`.

    One class for both kinds of programs: making one opens nothing; the first plain method opens a `Pool`, the first a*
    method an `AsyncPool` of the same engine. Safe to share between threads, event loops, and processes on one file. An
    entry that has expired is not found, and deleted by a later write.

    Args:
        pool_or_path_or_url: a pool of either kind, which stays yours to close, or a path or URL; None takes
            `WALPOOL_URL`.
        serde: what turns values into bytes; None takes LangGraph's, without pickle.
        **settings: as `walpool.Pool` takes them; only with a path or a URL. A cache may be rebuilt: it is the place
            for `synchronous="normal"` in a file of its own.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.

    The first operation may raise what a `Pool` raises, and NotSupportedError where the table is a newer walpool's.
    """

    def __init__(
        self,
        pool_or_path_or_url: Pool | PostgresPool | AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        serde: SerializerProtocol | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(serde=serde)
        self._handles = Handles(pool_or_path_or_url, [Tables(sql.NAME, sql.MIGRATIONS)], settings)

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Return the values of those keys that are cached and have not expired."""
        if not keys:
            return {}
        read = sql.get(self._handles.backend, keys)
        return self._loaded(read.decode(self._handles.pool().fetch(read.sql, read.params)))

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Return the values of those keys that are cached and have not expired."""
        if not keys:
            return {}
        read = sql.get(self._handles.backend, keys)
        pool = await self._handles.async_pool()
        return self._loaded(read.decode(await pool.fetch(read.sql, read.params)))

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Cache each value for its TTL in seconds, None for good; one job, all of them or none."""
        if job := sql.put(self._handles.backend, self._dumped(pairs)):
            self._handles.pool().batch(job)

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Cache each value for its TTL in seconds, None for good; one job, all of them or none."""
        if job := sql.put(self._handles.backend, self._dumped(pairs)):
            await (await self._handles.async_pool()).batch(job)

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forget what is cached in exactly these namespaces; None forgets everything."""
        self._handles.pool().execute(*sql.clear(self._handles.backend, namespaces))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Forget what is cached in exactly these namespaces; None forgets everything."""
        await (await self._handles.async_pool()).execute(*sql.clear(self._handles.backend, namespaces))

    def close(self) -> None:
        """Give the database back, of both kinds of methods; safe to call twice. A pool that was given stays open.

        On the thread of a running event loop use `aclose`: this waits for what is under way.
        """
        self._handles.close()

    async def aclose(self) -> None:
        """Give the database back, as `close` does, without blocking the event loop."""
        await self._handles.close_async()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _dumped(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> list[sql.Entry]:
        entries = []
        for (namespace, key), (value, ttl) in pairs.items():
            encoding, data = self.serde.dumps_typed(value)
            entries.append(sql.Entry(tuple(namespace), key, encoding, bytes(data), ttl))
        return entries

    def _loaded(self, found: Mapping[FullKey, tuple[str, bytes]]) -> dict[FullKey, ValueT]:
        return {key: self.serde.loads_typed(dumped) for key, dumped in found.items()}


WalpoolCache.__module__ = "walpool.langgraph"
