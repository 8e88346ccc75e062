"""How the operations on a memory store are told, whatever the backend; no I/O.

An operation is a `Read`, a `Write`, or, where a later one depends on an earlier one, a generator of them that is sent
their answers (`Steps`). Whoever drives it gives all its reads one snapshot, or makes one job of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from walpool.errors import ConfigError
from walpool.memory.records import Metric, Mode, Query, Weights
from walpool.types import Row, Value

__all__ = [
    "MOST", "Given", "Read", "Result", "Search", "Space", "Statement", "Steps", "Write", "ask", "encoded", "first",
    "nothing", "opened", "other_words", "space",
]  # fmt: skip

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MOST: Final = 2**62
"""Rows; what a limit is cut to, since databases take 64 bits."""
_WORDS: Final = ("unicode61", "trigram")

Statement: TypeAlias = tuple[str, Sequence[Value]]
"""SQL and its parameters."""


class Result(Protocol):
    """What one statement of a job did, of either pool."""

    @property
    def rowcount(self) -> int: ...

    @property
    def rows(self) -> list[Row]: ...


class Space(NamedTuple):
    """Which records a store serves, and how their words are indexed."""

    tenant: str
    collection: str
    words: str


class Given:
    """The parameters of one statement, numbered as they are added; the first two name the space."""

    def __init__(self, space: Space) -> None:
        self.values: list[Value] = [space.tenant, space.collection]

    def __call__(self, value: Value) -> str:
        """Add a parameter and return how the SQL names it."""
        self.values.append(value)
        return f"?{len(self.values)}"


@dataclass(frozen=True, slots=True)
class Read(Generic[T_co]):
    """A read: SQL, its parameters, and what makes an answer of its rows."""

    sql: str
    params: Sequence[Value]
    decode: Callable[[list[Row]], T_co]


@dataclass(frozen=True, slots=True)
class Write(Generic[T_co]):
    """A job: its statements, and what makes an answer of their results."""

    statements: Sequence[Statement]
    decode: Callable[[Sequence[Result]], T_co]
    refusal: Read[Exception | None] | None = None
    """What to ask where a constraint or a trigger refused it: the error that the caller is to get."""


Steps: TypeAlias = Generator["Read[Any] | Write[Any]", Any, T]


@dataclass(frozen=True, slots=True)
class Search:
    """What `search` was asked."""

    embedding: bytes | None
    query: Query
    text: str | None
    fts: str | None
    mode: Mode | None
    metric: Metric
    weights: Weights
    limit: int
    min_score: float | None
    marks: tuple[str, str]
    after: str | None


def nothing(results: Sequence[Result]) -> None:
    """The answer of a job that has none."""


def ask(step: Read[T] | Write[T]) -> Steps[T]:
    """Yield one step and return its answer: `yield`, with the type of what is sent."""
    answer: T = yield step
    return answer


def first(rows: list[Row]) -> Any:
    """Return the first column of the first row, None if there is none."""
    return rows[0][0] if rows else None


def encoded(texts: Iterable[Any]) -> str:
    """Return a list as the JSON that a statement takes it in.

    One parameter: SQLite takes 32,766 at most, and each length would be a statement of its own to prepare. Not ASCII: a
    lone surrogate must reach the binding, which refuses it.
    """
    return json.dumps(list(texts), ensure_ascii=False)


def space(tenant: str, collection: str, words: str | None) -> Space:
    """Return the space of a store, with the word index that it will have if there is none yet.

    Raises:
        ConfigError: there is no such word index.
    """
    if words is not None and words not in _WORDS:
        raise ConfigError(f"words={words!r} is not accepted: use {' or '.join(map(repr, _WORDS))}")
    return Space(tenant, collection, _WORDS[0] if words is None else words)


def opened(space: Space, words: str | None, stored: str | None) -> Space | ConfigError:
    """Return the space with the word index that it has, or what to tell who asked for another one."""
    if stored is None:
        return space
    if words is None:
        return space._replace(words=stored)
    return other_words(space, stored) or space


def other_words(space: Space, stored: str) -> ConfigError | None:
    """Return what to tell who opened a collection with another word index than it has."""
    if stored == space.words:
        return None
    return ConfigError(
        f"words={space.words!r}: the collection {space.collection!r} was begun with {stored!r}; open it with that, or"
        " use another collection"
    )
