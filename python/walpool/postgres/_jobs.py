"""`Job`: one caller's write, all or nothing. Knows no queue and no threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from walpool.errors import Error, ProgrammingError
from walpool.postgres._results import Result
from walpool.postgres._translate import Translated, parse, translate
from walpool.postgres._values import checked
from walpool.postgres._wire import Exchange

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from walpool.postgres._fold import Fold
    from walpool.postgres._wire import Connection
    from walpool.types import Params

__all__ = ["Job", "Statement", "Uneven", "batch", "labelled", "many", "script", "single"]


MOST_FOLDED: Final = 2**27
"""Bytes of a job whose rows are folded at most: a message to the server ends at 1 GiB, and large rows gain nothing."""


class Statement(NamedTuple):
    """One statement, and the rows of parameters that it runs for: parsed once for all of them."""

    sql: bytes
    rows: list[Sequence[object]]
    fold: Fold | None = None
    """How several of its rows are one statement, if they may be."""
    is_shaping: bool = False
    """Whether it may change what others of its transaction mean (`Translated`)."""


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

    @property
    def is_shaping(self) -> bool:
        """Whether it may change what other statements of its transaction mean."""
        return any(statement.is_shaping for statement in self.statements)

    @property
    def is_apart(self) -> bool:
        """Whether no other job may share its transaction."""
        return self.is_script or self.is_shaping

    @property
    def may_fold(self) -> bool:
        """Whether rows of its may go as one statement."""
        return self.size <= MOST_FOLDED and any(
            statement.fold is not None and len(statement.rows) > 1 for statement in self.statements
        )

    def ask(self, exchange: Exchange, *, folded: bool = False) -> list[int]:
        """Add its statements to an exchange; return for each answer how many of its runs that is of.

        Args:
            exchange: where they go.
            folded: whether rows of one INSERT may go as one statement.
        """
        runs = []
        folded = folded and self.size <= MOST_FOLDED
        for statement in self.statements:
            if folded and statement.fold is not None and len(statement.rows) > 1:
                for sql, parameters, size in statement.fold.folded(statement.rows):
                    exchange.ask(sql, (parameters,))
                    runs.append(size)
            else:
                exchange.ask(statement.sql, statement.rows)
                runs += [1] * len(statement.rows)
        return runs

    def results(self, connection: Connection, answers: Sequence[PGresult], runs: Sequence[int]) -> list[Result]:
        """Return what the caller gets for what the server answered, each answer being of so many of its runs.

        Raises:
            Uneven: some rows of several in one statement were not written, and it is not known which.
        """
        if self.is_many:
            return [Result(sum(answer.command_tuples or 0 for answer in answers))]
        results = []
        for answer, size in zip(answers, runs, strict=True):
            if size == 1:
                results.append(Result.of(connection, answer))
            elif answer.command_tuples == size:
                results += [Result(1) for _ in range(size)]
            else:
                raise Uneven
        return results

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


class Uneven(Exception):
    """A trigger skipped rows of several that went as one statement."""


def single(sql: str, params: Params) -> Job:
    """Return the job of one statement."""
    translated = _only(sql)
    row, size = checked(translated.arrange(params), translated.place)
    return Job([Statement(translated.encoded, [row], is_shaping=translated.is_shaping)], len(sql) + size)


def many(sql: str, rows: Iterable[Params]) -> Job:
    """Return the job of `executemany`."""
    translated = _only(sql)
    if translated.gives_rows:
        raise ProgrammingError("executemany() takes no statement that returns rows: give it to batch() for each row")
    statement = Statement(translated.encoded, [], translated.fold, translated.is_shaping)
    total = len(sql)
    for number, params in enumerate(rows, 1):
        try:
            row, size = checked(translated.arrange(params), translated.place)
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
        sql, params = _pair(statement)
        try:
            if sql != last:
                translated = _only(sql)
                made.append(Statement(translated.encoded, [], translated.fold, translated.is_shaping))
                total += len(sql)
                last = sql
            row, size = checked(translated.arrange(params), translated.place)
        except Error as error:
            raise _placed(error, f"; in statement {number} of the batch") from None
        made[-1].rows.append(row)
        total += size
    return Job(made, total)


def _pair(statement: object) -> tuple[str, Params]:
    """Return the SQL and the parameters of a batch's statement, which a caller who is not typed may give otherwise."""
    if isinstance(statement, str):
        return statement, ()
    if not isinstance(statement, tuple) or len(statement) != 2 or not isinstance(statement[0], str):
        raise ProgrammingError("batch() takes pairs of SQL and parameters")
    return statement


def script(sql: str) -> Job:
    """Return the job of a script."""
    translated = parse(sql)
    translated.arrange(())
    translated.refuse_copy()
    return Job([Statement(translated.encoded, [()])], len(sql), is_script=True)


def labelled(job: Job, key: str | None, local: tuple[tuple[str, str], ...]) -> Job:
    """Return a job with its key and its settings.

    Raises:
        ProgrammingError: the key is no str: it could not be compared with those of the job's neighbours.
    """
    if key is not None and not isinstance(key, str):
        msg = f"key must be a str, not {type(key).__name__}"  # type: ignore[unreachable]  # the caller may not be typed
        raise ProgrammingError(msg)
    return replace(job, key=key, local=local) if local or key is not None else job


def _only(sql: str) -> Translated:
    translated = translate(sql)
    if not translated.is_single:
        raise ProgrammingError(
            "more than one statement: use batch() for several with parameters, script() for several without"
        )
    if not translated.keyword:
        raise ProgrammingError("the SQL holds no statement")
    translated.refuse_copy()
    return translated


def _placed(error: Error, place: str) -> Error:
    return type(error)(f"{error}{place}")
