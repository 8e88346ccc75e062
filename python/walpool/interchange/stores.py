"""The collections of a database, as files of memories have them."""

from __future__ import annotations

import os
from typing import Any, Final

import walpool.memory
from walpool import schema
from walpool.errors import ConfigError, NotSupportedError
from walpool.memory import Collection, MemoryStore
from walpool.registry import get_pool
from walpool.settings import Settings

__all__ = ["has_stores", "is_secured", "name_of", "open_collection", "patient"]

_LONG: Final = 24 * 3600.0  # seconds


def open_collection(
    url: str | os.PathLike[str] | None, collection: Collection, settings: dict[str, Any]
) -> MemoryStore:
    """Return the store of one collection, made if it is not there; the caller closes it.

    Raises:
        NotSupportedError: row-level security is on, which has no place for what is no tenant's.
    """
    tenant, name, words = collection.tenant, collection.collection, collection.words
    if not is_secured(url, settings):
        return walpool.memory.open(url, tenant=tenant, collection=name, words=words, **settings)
    if not tenant:
        raise NotSupportedError(
            f"the collection {name!r} is no tenant's, and row-level security has a place for tenants alone: save its "
            "records in a store that was opened with tenant= first, or connect as a role above the policies"
        )
    return walpool.memory.open(url, tenant=tenant, collection=name, words=words, tenancy="rls", **settings)


def is_secured(url: str | os.PathLike[str] | None, settings: dict[str, Any]) -> bool:
    """Return whether row-level security shows the role of a connection one tenant's memories at a time."""
    if Settings.load(url, **settings).path is not None:
        return False
    from walpool.postgres import policies  # which needs psycopg

    with get_pool(url, **settings) as pool:
        return policies.is_secured(pool.fetch, "memory_records")


def has_stores(url: str | os.PathLike[str] | None, settings: dict[str, Any]) -> bool:
    """Return whether a database has the tables of memories; makes none."""
    with get_pool(url, **settings) as pool:
        return schema.version(pool, "memory") > 0


def name_of(tenant: str, collection: str) -> str:
    """Return what a person calls a collection."""
    return f"{tenant}/{collection}" if tenant else collection


def patient(url: str | os.PathLike[str] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with which one snapshot may be held for as long as an export takes.

    Where this process has the file open already, its own `transaction_timeout` stays.
    """
    if "transaction_timeout" in settings:
        return settings
    wanted = {**settings, "transaction_timeout": _LONG}
    try:
        get_pool(url, **wanted).close()
    except ConfigError:
        return settings
    return wanted
