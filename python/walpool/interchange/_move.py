"""All memories of one database into another, whatever the backends: out into a temporary file, and in again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import walpool.memory
from walpool.errors import NotSupportedError
from walpool.interchange._export import export_memory
from walpool.interchange._import import import_memory
from walpool.interchange.stores import is_secured, name_of
from walpool.registry import get_pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.memory import Collection
    from walpool.postgres import PostgresPool

__all__ = ["MemoryMover", "move_memory"]


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


@dataclass(frozen=True, slots=True)
class MemoryMover:
    """Moves memories in a migration, for `walpool.migrating.Options(movers={"memory": MemoryMover()})`.

    Attributes:
        tenant: only what is this tenant's; None is all of them.
    """

    tenant: str | None = None

    def __call__(self, source: str, target: str, /) -> list[str]:
        """Do what `move_memory` does."""
        return move_memory(source, target, tenant=self.tenant)

    def look(self, source: str, target: str, /) -> tuple[list[str], list[str]]:
        """Return why the memories cannot be moved, and which of them are; in sentences."""
        if self.tenant is None and is_secured(source, {}):
            return ["row-level security shows the memories of one tenant at a time: say whose, by --tenant"], []
        try:
            found = walpool.memory.collections(source, tenant=self.tenant or None)
        except NotSupportedError:  # another version's, which the export brings up to date, or refuses
            found = []
        going = [each for each in found if self.tenant in (None, each.tenant)]
        notes = [f"memories: {_counted(going)} as walpool export and walpool import take them"]
        if staying := [each for each in found if each not in going]:
            notes.append(f"memories of other tenants stay, each goes by itself (--tenant): {_counted(staying)}")
        return _obstacles(target, going), notes


def _counted(collections: list[Collection]) -> str:
    return ", ".join(f"{each.records} of {name_of(each.tenant, each.collection)}" for each in collections) or "none"


def _obstacles(target: str, going: list[Collection]) -> list[str]:
    if Settings.load(target).path is not None:
        return []
    from walpool.memory.postgres import lacking  # here: psycopg is an extra
    from walpool.postgres.spelling.vectors import MOST_DIMS

    with get_pool(target) as pool:
        lacks = lacking(cast("PostgresPool", pool))
    if lacks is not None:
        return [lacks]
    if long := [each for each in going if each.dims is not None and each.dims > MOST_DIMS]:
        return [f"pgvector holds embeddings of up to {MOST_DIMS} dims, and these are longer: {_counted(long)}"]
    if is_secured(target, {}) and (homeless := [each for each in going if not each.tenant]):
        return [f"row-level security has a place for tenants alone, and these are no tenant's: {_counted(homeless)}"]
    return []
