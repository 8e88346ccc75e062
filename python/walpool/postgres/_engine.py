"""`Engine`: all that one process has of one database, and the table of those engines.

One engine for each address, process and fork generation; pools are counted handles on it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from walpool.desk import running_loop
from walpool.errors import CheckoutTimeout, ConfigError, Error, StatementTimeout
from walpool.postgres._address import Address
from walpool.postgres._connections import Connections
from walpool.postgres._driving import Driver
from walpool.postgres._errors import forget_theirs, is_broken, mapped
from walpool.postgres._figures import Figures
from walpool.postgres._hands import Hands, Mailbox
from walpool.postgres._line import LEADERS
from walpool.postgres._reading import Query, Running, reading_once
from walpool.postgres._sessions import Begin, Session
from walpool.postgres._steps import Unanswered, finish
from walpool.postgres._wire import durations, given_up
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
        self._lock = threading.Lock()  # no thread may add a session or a driver while another goes through them
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._readers.while_waiting = self._writers.while_waiting = self._revoke_late
        self._readers.before_blocking = self._writers.before_blocking = self._hand_over
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

    def snapshot(
        self, timeout: float | None, local: Sequence[tuple[str, str]] = (), cursor: Query | None = None
    ) -> Session:
        """Hold a reader for several reads of one snapshot, or for a stream's cursor."""
        session, steps = self._snapshot(timeout, local, cursor)
        finish(steps)
        return session

    async def asnapshot(
        self, timeout: float | None, local: Sequence[tuple[str, str]] = (), cursor: Query | None = None
    ) -> Session:
        """Hold a reader, for a task."""
        return await self._begun(*self._snapshot(timeout, local, cursor))

    def transaction(self, timeout: float | None, local: Sequence[tuple[str, str]] = ()) -> Session:
        """Hold a connection for a transaction."""
        session, steps = self._transaction(timeout, local)
        finish(steps)
        return session

    async def atransaction(self, timeout: float | None, local: Sequence[tuple[str, str]] = ()) -> Session:
        """Hold a connection for a transaction, for a task."""
        return await self._begun(*self._transaction(timeout, local))

    def driver(self) -> Driver:
        """Return the driver of the loop that runs here."""
        loop = asyncio.get_running_loop()
        driver = self._drivers.get(loop)
        if driver is None:
            driver = Driver(Mailbox(loop), self.hands.steps, self.hands.stops)
            with self._lock:
                self._drivers[loop] = driver
        return driver

    async def ended(self, session: Session) -> None:
        """End a session of a task's; it ends even if the task is cancelled meanwhile."""
        if session.is_over:
            return
        steps = session.ending()
        with suppress(Error):  # the block's own exception is the one to tell
            if running_loop() is None:  # any more: a generator is collected
                finish(steps)
            else:
                await self.driver().result(steps)

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
        with self._lock:
            drivers = list(self._drivers.values())
        for driver in drivers:
            driver.close()
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
                        rows = yield from reading_once(loan.connection, asked, settings, given_up(left))
                except psycopg.Error as error:
                    if is_last or running.is_cancelled or not self._is_worth_another(loan.connection, error, deadline):
                        raise self._read_failed(error, asked.sql) from None
                    self.figures.add("reads_retried")
                    if is_broken(loan.connection, error):
                        yield loan.renewing(wait)
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
        return is_early and (is_broken(connection, error) or (error.sqlstate == CANCELLED and not is_servers))

    def _read_failed(self, error: psycopg.Error, sql: bytes) -> Error:
        if isinstance(error, Unanswered):
            return StatementTimeout(f"the read ran past its timeout, and {error} [{self.address.name}]")
        if error.sqlstate == CANCELLED:
            whose = "its timeout, or the server's statement_timeout,"
            return StatementTimeout(f"the read ran past {whose} and was stopped [{self.address.name}]")
        return mapped(error, self.address.name, sql=sql, is_read=True)

    def _snapshot(
        self, timeout: float | None, local: Sequence[tuple[str, str]], cursor: Query | None
    ) -> tuple[Session, Steps[None]]:
        wait = self.settings.checkout_timeout if timeout is None else timeout
        session = self._session(Begin.SNAPSHOT, local)
        steps = session.beginning(self._readers.lending(wait, self._no_reader), wait, cursor)
        return session, self._beginning(session, steps, "reads")

    def _transaction(self, timeout: float | None, local: Sequence[tuple[str, str]]) -> tuple[Session, Steps[None]]:
        wait = self.settings.write_timeout if timeout is None else timeout
        session = self._session(Begin.TRANSACTION, local)
        steps = session.beginning(self._writers.lending(wait, self.writer.line.late), wait)
        return session, self._beginning(session, steps, "leases")

    def _session(self, begin: Begin, local: Sequence[tuple[str, str]]) -> Session:
        return Session(
            begin,
            self.settings,
            name=self.address.name,
            local_settings=(*self._durable, *local),
            figures=self.figures,
        )

    def _beginning(self, session: Session, steps: Steps[None], figure: str) -> Steps[None]:
        with self._lock:
            self._sessions.add(session)
        with self.counted():
            yield from steps
        self.figures.add(figure)

    async def _begun(self, session: Session, steps: Steps[None]) -> Session:
        """Begin a session for a task; it is ended if it comes too late for the task."""
        try:
            await self.driver().result(steps, may_be_left=True)
        except BaseException:
            await self.ended(session)
            raise
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
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            if session.revoke_if_late():
                self.figures.add("leases_revoked")

    def _hand_over(self) -> None:
        """Have threads finish what the loop of this thread does: it stands still now, with what others wait for."""
        loop = running_loop()
        driver = None if loop is None else self._drivers.get(loop)
        if driver is not None:
            driver.hand_over()

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
