"""`AsyncPool`: one file, many readers, one writer, for event loops.

The same names as `Pool`, awaitable, over the same engine. Knows no records and no frameworks.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from walpool import _core
from walpool.desk import DONE, Desk, prepare, running_loop, settled, taken
from walpool.errors import ClosedError, ConfigError, Error, InterfaceError
from walpool.holds import Hold, hold_open, open_here, refuse_reentry
from walpool.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from walpool._core import Result
    from walpool.types import Params, RowFactory

__all__ = ["AsyncPool", "AsyncSnapshot", "AsyncStream", "AsyncTransaction"]

T = TypeVar("T")


def _public(cls: type[T]) -> type[T]:
    """Give a class the home from which people import it."""
    cls.__module__ = "walpool"
    return cls


@_public
class AsyncPool:
    """A pooled SQLite file in WAL mode for asyncio: the names of `Pool`, awaitable, and no thread per connection.

    It shares the engine with every other pool, of either kind, on the same file in this process. Any number of tasks,
    on any number of event loops, may use it. It is opened by `async with`, by `open()`, or by its first call; closed
    by `close()` or at the end of an `async with` block. Nothing here blocks the loop.

    A short read runs at once on the loop's thread, for at most 50 µs; all else is done by a few native threads. When a
    task is cancelled its job, if it has not begun, never runs; a read that runs is interrupted; a job that a group has
    taken is finished, so that it may have been committed.

    Args:
        path: the file, made if it is not there; `:memory:` is a private temporary file. A `walpool://` or `sqlite://`
            URL may carry settings in its query.
        **settings: see `walpool.Settings`; a setting that is not given comes from the URL, then the environment.

    Raises:
        ConfigError: a bad setting, or a `postgresql://` URL. What opening the file can raise (see `Pool`) is raised by
            the call that opens it.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_desks",
        "_engine",
        "_inherited",
        "_path",
        "_process",
        "_settings",
        "_target",
    )

    def __init__(self, path: str | os.PathLike[str], /, **settings: Any) -> None:
        loaded = Settings.load(path, **settings)
        if loaded.path is None:
            msg = "AsyncPool() opens SQLite files; use walpool.get_async_pool() for other URLs"
            raise ConfigError(msg)
        explicit = {name: value for name, value in loaded.values().items() if name in loaded.explicit}
        self._settings = loaded
        self._path = loaded.path if loaded.path == ":memory:" else os.path.realpath(loaded.path)
        self._target = (self._path, explicit)
        self._engine: _core.Engine | None = None
        self._closed = False
        self._desks: dict[asyncio.AbstractEventLoop, Desk] = {}
        self._process = os.getpid()
        self._inherited: list[object] = []

    @property
    def path(self) -> str:
        """The real path of the file."""
        return self._path

    @property
    def backend(self) -> Literal["sqlite", "postgres"]:
        """Which SQL it takes: `sqlite`."""
        return "sqlite"

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    @property
    def settings(self) -> Settings:
        """The settings that this handle was opened with."""
        return self._settings

    async def open(self) -> None:
        """Open the file, if that is not done yet, on a thread of its own. Safe to call twice.

        Raises:
            As `Pool`.
        """
        await self._at_desk()

    async def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement as a job and return what it did, once it is committed. See `Pool.execute`."""
        if open_here.get():
            self._refuse_reentry("execute")
        desk = self._ready() or await self._at_desk()
        return cast("Result", await settled(desk.mailbox, desk.execute(sql, params, timeout)))

    async def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters as one job: all of them or none. See `Pool.executemany`."""
        if open_here.get():
            self._refuse_reentry("executemany")
        desk = self._ready() or await self._at_desk()
        prepared = _core.PreparedRows(sql, rows)
        await prepare(prepared)
        return cast("Result", await settled(desk.mailbox, desk.executemany(prepared, timeout)))

    async def batch(
        self, statements: Iterable[tuple[str, Params] | str], /, *, timeout: float | None = None
    ) -> list[Result]:
        """Run several statements as one job: all of them or none. See `Pool.batch`."""
        if open_here.get():
            self._refuse_reentry("batch")
        desk = self._ready() or await self._at_desk()
        prepared = _core.PreparedBatch(statements)
        await prepare(prepared)
        return cast("list[Result]", await settled(desk.mailbox, desk.batch(prepared, timeout)))

    async def script(self, sql: str, /, *, timeout: float | None = None) -> None:
        """Run several statements without parameters, as in a schema or a migration, as one job: all of them or none."""
        if open_here.get():
            self._refuse_reentry("script")
        desk = self._ready() or await self._at_desk()
        await settled(desk.mailbox, desk.script(sql, timeout))

    async def fetch(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return every row of a query, read from one snapshot. See `Pool.fetch`."""
        if open_here.get():
            self._refuse_reentry("fetch")
        desk = self._ready() or await self._at_desk()
        begun = desk.fetch(sql, params, row, timeout)
        try:
            rows: list[Any] = begun[1] if begun[0] == DONE else await settled(desk.mailbox, begun)
        finally:
            del begun
        return rows

    async def fetchone(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of a query, or None. The rest is not read. See `Pool.fetch`."""
        if open_here.get():
            self._refuse_reentry("fetchone")
        desk = self._ready() or await self._at_desk()
        begun = desk.fetchone(sql, params, row, timeout)
        try:
            return begun[1] if begun[0] == DONE else await settled(desk.mailbox, begun)
        finally:
            del begun

    async def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `Pool.fetch`."""
        if open_here.get():
            self._refuse_reentry("fetchval")
        desk = self._ready() or await self._at_desk()
        begun = desk.fetchval(sql, params, timeout)
        try:
            return begun[1] if begun[0] == DONE else await settled(desk.mailbox, begun)
        finally:
            del begun

    def stream(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        chunk: int = 500,
        timeout: float | None = None,
    ) -> AsyncStream:
        """Iterate over the rows of a query, `chunk` at a time in memory, from one snapshot. See `Pool.stream`.

        `async for row in pool.stream(...)` gives the reader back at the end of the rows; `async with pool.stream(...)
        as rows` does so at the end of the block, however that ends.
        """
        if not 1 <= operator.index(chunk) <= sys.maxsize:
            msg = f"chunk must be 1 or more, and {sys.maxsize} at most"
            raise ValueError(msg)
        return AsyncStream(self, (sql, params, row, timeout), chunk)

    @asynccontextmanager
    async def read(self, *, timeout: float | None = None) -> AsyncIterator[AsyncSnapshot]:
        """Hold one snapshot for several reads. See `Pool.read`; no thread is held between two of them."""
        self._refuse_reentry("read")
        desk = await self._at_desk()
        snapshot: _core.AsyncSnapshot = await taken(desk.mailbox, desk.snapshot(timeout))
        try:
            with hold_open(self._hold("read()", "the snapshot")):
                yield AsyncSnapshot(snapshot, desk.mailbox)
        except GeneratorExit:
            snapshot.abandon()  # the loop is going away: nothing can be awaited
            raise
        except BaseException:
            with suppress(Error):  # the block's own exception is the one to tell
                await settled(desk.mailbox, snapshot.close())
            raise
        await settled(desk.mailbox, snapshot.close())

    @asynccontextmanager
    async def transaction(self, *, timeout: float | None = None) -> AsyncIterator[AsyncTransaction]:
        """Hold the writer for an interactive transaction; commit at the end of the block, roll back on an exception.

        See `Pool.transaction`. No thread is held between two statements, but the writer is: do slow work before it. A
        task that is cancelled inside the block rolls back; one that is cancelled at its end may have committed.
        """
        self._refuse_reentry("transaction")
        desk = await self._at_desk()
        lease: _core.AsyncTransaction = await taken(desk.mailbox, desk.lease(timeout))
        try:
            with hold_open(self._hold("transaction()", "the tx")):
                yield AsyncTransaction(lease, desk.mailbox)
                await settled(desk.mailbox, lease.commit())
        except GeneratorExit:
            lease.abandon()  # the loop is going away: nothing can be awaited
            raise
        except BaseException as error:
            try:
                await settled(desk.mailbox, lease.rollback())  # does nothing to what has ended
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise

    async def run(self, fn: Callable[[AsyncTransaction], Awaitable[T]], /, *, timeout: float | None = None) -> T:
        """Return `await fn(tx)`, run in a `transaction()`."""
        async with self.transaction(timeout=timeout) as tx:
            return await fn(tx)

    async def stats(self) -> dict[str, int | float]:
        """Return the engine's figures; the names say the subject first and carry their unit. See docs/operations.md."""
        return await self._figures(pop=False)

    async def pop_stats(self) -> dict[str, int | float]:
        """Return the figures since the last pop, and start counters, peaks and percentiles anew."""
        return await self._figures(pop=True)

    async def checkpoint(self, mode: str = "passive") -> tuple[bool, int, int]:
        """Move the WAL into the file. See `Pool.checkpoint`."""
        self._refuse_reentry("checkpoint")
        desk = await self._at_desk()
        return cast("tuple[bool, int, int]", await settled(desk.mailbox, desk.checkpoint(mode)))

    async def backup(self, dest: str | os.PathLike[str]) -> None:
        """Copy the database, as one snapshot sees it, into a new file; writers go on meanwhile. See `Pool.backup`."""
        self._refuse_reentry("backup")
        desk = await self._at_desk()
        await settled(desk.mailbox, desk.backup(os.fspath(dest)))

    async def check(self) -> list[str]:
        """Return what SQLite's integrity check finds; an empty list is good news. It reads the whole file."""
        self._refuse_reentry("check")
        desk = await self._at_desk()
        return cast("list[str]", await settled(desk.mailbox, desk.check()))

    async def vacuum(self) -> None:
        """Rewrite the file without its holes; writers wait meanwhile."""
        self._refuse_reentry("vacuum")
        desk = await self._at_desk()
        await settled(desk.mailbox, desk.vacuum())

    async def close(self) -> None:
        """Give this handle back; the last one answers all that was accepted and closes the file. Safe to call twice.

        It waits, without blocking the loop, for reads and transactions that others have open, `transaction_timeout` at
        most for each. A task that is cancelled meanwhile stops waiting; the pool is closed all the same.
        """
        self._refuse_reentry("close")
        self._closed = True
        desk = self._desk_here()
        try:
            if desk.opening is not None:
                await asyncio.wait([desk.opening])  # what it opens now it closes itself
            if self._engine is not None:
                await settled(desk.mailbox, _core.AsyncEngine(self._engine, desk.mailbox).close())
        finally:
            desks, self._desks = self._desks, {}
            for other in desks.values():
                other.leave()

    async def __aenter__(self) -> AsyncPool:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):  # True where __init__ raised
            return
        if self._engine is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        if self._process == os.getpid():
            for desk in list(self._desks.values()):
                desk.leave()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._engine is not None else "not opened yet"
        return f"<walpool.AsyncPool {self.path!r} {state}>"

    def __reduce__(self) -> tuple[Callable[..., AsyncPool], tuple[str, Mapping[str, object]]]:
        return _reopen, self._target

    async def _figures(self, *, pop: bool) -> dict[str, int | float]:
        if self._closed and self._engine is not None:
            return self._engine.stats(pop)  # what it has counted can be told, and told at once, after its end too
        return (await self._at_desk()).stats(pop)

    def _refuse_reentry(self, verb: str) -> None:
        if open_here.get():
            refuse_reentry(verb, self._engine, self._path)

    def _hold(self, held: str, use: str | None) -> Hold:
        assert self._engine is not None, "whoever holds something has opened it"
        return Hold(self._engine, self._path, held, use)

    def _ready(self) -> _core.AsyncEngine | None:
        """Return the engine as this loop sees it, or None where something is to be opened first."""
        desk = self._desks.get(asyncio.get_running_loop())
        if self._closed or desk is None or desk.engine is None or not desk.engine.is_open_here:
            return None
        return desk.engine

    async def _at_desk(self) -> _core.AsyncEngine:
        """As `_ready`, opening what is not open yet."""
        while (engine := self._ready()) is None:
            if self._closed:
                msg = f"the pool is closed [{self._path}]"
                raise ClosedError(msg)
            desk = self._desk_here()
            if desk.opening is None:
                desk.opening = desk.loop.create_task(self._open_at(desk))
                desk.opening.add_done_callback(desk.opened)
            await asyncio.shield(desk.opening)  # others may wait for it too
        return engine

    def _desk_here(self) -> Desk:
        if self._process != os.getpid():  # a child: its parent's loops and mailboxes are not touched
            self._inherited.append(self._desks)
            self._process, self._desks = os.getpid(), {}
        loop = asyncio.get_running_loop()
        desk = self._desks.get(loop)
        if desk is None:
            for other in list(self._desks):  # other threads may be at it too
                gone = self._desks.pop(other, None) if other.is_closed() else None
                if gone is not None:
                    gone.leave()
            desk = self._desks[loop] = Desk(loop)
        return desk

    async def _open_at(self, desk: Desk) -> None:
        if self._engine is None:
            given = sorted(self._target[1])
            opened: _core.Engine = await settled(
                desk.mailbox, _core.AsyncEngine.open(desk.mailbox, self._path, self._settings.values(), given)
            )
            if self._take(opened):
                self._path = str(opened.path)
                if self._settings.path != ":memory:":
                    self._target = (self._path, self._target[1])
            else:  # this is one handle too many
                await settled(desk.mailbox, _core.AsyncEngine(opened, desk.mailbox).close())
        if self._engine is not None:
            engine = _core.AsyncEngine(self._engine, desk.mailbox)
            await settled(desk.mailbox, engine.open_here())
            desk.engine = engine

    def _take(self, opened: _core.Engine) -> bool:
        """Keep it, unless another loop was faster or the pool was closed meanwhile."""
        if self._engine is None and not self._closed:
            self._engine = opened
        return self._engine is opened


