"""What commands print, and how: JSON, tables, trees, questions, and what shows how far a long work is.

rich is used on a terminal where it is installed, plain text elsewhere. Nothing that was stored may steer the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import repeat
from typing import Any

from walpool.cli._command import Failed
from walpool.errors import ConfigError

__all__ = [
    "ask",
    "harmless",
    "has_rich",
    "print_json",
    "print_table",
    "print_tree",
    "progress",
    "progress_of_each",
    "shortened",
]

_JOINERS = "\u200c\u200d"  # not printable by Python's account; Persian, Hindi and emoji are spelled with them


def print_json(document: Any) -> None:
    """Print one JSON document: all that a command prints with `--json`."""
    print(json.dumps(document, indent=2))


def has_rich() -> bool:
    """Return whether to print with rich: on a terminal, where it is installed."""
    if not sys.stdout.isatty():
        return False
    try:
        return find_spec("rich.console") is not None
    except (ImportError, ValueError):  # ValueError: a module in its place that is none
        return False


def harmless(text: str) -> str:
    """Return a text in which what would steer a terminal, or turn the direction of a line, is spelled as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _JOINERS else ascii(char)[1:-1] for char in text)


def shortened(text: str, longest: int) -> str:
    """Return a text as one harmless line of about `longest` characters at most."""
    line = " ".join(text[: 4 * longest].split())
    cut = len(line) > longest or len(text) > 4 * longest
    return harmless(line[: longest - 1]) + "…" if cut else harmless(line)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, faint: Sequence[bool] = ()) -> None:
    """Print rows below the names of their columns; every cell is taken as it is, no markup in it.

    Args:
        columns: their names.
        rows: the cells of each row.
        faint: which rows matter less, where a terminal can show it; none by default.
    """
    cells = [[harmless(cell) for cell in row] for row in rows]
    if not has_rich():
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in [list(columns), *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, highlight=False)
    for row, is_faint in zip(cells, faint or repeat(False), strict=False):
        # Text, because rich reads markup in a plain string, and whatever was stored may hold brackets.
        table.add_row(*map(Text, row), style="dim" if is_faint else "")
    Console().print(table)


def print_tree(root: str, nodes: Iterable[tuple[int, str]]) -> None:
    """Print a tree.

    Args:
        root: the label of the root.
        nodes: depth (1 right below the root) and label of each node, a node's children behind it; a depth grows by one
            at most.
    """
    if not has_rich():
        print(harmless(root))
        for depth, label in nodes:
            print("  " * depth + harmless(label))
        return
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    branches = [Tree(Text(harmless(root)))]
    for depth, label in nodes:
        del branches[depth:]
        branches.append(branches[-1].add(Text(harmless(label))))
    Console().print(branches[0])


def ask(question: str, *, declined: str) -> None:
    """Put a question on the terminal, and return if the answer is yes.

    Args:
        question: what is asked, without a question mark.
        declined: what to say if the answer is not yes.

    Raises:
        ConfigError: there is no terminal on which somebody could answer.
        Failed: the answer was something else.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError("nobody is there to be asked: give --yes where no terminal is")
    # On stderr, so that stdout has nothing but the answer of the command.
    print(f"{harmless(question)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failed(declined)


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


@contextmanager
def progress_of_each(is_silent: bool, *, rate: str | None = None) -> Iterator[Callable[[int, int, str], None] | None]:
    """Yield what shows how far each of several works is: one bar below the other, or figures without rich.

    Args:
        is_silent: as for `progress`.
        rate: the unit of how much is done in a second, shown beside each bar; None shows none.
    """
    if is_silent or not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield _print_figures
        return
    per_second = (TextColumn("{task.fields[rate]}"),) if rate else ()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *per_second, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks or (done == 0 and bars.tasks[tasks[what]].completed):
                tasks[what] = bars.add_task(harmless(what), total=None, rate="")
            task = bars.tasks[tasks[what]]
            spent = task.elapsed or 0.0
            said = f"{done / spent:,.0f} {rate}/s" if rate and spent > 0 else ""
            bars.update(task.id, completed=done, total=total or None, rate=said)

        yield show


def _print_figures(done: int, total: int, what: str) -> None:
    of_all = f"/{total}" if total else ""
    print(f"\r{harmless(what)}: {done}{of_all}", end="\n" if done >= total > 0 else "", file=sys.stderr, flush=True)
