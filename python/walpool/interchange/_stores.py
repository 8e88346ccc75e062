"""The collections of a database, as files of memories have them."""

from __future__ import annotations

import os
from typing import Any, Final

import walpool.memory
from walpool.errors import ConfigError
from walpool.memory import Collection, MemoryStore
from walpool.registry import get_pool

__all__ = ["name_of", "open_collection", "patient"]

_LONG: Final = 24 * 3600.0  # seconds


def open_collection(
    url: str | os.PathLike[str] | None, collection: Collection, settings: dict[str, Any]
) -> MemoryStore:
    """Return the store of one collection, made if it is not there; the caller closes it."""
    tenant, name, words = collection.tenant, collection.collection, collection.words
    return walpool.memory.open(url, tenant=tenant, collection=name, words=words, **settings)


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
