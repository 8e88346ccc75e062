"""`Exchange`: statements that go to the server in one round trip, and what it answers. Knows no jobs and no pools.

Built on psycopg's layer over libpq rather than on its cursors: in a pipeline these cost 25 us of Python a statement,
flush each on its own, and have the server parse it each time. Here all is sent at once, a statement is parsed once, and
what was refused is known by its place among the answers. Measured in benches/README.md, "postgres".
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg import capabilities, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, ExecStatus, Format, TransactionStatus
from psycopg.waiting import Ready, Wait

from walpool.postgres._pending import may_be_pending, seeing
from walpool.postgres._steps import Answers, Blocking, doing, finish
from walpool.postgres._values import Unknown, learn

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.abc import Transformer as Converter
    from psycopg.pq.abc import PGresult

    from walpool.postgres._kept import Kept, Key
    from walpool.postgres._steps import Steps
    from walpool.types import Row

__all__ = [
    "CANCEL_S",
    "Connection",
    "Exchange",
    "Failed",
    "Outdated",
    "committing",
    "converting",
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
_TYPE: Final = """
    SELECT p.proname, CASE WHEN t.typcategory = 'A' THEN t.typelem::int8 ELSE 0 END
    FROM pg_catalog.pg_type AS t LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = t.typsend WHERE t.oid = %s
"""
_USES: Final = re.compile(rb"(cast\s*\(\s*)?\$(\d+)(\s*::)?", re.IGNORECASE)
_TEXTS: Final = frozenset({25, 1043})  # the OIDs of text and varchar
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

    def learn(self, oid: int) -> None:
        """Ask the server how values of a type come, so that they are converted from then on, or refused."""
        found = self.execute(_TYPE, [oid]).fetchone()
        send, element = found or ("", 0)
        learn(self.adapters, oid, send, element)
        self._converter = None  # which remembers what it had for the type


def converting(connection: Connection, convert: Callable[[], T], *, takes_long: bool) -> Steps[T]:
    """Return what a call makes of results; types that the connection has not met are asked for."""
    while True:
        try:
            return (yield from doing(convert, takes_long=takes_long))
        except Unknown as unknown:
            oid = unknown.oid
        yield Blocking(partial(connection.learn, oid))


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

    key: Key | None = None
    is_wanted: bool = False
    """Whether the caller asked for it."""
    by_name: bool = False
    """Whether the statement was parsed before, and sent by its name."""
    describes: bool = False
    """Whether it tells which types the server made out."""


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
        self._new: dict[Key, int] = {}  # statements that it keeps from now on, with the place of their preparation
        self._sent: list[_Sent] = []  # one for each result to come
        self._parsed: dict[Key, bytes] = {}  # by their names; empty if they were sent without
        self._unnamed: Key | None = None  # the statement that has no name, if it was asked for
        self._names: list[bytes] = []
        self._pieces = 0  # in which the answers came
        self._pgconn.enter_pipeline_mode()

    def say(self, sql: bytes, *, is_wanted: bool = False) -> None:
        """Add a statement without parameters that never goes by a name."""
        self._pgconn.send_query_params(sql, None)
        self._sent.append(_Sent(is_wanted=is_wanted))
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
        key = (sql, types)
        name = self._parsed.get(key)
        if not name and self._unnamed != key:
            name = self._parsed[key] = self._named(key, again=name is not None)
            if not name:
                self._pgconn.send_query_params(sql, values, types, formats, Format.BINARY)
                self._unnamed = key
                self._sent.append(_Sent(key, is_wanted))
                return
        self._pgconn.send_query_prepared(name or b"", values, formats, Format.BINARY)
        self._sent.append(_Sent(key, is_wanted, by_name=bool(name)))

    def _named(self, key: Key, *, again: bool) -> bytes:
        """Return a statement's name; none, if it is better sent without."""
        kept = self._kept.find(key) if self._kept is not None else None
        if kept is not None and not kept.is_new:
            return kept.name
        if kept is not None:
            name = kept.name
            self._new[key] = len(self._sent)
        elif again and self._by_name and NAMES:
            name = b"walpool_%d" % len(self._names)
            self._names.append(name)
        else:
            return b""
        sql, types = key
        self._pgconn.send_prepare(name, sql, types)
        self._sent.append(_Sent(key))
        if kept is not None and 0 in types:
            self._pgconn.send_describe_prepared(name)
            self._sent.append(_Sent(key, describes=True))
        return name

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
                outdated = [sent.key] if sent.key and sent.by_name and (error.sqlstate or "")[:2] in _OUTDATED else []
                self._forget(place, outdated)
                raise (Outdated if outdated else Failed)(error, len(asked))
            if sent.describes and sent.key and self._kept is not None and not _takes_texts(sent.key, result):
                self._kept.bar(sent.key)
            if sent.is_wanted:
                asked.append(result)
        return asked

    def _forget(self, failed: int, outdated: Iterable[Key]) -> None:
        """Have the session keep neither what is outdated, nor what was not prepared, since something failed before."""
        if self._kept is not None:
            self._kept.forget(outdated)
            self._kept.forget(key for key, place in self._new.items() if place >= failed)


def _takes_texts(key: Key, description: PGresult) -> bool:
    """Return whether the server takes for texts what the caller left the type of to the statement, and it names none.

    A type that the statement names itself, as `$1::date` does, is the same when it is parsed again.
    """
    sql, types = key
    made_out = {n for n, given in enumerate(types) if not given and description.param_type(n) not in _TEXTS}
    return made_out.isdisjoint(int(n) - 1 for cast, n, colons in _USES.findall(sql) if not (cast or colons))


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
