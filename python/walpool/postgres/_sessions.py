"""`Session`: a connection that one caller holds in a transaction of several statements. Knows no pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from walpool.errors import ClosedError, Error, InterfaceError, TransactionTimeout
from walpool.postgres._errors import is_broken, mapped
from walpool.postgres._jobs import Job
from walpool.postgres._reading import CANCEL_S, Query, Rows
from walpool.postgres._results import Result
from walpool.postgres._wire import durations, pipelined, set_local

if TYPE_CHECKING:
    from walpool.postgres._address import Connection
    from walpool.postgres._connections import Connections
    from walpool.settings import Settings

__all__ = ["Begin", "Session"]

T = TypeVar("T")

_LIMITS_TRANSACTIONS: Final = 170000
"""The first version that ends a transaction for its whole length; older ones only for lying idle."""


_TIME_IS_UP: Final = frozenset({"25P03", "25P04"})


class Begin(Enum):
    """The transactions that are held."""

    # One snapshot, as on SQLite. A row that somebody else has changed meanwhile is refused rather than overwritten.
    TRANSACTION = "BEGIN ISOLATION LEVEL REPEATABLE READ"
    SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Session:
    """A transaction that is open across calls, until `end`, or until its time is up.

    Each statement has a savepoint: as on SQLite a failed one is undone and leaves the transaction open.
    """

    def __init__(
        self,
        connections: Connections,
        connection: Connection,
        begin: Begin,
        settings: Settings,
        *,
        name: str,
        local_settings: Sequence[tuple[str, str]] = (),
        timeout: float,
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._begin = begin
        self._name = name
        self._limit = settings.transaction_timeout
        self._deadline = time.monotonic() + self._limit
        self._lock = threading.Lock()  # a session is one caller's: whoever meets it taken is refused
        self._is_over = False
        self._marks = 0
        try:
            self._begin_with((*self._settings(settings), *local_settings), timeout)
        except BaseException:
            self._release()
            raise

    def write(self, job: Job, timeout: float | None) -> list[Result]:
        """Run the statements of a job: all of them or none."""

        def send() -> list[psycopg.Cursor[Any]]:
            cursors = [self._connection.cursor() for _ in job.statements]
            for statement, cursor in zip(job.statements, cursors, strict=True):
                statement.send(cursor)
            return cursors

        return [Result.of(cursor) for cursor in self._guarded(send, timeout)]

    def read(self, asked: Query, timeout: float | None) -> Rows:
        """Run a query; it sees what the transaction wrote."""
        return Rows.of(self._guarded(lambda: asked.send(self._connection), timeout))

    def declare(self, asked: Query) -> None:
        """Open the one cursor of a stream."""
        self._run(
            lambda: asked._replace(sql=f"DECLARE walpool_rows NO SCROLL CURSOR FOR {asked.sql}").send(self._connection)
        )

    def next_rows(self, count: int) -> Rows:
        """Return the next rows of the cursor."""
        asked = Query(f"FETCH FORWARD {int(count)} FROM walpool_rows", ())
        return self._run(lambda: Rows.of(asked.send(self._connection)))

    def mark(self) -> None:
        """Begin a savepoint inside those before it."""
        self._run(lambda: self._connection.execute(f"SAVEPOINT walpool_mark_{self._marks + 1}"))
        self._marks += 1

    def undo_to_mark(self) -> None:
        """Undo what came after the last savepoint, and forget it."""
        mark = f"walpool_mark_{self._marks}"
        self._run(lambda: self._connection.execute(f"ROLLBACK TO {mark}; RELEASE {mark}"))
        self._marks -= 1

    def keep_mark(self) -> None:
        """Forget the last savepoint, and keep what came after it."""
        self._run(lambda: self._connection.execute(f"RELEASE walpool_mark_{self._marks}"))
        self._marks -= 1

    def commit(self) -> None:
        """Commit, and give the connection back.

        Raises:
            Error: `outcome` is `unknown` where the connection broke meanwhile.
        """
        with self._in_hand():
            try:
                status = self._connection.execute("COMMIT").statusmessage
            except psycopg.Error as error:
                if error.sqlstate in _TIME_IS_UP:  # before COMMIT came
                    raise self._late() from None
                is_unknown = is_broken(self._connection, error)
                what = f"COMMIT on {self._name}" + (": a later read tells whether it was applied" if is_unknown else "")
                raise mapped(error, what, outcome="unknown" if is_unknown else "not_applied") from None
            finally:
                self._release()
        if status != "COMMIT":
            raise TransactionTimeout(f"the transaction was rolled back meanwhile; nothing was written [{self._name}]")

    def end(self) -> None:
        """Roll back what is not committed, and give the connection back. Safe to call twice."""
        if self._is_over:
            return
        with self._in_hand():
            with suppress(psycopg.Error):  # it is closed then, and so rolled back
                self._connection.execute("ROLLBACK")
            self._release()

    def revoke_if_late(self) -> bool:
        """Take the connection back if the time is up and no statement runs; return whether it was taken.

        The server ends the transaction by itself at that time; this is for the others who wait for a connection.
        """
        if self._is_over or time.monotonic() < self._deadline or not self._lock.acquire(blocking=False):
            return False
        with _Taken(self._lock):
            self._release(broken=True)  # does nothing to what has ended just now
        return True

    def cancel(self) -> None:
        """Stop the statement that runs, if one does; from any thread."""
        with suppress(psycopg.Error):  # the server is gone: nothing runs
            self._connection.cancel_safe(timeout=CANCEL_S)

    # How it is done.

    def _settings(self, settings: Settings) -> list[tuple[str, str]]:
        is_limited = self._connection.info.server_version >= _LIMITS_TRANSACTIONS
        limits = durations(
            lock_timeout=settings.busy_timeout,
            idle_in_transaction_session_timeout=self._limit,
            transaction_timeout=self._limit if is_limited else None,
        )
        return [*limits, *([] if settings.synchronous == "full" else [("synchronous_commit", "off")])]

    def _begin_with(self, settings: Sequence[tuple[str, str]], timeout: float) -> None:
        def send() -> None:
            self._connection.execute(self._begin.value)
            set_local(self._connection, settings)

        try:
            pipelined(self._connection, send)
        except psycopg.Error as error:
            if not is_broken(self._connection, error):
                raise mapped(error, self._name) from None
            self._connection = self._connections.renewed(self._connection, timeout)  # it died while it lay idle
            pipelined(self._connection, send)

    def _guarded(self, send: Callable[[], T], timeout: float | None) -> T:
        """Send statements behind a savepoint, which is undone if they fail."""

        def sent() -> T:
            self._connection.execute("SAVEPOINT walpool_statement")
            set_local(self._connection, durations(statement_timeout=timeout))
            found = send()
            if timeout is not None:
                set_local(self._connection, [("statement_timeout", "0")])
            self._connection.execute("RELEASE walpool_statement")
            return found

        def do() -> T:
            try:
                return pipelined(self._connection, sent)
            except psycopg.Error as error:
                if not is_broken(self._connection, error):
                    self._connection.execute("ROLLBACK TO walpool_statement; RELEASE walpool_statement")
                raise

        return self._run(do)

    def _run(self, do: Callable[[], T]) -> T:
        with self._in_hand():
            if time.monotonic() >= self._deadline:
                self._release(broken=True)
                raise self._late()
            try:
                return do()
            except psycopg.Error as error:
                if not is_broken(self._connection, error):
                    raise mapped(error, self._name) from None
                self._release()
                raise (self._late() if time.monotonic() >= self._deadline else mapped(error, self._name)) from None

    def _late(self) -> Error:
        what = "snapshot" if self._begin is Begin.SNAPSHOT else "transaction"
        return TransactionTimeout(
            f"the {what} was held for more than {self._limit:g} s (transaction_timeout) and rolled back [{self._name}]"
        )

    def _in_hand(self) -> _Taken:
        if not self._lock.acquire(blocking=False):
            raise InterfaceError(f"the transaction is in use by another thread or task [{self._name}]")
        if self._is_over:
            self._lock.release()
            raise self._late() if time.monotonic() >= self._deadline else ClosedError(f"it is over [{self._name}]")
        return _Taken(self._lock)

    def _release(self, *, broken: bool = False) -> None:
        if self._is_over:
            return
        self._is_over = True
        if broken:
            self._connection.close()
        self._connections.checkin(self._connection)


class _Taken:
    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._lock.release()
