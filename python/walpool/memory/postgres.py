"""The memory store in PostgreSQL, awaited or not: `_store` with the operations of `_postgres_sql` and its neighbours.

Needs psycopg 3, and pgvector on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar, cast

from walpool.memory import _postgres_sql as reads
from walpool.memory import _postgres_upkeep as upkeep
from walpool.memory import _postgres_writes as writes
from walpool.memory._operations import Result, Statement, Steps
from walpool.memory._postgres_schema import MIGRATIONS
from walpool.memory._postgres_search import PostgresFinder
from walpool.memory._store import AsyncStore, Backend, Store, drive, drive_async

if TYPE_CHECKING:
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = ["AsyncPostgresMemoryStore", "PostgresMemoryStore"]

T = TypeVar("T")

_POSTGRES: Final = Backend(
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
    search=PostgresFinder().search,
    expire=writes.expire,
    reset=writes.reset,
    rebuild=upkeep.rebuild,
    dims=reads.dims,
    every=reads.every,
)


class PostgresMemoryStore(Store):
    """A `MemoryStore` in the PostgreSQL database of a pool; see the contract for what its methods promise.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_pool`).
        tenant: whose records they are.
        collection: which of the tenant's collections; each has dims and a word index of its own.
        words: how words are indexed, fixed by the collection's first save: `unicode61` for words, `trigram` for parts
            of words and for scripts without spaces. None takes what the collection has, `unicode61` for a new one.

    Raises:
        ConfigError: the collection was begun with another word index.
        NotSupportedError: the memory tables come from a newer walpool; the server lacks pgvector.
    """

    def __init__(
        self, pool: PostgresPool, *, tenant: str = "", collection: str = "memory", words: str | None = None
    ) -> None:
        """Take over `pool` and bring its memory tables up to date."""
        super().__init__(pool, _POSTGRES, tenant=tenant, collection=collection, words=words)

    @property
    def pool(self) -> PostgresPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("PostgresPool", self._pool)

    def compact(self) -> None:
        """Have the server count its rows anew, for its plans; never needed."""
        self._write(upkeep.compact(self._space))

    def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        return self._read(upkeep.differences(self._space))

    def _run(self, steps: Steps[T]) -> T:
        """Run steps each in a transaction of its own: in one of them all, whoever writes beside it would undo it."""
        return drive(steps, self._read, self._write)

    def _batch(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return self.pool.batch(statements, key=_key(self))


class AsyncPostgresMemoryStore(AsyncStore):
    """An `AsyncMemoryStore` in the PostgreSQL database of a pool: `PostgresMemoryStore`, awaited.

    The first call, or `async with`, brings the memory tables up to date.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_async_pool`).
        tenant: as for `PostgresMemoryStore`.
        collection: as for `PostgresMemoryStore`.
        words: as for `PostgresMemoryStore`.
    """

    def __init__(
        self, pool: AsyncPostgresPool, *, tenant: str = "", collection: str = "memory", words: str | None = None
    ) -> None:
        """Take over `pool`."""
        super().__init__(pool, _POSTGRES, tenant=tenant, collection=collection, words=words)

    @property
    def pool(self) -> AsyncPostgresPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("AsyncPostgresPool", self._pool)

    async def compact(self) -> None:
        """Have the server count its rows anew, for its plans; never needed."""
        await self._write(upkeep.compact(await self._ready()))

    async def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        return await self._read(upkeep.differences(await self._ready()))

    async def _run(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._read, self._write)

    async def _batch(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return await self.pool.batch(statements, key=_key(self))


def _key(store: PostgresMemoryStore | AsyncPostgresMemoryStore) -> str:
    """Return the key of a job: groups of several processes lock the rows of spaces in one order."""
    return f"{store.tenant}\0{store.collection}"


for _public in (AsyncPostgresMemoryStore, PostgresMemoryStore):
    _public.__module__ = "walpool.memory"
