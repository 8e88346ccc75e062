"""All memories of one database into another, whatever the backends: out into a temporary file, and in again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import walpool.memory
from walpool.errors import NotSupportedError
from walpool.interchange._export import export_memory
from walpool.interchange._import import import_memory
from walpool.interchange.stores import name_of
from walpool.settings import Settings

__all__ = ["immovable_memory", "move_memory"]


def move_memory(source: str, target: str, /, *, tenant: str | None = None) -> list[str]:
    """Copy the memories that a database lacks into it, and return what differs, in sentences.

    Each collection is read as one snapshot. Called again it adds what is missing, and changes nothing that is there.

    Args:
        source: path or URL.
        target: path or URL.
        tenant: only what is this tenant's; None is all of them.
    """
    with tempfile.TemporaryDirectory(prefix="walpool-") as folder:
        path = Path(folder) / "memories.jsonl"
        export_memory(source, path, tenants=None if tenant is None else [tenant])
        report = import_memory(path, target)
    said = [f"{part.table}: {one.subject}: {one.said}" for part in report.parts for one in part.differences]
    return said or ([] if report.is_verified else ["the memories that were read back differ from those that were read"])


def immovable_memory(source: str, target: str, /, *, tenant: str | None = None) -> list[str]:
    """Return why a database cannot hold the memories of another one, in sentences; writes nothing.

    Args:
        source: path or URL.
        target: path or URL; it need not be there.
        tenant: only what is this tenant's; None is all of them.
    """
    if Settings.load(target).path is not None:
        return []
    from walpool.postgres.spelling.vectors import MOST_DIMS

    try:
        found = walpool.memory.collections(source)
    except NotSupportedError:  # of an older walpool: brought up to date when they are moved, and not for a look
        return []
    return [
        f"the collection {name_of(each.tenant, each.collection)} has embeddings of {each.dims} dims: pgvector holds "
        f"{MOST_DIMS} at most"
        for each in found
        if each.dims is not None and each.dims > MOST_DIMS and tenant in (None, each.tenant)
    ]
