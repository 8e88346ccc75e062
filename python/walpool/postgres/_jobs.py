"""`Job`: one caller's write, all or nothing, and `run`: jobs in one transaction of one connection.

Knows no queue and no threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from walpool.errors import Error, ProgrammingError
from walpool.postgres._errors import is_broken
from walpool.postgres._results import Result
from walpool.postgres._translate import Translated, parse, translate
from walpool.postgres._values import checked
from walpool.postgres._wire import Exchange, Failed, committed, refuse_copies

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._wire import Connection
    from walpool.types import Params

__all__ = ["Doubtful", "Job", "Lost", "Refused", "Statement", "batch", "labelled", "many", "run", "script", "single"]


class Statement(NamedTuple):
    """One statement, and the rows of parameters that it runs for: parsed once for all of them."""

    sql: bytes
    rows: list[Sequence[object]]


@dataclass(frozen=True, slots=True)
class Job:
    """One caller's statements, all of them or none."""

    statements: Sequence[Statement]
    size: int
    """About how many bytes it takes in memory."""
    key: str | None = None
    """Jobs of a group run in the order of their keys, so that groups of several processes lock rows in one order."""
    local: tuple[tuple[str, str], ...] = ()
    """Server settings for as long as it runs, by name."""
    is_many: bool = False
    """Whether its rows are those of one `executemany`, whose results are one."""
    is_script: bool = False
    """Several statements in one text, which goes to the server as it is; never with others."""

    @property
    def runs(self) -> int:
        """How many results the server gives for it."""
        return sum(len(statement.rows) for statement in self.statements)

    def results(self, connection: Connection, answers: Sequence[PGresult]) -> list[Result]:
        """Return what the caller gets for what the server answered."""
        if self.is_many:
            return [Result(sum(answer.command_tuples or 0 for answer in answers))]
        return [Result.of(connection, answer) for answer in answers]

    def sql(self, run: int) -> bytes:
        """Return the text of a run."""
        for statement in self.statements:
            if run < len(statement.rows):
                return statement.sql
            run -= len(statement.rows)
        return b""

    def place(self, run: int) -> str:
        """Return where in the job a run stands, for the end of a message."""
        if self.is_many:
            return f"; in row {run + 1} of executemany"
        return f"; in statement {run + 1} of the batch" if self.runs > 1 else ""


class Refused(Exception):
    """The server refused a statement or the COMMIT; the transaction is rolled back, nothing of any job was applied."""

    def __init__(self, error: psycopg.Error, job: int | None = None, place: str = "", sql: bytes = b"") -> None:
        super().__init__()
        self.sql = sql  # of the statement
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
    translated = _only(sql)
    row, size = checked(translated.arrange(params))
    return Job([Statement(translated.encoded, [row])], len(sql) + size)


def many(sql: str, rows: Iterable[Params]) -> Job:
    """Return the job of `executemany`."""
    translated = _only(sql)
    statement = Statement(translated.encoded, [])
    total = len(sql)
    for number, params in enumerate(rows, 1):
        try:
            row, size = checked(translated.arrange(params))
        except Error as error:
            raise _placed(error, f"; in row {number} of executemany") from None
        statement.rows.append(row)
        total += size
    return Job([statement], total, is_many=True)


def batch(statements: Iterable[tuple[str, Params] | str]) -> Job:
    """Return the job of several statements; neighbours of one text are parsed once."""
    made: list[Statement] = []
    total = 0
    last: str | None = None
    for number, statement in enumerate(statements, 1):
        sql, params = (statement, ()) if isinstance(statement, str) else statement
        try:
            if sql != last:
                translated = _only(sql)
                made.append(Statement(translated.encoded, []))
                total += len(sql)
                last = sql
            row, size = checked(translated.arrange(params))
        except Error as error:
            raise _placed(error, f"; in statement {number} of the batch") from None
        made[-1].rows.append(row)
        total += size
    return Job(made, total)


def script(sql: str) -> Job:
    """Return the job of a script."""
    translated = parse(sql)
    translated.arrange(())
    refuse_copies(sql)
    return Job([Statement(translated.encoded, [()])], len(sql), is_script=True)


def labelled(job: Job, key: str | None, local: tuple[tuple[str, str], ...]) -> Job:
    """Return a job with its key and its settings.

    Raises:
        ProgrammingError: the key is no str: it could not be compared with those of the job's neighbours.
    """
    if key is not None and not isinstance(key, str):
        msg = f"key must be a str, not {type(key).__name__}"  # type: ignore[unreachable]  # the caller may not be typed
        raise ProgrammingError(msg)
    return replace(job, key=key, local=local)


def _only(sql: str) -> Translated:
    translated = translate(sql)
    if not translated.is_single:
        raise ProgrammingError(
            "more than one statement: use batch() for several with parameters, script() for several without"
        )
    if not translated.keyword:
        raise ProgrammingError("the SQL holds no statement")
    refuse_copies(sql)
    return translated


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
        status = committed(connection)
    except psycopg.Error as error:
        raise (Doubtful(error) if is_broken(connection, error) else Refused(error)) from None
    if status != b"COMMIT":  # what a script rolled back itself
        raise Refused(psycopg.errors.InvalidTransactionState("the transaction was rolled back by a statement in it"))
    return results


def _run_statements(
    connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]]
) -> list[list[Result]]:
    exchange = Exchange(connection)
    exchange.say(b"BEGIN")
    exchange.set_local(settings)
    for job, before in zip(jobs, _before(jobs), strict=True):
        exchange.set_local(before)
        for statement in job.statements:
            exchange.ask(*statement)
    try:
        answers = iter(exchange.run())
    except Failed as failure:
        _roll_back(connection, failure.error)
        raise _refused(failure, jobs) from None
    results = []
    for number, job in enumerate(jobs):
        try:
            results.append(job.results(connection, list(islice(answers, job.runs))))
        except psycopg.DataError as error:  # what RETURNING gave
            _roll_back(connection, error)
            raise Refused(error, number) from None
    return results


def _run_script(connection: Connection, job: Job, settings: Sequence[tuple[str, str]]) -> Result:
    exchange = Exchange(connection)
    exchange.say(b"BEGIN")
    exchange.set_local((*settings, *job.local))
    exchange.run()
    try:
        connection.execute(job.statements[0].sql)
    except psycopg.Error as error:
        _roll_back(connection, error)
        raise Refused(error, 0, sql=job.statements[0].sql) from None
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


def _refused(failure: Failed, jobs: Sequence[Job]) -> Refused:
    """Say in which job the first statement stands that was not answered."""
    answered = failure.answered
    for number, job in enumerate(jobs):
        if answered < job.runs:
            return Refused(failure.error, number, job.place(answered), job.sql(answered))
        answered -= job.runs
    return Refused(failure.error)
