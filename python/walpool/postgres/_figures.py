"""`Figures`: what a pool counts, for `stats()`, and the log of what took long. Knows nobody who counts."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from typing import Final

__all__ = ["Figures"]

_SHOWN: Final = 200
"""Characters of a statement in the log."""
_KEPT: Final = 1_000
"""Samples that a percentile is made of, the latest ones."""

COUNTED: Final = (
    "jobs",
    "jobs_failed",
    "jobs_withdrawn",
    "jobs_alone",
    "jobs_retried",
    "groups",
    "group_replays",
    "reads",
    "reads_retried",
    "leases",
    "leases_revoked",
    "connections_opened",
    "connections_lost",
    "busy_waits",
    "slow",
)
"""Counters; each is in `stats()` from the beginning."""

SAMPLED: Final = (
    "jobs_per_group",
    "job_wait_ms",
    "commit_ms",
    "group_ms",
    "groups_wait_ms",
    "readers_wait_ms",
    "writers_wait_ms",
    "lease_ms",
)
"""Sizes, of which the median and the 99th percentile of the latest are given."""


_logger = logging.getLogger("walpool")


class Figures:
    """Counters and samples, from any thread."""

    def __init__(self, name: str, slow_threshold: float) -> None:
        self._name = name  # of the database
        self._slow_threshold = slow_threshold
        self._lock = threading.RLock()  # the collector may end a group in the midst of what it guards
        self._counts: Counter[str] = Counter()
        self._samples: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in SAMPLED}

    def add(self, name: str, by: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += by

    def sample(self, name: str, value: float) -> None:
        """Remember a size."""
        self._samples[name].append(value)  # atomic: `deque` says so

    def took(self, what: str, seconds: float, sql: bytes) -> None:
        """Log what took longer than `slow_threshold`, with its SQL, never its values."""
        if seconds > self._slow_threshold:
            self.add("slow")
            text = " ".join(sql.decode().split())
            _logger.warning("slow %s: %.3f s: %s [%s]", what, seconds, text[:_SHOWN], self._name)

    def told(self, *, pop: bool) -> dict[str, int | float]:
        """Return all of it, and begin anew if it is popped."""
        with self._lock:
            counts = dict(self._counts)
            samples = {name: sorted(values) for name, values in self._samples.items()}
            if pop:
                self._counts.clear()
                for values in self._samples.values():
                    values.clear()
        told: dict[str, int | float] = {name: counts.pop(name, 0) for name in COUNTED}
        told.update(counts)  # the errors, by class
        for name, ordered in samples.items():
            told[f"{name}_p50"] = _percentile(ordered, 0.5)
            told[f"{name}_p99"] = _percentile(ordered, 0.99)
        return told


def _percentile(ordered: list[float], share: float) -> float:
    return round(ordered[int(share * (len(ordered) - 1))], 3) if ordered else 0
