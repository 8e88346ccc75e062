"""What many tests share: a database path, a pool that must close completely, threads that start together."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
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


def run_together(count: int, work: Callable[[int], T], *, timeout: float = 30.0) -> list[T]:
    """Run `work(index)` on `count` threads that leave one barrier together.

    Args:
        count: the number of threads.
        work: called with the thread's index, 0 to count - 1.
        timeout: seconds until the slowest thread must have ended.

    Returns:
        The results in the order of the indices.

    Raises:
        BaseException: the first error by index; the others are added to it as notes where Python has notes.
        TimeoutError: a thread was still running after `timeout`; the threads are daemons and are left behind.
    """
    barrier = threading.Barrier(count)
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(index: int) -> None:
        try:
            barrier.wait(timeout)
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001 - raised again below, on the test's own thread
            errors[index] = error

    started = [threading.Thread(target=run, args=(i,), name=f"test-{i}", daemon=True) for i in range(count)]
    for thread in started:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise _first_of(errors)
    running = [thread.name for thread in started if thread.is_alive()]
    if running:
        raise TimeoutError(f"still running after {timeout} s: {', '.join(running)}")
    return [results[i] for i in range(count)]


def _first_of(errors: dict[int, BaseException]) -> BaseException:
    first, *others = sorted(errors)
    if others and sys.version_info >= (3, 11):
        errors[first].add_note("other threads failed too: " + "; ".join(f"{i}: {errors[i]!r}" for i in others))
    return errors[first]
