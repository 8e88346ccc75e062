"""A database of `langgraph-checkpoint-sqlite`, opened to be read and no more, by Python's own sqlite3.

Not by walpool: an engine would bring the file into its own order, and an import leaves its source as it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from walpool.errors import CorruptError, DataError, StorageError
from walpool.langgraph import _import_sql as sql

if TYPE_CHECKING:
    from typing_extensions import Self

_CHECKPOINTS: Final = ("checkpoint_ns", "parent_checkpoint_id", "type", "checkpoint", "metadata")
_STORE: Final = ("prefix", "key", "value", "created_at", "updated_at")


class Source:
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
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise StorageError(f"there is no file to import from [{self.path}]")
        with self._reading():
            self._connection = sqlite3.connect(self._uri(), uri=True, isolation_level=None)
        try:
            with self._reading():
                self._look()
        except BaseException:
            self.close()
            raise

    def _uri(self) -> str:
        # Immutable: nothing is made beside the file, which may lie on a disk that is read-only. With a WAL that holds
        # something that is no longer true: it has to be read, and others may be writing.
        wal = Path(f"{self.path}-wal")
        has_wal = wal.exists() and wal.stat().st_size > 0
        return f"{self.path.as_uri()}?mode=ro{'' if has_wal else '&immutable=1'}"

    def _look(self) -> None:
        found = self._connection.execute(sql.CHECK).fetchall()
        if found != [("ok",)]:
            raise CorruptError(f"the source is damaged: {found[0][0]} [{self.path}]")
        self._connection.execute(sql.BEGIN)
        tables = {name for (name,) in self._connection.execute(sql.TABLES)}
        self._has_checkpoints = "checkpoints" in tables and self._has_columns("checkpoints", _CHECKPOINTS)
        self._has_writes = self._has_checkpoints and "writes" in tables
        self._has_store = "store" in tables and self._has_columns("store", _STORE)
        self._has_vectors = self._has_store and "store_vectors" in tables
        if not (self._has_checkpoints or self._has_store):
            raise DataError(f"the source has no tables of langgraph-checkpoint-sqlite [{self.path}]")
        # Columns that versions of it before added.
        self._task_path = "task_path" if self._has_columns("writes", ["task_path"]) else "''"
        self._expiry = "expires_at, ttl_minutes" if self._has_columns("store", ["ttl_minutes"]) else "NULL, NULL"
        self.checkpoints = self._count("checkpoints") if self._has_checkpoints else 0
        self.writes = self._count("writes") if self._has_writes else 0
        self.items = self._count("store") if self._has_store else 0
        self.vectors = self._count("store_vectors") if self._has_vectors else 0

    def threads(self) -> list[str]:
        """Return the ids of the threads."""
        or_writes = sql.OR_WRITES if self._has_writes else ""
        rows = self._rows(sql.THREADS.format(or_writes=or_writes)) if self._has_checkpoints else ()
        return [str(thread_id) for (thread_id,) in rows]

    def checkpoints_of(self, thread_id: str) -> Iterator[Any]:
        """Yield the checkpoints of a thread, oldest first in each namespace; see `_import_sql.CHECKPOINTS`."""
        return self._rows(sql.CHECKPOINTS, thread_id)

    def writes_of(self, thread_id: str) -> Iterator[Any]:
        """Yield the pending writes of a thread, ordered by their key; see `_import_sql.WRITES`."""
        if not self._has_writes:
            return iter(())
        return self._rows(sql.WRITES.format(task_path=self._task_path), thread_id)

    def items_of_store(self) -> Iterator[tuple[Sequence[Any], Sequence[tuple[str, bytes]]]]:
        """Yield the items of the store, each as a row of `_import_sql.ITEMS` and its vectors."""
        if not self._has_store:
            return
        for row in self._rows(sql.ITEMS.format(expiry=self._expiry)):
            yield row, list(self._rows(sql.VECTORS, *row[:2])) if self._has_vectors else ()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _has_columns(self, table: str, columns: Sequence[str]) -> bool:
        return set(columns) <= {name for (name,) in self._connection.execute(sql.COLUMNS, (table,))}

    def _count(self, table: str) -> int:
        return int(self._connection.execute(sql.COUNT.format(table=table)).fetchone()[0])

    def _rows(self, statement: str, *params: str) -> Iterator[Any]:
        with self._reading():
            yield from self._connection.execute(statement, params)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise what sqlite3 says of the file as walpool's own errors."""
        try:
            yield
        except (CorruptError, DataError, StorageError):
            raise
        except sqlite3.OperationalError as error:
            raise StorageError(f"the source cannot be read: {error} [{self.path}]") from error
        except sqlite3.DatabaseError as error:
            raise CorruptError(f"the source is damaged: {error} [{self.path}]") from error
