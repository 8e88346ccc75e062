"""`Steps`: work that waits now and then, written once for threads and for event loops. Knows no SQL and no pools.

A generator that yields what it waits for, and is sent what came of it. `finish` takes the steps on the caller's thread
and blocks it; a `Drive` takes them from an event loop's own thread, between two tasks, and blocks nobody:

    steps            loop's thread                    server            a thread
    send, flush      next(generator)                  works
    yield Answers    watches the socket, other tasks  answers
    results          send(results)
    yield Blocking   other tasks                                        do()
    ...              send(what it returned)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import psycopg

from walpool.postgres._pending import told

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.waiting import Ready, Wait

    from walpool.postgres._wire import Connection

__all__ = ["Answers", "Blocking", "Request", "Steps", "Turn", "Unanswered", "doing", "finish"]

T = TypeVar("T")


class Answers(NamedTuple):
    """What a server answers on a connection."""

    connection: Connection
    generator: PQGen[Any]
    """One of psycopg's: it yields what it waits for of the connection's socket."""
    until: float = inf
    """When to give the server up, on the monotonic clock."""

    def wait(self) -> object:
        """Block until it is there.

        Raises:
            Unanswered: it was not there in time.
            psycopg.Error: the connection broke.
        """
        return self.connection.wait(self.generator if self.until == inf else self._waiting())

    def _waiting(self) -> PQGen[Any]:
        try:
            wait = next(self.generator)
            while time.monotonic() < self.until:
                ready = yield wait  # psycopg looks every tenth of a second
                wait = self.generator.send(ready)
        except StopIteration as end:
            return end.value
        raise Unanswered

    def told(self, ready: Ready) -> Wait:
        """Take in what the socket has, and return what to wait for next.

        Args:
            ready: what the socket is ready for; `NONE` to look all the same.

        Raises:
            StopIteration: it is there.
        """
        if self.connection.may_be_pending:
            return told(self.connection.pgconn, self.generator, ready)
        return self.generator.send(ready)


class Unanswered(psycopg.OperationalError):
    """A server was given up; the connection is of no use any more."""

    def __init__(self) -> None:
        super().__init__("the server has not answered in time, and the connection was given up")


class Blocking(NamedTuple):
    """A call that may block: on a loop a thread makes it."""

    do: Callable[[], Any]
    may_be_left: bool = False
    """Whether whoever waits for it may go meanwhile: the call sees to what it made by itself then."""

    def wait(self) -> object:
        """Make it."""
        return self.do()


class Turn(Protocol):
    """A place in a line of callers."""

    def wait(self) -> object:
        """Block until it has come.

        Raises:
            Error: it comes no more.
        """

    def has_come(self) -> bool:
        """Look, without blocking.

        Raises:
            Error: it comes no more.
        """

    def listen(self, call: Callable[[], object]) -> None:
        """Have `call` made, on any thread, when it may have come; at once, if it has."""


Request: TypeAlias = Answers | Blocking | Turn
Steps: TypeAlias = Generator[Request, Any, T]


def doing(do: Callable[[], T], *, takes_long: bool) -> Steps[T]:
    """Return what a call returns that needs nobody, and may take long."""
    if takes_long:
        result: T = yield Blocking(do)
        return result
    return do()


def finish(steps: Steps[T], request: Request | None = None) -> T:
    """Take steps to their end on this thread, from the request on that they have made already."""
    try:
        if request is None:
            request = next(steps)
        while True:
            try:
                value = request.wait()
            except BaseException as error:  # noqa: BLE001  (the steps hear of whatever it is)
                request = steps.throw(error)
            else:
                request = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()  # an exception from outside (Ctrl-C) may come between two of them
