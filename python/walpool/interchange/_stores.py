"""The collections of a database, as files of memories have them."""

from __future__ import annotations

import os
from typing import Any

import walpool.memory
from walpool.memory import Collection, MemoryStore

__all__ = ["name_of", "open_collection"]


def open_collection(
    url: str | os.PathLike[str] | None, collection: Collection, settings: dict[str, Any]
) -> MemoryStore:
    """Return the store of one collection, made if it is not there; the caller closes it."""
    named = {"tenant": collection.tenant, "collection": collection.collection, "words": collection.words}
    return walpool.memory.open(url, **named, **settings)


def name_of(tenant: str, collection: str) -> str:
    """Return what a person calls a collection."""
    return f"{tenant}/{collection}" if tenant else collection
