"""Which pool a session stores in, who shares it, and who closes it.

Knows walpool's pools and the sessions' tables; knows nothing of the SDK.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

from walpool import schema
from walpool.openai_agents import _sql
from walpool.registry import get_async_pool

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.postgres import AsyncPostgresPool

_Key: TypeAlias = tuple[object, ...]

# Two hundred sessions that were given one path are two hundred users of one AsyncPool. A pool of each session's own
# would do: all of a file share one engine, so they cost no thread. But each has a mailbox for each event loop, which is
# a descriptor, and closes by itself.
#
# So there must be a place where sessions find each other by path, and it is the one thing here that the whole process
# shares. It is weak: it keeps no pool alive and none open, it only finds the one that some session holds, and it goes
# empty with the last of them. If it were emptied in between, nothing would break: the next session would open a pool of
# its own. The roads not taken: the engine's own table knows no Python object; an event loop takes no attributes from
# us, and one path is used from several loops; to hand one object to all sessions is possible, and is what a session
# that is given an AsyncPool does.
_shared: WeakValueDictionary[_Key, Database] = WeakValueDictionary()

# Guards `_shared` and every `_users`; held for a few instructions. One for each process: a child may inherit its
# parent's locked, by a thread that it does not have.
_mutexes: dict[int, threading.Lock] = {}


def _mutex() -> threading.Lock:
    return _mutexes.setdefault(os.getpid(), threading.Lock())


class Database:
    """A pool with the tables of sessions, and the sessions that use it.

    Args:
        pool: opened at its first use.
        key: under which sessions find it; None where nobody shall, and where nobody here closes it.
    """

    def __init__(self, pool: AsyncPool | AsyncPostgresPool, key: _Key | None) -> None:
        self._pool = pool
        self._key = key
        # By id: whatever a subclass makes of `==`. Weak: a session that was dropped is no user any more.
        self._users: WeakValueDictionary[int, object] = WeakValueDictionary()
        self._is_migrated = False

    async def open(self) -> AsyncPool | AsyncPostgresPool:
        """Return the pool, opened, with its tables up to date.

        Raises:
            NotSupportedError: the tables were written by a newer walpool.
            StorageError, CorruptError, OperationalError, ConfigError: as the pool's `open`.
        """
        if not self._is_migrated:
            # Several tasks may come here at once: the migration itself lets one of them do it.
            await schema.migrate_async(self._pool, _sql.NAME, _sql.MIGRATIONS[self._pool.backend])
            self._is_migrated = True
        return self._pool

    async def leave(self, user: object) -> None:
        """Take a user out, and close the pool after the last one, if it was opened for them. Safe to call twice."""
        if self._key is None:
            return
        with _mutex():
            self._users.pop(id(user), None)
            if self._users:
                return
            # In one step with the look at the users: nobody finds a database that is about to be closed.
            if _shared.get(self._key) is self:
                del _shared[self._key]
        await self._pool.close()


def of_pool(pool: AsyncPool | AsyncPostgresPool) -> Database:
    """Return a database on a pool that somebody else opens and closes."""
    return Database(pool, None)


def of_path(path_or_url: str | os.PathLike[str] | None, settings: Mapping[str, Any], user: object) -> Database:
    """Return the database of a path and settings, the same for all users in this process; nothing is opened yet.

    Raises:
        ConfigError: no database was named, a setting is wrong, or psycopg is missing for a `postgresql://` URL.
    """
    # Made before it is known whether it is needed, since no file may be looked at under the lock; it is not opened.
    pool = get_async_pool(path_or_url, **settings)
    key = _key(pool, user)
    with _mutex():
        database = _shared.get(key)
        if database is None:
            database = _shared[key] = Database(pool, key)
        database._users[id(user)] = user
    return database


def _key(pool: AsyncPool | AsyncPostgresPool, user: object) -> _Key:
    """Return what two sessions must have in common to share a pool."""
    settings = pool.settings
    # A private temporary file is private to its session; of a server's URL the query counts too.
    path = pool.path if pool.backend == "sqlite" else settings.url
    file = (path, id(user)) if path == ":memory:" else path
    # With the settings: where they differ it is the engine that must hear of it, and it refuses.
    given = sorted((name, value) for name, value in settings.values().items() if name in settings.explicit - {"url"})
    return os.getpid(), file, getattr(pool, "_tenant", None), *given
