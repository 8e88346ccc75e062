"""`Engine`: all that one process has of one database, and the table of those engines.

One engine for each address, process and fork generation; pools are counted handles on it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg

from walpool.errors import CheckoutTimeout, ClosedError, ConfigError, Error, StatementTimeout
from walpool.postgres._address import Address
from walpool.postgres._connections import Connections
from walpool.postgres._driving import Driver
from walpool.postgres._errors import forget_theirs, is_broken, mapped
from walpool.postgres._figures import Figures
from walpool.postgres._hands import Hands, Mailbox, ended
from walpool.postgres._line import LEADERS
from walpool.postgres._reading import Query, Running, reading_once
from walpool.postgres._sessions import Begin, Session
from walpool.postgres._steps import Blocking, finish
from walpool.postgres._wire import durations
from walpool.postgres._writer import Writer

if TYPE_CHECKING:
    from walpool.postgres._jobs import Job
    from walpool.postgres._results import Result, Rows
    from walpool.postgres._steps import Steps
    from walpool.postgres._wire import Connection
    from walpool.settings import Settings

__all__ = ["ENGINES", "Engine", "tenant_settings", "transactions"]

CANCELLED: Final = "57014"
_DURABILITY: Final = {"full": "on", "normal": "off"}  # what `synchronous` asks of synchronous_commit
_CHANGED: Final = frozenset({"on", "off"})  # where the server has more than these, standbys for instance, it stays so
TRANSACTIONS: Final = 16
"""Transactions at once, if `readers` is not more: they may be held across an upload, so cores are not the measure."""


def transactions(readers: int) -> int:
    """Return how many transactions may be open at once, with so many readers."""
    return max(TRANSACTIONS, readers)


class Engine:
    """The connections to one database: readers, those of the groups, and those of transactions."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self.address = address
        self.settings = settings
        self.process = os.getpid()
        self.figures = Figures(address.name, settings.slow_threshold)
        self.handles = 0
        self._readers = Connections(address, settings.readers, self.figures, "readers", reads_only=True)
        self._groups = Connections(address, LEADERS, self.figures, "groups")
        self._writers = Connections(address, transactions(settings.readers), self.figures, "writers")
        for each in (purposes := (self._readers, self._groups, self._writers)):
            each.acquaint(*(other for other in purposes if other is not each))
        self._durable: tuple[tuple[str, str], ...] = ()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._readers.while_waiting = self._writers.while_waiting = self._revoke_late
        self.hands = Hands(readers=settings.readers, writers=transactions(settings.readers), leaders=LEADERS)
        self._drivers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Driver] = weakref.WeakKeyDictionary()
        self.writer = Writer(address, settings, self.figures, groups=self._groups, alone=self._writers)

    def reach(self) -> None:
        """Open a first connection, so that a wrong URL fails at once, and see whether its commits are durable."""
        with self._first() as connection:
            has = connection.execute("SELECT current_setting('synchronous_commit')").fetchall()[0][0]
        wanted = _DURABILITY[self.settings.synchronous]
        self._durable = () if has == wanted or has not in _CHANGED else (("synchronous_commit", wanted),)
        self.writer.set_durability(self._durable)

    def is_pooled(self) -> bool:
        """Return whether a pooler stands between: then another process serves us than the one that greeted us."""
        with self._first() as connection:
            return connection.is_pooled

    def submit(self, job: Job, timeout: float | None) -> list[Result]:
        """Run a job; see `Writer.submit`."""
        with self.counted():
            return self.writer.submit(job, timeout)

    def read(
        self,
        asked: Query,
        timeout: float | None,
        local: Sequence[tuple[str, str]] = (),
    ) -> Rows:
        """Run a query on a reader. One that proves dead costs a second attempt.

        Args:
            asked: the query.
            timeout: seconds for all of it, or None.
            local: server settings for this read.
        """
        return finish(self._reading(asked, timeout, local, Running()))

    async def aread(self, asked: Query, timeout: float | None, local: Sequence[tuple[str, str]] = ()) -> Rows:
        """Run a query on a reader, for a task."""
        running = Running()
        return await self.driver().result(self._reading(asked, timeout, local, running), running.cancel)

    def snapshot(self, timeout: float | None, local: Sequence[tuple[str, str]] = ()) -> Session:
        """Hold a reader for several reads of one snapshot."""
        wait = self.settings.checkout_timeout if timeout is None else timeout
        with self.counted():
            return self._begin(self._readers, Begin.SNAPSHOT, wait, self._no_reader, local)

    def transaction(self, timeout: float | None, local: Sequence[tuple[str, str]] = ()) -> Session:
        """Hold a connection for a transaction."""
        wait = self.settings.write_timeout if timeout is None else timeout
        with self.counted():
            return self._begin(self._writers, Begin.TRANSACTION, wait, self.writer.line.late, local)

    def driver(self) -> Driver:
        """Return the driver of the loop that runs here."""
        loop = asyncio.get_running_loop()
        driver = self._drivers.get(loop)
        if driver is None:
            driver = self._drivers[loop] = Driver(Mailbox(loop), self.hands.steps)
        return driver

    async def held(
        self,
        begin: Callable[[float | None, Sequence[tuple[str, str]]], Session],
        timeout: float | None,
        local: Sequence[tuple[str, str]],
    ) -> Session:
        """Begin a session for a task: on a thread, and ended if it comes too late for the task."""
        work = self.hands.begins.submit(begin, timeout, local)
        try:
            return await asyncio.wrap_future(work)
        except BaseException:  # also where the loop is going away with its tasks
            work.add_done_callback(_end_late)
            raise

    async def ended(self, session: Session) -> None:
        """End a session of a task's; once it has begun to end it does so even if the task is cancelled."""
        try:
            loop = asyncio.get_running_loop()
            work = asyncio.wrap_future(self.hands.held.submit(_end, session), loop=loop)
        except (RuntimeError, ClosedError):  # no loop runs any more, or no thread: a generator is collected
            _end(session)
            return
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await ended(work)
            raise

    def stats(self, *, pop: bool) -> dict[str, int | float]:
        """Return what was counted, and what is so just now."""
        jobs, size = self.writer.line.waiting
        told = self.figures.told(pop=pop)
        told.update(
            jobs_waiting=jobs,
            bytes_waiting=size,
            readers_out=self._readers.out,
            reads_waiting=self._readers.waiting,
            leases_out=self._writers.out,
            leases_waiting=self._writers.waiting,
        )
        return told

    def close(self) -> None:
        """Answer the jobs in line, wait for what is held, and close every connection."""
        limit = self.settings.transaction_timeout
        self.writer.line.close(self.settings.write_timeout)
        deadline = time.monotonic() + limit
        for connections in (self._readers, self._writers, self._groups):
            connections.close()
            connections.wait_until_all_are_back(deadline)
        self.hands.close()

    def _reading(
        self, asked: Query, timeout: float | None, local: Sequence[tuple[str, str]], running: Running
    ) -> Steps[Rows]:
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        wait = self.settings.checkout_timeout if timeout is None else min(timeout, self.settings.checkout_timeout)
        with self.counted(), (yield from self._readers.lending(wait, self._no_reader)) as loan:
            for is_last in (False, True):
                left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
                try:
                    with running.on(loan.connection):
                        settings = (*local, *durations(statement_timeout=left))
                        rows = yield from reading_once(loan.connection, asked, settings)
                except psycopg.Error as error:
                    if is_last or running.is_cancelled or not self._is_worth_another(loan.connection, error, deadline):
                        raise self._read_failed(error, asked.sql) from None
                    self.figures.add("reads_retried")
                    if is_broken(loan.connection, error):
                        yield Blocking(partial(loan.renew, wait))
                else:
                    self.figures.add("reads")
                    self.figures.took("read", time.monotonic() - began, asked.sql)
                    return rows
            raise AssertionError("unreachable")

    def _is_worth_another(self, connection: Connection, error: psycopg.Error, deadline: float | None) -> bool:
        """Return whether a read failed through no doing of its own.

        The connection had died while it lay idle; or a request to stop the read before it came late.
        """
        is_early = deadline is None or time.monotonic() < deadline
        is_servers = "statement timeout" in (error.diag.message_primary or "")  # of the role or the database
        return is_broken(connection, error) or (error.sqlstate == CANCELLED and is_early and not is_servers)

    def _read_failed(self, error: psycopg.Error, sql: bytes) -> Error:
        if error.sqlstate == CANCELLED:
            whose = "its timeout, or the server's statement_timeout,"
            return StatementTimeout(f"the read ran past {whose} and was stopped [{self.address.name}]")
        return mapped(error, self.address.name, sql=sql, is_read=True)

    def _begin(
        self,
        connections: Connections,
        begin: Begin,
        wait: float,
        refuse: Callable[[], Error],
        local: Sequence[tuple[str, str]],
    ) -> Session:
        loan = connections.lend(wait, refuse)
        session = Session(
            loan,
            begin,
            self.settings,
            name=self.address.name,
            local_settings=(*self._durable, *local),
            timeout=wait,
            figures=self.figures,
        )
        self.figures.add("leases" if begin is Begin.TRANSACTION else "reads")
        self._sessions.add(session)
        return session

    @contextmanager
    def _first(self) -> Iterator[Connection]:
        with self._groups.lend(self.settings.write_timeout, self.writer.line.late) as loan:
            try:
                yield loan.connection
            except psycopg.Error as error:
                failure = mapped(error, self.address.name)
            else:
                return
        raise failure

    def _revoke_late(self) -> None:
        for session in list(self._sessions):
            if session.revoke_if_late():
                self.figures.add("leases_revoked")

    def _no_reader(self) -> CheckoutTimeout:
        return CheckoutTimeout(
            f"no reader came free in time (checkout_timeout); raise readers ({self.settings.readers}) or look for "
            f"snapshots that are held for long [{self.address.name}]"
        )

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the error that leaves the block."""
        try:
            yield
        except Error as error:
            forget_theirs(error)
            self.figures.add(f"errors_{type(error).__name__}")
            raise


def _end(session: Session) -> None:
    with suppress(Error):  # the block's own exception is the one to tell
        session.end()


def _end_late(work: Future[Session]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().end()


def tenant_settings(tenant: str | None) -> tuple[tuple[str, str], ...]:
    """Return what a tenant's transactions set.

    Raises:
        ConfigError: it is no text that the server can take.
    """
    if tenant is None:
        return ()
    given: object = tenant  # the caller may not be typed
    if not isinstance(given, str) or not given.isprintable():
        msg = "tenant must be a str of printable characters"
        raise ConfigError(msg)
    return (("walpool.tenant", tenant),)


class _Engines:
    """The engines that are open in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[tuple[Any, ...], Engine] = {}
        self._inherited: list[object] = []  # kept, so that nothing of the parent's is closed here
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def opened(self, settings: Settings) -> Engine:
        """Return the engine of the settings' URL, with one handle more.

        Raises:
            ConfigError: a setting was given that differs from the one it was opened with.
        """
        address = Address.of(settings)
        key = tuple(sorted((name, str(value)) for name, value in address.parameters.items()))
        with self._lock:
            engine = self._engines.get(key)
            if engine is None:
                engine = self._engines[key] = Engine(address, settings)
            else:
                _refuse_others(engine, settings)
            engine.handles += 1
        return engine

    def left(self, engine: Engine) -> None:
        """Take a handle off, and close what has none."""
        with self._lock:
            engine.handles -= 1
            if engine.handles or engine.process != os.getpid():
                return
            for key in [key for key, other in self._engines.items() if other is engine]:
                del self._engines[key]
        engine.close()

    def _after_fork(self) -> None:
        self._inherited.append(self._engines)
        self._lock, self._engines = threading.Lock(), {}


def _refuse_others(engine: Engine, settings: Settings) -> None:
    for name in sorted(settings.explicit - {"url"}):
        given, has = getattr(settings, name), getattr(engine.settings, name)
        if given != has:
            raise ConfigError(f"{name} is {has!r} in the pool that is open on {engine.address.name}, not {given!r}")


ENGINES: Final = _Engines()
