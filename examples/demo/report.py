"""What the demo prints: one table of both sides, what was recalled, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from demo.meter import SURFACES

Outcome = Mapping[str, Any]
"""What `demo.main` returns and `--json` prints."""

_WIDTHS = (20, 22, 22, 14)  # columns of the table


def text(outcome: Outcome) -> str:
    """Return the whole report."""
    parts = (_conditions(outcome), _table(outcome), _counts(outcome), _recalled(outcome), _files(outcome))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def problems(outcome: Outcome) -> list[str]:
    """Return what must not happen on walpool and did."""
    walpool = outcome["sides"]["walpool"]
    found = [
        f"{surface}: {count['lost']} of {count['acknowledged']} acknowledged rows are lost"
        for surface, count in walpool["rows"].items()
        if count["lost"]
    ]
    stored, expected = walpool["rows"]["memory"]["rows"], walpool["memories_expected"]
    if stored < expected:
        found.append(f"memory: the crews had {expected} memories to keep, and {stored} are there")
    found += [f"storage error, {times} times: {error}" for error, times in walpool["errors"].items()]
    found += [f"failed round, {times} times: {error}" for error, times in walpool["failed_rounds"].items()]
    if not outcome["recall"]["ok"]:
        found.append("after the restart something else came back than what was stored")
    return found


def _conditions(outcome: Outcome) -> Iterator[str]:
    sides, facts = outcome["sides"].values(), outcome["environment"]
    yield f"{outcome['sides']['walpool']['workers']} worker threads; {' and '.join(_rounds(side) for side in sides)}."
    yield "A round is a flow kickoff with a crew kickoff in it (2 agents, 2 tasks, memory), and a flow kickoff that goes on"
    yield "from the stored state. The model answers from a script in no time, so that what is left is storage and CrewAI's"
    yield f"own Python; embeddings are hashed words of {facts['dims']} dims. No network."
    levels = ", ".join(f"{side['synchronous']} on {side['title']}" for side in sides)
    yield f"synchronous: {levels}; LanceDB, where CrewAI's defaults keep memory, calls no fsync at all."
    yield (
        f"crewai {facts['crewai']}, walpool {facts['walpool']}; SQLite {facts['sqlite']['default']} and"
        f" {facts['sqlite']['walpool']}; Python {facts['python']}; {facts['cores']} cores, {facts['system']}"
    )


def _rounds(side: Mapping[str, Any]) -> str:
    stopped = "" if side["rounds"] == side["rounds_asked"] else f" of {side['rounds_asked']} within the time limit"
    return f"{side['rounds']} rounds{stopped} on {side['title']}"


def _table(outcome: Outcome) -> Iterator[str]:
    default, walpool = outcome["sides"]["default"], outcome["sides"]["walpool"]
    yield _row("", default["title"], walpool["title"], "walpool")
    for name, key in (("kickoffs/s", "kickoffs_per_second"), ("storage operations/s", "operations_per_second")):
        ratio = _ratio(walpool[key], default[key], "more", "fewer")
        yield _row(name, f"{default[key]:.1f}", f"{walpool[key]:.1f}", ratio)
    yield ""
    yield _row("latency, ms", *(["p50    p99    max"] * 2), "p99")
    for surface in SURFACES:
        ours, theirs = walpool["latencies"][surface], default["latencies"][surface]
        ratio = _ratio(ours["p99_ms"], theirs["p99_ms"], "higher", "lower")
        yield _row(surface, _latencies(theirs), _latencies(ours), ratio)
    yield ""
    yield _row("lock errors", *(str(side["lock_errors"]) for side in (default, walpool)), "")
    yield _row("failed rounds", *(str(sum(side["failed_rounds"].values())) for side in (default, walpool)), "")
    yield _row("rows lost", *(_lost(side) for side in (default, walpool)), "")


def _row(name: str, *cells: str) -> str:
    columns = [cell.rjust(width) for cell, width in zip(cells, _WIDTHS[1:], strict=True)]
    return "  ".join((name.ljust(_WIDTHS[0]), *columns)).rstrip()


def _latencies(summary: Mapping[str, float]) -> str:
    return "".join(f"{_ms(summary[key]):>7}" for key in ("p50_ms", "p99_ms", "max_ms"))


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(ours: float, theirs: float, above: str, below: str) -> str:
    times, word = (ours / theirs, above) if ours >= theirs else (theirs / ours, below)
    return f"{times:.{0 if times >= 10 else 1}f}× {word}"


def _lost(side: Mapping[str, Any]) -> str:
    counts = side["rows"].values()
    return f"{sum(count['lost'] for count in counts)} of {sum(count['acknowledged'] for count in counts)}"


def _counts(outcome: Outcome) -> Iterator[str]:
    yield "Rows lost: acknowledged, and not in the database after the workers had ended without closing anything; counted"
    yield "by another process with Python's own sqlite3 and with LanceDB. CrewAI keeps one run's kickoff outputs and empties"
    yield "their table at each kickoff of any crew, on both sides: only outputs handed over after the last one must be there."


def _recalled(outcome: Outcome) -> Iterator[str]:
    recall = outcome["recall"]
    yield f"After the restart, in a new process on walpool ({'as it was stored' if recall['ok'] else 'NOT AS STORED'}):"
    for item in recall["recalled"]:
        yield f"  flow   {item['flow']} goes on: {item['text']} (filed {item['times_filed']} times)"
        yield f"  memory {item['question']!r} -> {item['memory']!r}"


def _files(outcome: Outcome) -> Iterator[str]:
    for name, path in outcome["files"].items():
        yield f"{name + ':':<10}{path}"
    yield from (f"PROBLEM: {problem}" for problem in outcome["problems"])
