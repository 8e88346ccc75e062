"""The memory store in SQLite, awaited or not: `_store` with the operations of `_sqlite_sql` and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from walpool.errors import BusyError, CorruptError
from walpool.memory import _sqlite_sql as reads
from walpool.memory import _sqlite_upkeep as upkeep
from walpool.memory import _sqlite_writes as writes
from walpool.memory._sqlite_schema import MIGRATIONS
from walpool.memory._sqlite_search import SqliteFinder
from walpool.memory._store import AsyncStore, Backend, Store

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.pool import Pool

__all__ = ["AsyncSqliteMemoryStore", "SqliteMemoryStore"]

_SQLITE: Final = Backend(
    migrations=MIGRATIONS,
    opened=reads.opened,
    save=writes.save,
    by_id=reads.by_id,
    update=writes.update,
    touch=writes.touch,
    delete=writes.delete,
    listed=reads.listed,
    count=reads.count,
    scopes=reads.scopes,
    categories=reads.categories,
    summary=reads.summary,
    search=SqliteFinder().search,
    expire=writes.expire,
    reset=writes.reset,
    rebuild=upkeep.rebuild,
    dims=reads.dims,
    every=reads.every,
)


class SqliteMemoryStore(Store):
    """A `MemoryStore` in the SQLite file of a pool; see the contract for what its methods promise.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_pool`).
        tenant: whose records they are.
        collection: which of the tenant's collections; each has dims and a word index of its own.
        words: how words are indexed, fixed by the collection's first save: `unicode61` for words, `trigram` for parts
            of words and for scripts without spaces. None takes what the collection has, `unicode61` for a new one.

    Raises:
        ConfigError: the collection was begun with another word index.
        NotSupportedError: the file's memory tables come from a newer walpool.
    """

    def __init__(self, pool: Pool, *, tenant: str = "", collection: str = "memory", words: str | None = None) -> None:
        """Take over `pool` and bring its memory tables up to date."""
        super().__init__(pool, _SQLITE, tenant=tenant, collection=collection, words=words)

    @property
    def pool(self) -> Pool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("Pool", self._pool)

    def compact(self) -> None:
        """Centre the sketches, merge the word index, and move the WAL into the file; never needed."""
        self._write(upkeep.compact(self._space, self._read(upkeep.sample(self._space))))
        with suppress(BusyError):  # another process is at it: what it leaves, the next checkpoint moves
            self._pool.checkpoint("truncate")

    def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        found = self._read(upkeep.differences(self._space))
        try:
            self._write(upkeep.words_check(self._space))
        except CorruptError:
            found.append(upkeep.words_differ(self._space))
        return found


class AsyncSqliteMemoryStore(AsyncStore):
    """An `AsyncMemoryStore` in the SQLite file of a pool: `SqliteMemoryStore`, awaited.

    The first call, or `async with`, brings the memory tables of the file up to date.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_async_pool`).
        tenant: as for `SqliteMemoryStore`.
        collection: as for `SqliteMemoryStore`.
        words: as for `SqliteMemoryStore`.
    """

    def __init__(
        self, pool: AsyncPool, *, tenant: str = "", collection: str = "memory", words: str | None = None
    ) -> None:
        """Take over `pool`."""
        super().__init__(pool, _SQLITE, tenant=tenant, collection=collection, words=words)

    @property
    def pool(self) -> AsyncPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("AsyncPool", self._pool)

    async def compact(self) -> None:
        """Centre the sketches, merge the word index, and move the WAL into the file; never needed."""
        space = await self._ready()
        await self._write(upkeep.compact(space, await self._read(upkeep.sample(space))))
        with suppress(BusyError):  # another process is at it: what it leaves, the next checkpoint moves
            await self._pool.checkpoint("truncate")

    async def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        space = await self._ready()
        found = await self._read(upkeep.differences(space))
        try:
            await self._write(upkeep.words_check(space))
        except CorruptError:
            found.append(upkeep.words_differ(space))
        return found


for _public in (AsyncSqliteMemoryStore, SqliteMemoryStore):
    _public.__module__ = "walpool.memory"