def _reopen(path: str, settings: Mapping[str, object]) -> AsyncPool:
    return AsyncPool(path, **settings)


class _OfOneLoop:
    """What belongs to the event loop on which it was begun."""

    __slots__ = ("_loop", "_mailbox", "_process")

    def __init__(self, mailbox: _core.Mailbox) -> None:
        self._mailbox = mailbox
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    def _here(self) -> _core.Mailbox:
        if running_loop() is not self._loop:
            msg = "it belongs to the event loop on which it was begun; begin another one on this loop"
            raise InterfaceError(msg)
        return self._mailbox


@_public
class AsyncSnapshot(_OfOneLoop):
    """Several reads of one snapshot, from `AsyncPool.read`: what others commit meanwhile is not seen."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: _core.AsyncSnapshot, mailbox: _core.Mailbox) -> None:
        super().__init__(mailbox)
        self._snapshot = snapshot

    async def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `Pool.fetch`."""
        return cast("list[Any]", await settled(self._here(), self._snapshot.fetch(sql, params, row, timeout)))

    async def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `Pool.fetch`."""
        return await settled(self._here(), self._snapshot.fetchone(sql, params, row, timeout))

    async def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `Pool.fetch`."""
        return await settled(self._here(), self._snapshot.fetchval(sql, params, timeout))


