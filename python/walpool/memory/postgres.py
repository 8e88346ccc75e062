"""The memory store in PostgreSQL, awaited or not: `_store` with the operations of `_postgres_sql` and its neighbours.

Needs psycopg 3, and pgvector on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

from walpool import schema
from walpool.errors import ConfigError, Error, IntegrityError, NotSupportedError, ProgrammingError
from walpool.memory import _postgres_hnsw as hnsw
from walpool.memory import _postgres_sql as reads
from walpool.memory import _postgres_upkeep as upkeep
from walpool.memory import _postgres_writes as writes
from walpool.memory._operations import Result, Statement, Steps
from walpool.memory._postgres_needs import hidden, missing
from walpool.memory._postgres_roles import init_sql, trusted
from walpool.memory._postgres_schema import MIGRATIONS
from walpool.memory._postgres_search import PostgresFinder
from walpool.memory._store import AsyncStore, Backend, Store, drive, drive_async

if TYPE_CHECKING:
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = ["AsyncPostgresMemoryStore", "PostgresMemoryStore", "init_sql", "lacking"]

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
_HNSW: Final = replace(_POSTGRES, search=hnsw.HnswFinder().search)


class PostgresMemoryStore(Store):
    """A `MemoryStore` in the PostgreSQL database of a pool; see the contract for what its methods promise.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_pool`).
        tenant: whose records they are.
        collection: which of the tenant's collections; each has dims and a word index of its own.
        words: how words are indexed, fixed by the collection's first save: `unicode61` for words, `trigram` for parts
            of words and for scripts without spaces. None takes what the collection has, `unicode61` for a new one.
        tenancy: `rls`: row-level security is to hold, and what it needs is looked at first; the pool names the tenant
            (`walpool.get_pool(url, tenant=...)`), and the tables are the owner's to make. None: they are made here.
        index: `hnsw`: searches by cosine go through an HNSW index, which is made as soon as there are dims, and by
            `compact`. None: every search is exact.

    Raises:
        ConfigError: the collection was begun with another word index; `tenancy` or `index` is no such thing; under
            `rls` the pool names another tenant, or the connection's role stands above row-level security; or it stands
            under it without `tenancy`.
        NotSupportedError: the memory tables come from a newer walpool; the server lacks pgvector.
    """

    def __init__(
        self,
        pool: PostgresPool,
        *,
        tenant: str = "",
        collection: str = "memory",
        words: str | None = None,
        tenancy: str | None = None,
        index: str | None = None,
    ) -> None:
        """Take over `pool` and bring its memory tables up to date."""
        self._is_secured = _is_secured(tenancy, tenant, pool)
        super().__init__(pool, _backend(index), tenant=tenant, collection=collection, words=words)
        self._index()

    @property
    def pool(self) -> PostgresPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("PostgresPool", self._pool)

    def compact(self) -> None:
        """Have the server count its rows anew, for its plans; never needed."""
        self._write(upkeep.compact(self._space))
        self._index()

    def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        return self._read(upkeep.differences(self._space))

    def _prepare(self) -> None:
        if not self._is_secured:
            try:
                super()._prepare()
            except (NotSupportedError, ProgrammingError):
                _refuse(_unsupported(self._read(missing()), self.pool.path))
                raise
            _refuse(self._read(hidden(self.tenant, self.pool.path)))
            return
        _refuse(_version_error(schema.version(self.pool, "memory"), self.pool.path))
        _refuse(self._read(trusted(self.pool.path)))

    def _index(self) -> None:
        """Make the index if it is asked for, not the owner's to make, and its dims are known."""
        if self._sql is not _HNSW or self._is_secured:
            return
        if (dims := self._read(reads.dims(self._space))) is not None and dims <= hnsw.MOST_DIMS:
            try:
                self.pool.script(hnsw.statement(dims))
            except (IntegrityError, ProgrammingError):  # another process has made it at that moment, or it may not be
                self.pool.script(hnsw.statement(dims))

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
        tenancy: as for `PostgresMemoryStore`.
        index: as for `PostgresMemoryStore`.
    """

    def __init__(
        self,
        pool: AsyncPostgresPool,
        *,
        tenant: str = "",
        collection: str = "memory",
        words: str | None = None,
        tenancy: str | None = None,
        index: str | None = None,
    ) -> None:
        """Take over `pool`."""
        self._is_secured = _is_secured(tenancy, tenant, pool)
        super().__init__(pool, _backend(index), tenant=tenant, collection=collection, words=words)

    @property
    def pool(self) -> AsyncPostgresPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return cast("AsyncPostgresPool", self._pool)

    async def compact(self) -> None:
        """Have the server count its rows anew, for its plans; never needed."""
        await self._write(upkeep.compact(await self._ready()))
        await self._index()

    async def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        return await self._read(upkeep.differences(await self._ready()))

    async def _prepare(self) -> None:
        if not self._is_secured:
            try:
                await super()._prepare()
            except (NotSupportedError, ProgrammingError):
                _refuse(_unsupported(await self._read(missing()), self.pool.path))
                raise
            _refuse(await self._read(hidden(self.tenant, self.pool.path)))
            await self._index()
            return
        _refuse(_version_error(await schema.version_async(self.pool, "memory"), self.pool.path))
        _refuse(await self._read(trusted(self.pool.path)))

    async def _index(self) -> None:
        """Make the index if it is asked for, not the owner's to make, and its dims are known."""
        if self._sql is not _HNSW or self._is_secured:
            return
        if (dims := await self._read(reads.dims(self._space))) is not None and dims <= hnsw.MOST_DIMS:
            try:
                await self.pool.script(hnsw.statement(dims))
            except (IntegrityError, ProgrammingError):  # another process has made it at that moment, or it may not be
                await self.pool.script(hnsw.statement(dims))

    async def _run(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._read, self._write)

    async def _batch(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return await self.pool.batch(statements, key=_key(self))


def lacking(pool: PostgresPool) -> str | None:
    """Return what a server lacks for the memory tables, in words; None where they are there, or can be made."""
    if schema.version(pool, "memory") == len(MIGRATIONS):
        return None
    read = missing()
    return read.decode(pool.fetch(read.sql, read.params))


def _backend(index: str | None) -> Backend:
    if index not in (None, "hnsw"):
        raise ConfigError(f"index={index!r} is not accepted: use 'hnsw', or None for exact searches")
    return _POSTGRES if index is None else _HNSW


def _is_secured(tenancy: str | None, tenant: str, pool: PostgresPool | AsyncPostgresPool) -> bool:
    if tenancy not in (None, "rls"):
        raise ConfigError(f"tenancy={tenancy!r} is not accepted: use 'rls', or None")
    if tenancy is None:
        return False
    if not tenant:
        raise ConfigError("tenancy='rls' needs a tenant")
    if pool.tenant != tenant:  # the server would show the store no rows, and refuse it all writes
        raise ConfigError(
            f"tenancy='rls': the pool names another tenant than the store, or none; open it with the store's tenant= "
            f"[{pool.path}]"
        )
    return True


def _version_error(found: int, name: str) -> ConfigError | None:
    if found == len(MIGRATIONS):
        return None
    return ConfigError(
        f"tenancy='rls': the memory tables have version {found} and not {len(MIGRATIONS)}; they are the owner's to "
        f"make: have a superuser run walpool pg-init on this database, or what it prints with --print-sql [{name}]"
    )


def _unsupported(what: str | None, name: str) -> NotSupportedError | None:
    return None if what is None else NotSupportedError(f"{what} [{name}]")


def _refuse(reason: Error | None) -> None:
    if reason is not None:
        raise reason


def _key(store: PostgresMemoryStore | AsyncPostgresMemoryStore) -> str:
    """Return the key of a job: groups of several processes lock the rows of spaces in one order."""
    return f"{store.tenant}\0{store.collection}"


for _public in (AsyncPostgresMemoryStore, PostgresMemoryStore):
    _public.__module__ = "walpool.memory"
