"""`python -m benches.readme RUN.json [NAME]`: puts a run's table into the README.

No figure stands there that no run printed: a run is what `python -m benches.run --json RUN.json` wrote. Without a name
the table of the engine is replaced, which shows walpool beside the fastest other contender; with one (`memory`) the
section of that name, which shows every figure of every contender.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
SKIPPED = ("range", "walpool ×", "errors")  # columns of the printed tables that the page does without
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


def tables(run: Mapping[str, Any]) -> str:
    """Return a table for each workload of a run: every contender with all its figures."""
    facts = "; ".join(f"{name} {value}" for name, value in run["facts"].items() if name != "file system")
    return f"Measured with {facts}. Medians.\n\n" + "\n".join(map(_table, run["results"]))


def _table(result: Mapping[str, Any]) -> str:
    summary: Mapping[str, Mapping[str, Any]] = result["summary"]
    columns = list(dict.fromkeys(name for figures in summary.values() for name in figures if name not in SKIPPED))
    head = [result["title"], *columns]
    rows = [head, ["---"] * len(head)]
    rows += [[who, *(_figure(figures.get(name)) for name in columns)] for who, figures in summary.items()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _figure(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def main() -> None:
    """Rewrite a section of the README."""
    run = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    name = "".join(f" {name}" for name in sys.argv[2:3])
    markers = re.compile(f"(?<=<!-- benchmarks{name} -->\n).*?(?=<!-- /benchmarks{name} -->)", re.DOTALL)
    made = tables(run) if name else section(run)
    README.write_text(markers.sub(lambda _: made, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
