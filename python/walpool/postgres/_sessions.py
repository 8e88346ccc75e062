"""`Session`: a connection that one caller holds in a transaction of several statements. Knows no pool.

What it does is steps (`_steps`), which have it in hand from the first to the last:

    a statement                 its task is cancelled       `ending`, by others         others wait for a connection
    takes it in hand
    is sent, waits              the server is told
    was stopped: is undone                                  is left to the statement    time is up: leave it alone
    ends it, if that was asked
    lets it go                                                                          time is up: end it
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import psycopg
from psycopg.pq import PipelineStatus

from walpool.errors import ClosedError, Error, InterfaceError, TransactionTimeout
from walpool.postgres._errors import forget_theirs, is_broken, mapped
from walpool.postgres._jobs import Job
from walpool.postgres._reading import Query
from walpool.postgres._results import Result, Rows
from walpool.postgres._steps import Unanswered
from walpool.postgres._wire import CANCEL_S, Exchange, Failed, Outdated, committing, converting, durations, given_up

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._connections import Loan
    from walpool.postgres._figures import Figures
    from walpool.postgres._steps import Steps
    from walpool.postgres._wire import Connection
    from walpool.settings import Settings

__all__ = ["Begin", "Session"]

T = TypeVar("T")

ENDED_AFTER: Final = 1.0
"""Seconds after the time is up in which the server's word of it comes to whoever listens."""
_MOST_FETCHED: Final = 2**31 - 1
"""Rows that FETCH takes."""
_TIME_IS_UP: Final = frozenset({"25P03", "25P04"})


class Begin(Enum):
    """The transactions that are held."""

    # One snapshot, as on SQLite. A row that somebody else has changed meanwhile is refused rather than overwritten.
    TRANSACTION = b"BEGIN ISOLATION LEVEL REPEATABLE READ"
    SNAPSHOT = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


_KEEP_TIMEOUT: Final = b"SELECT set_config('walpool.timeout', current_setting('statement_timeout'), true)"
_RESTORE_TIMEOUT: Final = b"SELECT set_config('statement_timeout', current_setting('walpool.timeout'), true)"
"""The limit of the role, or of the caller's own, holds again behind a statement that had another."""


