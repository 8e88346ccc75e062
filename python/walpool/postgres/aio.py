"""`AsyncPostgresPool`: the names of `PostgresPool`, awaitable, over the same engine.

Knows no records and no frameworks.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from walpool.errors import BusyError, ClosedError, ConfigError, NotSupportedError
from walpool.holds import Hold, hold_open, open_here, refuse_reentry
from walpool.postgres import _jobs as jobs
from walpool.postgres._address import Address
from walpool.postgres._engine import ENGINES, Engine, tenant_settings
from walpool.postgres._line import State, Ticket
from walpool.postgres._reading import query
from walpool.postgres._results import made
from walpool.postgres._steps import finish
from walpool.postgres._watching import WATCHES_SOCKETS
from walpool.postgres.held import AsyncSnapshot, AsyncStream, AsyncTransaction
from walpool.postgres.pool import ATTEMPTS
from walpool.settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType

    from walpool.postgres._reading import Query
    from walpool.postgres._results import Result, Rows
    from walpool.postgres._sessions import Session
    from walpool.types import Params, RowFactory

__all__ = ["AsyncPostgresPool"]

T = TypeVar("T")


class AsyncPostgresPool:
    """A PostgreSQL database for asyncio: the names of `PostgresPool`, awaitable.

    It shares connections with every other pool, of either kind, on the same URL in this process. It is opened by `async
    with`, by `open()`, or by its first call. Nothing here blocks the loop: it watches the sockets itself, and a bounded
    number of threads does what may block. When a task is cancelled its job, if no group has taken it, never runs; a
    read that runs is stopped.

    Args:
        url: as for `PostgresPool`, here and below.
        tenant: whose rows these are.
        **settings: see `walpool.Settings`.

    Raises:
        ConfigError: a bad setting or URL. What reaching the server can raise is raised by the call that opens it.
    """

    __module__ = "walpool.postgres"
    __slots__ = ("__weakref__", "_closed", "_engine", "_local", "_name", "_opening", "_settings", "_tenant")

    def __init__(self, url: str | os.PathLike[str], /, *, tenant: str | None = None, **settings: Any) -> None:
        self._engine: Engine | None = None
        loaded = Settings.load(url, **settings)
        if loaded.path is not None or loaded.url is None:
            msg = "AsyncPostgresPool() takes postgresql:// URLs; use walpool.AsyncPool() for SQLite files"
            raise ConfigError(msg)
        self._settings = loaded
        self._tenant = tenant
        self._local = tenant_settings(tenant)
        self._name = Address.of(loaded).name
        self._opening = threading.Lock()  # held by the thread that opens
        self._closed = False

    @property
    def path(self) -> str:
        """The URL, without its password and its query."""
        return self._name

    @property
    def backend(self) -> Literal["sqlite", "postgres"]:
        """Which SQL it takes: `postgres`."""
        return "postgres"

    @property
    def tenant(self) -> str | None:
        """Whose rows these are, where row-level security is on; None sets no tenant."""
        return self._tenant

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    @property
    def settings(self) -> Settings:
        """The settings that this handle was opened with."""
        return self._settings

    async def open(self) -> None:
        """Open a first connection, if that is not done yet. Safe to call twice."""
        await self._here("open")

    async def execute(
        self, sql: str, params: Params = (), /, *, timeout: float | None = None, key: str | None = None
    ) -> Result:
        """Run one statement as a job and return what it did, once it is committed. See `PostgresPool.execute`."""
        return (await self._submit("execute", jobs.single(sql, params), key, timeout))[0]

    async def executemany(
        self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None, key: str | None = None
    ) -> Result:
        """Run one statement for each row of parameters as one job: all of them or none."""
        return (await self._submit("executemany", jobs.many(sql, rows), key, timeout))[0]

    async def batch(
        self,
        statements: Iterable[tuple[str, Params] | str],
        /,
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run several statements as one job: all of them or none."""
        return await self._submit("batch", jobs.batch(statements), key, timeout)

    async def script(self, sql: str, /, *, timeout: float | None = None) -> None:
        """Run several statements without parameters, as in a schema or a migration, as one job: all of them or none."""
        await self._submit("script", jobs.script(sql), None, timeout)

    async def fetch(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return every row of a query, read from one snapshot. See `PostgresPool.fetch`."""
        found = await self._read("fetch", sql, params, timeout)
        return made(found.rows, found.columns, row)

    async def fetchone(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of a query, or None. The server sends the rest too: give the query a LIMIT."""
        found = await self._read("fetchone", sql, params, timeout)
        return next(iter(made(found.rows[:1], found.columns, row)), None)

    async def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `fetchone`."""
        found = await self._read("fetchval", sql, params, timeout)
        return found.rows[0][0] if found.rows else None

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
        """Iterate over the rows of a query, `chunk` at a time in memory, from one snapshot. See `AsyncPool.stream`."""
        if not 1 <= operator.index(chunk) <= sys.maxsize:
            msg = f"chunk must be 1 or more, and {sys.maxsize} at most"
            raise ValueError(msg)
        return AsyncStream(partial(self._stream, timeout, query(sql, params)), chunk, row)

    @asynccontextmanager
    async def read(self, *, timeout: float | None = None) -> AsyncIterator[AsyncSnapshot]:
        """Hold one snapshot for several reads. See `PostgresPool.read`; no thread is held between two of them."""
        engine = await self._here("read")
        session = await engine.asnapshot(timeout, self._local)
        try:
            with hold_open(Hold(engine, self._name, "read()", "the snapshot")):
                yield AsyncSnapshot(engine.driver(), session)
        finally:
            await engine.ended(session)

    @asynccontextmanager
    async def transaction(self, *, timeout: float | None = None) -> AsyncIterator[AsyncTransaction]:
        """Hold a transaction; commit at the end of the block, roll back on an exception.

        See `PostgresPool.transaction`. A task that is cancelled inside the block rolls back; one that is cancelled at
        its end may have committed.
        """
        engine = await self._here("transaction")
        session = await engine.atransaction(timeout, self._local)
        try:
            with hold_open(Hold(engine, self._name, "transaction()", "the tx")):
                yield AsyncTransaction(engine.driver(), session)
                await engine.driver().result(session.committing())
        finally:
            await engine.ended(session)

    async def run(self, fn: Callable[[AsyncTransaction], Awaitable[T]], /, *, timeout: float | None = None) -> T:
        """Return `await fn(tx)`, run in a `transaction()`; called again as by `PostgresPool.run`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self.transaction(timeout=timeout) as tx:
                    return await fn(tx)
            except BusyError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def stats(self) -> dict[str, int | float]:
        """Return the engine's figures; the names say the subject first and carry their unit. See docs/postgres.md."""
        return await self._figures(pop=False)

    async def pop_stats(self) -> dict[str, int | float]:
        """Return the figures since the last pop, and start counters and percentiles anew."""
        return await self._figures(pop=True)

    async def checkpoint(self, mode: str = "passive") -> tuple[bool, int, int]:
        """Raise `NotSupportedError`: the server makes its checkpoints itself."""
        del mode
        raise NotSupportedError(f"checkpoint() is SQLite's: the server makes its checkpoints itself [{self.path}]")

    async def backup(self, dest: str | os.PathLike[str]) -> None:
        """Raise `NotSupportedError`: use pg_dump, pg_basebackup, or the provider's backups."""
        del dest
        raise NotSupportedError(f"backup() is SQLite's: use pg_dump or pg_basebackup [{self.path}]")

    async def check(self) -> list[str]:
        """Raise `NotSupportedError`: use pg_amcheck, and `data_checksums`."""
        raise NotSupportedError(f"check() is SQLite's: use pg_amcheck on the server [{self.path}]")

    async def vacuum(self) -> None:
        """Raise `NotSupportedError`: autovacuum does it; VACUUM (FULL) is a matter for who runs the server."""
        raise NotSupportedError(f"vacuum() is SQLite's: autovacuum does it on the server [{self.path}]")

    async def close(self) -> None:
        """Give this handle back; the last one answers all that was accepted and closes the connections.

        Safe to call twice. It waits, without blocking the loop, for what others have open,
        `transaction_timeout` at most.
        """
        if open_here.get():
            refuse_reentry("close", self._engine, self._name)
        self._closed = True
        await asyncio.to_thread(self._close)

    async def __aenter__(self) -> AsyncPostgresPool:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._engine is not None else "not opened yet"
        return f"<walpool.postgres.AsyncPostgresPool {self.path!r} {state}>"

    def __reduce__(self) -> tuple[Callable[..., AsyncPostgresPool], tuple[object, ...]]:
        return _reopen, (self._settings.__getstate__()["url"], self._tenant, self._settings.keywords())

    def __copy__(self) -> AsyncPostgresPool:
        return _reopen(str(self._settings.url), self._tenant, self._settings.keywords())

    async def _here(self, verb: str) -> Engine:
        """Return the engine, opened if need be, in a child process an heir of it; refuse what would wait for itself."""
        if open_here.get():
            refuse_reentry(verb, self._engine, self._name)
        if self._closed:
            msg = f"the pool is closed [{self._name}]"
            raise ClosedError(msg)
        engine = self._engine
        if engine is not None and engine.process == os.getpid():
            return engine
        return await asyncio.to_thread(self._open)

    def _open(self) -> Engine:
        with self._opening:
            if self._closed:  # meanwhile
                raise ClosedError(f"the pool is closed [{self._name}]")
            engine = self._engine
            if engine is not None and engine.process == os.getpid():
                return engine
            opened = ENGINES.opened(self._settings)
            try:
                opened.reach()
            except BaseException:
                ENGINES.left(opened)
                raise
            self._engine = opened
            return opened

    def _close(self) -> None:
        with self._opening:
            engine, self._engine = self._engine, None
        if engine is not None:
            ENGINES.left(engine)

    async def _figures(self, *, pop: bool) -> dict[str, int | float]:
        return (await self._here("stats")).stats(pop=pop)

    async def _stream(self, timeout: float | None, asked: Query) -> tuple[Engine, Session]:
        engine = await self._here("stream")
        return engine, await engine.asnapshot(timeout, self._local, asked)

    async def _read(self, verb: str, sql: str, params: Params, timeout: float | None) -> Rows:
        engine = await self._here(verb)
        return await engine.aread(query(sql, params), timeout, self._local)

    async def _submit(self, verb: str, job: jobs.Job, key: str | None, timeout: float | None) -> list[Result]:
        engine = await self._here(verb)
        if not job.statements:
            return []
        wait = self._settings.write_timeout if timeout is None else timeout
        answer = _Answer(engine, jobs.labelled(job, key, self._local))
        with engine.counted():
            await answer.join(wait)
            return await answer.come()


class _Answer:
    """A job of a task's: how it hears of its turn and of its end, and what it gives up when the task is cancelled."""

    def __init__(self, engine: Engine, job: jobs.Job) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._driver = driver = engine.driver()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self._ticket = Ticket(job, self._told, driver if WATCHES_SOCKETS else None)
        self._timer: asyncio.TimerHandle | None = None

    async def join(self, wait: float) -> None:
        """Put the job in line; where too many bytes wait, the task is held back."""
        line = self._engine.writer.line
        deadline = time.monotonic() + wait
        if not line.join(self._ticket, deadline, may_wait=False):
            try:
                await self._driver.result(line.joining(self._ticket, deadline))
            except asyncio.CancelledError:
                self._give_up()  # it may have joined meanwhile
                raise
        self._timer = self._loop.call_later(max(deadline - time.monotonic(), 0.0), self._late)
        self._driver.mailbox.watch(line.help)  # no thread sleeps on it that would look

    async def come(self) -> list[Result]:
        """Return the results once the job is committed."""
        try:
            await self._future
        except BaseException:  # also where the loop is going away with its tasks
            self._give_up()
            raise
        finally:
            self._ticket.forget()
            if self._timer is not None:
                self._timer.cancel()
        if self._ticket.error is not None:
            raise self._ticket.error
        return self._ticket.results

    def _told(self, ticket: Ticket) -> None:
        """Do what the ticket says, from any thread: have a group led or the job run, or wake the task."""
        if ticket.state is State.ALONE:
            self._have_done(self._engine.hands.alone, self._engine.writer.run_alone)
        elif ticket.state is State.LEADS and ticket.loop is None:
            self._have_led()
        elif ticket.state is State.LEADS:
            # Two turns of the loop later: the tasks of the group before, answered just now, are in line again by then.
            self._driver.mailbox.put(partial(self._loop.call_soon, self._lead))
        else:
            self._driver.mailbox.put(self._done)

    def _lead(self) -> None:
        if self._ticket.loop is None:
            return  # a thread leads in its place: the loop was busy for long
        if self._engine.writer.line.is_for_its_loop(self._ticket):
            self._driver.begin(self._engine.writer.leading(self._ticket))
        else:
            self._have_led()

    def _have_led(self) -> None:
        writer = self._engine.writer
        self._have_done(self._engine.hands.steps, lambda ticket: finish(writer.leading(ticket)))

    def _have_done(self, threads: ThreadPoolExecutor, do: Callable[[Ticket], object]) -> None:
        try:
            threads.submit(do, self._ticket)
        except ClosedError:  # or the interpreter is going away, and the loop with it: nobody hears of it
            self._engine.writer.abandon(self._ticket)

    def _done(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def _give_up(self) -> None:
        if not self._engine.writer.withdraw(self._ticket) and self._ticket.state is State.TAKEN:
            self._driver.leave()

    def _late(self) -> None:
        if self._engine.writer.withdraw(self._ticket):
            self._ticket.error = self._engine.writer.line.late()
            self._done()


def _reopen(url: str, tenant: str | None, settings: Mapping[str, Any]) -> AsyncPostgresPool:
    return AsyncPostgresPool(url, tenant=tenant, **settings)
