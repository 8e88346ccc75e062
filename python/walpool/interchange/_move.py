"""All memories of one database into another, whatever the backends: out into a temporary file, and in again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from walpool.interchange._export import export_memory
from walpool.interchange._import import import_memory

__all__ = ["move_memory"]


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
