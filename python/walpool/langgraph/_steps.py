"""Reads, and the steps that are made of them: what is common to the synchronous and the asynchronous classes.

A step generator yields one `Read` after the other and is sent what each decodes to, so that the same text of an
operation runs on a `Pool` and on an `AsyncPool`. No SQL, no I/O of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from walpool.types import Row, Value

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""A write: SQL and its parameters."""


@dataclass(frozen=True, slots=True)
class Read(Generic[T_co]):
    """A read: SQL, its parameters, and what makes an answer of its rows."""

    sql: str
    params: tuple[Value, ...]
    decode: Callable[[list[Row]], T_co]


Steps: TypeAlias = Generator[Read[Any], Any, T]
"""Yields reads, is sent their answers, returns a `T`."""


class Reader(Protocol):
    """What a pool, a snapshot and a transaction have in common."""

    def fetch(self, sql: str, params: Sequence[Value] = ..., /) -> list[Row]:
        """Return every row of a query."""


class AsyncReader(Protocol):
    """What the asynchronous ones have in common."""

    async def fetch(self, sql: str, params: Sequence[Value] = ..., /) -> list[Row]:
        """Return every row of a query."""


def ask(read: Read[T]) -> Steps[T]:
    """Make steps of one read, so that what `yield from` answers has its type."""
    answer: T = yield read
    return answer


def run(reader: Reader, steps: Steps[T]) -> T:
    """Return what the steps return, their reads run by `reader`."""
    answer: Any = None
    while True:
        try:
            read = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = read.decode(reader.fetch(read.sql, read.params))


async def run_async(reader: AsyncReader, steps: Steps[T]) -> T:
    """Return what the steps return, their reads run by `reader`."""
    answer: Any = None
    while True:
        try:
            read = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = read.decode(await reader.fetch(read.sql, read.params))
