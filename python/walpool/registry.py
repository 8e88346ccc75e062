"""`get_pool` and `get_async_pool`: which class serves which URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from walpool.errors import ConfigError, NotSupportedError
from walpool.pool import Pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.aio import AsyncPool

__all__ = ["get_async_pool", "get_pool"]


def get_pool(path_or_url: str | os.PathLike[str] | None = None, /, **settings: Any) -> Pool:
    """Return a pool on a path or URL; None takes it from `WALPOOL_URL`.

    Each call returns a handle of its own, to be closed by whoever asked for it; those of one file share one engine.

    Raises:
        ConfigError: neither a path nor `WALPOOL_URL` was given, or a setting is wrong.
        NotSupportedError: a `postgresql://` URL; this version serves SQLite files.
    """
    return Pool(_target(path_or_url, settings), **settings)


def get_async_pool(path_or_url: str | os.PathLike[str] | None = None, /, **settings: Any) -> AsyncPool:
    """Return a pool for asyncio on a path or URL; None takes it from `WALPOOL_URL`. Its first call opens it.

    Raises:
        As `get_pool`.
    """
    from walpool.aio import AsyncPool  # here: asyncio takes as long to import as all of walpool

    return AsyncPool(_target(path_or_url, settings), **settings)


def _target(path_or_url: str | os.PathLike[str] | None, settings: dict[str, Any]) -> str:
    loaded = Settings.load(path_or_url, **settings)
    target = os.fspath(path_or_url) if path_or_url is not None else loaded.url
    if target is None:
        msg = "no database was named: give a path or a URL, or set WALPOOL_URL"
        raise ConfigError(msg)
    if loaded.path is None:
        msg = "PostgreSQL is not served by this version of walpool; give the path of an SQLite file"
        raise NotSupportedError(msg)
    return target


for _function in (get_pool, get_async_pool):
    _function.__module__ = "walpool"
