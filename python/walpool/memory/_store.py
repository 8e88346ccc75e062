"""The memory store on a walpool pool, awaited or not, whatever the backend: its operations are handed in.

A read sees one snapshot, a write is one job. Knows no SQL text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

from walpool import schema
from walpool.errors import ConfigError, Error, IntegrityError
from walpool.memory import _html
from walpool.memory import _operations as operations
from walpool.memory._operations import Read, Result, Search, Space, Statement, Steps, Write
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
from walpool.types import Row, Value

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["AsyncStore", "Backend", "Store", "drive", "drive_async"]

T = TypeVar("T")
_ALL: Final = Query()
_EVEN: Final = Weights()

Reading: TypeAlias = "Read[T] | Steps[T]"
Writing: TypeAlias = "Write[T] | Steps[T]"
Every: TypeAlias = tuple[str, Sequence[Value], Callable[[Row], "Record | None"]]
"""The statement of all records of a query, and what makes a record of a row, None of one that does not meet it."""


class Expire(Protocol):
    """See `Backend.expire`."""

    def __call__(
        self,
        space: Space,
        query: Query,
        *,
        older_than: timedelta | None,
        keep: int | None,
        importance_below: float | None,
    ) -> Writing[int]: ...


class Listed(Protocol):
    """See `Backend.listed`."""

    def __call__(
        self, space: Space, query: Query, *, limit: int, offset: int, after: str | None
    ) -> Reading[Records]: ...


class Scopes(Protocol):
    """See `Backend.scopes`."""

    def __call__(self, space: Space, parent: str, *, deep: bool) -> Reading[dict[str, int]]: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend makes of the methods of a store: operations."""

    migrations: Sequence[schema.Migration]
    opened: Callable[[Space, str | None], Read[Space | ConfigError]]
    save: Callable[[Space, Sequence[Record]], Write[None]]
    by_id: Callable[[Space, str], Read[Record | None]]
    update: Callable[[Space, str, Mapping[str, Any]], Write[bool]]
    touch: Callable[[Space, Iterable[str], datetime], Write[int]]
    delete: Callable[[Space, Query], Writing[int]]
    listed: Listed
    count: Callable[[Space, Query], Reading[int]]
    scopes: Scopes
    categories: Callable[[Space, Query], Reading[dict[str, int]]]
    summary: Callable[[Space, str], Steps[ScopeSummary]]
    search: Callable[[Space, Search], Reading[Hits]]
    expire: Expire
    reset: Callable[[Space], Write[None]]
    rebuild: Callable[[Space], Writing[None]]
    dims: Callable[[Space], Read[int | None]]
    every: Callable[[Space, Query], Every]


