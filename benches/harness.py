"""What every workload stands on: its scale, what it returns, fresh data, and a contender opened on it.

Must not know any single workload, nor how a result is printed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benches import data
from benches.contenders import Aiosqlite
from benches.measure import Timing, busy_thread, run_tasks, run_threads
from benches.targets import Target


@dataclass(frozen=True)
class Scale:
    """How often, how long and on how much data a workload runs."""

    runs: int
    window_s: float  # of a workload whose own `seconds` is 1
    share: float  # of the data's full size
    rounds: int = 3  # at least, however long they take
    most_threads: int = 1_000
    most_rows: int = 1_000_000

    def rows(self, full: int) -> int:
        """Return how many rows stand for `full` rows at this scale, at least 32."""
        return min(full, self.most_rows, max(32, int(full * self.share)))

    def threads(self, full: int) -> int:
        """Return how many threads stand for `full` where each one adds to the time, however short the window."""
        return min(full, self.most_threads)


FULL = Scale(runs=5, window_s=1.0, share=1.0)
QUICK = Scale(runs=3, window_s=0.3, share=1.0)
SMALLEST = Scale(runs=1, window_s=0.01, share=0.01, rounds=1, most_threads=4, most_rows=200)


@dataclass(frozen=True)
class Sample:
    """One run of one contender."""

    figures: dict[str, float]  # the first one is the throughput
    errors: Counter[str] = field(default_factory=Counter)
    wrong: tuple[str, ...] = ()  # what the check of the database found afterwards; empty if all is right


class Workload(Protocol):
    """What the runner needs to know of a workload."""

    @property
    def name(self) -> str:
        """Return the word that selects it on the command line."""

    @property
    def title(self) -> str:
        """Return one line that says what is done."""

    @property
    def synchronous(self) -> str:
        """Return `full` or `normal`, the same for every contender; empty where it has no part."""

    @property
    def contenders(self) -> Mapping[str, type[Any]]:
        """Return the classes that compete, by name; each has `requires`, as `contenders.missing` reads it."""

    @property
    def targets(self) -> Sequence[Target]:
        """Return what walpool should reach here."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        """Measure one contender on fresh data in `folder`, which is empty; its parent keeps what runs share."""


def by_name(*kinds: type[Any]) -> dict[str, type[Any]]:
    """Return contenders by their names, in the order given."""
    return {kind.name: kind for kind in kinds}


def place(build: Callable[[Path, int], None], rows: int, folder: Path) -> Path:
    """Put a fresh copy of a database into `folder`; it is built once and kept in the folder's parent."""
    template = folder.parent / f"{build.__name__}-{rows}.db"
    if not template.exists():
        build(template, rows)
    path = folder / "bench.db"
    shutil.copyfile(template, path)
    settle()
    return path


def settle() -> None:
    """Let the disk write what is waiting, or the first fsyncs that are measured pay for it."""
    if hasattr(os, "sync"):
        os.sync()


@contextlib.contextmanager
def opened(kind: type[Any], path: Path, synchronous: str) -> Iterator[Any]:
    """Set a contender up on a file, and close it afterwards."""
    contender = kind()
    contender.setup(str(path), synchronous)
    try:
        yield contender
    finally:
        contender.close()


def drive(contender: Any, operations: Sequence[Callable[[int], Any]], window_s: float) -> Timing:
    """Run operations in threads, or as tasks on the contender's own loop if it has one."""
    if isinstance(contender, Aiosqlite):
        return contender.loop.run_until_complete(run_tasks(operations, window_s))
    return run_threads(operations, window_s)


def beside(busy: bool) -> contextlib.AbstractContextManager[object]:
    """Return a busy Python thread as a context manager, or nothing."""
    return busy_thread() if busy else contextlib.nullcontext()


def check_upserts(path: Path, rows: int, acknowledged: int, failed: int) -> tuple[str, ...]:
    """Return what is wrong with `items`: every acknowledged upsert must have raised one version by one."""
    found, versions, damaged = data.read_items(path)
    wrong = []
    if found != rows:
        wrong.append(f"{found} rows where {rows} should be")
    if not acknowledged <= versions <= acknowledged + failed:
        wrong.append(f"{acknowledged} upserts acknowledged and {failed} failed, but {versions} applied")
    if damaged:
        wrong.append(f"{damaged} bodies of the wrong length")
    return tuple(wrong)
