"""Showing how far a side is, on standard error: a live bar on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

Advance = Callable[[int], None]
"""Called with the number of rounds that have ended; with 0 when the work begins."""


@contextmanager
def progress(title: str, rounds: int) -> Iterator[Advance]:
    """Show one side's progress while the block runs."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        with _bar(title, rounds) as advance:
            yield advance
    else:
        yield _lines(title, rounds)


@contextmanager
def _bar(title: str, rounds: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=None, note="starting CrewAI")
        begun = 0.0

        def advance(ended: int) -> None:
            nonlocal begun
            begun = begun if ended else time.monotonic()
            rate = f"{ended / (time.monotonic() - begun):.1f} rounds/s" if ended else ""
            shown.update(task, completed=ended, total=rounds, note=rate)

        yield advance


def _lines(title: str, rounds: int) -> Advance:
    print(f"{title}: starting CrewAI", file=sys.stderr, flush=True)
    begun = 0.0

    def advance(ended: int) -> None:
        nonlocal begun
        begun = begun if ended else time.monotonic()
        if ended in {rounds * tenth // 10 for tenth in range(11)}:
            print(f"{title}: {ended}/{rounds} rounds, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    return advance
