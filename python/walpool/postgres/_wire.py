"""`Exchange`: statements that go to the server in one round trip, and what it answers. Knows no jobs and no pools.

Built on psycopg's layer over libpq rather than on its cursors: in a pipeline these cost 25 us of Python a statement,
flush each on its own, and have the server parse it each time. Here a statement that runs for many rows is parsed once,
as the unnamed one, so that no session keeps anything and poolers do not mind; all is sent at once; and what was refused
is known by its place among the answers. Measured in benches/README.md, "postgres".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.waiting import Ready, Wait

from walpool.errors import NotSupportedError, ProgrammingError

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from walpool.types import Row

__all__ = ["Connection", "Exchange", "Failed", "durations", "encoded"]

_COPIES: Final = re.compile(r"\s*COPY\b.*\b(FROM\s+STDIN|TO\s+STDOUT)\b", re.IGNORECASE | re.DOTALL)
_GOOD: Final = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """psycopg's connection, with the one converter that all of its exchanges use."""

    _converter: Transformer | None = None

    @property
    def converter(self) -> Transformer:
        """What turns parameters into bytes and results into rows."""
        if self._converter is None:
            self._converter = Transformer(self)
        return self._converter

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
    """Statements for one round trip; `run` sends them. In a transaction that the first one begins, or that is open."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._wanted: list[bool] = []  # for each result to come, whether the caller asked for it
        self._pgconn.enter_pipeline_mode()

    def say(self, sql: bytes) -> None:
        """Add a statement without parameters, whose result nobody wants."""
        self._pgconn.send_query_params(sql, None)
        self._wanted.append(False)

    def set_local(self, settings: Iterable[tuple[str, str]]) -> None:
        """Set server settings until the end of the transaction; no session keeps any, since poolers share them."""
        given = [text.encode() for pair in settings for text in pair]
        if given:
            calls = ", ".join(f"set_config(${n}, ${n + 1}, true)" for n in range(1, len(given), 2))
            self._pgconn.send_query_params(f"SELECT {calls}".encode(), given)
            self._wanted.append(False)

    def ask(self, sql: bytes, rows: Sequence[Sequence[object]]) -> None:
        """Add a statement that runs once for each row of parameters."""
        if len(rows) == 1:
            self._ask_once(sql, rows[0])
        else:
            self._ask_often(sql, rows)

    def run(self) -> list[PGresult]:
        """Send all and return what was asked for, a result for each row of parameters.

        Raises:
            Failed: the server refused one.
            psycopg.Error: the connection broke.
        """
        try:
            self._pgconn.pipeline_sync()
            results = self._connection.wait(self._answers(len(self._wanted) + 1))
            self._pgconn.exit_pipeline_mode()
        except BaseException:
            self._connection.close()  # what is half read is of no use to anybody
            raise
        return self._asked_for(results)

    def _ask_once(self, sql: bytes, row: Sequence[object]) -> None:
        if row:
            converter = self._connection.converter
            values = converter.dump_sequence(row, [PyFormat.AUTO] * len(row))
            self._pgconn.send_query_params(sql, values, converter.types, converter.formats, Format.BINARY)
        else:
            self._pgconn.send_query_params(sql, None, result_format=Format.BINARY)
        self._wanted.append(True)

    def _ask_often(self, sql: bytes, rows: Sequence[Sequence[object]]) -> None:
        converter, send, wanted = self._connection.converter, self._pgconn.send_query_prepared, self._wanted
        types: tuple[int, ...] | None = None  # of the statement as it was parsed last
        for row in rows:
            values = converter.dump_sequence(row, [PyFormat.AUTO] * len(row))
            given = converter.types or ()
            if given != types and (types is None or not _fit(values, given, types)):
                types = given
                self._pgconn.send_prepare(b"", sql, types)
                wanted.append(False)
            send(b"", values, converter.formats, Format.BINARY)
            wanted.append(True)

    def _answers(self, count: int) -> PQGen[list[PGresult]]:
        """Send what is not sent yet, reading meanwhile: a server that cannot answer does not read either."""
        pgconn, answers = self._pgconn, []
        while pgconn.flush():
            ready = yield Wait.RW
            if ready & Ready.R:
                pgconn.consume_input()
        while len(answers) < count:
            while pgconn.is_busy():
                yield Wait.R
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is not None:  # None stands between two statements
                answers.append(result)
                if result.status in {ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH}:
                    raise psycopg.NotSupportedError("COPY is no statement for execute()")
        return answers

    def _asked_for(self, results: list[PGresult]) -> list[PGresult]:
        asked: list[PGresult] = []
        for result, is_wanted in zip(results, self._wanted, strict=False):  # the last answers the sync
            if result.status not in _GOOD:
                raise Failed(errors.error_from_result(result), len(asked))
            if is_wanted:
                asked.append(result)
        return asked


def _fit(values: Sequence[object], given: Sequence[int], types: Sequence[int]) -> bool:
    """Return whether values fit a statement that was parsed for other types: NULL fits any."""
    return all(
        kind == parsed or (kind == 0 and value is None)
        for value, kind, parsed in zip(values, given, types, strict=True)
    )


def durations(**seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return server settings that are durations; those that are None are left out."""
    return tuple((name, f"{max(1, int(value * 1000))}ms") for name, value in seconds.items() if value is not None)


def encoded(sql: str) -> bytes:
    """Return the bytes of a text of SQL.

    Raises:
        ProgrammingError: UTF-8 has none for it.
        NotSupportedError: it would speak to the client in another protocol, and take the connection with it.
    """
    if _COPIES.match(sql):
        msg = "COPY from or to the client is not supported: use executemany() or stream(), or psycopg itself"
        raise NotSupportedError(msg)
    try:
        return sql.encode()
    except UnicodeEncodeError:
        msg = "the SQL holds lone surrogates, which UTF-8 has not"
        raise ProgrammingError(msg) from None
