"""`Handles`: a `Pool` and an `AsyncPool` on one file, for a class that LangGraph calls from threads and from loops.

Both share the file's engine: one writer, one set of readers, no extra descriptor. Knows no tables but by name.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from typing import Any

from walpool import schema
from walpool.aio import AsyncPool
from walpool.errors import ClosedError, ConfigError
from walpool.pool import Pool
from walpool.registry import get_async_pool, get_pool
from walpool.settings import Settings


class Handles:
    """The two pools, each opened at its first use, and the tables brought up to date then.

    Args:
        target: a path, a URL, or a pool of either kind, which stays its owner's to close; None takes `WALPOOL_URL`.
        name: the name of the tables, for `walpool.schema`.
        migrations: their migrations.
        settings: as a pool takes them; only with a path or a URL.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.
    """

    def __init__(
        self,
        target: Pool | AsyncPool | str | os.PathLike[str] | None,
        name: str,
        migrations: Sequence[schema.Migration],
        settings: dict[str, Any],
    ) -> None:
        self._name = name
        self._migrations = migrations
        self._settings = settings
        self._pool: Pool | None = None
        self._async_pool: AsyncPool | None = None
        self._owned: list[Pool | AsyncPool] = []
        self._is_migrated = False
        self._is_closed = False
        self._lock = threading.Lock()  # guards the opening of either pool
        self._target: str | os.PathLike[str] | None = None
        if target is None or isinstance(target, (str, os.PathLike)):
            Settings.load(target, **settings)  # refuses what is wrong now, rather than at the first use
            self._target = target
        elif settings:
            raise ConfigError("settings belong to whoever opens the pool: give a path, or a pool without settings")
        elif isinstance(target, Pool):
            self._pool = target
        else:
            self._async_pool = target

    @property
    def path(self) -> str | None:
        """The real path of the file; None before it is opened."""
        opened = self._pool or self._async_pool
        return None if opened is None else opened.path

    def pool(self) -> Pool:
        """Return the synchronous pool, its tables up to date."""
        if self._pool is None or not self._is_migrated:
            with self._lock:
                self._refuse_if_closed()
                if self._pool is None:
                    self._pool = self._own(get_pool(self._where(), **self._settings))
                if not self._is_migrated:
                    schema.migrate(self._pool, self._name, self._migrations)
                    self._is_migrated = True
        return self._pool

    async def async_pool(self) -> AsyncPool:
        """Return the asynchronous pool, its tables up to date."""
        if self._async_pool is None:
            with self._lock:  # opens nothing yet, so it is held for an instant
                self._refuse_if_closed()
                if self._async_pool is None:
                    self._async_pool = self._own(get_async_pool(self._where(), **self._settings))
        if not self._is_migrated:
            # Several tasks may come here at once: all but one find nothing to do.
            await schema.migrate_async(self._async_pool, self._name, self._migrations)
            self._is_migrated = True
        return self._async_pool

    def close(self) -> None:
        """Close what was opened here; safe to call twice, from any thread."""
        for pool in self._take():
            if isinstance(pool, Pool):
                pool.close()
            else:
                _close_from_here(pool)

    async def close_async(self) -> None:
        """Close what was opened here; safe to call twice."""
        taken = self._take()
        pools = [pool for pool in taken if isinstance(pool, Pool)]
        last = [pool for pool in taken if not isinstance(pool, Pool)]
        if pools and not last:
            last.append(AsyncPool(pools[0].path))
            await last[0].open()
        # The asynchronous one last: it waits for what is under way without keeping the loop.
        for pool in pools:
            pool._warns_on_loop = False
            pool.close()
        for async_pool in last:
            await async_pool.close()

    def _take(self) -> list[Pool | AsyncPool]:
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
            raise ClosedError("the database was closed by close()")


def _close_from_here(pool: AsyncPool) -> None:
    """Close an asynchronous pool from synchronous code, which may run on the thread of an event loop."""
    # A thread of its own, since a thread has one running loop at most; it is joined before this returns.
    thread = threading.Thread(target=lambda: asyncio.run(pool.close()), name="walpool-close")
    thread.start()
    thread.join()