class Store:
    """A `MemoryStore` on a pool, less what only its backend can: see the contract for what its methods promise."""

    def __init__(self, pool: Any, backend: Backend, *, tenant: str, collection: str, words: str | None) -> None:
        """Take over `pool` and bring its memory tables up to date."""
        self._pool = pool
        self._sql = backend
        self._space = operations.space(tenant, collection, words)
        self._prepare()
        self._space = _opened(self._read(backend.opened(self._space, words)))

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
        self._write(self._sql.save(self._space, list(records)))

    def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        return self._read(self._sql.by_id(self._space, record_id))

    def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool:
        """Change the named fields of one record; return whether there is such a record."""
        return self._write(self._sql.update(self._space, record_id, changes))

    def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int:
        """Set `accessed_at` of the records with these ids, to now by default; return how many there were."""
        return self._write(self._sql.touch(self._space, record_ids, at or _now()))

    def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were."""
        return self._write(self._sql.delete(self._space, query))

    def list(self, query: Query = _ALL, *, limit: int = 200, offset: int = 0, after: str | None = None) -> Records:
        """Return the records that meet `query`, newest first."""
        if limit <= 0 or offset < 0:
            return Records()
        return self._read(self._sql.listed(self._space, query, limit=limit, offset=offset, after=after))

    def count(self, query: Query = _ALL) -> int:
        """Return how many records meet `query`."""
        return self._read(self._sql.count(self._space, query))

    def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]:
        """Return the scopes one level below `parent`, or all below it, each with its number of records."""
        return self._read(self._sql.scopes(self._space, parent, deep=deep))

    def categories(self, query: Query = _ALL) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records."""
        return self._read(self._sql.categories(self._space, query))

    def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        return self._read(self._sql.summary(self._space, scope))

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
        search = Search(embedding, query, text, fts, mode, metric, weights, limit, min_score, marks, after)
        return Hits() if limit <= 0 else self._read(self._sql.search(self._space, search))

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
            self._sql.expire(self._space, query, older_than=older_than, keep=keep, importance_below=importance_below)
        )

    def reset(self) -> None:
        """Delete every record and forget the dims."""
        self._write(self._sql.reset(self._space))

    def rebuild(self) -> None:
        """Make all that is derived anew from the records; one job."""
        self._write(self._sql.rebuild(self._space))

    def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        return self._read(self._sql.dims(self._space))

    def close(self) -> None:
        """Give the database back; safe to call twice."""
        self._pool.close()

    def iterate(self, query: Query = _ALL, *, chunk: int = 500) -> Iterator[Record]:
        """Iterate over the records that meet `query`, oldest first, in one snapshot of its own.

        It is taken back after `transaction_timeout`: give the pool a longer one for long exports.
        """
        sql, params, decode = self._sql.every(self._space, query)
        with self._pool.stream(sql, params, chunk=chunk) as rows:
            yield from (record for row in rows if (record := decode(row)) is not None)

    def _prepare(self) -> None:
        """Bring the tables up to date."""
        schema.migrate(self._pool, "memory", self._sql.migrations)

    def _read(self, operation: Read[T] | Steps[T]) -> T:
        if isinstance(operation, Read):
            return operation.decode(self._pool.fetch(operation.sql, operation.params))
        with self._pool.read() as snapshot:
            return _on(snapshot, operation)

    def _run(self, steps: Steps[T]) -> T:
        """Make one job of steps."""
        return cast("T", self._pool.run(lambda tx: _on(tx, steps)))

    def _batch(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return cast("Sequence[Result]", self._pool.batch(statements))

    def _write(self, operation: Write[T] | Steps[T]) -> T:
        if not isinstance(operation, Write):
            return self._run(operation)
        if not operation.statements:
            return operation.decode(())
        try:
            return operation.decode(self._batch(operation.statements))
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


class AsyncStore:
    """An `AsyncMemoryStore` on a pool: `Store`, awaited."""

    def __init__(self, pool: Any, backend: Backend, *, tenant: str, collection: str, words: str | None) -> None:
        """Take over `pool`."""
        self._pool = pool
        self._sql = backend
        self._space = operations.space(tenant, collection, words)
        self._words = words
        self._is_ready = False

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
        await self._write(self._sql.save(await self._ready(), list(records)))

    async def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        return await self._read(self._sql.by_id(await self._ready(), record_id))

    async def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool:
        """Change the named fields of one record; return whether there is such a record."""
        return await self._write(self._sql.update(await self._ready(), record_id, changes))

    async def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int:
        """Set `accessed_at` of the records with these ids, to now by default; return how many there were."""
        return await self._write(self._sql.touch(await self._ready(), record_ids, at or _now()))

    async def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were."""
        return await self._write(self._sql.delete(await self._ready(), query))

    async def list(
        self, query: Query = _ALL, *, limit: int = 200, offset: int = 0, after: str | None = None
    ) -> Records:
        """Return the records that meet `query`, newest first."""
        if limit <= 0 or offset < 0:
            return Records()
        return await self._read(self._sql.listed(await self._ready(), query, limit=limit, offset=offset, after=after))

    async def count(self, query: Query = _ALL) -> int:
        """Return how many records meet `query`."""
        return await self._read(self._sql.count(await self._ready(), query))

    async def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]:
        """Return the scopes one level below `parent`, or all below it, each with its number of records."""
        return await self._read(self._sql.scopes(await self._ready(), parent, deep=deep))

    async def categories(self, query: Query = _ALL) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records."""
        return await self._read(self._sql.categories(await self._ready(), query))

    async def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        return await self._read(self._sql.summary(await self._ready(), scope))

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
        search = Search(embedding, query, text, fts, mode, metric, weights, limit, min_score, marks, after)
        return Hits() if limit <= 0 else await self._read(self._sql.search(await self._ready(), search))

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
            self._sql.expire(
                await self._ready(), query, older_than=older_than, keep=keep, importance_below=importance_below
            )
        )

    async def reset(self) -> None:
        """Delete every record and forget the dims."""
        await self._write(self._sql.reset(await self._ready()))

    async def rebuild(self) -> None:
        """Make all that is derived anew from the records; one job."""
        await self._write(self._sql.rebuild(await self._ready()))

    async def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        return await self._read(self._sql.dims(await self._ready()))

    async def close(self) -> None:
        """Give the database back; safe to call twice."""
        await self._pool.close()

    async def iterate(self, query: Query = _ALL, *, chunk: int = 500) -> AsyncIterator[Record]:
        """Iterate over the records that meet `query`, oldest first, in one snapshot of its own.

        It is taken back after `transaction_timeout`: give the pool a longer one for long exports.
        """
        sql, params, decode = self._sql.every(await self._ready(), query)
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
            await self._prepare()
            opened = self._sql.opened(self._space, self._words)
            self._space = _opened(opened.decode(await self._pool.fetch(opened.sql, opened.params)))
            self._is_ready = True
        return self._space

    async def _prepare(self) -> None:
        """Bring the tables up to date."""
        await schema.migrate_async(self._pool, "memory", self._sql.migrations)

    async def _read(self, operation: Read[T] | Steps[T]) -> T:
        if isinstance(operation, Read):
            return operation.decode(await self._pool.fetch(operation.sql, operation.params))
        async with self._pool.read() as snapshot:
            return await _on_async(snapshot, operation)

    async def _run(self, steps: Steps[T]) -> T:
        """Make one job of steps."""
        return cast("T", await self._pool.run(lambda tx: _on_async(tx, steps)))

    async def _batch(self, statements: Sequence[Statement]) -> Sequence[Result]:
        return cast("Sequence[Result]", await self._pool.batch(statements))

    async def _write(self, operation: Write[T] | Steps[T]) -> T:
        if not isinstance(operation, Write):
            return await self._run(operation)
        if not operation.statements:
            return operation.decode(())
        try:
            return operation.decode(await self._batch(operation.statements))
        except IntegrityError as error:
            if operation.refusal is None or (reason := await self._read(operation.refusal)) is None:
                raise
            raise reason from error

    def __repr__(self) -> str:
        return _described(self)

    async def __aenter__(self) -> Self:
        """Return the store, its tables up to date."""
        try:
            await self._ready()
        except BaseException:
            await self.close()  # nobody enters, and so nobody leaves
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()


