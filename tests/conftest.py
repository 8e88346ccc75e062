"""What many tests share: a database path, a pool that must close completely, threads that start together."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import walpool

T = TypeVar("T")

# Where crewai is not installed, the folder tests/crewai passes for a package of that name; it has no file of its own.
crewai = importlib.util.find_spec("crewai")
if crewai is None or crewai.origin is None:
    sys.modules["crewai"] = None  # type: ignore[assignment]  # whoever imports it fails, and skips
    collect_ignore = ["crewai"]

OWN_THREADS = ("walpool", "r2d2")  # names of the engine's threads; the kernel keeps 15 characters of a name
THREADS_END_WITHIN = 2.0  # seconds; join() returns a moment before the kernel takes the thread out of /proc


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


def engine_threads() -> dict[int, str]:
    """Return the running threads that bear a name of the engine's, by id; empty where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return {}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # the thread ended between the listing and the reading
            continue
        if name.startswith(OWN_THREADS):
            found[int(task.name)] = name
    return found


def threads_left_since(before: dict[int, str]) -> dict[int, str]:
    """Return the engine's threads that are still there and were not in `before`, once they have had time to go."""
    deadline = time.monotonic() + THREADS_END_WITHIN
    while True:
        left = {thread: name for thread, name in engine_threads().items() if thread not in before}
        if not left or time.monotonic() > deadline:
            return left
        os.sched_yield()


def open_descriptors(database: Path) -> list[str]:
    """Return what this process holds open of `database` and of the files beside it; empty where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return []
    ours = {str(database.resolve()) + suffix for suffix in ("", "-wal", "-shm", "-journal")}
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()).removesuffix(" (deleted)"))
        except OSError:  # the descriptor of the listing itself
            continue
    return sorted(target for target in targets if target in ours)
