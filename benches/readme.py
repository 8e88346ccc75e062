"""`python -m benches.readme RUN.json`: puts a run's table into the README. No figure stands there that no run printed.

A run is what `python -m benches.run --json RUN.json` wrote.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
MARKERS = re.compile(r"(?<=<!-- benchmarks -->\n).*?(?=<!-- /benchmarks -->)", re.DOTALL)
OURS = "walpool"


def section(run: Mapping[str, Any]) -> str:
    """Return the section for a run: where it was made, and for each workload walpool beside the fastest other."""
    facts = "; ".join(f"{name} {value}" for name, value in run["facts"].items() if name != "file system")
    file_system = str(run["facts"]["file system"]).split(" ")[0]
    rows = "".join(_row(result) for result in run["results"] if OURS in result["summary"])
    return (
        f"Measured by `python -m benches.run --quick --runs 5`: {facts}; {file_system}. Medians; the fastest other\n"
        "contender stands beside walpool, and the whole table of each workload names them all.\n\n"
        "| workload | `synchronous` | walpool | p99 | the fastest other | its p99 | walpool × |\n"
        "|---|---|---|---|---|---|---|\n"
        f"{rows}"
    )


def _row(result: Mapping[str, Any]) -> str:
    summary = result["summary"]
    figure = next(iter(summary[OURS]))  # throughput comes first
    ours = summary[OURS][figure]
    others = {name: figures for name, figures in summary.items() if name != OURS and figures.get(figure)}
    if not others:
        return ""
    best = max(others, key=lambda name: float(others[name][figure]))
    theirs = others[best][figure]
    cells = (
        result["title"],
        result["synchronous"] or "–",
        f"{ours:,.3g} {figure}" if ours < 1_000 else f"{ours:,.0f} {figure}",
        _milliseconds(summary[OURS]),
        f"{best}: {theirs:,.3g}" if theirs < 1_000 else f"{best}: {theirs:,.0f}",
        _milliseconds(others[best]),
        f"{ours / theirs:.2f}",
    )
    return "| " + " | ".join(cells) + " |\n"


def _milliseconds(figures: Mapping[str, Any]) -> str:
    value = figures.get("p99 ms")
    return "–" if value is None else f"{value:.3g} ms"


def main() -> None:
    """Rewrite the section of the README."""
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    page = README.read_text(encoding="utf-8")
    README.write_text(MARKERS.sub(lambda _: section(run), page), encoding="utf-8")


if __name__ == "__main__":
    main()