def drive(steps: Steps[T], read: Callable[[Read[Any]], Any], write: Callable[[Write[Any]], Any]) -> T:
    """Run the steps of an operation, and return its answer."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        answer = read(step) if isinstance(step, Read) else write(step)


async def drive_async(
    steps: Steps[T], read: Callable[[Read[Any]], Awaitable[Any]], write: Callable[[Write[Any]], Awaitable[Any]]
) -> T:
    """As `drive`, awaited."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        answer = await (read(step) if isinstance(step, Read) else write(step))


def _on(held: Any, steps: Steps[T]) -> T:
    """Run steps on a snapshot or in a transaction."""

    def read(step: Read[Any]) -> Any:
        return step.decode(held.fetch(step.sql, step.params))

    def write(step: Write[Any]) -> Any:
        return step.decode([held.execute(*statement) for statement in step.statements])

    return drive(steps, read, write)


async def _on_async(held: Any, steps: Steps[T]) -> T:
    """As `_on`, awaited."""

    async def read(step: Read[Any]) -> Any:
        return step.decode(await held.fetch(step.sql, step.params))

    async def write(step: Write[Any]) -> Any:
        return step.decode([await held.execute(*statement) for statement in step.statements])

    return await drive_async(steps, read, write)


def _described(store: Store | AsyncStore) -> str:
    tenant = f" of {store.tenant!r}" if store.tenant else ""
    return f"<walpool.memory.{type(store).__name__} {store.collection!r}{tenant} on {store._pool!r}>"


def _opened(found: Space | ConfigError) -> Space:
    if isinstance(found, ConfigError):
        raise found
    return found


def _now() -> datetime:
    return datetime.now(timezone.utc)
