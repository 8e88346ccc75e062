"""What many tests share: a database path, a pool that must close completely, threads that start together."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from helpers import run_together
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool

T = TypeVar("T")

# Where crewai is not installed, the folder tests/crewai passes for a package of that name; it has no file of its own.
crewai = importlib.util.find_spec("crewai")
if crewai is None or crewai.origin is None:
    sys.modules["crewai"] = None  # type: ignore[assignment]  # whoever imports it fails, and skips
    collect_ignore = ["crewai"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a path at which there is no database yet."""
    return tmp_path / "test.db"


@pytest.fixture
def pool(database: Path) -> Iterator[walpool.Pool]:
    """Yield a pool on `database`; once it is closed, no thread of it and no descriptor on its files may be left."""
    before = engine_threads()
    with walpool.Pool(database) as opened:
        yield opened
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


@pytest.fixture
def threads() -> Callable[[int, Callable[[int], T]], list[T]]:
    """Return `threads(count, work)`: runs work(0) to work(count - 1) at once and returns their results in order."""
    return run_together
