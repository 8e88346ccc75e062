"""A pytest plugin for CrewAI's own tests: what its root conftest gives them, and walpool under the names they use.

Loaded by `test_upstream.py` into a pytest of its own (`-p upstream_plugin`). `install()` does most of it. It leaves
alone what a user names explicitly, and the tests name CrewAI's classes: so `LanceDBStorage`, `SQLiteFlowPersistence`
and `KickoffTaskOutputsSQLiteStorage` become, here only, classes of walpool's with their constructors.

With the URL of a PostgreSQL database in STORES_IN, flows and kickoffs lie there, whichever file a test names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.update(
    CREWAI_DISABLE_TELEMETRY="true",
    CREWAI_TESTING="true",
    CREWAI_TRACING_ENABLED="false",
    OTEL_SDK_DISABLED="true",
    OPENAI_API_KEY="never-used",  # a model is built by its name, and none is called
    # Nothing may leave the machine: whoever tries is refused at once rather than after a time-out.
    HTTP_PROXY="http://127.0.0.1:9",
    HTTPS_PROXY="http://127.0.0.1:9",
)
sys.modules["lancedb"] = None  # type: ignore[assignment]  # whoever imports it fails

import crewai.flow.persistence  # noqa: E402
import crewai.flow.persistence.sqlite  # noqa: E402
import crewai.memory.storage.kickoff_task_outputs_storage as kickoff_module  # noqa: E402

import walpool.crewai  # noqa: E402
from walpool.crewai import WalpoolFlowPersistence, WalpoolKickoffStorage, WalpoolStorage  # noqa: E402

STORES_IN = os.environ.get("STORES_IN")


class LanceDBStorage(WalpoolStorage):
    """`WalpoolStorage` with the constructor of CrewAI's default store; the folder it is given holds the database."""

    def __init__(
        self,
        path: str | Path | None = None,
        table_name: str = "memories",
        vector_dim: int | None = None,
        compact_every: int = 100,
    ) -> None:
        super().__init__(None if path is None else str(Path(path) / "walpool.db"))


class SQLiteFlowPersistence(WalpoolFlowPersistence):
    """`WalpoolFlowPersistence` with the name and the field of CrewAI's own."""

    persistence_type: str = "SQLiteFlowPersistence"

    def __init__(self, db_path: str | None = None, /, **fields: Any) -> None:
        super().__init__(STORES_IN or db_path, **fields)


class KickoffTaskOutputsSQLiteStorage(WalpoolKickoffStorage):
    """`WalpoolKickoffStorage`, on a server empty to begin with, as a new file is."""

    def __init__(self, db_path: str | None = None) -> None:
        super().__init__(STORES_IN or db_path)
        if STORES_IN:
            self.delete_all()


def _put_in_place() -> None:
    lancedb_storage = ModuleType("crewai.memory.storage.lancedb_storage")
    vars(lancedb_storage)["LanceDBStorage"] = LanceDBStorage
    sys.modules[lancedb_storage.__name__] = lancedb_storage
    for module in (crewai.flow.persistence, crewai.flow.persistence.sqlite):
        vars(module)["SQLiteFlowPersistence"] = SQLiteFlowPersistence
    kickoff_module.KickoffTaskOutputsSQLiteStorage = KickoffTaskOutputsSQLiteStorage  # type: ignore[assignment, misc]


_put_in_place()


@pytest.fixture(scope="session", autouse=True)
def walpool_is_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with walpool.crewai.install(STORES_IN or tmp_path_factory.mktemp("walpool") / "walpool.db") as installation:
        assert all(surface.replaced for surface in installation.report), str(installation)
        yield


@pytest.fixture(autouse=True)
def files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a storage folder and a working directory, and take its event handlers away afterwards."""
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "storage"))
    monkeypatch.chdir(tmp_path)
    from crewai.events.event_bus import crewai_event_bus

    with crewai_event_bus.scoped_handlers():
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vcr: replays a recorded answer; not among the tests that are run here")
