"""Copying what `langgraph-checkpoint-sqlite` stored into a walpool database, and comparing it afterwards.

A thread, or an item of the store, is copied where it is missing and completed where a copy was interrupted; what has
gone on in the target is left alone. All that was copied is read back through the savers' own code and compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata

from walpool.copying import Difference, jobs
from walpool.errors import DataError, IntegrityError, NotSupportedError
from walpool.langgraph import _codec, _sql
from walpool.langgraph import _import_own_sql as own_sql
from walpool.langgraph import _import_sql as sql
from walpool.langgraph._dialects import Dialect
from walpool.langgraph._handles import Handles, Tables
from walpool.langgraph._import_raw import RawSerializer
from walpool.langgraph._import_source import Source
from walpool.langgraph._steps import Statement
from walpool.langgraph._store_dialects import ITEMS, VECTORS
from walpool.memory.records import EmbeddingError, pack
from walpool.registry import get_pool

if TYPE_CHECKING:
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

__all__ = ["Difference", "ImportReport", "import_sqlite"]

Progress: TypeAlias = Callable[[int, int], None]

_CHUNK: Final = 200  # rows to compare at a time


@dataclass(slots=True)
class ImportReport:
    """What an import found, did, and could not do.

    Attributes:
        source: the path of the database that was read.
        target: the path of the database that was written, or its URL without a password.
        threads, checkpoints, writes, items, vectors: how many there are in the source.
        added: how many checkpoints, writes and items this run stored; the others were there already.
        differences: what is not in the target as it is in the source; empty if all is well.
    """

    source: str
    target: str
    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    items: int = 0
    vectors: int = 0
    added: int = 0
    differences: list[Difference] = field(default_factory=list)


def import_sqlite(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    tenant: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> ImportReport:
    """Copy the threads and the store of `langgraph-checkpoint-sqlite`, compare both, and return what came of it.

    The source is opened read-only, as one snapshot. It may be run again: what is there already stays as it is, and an
    import that was interrupted goes on. A thread that the target has and that has checkpoints or writes which the
    source lacks, or an item of the store with another value, is not touched, and reported. No graph should run on
    the threads meanwhile.

    Args:
        source: a file that `SqliteSaver`, `AsyncSqliteSaver`, `SqliteStore` or `AsyncSqliteStore` wrote.
        target: the path or URL of the walpool database; None takes `WALPOOL_URL`. A file is made if it is not there.
        tenant: whose rows they become, on a server; see `walpool.get_pool`.
        overwrite: replace what differs in the target by what the source has.
        progress: called with how many of the source's rows are done, copying and comparing each counted, and how many
            there are.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: source and target are one file, no target was named, a file is to have a tenant, or a setting is
            wrong.
        StorageError: the source is not there or cannot be read, or the disk refused a write.
        CorruptError: the source is damaged.
        DataError: the source has no table of `langgraph-checkpoint-sqlite`.
        NotSupportedError: the source has vectors, and the server lacks pgvector; or walpool's tables are newer.
        OperationalError: the server cannot be reached, or the connection was lost; run it again.
        WriteTimeout, BusyError: somebody else was writing the target for too long; run it again.
    """
    with Source(source) as opened:
        opened.refuse_target(target)
        with get_pool(target, tenant=tenant, **settings) as pool:
            savers = Tables(_sql.SCHEMA, {pool.backend: own_sql.of(pool.backend).savers.migrations})
            tables = [savers, *([ITEMS] if opened.items else []), *([VECTORS] if opened.vectors else [])]
            return _Import(opened, Handles(pool, tables, {}).pool(), overwrite, progress).run()


class _Import:
    """One run of `import_sqlite`."""

    def __init__(self, source: Source, pool: Pool | PostgresPool, overwrite: bool, progress: Progress | None) -> None:
        source.refuse_target(pool.path)
        self._own = own_sql.of(pool.backend)
        self._has_vectors = pool.backend == "sqlite" or bool(pool.fetchval(own_sql.HAS_VECTORS))
        self._source = source
        self._pool = pool
        self._overwrite = overwrite
        self._progress = progress
        self._done = 0
        self._total = 2 * (source.checkpoints + source.writes + source.items)
        self._report = ImportReport(
            source=str(source.path),
            target=pool.path,
            checkpoints=source.checkpoints,
            writes=source.writes,
            items=source.items,
            vectors=source.vectors,
        )

    def run(self) -> ImportReport:
        """Copy and compare everything."""
        self._advance(0)
        for thread_id in self._source.threads():
            self._report.threads += 1
            self._thread(thread_id)
        items = self._source.items_of_store()
        while chunk := list(islice(items, _CHUNK)):
            self._items(chunk)
        self._advance(self._total - self._done)  # what was left out is done too
        if self._source.was_written:
            self._differs("the source", "it was written while it was read: run the import again")
        return self._report

    # Threads

    def _thread(self, thread_id: str) -> None:
        subject = f"thread {thread_id!r}"
        try:
            mine, theirs = self._keys(thread_id)
            has_gone_on = bool(theirs - mine)
            if has_gone_on and not self._overwrite:
                self._differs(subject, "the target has checkpoints or writes of it that the source lacks: left alone")
                return
            if not has_gone_on:
                self._add(thread_id, theirs, [])
            said = None if has_gone_on else self._compare(thread_id)
            if self._overwrite and (has_gone_on or said is not None):
                self._add(thread_id, set(), self._own.savers.delete_threads([thread_id]))
                said = self._compare(thread_id)
        except (DataError, IntegrityError) as error:
            said = str(error)
        if said is not None:
            self._differs(subject, said)

    def _keys(self, thread_id: str) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
        """Return the keys of a thread's checkpoints and writes, in the source and in the target."""
        mine = {tuple(row[:2]) for row in self._source.checkpoints_of(thread_id)}
        mine |= {tuple(row[:4]) for row in self._source.writes_of(thread_id)}
        with self._pool.read() as snapshot:
            theirs = set(snapshot.fetch(self._own.checkpoints, (thread_id,)))
            theirs |= set(snapshot.fetch(self._own.write_keys, (thread_id,)))
        return mine, theirs

    def _add(self, thread_id: str, present: set[tuple[Any, ...]], first: list[Statement]) -> None:
        """Store what is not present of a thread, after the statements `first`; whole checkpoints in each job."""
        rows = self._missing(thread_id, present)
        for job in jobs(rows, first):
            self._pool.batch(job)

    def _missing(self, thread_id: str, present: set[tuple[Any, ...]]) -> Iterator[list[Statement]]:
        savers = self._own.savers
        stored: set[tuple[str, str, Any]] = set()  # namespace, channel, version: each value once
        for row in self._source.checkpoints_of(thread_id):
            self._advance(1)
            if tuple(row[:2]) not in present:
                self._report.added += 1
                yield _checkpoint_statements(savers, thread_id, row, stored)
        for write in self._source.writes_of(thread_id):
            self._advance(1)
            if tuple(write[:4]) not in present:
                self._report.added += 1
                yield [(savers.put_writes, (thread_id, *write[:6], *savers.stored(write[6:])))]

    def _compare(self, thread_id: str) -> str | None:
        """Return what differs of a thread between source and target; None if nothing does."""
        savers = self._own.savers
        rows = self._source.checkpoints_of(thread_id)
        while chunk := list(islice(rows, _CHUNK)):
            with self._pool.read() as snapshot:
                for row in chunk:
                    self._advance(1)
                    found = snapshot.fetch(*savers.get(thread_id, row[0], row[1]))
                    if (said := _compare_checkpoint(savers, row, found)) is not None:
                        return f"checkpoint {row[1]} in namespace {row[0]!r}: {said}"
        with self._pool.stream(self._own.writes, (thread_id,)) as theirs:
            for write in self._source.writes_of(thread_id):
                self._advance(1)
                stored = next(theirs, None)
                if stored is None or tuple(write) != (*stored[:6], *savers.loaded(*stored[6:])):
                    return f"the write of task {write[2]} at checkpoint {write[1]} differs or is missing"
        return None

    # The store

    def _items(self, rows: list[Any]) -> None:
        wanted = {item[:2]: item for item in map(self._read_item, rows) if item is not None}
        found = self._own_items(wanted)
        missing = [item for place, item in wanted.items() if place not in found]
        changed = [item for place, item in wanted.items() if place in found and not _same_item(item, found[place])]
        if self._overwrite:
            missing += changed
        refused = self._put_items(missing)
        self._advance(len(rows))
        stored = self._own_items(wanted)
        for place, item in wanted.items():
            if place not in stored or not _same_item(item, stored[place]):
                had = place in found and not self._overwrite
                said = "the target has it with other content: left alone" if had else "it was not stored as it is"
                said = refused.get(place, said)
                self._differs(_item_subject(*place), said)
        self._advance(len(rows))

    def _read_item(self, row: Any) -> sql.Item | None:
        try:
            item = sql.source_item(*row)
            for _, embedding in item.vectors:
                pack(embedding)
        except (ValueError, EmbeddingError):
            self._differs(_item_subject(*row[0][:2]), "its value, a time or a vector of it cannot be read")
            return None
        if (why := self._own.refusal(item)) is not None:
            self._differs(_item_subject(*item[:2]), why)
            return None
        return item

    def _put_items(self, items: Sequence[sql.Item]) -> dict[tuple[str, str], str]:
        """Store these items; return what was refused, and why: only that, whatever stood in a job with it."""
        try:
            for job in jobs(map(self._own.put_item, items)):
                self._pool.batch(job)
        except (DataError, IntegrityError, NotSupportedError) as error:
            if len(items) == 1:
                return {items[0][:2]: str(error)}
            refused = [self._put_items([item]) for item in items]
            return {place: why for each in refused for place, why in each.items()}
        self._report.added += len(items)
        return {}

    def _own_items(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], sql.Item]:
        places = list(wanted)
        rows = self._pool.fetch(*self._own.items(places, self._has_vectors)) if places else []
        return {item[:2]: item for item in map(self._own.item, rows)}

    def _differs(self, subject: str, said: str) -> None:
        self._report.differences.append(Difference(subject, said))

    def _advance(self, rows: int) -> None:
        self._done = min(self._done + rows, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _checkpoint_statements(
    savers: Dialect, thread_id: str, row: Any, stored: set[tuple[str, str, Any]]
) -> list[Statement]:
    """Return the statements that store a checkpoint, with the values that are not in `stored` yet; adds them there."""
    ns, _, parent_id, kind, content, metadata = row
    serializer = RawSerializer(kind)
    checkpoint = _load_checkpoint(serializer, kind, content)
    values = checkpoint.get("channel_values", {})
    versions = checkpoint.get("channel_versions", {})
    new = {name: version for name, version in versions.items() if name in values and (ns, name, version) not in stored}
    stored.update((ns, name, version) for name, version in new.items())
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ns, "checkpoint_id": parent_id}}
    loaded = cast("CheckpointMetadata", _load_metadata(metadata))
    statements, _ = _codec.encode_put(savers, serializer, config, cast("Checkpoint", checkpoint), loaded, new)
    return statements


