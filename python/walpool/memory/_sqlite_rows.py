"""How the operations on a memory store are told, and how its rows become records; no I/O.

An operation is a `Read`, a `Write`, or, where a later one depends on an earlier one, a generator of them that is sent
their answers (`Steps`). Whoever drives it gives all its reads one snapshot, or makes one job of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from walpool.memory.records import Record
from walpool.types import Row, Value

if TYPE_CHECKING:
    from walpool._core import Result

__all__ = ["COLUMNS", "JOINED", "Read", "Statement", "Steps", "Write", "ask", "nothing", "record", "time"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Statement: TypeAlias = tuple[str, Sequence[Value]]
"""SQL and its parameters."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


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
    """What to ask where a trigger refused it: the error that the caller is to get."""


Steps: TypeAlias = Generator["Read[Any] | Write[Any]", Any, T]


def nothing(results: Sequence[Result]) -> None:
    """The answer of a job that has none."""


def ask(step: Read[T] | Write[T]) -> Steps[T]:
    """Yield one step and return its answer: `yield`, with the type of what is sent."""
    answer: T = yield step
    return answer


# Decoded by `record`, in this order.
COLUMNS: Final = """r.id, r.content, s.path, r.metadata, r.importance, r.created_at, r.accessed_at, r.source, r.private,
    v.embedding, r.categories"""
# CROSS: from what stands before it to the records, each by its key.
JOINED: Final = """CROSS JOIN memory_scopes AS s ON s.scope = r.scope LEFT JOIN memory_vectors AS v ON v.key = r.key"""


def record(row: Row) -> Record:
    """Return the record of a row of `COLUMNS`; what stands behind them is left alone."""
    return Record(
        id=row[0],
        content=row[1],
        scope=row[2],
        metadata=json.loads(row[3]),
        importance=row[4],
        created_at=time(row[5]),
        accessed_at=time(row[6]),
        source=row[7],
        private=bool(row[8]),
        embedding=row[9],
        categories=tuple(json.loads(row[10])),
    )


def time(micros: int) -> datetime:
    """Return the time that a column holds in microseconds since 1970, UTC."""
    return _EPOCH + timedelta(microseconds=micros)
