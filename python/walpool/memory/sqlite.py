"""The memory store on a walpool pool: running the statements of `_sqlite_sql`, one snapshot a read, one job a write.

Knows no SQL text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from walpool import schema
from walpool.errors import IntegrityError
from walpool.memory import _sqlite_sql as sql
from walpool.memory.records import DimsError, Hit, Metric, Query, Record, ScopeSummary, normalize_scope
from walpool.types import Row, Value

if TYPE_CHECKING:
    from typing_extensions import Self

    from walpool.pool import Pool

__all__ = ["SqliteMemoryStore"]

T = TypeVar("T")
_ALL = Query()


class _Reader(Protocol):
    """What a snapshot and a transaction have in common."""

    def fetch(self, sql: str, params: Sequence[Value] = ..., /) -> list[Row]: ...


class SqliteMemoryStore:
    """A `MemoryStore` in the SQLite file of a pool; see the contract for what its methods promise.

    Args:
        pool: the database; the store closes it, so hand it a handle of its own (`walpool.get_pool`).

    Raises:
        NotSupportedError: the file's memory tables come from a newer walpool.
    """

    def __init__(self, pool: Pool) -> None:
        """Take over `pool` and bring its memory tables up to date."""
        self._pool = pool
        schema.migrate(pool, "memory", sql.MIGRATIONS)

    @property
    def pool(self) -> Pool:
        """The pool, to look at the database beside the store or to run statements of one's own."""
        return self._pool

    def put(self, records: Iterable[Record]) -> None:
        """Insert the records, or replace those whose ids exist; one job."""
        batch = list(records)
        given = _common_dims(batch)
        statements = [statement for record in batch for statement in sql.put(record)]
        if not statements:
            return
        try:
            self._pool.batch(statements)
        except IntegrityError as error:
            # Only the trigger that compares dims can refuse here; the store is asked what it holds.
            stored = self.dims()
            if given is None or stored is None or stored == given:
                raise
            raise DimsError(stored=stored, given=given) from error

    def get(self, record_id: str) -> Record | None:
        """Return one record, or None if no record has this id."""
        read = sql.by_id(record_id)
        return read.decode(self._pool.fetch(read.sql, read.params))

    def search(
        self,
        embedding: bytes,
        query: Query = _ALL,
        *,
        limit: int = 10,
        min_score: float | None = None,
        metric: Metric = "cosine",
    ) -> list[Hit]:
        """Return the records nearest to `embedding` among those that meet `query`, nearest first."""
        if limit <= 0:
            return []
        with self._pool.read() as snapshot:
            stored = _run(snapshot, sql.dims())
            if stored is not None and stored * 4 != len(embedding):
                raise DimsError(stored=stored, given=len(embedding) // 4)
            selection = _select(snapshot, query)
            hits = _run(snapshot, sql.nearest(embedding, selection, limit=limit, metric=metric))
        # The best ones were taken first, so what lies below the bar can be left out afterwards.
        return hits if min_score is None else [hit for hit in hits if hit.score >= min_score]

    def records(self, query: Query = _ALL, *, limit: int = 200, offset: int = 0) -> list[Record]:
        """Return the records that meet `query`, newest first."""
        if limit <= 0 or offset < 0:
            return []
        with self._pool.read() as snapshot:
            return _run(snapshot, sql.newest(_select(snapshot, query), limit=limit, offset=offset))

    def count(self, query: Query = _ALL) -> int:
        """Return how many records meet `query`."""
        with self._pool.read() as snapshot:
            return _run(snapshot, sql.count(_select(snapshot, query)))

    def categories(self, query: Query = _ALL) -> dict[str, int]:
        """Return the categories of the records that meet `query`, each with its number of records."""
        with self._pool.read() as snapshot:
            return _run(snapshot, sql.categories(_select(snapshot, query)))

    def scopes(self, parent: str = "/") -> Sequence[str]:
        """Return the scopes one level below `parent` that hold records, there or deeper."""
        read = sql.children(parent)
        return read.decode(self._pool.fetch(read.sql, read.params))

    def summary(self, scope: str = "/") -> ScopeSummary:
        """Return what lies in `scope` and below it, all of one snapshot."""
        selection = sql.select(Query(scope=scope))
        with self._pool.read() as snapshot:
            number, oldest, newest = _run(snapshot, sql.age(selection))
            return ScopeSummary(
                scope=normalize_scope(scope),
                count=number,
                categories=tuple(_run(snapshot, sql.categories(selection))),
                oldest=oldest,
                newest=newest,
                children=_run(snapshot, sql.children(scope)),
            )

    def touch(self, record_ids: Iterable[str], at: datetime) -> int:
        """Set `accessed_at` of the records with these ids; return how many there were."""
        return self._pool.execute(*sql.touch(record_ids, at)).rowcount

    def delete(self, query: Query) -> int:
        """Delete the records that meet `query`; return how many there were."""
        if not query.metadata:
            return self._pool.execute(*sql.delete(sql.select(query))).rowcount
        # Python compares the metadata, so the writer is held: nothing may change between the look and the deletion.
        return self._pool.run(lambda tx: tx.execute(*sql.delete(_select(tx, query))).rowcount)

    def clear(self) -> None:
        """Delete every record and forget the dims."""
        self._pool.batch(sql.clear())

    def dims(self) -> int | None:
        """Return the length of the store's embeddings; None before the first one."""
        read = sql.dims()
        return read.decode(self._pool.fetch(read.sql, read.params))

    def optimize(self) -> None:
        """Move what was written lately from the WAL into the file."""
        self._pool.checkpoint("truncate")

    def close(self) -> None:
        """Give the database back; safe to call twice."""
        self._pool.close()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()


SqliteMemoryStore.__module__ = "walpool.memory"


def _run(reader: _Reader, read: sql.Read[T]) -> T:
    return read.decode(reader.fetch(read.sql, read.params))


def _select(reader: _Reader, query: Query) -> sql.Selection:
    return sql.select_keys(_run(reader, sql.matching(query))) if query.metadata else sql.select(query)


def _common_dims(records: Sequence[Record]) -> int | None:
    """Return the length that all embeddings of a batch have; None if there are none."""
    common: int | None = None
    for record in records:
        if record.embedding is None:
            continue
        given = len(record.embedding) // 4
        if common is not None and given != common:
            raise DimsError(f"one batch holds embeddings of {common} and of {given} dims", stored=common, given=given)
        common = given
    return common
