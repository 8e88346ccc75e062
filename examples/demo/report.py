"""What the demo prints: one table of both sides, what was recalled, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from demo.meter import SURFACES

Outcome = Mapping[str, Any]
"""What `demo.main` returns and `--json` prints."""

_WIDTHS = (20, 22, 22, 14)  # columns of the table
_WIDTH = 100  # of the text


def text(outcome: Outcome) -> str:
    """Return the whole report."""
    parts = (
        _wrapped(_CONDITIONS.format(**_facts(outcome))),
        *_table(outcome),
        _wrapped(_NOTES),
        _recalled(outcome["recall"]),
        _files(outcome),
    )
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


_CONDITIONS = (
    "{workers} worker threads; {rounds}. A round is a flow kickoff with a crew kickoff in it (2 agents, 2 tasks,"
    " memory), and one more flow kickoff that goes on from the stored state. The model answers from a script in no"
    " time, so that what is left is storage and CrewAI's own Python; embeddings are hashed words of {dims} dims. No"
    " network. synchronous: {synchronous}; LanceDB, where the defaults keep memory, calls no fsync. crewai {crewai},"
    " walpool {walpool}; SQLite {sqlite}; Python {python}; {cores} cores, {system}."
)

_NOTES = (
    "Threads in storage: how many were inside a storage call at a time, on average, waiting for its locks included."
    " The p99 of fewer than 100 calls is their maximum."
    " Rows lost: acknowledged, and not in the database after the workers had ended without closing anything; counted by"
    " another process with Python's own sqlite3 and with LanceDB. CrewAI keeps the kickoff outputs of one run and"
    " empties their table at each kickoff of any crew, on both sides: those handed over after the last time must be"
    " there."
)


def _wrapped(paragraph: str) -> list[str]:
    return wrap(paragraph, _WIDTH, break_on_hyphens=False)


def _facts(outcome: Outcome) -> dict[str, Any]:
    sides = outcome["sides"].values()
    return {
        **outcome["environment"],
        "workers": outcome["sides"]["walpool"]["workers"],
        "rounds": ", ".join(map(_rounds, sides)),
        "synchronous": ", ".join(f"{side['synchronous']} on {side['title']}" for side in sides),
        "sqlite": ", ".join(f"{side['sqlite']} on {side['title']}" for side in sides),
    }


def _rounds(side: Mapping[str, Any]) -> str:
    stopped = "" if side["rounds"] == side["rounds_asked"] else f" of {side['rounds_asked']} within the time limit"
    return f"{side['rounds']} rounds{stopped} on {side['title']}"


def _table(outcome: Outcome) -> Iterator[list[str]]:
    """Yield the rates, the latencies and the counts."""
    default, walpool = both = outcome["sides"]["default"], outcome["sides"]["walpool"]
    rates = (("kickoffs/s", "kickoffs_per_second"), ("storage operations/s", "operations_per_second"))
    yield [
        _row("", default["title"], walpool["title"], "walpool"),
        *(_rate(name, default[key], walpool[key]) for name, key in rates),
        _row("threads in storage", *(f"{side['threads_in_storage']:.1f}" for side in both), ""),
    ]
    yield [
        _row("latency, ms", *["p50    p99    max"] * 2, "p99"),
        *(_latency(surface, default["latencies"][surface], walpool["latencies"][surface]) for surface in SURFACES),
    ]
    yield [
        _row("lock errors", *(str(side["lock_errors"]) for side in both), ""),
        _row("failed rounds", *(str(sum(side["failed_rounds"].values())) for side in both), ""),
        _row("rows lost", *map(_lost, both), ""),
    ]


def _rate(name: str, theirs: float, ours: float) -> str:
    return _row(name, f"{theirs:.1f}", f"{ours:.1f}", _ratio(ours, theirs, "more", "fewer"))


def _latency(surface: str, theirs: Mapping[str, float], ours: Mapping[str, float]) -> str:
    ratio = _ratio(ours["p99_ms"], theirs["p99_ms"], "higher", "lower")
    return _row(surface, _latencies(theirs), _latencies(ours), ratio)


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


def _recalled(recall: Mapping[str, Any]) -> Iterator[str]:
    yield f"After the restart, in a new process on walpool ({'as it was stored' if recall['ok'] else 'NOT AS STORED'}):"
    for item in recall["recalled"]:
        yield f"  flow   {item['flow']}, filed {item['times_filed']} times: {item['text']}"
        yield f"  memory {item['question']!r} -> {item['memory']!r}"


def _files(outcome: Outcome) -> Iterator[str]:
    for name, path in outcome["files"].items():
        yield f"{name + ':':<10}{path}"
    yield from (f"PROBLEM: {problem}" for problem in outcome["problems"])
