"""The contract of a memory store; `tests/memory/contract.py` holds every store to it, awaited or not.

Knows no backend. Embeddings go in and come out packed (`records.pack`); a store embeds no text. A store serves one
collection of one tenant; stores of others in the same database see nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from walpool.memory.records import (
    Changes,
    Hits,
    Metric,
    Mode,
    Query,
    Record,
    Records,
    ScopeSummary,
    Weights,
)  # fmt: skip

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["AsyncMemoryStore", "MemoryStore"]


class MemoryStore(Protocol):
    """Records in scopes, found by id, by condition, by their words, or by nearness to an embedding.

    Safe to share between threads. A read sees one snapshot: all of a job that was answered before it began, nothing of
    one that was not. A write is one job, all or nothing, and durable when the call returns.
    """

    def save(self, records: Iterable[Record]) -> None:
        """Insert the records, or replace those whose ids exist; one job.

        A record without an embedding keeps the one that its id has. The first embedding that a store takes fixes its
        dims until `reset`.

        Raises:
            DimsError: an embedding has another length than the store's, or than its neighbour's; nothing was saved.
            TypeError: metadata that JSON cannot hold.
            DataError: metadata that is nested too deep for JSON; a text with a lone surrogate; on PostgreSQL a content
                with a NUL.
        """
        ...

    def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        ...

    def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool:
        """Change the named fields of one record and leave the others; return whether there is such a record.

        Unlike `save` of a record that was read before, it cannot undo what another caller changed in between.

        Raises:
            As `save`; DataError also for a value that `Record` would refuse.
            TypeError: no such field.
        """
        ...

    def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int:
        """Set `accessed_at` of the records with these ids, to now by default; return how many there were."""
        ...

    def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were. An empty query deletes every record."""
        ...

    def list(self, query: Query = ..., *, limit: int = 200, offset: int = 0, after: str | None = None) -> Records:
        """Return the records that meet `query`, newest first, those of one instant by falling age of their row.

        Args:
            query: which records; all of them by default.
            limit: at most this many; none if it is not positive.
            offset: leave out as many first; no records if it is negative.
            after: `next` of the page before. Pages stay stable while others write: what was saved or replaced after
                the first page was read is not in the later ones.

        Raises:
            DataError: `after` is no such token, was given for another query, or was made void by `compact`, `rebuild`
                or `reset` (list anew).
        """
        ...

    def count(self, query: Query = ...) -> int:
        """Return how many records meet `query`."""
        ...

    def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]:
        """Return the scopes one level below `parent`, in order, each with its number of records, there and below.

        Args:
            parent: a scope.
            deep: all levels below rather than one.
        """
        ...

    def categories(self, query: Query = ...) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records, in order of name."""
        ...

    def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        ...

    def search(
        self,
        embedding: bytes | None = None,
        query: Query = ...,
        *,
        text: str | None = None,
        fts: str | None = None,
        mode: Mode | None = None,
        metric: Metric = "cosine",
        weights: Weights = ...,
        limit: int = 10,
        min_score: float | None = None,
        marks: tuple[str, str] = ("[", "]"),
        after: str | None = None,
    ) -> Hits:
        """Return the records that go best with `embedding`, with `text` or with both, among those that meet `query`.

        A search by embedding is exact: the conditions come first, and no record that meets them is left out for being
        far from where an index looked. A search with a text ranks the best records once, with its first page: five
        times `limit` of them, at least 50, and at most 1,000 for all its pages; with both, as many from each side. What
        a common word finds in a large collection is bounded in a search by both; each backend says how.

        Args:
            embedding: packed float32, shape (dims,); need not be normalized.
            query: which records may be found; all of them by default.
            text: what a person typed. Words are all looked for (in a hybrid search any), "quoted words" as a phrase,
                word* as a beginning, -word excludes, or between two means either; nothing in it is an error.
            fts: in place of `text`, a query in the backend's own syntax: FTS5's, or PostgreSQL's tsquery. Ranked by the
                backend itself, which reads every record that matches; FTS5 counts the words of all collections.
            mode: by default what was given: `vector`, `words`, or `hybrid` for both.
            metric: how an embedding scores.
            weights: how a hybrid search weighs ranks, age and importance.
            limit: at most this many hits; none if it is not positive.
            min_score: leave out what scores lower; None leaves out nothing.
            marks: what stands before and behind a match in `Hit.snippet`.
            after: `next` of the page before. Pages stay stable while others write: what was saved or replaced after
                the first page is not in the later ones.

        Returns:
            Hits by falling score, ties in the order in which the records were first saved. A record without an
            embedding counts as a zero vector.

        Raises:
            DimsError: another length than the store's dims.
            DataError: neither an embedding nor a text; not what `mode` needs; a token that is none, that belongs to
                another search, or that `compact`, `rebuild` or `reset` has made void (search anew).
            ProgrammingError: `fts` is not the backend's syntax.
        """
        ...

    def expire(
        self,
        query: Query = ...,
        *,
        older_than: timedelta | None = None,
        keep: int | None = None,
        importance_below: float | None = None,
    ) -> int:
        """Delete the records that meet `query` and each condition given; return how many there were.

        Args:
            query: which records may go; all of them by default.
            older_than: made longer ago than this.
            keep: not among the newest `keep` of their own scope.
            importance_below: less important than this.

        Raises:
            DataError: no condition was given, or a negative one: `delete` and `reset` delete without one.
        """
        ...

    def reset(self) -> None:
        """Delete every record and forget the dims, so that the next embedding may have another length."""
        ...

    def compact(self) -> None:
        """Make searches as fast as they can be, and the file as small as it can be without a vacuum; never needed.

        Useful after a bulk load or after many deletions: centres the sketches of the embeddings, merges the word index,
        and moves the WAL into the file.
        """
        ...

    def rebuild(self) -> None:
        """Make the word index, the sketches, the counts and all else that is derived anew from the records.

        One job; on PostgreSQL some hundred records a job.
        """
        ...

    def check(self) -> Sequence[str]:
        """Return what is derived and differs from the records, one sentence each; nothing for a sound store.

        Compares words, vectors, sketches, scopes, categories and metadata with the records; `rebuild` mends what it
        finds.
        """
        ...

    def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        ...

    def close(self) -> None:
        """Give the database back; safe to call twice. Other stores on the same file stay open."""
        ...

    def iterate(self, query: Query = ..., *, chunk: int = 500) -> Iterator[Record]:
        """Iterate over the records that meet `query`, oldest first, in one snapshot of its own; for exports.

        Closing the iterator, or reading it to its end, gives the snapshot back.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class AsyncMemoryStore(Protocol):
    """The same store for asyncio: each method of `MemoryStore`, awaited; see there for what it promises.

    The event loop is never blocked. Cancellation is `AsyncPool`'s: a job that has not begun never runs.
    """

    async def save(self, records: Iterable[Record]) -> None: ...  # noqa: D102 - as in MemoryStore, here and below
    async def get(self, record_id: str) -> Record | None: ...  # noqa: D102
    async def update(self, record_id: str, /, **changes: Unpack[Changes]) -> bool: ...  # noqa: D102
    async def touch(self, record_ids: Iterable[str], at: datetime | None = None) -> int: ...  # noqa: D102
    async def delete(self, query: Query) -> int: ...  # noqa: D102
    async def list(  # noqa: D102
        self, query: Query = ..., *, limit: int = 200, offset: int = 0, after: str | None = None
    ) -> Records: ...
    async def count(self, query: Query = ...) -> int: ...  # noqa: D102
    async def scopes(self, parent: str = "/", *, deep: bool = False) -> dict[str, int]: ...  # noqa: D102
    async def categories(self, query: Query = ...) -> dict[str, int]: ...  # noqa: D102
    async def summary(self, scope: str = "/") -> ScopeSummary: ...  # noqa: D102
    async def search(  # noqa: D102
        self,
        embedding: bytes | None = None,
        query: Query = ...,
        *,
        text: str | None = None,
        fts: str | None = None,
        mode: Mode | None = None,
        metric: Metric = "cosine",
        weights: Weights = ...,
        limit: int = 10,
        min_score: float | None = None,
        marks: tuple[str, str] = ("[", "]"),
        after: str | None = None,
    ) -> Hits: ...
    async def expire(  # noqa: D102
        self,
        query: Query = ...,
        *,
        older_than: timedelta | None = None,
        keep: int | None = None,
        importance_below: float | None = None,
    ) -> int: ...
    async def reset(self) -> None: ...  # noqa: D102
    async def compact(self) -> None: ...  # noqa: D102
    async def rebuild(self) -> None: ...  # noqa: D102
    async def check(self) -> Sequence[str]: ...  # noqa: D102
    async def dims(self) -> int | None: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102
    def iterate(self, query: Query = ..., *, chunk: int = 500) -> AsyncIterator[Record]: ...  # noqa: D102
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


for _protocol in (AsyncMemoryStore, MemoryStore):
    _protocol.__module__ = "walpool.memory"
for _name, _method in vars(AsyncMemoryStore).items():
    if not _name.startswith("_"):
        _method.__doc__ = getattr(MemoryStore, _name).__doc__  # help() and editors find it there too
