"""`Exchange`: statements that go to the server in one round trip, and what it answers. Knows no jobs and no pools.

Built on psycopg's layer over libpq rather than on its cursors: in a pipeline these cost 25 us of Python a statement,
flush each on its own, and have the server parse it each time. Here all is sent at once, a statement is parsed once, and
what was refused is known by its place among the answers. Measured in benches/README.md, "postgres".
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg import capabilities, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, ExecStatus, Format, TransactionStatus
from psycopg.waiting import Ready, Wait

from walpool.postgres._kept import fit
from walpool.postgres._pending import may_be_pending, seeing
from walpool.postgres._steps import Answers, finish

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.abc import Transformer as Converter
    from psycopg.pq.abc import PGresult

    from walpool.postgres._kept import Kept, Types
    from walpool.postgres._steps import Steps
    from walpool.types import Row

__all__ = [
    "CANCEL_S",
    "Connection",
    "Exchange",
    "Failed",
    "Outdated",
    "committing",
    "durations",
    "given_up",
]

T = TypeVar("T")

NAMES: Final = capabilities.has_send_close_prepared()
"""Whether this libpq can close a prepared statement, as it can from 17 on."""
AT_ONCE: Final = 500
"""Rows that an event loop's own thread converts at once: about a millisecond of its time; for more a thread does."""
PIECES_AT_ONCE: Final = 16
"""Pieces in which such rows come at most, of 8 KiB or more where the server has them ready."""
CANCEL_S: Final = 5.0
"""Seconds that a request to stop a statement may take, and then as many that its answer may; then the server is given
up, with the connection."""
_OUTDATED: Final = frozenset({"0A", "22", "26", "42", "XX"})
"""Classes of what a named statement may be refused for if the schema has changed since it was parsed."""
_GOOD: Final = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})
_COPIES: Final = frozenset({ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH})


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """psycopg's connection, with the one converter that all of its exchanges use, and what its session keeps."""

    _converter: Converter | None = None
    is_pooled = True
    """Whether a pooler may stand between, so that the next transaction may have another session."""
    reads_only = False
    """Whether its session refuses writes by itself."""
    may_be_pending: bool
    """Whether bytes may have come that the socket does not show."""
    kept: Kept | None = None
    """The statements that its session keeps, if it has one of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process = os.getpid()
        self.may_be_pending = may_be_pending(self.pgconn)

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Block until a generator of psycopg's is done; see psycopg."""
        return super().wait(seeing(self.pgconn, gen) if self.may_be_pending else gen, *args, **kwargs)

    def close(self) -> None:
        """Close it; not the parent's in a child process, since the server would hear of it."""
        if self._process == os.getpid():
            super().close()

    @property
    def converter(self) -> Converter:
        """What turns parameters into bytes and results into rows."""
        if self._converter is None:
            self._converter = Transformer(self)
        return self._converter

    @property
    def limits_transactions(self) -> bool:
        """Whether the server can end a transaction for its whole length, as from 17 on; older ones only for idling."""
        return self.info.server_version >= 170000

    def rows(self, result: PGresult) -> list[Row]:
        """Return the rows of a result.

        Raises:
            psycopg.DataError: a value of theirs has no counterpart in Python, such as the timestamp `infinity`.
        """
        try:
            self.converter.set_pgresult(result)
            return self.converter.load_rows(0, result.ntuples, tuple)
        except (psycopg.Error, ValueError, ArithmeticError):  # whose text quotes the value
            msg = "a value of the result has no counterpart in Python; cast it to text in the SQL"
            raise psycopg.DataError(msg) from None


class Failed(Exception):
    """The server refused a statement; those behind it were skipped."""

    def __init__(self, error: psycopg.Error, answered: int) -> None:
        super().__init__()
        self.error = error
        self.answered = answered
        """How many runs of statements that were asked for were answered before."""


class Outdated(Failed):
    """The statement went by its name, and the schema may be another one since it was parsed: worth an attempt without.

    https://www.postgresql.org/docs/18/sql-prepare.html; "cached plan must not change result type" is one such refusal.
    """


class _Sent(NamedTuple):
    """What one result answers."""

    sql: bytes
    is_wanted: bool = False
    """Whether the caller asked for it."""
    by_name: bool = False
    """Whether the statement was parsed before, and sent by its name."""


