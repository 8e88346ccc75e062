"""What commands print, and how: JSON, what shows how far a long work is. rich is used where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["print_json", "progress"]


def print_json(document: Any) -> None:
    """Print one JSON document: all that a command prints with `--json`."""
    print(json.dumps(document, indent=2))


@contextmanager
def progress(is_silent: bool, said: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what shows how far a long work is, on a terminal: a bar, or figures where rich is not installed.

    Args:
        is_silent: show nothing, and yield None; so it is where stderr is no terminal.
        said: what the work is, beside the bar.
    """
    if is_silent or not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done, total: print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(said, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
