"""The picture: p99 of each surface on a logarithmic scale, and kickoffs a second, for both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demo.meter import SURFACES
from demo.report import Outcome

_COLOURS = {"default": "#94a3b8", "walpool": "#c2410c"}
_BAR = 0.38  # of the distance between two surfaces


def save(outcome: Outcome, path: Path) -> None:
    """Draw the comparison into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sides = outcome["sides"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(2.4, 1))
    _draw_latencies(left, sides)
    _draw_kickoffs(right, sides)
    walpool, facts = sides["walpool"], outcome["environment"]
    levels = ", ".join(f"{side['synchronous']} on {side['title']}" for side in sides.values())
    figure.suptitle(f"CrewAI {facts['crewai']} in {walpool['workers']} workers, scripted model", fontsize=12)
    figure.text(
        0.01,
        0.01,
        f"synchronous: {levels} (LanceDB calls no fsync) | {facts['cores']} cores, {facts['system']}, Python"
        f" {facts['python']} | examples/demo.py",
        fontsize=7,
        color="#64748b",
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_latencies(axes: Any, sides: Any) -> None:
    for offset, (name, side) in zip((-_BAR / 2, _BAR / 2), sides.items(), strict=True):
        values = [side["latencies"][surface]["p99_ms"] for surface in SURFACES]
        rows = [row + offset for row in range(len(SURFACES))]
        bars = axes.barh(rows, values, height=_BAR, color=_COLOURS[name], label=side["title"])
        axes.bar_label(bars, labels=[_time(value) for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(SURFACES)), SURFACES)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=min(1, axes.get_xlim()[0]), right=axes.get_xlim()[1] * 2)  # room for the labels
    axes.xaxis.set_major_formatter(lambda value, _: _time(value))
    axes.set_xlabel("p99 latency (logarithmic; shorter is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9)


def _draw_kickoffs(axes: Any, sides: Any) -> None:
    titles = [side["title"] for side in sides.values()]
    values = [side["kickoffs_per_second"] for side in sides.values()]
    bars = axes.bar(titles, values, width=0.6, color=[_COLOURS[name] for name in sides])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(y=0.12)
    axes.set_ylabel("kickoffs/s (taller is better)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2g} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"
