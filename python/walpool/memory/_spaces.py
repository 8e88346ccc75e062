"""Which collections a database has, looked up without making anything: no file, no table, no collection."""

from __future__ import annotations

import os
from typing import Any, Final

from walpool import schema
from walpool.errors import NotSupportedError, StorageError
from walpool.memory import _postgres_schema, _sqlite_schema
from walpool.memory.records import Collection
from walpool.registry import get_pool
from walpool.settings import Settings

__all__ = ["collections"]

_COLLECTIONS: Final = {
    "sqlite": """SELECT tenant, collection, words, dims,
        (SELECT coalesce(sum(records), 0) FROM memory_scopes WHERE memory_scopes.space = memory_spaces.space)
        FROM memory_spaces ORDER BY tenant, collection""",
    "postgres": """SELECT tenant, collection, words, dims, (SELECT count(*) FROM memory_records AS r
        WHERE r.tenant = memory_spaces.tenant AND r.collection = memory_spaces.collection)
        FROM memory_spaces ORDER BY tenant, collection""",
}
_MIGRATIONS: Final = {"sqlite": _sqlite_schema.MIGRATIONS, "postgres": _postgres_schema.MIGRATIONS}


def collections(
    url: str | os.PathLike[str] | None = None, /, *, upgrade: bool = False, tenant: str | None = None, **settings: Any
) -> list[Collection]:
    """Return the collections of a database, in order of their tenants and names; none where it has no memory tables.

    Creates nothing, neither a file nor a table: what `open` makes at need is not made for a look.

    Args:
        url: a path or an URL that `walpool.get_pool` takes; None takes `WALPOOL_URL`.
        upgrade: bring the tables of an older walpool up to date first, as `open` does.
        tenant: whose, where row-level security is on and shows no others.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: no database was named, or a setting is wrong.
        NotSupportedError: the memory tables come from a newer walpool; or from an older one, without `upgrade`.
        StorageError: there is no such file, or it cannot be opened.
    """
    path = Settings.load(url, **settings).path  # None for a server
    if path is not None and not os.path.exists(path):
        raise StorageError(f"there is no file {path}")
    with get_pool(url, tenant=tenant if path is None else None, **settings) as pool:
        found, newest = schema.version(pool, "memory"), len(_MIGRATIONS[pool.backend])
        if found == 0:
            return []
        if found < newest and not upgrade:
            raise NotSupportedError(
                f"the memory tables of {pool.path} have version {found} and not {newest}: a store that is opened "
                f"brings them up to date, and so does upgrade (--upgrade)"
            )
        schema.migrate(pool, "memory", _MIGRATIONS[pool.backend])  # with nothing to do, it only refuses what is newer
        return [Collection(*row) for row in pool.fetch(_COLLECTIONS[pool.backend])]


collections.__module__ = "walpool.memory"
