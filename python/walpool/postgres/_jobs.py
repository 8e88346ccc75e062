"""`Job`: one caller's write, all or nothing, and `run`: jobs in one transaction of one connection.

Knows no queue and no threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from walpool.errors import Error, ProgrammingError
from walpool.postgres._errors import is_broken
from walpool.postgres._results import Result
from walpool.postgres._translate import Translated, translate
from walpool.postgres._values import checked, size
from walpool.postgres._wire import pipelined, set_local

if TYPE_CHECKING:
    from walpool.postgres._address import Connection
    from walpool.types import Params

__all__ = ["Doubtful", "Job", "Lost", "Refused", "Statement", "batch", "many", "run", "script", "single"]


class _Cursor(psycopg.RawCursor[tuple[Any, ...]]):
    """A cursor that knows how many of its statements were answered, since `executemany` in a pipeline keeps only a sum.

    Should psycopg stop calling `_set_results`, the first job would be taken for the one that was refused, and all run
    alone in the end: slower, and as correct.
    """

    answered = 0

    def _set_results(self, results: Any) -> None:
        self.answered += 1
        super()._set_results(results)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with the rows of parameters that it runs for: one, or as many as `executemany` was given."""

    sql: str
    rows: Sequence[Sequence[object]]
    is_many: bool = False

    def send(self, cursor: psycopg.Cursor[Any]) -> None:
        """Run it; in a pipeline without waiting for it."""
        if not self.is_many:
            cursor.execute(self.sql, self.rows[0] or None, binary=True)
        elif self.rows:
            cursor.executemany(self.sql, self.rows)


@dataclass(frozen=True, slots=True)
class Job:
    """One caller's statements, all of them or none."""

    statements: tuple[Statement, ...]
    bytes: int
    """About what it takes in memory."""
    key: str | None = None
    """Jobs of a group run in the order of their keys, so that groups of several processes lock rows in one order."""
    local: tuple[tuple[str, str], ...] = ()
    """Server settings for as long as it runs, by name."""
    is_script: bool = False
    """Several statements in one text, which goes to the server as it is; never in a pipeline."""


class Refused(Exception):
    """The server refused a statement or the COMMIT; the transaction is rolled back, nothing of any job was applied."""

    def __init__(self, error: psycopg.Error, job: int | None = None, place: str = "") -> None:
        super().__init__()
        self.error = error
        self.job = job  # which of the jobs; None where that is not known
        self.place = place  # where in the job, for the end of a message


