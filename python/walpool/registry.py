"""`get_pool`: one pool for each real path and process; which class serves which URL."""

from __future__ import annotations

import os
from typing import Any

from walpool.errors import ConfigError, NotSupportedError
from walpool.pool import Pool
from walpool.settings import Settings

__all__ = ["get_pool"]


def get_pool(path_or_url: str | os.PathLike[str] | None = None, /, **settings: Any) -> Pool:
    """Return a pool on a path or URL; None takes it from `WALPOOL_URL`.

    Each call returns a handle of its own, to be closed by whoever asked for it; those of one file share one engine.

    Raises:
        ConfigError: neither a path nor `WALPOOL_URL` was given, or a setting is wrong.
        NotSupportedError: a `postgresql://` URL; this version serves SQLite files.
    """
    loaded = Settings.load(path_or_url, **settings)
    target = os.fspath(path_or_url) if path_or_url is not None else loaded.url
    if target is None:
        msg = "no database was named: give a path or a URL, or set WALPOOL_URL"
        raise ConfigError(msg)
    if loaded.path is None:
        msg = "PostgreSQL is not served by this version of walpool; give the path of an SQLite file"
        raise NotSupportedError(msg)
    return Pool(target, **settings)


get_pool.__module__ = "walpool"
