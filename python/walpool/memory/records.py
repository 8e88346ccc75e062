"""What a memory store keeps: records, the conditions that select them, and the hits of a search.

Plain data and its validation; knows no SQL and no backend.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import isfinite
from typing import Any, Literal, TypeAlias

from walpool.errors import DataError

__all__ = [
    "DimsError",
    "EmbeddingError",
    "Hit",
    "Metric",
    "Query",
    "Record",
    "ScopeSummary",
    "normalize_scope",
    "pack",
    "unpack",
]

Metric: TypeAlias = Literal["cosine", "l2"]
"""How a search scores: `cosine` is the cosine, -1 to 1; `l2` is 1 / (1 + squared Euclidean distance), 0 to 1."""


class EmbeddingError(DataError, ValueError):
    """An embedding is empty, holds a NaN or an infinity, or has a length that does not fit; embed again."""


class DimsError(EmbeddingError):
    """An embedding has another length than those that the store holds; clear the store, or go back to its embedder.

    Attributes:
        stored: the length of the store's embeddings.
        given: the length of the one that was refused.
    """

    def __init__(self, message: str = "", *, stored: int = 0, given: int = 0) -> None:
        """Make an error of both lengths, never of the embedding itself."""
        super().__init__(message or f"this store holds embeddings of {stored} dims, and one of {given} was given")
        self.stored = stored
        self.given = given


def pack(embedding: Iterable[float] | bytes) -> bytes:
    """Return an embedding as stores keep it: float32, little-endian, 4 bytes a dimension.

    Args:
        embedding: numbers, shape (dims,), at least one; or bytes that are packed already.

    Raises:
        EmbeddingError: it is empty, its bytes are not a whole number of floats, or it holds a NaN, an infinity, or a
            number too large for a float32.
    """
    if isinstance(embedding, bytes) and len(embedding) % 4:
        raise EmbeddingError(f"a packed embedding has 4 bytes a dimension, not {len(embedding)} bytes in all")
    try:
        values = array("f", embedding)
    except OverflowError:  # an int too large even for a float64
        raise EmbeddingError("an embedding may hold no number beyond float32") from None
    if isinstance(embedding, bytes) and sys.byteorder == "big":
        values.byteswap()
    if not values:
        raise EmbeddingError("an embedding needs at least one dimension")
    # The sum is taken in float64, which no sum of float32 numbers overflows: it is finite if all of them are.
    if not isfinite(sum(values)):
        raise EmbeddingError("an embedding may hold no NaN, no infinity and no number beyond float32")
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpack(blob: bytes) -> list[float]:
    """Return the numbers of a packed embedding, shape (dims,); the opposite of `pack`."""
    values = array("f", blob)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def normalize_scope(scope: str) -> str:
    """Return a scope as a path with a leading slash, no trailing one and none doubled; `/` for an empty one."""
    return "/" + "/".join(part for part in scope.split("/") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One memory; `id` names it, and putting a record with the same id replaces it."""

    id: str
    """Any string that is not empty; the caller's choice."""

    content: str
    """The text."""

    scope: str = "/"
    """Where it belongs, as a path such as `/crew/research/agent/writer`; kept normalized."""

    categories: tuple[str, ...] = ()
    """Tags, in the caller's order."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever JSON can hold; comes back as `json.loads` gives it."""

    importance: float = 0.5
    """0 to 1."""

    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    """When it was made; a time without a zone is taken as UTC. Comes back in UTC, to the microsecond."""

    accessed_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    """When it was last read or written, by the caller's account; the store never changes it by itself."""

    embedding: bytes | None = None
    """Packed (`pack`); None where there is none. In a search such a record counts as a zero vector."""

    source: str | None = None
    """Where it came from, such as a user or a session."""

    private: bool = False
    """Whether only its source should see it; kept for the caller, who decides."""

    def __post_init__(self) -> None:
        """Normalize the scope and the times, and refuse what no store could give back."""
        if not self.id:
            raise DataError("a record needs an id")
        if not 0.0 <= self.importance <= 1.0:
            raise DataError("the importance of a record lies between 0 and 1")
        object.__setattr__(self, "scope", normalize_scope(self.scope))
        object.__setattr__(self, "created_at", _utc(self.created_at))
        object.__setattr__(self, "accessed_at", _utc(self.accessed_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which records: those that meet every condition given; None is no condition, an empty list is met by no record."""

    scope: str | None = None
    """This scope and those below it: `/a` means `/a` and `/a/b`, not `/ab`."""

    categories: tuple[str, ...] | None = None
    """Any of these, compared exactly."""

    ids: tuple[str, ...] | None = None
    """Any of these."""

    metadata: Mapping[str, Any] | None = None
    """For each key, `record.metadata.get(key) == value` as Python compares: a value of None is met by a lacking key."""

    created_before: datetime | None = None
    """Made before this time; without a zone it is taken as UTC."""

    def __post_init__(self) -> None:
        """Normalize the scope and the time; the root scope is no condition."""
        if self.scope is not None:
            scope = normalize_scope(self.scope)
            object.__setattr__(self, "scope", None if scope == "/" else scope)
        if self.created_before is not None:
            object.__setattr__(self, "created_before", _utc(self.created_before))


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that a search found."""

    record: Record
    score: float
    """Higher is better; the range is the metric's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeSummary:
    """What lies in a scope and below it, as one snapshot shows it."""

    scope: str
    count: int
    """Records."""
    categories: tuple[str, ...]
    """In alphabetical order."""
    oldest: datetime | None
    newest: datetime | None
    children: tuple[str, ...]
    """The scopes one level below, as full paths in alphabetical order."""


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)


for _public in (DimsError, EmbeddingError, Hit, Query, Record, ScopeSummary, normalize_scope, pack, unpack):
    _public.__module__ = "walpool.memory"
