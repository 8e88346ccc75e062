"""Finding what CrewAI stored below a folder: by what lies there, never by what it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from walpool.crewai._database import storage_folder
from walpool.errors import ConfigError

__all__ = ["CHECKPOINT_FILE", "Found", "find", "places"]

Kind: TypeAlias = Literal["lancedb", "qdrant-edge", "sqlite", "json checkpoints"]

CHECKPOINT_FILE: Final = re.compile(r"(?P<id>(?P<at>\d{8}T\d{6})_[0-9a-f]{8})(?:_p-(?P<parent>.+))?\.json")
"""What `JsonProvider` calls a file, with the checkpoint's id, time and parent in it."""

_SQLITE: Final = b"SQLite format 3\x00"
_SHARD: Final = "edge_config.json"  # lies in each shard of Qdrant-Edge
_SKIPPED: Final = {".git", ".venv", "venv", "node_modules", "__pycache__", "site-packages"}


class Found(NamedTuple):
    """Something that CrewAI stored."""

    kind: Kind
    path: Path


def places() -> list[Path]:
    """Return where CrewAI keeps the data of the project in the working directory."""
    wanted = [Path(storage_folder())]
    if given := os.environ.get("CREWAI_STORAGE_DIR"):
        wanted.append(Path(given) / "memory")  # LanceDB takes the variable as a path, the databases as a name
    wanted += [Path(".checkpoints"), Path(".checkpoints.db")]  # CheckpointConfig's default, and its command line's
    existing = [place.resolve() for place in wanted if place.exists()]
    return [place for place in existing if not any(other in place.parents for other in existing)]


def find(place: Path) -> list[Found]:
    """Return what CrewAI stored at a file, or in a folder and below it.

    Raises:
        ConfigError: there is no such file or folder.
    """
    if not place.exists():
        raise ConfigError(f"there is nothing to import from [{place}]")
    place = place.resolve()
    if place.is_file():
        return [Found("sqlite", place)] if _is_sqlite(place) else []
    if place.suffix == ".lance":  # the folder of one table
        return [Found("lancedb", place.parent)]
    found = list(dict.fromkeys(_walk(place)))
    folders = [entry.path for entry in found if entry.kind == "json checkpoints"]
    return [entry for entry in found if entry.kind != "json checkpoints"] + [
        Found("json checkpoints", base) for base in _bases(folders)
    ]


def _walk(place: Path) -> Iterator[Found]:
    for name, folders, files in os.walk(place):
        folder = Path(name)
        if _SHARD in files:
            yield Found("qdrant-edge", folder if folder == place else folder.parent)
            folders.clear()
            continue
        if any(entry.endswith(".lance") for entry in folders):
            yield Found("lancedb", folder)
        folders[:] = sorted(entry for entry in folders if entry not in _SKIPPED and not entry.endswith(".lance"))
        if any(CHECKPOINT_FILE.fullmatch(entry) for entry in files):
            yield Found("json checkpoints", folder)
        for entry in sorted(files):
            if not entry.endswith(("-wal", "-shm", "-journal")) and _is_sqlite(folder / entry):
                yield Found("sqlite", folder / entry)


def _bases(folders: list[Path]) -> list[Path]:
    """Return the locations of checkpoints, of which each branch is a folder, or a path of folders, below."""
    mains = {folder.parent for folder in folders if folder.name == "main"}
    others = {folder.parent for folder in folders if not any(main in folder.parents for main in mains)}
    return sorted(mains | others)


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False
