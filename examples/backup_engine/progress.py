"""Showing how far the jobs are, on standard error: a live bar on a terminal that has rich, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

Advance = Callable[[int], None]
"""Called with the number of packs that are stored."""


@contextmanager
def progress(packs: int) -> Iterator[Advance]:
    """Show progress towards `packs` while the block runs."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        with _bar(packs) as advance:
            yield advance
    else:
        yield _lines(packs)


@contextmanager
def _bar(packs: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("packs"), BarColumn(bar_width=40), MofNCompleteColumn(), TimeElapsedColumn())
    # A thread that draws would take the GIL from the loop: drawn when told.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as shown:
        task = shown.add_task("packs", total=packs)
        yield lambda stored: shown.update(task, completed=stored, refresh=True)


def _lines(packs: int) -> Advance:
    begun, tenth_shown = time.monotonic(), -1

    def advance(stored: int) -> None:
        nonlocal tenth_shown
        tenth = stored * 10 // packs
        if tenth > tenth_shown:
            tenth_shown = tenth
            print(f"{stored}/{packs} packs, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    return advance
