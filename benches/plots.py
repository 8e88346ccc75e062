"""Plots of a run: for each workload the throughput and, on a logarithmic scale, the latencies of every contender."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benches.results import Result
from benches.targets import OURS

_LATENCIES = {"p50 ms": "o", "p99 ms": "s", "p99.9 ms": "^"}  # figure: marker
_OURS, _OTHERS = "#c2410c", "#94a3b8"


def save(result: Result, folder: Path, facts: Mapping[str, str]) -> list[Path]:
    """Draw one workload and return the files: an SVG and a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    throughput = result.throughput()
    if throughput is None:
        return []
    names = sorted(result.samples, key=lambda name: result.summary()[name][throughput])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.45 * len(names) + 1.8), sharey=True)
    _draw_throughput(left, result, names, throughput)
    _draw_latencies(right, result, names)
    durability = f", synchronous={result.workload.synchronous}" if result.workload.synchronous else ""
    figure.suptitle(f"{result.workload.title}{durability}", fontsize=11)
    where = f"{facts['system']}, {facts['cores']} cores, {facts['file system']}, fdatasync {facts['fdatasync']}"
    figure.text(0.01, 0.01, f"{facts['commit']} | SQLite {facts['SQLite']} | {where}", fontsize=6, color="#64748b")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{result.workload.name}.{kind}" for kind in ("svg", "png")]
    for file in files:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return files


def _draw_throughput(axes: Any, result: Result, names: list[str], throughput: str) -> None:
    summary = result.summary()
    medians = [summary[name][throughput] for name in names]
    spreads = [result.spread(name) for name in names]
    whiskers = [
        [median - low for median, (low, _) in zip(medians, spreads, strict=True)],
        [high - median for median, (_, high) in zip(medians, spreads, strict=True)],
    ]
    colours = [_OURS if name == OURS else _OTHERS for name in names]
    axes.barh(names, medians, xerr=whiskers, color=colours, ecolor="#334155", capsize=2)
    axes.set_xlabel(f"{throughput} (median, lowest to highest run)")


def _draw_latencies(axes: Any, result: Result, names: list[str]) -> None:
    summary = result.summary()
    drawn = False
    for figure, marker in _LATENCIES.items():
        points = [(summary[name].get(figure, math.nan), name) for name in names]
        points = [point for point in points if point[0] > 0]
        if points:
            drawn = True
            latencies, rows = zip(*points, strict=True)
            axes.scatter(latencies, rows, marker=marker, label=figure, s=24)
    if drawn:
        axes.set_xscale("log")
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("latency, ms")
        axes.legend(fontsize=7, loc="best")
    else:
        axes.set_axis_off()