class Lost(Exception):
    """The connection broke before COMMIT was sent: nothing was applied."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__()
        self.error = error


class Doubtful(Lost):
    """The connection broke after COMMIT was sent: whether it was applied only a later read tells."""


def single(sql: str, params: Params) -> Job:
    """Return the job of one statement."""
    statement = _statement(sql, params)
    return Job((statement,), len(sql) + size(statement.rows[0]))


def many(sql: str, rows: Iterable[Params]) -> Job:
    """Return the job of `executemany`."""
    translated = translate(sql)
    text = _only(translated)
    given: list[Sequence[object]] = []
    for number, row in enumerate(rows, 1):
        try:
            given.append(checked(translated.arrange(row)))
        except Error as error:
            raise _placed(error, f"; in row {number} of executemany") from None
    return Job((Statement(text, given, is_many=True),), len(sql) + sum(map(size, given)))


def batch(statements: Iterable[tuple[str, Params] | str]) -> Job:
    """Return the job of several statements."""
    made: list[Statement] = []
    total = 0
    for number, statement in enumerate(statements, 1):
        sql, params = (statement, ()) if isinstance(statement, str) else statement
        try:
            made.append(_statement(sql, params))
        except Error as error:
            raise _placed(error, f"; in statement {number} of the batch") from None
        total += len(sql) + size(made[-1].rows[0])
    return Job(tuple(made), total)


def script(sql: str) -> Job:
    """Return the job of a script."""
    translated = translate(sql)
    translated.arrange(())
    return Job((Statement(sql, ((),)),), len(sql), is_script=True)


def _statement(sql: str, params: Params) -> Statement:
    translated = translate(sql)
    return Statement(_only(translated), (checked(translated.arrange(params)),))


def _only(translated: Translated) -> str:
    if not translated.is_single:
        raise ProgrammingError(
            "more than one statement: use batch() for several with parameters, script() for several without"
        )
    return translated.sql


def _placed(error: Error, place: str) -> Error:
    return type(error)(f"{error}{place}")


def run(connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]]) -> list[list[Result]]:
    """Run jobs in one transaction, commit it, and return the results of each.

    COMMIT is sent when all is answered, and not in the same pipeline: so a connection that proves dead before it has
    surely applied nothing.

    Raises:
        Refused: a statement failed, or the COMMIT.
        Lost: the connection broke.
        Doubtful: it broke at the COMMIT.
    """
    try:
        if any(job.is_script for job in jobs):
            results = [[_run_script(connection, job, settings)] for job in jobs]
        else:
            results = _run_statements(connection, jobs, settings)
    except psycopg.Error as error:
        raise Lost(error) from None
    try:
        status = connection.execute("COMMIT").statusmessage
    except psycopg.Error as error:
        raise (Doubtful(error) if is_broken(connection, error) else Refused(error)) from None
    if status != "COMMIT":  # what a script rolled back itself
        raise Refused(psycopg.errors.InvalidTransactionState("the transaction was rolled back by a statement in it"))
    return results


def _run_statements(
    connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]]
) -> list[list[Result]]:
    cursors = [[_Cursor(connection) for _ in job.statements] for job in jobs]

    def send() -> None:
        connection.execute("BEGIN")
        set_local(connection, settings)
        for job, before, its_cursors in zip(jobs, _before(jobs), cursors, strict=True):
            set_local(connection, before)
            for statement, cursor in zip(job.statements, its_cursors, strict=True):
                statement.send(cursor)

    try:
        pipelined(connection, send)
    except psycopg.Error as error:
        _roll_back(connection, error)
        raise _refused(error, jobs, cursors) from None
    return [[Result.of(cursor) for cursor in its_cursors] for its_cursors in cursors]


def _run_script(connection: Connection, job: Job, settings: Sequence[tuple[str, str]]) -> Result:
    try:
        connection.execute("BEGIN")
        set_local(connection, (*settings, *job.local))
        connection.execute(job.statements[0].sql)
    except psycopg.Error as error:
        _roll_back(connection, error)
        raise Refused(error, 0) from None
    return Result(-1)


def _roll_back(connection: Connection, error: psycopg.Error) -> None:
    """Undo the transaction; raise the error itself where the connection is gone, and the transaction with it."""
    if is_broken(connection, error):
        raise error
    with suppress(psycopg.Error):  # it breaks here: rolled back too
        connection.execute("ROLLBACK")


def _before(jobs: Sequence[Job]) -> list[Sequence[tuple[str, str]]]:
    """Return the settings to be made before each job: its own, or those of a neighbour undone."""
    names = dict.fromkeys(name for job in jobs for name, _ in job.local)
    return [[(name, dict(job.local).get(name, "")) for name in names] for job in jobs]


def _refused(error: psycopg.Error, jobs: Sequence[Job], cursors: Sequence[Sequence[_Cursor]]) -> Refused:
    """Say which statement was the first that was not answered."""
    for number, (job, its_cursors) in enumerate(zip(jobs, cursors, strict=True)):
        for place, (statement, cursor) in enumerate(zip(job.statements, its_cursors, strict=True)):
            if cursor.answered < len(statement.rows):
                return Refused(error, number, _place(job, place, cursor.answered))
    return Refused(error)


def _place(job: Job, number: int, answered: int) -> str:
    if job.statements[number].is_many:
        return f"; in row {answered + 1} of executemany"
    return f"; in statement {number + 1} of the batch" if len(job.statements) > 1 else ""
