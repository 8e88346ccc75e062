"""`Handles`: a pool for threads and one for loops on one database, for a class that LangGraph calls from both.

Both share the database's engine: one writer, one set of readers, no extra descriptor. Knows no tables but by name.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from walpool import schema
from walpool.errors import ClosedError, ConfigError, NotSupportedError
from walpool.registry import async_twin, get_async_pool, get_pool, is_async_pool, is_pool, sync_twin
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.pool import Pool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

_Backend: TypeAlias = Literal["sqlite", "postgres"]
_CLOSED: Final = "the database was closed by close()"


class Tables(NamedTuple):
    """A set of tables that a class needs."""

    name: str
    """For `walpool.schema`."""
    migrations: Mapping[_Backend, Sequence[schema.Migration]]
    needs: tuple[str, str] | None = None
    """A query that says whether a PostgreSQL has what they need, and what to say where it has not."""


class Handles:
    """The two pools, each opened at its first use, and the tables brought up to date then.

    Args:
        target: a path, a URL, or a pool of either kind, which stays its owner's to close; None takes `WALPOOL_URL`.
        tables: what is to be there.
        settings: as a pool takes them; only with a path or a URL.

    Attributes:
        backend: which SQL the database takes.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.
    """

    def __init__(
        self,
        target: Pool | PostgresPool | AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None,
        tables: Sequence[Tables],
        settings: dict[str, Any],
    ) -> None:
        self._tables = tables
        self._settings = settings
        self._pool: Pool | PostgresPool | None = None
        self._async_pool: AsyncPool | AsyncPostgresPool | None = None
        self._owned: list[Pool | PostgresPool | AsyncPool | AsyncPostgresPool] = []
        self._is_migrated = False
        self._is_closed = False
        self._lock = threading.Lock()  # guards which pools there are; held for an instant, since event loops take it
        # Held by the thread that reaches the server, or makes the tables: threads wait for it, and no event loop. A
        # loop that did would keep the readers that its tasks have, and that thread may be waiting for one.
        self._opening = threading.Lock()
        self._target: str | os.PathLike[str] | None = None
        if target is None or isinstance(target, (str, os.PathLike)):
            # Refuses what is wrong now, rather than at the first use. A tenant is the pool's, and no setting.
            loaded = Settings.load(target, **{name: value for name, value in settings.items() if name != "tenant"})
            self._target = target
            self.backend: _Backend = "sqlite" if loaded.url is None or loaded.path is not None else "postgres"
        elif settings:
            raise ConfigError("settings belong to whoever opens the pool: give a path, or a pool without settings")
        else:
            self.backend = target.backend
            if is_pool(target):
                self._pool = target
            else:
                self._async_pool = target

    @property
    def path(self) -> str | None:
        """The real path of the file, or the server's URL; None before it is opened."""
        opened = self._pool or self._async_pool
        return None if opened is None else opened.path

    def pool(self) -> Pool | PostgresPool:
        """Return the synchronous pool, its tables up to date."""
        pool = self._pool
        if pool is None or not self._is_migrated:
            with self._opening:
                pool = self._opened()
                if not self._is_migrated:
                    for tables in self._tables:
                        if tables.needs and self.backend == "postgres" and not pool.fetchval(tables.needs[0]):
                            raise NotSupportedError(f"{tables.needs[1]} [{pool.path}]")
                        schema.migrate(pool, tables.name, tables.migrations[self.backend])
                    self._is_migrated = True
        return pool

    async def async_pool(self) -> AsyncPool | AsyncPostgresPool:
        """Return the asynchronous pool, its tables up to date."""
        if self._async_pool is None:
            with self._lock:  # opens nothing yet, so it is held for an instant
                self._refuse_if_closed()
                if self._async_pool is None:
                    other = self._pool
                    is_server = other is not None and other.backend == "postgres"
                    self._async_pool = self._own(
                        async_twin(other) if other and is_server else get_async_pool(self._where(), **self._settings)
                    )
        if not self._is_migrated:
            # Several tasks may come here at once: all but one find nothing to do.
            pool = self._async_pool
            for tables in self._tables:
                if tables.needs and self.backend == "postgres" and not await pool.fetchval(tables.needs[0]):
                    raise NotSupportedError(f"{tables.needs[1]} [{pool.path}]")
                await schema.migrate_async(pool, tables.name, tables.migrations[self.backend])
            self._is_migrated = True
        return self._async_pool

    def close(self) -> None:
        """Close what was opened here; safe to call twice, from any thread."""
        for pool in self._take():
            if is_pool(pool):
                pool.close()
            else:
                _close_from_here(pool)

    async def close_async(self) -> None:
        """Close what was opened here; safe to call twice."""
        taken = self._take()
        pools = [pool for pool in taken if is_pool(pool)]
        last = [pool for pool in taken if is_async_pool(pool)]
        if pools and not last:
            last.append(async_twin(pools[0]))
            await last[0].open()
        # The asynchronous one last: it waits for what is under way without keeping the loop.
        for pool in pools:
            pool._warns_on_loop = False
            pool.close()
        for async_pool in last:
            await async_pool.close()

    def _opened(self) -> Pool | PostgresPool:
        """Return the synchronous pool, opened if there is none yet; under `_opening`."""
        with self._lock:
            self._refuse_if_closed()
            if self._pool is not None:
                return self._pool
            other = self._async_pool
            if self.backend == "sqlite":  # under the lock: of `:memory:` each opening would make another file
                opened: Pool | PostgresPool = self._own(get_pool(self._where(), **self._settings))
                self._pool = opened
                return opened
        opened = sync_twin(other) if other else get_pool(self._where(), **self._settings)
        with self._lock:
            if not self._is_closed:
                self._pool = self._own(opened)
                return opened
        opened.close()
        raise ClosedError(_CLOSED)

    def _take(self) -> list[Pool | PostgresPool | AsyncPool | AsyncPostgresPool]:
        with self._lock:
            self._is_closed = True
            taken, self._owned = self._owned, []
        return taken

    def _own(self, pool: Any) -> Any:
        self._owned.append(pool)
        return pool

    def _where(self) -> str | os.PathLike[str] | None:
        # The path, once there is one: `:memory:` would be another file each time.
        return self._target if self.path in (None, ":memory:") else self.path

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ClosedError(_CLOSED)


def _close_from_here(pool: AsyncPool | AsyncPostgresPool) -> None:
    """Close an asynchronous pool from synchronous code, which may run on the thread of an event loop."""
    # A thread of its own, since a thread has one running loop at most; it is joined before this returns.
    thread = threading.Thread(target=lambda: asyncio.run(pool.close()), name="walpool-close")
    thread.start()
    thread.join()
