"""What the jobs stored, counted without walpool, and what the demonstration prints."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from backup_engine.app import CHUNK_BYTES, CHUNKS, ROWS

LOCK_ERRORS = ("BusyError", "CheckoutTimeout", "WriteTimeout", "QueueFull")

_STORED = """
SELECT s.id, s.packs, s.bytes, count(p.id), coalesce(sum(c.chunks), 0) FROM snapshots AS s
LEFT JOIN packs AS p ON p.snapshot_id = s.id
LEFT JOIN (SELECT pack_id, count(DISTINCT content_hash) AS chunks FROM chunks GROUP BY pack_id) AS c ON c.pack_id = p.id
GROUP BY s.id
"""


def count(database: str, jobs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many rows the jobs were told are committed, and how many of those are not in the database."""
    with closing(_connect(database)) as conn:
        stored = {row[0]: row[1:] for row in conn.execute(_STORED)}
    acknowledged = missing = 0
    for job in jobs:
        wanted = job["packs_done"]
        totals, size, packs, chunks = stored.get(job["snapshot"], (0, 0, 0, 0))
        acknowledged += wanted * ROWS
        missing += max(0, wanted - packs) + max(0, wanted * CHUNKS - chunks)
        missing += max(0, wanted - totals, wanted - size // (CHUNKS * CHUNK_BYTES))  # updates of its snapshot
    return {"rows_acknowledged": acknowledged, "rows_missing": missing}


def _connect(database: str) -> Any:
    if "://" not in database:
        return sqlite3.connect(database)
    import psycopg

    return psycopg.connect(database)


def problems(outcome: Mapping[str, Any]) -> list[str]:
    """Return what must not happen and did."""
    found = []
    if outcome["rows_missing"]:
        found.append(f"{outcome['rows_missing']} of {outcome['rows_acknowledged']} acknowledged rows are missing")
    errors = Counter(job["error"] for job in outcome["jobs"] if job["state"] != "done")
    found += [f"{times} jobs failed with {error}" for error, times in errors.items()]
    health = outcome["health"]
    if health["unanswered"] or not health["asked"]:
        found.append(f"/health did not answer {health['unanswered']} times of {health['asked']}")
    return found


def text(outcome: Mapping[str, Any]) -> str:
    """Return the table."""
    width = max(len(name) for name, _ in _lines(outcome))
    lines = [f"{name:<{width}}  {value:>24}" for name, value in _lines(outcome)]
    return "\n".join(lines + [f"PROBLEM: {problem}" for problem in outcome["problems"]]) + "\n"


def _lines(outcome: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    jobs, health = outcome["jobs"], outcome["health"]
    seconds = [job["seconds"] for job in jobs if job["seconds"] is not None]
    yield "jobs, packs of each", f"{len(jobs)}, {jobs[0]['packs']}"
    yield "rows/s", f"{outcome['rows_per_second']:,.0f}"
    latencies = [f"{health[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms") if key in health]
    yield "/health p50, p99, max ms", " ".join(latencies)
    yield "/health answered", f"{health['asked'] - health['unanswered']} of {health['asked']}"
    yield "fastest, slowest job s", f"{min(seconds):.2f} {max(seconds):.2f}"
    yield "lock errors", str(sum(job["error"] in LOCK_ERRORS for job in jobs))
    acknowledged, missing = outcome["rows_acknowledged"], outcome["rows_missing"]
    yield "rows in the database", f"{acknowledged - missing:,} of {acknowledged:,}"
