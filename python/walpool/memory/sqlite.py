"""The memory store on a walpool pool, awaited or not: driving the operations of `_sqlite_sql` and its neighbours.

A read sees one snapshot, a write is one job. Knows no SQL text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from walpool import schema
from walpool.errors import BusyError, ConfigError, CorruptError, Error, IntegrityError
from walpool.memory import _html
from walpool.memory import _sqlite_search as searches
from walpool.memory import _sqlite_sql as reads
from walpool.memory import _sqlite_upkeep as upkeep
from walpool.memory import _sqlite_writes as writes
from walpool.memory._sqlite_filters import Space
from walpool.memory._sqlite_rows import Read, Steps, Write
from walpool.memory._sqlite_schema import MIGRATIONS
from walpool.memory.records import (
    Changes,
    Hits,
    Metric,
    Mode,
    Query,
    Record,
    Records,
    ScopeSummary,
    Weights,
)  # fmt: skip

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from walpool.aio import AsyncPool, AsyncSnapshot, AsyncTransaction
    from walpool.pool import Pool, Snapshot, Transaction

__all__ = ["AsyncSqliteMemoryStore", "SqliteMemoryStore"]

T = TypeVar("T")
_ALL: Final = Query()
_EVEN: Final = Weights()


class SqliteMemoryStore:
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
        self._pool = pool
        space = reads.space(tenant, collection, words)
        schema.migrate(pool, "memory", MIGRATIONS)
        self._space = _opened(self._read(reads.opened(space, words)))

    @property
    def pool(self) -> Pool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return self._pool

    @property
    def tenant(self) -> str:
        """Whose records they are."""
        return self._space.tenant

    @property
    def collection(self) -> str:
        """Which of the tenant's collections."""
        return self._space.collection

    def save(self, records: Iterable[Record]) -> None:
        """Insert the records, or replace those whose ids exist; one job."""
        self._write(writes.save(self._space, list(records)))

    def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        return self._read(reads.by_id(self._space, record_id))

    def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool:
        """Change the named fields of one record; return whether there is such a record."""
        return self._write(writes.update(self._space, record_id, changes))

    def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int:
        """Set `accessed_at` of the records with these ids, to now by default; return how many there were."""
        return self._write(writes.touch(self._space, record_ids, at or _now()))

    def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were."""
        return self._write(writes.delete(self._space, query))

    def list(self, query: Query = _ALL, *, limit: int = 200, offset: int = 0, after: str | None = None) -> Records:
        """Return the records that meet `query`, newest first."""
        if limit <= 0 or offset < 0:
            return Records()
        return self._read(reads.listed(self._space, query, limit=limit, offset=offset, after=after))

    def count(self, query: Query = _ALL) -> int:
        """Return how many records meet `query`."""
        return self._read(reads.count(self._space, query))

    def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]:
        """Return the scopes one level below `parent`, or all below it, each with its number of records."""
        return self._read(reads.scopes(self._space, parent, deep=deep))

    def categories(self, query: Query = _ALL) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records."""
        return self._read(reads.categories(self._space, query))

    def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        return self._read(reads.summary(self._space, scope))

    def search(
        self,
        embedding: bytes | None = None,
        query: Query = _ALL,
        *,
        text: str | None = None,
        fts: str | None = None,
        mode: Mode | None = None,
        metric: Metric = "cosine",
        weights: Weights = _EVEN,
        limit: int = 10,
        min_score: float | None = None,
        marks: tuple[str, str] = ("[", "]"),
        after: str | None = None,
    ) -> Hits:
        """Return the records that go best with `embedding`, with `text` or with both, among those that meet `query`."""
        search = reads.Search(embedding, query, text, fts, mode, metric, weights, limit, min_score, marks, after)
        return Hits() if limit <= 0 else self._read(searches.search(self._space, search))

    def expire(
        self,
        query: Query = _ALL,
        *,
        older_than: timedelta | None = None,
        keep: int | None = None,
        importance_below: float | None = None,
    ) -> int:
        """Delete the records that meet `query` and each condition given; return how many there were."""
        return self._write(
            writes.expire(self._space, query, older_than=older_than, keep=keep, importance_below=importance_below)
        )

    def reset(self) -> None:
        """Delete every record and forget the dims."""
        self._write(writes.reset(self._space))

    def compact(self) -> None:
        """Centre the sketches, merge the word index, and move the WAL into the file; never needed."""
        self._write(upkeep.compact(self._space, self._read(upkeep.sample(self._space))))
        with suppress(BusyError):  # another process is at it: what it leaves, the next checkpoint moves
            self._pool.checkpoint("truncate")

    def rebuild(self) -> None:
        """Make all that is derived anew from the records; one job."""
        self._write(upkeep.rebuild(self._space))

    def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        found = self._read(upkeep.differences(self._space))
        try:
            self._write(upkeep.words_check(self._space))
        except CorruptError:
            found.append(upkeep.words_differ(self._space))
        return found

    def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        return self._read(reads.dims(self._space))

    def close(self) -> None:
        """Give the database back; safe to call twice."""
        self._pool.close()

    def iterate(self, query: Query = _ALL, *, chunk: int = 500) -> Iterator[Record]:
        """Iterate over the records that meet `query`, oldest first, in one snapshot of its own.

        It is taken back after `transaction_timeout`: give the pool a longer one for long exports.
        """
        sql, params, decode = reads.every(self._space, query)
        with self._pool.stream(sql, params, chunk=chunk) as rows:
            yield from (record for row in rows if (record := decode(row)) is not None)

    def _read(self, operation: Read[T] | Steps[T]) -> T:
        if isinstance(operation, Read):
            return operation.decode(self._pool.fetch(operation.sql, operation.params))
        with self._pool.read() as snapshot:
            return _drive(operation, snapshot)

    def _write(self, operation: Write[T] | Steps[T]) -> T:
        if not isinstance(operation, Write):
            return self._pool.run(lambda tx: _drive(operation, tx))
        if not operation.statements:
            return operation.decode(())
        try:
            return operation.decode(self._pool.batch(operation.statements))
        except IntegrityError as error:
            if operation.refusal is None or (reason := self._read(operation.refusal)) is None:
                raise
            raise reason from error

    def __repr__(self) -> str:
        return _described(self)

    def _repr_html_(self) -> str:
        """Return the scopes as a table for a notebook, or what is the matter."""
        try:
            return _html.store(repr(self), self.scopes(deep=True), self.count())
        except Error as error:
            return _html.unread(repr(self), str(error))

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()


