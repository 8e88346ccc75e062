"""CrewAI's default classes and walpool's, each opened on a folder of its own.

Owns how each is opened and closed. Must not know what a workload asks of it: both sides of a pair share an interface.
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Protocol

from benches.harness import by_name

JSONB_SINCE = (3, 45, 0)  # https://www.sqlite.org/json1.html#jsonb

# Set before crewai is first imported: a benchmark calls nobody.
_QUIET = {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "OTEL_SDK_DISABLED": "true"}


class Surface(Protocol):
    """One implementation of one of CrewAI's surfaces."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]

    @classmethod
    def obstacle(cls) -> str | None:
        """Return why it cannot work here although its packages can be imported; None if it can."""
        return None

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        """Yield CrewAI's object, stored in `folder`; afterwards nothing of it is open or runs.

        A checkpoint provider is told with each call where to store: it comes in a pair with that location.
        """
        raise NotImplementedError


def crewai(module: str) -> Any:
    """Import a module of crewai, with everything that would call home switched off."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    return importlib.import_module(f"crewai.{module}")


class StockKickoff(Surface):
    """CrewAI's kickoff task outputs: a connection per operation, writes behind a polled file lock."""

    name = "crewai"
    requires = ("crewai",)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        module = crewai("memory.storage.kickoff_task_outputs_storage")
        yield module.KickoffTaskOutputsSQLiteStorage(str(folder / "kickoff.db"))


class StockFlow(Surface):
    """CrewAI's flow states: a connection per operation, writes behind a polled file lock."""

    name = "crewai"
    requires = ("crewai",)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        yield crewai("flow.persistence.sqlite").SQLiteFlowPersistence(str(folder / "flows.db"))


class StockCheckpoints(Surface):
    """CrewAI's checkpoint provider for SQLite: a connection per operation, no lock but SQLite's, JSONB."""

    name = "crewai"
    requires: ClassVar[tuple[str, ...]] = ("crewai",)

    @classmethod
    def obstacle(cls) -> str | None:
        if sqlite3.sqlite_version_info < JSONB_SINCE:
            return f"Python's SQLite is {sqlite3.sqlite_version}; CrewAI's provider writes JSONB, which came with 3.45"
        return None

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        yield crewai("state.provider.sqlite_provider").SqliteProvider(), _location(folder)


class StockCheckpointsAsText(StockCheckpoints):
    """The same with JSON text in place of JSONB."""

    name = "crewai-text"

    @classmethod
    def obstacle(cls) -> str | None:
        return None

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        module = crewai("state.provider.sqlite_provider")
        with _rebound(module, "_INSERT", module._INSERT.replace("jsonb(?)", "?")):
            yield module.SqliteProvider(), _location(folder)


class StockCheckpointsOnApsw(StockCheckpoints):
    """The same on apsw's SQLite, newer than most Pythons': CrewAI's own statements, JSONB included."""

    name = "crewai-apsw"
    requires = ("crewai", "apsw")

    @classmethod
    def obstacle(cls) -> str | None:
        version: str = importlib.import_module("apsw").sqlite_lib_version()
        return None if tuple(map(int, version.split("."))) >= JSONB_SINCE else f"apsw's SQLite is {version}, below 3.45"

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        module = crewai("state.provider.sqlite_provider")
        with _rebound(module, "sqlite3", SimpleNamespace(connect=_ApswAsSqlite3)):
            yield module.SqliteProvider(), _location(folder)


class _ApswAsSqlite3(AbstractContextManager[Any]):
    """As much of `sqlite3.Connection` as CrewAI's provider calls; `commit` is done, each statement commits itself."""

    def __init__(self, path: str) -> None:
        import apsw

        self._conn = apsw.Connection(path)
        self._conn.set_busy_timeout(5_000)  # milliseconds; the default of sqlite3.connect, which the provider takes
        self.close = self._conn.close
        self.execute = self._conn.execute

    def commit(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _location(folder: Path) -> str:
    return str(folder / "checkpoints.db")


@contextmanager
def _rebound(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class LanceDB(Surface):
    """CrewAI's default memory storage."""

    name = "lancedb"
    requires = ("crewai", "lancedb", "numpy")

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        yield crewai("memory.storage.lancedb_storage").LanceDBStorage(folder / "memory")
        for thread in threading.enumerate():
            if thread.name == "lancedb-compact":
                thread.join()  # else it works on while the next contender is measured


class WalpoolKickoff(Surface):
    """walpool's kickoff task outputs."""

    name = "walpool"
    requires = ("crewai", "walpool.crewai")

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        import walpool.crewai

        with closing(walpool.crewai.WalpoolKickoffStorage(str(folder / "walpool.db"))) as storage:
            yield storage


class WalpoolFlow(Surface):
    """walpool's flow states."""

    name = "walpool"
    requires = ("crewai", "walpool.crewai")

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        import walpool.crewai

        with closing(walpool.crewai.WalpoolFlowPersistence(str(folder / "walpool.db"))) as storage:
            yield storage


class WalpoolCheckpoints(Surface):
    """walpool's checkpoint provider, in CrewAI's own schema."""

    name = "walpool"
    requires = ("crewai", "walpool.crewai")

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        from walpool.crewai.checkpoint import CheckpointFiles, WalpoolCheckpointProvider

        with closing(CheckpointFiles()) as files:
            yield WalpoolCheckpointProvider.on(files), _location(folder)


class WalpoolMemory(Surface):
    """walpool's memory storage."""

    name = "walpool"
    requires = ("crewai", "numpy", "walpool.crewai")

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Any]:
        import walpool.crewai

        with closing(walpool.crewai.WalpoolStorage(str(folder / "walpool.db"))) as storage:
            yield storage


KICKOFF = by_name(StockKickoff, WalpoolKickoff)
FLOW = by_name(StockFlow, WalpoolFlow)
CHECKPOINTS = by_name(StockCheckpoints, StockCheckpointsOnApsw, StockCheckpointsAsText, WalpoolCheckpoints)
MEMORY = by_name(LanceDB, WalpoolMemory)
