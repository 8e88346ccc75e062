"""`Bulk`: a connection of its own for copying many rows, in transactions that may take as long as they need.

Beside the pool and not of it: the pool's time limits are for callers whom others wait for. Knows no tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from walpool.errors import ClosedError, Error
from walpool.postgres import _jobs as jobs
from walpool.postgres import binary
from walpool.postgres._errors import is_broken, mapped
from walpool.postgres._reading import query
from walpool.postgres._results import Result, Rows
from walpool.postgres._wire import Exchange, Failed
from walpool.postgres.policies import is_secured

if TYPE_CHECKING:
    from types import TracebackType

    from walpool.postgres._jobs import Job
    from walpool.postgres.pool import PostgresPool
    from walpool.types import Params, Row

__all__ = ["Bulk"]

_CANONICAL: Final = (
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
)
"""One text for one value, whatever the role, the database or the user's environment say."""

_UNLIMITED: Final = (("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0"))
"""What takes long is meant to, whatever limit the role has for what it does every day."""

# PostgreSQL takes no COPY FROM where row-level security holds for the role: https://www.postgresql.org/docs/18/sql-copy.html
_STAGING: Final = "pg_temp.walpool_staging"
_MAKE_STAGING: Final = "CREATE TEMP TABLE walpool_staging ON COMMIT DROP AS SELECT {columns} FROM {table} WHERE false"
_FROM_STAGING: Final = f"INSERT INTO {{table}} ({{columns}}) OVERRIDING SYSTEM VALUE SELECT {{columns}} FROM {_STAGING}"

_BLOCK: Final = 1 << 20  # bytes that are handed to libpq at once


