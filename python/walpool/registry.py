"""`get_pool` and `get_async_pool`: which class serves which URL; and of which kind a pool is that was given."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from walpool.errors import ConfigError
from walpool.pool import Pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from walpool.aio import AsyncPool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = ["get_async_pool", "get_pool"]


def get_pool(
    path_or_url: str | os.PathLike[str] | None = None, /, *, tenant: str | None = None, **settings: Any
) -> Pool | PostgresPool:
    """Return a pool on a path or URL; None takes it from `WALPOOL_URL`.

    Each call returns a handle of its own, to be closed by whoever asked for it; those of one file, or of one URL, share
    one engine. For `postgresql://` it is a `walpool.postgres.PostgresPool`.

    Args:
        path_or_url: what to open.
        tenant: for row-level security; see `walpool.postgres.PostgresPool`.
        **settings: see `walpool.Settings`.

    Raises:
        ConfigError: neither a path nor `WALPOOL_URL` was given, a setting is wrong, or psycopg is not installed.
    """
    target, is_file = _target(path_or_url, tenant, settings)
    if is_file:
        return Pool(target, **settings)
    _require_psycopg()
    from walpool.postgres import PostgresPool  # here: an extra, and only for those who have a server

    return PostgresPool(target, tenant=tenant, **settings)


def get_async_pool(
    path_or_url: str | os.PathLike[str] | None = None, /, *, tenant: str | None = None, **settings: Any
) -> AsyncPool | AsyncPostgresPool:
    """Return a pool for asyncio on a path or URL; None takes it from `WALPOOL_URL`. Its first call opens it.

    Raises:
        As `get_pool`.
    """
    target, is_file = _target(path_or_url, tenant, settings)
    if is_file:
        from walpool.aio import AsyncPool  # here: asyncio takes as long to import as all of walpool

        return AsyncPool(target, **settings)
    _require_psycopg()
    from walpool.postgres import AsyncPostgresPool

    return AsyncPostgresPool(target, tenant=tenant, **settings)


def is_pool(given: object) -> TypeIs[Pool | PostgresPool]:
    """Return whether something is a pool for threads, on either backend; imports nothing."""
    return isinstance(given, (Pool, *_imported("walpool.postgres", "PostgresPool")))


def is_async_pool(given: object) -> TypeIs[AsyncPool | AsyncPostgresPool]:
    """Return whether something is a pool for asyncio, on either backend; imports nothing."""
    kinds = (*_imported("walpool.aio", "AsyncPool"), *_imported("walpool.postgres", "AsyncPostgresPool"))
    return isinstance(given, kinds)


def sync_twin(pool: AsyncPool | AsyncPostgresPool) -> Pool | PostgresPool:
    """Return a pool for threads with the settings of one for asyncio, on the same engine: the caller's to close."""
    settings = pool.settings
    if pool.backend == "sqlite":
        return Pool(pool.path, **settings.keywords())
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    assert isinstance(pool, AsyncPostgresPool), "there are two backends"
    return PostgresPool(str(settings.url), tenant=pool.tenant, **settings.keywords())


def async_twin(pool: Pool | PostgresPool) -> AsyncPool | AsyncPostgresPool:
    """Return a pool for asyncio with the settings of one for threads, on the same engine: the caller's to close."""
    settings = pool.settings
    if pool.backend == "sqlite":
        from walpool.aio import AsyncPool

        return AsyncPool(pool.path, **settings.keywords())
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    assert isinstance(pool, PostgresPool), "there are two backends"
    return AsyncPostgresPool(str(settings.url), tenant=pool.tenant, **settings.keywords())


def _imported(home: str, name: str) -> tuple[type, ...]:
    """Return a class if it has been imported: without that nothing is an object of it."""
    # Another thread may be importing the module just now, and the class not be in it yet.
    found = getattr(sys.modules.get(home), name, None)
    return () if found is None else (found,)


def _target(
    path_or_url: str | os.PathLike[str] | None, tenant: str | None, settings: dict[str, Any]
) -> tuple[str, bool]:
    """Return what to open, and whether that is a file."""
    loaded = Settings.load(path_or_url, **settings)
    target = os.fspath(path_or_url) if path_or_url is not None else loaded.url
    if target is None:
        msg = "no database was named: give a path or a URL, or set WALPOOL_URL"
        raise ConfigError(msg)
    if tenant is not None and loaded.path is not None:
        msg = "tenant= is for row-level security, which a file has not; open it without"
        raise ConfigError(msg)
    return target, loaded.path is not None


def _require_psycopg() -> None:
    if importlib.util.find_spec("psycopg") is None:
        msg = "a postgresql:// URL needs psycopg 3: pip install 'walpool[postgres]'"
        raise ConfigError(msg)


for _function in (get_pool, get_async_pool):
    _function.__module__ = "walpool"