class Session:
    """A transaction that is open across calls, from `beginning` to `ending`, or until its time is up.

    Each statement has a savepoint: as on SQLite a failed one is undone and leaves the transaction open.
    """

    def __init__(
        self,
        begin: Begin,
        settings: Settings,
        *,
        name: str,
        local_settings: Sequence[tuple[str, str]] = (),
        figures: Figures,
    ) -> None:
        self._begin = begin
        self._name = name
        self._local_settings = local_settings
        self._figures = figures
        self._busy_timeout = settings.busy_timeout
        self._limit = settings.transaction_timeout
        self._process = os.getpid()
        self._loan: Loan | None = None  # until it begins
        self._is_limited = False  # by the server, too, even while a statement runs
        self._began = 0.0
        self._deadline = math.inf
        self._timeout = 0.0  # for opening a connection in place of one that had died
        self._lock = threading.Lock()  # a session is one caller's: whoever meets it taken is refused
        self._is_open = False  # BEGIN was sent and answered
        self.is_over = False  # nothing is held any more
        self._is_ending = False  # asked to end; whoever has it in hand does so
        self._marks = 0
        self._is_shaped = False  # what was parsed before may mean something else in it

    # What may be done with it.

    def beginning(self, lending: Steps[Loan], timeout: float, cursor: Query | None = None) -> Steps[None]:
        """Have a connection lent, and take the snapshot; that of a transaction is taken by its first statement.

        Args:
            lending: the connection. One that had died while it lay idle costs a second attempt.
            timeout: seconds for opening another one then.
            cursor: what a stream is to read.
        """
        return self._holding(self._begun(lending, timeout, cursor))

    def writing(self, job: Job, timeout: float | None) -> Steps[list[Result]]:
        """Run the statements of a job: all of them or none."""
        return self._running(self._written(job, timeout))

    def reading(self, asked: Query, timeout: float | None) -> Steps[Rows]:
        """Run a query; it sees what the transaction wrote."""
        return self._running(self._read(asked, timeout))

    def fetching(self, count: int) -> Steps[Rows]:
        """Return the next rows of the cursor; the transaction is of no use any more if that fails."""
        return self._running(self._fetched(b"FETCH FORWARD %d FROM walpool_rows" % min(count, _MOST_FETCHED)))

    def marking(self) -> Steps[int]:
        """Begin a savepoint inside those before it, and return its number."""
        return self._running(self._marked())

    def undoing(self, mark: int) -> Steps[None]:
        """Undo what came after a savepoint, and forget it and those inside of it."""
        return self._running(self._left(mark, "ROLLBACK TO", "RELEASE"))

    def keeping(self, mark: int) -> Steps[None]:
        """Forget a savepoint and those inside of it, and keep what came after."""
        return self._running(self._left(mark, "RELEASE"))

    def committing(self) -> Steps[None]:
        """Commit, and give the connection back.

        Raises:
            Error: `outcome` is `unknown` where the connection broke meanwhile.
        """
        return self._holding(self._committed())

    def ending(self) -> Steps[None]:
        """Roll back what is not committed, and give the connection back. Safe to call twice.

        Where a statement still runs its steps do so at their end. In a child process the parent's is left alone.
        """
        self._is_ending = True
        if self.is_over:
            return
        if self._process != os.getpid():
            self._release()
        elif self._lock.acquire(blocking=False):
            try:
                yield from self._rolled_back()
            finally:
                self._release(broken=True)  # does nothing to what is over
                self._lock.release()

    def revoke_if_late(self) -> bool:
        """Take back what is held if the time is up; return whether there was something to take.

        That is the connection, if no statement runs; else the permit for one. The server ends the transaction by itself
        at that time; this is for the others who wait for a connection.
        """
        now = time.monotonic()
        if self.is_over or now < self._deadline:
            return False
        if not self._lock.acquire(blocking=False):
            return now >= self._deadline + ENDED_AFTER and self._forfeited()
        try:
            was_open = not self.is_over
            self._release(broken=True)
            return was_open
        finally:
            self._lock.release()

    def cancel(self) -> None:
        """Stop the statement that runs, if one does; from any thread, while its steps stand still."""
        with suppress(psycopg.Error, InterfaceError):  # the server is gone, or it is over: nothing runs
            self._connection.cancel_safe(timeout=CANCEL_S)

    # In hand.

    def _holding(self, steps: Steps[T]) -> Steps[T]:
        """Take steps with the session in hand; end it then, if somebody asked for that meanwhile."""
        self._take()
        try:
            return (yield from steps)
        except BaseException as error:
            forget_theirs(error)
            raise
        finally:
            self._lock.release()
            if self._is_ending:
                yield from self.ending()

    def _running(self, steps: Steps[T]) -> Steps[T]:
        """Take steps inside the transaction; those that end half-way end it."""
        return self._holding(self._minding(steps))

    def _minding(self, steps: Steps[T]) -> Steps[T]:
        self._refuse_late()
        try:
            return (yield from steps)
        except psycopg.Error as error:
            is_late = time.monotonic() >= self._deadline
            if not self.is_over:
                if not self._is_half_said() and not is_broken(self._connection, error):
                    raise self._mapped(error) from None
                self._release(broken=True)
            raise (self._late() if is_late else self._mapped(error)) from None
        except Error:
            raise
        except BaseException:
            self._release(broken=True)  # the statement was left half-way
            raise

    def _take(self) -> None:
        if self._process != os.getpid():
            raise InterfaceError(f"it belongs to the parent process; begin another one in this process [{self._name}]")
        if not self._lock.acquire(blocking=False):
            raise InterfaceError(f"the transaction is in use by another thread or task [{self._name}]")
        if self.is_over:
            self._lock.release()
            is_late = time.monotonic() >= self._deadline
            raise self._late() if is_late else ClosedError(f"the {self._begin.name.lower()} has ended [{self._name}]")

    def _refuse_late(self) -> None:
        if time.monotonic() >= self._deadline:  # the server has ended it, or does
            self._release(broken=True)
            raise self._late()

    def _is_half_said(self) -> bool:
        """Return whether statements were put together and not sent: they would go with the next ones."""
        return self._connection.pgconn.pipeline_status != PipelineStatus.OFF

    def _mapped(self, error: psycopg.Error, *, place: str = "", sql: bytes = b"") -> Error:
        return mapped(error, self._name, place=place, sql=sql, is_read=self._begin is Begin.SNAPSHOT)

    def _late(self) -> Error:
        what = "snapshot" if self._begin is Begin.SNAPSHOT else "transaction"
        return TransactionTimeout(
            f"the {what} was held for more than {self._limit:g} s (transaction_timeout) and rolled back [{self._name}]"
        )

    @property
    def _connection(self) -> Connection:
        if self._loan is None:
            raise InterfaceError(f"it has not begun [{self._name}]")
        return self._loan.connection

    def _release(self, *, broken: bool = False) -> None:
        if self.is_over:
            return
        self.is_over = True
        if self._loan is None:
            return
        held = time.monotonic() - self._began
        self._figures.took(self._begin.name.lower(), held, b"(several statements)")
        if self._begin is Begin.TRANSACTION:
            self._figures.sample("lease_ms", held * 1000)
        if broken:
            self._connection.close()
        self._loan.end()

    def _forfeited(self) -> bool:
        """Give the permit away: a loop that is blocked, or runs no more, does not hear that the server has ended it.

        Older servers end a statement that runs at no time, and it keeps its permit.
        """
        return self._is_limited and self._loan is not None and self._loan.forfeit()

    # At its beginning and its end.

    def _begun(self, lending: Steps[Loan], timeout: float, cursor: Query | None) -> Steps[None]:
        try:
            self._loan = yield from lending
            self._began = time.monotonic()
            self._deadline = self._began + self._limit
            self._timeout = timeout
            self._is_limited = self._loan.connection.limits_transactions
            if self._begin is Begin.SNAPSHOT:
                yield from self._answered(_nothing if cursor is None else _declaring(cursor).through)
        except psycopg.Error as error:
            self._release()
            raise self._mapped(error, sql=b"" if cursor is None else _declaring(cursor).sql) from None
        except BaseException:
            self._release()
            raise

    def _say_begin(self, exchange: Exchange) -> None:
        """Add BEGIN and its settings to an exchange.

        Where the server limits a transaction's whole length it limits its idleness too:
        https://www.postgresql.org/docs/17/runtime-config-client.html#GUC-TRANSACTION-TIMEOUT
        """
        limit = "transaction_timeout" if self._is_limited else "idle_in_transaction_session_timeout"
        limits = durations(lock_timeout=self._busy_timeout, **{limit: self._deadline - time.monotonic()})
        exchange.say(self._begin.value)
        if self._begin is Begin.SNAPSHOT:
            exchange.set_local((*limits, *self._local_settings))  # by a SELECT, which takes the snapshot here and now
        else:
            for name, value in limits:  # ours, not the caller's; half the server's work of a SELECT
                exchange.say(f"SET LOCAL {name} = '{value}'".encode())
            exchange.set_local(self._local_settings)

    def _committed(self) -> Steps[None]:
        if not self._is_open:  # and nothing is to be committed; an error is told all the same
            yield from self._minding(self._answered(_nothing))
        self._refuse_late()  # COMMIT is not sent, nor in doubt
        self._refuse_ended()
        until = self._given_up()
        self._deadline = math.inf
        try:
            status = yield from committing(self._connection, until)
        except psycopg.Error as error:
            if error.sqlstate in _TIME_IS_UP:  # before COMMIT came
                raise self._late() from None
            is_unknown = is_broken(self._connection, error)
            what = f"COMMIT on {self._name}" + (": a later read tells whether it was applied" if is_unknown else "")
            raise mapped(error, what, outcome="unknown" if is_unknown else "not_applied") from None
        except Error as error:  # no thread was there to wait for the answer
            error.outcome = "unknown"
            error.retryable = False
            raise
        finally:
            self._release()
        if status != b"COMMIT":
            raise TransactionTimeout(f"the transaction was rolled back meanwhile; nothing was written [{self._name}]")

    def _refuse_ended(self) -> None:
        """Raise the error if the server has ended the connection already: then COMMIT is not sent, and not in doubt."""
        try:
            for _ in ("its last words", "its end"):  # of neither of which a connection that lives has anything
                self._connection.pgconn.consume_input()
        except psycopg.Error as error:
            self._release()
            raise mapped(error, self._name) from None

    def _rolled_back(self) -> Steps[None]:
        if self.is_over or time.monotonic() >= self._deadline:
            return
        with suppress(psycopg.Error):  # it is closed then, and so rolled back
            if self._is_open:
                yield from self._saying(b"ROLLBACK")
            self._release()

    # Inside.

    def _written(self, job: Job, timeout: float | None) -> Steps[list[Result]]:
        self._is_shaped |= job.is_shaping
        exchange, answers = yield from self._guarded(job.ask, timeout, job)
        convert = partial(job.results, self._connection, answers, [1] * len(answers))
        try:
            return (yield from converting(self._connection, convert, takes_long=exchange.is_large(answers)))
        except BaseException:
            self._release(broken=True)  # the statement is not undone by itself any more
            raise

    def _read(self, asked: Query, timeout: float | None) -> Steps[Rows]:
        self._is_shaped |= asked.is_shaping
        exchange, answers = yield from self._guarded(asked.through, timeout, sql=asked.sql)
        return (yield from self._rows(exchange, answers))

    def _fetched(self, sql: bytes) -> Steps[Rows]:
        return (yield from self._rows(*(yield from self._answered(Query(sql, ()).through))))

    def _rows(self, exchange: Exchange, answers: Sequence[PGresult]) -> Steps[Rows]:
        return converting(
            self._connection, partial(Rows.of, self._connection, answers[0]), takes_long=exchange.is_large(answers)
        )

    def _guarded(
        self, ask: Callable[[Exchange], object], timeout: float | None, job: Job | None = None, sql: bytes = b""
    ) -> Steps[tuple[Exchange, list[PGresult]]]:
        """Send statements behind a savepoint, which is undone if they fail."""

        def add(exchange: Exchange) -> None:
            exchange.say(b"SAVEPOINT walpool_statement", is_wanted=True)  # to know whether it was there
            if timeout is not None:
                exchange.say(_KEEP_TIMEOUT)
                exchange.set_local(durations(statement_timeout=timeout))
            ask(exchange)
            if timeout is not None:
                exchange.say(_RESTORE_TIMEOUT)
            exchange.say(b"RELEASE walpool_statement")

        for by_name in (False,) if self._is_shaped else (True, False):
            try:
                exchange, (_, *answers) = yield from self._sent(add, timeout, by_name=by_name)
                return exchange, answers
            except Failed as failure:
                error, answered, is_outdated = failure.error, failure.answered - 1, isinstance(failure, Outdated)
            if is_broken(self._connection, error):
                raise error
            if answered >= 0:
                self._is_open = True
                yield from self._saying(b"ROLLBACK TO walpool_statement", b"RELEASE walpool_statement")
            else:
                yield from self._undone()
            if not is_outdated or self.is_over:
                break
        if answered < 0:
            raise error
        place, sql = (job.place(answered), job.sql(answered)) if job is not None else ("", sql)
        raise self._mapped(error, place=place, sql=sql)

    def _undone(self) -> Steps[None]:
        """Undo the transaction, which something has spoilt that had no savepoint; it may begin again, if it had not."""
        exchange = Exchange(self._connection)
        exchange.say(b"ROLLBACK")
        yield from exchange.running()
        if self._is_open:
            self._release()

    def _answered(self, add: Callable[[Exchange], object]) -> Steps[tuple[Exchange, list[PGresult]]]:
        """Send what is not behind a savepoint.

        Raises:
            psycopg.Error: it was refused, and has spoilt the transaction.
        """
        try:
            return (yield from self._sent(add))
        except Failed as failure:
            error = failure.error
        if not is_broken(self._connection, error):
            yield from self._undone()
        raise error

    def _sent(
        self, add: Callable[[Exchange], object], timeout: float | None = None, *, by_name: bool = False
    ) -> Steps[tuple[Exchange, list[PGresult]]]:
        """Send what `add` adds to an exchange, with BEGIN if that is not sent yet; return what was asked for.

        On a new connection if the first one died before BEGIN.

        Args:
            add: adds statements.
            timeout: seconds after which the server stops them by itself, if that is before it ends the transaction.
            by_name: whether statements may have names (`Exchange`).

        Raises:
            Failed: the server refused something.
            psycopg.Error: the connection broke.
        """
        loan = self._loan
        assert loan is not None  # it has begun
        while True:
            exchange = Exchange(loan.connection, by_name=by_name)
            if not self._is_open:
                self._say_begin(exchange)
            add(exchange)
            try:
                answers = yield from exchange.running(self._given_up(timeout))
            except (psycopg.Error, Failed) as failure:
                error, answered = (failure.error, failure.answered) if isinstance(failure, Failed) else (failure, 0)
                had_begun = self._is_open or answered or isinstance(error, Unanswered)
                if had_begun or loan.is_renewed or not is_broken(loan.connection, error):
                    raise
            else:
                self._is_open = True
                return exchange, answers
            yield loan.renewing(self._timeout)

    def _given_up(self, timeout: float | None = None) -> float:
        """Return when the server is given up: it should have stopped a statement, or the transaction, by itself."""
        left = self._deadline - time.monotonic()
        return given_up(left if timeout is None else min(left, timeout))

    def _marked(self) -> Steps[int]:
        yield from self._saying(b"SAVEPOINT walpool_mark_%d" % (self._marks + 1))
        self._marks += 1
        return self._marks

    def _left(self, mark: int, *verbs: str) -> Steps[None]:
        yield from self._saying(*(f"{verb} walpool_mark_{mark}".encode() for verb in verbs))
        self._marks = mark - 1

    def _saying(self, *statements: bytes) -> Steps[None]:
        def add(exchange: Exchange) -> None:
            for statement in statements:
                exchange.say(statement)

        yield from self._answered(add)


def _declaring(asked: Query) -> Query:
    return asked._replace(sql=b"DECLARE walpool_rows NO SCROLL CURSOR FOR " + asked.sql)


def _nothing(exchange: Exchange) -> None:
    """Add nothing to an exchange."""
