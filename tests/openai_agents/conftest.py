"""What the tests of the OpenAI Agents integration share; without openai-agents in the environment they are left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from leftovers import engine_threads, open_descriptors, threads_left_since

HAS_AGENTS = find_spec("agents") is not None

if HAS_AGENTS:
    os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "true"  # before it is imported; else it sends traces from a thread
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if HAS_AGENTS else "openai-agents is not installed: tests/openai_agents is left out"


@pytest.fixture(autouse=True)
def nothing_is_left(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold each test to closing what it opened on `database`: threads and descriptors."""
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    before = engine_threads()
    yield
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}
