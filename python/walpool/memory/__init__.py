"""A memory store for agents: records in scopes, found by id, by condition, by words, or by an embedding.

    with walpool.memory.open("agents.db") as store:
        store.save([Record(id="1", content="the sky is blue", scope="/facts", embedding=pack(vector))])
        hits = store.search(pack(question), Query(scope="/facts"), limit=5)

The store calls no model: whoever has the text embeds it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from walpool.errors import ConfigError
from walpool.memory._spaces import collections
from walpool.memory.conditions import Condition, Contains, Equals, Exists, In, PythonEquals, Range
from walpool.memory.contract import AsyncMemoryStore, MemoryStore
from walpool.memory.postgres import AsyncPostgresMemoryStore, PostgresMemoryStore
from walpool.memory.records import (
    Changes,
    Collection,
    DimsError,
    EmbeddingError,
    Explanation,
    Hit,
    Hits,
    Metric,
    Mode,
    Query,
    Record,
    Records,
    ScopeSummary,
    Weights,
    normalize_scope,
    pack,
    unpack,
)
from walpool.memory.sqlite import AsyncSqliteMemoryStore, SqliteMemoryStore
from walpool.pool import Pool
from walpool.registry import get_async_pool, get_pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.postgres import AsyncPostgresPool

__all__ = [
    "AsyncMemoryStore",
    "AsyncPostgresMemoryStore",
    "AsyncSqliteMemoryStore",
    "Changes",
    "Collection",
    "Condition",
    "Contains",
    "DimsError",
    "EmbeddingError",
    "Equals",
    "Exists",
    "Explanation",
    "Hit",
    "Hits",
    "In",
    "MemoryStore",
    "Metric",
    "Mode",
    "PostgresMemoryStore",
    "PythonEquals",
    "Query",
    "Range",
    "Record",
    "Records",
    "ScopeSummary",
    "SqliteMemoryStore",
    "Weights",
    "collections",
    "normalize_scope",
    "open",
    "open_async",
    "pack",
    "unpack",
]


def open(  # noqa: A001 - as in walpool.memory.open
    url: str | os.PathLike[str] | None = None,
    /,
    *,
    tenant: str = "",
    collection: str = "memory",
    words: str | None = None,
    tenancy: Literal["rls"] | None = None,
    index: Literal["hnsw"] | None = None,
    **settings: Any,
) -> MemoryStore:
    """Return the memory store of a database, on the process's shared pool for it.

    Args:
        url: a path or an URL that `walpool.get_pool` takes; None takes `WALPOOL_URL`.
        tenant: whose records they are; stores of others on the same database see nothing of them.
        collection: which of the tenant's collections; each has dims and a word index of its own.
        words: how words are indexed, fixed by the collection's first save: `unicode61` for words, `trigram` for parts
            of words and for scripts without spaces. None takes what the collection has, `unicode61` for a new one.
        tenancy: PostgreSQL alone. `rls`: row-level security keeps tenants apart, whatever is asked; see
            `walpool.memory.postgres.init_sql` for what the owner of the database runs first.
        index: PostgreSQL alone. `hnsw`: searches by cosine go through an HNSW index, and may miss a near record; None:
            every search is exact.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: a setting is wrong, or differs from the one that the file is open with; the collection was begun
            with another word index.
        NotSupportedError: the file's memory tables come from a newer walpool.
        StorageError: the file cannot be opened.
    """
    _refuse(Settings.load(url, **settings), tenancy, index)
    pool = get_pool(url, tenant=tenant if tenancy == "rls" else None, **settings)
    try:
        if isinstance(pool, Pool):
            return SqliteMemoryStore(pool, tenant=tenant, collection=collection, words=words)
        return PostgresMemoryStore(
            pool, tenant=tenant, collection=collection, words=words, tenancy=tenancy, index=index
        )
    except BaseException:
        pool.close()
        raise


def open_async(
    url: str | os.PathLike[str] | None = None,
    /,
    *,
    tenant: str = "",
    collection: str = "memory",
    words: str | None = None,
    tenancy: Literal["rls"] | None = None,
    index: Literal["hnsw"] | None = None,
    **settings: Any,
) -> AsyncMemoryStore:
    """Return the memory store of a database for asyncio; its first call, or `async with`, opens the file.

    Args:
        url: as for `open`.
        tenant: as for `open`.
        collection: as for `open`.
        words: as for `open`.
        tenancy: as for `open`.
        index: as for `open`.
        **settings: as `walpool.AsyncPool` takes them.

    Raises:
        ConfigError: a setting is wrong. What opening the file can raise (see `open`) is raised by the call that does.
    """
    _refuse(Settings.load(url, **settings), tenancy, index)
    pool = get_async_pool(url, tenant=tenant if tenancy == "rls" else None, **settings)
    if pool.backend == "postgres":
        return AsyncPostgresMemoryStore(
            cast("AsyncPostgresPool", pool),
            tenant=tenant,
            collection=collection,
            words=words,
            tenancy=tenancy,
            index=index,
        )
    return AsyncSqliteMemoryStore(cast("AsyncPool", pool), tenant=tenant, collection=collection, words=words)


def _refuse(settings: Settings, tenancy: str | None, index: str | None) -> None:
    if settings.path is not None and (tenancy is not None or index is not None):
        raise ConfigError(f"tenancy= and index= are for PostgreSQL; a file has neither [{settings.path}]")
