"""What the tests of the CrewAI integration share; without crewai in the environment they are left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from walpool.crewai import Installation

HAS_CREWAI = find_spec("crewai") is not None

if HAS_CREWAI:
    import examples.offline  # noqa: F401 - switches telemetry off, before crewai is imported
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if HAS_CREWAI else "crewai is not installed: tests/crewai is left out"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # CrewAI's own, of its own fields.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:crewai"))
            item.add_marker(pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"))
            # CrewAI keeps crews and flows of the tests before: its event bus, and cycles that nobody has collected.
            item.add_marker(
                pytest.mark.filterwarnings("ignore:.* (crews|memories) were built before install:UserWarning")
            )


@pytest.fixture(autouse=True)
def storage_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let CrewAI keep its own files in the test's folder; return where."""
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "crewai"))
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    return tmp_path / "crewai"


@pytest.fixture(autouse=True)
def crews_of_other_tests_are_gone() -> None:
    """Have the event bus forget them: else a checkpoint is of all of them, and fails where one cannot be stored."""
    bus = sys.modules.get("crewai.events.event_bus")
    if bus is not None:
        bus.crewai_event_bus.reset_runtime_state()


@pytest.fixture
def installation(database: Path) -> Iterator[Installation]:
    """Install walpool on `database` for one test."""
    import walpool.crewai

    with walpool.crewai.install(database) as installed:
        assert all(surface.replaced for surface in installed.report), str(installed)
        yield installed
