"""`Session`: a connection that one caller holds in a transaction of several statements. Knows no pool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg

from walpool.errors import ClosedError, Error, InterfaceError, TransactionTimeout
from walpool.postgres._errors import forget_theirs, is_broken, mapped
from walpool.postgres._jobs import Job
from walpool.postgres._reading import Query
from walpool.postgres._results import Result, Rows
from walpool.postgres._wire import CANCEL_S, Exchange, Failed, committed, durations

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._connections import Loan
    from walpool.postgres._figures import Figures
    from walpool.postgres._wire import Connection
    from walpool.settings import Settings

__all__ = ["Begin", "Session"]

T = TypeVar("T")

_TIME_IS_UP: Final = frozenset({"25P03", "25P04"})


class Begin(Enum):
    """The transactions that are held."""

    # One snapshot, as on SQLite. A row that somebody else has changed meanwhile is refused rather than overwritten.
    TRANSACTION = b"BEGIN ISOLATION LEVEL REPEATABLE READ"
    SNAPSHOT = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Session:
    """A transaction that is open across calls, until `end`, or until its time is up.

    Each statement has a savepoint: as on SQLite a failed one is undone and leaves the transaction open.
    """

    def __init__(
        self,
        loan: Loan,
        begin: Begin,
        settings: Settings,
        *,
        name: str,
        local_settings: Sequence[tuple[str, str]] = (),
        timeout: float,
        figures: Figures,
    ) -> None:
        self._loan = loan
        self._process = os.getpid()
        self._begin = begin
        self._name = name
        self._figures = figures
        self._began = time.monotonic()
        self._limit = settings.transaction_timeout
        self._deadline = self._began + self._limit
        self._lock = threading.Lock()  # a session is one caller's: whoever meets it taken is refused
        self._is_over = False
        self._is_ending = False  # asked to end while a statement ran
        self._marks = 0
        try:
            self._begin_with((*self._settings(settings), *local_settings), timeout)
        except BaseException:
            self._release()
            raise

    def write(self, job: Job, timeout: float | None) -> list[Result]:
        """Run the statements of a job: all of them or none."""
        return self._run(lambda: self._results(job, self._guarded(job.ask, timeout, job)))

    def read(self, asked: Query, timeout: float | None) -> Rows:
        """Run a query; it sees what the transaction wrote."""
        return self._run(lambda: Rows.of(self._connection, self._guarded(asked.through, timeout, sql=asked.sql)[0]))

    def declare(self, asked: Query) -> None:
        """Open the one cursor of a stream."""
        cursor = asked._replace(sql=b"DECLARE walpool_rows NO SCROLL CURSOR FOR " + asked.sql)
        self._run(lambda: self._guarded(cursor.through, None, sql=cursor.sql))

    def next_rows(self, count: int) -> Rows:
        """Return the next rows of the cursor."""
        return self.read(Query(b"FETCH FORWARD %d FROM walpool_rows" % count, ()), None)

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
            if time.monotonic() >= self._deadline:  # the server has ended it, or does: COMMIT is not sent, nor in doubt
                self._release(broken=True)
                raise self._late()
            try:
                self._refuse_ended()
                status = committed(self._connection)
            except psycopg.Error as error:
                if error.sqlstate in _TIME_IS_UP:  # before COMMIT came
                    raise self._late() from None
                is_unknown = is_broken(self._connection, error)
                what = f"COMMIT on {self._name}" + (": a later read tells whether it was applied" if is_unknown else "")
                raise mapped(error, what, outcome="unknown" if is_unknown else "not_applied") from None
            finally:
                self._release()
        if status != b"COMMIT":
            raise TransactionTimeout(f"the transaction was rolled back meanwhile; nothing was written [{self._name}]")

    def end(self) -> None:
        """Roll back what is not committed, and give the connection back. Safe to call twice.

        Where a statement still runs it is done at its end. In a child process the parent's transaction is left alone.
        """
        self._is_ending = True
        if self._is_over:
            return
        if self._process != os.getpid():
            self._release()
        elif self._lock.acquire(blocking=False):
            with _Taken(self):
                pass

    def revoke_if_late(self) -> bool:
        """Take the connection back if the time is up and no statement runs; return whether it was taken.

        The server ends the transaction by itself at that time; this is for the others who wait for a connection.
        """
        if self._is_over or time.monotonic() < self._deadline or not self._lock.acquire(blocking=False):
            return False
        with _Taken(self):
            self._release(broken=True)  # does nothing to what has ended just now
        return True

    def cancel(self) -> None:
        """Stop the statement that runs, if one does; from any thread."""
        with suppress(psycopg.Error):  # the server is gone: nothing runs
            self._connection.cancel_safe(timeout=CANCEL_S)

    # How it is done.

    def _settings(self, settings: Settings) -> tuple[tuple[str, str], ...]:
        is_limited = self._connection.limits_transactions
        return durations(
            lock_timeout=settings.busy_timeout,
            idle_in_transaction_session_timeout=self._limit,
            transaction_timeout=self._limit if is_limited else None,
        )

    def _begin_with(self, settings: Sequence[tuple[str, str]], timeout: float) -> None:
        try:
            self._say(self._begin.value, settings)
        except psycopg.Error as error:
            if not is_broken(self._connection, error):
                raise mapped(error, self._name) from None
            self._loan.renew(timeout)  # it died while it lay idle
            try:
                self._say(self._begin.value, settings)
            except psycopg.Error as again:
                raise mapped(again, self._name) from None

    def _say(self, begin: bytes, settings: Sequence[tuple[str, str]]) -> None:
        exchange = Exchange(self._connection)
        exchange.say(begin)
        exchange.set_local(settings)
        try:
            exchange.run()
        except Failed as failure:
            raise failure.error from None

    def _refuse_ended(self) -> None:
        """Raise the error if the server has ended the connection already: then COMMIT is not sent, and not in doubt."""
        try:
            for _ in ("its last words", "its end"):  # of neither of which a connection that lives has anything
                self._connection.pgconn.consume_input()
        except psycopg.Error as error:
            raise mapped(error, self._name) from None

    def _guarded(
        self, ask: Callable[[Exchange], object], timeout: float | None, job: Job | None = None, sql: bytes = b""
    ) -> list[PGresult]:
        """Send statements behind a savepoint, which is undone if they fail."""
        exchange = Exchange(self._connection)
        exchange.say(b"SAVEPOINT walpool_statement")
        exchange.set_local(durations(statement_timeout=timeout))
        ask(exchange)
        if timeout is not None:
            exchange.set_local([("statement_timeout", "0")])
        exchange.say(b"RELEASE walpool_statement")
        try:
            return exchange.run()
        except Failed as failure:
            if not is_broken(self._connection, failure.error):
                self._connection.execute("ROLLBACK TO walpool_statement; RELEASE walpool_statement")
                place, sql = (job.place(failure.answered), job.sql(failure.answered)) if job is not None else ("", sql)
                is_read = self._begin is Begin.SNAPSHOT
                raise mapped(failure.error, self._name, place=place, sql=sql, is_read=is_read) from None
            raise failure.error from None

    def _results(self, job: Job, answers: Sequence[PGresult]) -> list[Result]:
        try:
            return job.results(self._connection, answers, [1] * len(answers))
        except psycopg.Error:
            self._release(broken=True)  # the statement is not undone by itself any more
            raise

    def _run(self, do: Callable[[], T]) -> T:
        with self._in_hand():
            if time.monotonic() >= self._deadline:
                self._release(broken=True)
                raise self._late()
            try:
                return do()
            except psycopg.Error as error:
                is_late = time.monotonic() >= self._deadline
                if not self._is_over:
                    if not is_broken(self._connection, error):
                        raise mapped(error, self._name) from None
                    self._release(broken=True)
                raise (self._late() if is_late else mapped(error, self._name)) from None
            except Error:
                raise
            except BaseException:
                self._release(broken=True)  # the statement was left half-way
                raise

    def _late(self) -> Error:
        what = "snapshot" if self._begin is Begin.SNAPSHOT else "transaction"
        return TransactionTimeout(
            f"the {what} was held for more than {self._limit:g} s (transaction_timeout) and rolled back [{self._name}]"
        )

    @property
    def _connection(self) -> Connection:
        return self._loan.connection

    def _in_hand(self) -> _Taken:
        if self._process != os.getpid():
            raise InterfaceError(f"it belongs to the parent process; begin another one in this process [{self._name}]")
        if not self._lock.acquire(blocking=False):
            raise InterfaceError(f"the transaction is in use by another thread or task [{self._name}]")
        if self._is_over:
            self._lock.release()
            what = self._begin.name.lower()
            is_late = time.monotonic() >= self._deadline
            raise self._late() if is_late else ClosedError(f"the {what} has ended [{self._name}]")
        return _Taken(self)

    def _let_go(self) -> None:
        if self._is_ending and not self._is_over:
            with suppress(psycopg.Error):  # it is closed then, and so rolled back
                self._connection.execute("ROLLBACK")
            self._release()

    def _release(self, *, broken: bool = False) -> None:
        if self._is_over:
            return
        self._is_over = True
        held = time.monotonic() - self._began
        self._figures.took(self._begin.name.lower(), held, b"(several statements)")
        if self._begin is Begin.TRANSACTION:
            self._figures.sample("lease_ms", held * 1000)
        if broken:
            self._connection.close()
        self._loan.end()


class _Taken:
    """The right to use a session's connection, which its holder has already."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        forget_theirs(error)
        try:
            self._session._let_go()
        finally:
            self._session._lock.release()
