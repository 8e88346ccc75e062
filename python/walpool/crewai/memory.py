"""CrewAI's memory backend in terms of a `MemoryStore`: its records, its calling conventions, its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar

from crewai.memory.storage.backend import EmbeddingDimensionMismatchError
from crewai.memory.types import MemoryRecord, ScopeInfo
from pydantic_core import SchemaSerializer, core_schema

from walpool.crewai._database import Reopening, canonical_url, file_of, open_store
from walpool.errors import ConfigError, ReadOnlyError
from walpool.memory import (
    DimsError,
    MemoryStore,
    Metric,
    PythonEquals,
    Query,
    Record,
    normalize_scope,
    pack,
    unpack,
)

__all__ = ["Score", "WalpoolStorage"]

T = TypeVar("T")

Score: TypeAlias = Literal["lance", "cosine"]
"""How a search scores: `lance` is LanceDB's 1 / (1 + squared distance), CrewAI's default; `cosine` is the cosine."""

_METRICS: Final[dict[Score, Metric]] = {"lance": "l2", "cosine": "cosine"}


class WalpoolStorage:
    """A `StorageBackend` for CrewAI's memory, in a walpool database.

    Safe to share between threads, crews and flows; each write is one job. Scopes are paths: `/a` holds `/a` and `/a/b`,
    not `/ab`. What a call filters by is intersected, and applied before anything is ranked.

    Copying gives the same object, pickling one on the same file. `close()` gives the database back, and the next call
    opens it again, so that a `Memory` that is closed does not take the storage from its neighbours.

    Args:
        url: a path, or a `walpool://`, `sqlite://` or `postgresql://` URL; None takes `WALPOOL_URL`, and without that
            `walpool.db` where CrewAI keeps its own databases. The database is opened at the first call.
        score: `lance` scores as CrewAI's default store does, which its thresholds (such as 0.85 for consolidation) are
            met by; `cosine` as its Qdrant store does.
        **settings: as `walpool.get_pool` takes them, with `tenant` on a server.

    Raises:
        ConfigError: the URL is none of a database, or `score` is unknown.
    """

    # Whoever dumps a `Memory` that was given this storage (checkpoints do) gets the URL, and `Memory.model_validate`
    # asks the installed factory for it. Pydantic looks for this attribute where it has no schema for a value.
    __pydantic_serializer__: Final = SchemaSerializer(
        core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda storage: storage.url, return_schema=core_schema.str_schema()
            )
        )
    )

    def __init__(self, url: str | None = None, *, score: Score = "lance", **settings: Any) -> None:
        if score not in _METRICS:
            raise ConfigError(f"score={score!r} is not accepted: use {' or '.join(map(repr, _METRICS))}")
        self.url: Final = canonical_url(url)
        """The database, as a `walpool://` URL with an absolute path."""
        self._score: Final[Score] = score
        self._settings: Final = settings
        self._store = Reopening(file_of(self.url), partial(open_store, self.url, settings))

    def save(self, records: list[MemoryRecord]) -> None:
        """Insert the records, or replace those whose ids exist: one job, durable when it returns.

        Raises:
            EmbeddingDimensionMismatchError: an embedding has another length than the stored ones, or two of the batch
                differ; nothing was saved.
            ValueError: an embedding holds a NaN or an infinity.
            TypeError: metadata that is not JSON serializable.
        """
        batch = [_to_record(record) for record in records]
        if batch:
            self._run(lambda store: store.save(batch))

    def search(
        self,
        query_embedding: list[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        min_score: float = 0.0,
    ) -> list[tuple[MemoryRecord, float]]:
        """Return the nearest records and their scores, best first.

        Exact: what does not match is left out first, then every record is scored. A record without an embedding is
        scored as a zero vector. An empty list or dict filters nothing here, as in CrewAI's own stores.

        Raises:
            EmbeddingDimensionMismatchError: `query_embedding` has another length than the stored ones.
            ValueError: it is empty, or holds a NaN or an infinity.
        """
        embedding = pack(query_embedding)
        query = Query(
            scope=scope_prefix,
            categories=tuple(categories or ()) or None,
            metadata=_as_python_compares(metadata_filter or None),
        )
        metric = _METRICS[self._score]
        hits = self._run(lambda store: store.search(embedding, query, limit=limit, min_score=min_score, metric=metric))
        return [(_from_record(hit.record), hit.score) for hit in hits]

    def delete(
        self,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        older_than: datetime | None = None,
        metadata_filter: dict[str, Any] | None = None,
    ) -> int:
        """Delete the records that meet every condition given; return how many there were.

        An empty list or dict is met by no record, where CrewAI's own stores delete everything. Without any condition
        every record goes.
        """
        if any(given is not None and not given for given in (categories, record_ids, metadata_filter)):
            return 0
        query = Query(
            scope=scope_prefix,
            categories=None if categories is None else tuple(categories),
            ids=None if record_ids is None else tuple(map(str, record_ids)),
            metadata=_as_python_compares(metadata_filter),
            created_before=older_than,
        )
        return self._run(lambda store: store.delete(query))

    def update(self, record: MemoryRecord) -> None:
        """Replace the record with this id, or insert it; without an embedding it keeps the one it has."""
        self.save([record])

    def touch_records(self, record_ids: list[str]) -> None:
        """Set `last_accessed` of these records to now; CrewAI calls it after every recall.

        Where the file is retired nothing is set, so that a recall succeeds there.
        """
        if not record_ids:
            return
        with suppress(ReadOnlyError):
            self._run(lambda store: store.touch(map(str, record_ids)))

    def get_record(self, record_id: str) -> MemoryRecord | None:
        """Return one record, or None if no record has this id."""
        record = self._run(lambda store: store.get(str(record_id)))
        return None if record is None else _from_record(record)

    def list_records(self, scope_prefix: str | None = None, limit: int = 200, offset: int = 0) -> list[MemoryRecord]:
        """Return the records in a scope, newest first; none if `limit` is not positive or `offset` is negative."""
        query = Query(scope=scope_prefix)
        records = self._run(lambda store: store.list(query, limit=limit, offset=offset))
        return [_from_record(record) for record in records]

    def get_scope_info(self, scope: str) -> ScopeInfo:
        """Return what lies in a scope and below it: counts over all of it, however large."""
        summary = self._run(lambda store: store.summary(scope))
        return ScopeInfo(
            path=summary.scope,
            record_count=summary.count,
            categories=list(summary.categories),
            oldest_record=None if summary.oldest is None else _naive(summary.oldest),
            newest_record=None if summary.newest is None else _naive(summary.newest),
            child_scopes=list(summary.children),
        )

    def list_scopes(self, parent: str = "/") -> list[str]:
        """Return the scopes one level below `parent`, in order: a deep recall searches the first twenty of them."""
        return list(self._run(lambda store: store.scopes(parent)))

    def list_categories(self, scope_prefix: str | None = None) -> dict[str, int]:
        """Return each category of the records in a scope with its number of records."""
        return self._run(lambda store: store.categories(Query(scope=scope_prefix)))

    def count(self, scope_prefix: str | None = None) -> int:
        """Return how many records lie in a scope and below it."""
        return self._run(lambda store: store.count(Query(scope=scope_prefix)))

    def reset(self, scope_prefix: str | None = None) -> None:
        """Delete what lies in a scope and below it; without one, everything, and the embeddings' length with it."""
        if scope_prefix is None or normalize_scope(scope_prefix) == "/":
            self._run(lambda store: store.reset())
        else:
            self._run(lambda store: store.delete(Query(scope=scope_prefix)))

    # CrewAI's own stores run the call on the loop's thread here, and CrewAI never calls these three.

    async def asave(self, records: list[MemoryRecord]) -> None:
        """Do what `save` does, on the loop's own thread."""
        self.save(records)

    async def asearch(
        self,
        query_embedding: list[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        min_score: float = 0.0,
    ) -> list[tuple[MemoryRecord, float]]:
        """Do what `search` does, on the loop's own thread."""
        return self.search(query_embedding, scope_prefix, categories, metadata_filter, limit, min_score)

    async def adelete(
        self,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        older_than: datetime | None = None,
        metadata_filter: dict[str, Any] | None = None,
    ) -> int:
        """Do what `delete` does, on the loop's own thread."""
        return self.delete(scope_prefix, categories, record_ids, older_than, metadata_filter)

    def optimize(self) -> None:
        """Make searches fast again and move the WAL into the file; never needed, useful after a bulk load."""
        self._run(lambda store: store.compact())

    def close(self) -> None:
        """Give the database back; the next call opens it again. What was saved was durable before."""
        self._store.close()

    def _run(self, work: Callable[[MemoryStore], T]) -> T:
        with _dims_in_the_words_of_crewai():
            return self._store.use(work)

    def __copy__(self) -> WalpoolStorage:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> WalpoolStorage:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return partial(WalpoolStorage, score=self._score, **self._settings), (self.url,)

    def __repr__(self) -> str:
        return f"WalpoolStorage({self.url!r}, score={self._score!r})"


WalpoolStorage.__module__ = "walpool.crewai"


@contextmanager
def _dims_in_the_words_of_crewai() -> Iterator[None]:
    try:
        yield
    except DimsError as error:
        raise EmbeddingDimensionMismatchError(error.stored, error.given) from error


def _as_python_compares(metadata: dict[str, Any] | None) -> dict[str, PythonEquals] | None:
    return None if metadata is None else {key: PythonEquals(value) for key, value in metadata.items()}


def _to_record(record: MemoryRecord) -> Record:
    return Record(
        id=str(record.id),
        content=record.content,
        scope=record.scope,
        categories=tuple(record.categories),
        metadata=record.metadata,
        importance=record.importance,
        created_at=record.created_at,
        accessed_at=record.last_accessed,
        embedding=pack(record.embedding) if record.embedding else None,
        source=record.source or None,
        private=record.private,
    )


def _from_record(record: Record) -> MemoryRecord:
    # Not validated again: it was when it was made, and a check of every float costs more than the search.
    return MemoryRecord.model_construct(
        id=record.id,
        content=record.content,
        scope=record.scope,
        categories=list(record.categories),
        metadata=dict(record.metadata),
        importance=record.importance,
        created_at=_naive(record.created_at),
        last_accessed=_naive(record.accessed_at),
        embedding=None if record.embedding is None else unpack(record.embedding),
        source=record.source,
        private=record.private,
    )


def _naive(time: datetime) -> datetime:
    """Return a time in UTC without its zone: CrewAI subtracts it from `datetime.utcnow()`."""
    return time.astimezone(timezone.utc).replace(tzinfo=None)
