"""What a memory store keeps: records, the conditions that select them, and the hits of a search.

Plain data and its validation; knows no SQL and no backend.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from math import isfinite
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeGuard

from walpool.errors import DataError
from walpool.memory import _html

__all__ = [
    "Changes",
    "Collection",
    "DimsError",
    "EmbeddingError",
    "Explanation",
    "Hit",
    "Hits",
    "Metric",
    "Mode",
    "Query",
    "Record",
    "Records",
    "ScopeSummary",
    "Weights",
    "normalize_scope",
    "pack",
    "packed",
    "unpack",
    "utc",
]

_SHOWN: Final = 10  # elements of a page, in its repr
_CONTENT_SHOWN: Final = 80  # characters
_SCOPE_SHOWN: Final = 40

Metric: TypeAlias = Literal["cosine", "dot", "l2"]
"""How a search by embedding scores.

`cosine` is the cosine, -1 to 1; `dot` the dot product; `l2` is 1 / (1 + squared Euclidean distance), 0 to 1.
"""

Mode: TypeAlias = Literal["vector", "words", "hybrid"]
"""What a search goes by: an embedding, a text, or both."""


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
    if _is_packed(embedding):
        embedding = bytes(embedding)
        if len(embedding) % 4:
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


def packed(embedding: object) -> bytes:
    """Return what was given as a packed embedding as bytes; its numbers are not looked at.

    Raises:
        EmbeddingError: it is something else, such as the numbers themselves.
    """
    if isinstance(embedding, bytes):
        return embedding
    if _is_packed(embedding):
        return bytes(embedding)
    raise EmbeddingError(
        f"an embedding is given packed, not as a {type(embedding).__name__}: pack(numbers) makes it so"
    )


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
        """Bring the fields into one form, and refuse what no store could give back."""
        if not self.id:
            raise DataError("a record needs an id")
        if not 0.0 <= self.importance <= 1.0:
            raise DataError("the importance of a record lies between 0 and 1")
        if type(self.importance) is not float:
            object.__setattr__(self, "importance", float(self.importance))
        if self.embedding is not None:
            object.__setattr__(self, "embedding", packed(self.embedding))
        object.__setattr__(self, "scope", normalize_scope(self.scope))
        object.__setattr__(self, "created_at", utc(self.created_at))
        object.__setattr__(self, "accessed_at", utc(self.accessed_at))

    def __repr__(self) -> str:
        """Return the fields, a long text shortened and the embedding as its length."""
        shown = {each.name: repr(getattr(self, each.name)) for each in fields(self) if each.name != "embedding"}
        shown["content"] = repr(_html.shortened(self.content, _CONTENT_SHOWN))
        shown["embedding"] = "None" if self.embedding is None else f"<{len(self.embedding) // 4} dims>"
        return f"Record({', '.join(f'{name}={value}' for name, value in shown.items())})"


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
    """For each top-level key a `Condition`, or a value that it must equal; all of them are met."""

    source: str | None = None
    """From this source."""

    private: bool | None = None
    """Private, or not."""

    created_after: datetime | None = None
    """Made at this time or after it; without a zone it is taken as UTC."""

    created_before: datetime | None = None
    """Made before this time; without a zone it is taken as UTC."""

    accessed_before: datetime | None = None
    """Last accessed before this time; without a zone it is taken as UTC."""

    importance_at_least: float | None = None
    """As important as this, or more."""

    importance_below: float | None = None
    """Less important than this."""

    def __post_init__(self) -> None:
        """Normalize the scope and the times; the root scope is no condition."""
        if self.scope is not None:
            scope = normalize_scope(self.scope)
            object.__setattr__(self, "scope", None if scope == "/" else scope)
        for name in ("created_after", "created_before", "accessed_before"):
            time = getattr(self, name)
            if time is not None:
                object.__setattr__(self, name, utc(time))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How a hybrid search weighs what it knows; only the proportions count among `vector` and `words`.

    The two ranks of a record are fused into its relevance, 0 to 1 (reciprocal-rank fusion, Cormack, Clarke and
    Buettcher, SIGIR 2009, k = 60), and its score is `relevance * its relevance + recency * 0.5 ** (age / half_life) +
    importance * its importance`, with CrewAI's own proportions by default.
    """

    vector: float = 1.0
    words: float = 1.0
    relevance: float = 0.5
    recency: float = 0.3
    importance: float = 0.2
    half_life: timedelta = timedelta(days=30)

    def __post_init__(self) -> None:
        """Refuse weights that would turn the order round, or say nothing."""
        given = (self.vector, self.words, self.relevance, self.recency, self.importance)
        if not all(isfinite(weight) and weight >= 0 for weight in given):
            raise DataError("the weights of a search are finite and not negative")
        if self.vector + self.words <= 0 or self.half_life <= timedelta(0):
            raise DataError("a search needs a weight for the embedding or for the words, and a half-life above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a hit's score comes from; what a search did not go by is None."""

    vector_rank: int | None = None
    """1 for the nearest; None also for a hit that only the words found."""
    vector_score: float | None = None
    """By the metric."""
    words_rank: int | None = None
    """1 for the best match; None also for a hit that only the embedding found."""
    words_score: float | None = None
    """BM25 by FTS5, turned so that higher is better; on another backend its own measure."""
    relevance: float | None = None
    """The fused ranks, 0 to 1."""
    recency: float | None = None
    """0.5 ** (age / half_life), 0 to 1."""
    importance: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that a search found."""

    record: Record
    score: float
    """Higher is better; the range is the metric's, BM25's, or 0 to the sum of the weights."""
    why: Explanation = Explanation()
    """What the score is made of."""
    snippet: str | None = None
    """The words that matched in their surroundings, between the marks of the search; None where none did."""


class Records(list[Record]):
    """A page of records, newest first; `next` is the token for the page behind it, None at the end.

    A notebook shows it as a table.
    """

    next: str | None = None

    def __repr__(self) -> str:
        return _listed("Records", [f"{each.created_at:%Y-%m-%d %H:%M}  {_line(each)}" for each in self[:_SHOWN]], self)

    def _repr_html_(self) -> str:
        return _html.records(self, more=self.next is not None)


class Hits(list[Hit]):
    """A page of hits, best first; `next` is the token for the page behind it, None at the end.

    A notebook shows it as a table.
    """

    next: str | None = None

    def __repr__(self) -> str:
        return _listed("Hits", [f"{hit.score:.4f}  {_line(hit.record)}" for hit in self[:_SHOWN]], self)

    def _repr_html_(self) -> str:
        return _html.hits(self, more=self.next is not None)


class Changes(TypedDict, total=False):
    """The fields of a record that `update` can change; those that are not named stay as they are."""

    content: str
    scope: str
    categories: tuple[str, ...]
    metadata: Mapping[str, Any]
    importance: float
    created_at: datetime
    accessed_at: datetime
    embedding: bytes | None
    source: str | None
    private: bool


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


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection of a tenant, as `collections` finds it in a database."""

    tenant: str
    collection: str
    words: str
    """The tokenizer of its word index: `unicode61` or `trigram`."""
    dims: int | None
    """The length of its embeddings; None before the first one."""
    records: int
    """How many there are."""


def _line(record: Record) -> str:
    return f"{_html.shortened(record.scope, _SCOPE_SHOWN)}  {_html.shortened(record.content, _CONTENT_SHOWN)!r}"


def _listed(name: str, lines: list[str], page: Records | Hits) -> str:
    """Return a page as text: how long it is, a line for each of its first elements, and whether another follows."""
    left_out = [f"... {len(page) - len(lines)} more"] if len(page) > len(lines) else []
    behind = ", and a page behind them (next)" if page.next is not None else ""
    return "\n  ".join([f"<{name}: {len(page)}{behind}", *lines, *left_out]) + ">"


def _is_packed(embedding: object) -> TypeGuard[bytes | bytearray | memoryview]:
    # A view of floats is numbers, whatever its bytes are.
    return isinstance(embedding, (bytes, bytearray)) or (isinstance(embedding, memoryview) and embedding.itemsize == 1)


def utc(time: datetime) -> datetime:
    """Return a time in UTC; one without a zone is taken as UTC.

    Raises:
        DataError: UTC has no such time that Python can tell.
    """
    try:
        return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    except OverflowError:
        raise DataError("a time lies before the year 1 or behind the year 9999 in UTC") from None


_PUBLIC = (
    Changes, Collection, DimsError, EmbeddingError, Explanation, Hit, Hits, Query, Record, Records, ScopeSummary,
    Weights, normalize_scope, pack, unpack,
)  # fmt: skip
for _public in _PUBLIC:
    _public.__module__ = "walpool.memory"
