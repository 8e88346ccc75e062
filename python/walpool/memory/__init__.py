"""A memory store for agents: records in scopes, found by id, by condition, or by nearness to an embedding.

    with walpool.memory.open("agents.db") as store:
        store.put([Record(id="1", content="the sky is blue", scope="/facts", embedding=pack(vector))])
        hits = store.search(pack(question), Query(scope="/facts"), limit=5)

The store calls no model: whoever has the text embeds it.
"""

from __future__ import annotations

import os
from typing import Any

from walpool.memory.contract import MemoryStore
from walpool.memory.records import (
    DimsError,
    EmbeddingError,
    Hit,
    Metric,
    Query,
    Record,
    ScopeSummary,
    normalize_scope,
    pack,
    unpack,
)
from walpool.memory.sqlite import SqliteMemoryStore
from walpool.registry import get_pool

__all__ = [
    "DimsError",
    "EmbeddingError",
    "Hit",
    "MemoryStore",
    "Metric",
    "Query",
    "Record",
    "ScopeSummary",
    "SqliteMemoryStore",
    "normalize_scope",
    "open",
    "pack",
    "unpack",
]


def open(url: str | os.PathLike[str] | None = None, /, **settings: Any) -> MemoryStore:  # noqa: A001 - as in walpool.memory.open
    """Return the memory store of a database, on the process's shared pool for it.

    Args:
        url: a path or an URL that `walpool.get_pool` takes; None takes `WALPOOL_URL`.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: a setting is wrong, or differs from the one that the file is open with.
        NotSupportedError: the file's memory tables come from a newer walpool.
        StorageError: the file cannot be opened.
    """
    pool = get_pool(url, **settings)
    try:
        return SqliteMemoryStore(pool)
    except BaseException:
        pool.close()
        raise
