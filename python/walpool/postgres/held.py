"""What tasks hold: `AsyncSnapshot`, `AsyncTransaction` and `AsyncStream`, the awaitable twins of those in `pool`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from walpool.desk import running_loop
from walpool.errors import Error, InterfaceError
from walpool.postgres import _jobs as jobs
from walpool.postgres._reading import query
from walpool.postgres._results import made

if TYPE_CHECKING:
    from types import TracebackType

    from walpool.postgres._driving import Driver
    from walpool.postgres._engine import Engine
    from walpool.postgres._results import Result, Rows
    from walpool.postgres._sessions import Session
    from walpool.postgres._steps import Steps
    from walpool.types import Params, RowFactory

__all__ = ["AsyncSnapshot", "AsyncStream", "AsyncTransaction"]

T = TypeVar("T")


class _Held:
    """What is read and written by a session, by the tasks of the loop that began it, one at a time."""

    __slots__ = ("_driver", "_loop", "_session")
    __module__ = "walpool.postgres"

    def __init__(self, driver: Driver, session: Session) -> None:
        self._driver = driver
        self._session = session
        self._loop = asyncio.get_running_loop()

    async def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `PostgresPool.fetch`."""
        found = await self._read(sql, params, timeout)
        return made(found.rows, found.columns, row)

    async def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `PostgresPool.fetchone`."""
        found = await self._read(sql, params, timeout)
        return next(iter(made(found.rows[:1], found.columns, row)), None)

    async def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `PostgresPool.fetchone`."""
        found = await self._read(sql, params, timeout)
        return found.rows[0][0] if found.rows else None

    async def _read(self, sql: str, params: Params, timeout: float | None) -> Rows:
        return await self._do(self._session.reading(query(sql, params), timeout), self._session.cancel)

    async def _do(self, steps: Steps[T], stop: Callable[[], object] | None = None) -> T:
        if running_loop() is not self._loop:
            msg = "it belongs to the event loop on which it was begun; begin another one on this loop"
            raise InterfaceError(msg)
        return await self._driver.result(steps, stop)


class AsyncSnapshot(_Held):
    """Several reads of one snapshot, from `AsyncPostgresPool.read`: what others commit meanwhile is not seen."""

    __slots__ = ()
    __module__ = "walpool.postgres"


class AsyncTransaction(_Held):
    """An open transaction, from `AsyncPostgresPool.transaction`: its reads see its own writes."""

    __slots__ = ()
    __module__ = "walpool.postgres"

    async def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement; a failed or cancelled one is undone and leaves the transaction open."""
        return await self._write(jobs.single(sql, params), timeout)

    async def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters: all of them or none."""
        return await self._write(jobs.many(sql, rows), timeout)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Begin a savepoint; keep it at the end of the block, undo it on an exception."""
        mark = await self._do(self._session.marking())
        try:
            yield self
        except GeneratorExit:
            raise  # the loop is going away, and the whole transaction with it
        except BaseException as error:
            try:
                await self._do(self._session.undoing(mark))
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise
        await self._do(self._session.keeping(mark))

    async def _write(self, job: jobs.Job, timeout: float | None) -> Result:
        return (await self._do(self._session.writing(job, timeout), self._session.cancel))[0]


class AsyncStream:
    """The rows of one query, read piece by piece, from `AsyncPostgresPool.stream`. It may be used once."""

    __slots__ = ("_begin", "_chunk", "_engine", "_is_new", "_row", "_rows", "_session")
    __module__ = "walpool.postgres"

    def __init__(
        self,
        begin: Callable[[], Awaitable[tuple[Engine, Session]]],
        chunk: int,
        row: RowFactory | None,
    ) -> None:
        self._begin = begin
        self._chunk = chunk
        self._row = row
        self._rows: list[Any] = []  # the last first
        self._is_new = True
        self._engine: Engine | None = None
        self._session: Session | None = None

    async def __aenter__(self) -> AsyncStream:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        if self._is_new:
            await self._open()
        if not self._rows:
            await self._read()
        if not self._rows:
            await self.aclose()
            raise StopAsyncIteration
        return self._rows.pop()

    async def aclose(self) -> None:
        """Give the reader back before the end of the rows. Safe to call twice."""
        self._is_new, self._rows = False, []
        session, self._session = self._session, None
        if session is not None and self._engine is not None:
            await self._engine.ended(session)

    async def _open(self) -> None:
        if not self._is_new:
            msg = "a stream may be used once; call stream() again"
            raise InterfaceError(msg)
        self._is_new = False
        self._engine, self._session = await self._begin()

    async def _read(self) -> None:
        session = self._session
        if session is None or self._engine is None:
            return
        try:
            found = await self._engine.driver().result(session.fetching(self._chunk), session.cancel)
        except BaseException:
            await self.aclose()
            raise
        self._rows = made(found.rows, found.columns, self._row)[::-1]
        if len(found.rows) < self._chunk:  # these are the last: the reader is not needed for them
            rows, self._rows = self._rows, []
            await self.aclose()
            self._rows = rows