@_public
class AsyncStream:
    """The rows of one query, read piece by piece; from `AsyncPool.stream`. An async iterator that may be used once."""

    __slots__ = ("_chunk", "_hold", "_pool", "_query", "_rows", "_source", "_state", "_stream")

    def __init__(self, pool: AsyncPool, query: tuple[str, Params, RowFactory | None, float | None], chunk: int) -> None:
        self._pool = pool
        self._query = query
        self._chunk = chunk
        self._rows: list[Any] = []  # the last first
        self._state = "new"
        self._source: _OfOneLoop | None = None
        self._stream: _core.AsyncStream | None = None
        self._hold: Any = None

    async def __aenter__(self) -> AsyncStream:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        await self._open()
        self._hold = hold_open(self._pool._hold("stream()", None))
        self._hold.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.__exit__(None, None, None)
        if kind is GeneratorExit and self._stream is not None:
            self._stream.abandon()  # the loop is going away: nothing can be awaited
        else:
            await self.aclose()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        while not self._rows:
            if self._state == "ended":
                await self.aclose()
                raise StopAsyncIteration
            await self._read()
        return self._rows.pop()

    async def aclose(self) -> None:
        """Give the reader back before the end of the rows. Safe to call twice."""
        self._state, self._rows = "ended", []
        if self._stream is not None and self._source is not None:
            if self._source._process != os.getpid():
                return  # its parent has it
            mailbox = self._source._here()
            stream, self._stream = self._stream, None
            await settled(mailbox, stream.close())

    async def _open(self) -> None:
        if self._state != "new":
            msg = "a stream may be used once; call stream() again"
            raise InterfaceError(msg)
        self._pool._refuse_reentry("stream")
        self._state = "open"
        desk = await self._pool._at_desk()
        self._source = _OfOneLoop(desk.mailbox)
        self._stream = await taken(desk.mailbox, desk.stream(*self._query))

    async def _read(self) -> None:
        if self._state == "new":
            await self._open()
        if self._stream is None or self._source is None:
            self._state = "ended"
            return
        mailbox = self._source._here()
        try:
            rows = await settled(mailbox, self._stream.next_rows(self._chunk))
        except BaseException:
            self._stream.abandon()
            self._stream, self._state = None, "ended"
            raise
        if len(rows) < self._chunk:
            self._state = "ended"
        rows.reverse()
        self._rows = rows


