"""The contract of a memory store; `tests/memory/contract.py` holds every store to it.

Knows no backend. Embeddings go in and come out packed (`records.pack`); a store embeds no text itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from walpool.memory.records import Hit, Metric, Query, Record, ScopeSummary

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MemoryStore"]


class MemoryStore(Protocol):
    """Records in scopes, found by id, by condition, or by nearness to an embedding.

    Safe to share between threads. A read sees one snapshot: all of a job that was answered before it began, nothing of
    one that was not. A write is one job, all or nothing, and durable when the call returns.
    """

    def put(self, records: Iterable[Record]) -> None:
        """Insert the records, or replace those whose ids exist; one job.

        A record without an embedding keeps the one that its id has. The first embedding that a store takes fixes its
        dims until `clear`.

        Raises:
            DimsError: an embedding has another length than the store's, or than its neighbour's; nothing was put.
            TypeError: metadata that JSON cannot hold.
            DataError: metadata that is nested too deep for JSON.
        """
        ...

    def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        ...

    def search(
        self,
        embedding: bytes,
        query: Query = ...,
        *,
        limit: int = 10,
        min_score: float | None = None,
        metric: Metric = "cosine",
    ) -> list[Hit]:
        """Return the records nearest to `embedding` among those that meet `query`, nearest first.

        The search is exact: the conditions come first, then every record that meets them is scored.

        Args:
            embedding: packed float32, shape (dims,); need not be normalized.
            query: which records may be found; all of them by default.
            limit: at most this many hits; none if it is not positive.
            min_score: leave out what scores lower; None leaves out nothing.
            metric: how to score.

        Returns:
            Hits by falling score, ties in the order in which the records were first put.

        Raises:
            DimsError: another length than the store's dims.
        """
        ...

    def records(self, query: Query = ..., *, limit: int = 200, offset: int = 0) -> list[Record]:
        """Return the records that meet `query`, newest first; none if `limit` is not positive or `offset` negative."""
        ...

    def count(self, query: Query = ...) -> int:
        """Return how many records meet `query`."""
        ...

    def categories(self, query: Query = ...) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records, in order of name."""
        ...

    def scopes(self, parent: str = "/") -> Sequence[str]:
        """Return the scopes one level below `parent` that hold records, there or deeper: full paths, in order."""
        ...

    def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        ...

    def touch(self, record_ids: Iterable[str], at: datetime) -> int:
        """Set `accessed_at` of the records with these ids; return how many there were."""
        ...

    def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were. An empty query deletes every record."""
        ...

    def clear(self) -> None:
        """Delete every record and forget the dims, so that the next embedding may have another length."""
        ...

    def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        ...

    def optimize(self) -> None:
        """Move what was written lately from the WAL into the file; never needed, useful after a bulk load."""
        ...

    def close(self) -> None:
        """Give the database back; safe to call twice. Other stores on the same file stay open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


MemoryStore.__module__ = "walpool.memory"
