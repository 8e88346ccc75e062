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

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import PQGen

__all__ = ["Answers", "Blocking", "Request", "Steps", "Turn", "finish"]

T = TypeVar("T")


class Answers(NamedTuple):
    """What a server answers on a connection."""

    connection: psycopg.Connection[Any]
    generator: PQGen[Any]
    """One of psycopg's: it yields what it waits for of the connection's socket."""

    def wait(self) -> object:
        """Block until it is there."""
        return self.connection.wait(self.generator)


class Blocking(NamedTuple):
    """A call that may block: on a loop a thread makes it."""

    do: Callable[[], Any]

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
