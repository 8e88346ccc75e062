"""Printing: the header, a table for each workload, the summary. With rich where it is installed, else as plain text."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benches.results import Result
from benches.targets import OURS, Verdict

try:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ImportError:
    RICH = False
else:
    RICH = True


def number(value: float) -> str:
    """Return a figure with three significant digits, or whole from 100 on."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Report:
    """Where results go that people read."""

    def __init__(self) -> None:
        # A file or a pipe has no width: then the tables take the room that they need.
        self.console: Any = Console(highlight=False, width=None if sys.stdout.isatty() else 160) if RICH else None

    def header(self, facts: Mapping[str, str]) -> None:
        """Print what was measured on."""
        width = max(map(len, facts))
        self._lines(f"{name:{width}}  {value}" for name, value in facts.items())

    def result(self, result: Result, fsync_ms: float) -> None:
        """Print one workload: its table, then its targets, then whatever went wrong."""
        workload = result.workload
        durability = f", synchronous={workload.synchronous}" if workload.synchronous else ""
        self._table(f"{workload.name}: {workload.title}{durability}", *table(result))
        self._lines(verdict_line(verdict) for verdict in result.verdicts(fsync_ms))
        self._lines(f"  skipped  {name}: {reason}" for name, reason in result.skipped.items())
        self._lines(error_lines(result))
        self._lines(noise_lines(result))
        self._lines(f"  WRONG    {text}" for text in result.wrong())

    def summary(self, results: Sequence[Result], fsync_ms: float) -> None:
        """Print which targets were missed and where another contender is faster than walpool."""
        judged = [(r.workload.name, v) for r in results for v in r.verdicts(fsync_ms) if v.met is not None]
        if judged:
            self._lines(["", f"{sum(bool(v.met) for _, v in judged)} of {len(judged)} targets met"])
        self._lines(f"  missed   {name}: {verdict_text(verdict)}" for name, verdict in judged if not verdict.met)
        for result in results:
            for who, ratio in result.ahead().items():
                self._lines([f"  slower   {result.workload.name}: walpool has {ratio:.2f} of {who}"])

    def _lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            if RICH:
                self.console.print(escape(line), soft_wrap=True)
            else:
                print(line)

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not rows:  # a table as narrow as its one column would cut the title up
            self._lines(["", title])
            return
        if not RICH:
            self._lines(["", title, *plain_table(columns, rows)])
            return
        printed = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
        for column in columns:
            printed.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
        for row in rows:
            printed.add_row(*row, style="bold" if row[0] == OURS else None)
        self.console.print()
        self.console.print(printed)


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a workload's table, the fastest contender first."""
    summary, throughput = result.summary(), result.throughput()
    if throughput is None:
        return ["contender"], []
    others = [name for name in next(iter(summary.values())) if name != throughput]
    ours = summary.get(OURS, {}).get(throughput, math.nan)
    rows = []
    for name, figures in sorted(summary.items(), key=lambda item: -item[1][throughput]):
        low, high = result.spread(name)
        ratio = ours / figures[throughput] if figures[throughput] else math.inf
        head = [name, number(figures[throughput]), f"{number(low)} – {number(high)}", f"{ratio:.2f}"]
        rows.append(head + [number(figures[other]) for other in others])
    return ["contender", throughput, "range", "walpool ×", *others], rows


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as aligned lines."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    head, *body = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (columns, *rows)
    )
    return [head, "-" * len(head), *body]


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in one line."""
    return f"{verdict.text}: {number(verdict.measured)}"


def verdict_line(verdict: Verdict) -> str:
    """Return a verdict in one line, with what became of it."""
    word = {True: "met", False: "MISSED", None: "beside"}[verdict.met]
    return f"  {word:8} {verdict_text(verdict)}"


def noise_lines(result: Result) -> list[str]:
    """Return a warning if other processes were at work during the runs."""
    disturbed = result.disturbed()
    if disturbed is None:
        return []
    runs, most = disturbed
    return [f"  noise    other processes were at work in {runs} of {len(result.noise)} runs, on up to {most:.1f} cores"]


def error_lines(result: Result) -> list[str]:
    """Return the three most frequent errors of each contender that had any."""
    return [
        f"  errors   {name}: {count} times {text}"
        for name, errors in result.errors().items()
        for text, count in errors.most_common(3)
    ]
