"""The two sides: which storage classes CrewAI uses on each, and where their rows lie afterwards.

Each side stores below `CREWAI_STORAGE_DIR`, where CrewAI and walpool both look by themselves. Nothing of a framework is
imported before it is asked for: the process that looks on needs none of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Files:
    """Where a side keeps what: SQLite files, but for a LanceDB, which is a folder."""

    memory: Path
    flow: Path
    kickoff: Path


class Side(Protocol):
    """One way to store."""

    name: str
    title: str

    def install(self) -> None:
        """Make CrewAI of this process store this way."""

    def classes(self) -> tuple[type, type, type]:
        """Return the storage classes of memory, flow states and kickoff outputs."""

    def files(self, folder: Path) -> Files:
        """Return where the rows lie if `folder` is the storage folder."""

    def synchronous(self, folder: Path) -> str:
        """Return what `PRAGMA synchronous` is for those who write there."""

    def sqlite_version(self) -> str:
        """Return the version of the SQLite that this side uses."""


class Defaults:
    """CrewAI as it comes: LanceDB, and SQLite with a connection an operation, both behind polled file locks."""

    name = "default"
    title = "CrewAI defaults"

    def install(self) -> None:
        """Leave everything as it is."""

    def classes(self) -> tuple[type, type, type]:
        from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
        from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
        from crewai.memory.storage.lancedb_storage import LanceDBStorage

        return LanceDBStorage, SQLiteFlowPersistence, KickoffTaskOutputsSQLiteStorage

    def files(self, folder: Path) -> Files:
        return Files(folder / "memory", folder / "flow_states.db", folder / "latest_kickoff_task_outputs.db")

    def synchronous(self, folder: Path) -> str:
        # CrewAI sets none, so it is what this build of SQLite gives to a connection to a file in WAL mode.
        with closing(sqlite3.connect(self.files(folder).flow)) as connection:
            connection.execute("SELECT count(*) FROM flow_states").fetchone()
            return _LEVELS[connection.execute("PRAGMA synchronous").fetchone()[0]]

    def sqlite_version(self) -> str:
        return sqlite3.sqlite_version


class Walpool:
    """CrewAI with one line more."""

    name = "walpool"
    title = "walpool"

    def install(self) -> None:
        import walpool.crewai

        installation = walpool.crewai.install()
        missing = [
            str(part)
            for part in installation.report
            if part.component in ("memory", "flow", "kickoff") and not part.replaced
        ]
        if missing:
            raise RuntimeError("; ".join(missing))

    def classes(self) -> tuple[type, type, type]:
        from walpool.crewai import WalpoolFlowPersistence, WalpoolKickoffStorage, WalpoolStorage

        return WalpoolStorage, WalpoolFlowPersistence, WalpoolKickoffStorage

    def files(self, folder: Path) -> Files:
        database = folder / "walpool.db"
        return Files(database, database, database)

    def synchronous(self, folder: Path) -> str:
        import walpool

        with walpool.get_pool(self.files(folder).flow) as pool:
            return str(pool.settings.synchronous)

    def sqlite_version(self) -> str:
        import walpool

        return str(walpool.sqlite_version)


_LEVELS = {0: "off", 1: "normal", 2: "full", 3: "extra"}

DEFAULTS, WALPOOL = Defaults(), Walpool()
SIDES: dict[str, Side] = {side.name: side for side in (DEFAULTS, WALPOOL)}
