"""An SQLite database that somebody else wrote, opened to be read and no more, by Python's own sqlite3.

Not by walpool: an engine would bring the file into its own order, and an import leaves its source as it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from walpool.copying import _source_sql as sql
from walpool.errors import ConfigError, CorruptError, DataError, StorageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SourceFile"]


class SourceFile:
    """One snapshot of a database; a context manager.

    Text that is no UTF-8 comes with lone surrogates in it (`surrogateescape`), which no walpool table takes: it is then
    refused where it would be written, and the rest goes on.

    Args:
        path: the file.

    Raises:
        StorageError: it is not there, or cannot be read.
        CorruptError: it is damaged, or no database.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise StorageError(f"there is no file to import from [{self.path}]")
        # Immutable: nothing is made beside the file, which may lie on a disk that is read-only. With a WAL that holds
        # something that is no longer true: it has to be read, and others may be writing.
        wal = Path(f"{self.path}-wal")
        self._is_immutable = not (wal.exists() and wal.stat().st_size > 0)
        self._before = self._state()
        with self._reading():
            uri = f"{self.path.as_uri()}?mode=ro{'&immutable=1' if self._is_immutable else ''}"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._connection.text_factory = _decode
        try:
            with self._reading():
                self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        found = self._connection.execute(sql.CHECK).fetchall()
        if found != [("ok",)]:
            raise CorruptError(f"the source is damaged: {found[0][0]} [{self.path}]")
        self._connection.execute(sql.BEGIN)
        self.tables = {name for (name,) in self._connection.execute(sql.TABLES)}

    @property
    def was_written(self) -> bool:
        """Whether somebody wrote the file under our eyes, so that what was read may not be one snapshot of it."""
        return self._is_immutable and self._state() != self._before

    def has_columns(self, table: str, columns: Sequence[str]) -> bool:
        """Return whether there is such a table with these columns, and maybe others."""
        with self._reading():
            return set(columns) <= {name for (name,) in self._connection.execute(sql.COLUMNS, (table,))}

    def count(self, table: str) -> int:
        """Return how many rows a table has; its name stands in the code that asks."""
        return int(next(self.rows(sql.COUNT.format(table=table)))[0])

    def rows(self, statement: str, *params: str | int) -> Iterator[Any]:
        """Yield the rows of a query."""
        with self._reading():
            yield from self._connection.execute(statement, params)

    def refuse_target(self, target: str | os.PathLike[str] | None) -> None:
        """Raise a ConfigError if `target` is this very file.

        Two libraries on one file in one process would undo each other's locks: https://www.sqlite.org/howtocorrupt.html
        """
        if isinstance(target, (str, os.PathLike)) and os.path.exists(target) and os.path.samefile(target, self.path):
            raise ConfigError(f"the target of an import is another file than its source [{self.path}]")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _state(self) -> tuple[int, int, int]:
        found = self.path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

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


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