def _compare_checkpoint(savers: Dialect, row: Any, found: list[Any]) -> str | None:
    """Return what differs between a checkpoint of the source and what the savers read of it; None if nothing does."""
    _, _, parent_id, kind, content, metadata = row
    serializer = RawSerializer(kind)
    read = _codec.decode_tuple(savers, serializer, found)
    if read is None:
        return "it is missing"
    wanted = _load_checkpoint(serializer, kind, content)
    stored = cast("dict[str, Any]", read.checkpoint)
    values, stored_values = wanted.pop("channel_values", {}), stored.pop("channel_values", {})
    parent = (read.parent_config or {}).get("configurable", {}).get("checkpoint_id")
    wanted.setdefault("channel_versions", {})
    for said, mine, theirs in (
        ("its parent", parent_id, parent),
        ("its metadata", sorted(_load_metadata(metadata).items()), sorted(read.metadata.items())),
        ("a field of it", sorted(wanted.items()), sorted(stored.items())),
        # More is right: a value is found under its version, whether or not the source repeated it there.
        ("a value", sorted(values.items()), sorted((k, v) for k, v in stored_values.items() if k in values)),
    ):
        # Not ==, to which 1 and True are the same, and a NaN is not.
        if repr(mine) != repr(theirs):
            return f"{said} differs"
    return None


def _load_checkpoint(serializer: RawSerializer, kind: str, content: Any) -> dict[str, Any]:
    try:
        checkpoint = serializer.loads_typed((kind, content))
    except (ValueError, TypeError) as error:
        raise DataError("a checkpoint of it cannot be read: its bytes are not what its type says") from error
    if not isinstance(checkpoint, dict):
        raise DataError("a checkpoint of it is not a dict")
    return checkpoint


def _load_metadata(metadata: Any) -> dict[str, Any]:
    loaded = {} if metadata is None else json.loads(metadata)
    if not isinstance(loaded, dict):
        raise DataError("the metadata of a checkpoint of it is not a dict")
    return loaded


def _same_item(mine: sql.Item, theirs: sql.Item) -> bool:
    # An expiry moves with every read; that of the target is the newer one.
    return mine._replace(expires_at=None) == theirs._replace(expires_at=None)


def _item_subject(namespace: str, key: str) -> str:
    return f"item {namespace} {key!r}"


Difference.__module__ = ImportReport.__module__ = import_sqlite.__module__ = "walpool.langgraph"
