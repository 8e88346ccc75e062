"""`Pool`: one file, many readers, one writer, for threads.

A handle on the engine of a file: pools of one process on one file share it. Knows no records and no frameworks.
"""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from walpool import _core
from walpool.errors import ConfigError, Error
from walpool.holds import Hold, hold_open, is_on_event_loop, open_here, refuse_reentry
from walpool.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from walpool._core import Result
    from walpool.types import Params, RowFactory

__all__ = ["Pool", "Snapshot", "Stream", "Transaction"]

T = TypeVar("T")


def _public(cls: type[T]) -> type[T]:
    """Give a class the home from which people import it."""
    cls.__module__ = "walpool"
    return cls


@_public
class Pool:
    """A pooled SQLite file in WAL mode: reads run side by side, writes share one writer and one fsync.

    Pools on the same file in one process share one engine, whatever name leads to it (a symbolic link, a relative
    path). The pool may be used by any number of threads. It is closed by `close()` or at the end of a `with` block; a
    copy or a pickle of a pool is a new handle that opens the same path with the same settings.

    Args:
        path: the file, made if it is not there; `:memory:` is a private temporary file. A `walpool://` or `sqlite://`
            URL may carry settings in its query.
        **settings: see `walpool.Settings`; a setting that is not given comes from the URL, then the environment.

    Raises:
        ConfigError: a bad setting, a `postgresql://` URL (use `get_pool`), or one that differs from the open engine's.
        StorageError: the file or its folder cannot be used, or may only be read.
        CorruptError: the file is no database.
        NotSupportedError: WAL cannot be switched on there, or would lose data: a network file system.
        BusyError: another process kept the file locked for `busy_timeout`.
    """

    __slots__ = ("__weakref__", "_engine", "_path", "_settings", "_target", "_warns_on_loop")

    def __init__(self, path: str | os.PathLike[str], /, **settings: Any) -> None:
        loaded = Settings.load(path, **settings)
        if loaded.path is None:
            msg = "Pool() opens SQLite files; use walpool.get_pool() for other URLs"
            raise ConfigError(msg)
        # A copy opens again from here: by the real path, since the working folder may have changed by then.
        explicit = {name: value for name, value in loaded.values().items() if name in loaded.explicit}
        self._settings = loaded
        self._warns_on_loop = True  # False where a framework's interface leaves no choice
        self._engine = _core.Engine.open(loaded.path, loaded.values(), sorted(explicit))
        self._path = str(self._engine.path)
        self._target = (loaded.path if loaded.path == ":memory:" else self._path, explicit)

    @property
    def path(self) -> str:
        """The real path of the file."""
        return self._path

    @property
    def backend(self) -> Literal["sqlite", "postgres"]:
        """Which SQL it takes: `sqlite`."""
        return "sqlite"

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._engine.closed

    @property
    def settings(self) -> Settings:
        """The settings that this handle was opened with."""
        return self._settings

    def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement as a job and return what it did, once it is committed.

        Args:
            sql: one statement that writes; RETURNING gives rows.
            params: a sequence for `?` and `?1`, a mapping for `:name`.
            timeout: seconds until the job must have been taken by the writer; None uses `write_timeout`.

        Returns:
            `rowcount`, `lastrowid` (None where nothing was inserted), `rows` and `columns`.

        Raises:
            IntegrityError: a constraint; the job is undone, and nothing else.
            ProgrammingError: bad SQL, or parameters that do not fit.
            DataError: a value that SQLite cannot hold as it is.
            WriteTimeout, BusyError, QueueFull: the job's turn did not come; nothing was written (retryable).
            ReadOnlyError: the file was retired by `walpool migrate`, and `write_retired` is off.
            StorageError: the disk refused; see `.outcome`.
        """
        if open_here.get() or is_on_event_loop():
            self._look_around("execute")
        return self._engine.execute(sql, params, timeout)

    def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters as one job: all of them or none.

        Returns:
            `rowcount` is the sum, `lastrowid` that of the last row.

        Raises:
            As `execute`; the message names the row.
        """
        if open_here.get() or is_on_event_loop():
            self._look_around("executemany")
        return self._engine.executemany(sql, rows, timeout)

    def batch(self, statements: Iterable[tuple[str, Params] | str], /, *, timeout: float | None = None) -> list[Result]:
        """Run several statements as one job: all of them or none.

        Args:
            statements: pairs of SQL and parameters, or SQL alone.
            timeout: as for `execute`.

        Returns:
            One result a statement.

        Raises:
            As `execute`; the message names the statement.
        """
        if open_here.get() or is_on_event_loop():
            self._look_around("batch")
        return self._engine.batch(statements, timeout)

    def script(self, sql: str, /, *, timeout: float | None = None) -> None:
        """Run several statements without parameters, as in a schema or a migration, as one job: all of them or none."""
        if open_here.get() or is_on_event_loop():
            self._look_around("script")
        self._engine.script(sql, timeout)

    def fetch(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return every row of a query, read from one snapshot.

        Every write that was acknowledged before the call is seen.

        Args:
            sql: one statement that only reads.
            params: a sequence for `?` and `?1`, a mapping for `:name`.
            row: `tuple` (the default), `dict`, or a callable of (column names, values).
            timeout: seconds for the whole call; None waits `checkout_timeout` for a reader and lets the statement run.

        Raises:
            CheckoutTimeout: no reader came free in time (retryable).
            StatementTimeout: it ran past `timeout`, and was interrupted.
            ProgrammingError: bad SQL, parameters that do not fit, or a statement that writes.
        """
        if open_here.get() or is_on_event_loop():
            self._look_around("fetch")
        return self._engine.fetch(sql, params, row, timeout)

    def fetchone(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of a query, or None. The rest is not read. See `fetch`."""
        if open_here.get() or is_on_event_loop():
            self._look_around("fetchone")
        return self._engine.fetchone(sql, params, row, timeout)

    def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `fetch`."""
        if open_here.get() or is_on_event_loop():
            self._look_around("fetchval")
        return self._engine.fetchval(sql, params, timeout)

    @contextmanager
    def stream(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        chunk: int = 500,
        timeout: float | None = None,
    ) -> Iterator[Stream]:
        """Iterate over the rows of a query, `chunk` at a time in memory, from one snapshot.

        A stream keeps a reader and pins the WAL: it is taken back after `transaction_timeout`. The pool may be used
        meanwhile.

        Args:
            sql: one statement that only reads.
            params: a sequence for `?` and `?1`, a mapping for `:name`.
            row: as for `fetch`.
            chunk: rows to read ahead, 1 or more.
            timeout: seconds to wait for a reader; None uses `checkout_timeout`.

        Raises:
            TransactionTimeout: the stream was held for too long.
        """
        if open_here.get() or is_on_event_loop():
            self._look_around("stream")
        if not 1 <= operator.index(chunk) <= sys.maxsize:
            msg = f"chunk must be 1 or more, and {sys.maxsize} at most"
            raise ValueError(msg)
        stream = self._engine.stream(sql, params, row, timeout)
        try:
            with self._open_as("stream()", None):
                yield Stream(stream, chunk)
        finally:
            stream.close()

    @contextmanager
    def read(self, *, timeout: float | None = None) -> Iterator[Snapshot]:
        """Hold one snapshot for several reads.

        Inside the block the pool's own verbs raise `ReentrantError`: use the snapshot. It is taken back after
        `transaction_timeout`, since it keeps the WAL from shrinking.

        Args:
            timeout: seconds to wait for a reader; None uses `checkout_timeout`.
        """
        self._look_around("read")
        snapshot = self._engine.snapshot(timeout)
        try:
            with self._open_as("read()", "the snapshot"):
                yield Snapshot(snapshot)
        finally:
            snapshot.close()

    @contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[Transaction]:
        """Hold the writer for an interactive transaction; commit at the end of the block, roll back on an exception.

        It begins (BEGIN IMMEDIATE) when its turn in the queue comes, and keeps everybody else's writes waiting until it
        ends: do slow work before it. After `transaction_timeout` it is rolled back and the writer goes to the next.

        Args:
            timeout: seconds to wait for the turn; None uses `write_timeout`.

        Raises:
            WriteTimeout, BusyError: the turn did not come (retryable).
            ReadOnlyError: as for `execute`.
            TransactionTimeout: it was held for too long; nothing was written.
            IntegrityError: a deferred foreign key, at COMMIT.
        """
        self._look_around("transaction")
        lease = self._engine.lease(timeout)
        # `try` follows at once, and holds the commit too: Ctrl-C, or an exception that another thread sets, may come
        # between any two calls, and its traceback would keep the lease that nobody ends.
        try:
            with self._open_as("transaction()", "the tx"):
                yield Transaction(lease)
                lease.commit()
        except BaseException as error:
            try:
                lease.rollback()  # does nothing to what has ended
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise

    def run(self, fn: Callable[[Transaction], T], /, *, timeout: float | None = None) -> T:
        """Return `fn(tx)`, run in a `transaction()` on the caller's own thread."""
        self._look_around("run")
        with self.transaction(timeout=timeout) as tx:
            return fn(tx)

    def stats(self) -> dict[str, int | float]:
        """Return the engine's figures; the names say the subject first and carry their unit. See docs/operations.md."""
        return self._engine.stats(False)

    def pop_stats(self) -> dict[str, int | float]:
        """Return the figures since the last pop, and start counters, peaks and percentiles anew."""
        return self._engine.stats(True)

    def checkpoint(self, mode: str = "passive") -> tuple[bool, int, int]:
        """Move the WAL into the file, waiting for nobody. walpool does this by itself; call it to do it now.

        Args:
            mode: `passive`, `full`, `restart` or `truncate`, as SQLite has them.

        Returns:
            Whether somebody was in the way, frames in the WAL, and how many of them are in the file now.
        """
        self._look_around("checkpoint")
        return self._engine.checkpoint(mode)

    def backup(self, dest: str | os.PathLike[str]) -> None:
        """Copy the database, as one snapshot sees it, into a new file; writers go on meanwhile.

        The copy survives a loss of power once the call has returned.

        Raises:
            StorageError: the file exists, or cannot be written.
        """
        self._look_around("backup")
        self._engine.backup(os.fspath(dest))

    def check(self) -> list[str]:
        """Return what SQLite's integrity check finds; an empty list is good news. It reads the whole file.

        Raises:
            CorruptError: the file is too damaged to be checked.
        """
        self._look_around("check")
        return self._engine.check()

    def vacuum(self) -> None:
        """Rewrite the file without its holes; writers wait meanwhile."""
        self._look_around("vacuum")
        self._engine.vacuum()

    def close(self) -> None:
        """Give this handle back; the last one answers all that was accepted and closes the file. Safe to call twice.

        It waits for reads and transactions that other threads have open, `transaction_timeout` at most for each, and
        does not hear Ctrl-C meanwhile: half a close would be worse.
        """
        self._look_around("close")
        self._engine.close()

    def __enter__(self) -> Pool:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # None where __init__ raised
        if engine is not None and not engine.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<walpool.Pool {self.path!r} {state}>"

    def __reduce__(self) -> tuple[Callable[..., Pool], tuple[str, Mapping[str, object]]]:
        return _reopen, self._target

    def _look_around(self, verb: str) -> None:
        """Refuse what would wait for itself, and warn, once, of what keeps an event loop waiting."""
        if open_here.get():
            refuse_reentry(verb, self._engine, self._path)
        if self._warns_on_loop and is_on_event_loop():
            self._warns_on_loop = False
            msg = f"Pool.{verb}() on the thread of a running event loop keeps its tasks waiting; use AsyncPool"
            # A block's own frames are two more: it is entered through contextlib.
            frames = 5 if verb in {"read", "stream", "transaction"} else 3
            warnings.warn(f"{msg} [{self._path}]", RuntimeWarning, stacklevel=frames)

    def _open_as(self, held: str, use: str | None) -> AbstractContextManager[None]:
        return hold_open(Hold(self._engine, self._path, held, use))


def _reopen(path: str, settings: Mapping[str, object]) -> Pool:
    return Pool(path, **settings)


@_public
class Snapshot:
    """Several reads of one snapshot, from `Pool.read`: what others commit meanwhile is not seen."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: _core.Snapshot) -> None:
        self._snapshot = snapshot

    def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `Pool.fetch`."""
        return self._snapshot.fetch(sql, params, row, timeout)

    def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `Pool.fetch`."""
        return self._snapshot.fetchone(sql, params, row, timeout)

    def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `Pool.fetch`."""
        return self._snapshot.fetchval(sql, params, timeout)


@_public
class Stream:
    """The rows of one query, read piece by piece; from `Pool.stream`. An iterator that may be used once."""

    __slots__ = ("_chunk", "_rows", "_stream")

    def __init__(self, stream: _core.Stream, chunk: int) -> None:
        self._stream = stream
        self._chunk = chunk
        self._rows = self._read()

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def __next__(self) -> Any:
        return next(self._rows)

    def _read(self) -> Iterator[Any]:
        while True:
            rows = self._stream.next_rows(self._chunk)
            yield from rows
            if len(rows) < self._chunk:
                return


@_public
class Transaction:
    """An open transaction, from `Pool.transaction`: its reads see its own writes. For the thread that began it."""

    __slots__ = ("_lease",)

    def __init__(self, lease: _core.Transaction) -> None:
        self._lease = lease

    def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement; a failed one is undone and leaves the transaction open. See `Pool.execute`.

        What `OR FAIL` or `RAISE(FAIL)` stops keeps the rows that it had written, as SQLite has it: begin a savepoint
        (`transaction()`) around it, or use `batch()`, where all of it is undone.

        Two things end the transaction as a whole: SQL that rolls it back (`OR ROLLBACK`), and a write that runs past
        its `timeout`, since SQLite undoes an interrupted write with all that came before it.
        """
        return self._lease.execute(sql, params, timeout)

    def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters: all of them or none."""
        return self._lease.executemany(sql, rows, timeout)

    def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `Pool.fetch`."""
        return self._lease.fetch(sql, params, row, timeout)

    def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `Pool.fetch`."""
        return self._lease.fetchone(sql, params, row, timeout)

    def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `Pool.fetch`."""
        return self._lease.fetchval(sql, params, timeout)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin a savepoint; keep it at the end of the block, undo it on an exception."""
        self._lease.mark()
        try:
            yield self
        except BaseException as error:
            try:
                self._lease.undo_to_mark()
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise
        self._lease.keep_mark()
