"""What walpool set out to reach, as data, and whether a run reached it. Pure: no clock, no database.

A target reads the medians of every contender of one workload and answers with a verdict; it is printed under the
table, met or not. Nothing else looks at it: a missed target fails no test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

Figures = Mapping[str, float]
OURS = "walpool"


@dataclass(frozen=True)
class Medians:
    """What there is to judge."""

    figures: Mapping[str, Figures]  # by contender; one that did not run is absent
    fsync_ms: float  # the median time of one fdatasync on the disk of this run

    def known(self, contender: str, figure: str) -> float | None:
        """Return a figure of a contender; None if it did not run or had too few operations to tell."""
        value = self.figures.get(contender, {}).get(figure, math.nan)
        return None if math.isnan(value) else value


@dataclass(frozen=True)
class Verdict:
    """One line under a table: what was wanted, what was measured, and if that is enough (None: for information)."""

    text: str
    measured: float
    met: bool | None


class Target(Protocol):
    """Something that a workload should reach."""

    def verdict(self, medians: Medians) -> Verdict | None:
        """Judge one workload; None if a contender that is needed for it did not run."""


@dataclass(frozen=True)
class Faster:
    """Our throughput is at least `times` that of the best of the contenders in `than`."""

    times: float
    than: tuple[str, ...]
    figure: str = "ops/s"

    def verdict(self, medians: Medians) -> Verdict | None:
        ours = medians.known(OURS, self.figure)
        others = {name: value for name in self.than if (value := medians.known(name, self.figure)) is not None}
        if ours is None or not others:
            return None
        best = max(others, key=others.__getitem__)
        ratio = ours / others[best] if others[best] else math.inf
        return Verdict(f"{self.figure} at least {self.times:g} times {best}", ratio, ratio >= self.times)


@dataclass(frozen=True)
class LowerLatency:
    """A latency of `than` is at least `times` ours."""

    times: float
    than: str
    figure: str = "p99 ms"

    def verdict(self, medians: Medians) -> Verdict | None:
        ours, theirs = medians.known(OURS, self.figure), medians.known(self.than, self.figure)
        if ours is None or theirs is None:
            return None
        ratio = theirs / ours if ours else math.inf
        return Verdict(
            f"{self.figure} at least {self.times:g} times lower than {self.than}", ratio, ratio >= self.times
        )


@dataclass(frozen=True)
class AtMost:
    """A figure of ours is at most `limit`, which may depend on the disk's fdatasync (milliseconds)."""

    figure: str
    limit: float | Callable[[float], float]

    def verdict(self, medians: Medians) -> Verdict | None:
        ours = medians.known(OURS, self.figure)
        if ours is None:
            return None
        limit = self.limit(medians.fsync_ms) if callable(self.limit) else self.limit
        return Verdict(f"{self.figure} at most {limit:.4g}", ours, ours <= limit)


@dataclass(frozen=True)
class AtLeast:
    """A figure of ours is at least `limit`."""

    figure: str
    limit: float

    def verdict(self, medians: Medians) -> Verdict | None:
        ours = medians.known(OURS, self.figure)
        return None if ours is None else Verdict(f"{self.figure} at least {self.limit:g}", ours, ours >= self.limit)


@dataclass(frozen=True)
class AheadOfSteady:
    """Our throughput is above that of every contender whose p99.9 stays under `p999_ms`."""

    p999_ms: float
    figure: str = "ops/s"

    def verdict(self, medians: Medians) -> Verdict | None:
        ours = medians.known(OURS, self.figure)
        steady = {
            name: figures[self.figure]
            for name, figures in medians.figures.items()
            if name != OURS and figures["p99.9 ms"] < self.p999_ms
        }
        if ours is None or not steady:
            return None
        best = max(steady, key=steady.__getitem__)
        ratio = ours / steady[best]
        text = f"{self.figure} ahead of each with p99.9 under {self.p999_ms:g} ms, of which {best} is the best"
        return Verdict(text, ratio, ratio > 1.0)


@dataclass(frozen=True)
class Published:
    """A figure that someone else published, to stand beside ours; another machine, so for information."""

    value: float
    whose: str
    figure: str

    def verdict(self, medians: Medians) -> Verdict | None:
        ours = medians.known(OURS, self.figure)
        if ours is None:
            return None
        return Verdict(f"{self.value:,.0f} {self.figure} were published for {self.whose}; ours", ours, None)
