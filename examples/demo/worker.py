"""One side, in a process of its own: sixteen threads, rounds of work, what was measured and acknowledged.

    python -m demo.worker SIDE FOLDER ROUNDS WORKERS LIMIT

The storage lies in `CREWAI_STORAGE_DIR`. Standard output carries one line of JSON for each step of the progress, then
one with the path of the result; everything that CrewAI and its libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from demo.meter import Meter
from demo.sides import SIDES


def main() -> None:
    """Run one side and end without closing anything: what was acknowledged is on disk, or is counted as lost."""
    messages = keep_standard_output_for_messages()
    name, folder, rounds, workers, limit = sys.argv[1:]
    result = _run(name, int(rounds), int(workers), float(limit), lambda message: _tell(messages, message))
    path = Path(folder, f"{name}.json")
    path.write_text(json.dumps(result))
    _tell(messages, {"result": str(path)})
    # No handler at exit, no destructor, no last flush of anybody's: as if the process had crashed here.
    os._exit(0)


def _run(name: str, rounds: int, workers: int, limit: float, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    side = SIDES[name]
    storage = Path(os.environ["CREWAI_STORAGE_DIR"])
    side.install()
    workload = import_module("demo.workload")  # not before: its flow class takes its store when it is decorated
    meter = Meter()
    meter.watch(*side.classes())
    shift = _Shift(workload.run_round, rounds, workers, limit, tell)
    shift.finished.append(workload.run_round("the warm-up"))  # imports what is imported lazily, makes the tables
    # What CrewAI has imported stays out of collections: they would walk 300 000 objects, again and again, and the 0.2 s
    # that this takes would be charged to whatever storage call they interrupt.
    gc.freeze()
    tell({"rounds": 0})
    meter.restart()
    seconds = shift.run()
    done = len(shift.finished) - 1
    if not done:
        raise RuntimeError(f"no round ended well: {dict(shift.failed)}")
    return {
        "side": name,
        "title": side.title,
        "rounds": done,
        "rounds_asked": rounds,
        "workers": workers,
        "seconds": seconds,
        "kickoffs": done * workload.KICKOFFS_PER_ROUND,
        "kickoffs_per_second": done * workload.KICKOFFS_PER_ROUND / seconds,
        "operations": meter.operations(),
        "operations_per_second": meter.operations() / seconds,
        "threads_in_storage": meter.busy() / seconds,
        "latencies": meter.latencies(),
        "lock_errors": meter.lock_errors,
        "errors": dict(meter.errors),
        "failed_rounds": dict(shift.failed),
        "synchronous": side.synchronous(storage),
        "sqlite": side.sqlite_version(),
        "versions": {name: version(name) for name in ("crewai", "walpool")},
        "dims": import_module("offline").DIMS,
        "memories_expected": len(shift.finished) * workload.MEMORIES_PER_ROUND,
        "reports": [report.model_dump() for report in shift.finished],
        "acknowledged": asdict(meter.ledger),
    }


class _Shift:
    """Rounds of work for some threads; no new one is begun once the time is up."""

    def __init__(
        self,
        run_round: Callable[[str], Any],
        rounds: int,
        workers: int,
        limit: float,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.finished: list[Any] = []
        self.failed: Counter[str] = Counter()
        self._run_round = run_round
        self._topics = iter([f"topic {number}" for number in range(rounds)])
        self._workers = workers
        self._limit = limit
        self._tell = tell
        self._ended = 0
        self._deadline = 0.0
        self._start = threading.Barrier(workers + 1)
        self._lock = threading.Lock()  # guards all that changes; held while the progress is told, so that it only grows

    def run(self) -> float:
        """Run the rounds; return the seconds from the common start to the end of the last one."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="worker") as threads:
            running = [threads.submit(self._work) for _ in range(self._workers)]
            begun = time.perf_counter()
            self._deadline = begun + self._limit
            self._start.wait()
            for future in running:
                future.result()
            return time.perf_counter() - begun

    def _work(self) -> None:
        self._start.wait()
        while (topic := self._next()) is not None:
            try:
                report = self._run_round(topic)
            except Exception as error:  # noqa: BLE001 - counted and reported, and the others go on
                self._note(None, f"{type(error).__name__}: {error}")
            else:
                self._note(report, "")

    def _next(self) -> str | None:
        with self._lock:
            return next(self._topics, None) if time.perf_counter() < self._deadline else None

    def _note(self, report: Any, failure: str) -> None:
        with self._lock:
            if failure:
                self.failed[failure] += 1
            else:
                self.finished.append(report)
            self._ended += 1
            self._tell({"rounds": self._ended})


def keep_standard_output_for_messages() -> TextIO:
    """Return what standard output was, and send there whatever anybody prints, in C and Rust too, to standard error."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return messages


def _tell(messages: TextIO, message: dict[str, Any]) -> None:
    messages.write(json.dumps(message) + "\n")
    messages.flush()


if __name__ == "__main__":
    main()
