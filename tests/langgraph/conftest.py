"""What the tests of the LangGraph savers share: each of them runs on both kinds, and on both backends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import engine_threads, open_descriptors, threads_left_since


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def face(kind: str, place: str, database: Path) -> Iterator[Any]:
    """Yield a saver behind a `savers.Face`; once it is closed, nothing of it may be left."""
    from savers import opened_saver  # langgraph may not be installed, and then the tests are skipped

    before = engine_threads()
    with opened_saver(kind, place) as opened:
        yield opened
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}