class Exchange:
    """Statements for one round trip; `running` sends them. In a transaction that the first one begins, or that is open.

    A statement that is asked for time and again is parsed once: for good where the session keeps it (`Kept`). Else the
    unnamed statement of the protocol does, while nothing comes between; or it gets a name, which is closed at the end:
    behind a pooler the next transaction has another session, and this one goes to somebody else.
    """

    def __init__(self, connection: Connection, *, by_name: bool = False) -> None:
        """Make one.

        Args:
            connection: where they go.
            by_name: whether statements may have names, kept or not. A named one may be outdated.
        """
        self._connection = connection
        self._pgconn = connection.pgconn
        self._by_name = by_name
        self._kept = connection.kept if by_name else None
        self._new: dict[bytes, int] = {}  # statements that it keeps from now on, with the place of their preparation
        self._sent: list[_Sent] = []  # one for each result to come
        self._parsed: dict[bytes, tuple[bytes, Types]] = {}  # a statement's name, and its parameters' types
        self._unnamed: bytes | None = None  # the statement that has no name, if it was asked for
        self._names: list[bytes] = []
        self._pieces = 0  # in which the answers came
        self._pgconn.enter_pipeline_mode()

    def say(self, sql: bytes) -> None:
        """Add a statement without parameters, whose result nobody wants."""
        self._pgconn.send_query_params(sql, None)
        self._sent.append(_Sent(sql))
        self._unnamed = None

    def set_local(self, settings: Iterable[tuple[str, str]]) -> None:
        """Set server settings until the end of the transaction; no session keeps any, since poolers share them."""
        given = [text for pair in settings for text in pair]
        if given:
            calls = ", ".join(f"set_config(${n}, ${n + 1}, true)" for n in range(1, len(given), 2))
            self._add(f"SELECT {calls}".encode(), given, is_wanted=False)

    def ask(self, sql: bytes, rows: Sequence[Sequence[object]]) -> None:
        """Add a statement that runs once for each row of parameters; parsed anew where a row has other types."""
        for row in rows:
            self._add(sql, row)

    def _add(self, sql: bytes, row: Sequence[object], *, is_wanted: bool = True) -> None:
        converter = self._connection.converter
        values = converter.dump_sequence(row, [PyFormat.AUTO] * len(row))
        types, formats = converter.types or (), converter.formats
        name, parsed = self._parsed.get(sql, (b"", types))
        is_parsed = sql in self._parsed and fit(values, types, parsed)
        if not is_parsed or not (name or self._unnamed == sql):
            name, parsed = self._named(sql, parsed if is_parsed else types, values, again=is_parsed)
            self._parsed[sql] = (name, parsed)
            if not name:
                self._pgconn.send_query_params(sql, values, parsed, formats, Format.BINARY)
                self._unnamed = sql
                self._sent.append(_Sent(sql, is_wanted))
                return
        self._pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        self._sent.append(_Sent(sql, is_wanted, by_name=bool(name)))

    def _named(self, sql: bytes, types: Types, values: Sequence[object], *, again: bool) -> tuple[bytes, Types]:
        """Return a statement's name, and the types of its parameters; no name, if it is better sent without."""
        kept = self._kept.find(sql, types, values) if self._kept is not None else None
        if kept is not None and not kept.is_new:
            return kept.name, kept.types
        if kept is not None:
            name, types = kept.name, kept.types
            self._new[sql] = len(self._sent)
        elif again and self._by_name and NAMES:
            name = b"walpool_%d" % len(self._names)
            self._names.append(name)
        else:
            return b"", types
        self._pgconn.send_prepare(name, sql, types)
        self._sent.append(_Sent(sql))
        return name, types

    def run(self) -> list[PGresult]:
        """Take the steps of `running` on this thread."""
        return finish(self.running())

    def running(self, until: float = inf) -> Steps[list[PGresult]]:
        """Send all and return what was asked for, a result for each row of parameters.

        Args:
            until: when to give the server up, on the monotonic clock.

        Raises:
            Failed: the server refused one.
            Outdated: it may do so because the statement was parsed before.
            psycopg.Error: the connection broke.
        """
        names, self._names = self._names + self._gone(), []
        results = yield from self._answered(names, until)
        try:
            return self._asked_for(results)
        except Failed:
            names += self._gone()
            if names and not self._connection.closed:  # what was to close them was skipped
                self._sent = []
                self._pgconn.enter_pipeline_mode()
                yield from self._answered(names, until)
            raise

    def is_large(self, answers: Sequence[PGresult]) -> bool:
        """Return whether to convert their rows takes longer than an event loop can wait for."""
        return self._pieces > PIECES_AT_ONCE or sum(answer.ntuples for answer in answers) > AT_ONCE

    def _gone(self) -> list[bytes]:
        return self._kept.take_gone() if self._kept is not None else []

    def _answered(self, names: Sequence[bytes], until: float) -> Steps[list[PGresult]]:
        """Send what was added, close the names, and return all results."""
        try:
            for name in names:
                self._pgconn.send_close_prepared(name)
            self._pgconn.pipeline_sync()
            answers = self._answers(len(self._sent) + len(names) + 1)
            results: list[PGresult] = yield Answers(self._connection, answers, until)
            self._pgconn.exit_pipeline_mode()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self._pgconn.transaction_status == TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):  # the signal came before the wait, which would have done it
                    self._connection.cancel_safe(timeout=CANCEL_S)
            self._connection.close()  # what is half read is of no use to anybody
            raise
        return results

    def _answers(self, count: int) -> PQGen[list[PGresult]]:
        """Send what is not sent yet, reading meanwhile: a server that cannot answer does not read either."""
        pgconn = self._pgconn
        answers: list[PGresult] = []
        while pgconn.flush():
            ready = yield Wait.RW
            if (ready or Ready.NONE) & Ready.R:  # None where another takes the steps from here on
                self._consume()
        while len(answers) < count:
            while pgconn.is_busy():
                yield Wait.R
                self._consume()
                self._pieces += 1
            result = pgconn.get_result()
            if result is not None:  # None stands between two statements
                answers.append(result)
                if result.status in _COPIES:
                    raise psycopg.NotSupportedError("COPY is no statement for execute()")
        return answers

    def _consume(self) -> None:
        """Take in what has come; if the connection ended, raise the server's last words rather than libpq's on the end.

        They tell whose doing it was, and that a COMMIT which came after them was not heard.
        """
        try:
            self._pgconn.consume_input()
        except psycopg.OperationalError:
            last = self._pgconn.get_result()
            if last is not None and last.error_field(DiagnosticField.SQLSTATE):
                raise errors.error_from_result(last) from None
            raise

    def _asked_for(self, results: list[PGresult]) -> list[PGresult]:
        asked: list[PGresult] = []
        # The last ones answer closes and the sync.
        for place, (result, sent) in enumerate(zip(results, self._sent, strict=False)):
            if result.status not in _GOOD:
                error = errors.error_from_result(result)
                outdated = [sent.sql] if sent.by_name and (error.sqlstate or "")[:2] in _OUTDATED else []
                self._forget(place, outdated)
                raise (Outdated if outdated else Failed)(error, len(asked))
            if sent.is_wanted:
                asked.append(result)
        return asked

    def _forget(self, failed: int, outdated: Iterable[bytes]) -> None:
        """Have the session keep neither what is outdated, nor what was not prepared, since something failed before."""
        if self._kept is not None:
            self._kept.forget(outdated)
            self._kept.forget(sql for sql, place in self._new.items() if place >= failed)


def committing(connection: Connection, until: float = inf) -> Steps[bytes]:
    """Send COMMIT and return what the server calls it: ROLLBACK, where the transaction had failed.

    Raises:
        psycopg.Error: it was refused, or the connection broke.
    """
    exchange = Exchange(connection)
    exchange.ask(b"COMMIT", ((),))
    try:
        answers = yield from exchange.running(until)
        return answers[0].command_status or b""
    except Failed as failure:
        error = failure.error
    raise error


def given_up(timeout: float | None) -> float:
    """Return when a server is given up that was to stop a statement by itself, on the monotonic clock.

    Args:
        timeout: seconds until it was to do so, or None.
    """
    return inf if timeout is None else time.monotonic() + timeout + CANCEL_S


def durations(**seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return server settings that are durations; those that are None are left out."""
    return tuple((name, f"{max(1, int(value * 1000))}ms") for name, value in seconds.items() if value is not None)
