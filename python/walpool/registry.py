"""`get_pool` and `get_async_pool`: which class serves which URL."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from walpool.errors import ConfigError
from walpool.pool import Pool
from walpool.settings import Settings

if TYPE_CHECKING:
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