@_public
class AsyncTransaction(_OfOneLoop):
    """An open transaction, from `AsyncPool.transaction`: its reads see its own writes. For the loop that began it."""

    __slots__ = ("_lease",)

    def __init__(self, lease: _core.AsyncTransaction, mailbox: _core.Mailbox) -> None:
        super().__init__(mailbox)
        self._lease = lease

    async def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement; a failed one is undone and leaves the transaction open. See `Transaction.execute`.

        A write that is cancelled while it runs ends the transaction as a whole, as one that runs past its `timeout`
        does: SQLite undoes an interrupted write with all that came before it.
        """
        return cast("Result", await settled(self._here(), self._lease.execute(sql, params, timeout)))

    async def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters: all of them or none."""
        prepared = _core.PreparedRows(sql, rows)
        await prepare(prepared)
        return cast("Result", await settled(self._here(), self._lease.executemany(prepared, timeout)))

    async def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `Pool.fetch`."""
        return cast("list[Any]", await settled(self._here(), self._lease.fetch(sql, params, row, timeout)))

    async def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `Pool.fetch`."""
        return await settled(self._here(), self._lease.fetchone(sql, params, row, timeout))

    async def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `Pool.fetch`."""
        return await settled(self._here(), self._lease.fetchval(sql, params, timeout))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Begin a savepoint; keep it at the end of the block, undo it on an exception."""
        await settled(self._here(), self._lease.mark())
        try:
            yield self
        except GeneratorExit:
            raise  # the loop is going away, and the whole transaction with it
        except BaseException as error:
            try:
                await settled(self._here(), self._lease.undo_to_mark())
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise
        await settled(self._here(), self._lease.keep_mark())