class Bulk:
    """One connection to the database of a pool; a context manager. One thread uses it at a time.

    Texts of values are the same on every server: dates and intervals as ISO 8601, times in UTC.

    Args:
        pool: whose database, and whose tenant.

    Raises:
        OperationalError: the server cannot be reached, or refuses.
    """

    __module__ = "walpool.postgres"

    def __init__(self, pool: PostgresPool) -> None:
        self._name = pool.path
        self._local = pool._local
        self._process = os.getpid()
        self._reads_only = False  # whether the transaction that is open does
        self._connection = pool._engine.address.connect(pool.settings.write_timeout)

    @contextmanager
    def transaction(self, *, reads_only: bool = False, waits_for_disk: bool = True) -> Iterator[None]:
        """Run the block's statements in one transaction: all of them or none.

        Args:
            reads_only: one snapshot for all of them, and no writes.
            waits_for_disk: whether COMMIT waits until the server has it on disk. False for what is checked later: a
                server that loses power loses whole transactions from the end, never a part of one.

        Raises:
            Error: `outcome` is `unknown` where the connection broke at COMMIT.
        """
        if self._connection.closed:
            raise ClosedError(f"the connection is closed [{self._name}]")
        local = [*_CANONICAL, *_UNLIMITED, *self._local]
        if self._connection.limits_transactions:
            local.append(("transaction_timeout", "0"))
        if not waits_for_disk:
            local.append(("synchronous_commit", "off"))
        self._reads_only = reads_only
        exchange = Exchange(self._connection)
        exchange.say(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if reads_only else b"BEGIN")
        exchange.set_local(local)
        try:
            self._run(exchange)
            yield
            self._commit()
        except BaseException:
            with suppress(psycopg.Error):  # it is closed then, and so rolled back
                self._connection.execute("ROLLBACK")
            raise

    def execute(self, sql: str, params: Params = ()) -> Result:
        """Run one statement of the transaction."""
        (answer,) = self._ask(jobs.single(sql, params))
        return answer

    def executemany(self, sql: str, rows: Iterable[Params]) -> int:
        """Run one statement for each row of parameters, and return how many rows it wrote."""
        return sum(answer.rowcount for answer in self._ask(jobs.many(sql, rows)))

    def fetch(self, sql: str, params: Params = ()) -> list[Any]:
        """Return the rows of a query of the transaction."""
        return self.fetch_each([(sql, params)])[0]

    def fetch_each(self, queries: Iterable[tuple[str, Params]]) -> list[list[Any]]:
        """Return the rows of each of several queries of the transaction, which the server gets all at once."""
        asked = [query(sql, params) for sql, params in queries]
        exchange = self._exchange()
        for each in asked:
            each.through(exchange)
        return [Rows.of(self._connection, answer).rows for answer in self._run(exchange)]

    def stream(self, sql: str, *, chunk: int) -> Iterator[list[Row]]:
        """Yield the rows of a query of the transaction, `chunk` at a time; one stream at a time."""
        self.execute(f"DECLARE walpool_bulk NO SCROLL CURSOR FOR {sql}")
        while found := self.fetch(f"FETCH FORWARD {int(chunk)} FROM walpool_bulk"):
            yield found
        self.execute("CLOSE walpool_bulk")

    def copy_in(self, table: str, columns: Sequence[str], encoded: Iterable[bytes]) -> int:
        """Copy rows into a table by COPY BINARY, in the transaction, and return how many.

        Where row-level security holds for the role they go into a temporary table, and by INSERT from there: the
        policies look at each row, and the tenant is the pool's.

        Args:
            table: its name, quoted.
            columns: their names, quoted, in the order of the fields.
            encoded: rows as `binary.rows` gives them.

        Raises:
            ProgrammingError: a policy refuses a row, or the role may make no temporary tables and has to.
        """
        if not is_secured(self.fetch, table):
            return self._copy(table, columns, encoded)
        names = {"table": table, "columns": ", ".join(columns)}
        self.execute(_MAKE_STAGING.format(**names))
        self._copy(_STAGING, columns, encoded)
        count = self.execute(_FROM_STAGING.format(**names)).rowcount
        self.execute(f"DROP TABLE {_STAGING}")
        return count

    def cancel(self) -> None:
        """Stop the statement that runs, if one does; from any thread."""
        with suppress(psycopg.Error):  # the server is gone: nothing runs
            self._connection.cancel_safe(timeout=5.0)

    def close(self) -> None:
        """Close the connection; what is not committed is rolled back. Safe to call twice."""
        if self._process == os.getpid():
            self._connection.close()

    def __enter__(self) -> Bulk:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _copy(self, table: str, columns: Sequence[str], encoded: Iterable[bytes]) -> int:
        asked = f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
        try:
            with self._connection.cursor() as cursor:
                with cursor.copy(asked.encode()) as copy:
                    copy.write(binary.HEADER)
                    for block in encoded:
                        for at in range(0, len(block), _BLOCK):
                            copy.write(block[at : at + _BLOCK])
                    copy.write(binary.TRAILER)
                return cursor.rowcount
        except psycopg.Error as error:
            raise mapped(error, f"COPY on {self._name}") from None

    def _exchange(self) -> Exchange:
        try:
            return Exchange(self._connection)
        except psycopg.Error as error:  # the connection is gone
            raise mapped(error, self._name) from None

    def _ask(self, job: Job) -> list[Result]:
        exchange = self._exchange()
        job.ask(exchange)
        return [Result.of(self._connection, answer) for answer in self._run(exchange, job)]

    def _run(self, exchange: Exchange, job: Job | None = None) -> list[Any]:
        try:
            return exchange.run()
        except Failed as failure:
            place = job.place(failure.answered) if job is not None else ""
            raise mapped(failure.error, self._name, place=place, is_read=self._reads_only) from None
        except psycopg.Error as error:
            raise mapped(error, self._name) from None

    def _commit(self) -> None:
        try:
            status = self._connection.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            unknown = is_broken(self._connection, error)
            raise mapped(error, f"COMMIT on {self._name}", outcome="unknown" if unknown else "not_applied") from None
        if status != "COMMIT":
            raise Error(f"the transaction was rolled back; nothing was written [{self._name}]")
