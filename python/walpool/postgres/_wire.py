"""`Exchange`: statements that go to the server in one round trip, and what it answers. Knows no jobs and no pools.

Built on psycopg's layer over libpq rather than on its cursors: in a pipeline these cost 25 us of Python a statement,
flush each on its own, and have the server parse it each time. Here all is sent at once, a statement is parsed once, and
what was refused is known by its place among the answers. Measured in benches/README.md, "postgres".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import capabilities, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, ExecStatus, Format, TransactionStatus
from psycopg.waiting import Ready, Wait

from walpool.postgres._steps import Answers, finish

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.abc import Transformer as Converter
    from psycopg.pq.abc import PGresult

    from walpool.postgres._steps import Steps
    from walpool.types import Row

__all__ = ["CANCEL_S", "Connection", "Exchange", "Failed", "committed", "committing", "durations"]

NAMES: Final = capabilities.has_send_close_prepared()
"""Whether this libpq can close a prepared statement, as it can from 17 on."""
AT_ONCE: Final = 500
"""Rows that an event loop's own thread converts at once: about a millisecond of its time; for more a thread does."""
PIECES_AT_ONCE: Final = 16
"""Pieces in which such rows come at most, of 8 KiB or more where the server has them ready."""
CANCEL_S: Final = 5.0
"""Seconds that a request to stop a statement may take; then the statement runs on."""
_GOOD: Final = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """psycopg's connection, with the one converter that all of its exchanges use."""

    _converter: Converter | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process = os.getpid()

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


class Exchange:
    """Statements for one round trip; `running` sends them. In a transaction that the first one begins, or that is open.

    A statement that is asked for time and again is parsed once. While nothing comes between, the unnamed statement of
    the protocol does; else it gets a name, which is closed at the end: behind a pooler the next transaction has another
    session, and this one goes to somebody else.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._wanted: list[bool] = []  # for each result to come, whether the caller asked for it
        self._parsed: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}  # a statement's name, and its parameters' types
        self._unnamed: bytes | None = None  # the statement that has no name, if it was asked for
        self._names: list[bytes] = []
        self._pieces = 0  # in which the answers came
        self._pgconn.enter_pipeline_mode()

    def say(self, sql: bytes) -> None:
        """Add a statement without parameters, whose result nobody wants."""
        self._pgconn.send_query_params(sql, None)
        self._wanted.append(False)
        self._unnamed = None

    def set_local(self, settings: Iterable[tuple[str, str]]) -> None:
        """Set server settings until the end of the transaction; no session keeps any, since poolers share them."""
        given = [text.encode() for pair in settings for text in pair]
        if given:
            calls = ", ".join(f"set_config(${n}, ${n + 1}, true)" for n in range(1, len(given), 2))
            self._pgconn.send_query_params(f"SELECT {calls}".encode(), given)
            self._wanted.append(False)
            self._unnamed = None

    def ask(self, sql: bytes, rows: Sequence[Sequence[object]]) -> None:
        """Add a statement that runs once for each row of parameters; parsed anew where a row has other types."""
        converter, pgconn, wanted = self._connection.converter, self._pgconn, self._wanted
        for row in rows:
            values = converter.dump_sequence(row, [PyFormat.AUTO] * len(row))
            types, formats = converter.types or (), converter.formats
            name, parsed = self._parsed.get(sql, (b"", None))
            if parsed is None or not (types == parsed or _fit(values, types, parsed)):
                self._parsed[sql] = (b"", types)
                self._unnamed = sql
                pgconn.send_query_params(sql, values, types, formats, Format.BINARY)
            elif name or self._unnamed == sql:
                pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            elif NAMES:
                name = self._named(sql, parsed)
                pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            else:
                self._unnamed = sql
                pgconn.send_query_params(sql, values, parsed, formats, Format.BINARY)
            wanted.append(True)

    def run(self) -> list[PGresult]:
        """Take the steps of `running` on this thread."""
        return finish(self.running())

    def running(self) -> Steps[list[PGresult]]:
        """Send all and return what was asked for, a result for each row of parameters.

        Raises:
            Failed: the server refused one.
            psycopg.Error: the connection broke.
        """
        names, self._names = self._names, []
        results = yield from self._sent(names)
        try:
            return self._asked_for(results)
        except Failed:
            if names and not self._connection.closed:  # what was to close them was skipped
                self._wanted = []
                self._pgconn.enter_pipeline_mode()
                yield from self._sent(names)
            raise

    def is_large(self, answers: Sequence[PGresult]) -> bool:
        """Return whether to convert their rows takes longer than an event loop can wait for."""
        return self._pieces > PIECES_AT_ONCE or sum(answer.ntuples for answer in answers) > AT_ONCE

    def _named(self, sql: bytes, types: tuple[int, ...]) -> bytes:
        name = b"walpool_%d" % len(self._names)
        self._names.append(name)
        self._parsed[sql] = (name, types)
        self._pgconn.send_prepare(name, sql, types)
        self._wanted.append(False)
        return name

    def _sent(self, names: Sequence[bytes]) -> Steps[list[PGresult]]:
        """Send what was added, close the names, and return all results."""
        try:
            for name in names:
                self._pgconn.send_close_prepared(name)
            self._pgconn.pipeline_sync()
            results: list[PGresult] = yield Answers(self._connection, self._answers(len(self._wanted) + len(names) + 1))
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
                if result.status in {ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH}:
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
        for result, is_wanted in zip(results, self._wanted, strict=False):  # the last ones answer closes and the sync
            if result.status not in _GOOD:
                raise Failed(errors.error_from_result(result), len(asked))
            if is_wanted:
                asked.append(result)
        return asked


def committed(connection: Connection) -> bytes:
    """Take the steps of `committing` on this thread."""
    return finish(committing(connection))


def committing(connection: Connection) -> Steps[bytes]:
    """Send COMMIT and return what the server calls it: ROLLBACK, where the transaction had failed.

    Raises:
        psycopg.Error: it was refused, or the connection broke.
    """
    exchange = Exchange(connection)
    exchange.ask(b"COMMIT", ((),))
    try:
        answers = yield from exchange.running()
        return answers[0].command_status or b""
    except Failed as failure:
        error = failure.error
    raise error


def _fit(values: Sequence[object], given: Sequence[int], types: Sequence[int]) -> bool:
    """Return whether values fit a statement that was parsed for other types: NULL fits any."""
    return all(
        kind == parsed or (kind == 0 and value is None)
        for value, kind, parsed in zip(values, given, types, strict=True)
    )


def durations(**seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return server settings that are durations; those that are None are left out."""
    return tuple((name, f"{max(1, int(value * 1000))}ms") for name, value in seconds.items() if value is not None)
