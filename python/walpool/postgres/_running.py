"""`running`: jobs in one transaction of one connection, and what becomes of it. Knows no queue and no threads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import psycopg

from walpool.postgres._errors import is_broken, is_conflict, is_lock_timeout
from walpool.postgres._jobs import Uneven
from walpool.postgres._results import Result
from walpool.postgres._steps import Blocking
from walpool.postgres._wire import Exchange, Failed, Outdated, committing, converting

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._jobs import Job
    from walpool.postgres._steps import Steps
    from walpool.postgres._wire import Connection

__all__ = ["Doubtful", "Lost", "Refused", "running"]


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


def running(
    connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]]
) -> Steps[list[list[Result]]]:
    """Run jobs in one transaction, commit it, and return the results of each.

    COMMIT is sent when all is answered, and not in the same pipeline: so a connection that proves dead before it has
    surely applied nothing.

    Raises:
        Refused: a statement failed, or the COMMIT.
        Lost: the connection broke.
        Doubtful: it broke at the COMMIT.
    """
    try:
        if jobs[0].is_script:  # and alone
            results: list[list[Result]] = yield Blocking(partial(_run_script, connection, jobs[0], settings))
        else:
            results = yield from _run_statements(connection, jobs, settings)
    except psycopg.Error as error:
        raise Lost(error) from None
    try:
        status = yield from committing(connection)
    except psycopg.Error as error:
        raise (Doubtful(error) if is_broken(connection, error) else Refused(error)) from None
    if status != b"COMMIT":  # what a script rolled back itself
        raise Refused(psycopg.errors.InvalidTransactionState("the transaction was rolled back by a statement in it"))
    return results


def _run_statements(
    connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]]
) -> Steps[list[list[Result]]]:
    """Run the jobs' statements, with rows of one INSERT in one; if these fail once more without, to know which row."""
    folded = any(job.may_fold for job in jobs)
    by_name = not jobs[0].is_shaping  # and alone: what was parsed before it may mean something else behind it
    while True:
        try:
            return (yield from _run_once(connection, jobs, settings, folded=folded, by_name=by_name))
        except Uneven:
            folded = False
        except Outdated:
            by_name = False


def _run_once(
    connection: Connection, jobs: Sequence[Job], settings: Sequence[tuple[str, str]], *, folded: bool, by_name: bool
) -> Steps[list[list[Result]]]:
    exchange = Exchange(connection, by_name=by_name)
    exchange.say(b"BEGIN")
    exchange.set_local(settings)
    runs = []
    for job, before in zip(jobs, _before(jobs), strict=True):
        exchange.set_local(before)
        runs.append(job.ask(exchange, folded=folded))
    try:
        answers = yield from exchange.running()
    except Failed as failure:
        yield Blocking(partial(_roll_back, connection, failure.error))
        if isinstance(failure, Outdated):
            raise
        raise _refused(failure, jobs, runs) from None
    convert = partial(_results, connection, jobs, answers, runs)
    try:
        return (yield from converting(connection, convert, takes_long=exchange.is_large(answers)))
    except Refused as refusal:
        yield Blocking(partial(_roll_back, connection, refusal.error))
        raise
    except Uneven:
        yield Blocking(partial(_roll_back, connection))
        raise


def _results(
    connection: Connection, jobs: Sequence[Job], answers: Sequence[PGresult], runs: Sequence[Sequence[int]]
) -> list[list[Result]]:
    """Return what each job gets for what the server answered to all."""
    left = iter(answers)
    results = []
    for number, (job, each) in enumerate(zip(jobs, runs, strict=True)):
        try:
            results.append(job.results(connection, list(islice(left, len(each))), each))
        except psycopg.DataError as error:  # what RETURNING gave
            raise Refused(error, number) from None
    return results


def _run_script(connection: Connection, job: Job, settings: Sequence[tuple[str, str]]) -> list[list[Result]]:
    exchange = Exchange(connection)
    exchange.say(b"BEGIN")
    exchange.set_local((*settings, *job.local))
    exchange.run()
    try:
        connection.execute(job.statements[0].sql)
    except psycopg.Error as error:
        _roll_back(connection, error)
        raise Refused(error, 0, sql=job.statements[0].sql) from None
    return [[Result(-1)]]


def _roll_back(connection: Connection, error: psycopg.Error | None = None) -> None:
    """Undo the transaction; raise the error itself where the connection is gone, and the transaction with it."""
    if error is not None and is_broken(connection, error):
        raise error
    with suppress(psycopg.Error):  # it breaks here: rolled back too
        connection.execute("ROLLBACK")


def _before(jobs: Sequence[Job]) -> list[Sequence[tuple[str, str]]]:
    """Return the settings to be made before each job: its own, or those of a neighbour undone."""
    names = dict.fromkeys(name for job in jobs for name, _ in job.local)
    return [[(name, dict(job.local).get(name, "")) for name in names] for job in jobs]


def _refused(failure: Failed, jobs: Sequence[Job], runs: Sequence[Sequence[int]]) -> Refused | Uneven:
    """Say in which job the first statement stands that was not answered; not where it is of several rows."""
    answered = failure.answered
    for number, (job, each) in enumerate(zip(jobs, runs, strict=True)):
        if answered < len(each):
            if each[answered] > 1 and not is_lock_timeout(failure.error) and not is_conflict(failure.error):
                return Uneven()
            run = sum(each[:answered])
            return Refused(failure.error, number, job.place(run), job.sql(run))
        answered -= len(each)
    return Refused(failure.error)
