"""`PostgresPool`: the verbs of `walpool.Pool` on a PostgreSQL database, for threads.

A handle on the engine of a database: pools of one process on one URL share its connections. Knows no records and no
frameworks.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from walpool.errors import BusyError, ClosedError, ConfigError, Error, InterfaceError, NotSupportedError
from walpool.holds import Hold, hold_open, is_on_event_loop, open_here, refuse_reentry
from walpool.postgres import _jobs as jobs
from walpool.postgres._engine import ENGINES, Engine, tenant_settings
from walpool.postgres._reading import query
from walpool.postgres._results import made
from walpool.postgres._steps import finish
from walpool.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from walpool.postgres._results import Result, Rows
    from walpool.postgres._sessions import Session
    from walpool.types import Params, RowFactory

__all__ = ["PostgresPool", "Snapshot", "Stream", "Transaction"]

T = TypeVar("T")

ATTEMPTS = 5
"""Times that `run` calls its function, where the server undid the transaction for the sake of another."""


class PostgresPool:
    """A PostgreSQL database by the verbs of `walpool.Pool`: many readers, group commit, concurrent transactions.

    SQL is PostgreSQL's own, with `?` or `:name` for parameters; `??` is its operator `?`. What differs from SQLite is
    in docs/postgres.md. Pools on the same URL in one process share their connections: `readers` for reads, 4 at most
    for the groups of jobs, and 16 at most (or `readers`, if that is more) for transactions.

    Args:
        url: `postgresql://user@host/name`, whose query may hold walpool's settings and libpq's.
        tenant: whose rows these are, where row-level security is on: every transaction begins by setting
            `walpool.tenant` to it. None sets nothing.
        **settings: see `walpool.Settings`.

    Raises:
        ConfigError: a bad setting or URL, or a setting that differs from the one that the database is open with.
        OperationalError: the server cannot be reached, or refuses.
    """

    __module__ = "walpool.postgres"
    __slots__ = ("__weakref__", "_closed", "_engine", "_local", "_lock", "_settings", "_tenant", "_warns_on_loop")

    def __init__(self, url: str | os.PathLike[str], /, *, tenant: str | None = None, **settings: Any) -> None:
        self._closed = True  # until it is open
        loaded = Settings.load(url, **settings)
        if loaded.path is not None or loaded.url is None:
            msg = "PostgresPool() takes postgresql:// URLs; use walpool.Pool() for SQLite files"
            raise ConfigError(msg)
        self._settings = loaded
        self._tenant = tenant
        self._local = tenant_settings(tenant)
        self._lock = threading.Lock()  # guards the handle: closed once, and opened once in a child process
        self._warns_on_loop = True  # False where a framework's interface leaves no choice
        self._engine = ENGINES.opened(loaded)
        try:
            self._engine.reach()
        except BaseException:
            ENGINES.left(self._engine)
            raise
        self._closed = False

    @property
    def path(self) -> str:
        """The URL, without its password and its query."""
        return self._engine.address.name

    @property
    def backend(self) -> Literal["sqlite", "postgres"]:
        """Which SQL it takes: `postgres`."""
        return "postgres"

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler, such as PgBouncer, stands between; asks the server."""
        return self._here("is_pooled").is_pooled()

    @property
    def tenant(self) -> str | None:
        """Whose rows these are, where row-level security is on; None sets no tenant."""
        return self._tenant

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self._closed

    @property
    def settings(self) -> Settings:
        """The settings that this handle was opened with."""
        return self._settings

    def execute(
        self, sql: str, params: Params = (), /, *, timeout: float | None = None, key: str | None = None
    ) -> Result:
        """Run one statement as a job and return what it did, once it is committed. See `walpool.Pool.execute`.

        Args:
            sql: one statement that writes; RETURNING gives rows.
            params: a sequence for `?` and `?1`, a mapping for `:name`.
            timeout: seconds until the job must have been taken into a group; None uses `write_timeout`.
            key: jobs that are committed together run in the order of their keys: those that write the same rows do not
                deadlock with those of other processes.

        Raises:
            BusyError: another transaction held a row for `busy_timeout`, or the server undid the job for the sake of
                others time and again (retryable).
            OperationalError: the connection broke; see `.outcome`.
        """
        return self._submit("execute", jobs.single(sql, params), key, timeout)[0]

    def executemany(
        self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None, key: str | None = None
    ) -> Result:
        """Run one statement for each row of parameters as one job: all of them or none.

        Returns:
            `rowcount` is the sum.
        """
        return self._submit("executemany", jobs.many(sql, rows), key, timeout)[0]

    def batch(
        self,
        statements: Iterable[tuple[str, Params] | str],
        /,
        *,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Result]:
        """Run several statements as one job: all of them or none; see `walpool.Pool.batch`."""
        return self._submit("batch", jobs.batch(statements), key, timeout)

    def script(self, sql: str, /, *, timeout: float | None = None) -> None:
        """Run several statements without parameters, as in a schema or a migration, as one job: all of them or none."""
        self._submit("script", jobs.script(sql), None, timeout)

    def fetch(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return every row of a query, read from one snapshot. See `walpool.Pool.fetch`."""
        found = self._here("fetch").read(query(sql, params), timeout, self._local)
        return made(found.rows, found.columns, row)

    def fetchone(
        self,
        sql: str,
        params: Params = (),
        /,
        *,
        row: RowFactory | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of a query, or None. The server sends the rest too: give the query a LIMIT."""
        found = self._here("fetchone").read(query(sql, params), timeout, self._local)
        return next(iter(made(found.rows[:1], found.columns, row)), None)

    def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `fetchone`."""
        found = self._here("fetchval").read(query(sql, params), timeout, self._local)
        return found.rows[0][0] if found.rows else None

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
        """Iterate over the rows of a query, `chunk` at a time in memory, from one snapshot. See `walpool.Pool.stream`.

        The server keeps a cursor open meanwhile, for `transaction_timeout` at most.
        """
        engine = self._here("stream")
        if not 1 <= operator.index(chunk) <= sys.maxsize:
            msg = f"chunk must be 1 or more, and {sys.maxsize} at most"
            raise ValueError(msg)
        session = engine.snapshot(timeout, self._local, query(sql, params))
        try:
            with self._open_as(engine, "stream()", None):
                yield Stream(session, chunk, row)
        finally:
            finish(session.ending())

    @contextmanager
    def read(self, *, timeout: float | None = None) -> Iterator[Snapshot]:
        """Hold one snapshot for several reads. See `walpool.Pool.read`."""
        engine = self._here("read")
        session = engine.snapshot(timeout, self._local)
        try:
            with self._open_as(engine, "read()", "the snapshot"):
                yield Snapshot(session)
        finally:
            finish(session.ending())

    @contextmanager
    def transaction(self, *, timeout: float | None = None) -> Iterator[Transaction]:
        """Hold a transaction; commit at the end of the block, roll back on an exception.

        It is one snapshot (REPEATABLE READ), that of its first statement, with which BEGIN is sent. Others go on
        meanwhile: a row that somebody else has changed since cannot be changed here any more, which is a `BusyError`:
        retryable, from the beginning of the block. Where a decision rests on rows that are only read, read them with
        FOR UPDATE or FOR SHARE. After `transaction_timeout` it is rolled back.

        Args:
            timeout: seconds to wait for a connection; None uses `write_timeout`.
        """
        engine = self._here("transaction")
        session = engine.transaction(timeout, self._local)
        try:
            with self._open_as(engine, "transaction()", "the tx"):
                yield Transaction(session)
                finish(session.committing())
        except BaseException as error:
            try:
                finish(session.ending())  # does nothing to what is over
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise

    def run(self, fn: Callable[[Transaction], T], /, *, timeout: float | None = None) -> T:
        """Return `fn(tx)`, run in a `transaction()` on the caller's own thread.

        Where the server undid the transaction for the sake of another, `fn` is called again, 5 times at most.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.transaction(timeout=timeout) as tx:
                    return fn(tx)
            except BusyError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def stats(self) -> dict[str, int | float]:
        """Return the engine's figures; the names say the subject first and carry their unit. See docs/postgres.md."""
        return self._engine.stats(pop=False)

    def pop_stats(self) -> dict[str, int | float]:
        """Return the figures since the last pop, and start counters and percentiles anew."""
        return self._engine.stats(pop=True)

    def checkpoint(self, mode: str = "passive") -> tuple[bool, int, int]:
        """Raise `NotSupportedError`: the server makes its checkpoints itself."""
        raise NotSupportedError(
            f"checkpoint({mode!r}) is SQLite's: the server makes its checkpoints itself [{self.path}]"
        )

    def backup(self, dest: str | os.PathLike[str]) -> None:
        """Raise `NotSupportedError`: use pg_dump, pg_basebackup, or the provider's backups."""
        del dest
        raise NotSupportedError(f"backup() is SQLite's: use pg_dump or pg_basebackup [{self.path}]")

    def check(self) -> list[str]:
        """Raise `NotSupportedError`: use pg_amcheck, and `data_checksums`."""
        raise NotSupportedError(f"check() is SQLite's: use pg_amcheck on the server [{self.path}]")

    def vacuum(self) -> None:
        """Raise `NotSupportedError`: autovacuum does it; VACUUM (FULL) is a matter for who runs the server."""
        raise NotSupportedError(f"vacuum() is SQLite's: autovacuum does it on the server [{self.path}]")

    def close(self) -> None:
        """Give this handle back; the last one answers all that was accepted and closes the connections.

        Safe to call twice.
        """
        if self._closed:
            return
        refuse_reentry("close", self._engine, self.path)
        with self._lock:
            was_closed, self._closed = self._closed, True
        if not was_closed:
            ENGINES.left(self._engine)

    def __enter__(self) -> PostgresPool:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<walpool.postgres.PostgresPool {self.path!r} {'closed' if self._closed else 'open'}>"

    def __reduce__(self) -> tuple[Callable[..., PostgresPool], tuple[object, ...]]:
        return _reopen, (self._settings.__getstate__()["url"], self._tenant, self._settings.keywords())

    def __copy__(self) -> PostgresPool:
        return _reopen(str(self._settings.url), self._tenant, self._settings.keywords())

    def _here(self, verb: str) -> Engine:
        """Return the engine, in a child process an heir of it; refuse what would wait for itself."""
        if self._closed:
            msg = f"the pool is closed [{self.path}]"
            raise ClosedError(msg)
        if self._engine.process != os.getpid():
            self._inherit()
        if open_here.get():
            refuse_reentry(verb, self._engine, self.path)
        if self._warns_on_loop and is_on_event_loop():
            self._warns_on_loop = False
            msg = f"Pool.{verb}() on the thread of a running event loop keeps its tasks waiting; use get_async_pool()"
            frames = 3 if verb.startswith("fetch") else 4
            warnings.warn(f"{msg} [{self.path}]", RuntimeWarning, stacklevel=frames)
        return self._engine

    def _inherit(self) -> None:
        with self._lock:
            if not self._closed and self._engine.process != os.getpid():
                self._engine = ENGINES.opened(self._settings)

    def _submit(self, verb: str, job: jobs.Job, key: str | None, timeout: float | None) -> list[Result]:
        engine = self._here(verb)
        if not job.statements:
            return []
        return engine.submit(jobs.labelled(job, key, self._local), timeout)

    def _open_as(self, engine: Engine, held: str, use: str | None) -> AbstractContextManager[None]:
        return hold_open(Hold(engine, self.path, held, use))


def _reopen(url: str, tenant: str | None, settings: Mapping[str, Any]) -> PostgresPool:
    return PostgresPool(url, tenant=tenant, **settings)


class _Held:
    """What is read and written by a session, by the thread that began it."""

    __slots__ = ("_session", "_thread")
    __module__ = "walpool.postgres"

    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = threading.get_ident()

    def fetch(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> list[Any]:
        """Return every row of a query. See `PostgresPool.fetch`."""
        found = self._read(sql, params, timeout)
        return made(found.rows, found.columns, row)

    def fetchone(
        self, sql: str, params: Params = (), /, *, row: RowFactory | None = None, timeout: float | None = None
    ) -> Any:
        """Return the first row of a query, or None. See `PostgresPool.fetchone`."""
        found = self._read(sql, params, timeout)
        return next(iter(made(found.rows[:1], found.columns, row)), None)

    def fetchval(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row, or None. See `PostgresPool.fetchone`."""
        found = self._read(sql, params, timeout)
        return found.rows[0][0] if found.rows else None

    def _read(self, sql: str, params: Params, timeout: float | None) -> Rows:
        return finish(self._mine().reading(query(sql, params), timeout))

    def _mine(self) -> Session:
        if self._thread != threading.get_ident():
            msg = "a transaction or snapshot belongs to the thread that began it"
            raise InterfaceError(msg)
        return self._session


class Snapshot(_Held):
    """Several reads of one snapshot, from `PostgresPool.read`: what others commit meanwhile is not seen."""

    __slots__ = ()
    __module__ = "walpool.postgres"


class Transaction(_Held):
    """An open transaction, from `PostgresPool.transaction`: its reads see its own writes."""

    __slots__ = ()
    __module__ = "walpool.postgres"

    def execute(self, sql: str, params: Params = (), /, *, timeout: float | None = None) -> Result:
        """Run one statement; a failed one is undone and leaves the transaction open. See `PostgresPool.execute`."""
        return self._write(jobs.single(sql, params), timeout)

    def executemany(self, sql: str, rows: Iterable[Params], /, *, timeout: float | None = None) -> Result:
        """Run one statement for each row of parameters: all of them or none."""
        return self._write(jobs.many(sql, rows), timeout)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Begin a savepoint; keep it at the end of the block, undo it on an exception."""
        mark = finish(self._mine().marking())
        try:
            yield self
        except BaseException as error:
            try:
                finish(self._mine().undoing(mark))
            except Error as failure:
                error.__context__ = failure  # the block's own exception is the one to tell
            raise
        finish(self._mine().keeping(mark))

    def _write(self, job: jobs.Job, timeout: float | None) -> Result:
        return finish(self._mine().writing(job, timeout))[0]


class Stream:
    """The rows of one query, read piece by piece; from `PostgresPool.stream`. An iterator that may be used once."""

    __slots__ = ("_chunk", "_row", "_rows", "_session")
    __module__ = "walpool.postgres"

    def __init__(self, session: Session, chunk: int, row: RowFactory | None) -> None:
        self._session = session
        self._chunk = chunk
        self._row = row
        self._rows = self._read()

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def __next__(self) -> Any:
        return next(self._rows)

    def _read(self) -> Iterator[Any]:
        while True:
            found = finish(self._session.fetching(self._chunk))
            yield from made(found.rows, found.columns, self._row)
            if len(found.rows) < self._chunk:
                return
