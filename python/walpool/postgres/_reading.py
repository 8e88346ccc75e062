"""Reads on one connection: a statement in a read-only transaction, with a limit on its time. Knows no pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from walpool.errors import ProgrammingError
from walpool.postgres._errors import is_broken
from walpool.postgres._results import Rows
from walpool.postgres._steps import Blocking
from walpool.postgres._translate import translate
from walpool.postgres._values import checked
from walpool.postgres._wire import CANCEL_S, Exchange, Failed, Outdated, converting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from walpool.postgres._steps import Steps
    from walpool.postgres._wire import Connection
    from walpool.types import Params

__all__ = ["Query", "Rows", "Running", "query", "reading_once"]


class Query(NamedTuple):
    """One statement with its parameters, checked."""

    sql: bytes
    parameters: Sequence[object]
    is_shaping: bool = False
    """Whether it may change what others of its transaction mean (`Translated`)."""

    def through(self, exchange: Exchange) -> None:
        """Add it to an exchange."""
        exchange.ask(self.sql, (self.parameters,))


class Running:
    """A read that may be stopped; its steps stand still while it is (`_driving`), and its connection stays its own."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self.is_cancelled = False

    @contextmanager
    def on(self, connection: Connection) -> Iterator[None]:
        """Say on which connection it runs.

        Raises:
            psycopg.Error: it was stopped before.
        """
        if self.is_cancelled:
            raise psycopg.errors.QueryCanceled
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None

    def cancel(self) -> None:
        """Stop it, if it runs."""
        self.is_cancelled = True
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):  # the server is gone: nothing runs
                connection.cancel_safe(timeout=CANCEL_S)


def query(sql: str, params: Params) -> Query:
    """Return a statement for one read."""
    translated = translate(sql)
    if not translated.is_single:
        raise ProgrammingError("more than one statement: call once for each")
    translated.refuse_copy()
    return Query(translated.encoded, checked(translated.arrange(params), translated.place)[0], translated.is_shaping)


def reading_once(
    connection: Connection, asked: Query, settings: Sequence[tuple[str, str]], until: float = inf
) -> Steps[Rows]:
    """Return what a query gives in a read-only transaction of its own, at the cost of one round trip.

    Args:
        connection: an idle one.
        asked: the query.
        settings: server settings for it, by name.
        until: when to give the server up, on the monotonic clock.

    Raises:
        psycopg.Error: it was refused; the transaction is over.
    """
    for by_name in (True, False):
        try:
            return (yield from _reading(connection, asked, settings, until, by_name=by_name))
        except Outdated:
            continue
        except Failed as failure:
            error = failure.error
        raise error
    raise AssertionError("unreachable")


def _reading(
    connection: Connection, asked: Query, settings: Sequence[tuple[str, str]], until: float, *, by_name: bool
) -> Steps[Rows]:
    exchange = Exchange(connection, by_name=by_name)
    is_alone = connection.reads_only and not settings  # a transaction by itself, and nothing to set in it
    if not is_alone:
        exchange.say(b"BEGIN READ ONLY")
        exchange.set_local(settings)
    asked.through(exchange)
    if not is_alone:
        exchange.say(b"COMMIT")
    try:
        (answer,) = yield from exchange.running(until)
    except Failed as failure:
        if not is_alone and not is_broken(connection, failure.error):
            with suppress(psycopg.Error):  # it breaks now: the pool closes it
                yield Blocking(partial(connection.execute, "ROLLBACK"))
        raise
    return (
        yield from converting(connection, partial(Rows.of, connection, answer), takes_long=exchange.is_large((answer,)))
    )
