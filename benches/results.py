"""Medians, spread and verdicts over the runs of a workload. Pure: nothing is measured and nothing printed here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benches.harness import Sample, Workload
from benches.targets import OURS, Medians, Verdict

NOISE_CORES = 0.2  # more than this, used by other processes, is reported: it moves figures, not only their spread
_WORST = ("max ms", "query max ms", "save max ms", "lag max ms")  # over all runs; a median would hide them


@dataclass
class Result:
    """All runs of one workload."""

    workload: Workload
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # by contender
    skipped: dict[str, str] = field(default_factory=dict)  # the reason, by contender
    noise: list[float] = field(default_factory=list)  # how many cores other processes used, of each run

    def add(self, contender: str, sample: Sample, others_cores: float = math.nan) -> None:
        """Keep one more run, during which other processes used `others_cores`; NaN where that is not known."""
        self.samples.setdefault(contender, []).append(sample)
        if not math.isnan(others_cores):
            self.noise.append(others_cores)

    def disturbed(self) -> tuple[int, float] | None:
        """Return how many runs other processes took part of a core from, and the most; None if there were none."""
        disturbed = [cores for cores in self.noise if cores > NOISE_CORES]
        return (len(disturbed), max(disturbed)) if disturbed else None

    def throughput(self) -> str | None:
        """Return the name of the figure that stands for throughput; None if nothing ran."""
        return next((next(iter(runs[0].figures)) for runs in self.samples.values()), None)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return each contender's figures: medians over the runs; the worst of a maximum, the sum of errors."""
        return {name: self._summarize(runs) for name, runs in self.samples.items()}

    @staticmethod
    def _summarize(runs: list[Sample]) -> dict[str, float]:
        figures = {}
        for name in runs[0].figures:
            values = [run.figures[name] for run in runs]
            figures[name] = max(values) if name in _WORST else _median(values)
        return figures | {"errors": float(sum(run.errors.total() for run in runs))}

    def spread(self, contender: str) -> tuple[float, float]:
        """Return the lowest and the highest throughput of a contender's runs."""
        values = [next(iter(run.figures.values())) for run in self.samples[contender]]
        return min(values), max(values)

    def ahead(self) -> dict[str, float]:
        """Return our throughput over theirs for each contender that is faster than we are."""
        name, summary = self.throughput(), self.summary()
        ours = summary.get(OURS, {}).get(name or "", math.nan)
        return {who: ours / theirs[name] for who, theirs in summary.items() if name and theirs[name] > ours}

    def verdicts(self, fsync_ms: float) -> list[Verdict]:
        """Return what became of the workload's targets; those whose contenders did not run are left out."""
        medians = Medians(self.summary(), fsync_ms)
        found = (target.verdict(medians) for target in self.workload.targets)
        return [verdict for verdict in found if verdict is not None]

    def errors(self) -> dict[str, Counter[str]]:
        """Return the errors of each contender that had any, by their text."""
        sums = {name: sum((run.errors for run in runs), Counter[str]()) for name, runs in self.samples.items()}
        return {name: errors for name, errors in sums.items() if errors}

    def wrong(self) -> list[str]:
        """Return what the checks of the databases found; empty if all is right."""
        return [f"{name}: {text}" for name, runs in self.samples.items() for run in runs for text in run.wrong]

    def as_json(self, fsync_ms: float) -> Mapping[str, Any]:
        """Return everything, ready for `json.dump`."""
        return {
            "workload": self.workload.name,
            "title": self.workload.title,
            "synchronous": self.workload.synchronous,
            "runs": {name: [_plain(run.figures) for run in runs] for name, runs in self.samples.items()},
            "summary": {name: _plain(figures) for name, figures in self.summary().items()},
            "errors": {name: dict(errors) for name, errors in self.errors().items()},
            "wrong": self.wrong(),
            "skipped": self.skipped,
            "noise_cores": self.noise,
            "targets": [vars(verdict) for verdict in self.verdicts(fsync_ms)],
        }


def _median(values: list[float]) -> float:
    """Return the median of what is known of `values`; NaN where that is not most of them."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if len(known) * 2 > len(values) else math.nan


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures without NaN and infinity, which JSON does not know."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