class AsyncSqliteMemoryStore:
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
        self._pool = pool
        self._space = reads.space(tenant, collection, words)
        self._words = words
        self._is_ready = False

    @property
    def pool(self) -> AsyncPool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return self._pool

    @property
    def tenant(self) -> str:
        """Whose records they are."""
        return self._space.tenant

    @property
    def collection(self) -> str:
        """Which of the tenant's collections."""
        return self._space.collection

    async def save(self, records: Iterable[Record]) -> None:
        """Insert the records, or replace those whose ids exist; one job."""
        await self._write(writes.save(await self._ready(), list(records)))

    async def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        return await self._read(reads.by_id(await self._ready(), record_id))

    async def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool:
        """Change the named fields of one record; return whether there is such a record."""
        return await self._write(writes.update(await self._ready(), record_id, changes))

    async def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int:
        """Set `accessed_at` of the records with these ids, to now by default; return how many there were."""
        return await self._write(writes.touch(await self._ready(), record_ids, at or _now()))

    async def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were."""
        return await self._write(writes.delete(await self._ready(), query))

    async def list(
        self, query: Query = _ALL, *, limit: int = 200, offset: int = 0, after: str | None = None
    ) -> Records:
        """Return the records that meet `query`, newest first."""
        if limit <= 0 or offset < 0:
            return Records()
        return await self._read(reads.listed(await self._ready(), query, limit=limit, offset=offset, after=after))

    async def count(self, query: Query = _ALL) -> int:
        """Return how many records meet `query`."""
        return await self._read(reads.count(await self._ready(), query))

    async def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]:
        """Return the scopes one level below `parent`, or all below it, each with its number of records."""
        return await self._read(reads.scopes(await self._ready(), parent, deep=deep))

    async def categories(self, query: Query = _ALL) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records."""
        return await self._read(reads.categories(await self._ready(), query))

    async def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        return await self._read(reads.summary(await self._ready(), scope))

    async def search(
        self,
        embedding: bytes | None = None,
        query: Query = _ALL,
        *,
        text: str | None = None,
        fts: str | None = None,
        mode: Mode | None = None,
        metric: Metric = "cosine",
        weights: Weights = _EVEN,
        limit: int = 10,
        min_score: float | None = None,
        marks: tuple[str, str] = ("[", "]"),
        after: str | None = None,
    ) -> Hits:
        """Return the records that go best with `embedding`, with `text` or with both, among those that meet `query`."""
        search = reads.Search(embedding, query, text, fts, mode, metric, weights, limit, min_score, marks, after)
        return Hits() if limit <= 0 else await self._read(searches.search(await self._ready(), search))

    async def expire(
        self,
        query: Query = _ALL,
        *,
        older_than: timedelta | None = None,
        keep: int | None = None,
        importance_below: float | None = None,
    ) -> int:
        """Delete the records that meet `query` and each condition given; return how many there were."""
        return await self._write(
            writes.expire(
                await self._ready(), query, older_than=older_than, keep=keep, importance_below=importance_below
            )
        )

    async def reset(self) -> None:
        """Delete every record and forget the dims."""
        await self._write(writes.reset(await self._ready()))

    async def compact(self) -> None:
        """Centre the sketches, merge the word index, and move the WAL into the file; never needed."""
        space = await self._ready()
        await self._write(upkeep.compact(space, await self._read(upkeep.sample(space))))
        with suppress(BusyError):  # another process is at it: what it leaves, the next checkpoint moves
            await self._pool.checkpoint("truncate")

    async def rebuild(self) -> None:
        """Make all that is derived anew from the records; one job."""
        await self._write(upkeep.rebuild(await self._ready()))

    async def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store."""
        space = await self._ready()
        found = await self._read(upkeep.differences(space))
        try:
            await self._write(upkeep.words_check(space))
        except CorruptError:
            found.append(upkeep.words_differ(space))
        return found

    async def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        return await self._read(reads.dims(await self._ready()))

    async def close(self) -> None:
        """Give the database back; safe to call twice."""
        await self._pool.close()

    async def iterate(self, query: Query = _ALL, *, chunk: int = 500) -> AsyncIterator[Record]:
        """Iterate over the records that meet `query`, oldest first, in one snapshot of its own.

        It is taken back after `transaction_timeout`: give the pool a longer one for long exports.
        """
        sql, params, decode = reads.every(await self._ready(), query)
        rows = self._pool.stream(sql, params, chunk=chunk)
        try:
            async for row in rows:
                if (record := decode(row)) is not None:
                    yield record
        finally:
            await rows.aclose()

    async def _ready(self) -> Space:
        """Bring the tables up to date; tasks that begin at once may all do so, and all but one find nothing to do."""
        if not self._is_ready:
            await schema.migrate_async(self._pool, "memory", MIGRATIONS)
            opened = reads.opened(self._space, self._words)
            self._space = _opened(opened.decode(await self._pool.fetch(opened.sql, opened.params)))
            self._is_ready = True
        return self._space

    async def _read(self, operation: Read[T] | Steps[T]) -> T:
        if isinstance(operation, Read):
            return operation.decode(await self._pool.fetch(operation.sql, operation.params))
        async with self._pool.read() as snapshot:
            return await _drive_async(operation, snapshot)

    async def _write(self, operation: Write[T] | Steps[T]) -> T:
        if not isinstance(operation, Write):
            return await self._pool.run(lambda tx: _drive_async(operation, tx))
        if not operation.statements:
            return operation.decode(())
        try:
            return operation.decode(await self._pool.batch(operation.statements))
        except IntegrityError as error:
            if operation.refusal is None or (reason := await self._read(operation.refusal)) is None:
                raise
            raise reason from error

    def __repr__(self) -> str:
        return _described(self)

    async def __aenter__(self) -> Self:
        """Return the store, its tables up to date."""
        await self._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()


for _public in (AsyncSqliteMemoryStore, SqliteMemoryStore):
    _public.__module__ = "walpool.memory"


def _drive(steps: Steps[T], held: Snapshot | Transaction) -> T:
    """Run the steps of an operation on what is held open, and return its answer."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        if isinstance(step, Read):
            answer = step.decode(held.fetch(step.sql, step.params))
        else:
            answer = step.decode([held.execute(*statement) for statement in step.statements])  # type: ignore[union-attr]


async def _drive_async(steps: Steps[T], held: AsyncSnapshot | AsyncTransaction) -> T:
    """As `_drive`, awaited."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        if isinstance(step, Read):
            answer = step.decode(await held.fetch(step.sql, step.params))
        else:
            answer = step.decode([await held.execute(*s) for s in step.statements])  # type: ignore[union-attr]


def _described(store: SqliteMemoryStore | AsyncSqliteMemoryStore) -> str:
    tenant = f" of {store.tenant!r}" if store.tenant else ""
    return f"<walpool.memory.{type(store).__name__} {store.collection!r}{tenant} on {store.pool!r}>"


def _opened(found: Space | ConfigError) -> Space:
    if isinstance(found, ConfigError):
        raise found
    return found


def _now() -> datetime:
    return datetime.now(timezone.utc)
