"""A database of `langgraph-checkpoint-sqlite`, as one snapshot of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from walpool.copying import SourceFile
from walpool.errors import DataError
from walpool.langgraph import _import_sql as sql

_CHECKPOINTS: Final = ("checkpoint_ns", "parent_checkpoint_id", "type", "checkpoint", "metadata")
_STORE: Final = ("prefix", "key", "value", "created_at", "updated_at")


class Source(SourceFile):
    """One snapshot of the database.

    Args:
        path: the file.

    Attributes:
        checkpoints, writes, items, vectors: how many rows there are of each; 0 where the table is not there.

    Raises:
        StorageError: it is not there, or cannot be read.
        CorruptError: it is damaged, or no database.
        DataError: it holds no table of `langgraph-checkpoint-sqlite`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            self._look_at_tables()
        except BaseException:
            self.close()
            raise

    def _look_at_tables(self) -> None:
        tables = self.tables
        self._has_checkpoints = "checkpoints" in tables and self.has_columns("checkpoints", _CHECKPOINTS)
        self._has_writes = self._has_checkpoints and "writes" in tables
        self._has_store = "store" in tables and self.has_columns("store", _STORE)
        self._has_vectors = self._has_store and "store_vectors" in tables
        if not (self._has_checkpoints or self._has_store):
            raise DataError(f"the source has no tables of langgraph-checkpoint-sqlite [{self.path}]")
        # Columns that versions of it before added.
        self._task_path = "task_path" if self.has_columns("writes", ["task_path"]) else "''"
        self._expiry = "expires_at, ttl_minutes" if self.has_columns("store", ["ttl_minutes"]) else "NULL, NULL"
        self.checkpoints = self.count("checkpoints") if self._has_checkpoints else 0
        self.writes = self.count("writes") if self._has_writes else 0
        self.items = self.count("store") if self._has_store else 0
        self.vectors = self.count("store_vectors") if self._has_vectors else 0

    def threads(self) -> list[str]:
        """Return the ids of the threads."""
        or_writes = sql.OR_WRITES if self._has_writes else ""
        rows = self.rows(sql.THREADS.format(or_writes=or_writes)) if self._has_checkpoints else ()
        return [str(thread_id) for (thread_id,) in rows]

    def checkpoints_of(self, thread_id: str) -> Iterator[Any]:
        """Yield the checkpoints of a thread, oldest first in each namespace; see `_import_sql.CHECKPOINTS`."""
        return self.rows(sql.CHECKPOINTS, thread_id)

    def writes_of(self, thread_id: str) -> Iterator[Any]:
        """Yield the pending writes of a thread, ordered by their key; see `_import_sql.WRITES`."""
        if not self._has_writes:
            return iter(())
        return self.rows(sql.WRITES.format(task_path=self._task_path), thread_id)

    def items_of_store(self) -> Iterator[tuple[Sequence[Any], Sequence[tuple[str, bytes]]]]:
        """Yield the items of the store, each as a row of `_import_sql.ITEMS` and its vectors."""
        if not self._has_store:
            return
        for row in self.rows(sql.ITEMS.format(expiry=self._expiry)):
            yield row, list(self.rows(sql.VECTORS, *row[:2])) if self._has_vectors else ()
