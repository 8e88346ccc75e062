"""Timing: threads or tasks that start together, the latency of each operation, and what stands beside them.

Owns clocks, barriers and percentiles. Must not know SQLite or any contender.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

Operation = Callable[[int], object]  # called with 0, 1, 2, ...; 0 is the warm-up
AsyncOperation = Callable[[int], Awaitable[object]]

_NS = 1_000_000_000
_FASTEST_NS = 2_000  # no call into a database takes less: the length of the preallocated lists follows from it


@dataclass(frozen=True)
class Timing:
    """What some threads or tasks measured in one run; their warm-up is in `acknowledged` and `errors` alone."""

    latencies_ns: Sequence[int]  # ascending, of successes and failures
    per_second: float  # successes inside the window; of one that reaches over its end, the share that lies inside
    acknowledged: int  # every success
    errors: Counter[str] = field(default_factory=Counter)
    each: Sequence[float] = ()  # what each worker has of `per_second`; empty where rounds were run

    def figures(self) -> dict[str, float]:
        """Return throughput and latencies under the names that the tables use."""
        shares = {"p50 ms": 50.0, "p99 ms": 99.0, "p99.9 ms": 99.9, "max ms": 100.0}
        latencies = {name: percentile(self.latencies_ns, share) / 1e6 for name, share in shares.items()}
        return {"ops/s": self.per_second} | latencies


def percentile(ascending: Sequence[int], share: float) -> float:
    """Return the value that `share` per cent do not exceed (nearest rank).

    NaN if there are too few to tell: a thousand are needed for 99.9, a hundred for 99; 50 and 100 need one.
    """
    count = len(ascending)
    needed = round(100 / (100 - share)) if 50 < share < 100 else 1
    return ascending[max(0, math.ceil(count * share / 100 - 1e-9) - 1)] if count >= needed else math.nan


class _Clock:
    """The common start, set by the barrier's action while every worker stands at the barrier."""

    def __init__(self, window_s: float) -> None:
        self.window_ns = int(window_s * _NS)
        self.deadline = 0

    def start(self) -> None:
        self.deadline = time.perf_counter_ns() + self.window_ns


class _Log:
    """What one worker saw. Latencies go into a preallocated array: an operation leaves no object behind."""

    def __init__(self, window_s: float, fastest_ns: int = _FASTEST_NS) -> None:
        self.latencies = array("q", [0]) * (100_000 + int(window_s * _NS) // fastest_ns)
        self.finished = 0  # operations measured
        self.in_window = 0.0  # successes
        self.acknowledged = 0
        self.errors: Counter[str] = Counter()

    def note(self, error: Exception) -> None:
        self.errors[_text(error)] += 1

    def close(self, finished: int, failures: int, over_ns: int) -> None:
        """Take the worker's counts; its last operation ended `over_ns` after the window."""
        self.finished = finished
        self.acknowledged += finished - failures
        # Not whole: where an operation takes as long as the window, how many end inside it is a matter of luck.
        outside = min(1.0, over_ns / max(1, self.latencies[finished - 1]))
        self.in_window = max(0.0, finished - failures - outside)


def run_threads(operations: Sequence[Operation], window_s: float) -> Timing:
    """Run each operation over and over in a thread of its own for `window_s` seconds.

    Every thread calls its operation once beforehand, unmeasured, so that connections are open and statements prepared.
    What was begun in the window is measured to its end, so a caller that starves shows in the latencies.
    """
    clock = _Clock(window_s)
    barrier = threading.Barrier(len(operations), action=clock.start)
    logs = [_Log(window_s) for _ in operations]
    with ThreadPoolExecutor(len(operations), thread_name_prefix="bench-worker") as threads:
        pairs = zip(operations, logs, strict=True)
        running = [threads.submit(_work, operation, log, barrier, clock) for operation, log in pairs]
    for future in running:
        future.result()
    return _timing(logs, window_s)


def _work(operation: Operation, log: _Log, barrier: threading.Barrier, clock: _Clock) -> None:
    try:
        operation(0)
        log.acknowledged = 1
    except Exception as error:  # noqa: BLE001 - counted, and the run goes on
        log.note(error)
    barrier.wait()
    now, latencies, deadline = time.perf_counter_ns, log.latencies, clock.deadline
    failures = 0
    start = now()
    for slot in range(len(latencies)):
        try:
            operation(slot + 1)
        except Exception as error:  # noqa: BLE001 - counted, and the run goes on
            log.note(error)
            failures += 1
        end = now()
        latencies[slot] = end - start
        start = end
        if end >= deadline:
            return log.close(slot + 1, failures, end - deadline)
    raise OverflowError(f"more than {len(latencies)} operations in the window: lower _FASTEST_NS")


def run_in_turn(operations: Mapping[str, Operation], window_s: float, *, least: int) -> dict[str, Timing]:
    """Call each operation once in turn, over and over, in this thread, so that what drifts meets all of them.

    There are as many turns as fit into `window_s`, but at least `least`; one before them warms up, unmeasured.
    `per_second` is what an operation alone would do: its calls over the time that they took.
    """
    latencies: dict[str, list[int]] = {name: [] for name in operations}
    errors: dict[str, Counter[str]] = {name: Counter() for name in operations}
    now = time.perf_counter_ns
    deadline = 0
    for number in itertools.count():
        for name, operation in operations.items():
            start = now()
            try:
                operation(number)
            except Exception as error:  # noqa: BLE001 - counted, and the run goes on
                errors[name][_text(error)] += 1
            latencies[name].append(now() - start)
        if number == 0:
            deadline = now() + int(window_s * _NS)
        elif number >= least and now() >= deadline:
            break
    return {name: _in_turn(latencies[name][1:], errors[name]) for name in operations}


def _in_turn(latencies: list[int], errors: Counter[str]) -> Timing:
    successes = len(latencies) + 1 - errors.total()
    return Timing(sorted(latencies), min(successes, len(latencies)) * _NS / sum(latencies), successes, errors)


async def run_tasks(
    operations: Sequence[AsyncOperation],
    window_s: float,
    heartbeat: Heartbeat | None = None,
    fastest_ns: int = _FASTEST_NS,
) -> Timing:
    """Do what `run_threads` does with one asyncio task for each operation, on the running loop.

    Args:
        operations: the tasks' work.
        window_s: how long, in seconds.
        heartbeat: beats from the start of the window until the last operation has ended.
        fastest_ns: no operation takes less; longer ones need less room for their latencies.
    """
    clock = _Clock(window_s)
    logs = [_Log(window_s, fastest_ns) for _ in operations]
    gate = _Gate()
    pairs = zip(operations, logs, strict=True)
    tasks = [asyncio.create_task(_work_async(operation, log, gate, clock)) for operation, log in pairs]
    for _ in tasks:
        await gate.warm.acquire()
    clock.start()
    gate.open.set()
    async with heartbeat or contextlib.nullcontext():
        await asyncio.gather(*tasks)
    return _timing(logs, window_s)


class Heartbeat:
    """A task that should run every 5 ms, as a health check would be asked: how late it runs is the loop's lag.

    Beats are due at fixed times: a loop that stands still is late for each beat that falls into its pause. A beat is up
    to a millisecond late on an idle loop too, which is how finely asyncio's timers tell time.
    """

    period_s = 0.005

    def __init__(self) -> None:
        self._lags_ns: list[int] = []
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._beating = asyncio.create_task(self._beat())

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    def figures(self) -> dict[str, float]:
        """Return the lag's percentiles in milliseconds, under the names that the tables use."""
        shares = {"lag p50 ms": 50.0, "lag p99 ms": 99.0, "lag max ms": 100.0}
        lags = sorted(self._lags_ns)
        return {name: percentile(lags, share) / 1e6 for name, share in shares.items()}

    async def _beat(self) -> None:
        period = int(self.period_s * _NS)
        due = time.perf_counter_ns() + period
        while True:
            await asyncio.sleep(max(0, due - time.perf_counter_ns()) / _NS)
            now = time.perf_counter_ns()
            for beat in range(due, now + 1, period):
                self._lags_ns.append(now - beat)
                due = beat + period


class _Gate:
    """What `asyncio.Barrier` would be, on Python 3.10 too: each task reports itself warm, then waits for the start."""

    def __init__(self) -> None:
        self.warm = asyncio.Semaphore(0)
        self.open = asyncio.Event()


async def _work_async(operation: AsyncOperation, log: _Log, gate: _Gate, clock: _Clock) -> None:
    try:
        await operation(0)
        log.acknowledged = 1
    except Exception as error:  # noqa: BLE001 - counted, and the run goes on
        log.note(error)
    gate.warm.release()
    await gate.open.wait()
    now, latencies, deadline = time.perf_counter_ns, log.latencies, clock.deadline
    failures = 0
    start = now()
    for slot in range(len(latencies)):
        try:
            await operation(slot + 1)
        except Exception as error:  # noqa: BLE001 - counted, and the run goes on
            log.note(error)
            failures += 1
        end = now()
        latencies[slot] = end - start
        start = end
        if end >= deadline:
            return log.close(slot + 1, failures, end - deadline)
    raise OverflowError(f"more than {len(latencies)} operations in the window: lower _FASTEST_NS")


def _timing(logs: Sequence[_Log], window_s: float) -> Timing:
    latencies = array("q")
    errors: Counter[str] = Counter()
    for log in logs:
        latencies.extend(log.latencies[: log.finished])
        errors.update(log.errors)
    each = [log.in_window / window_s for log in logs]
    return Timing(sorted(latencies), sum(each), sum(log.acknowledged for log in logs), errors, each)


def run_rounds(saves: Sequence[Operation], window_s: float, *, least: int) -> Timing:
    """Run rounds in which every worker calls its `save` once, all of them together; a round is what is timed.

    A round lasts from the first worker's start to the last one's end. There are as many as fit into `window_s`, but at
    least `least`; one before them warms up. `per_second` and `latencies_ns` count rounds, `acknowledged` counts saves.
    """
    rounds = _Rounds(len(saves), window_s, least)
    barrier = threading.Barrier(len(saves), action=rounds.turn)
    with ThreadPoolExecutor(len(saves), thread_name_prefix="bench-worker") as threads:
        running = [threads.submit(_take_part, save, worker, rounds, barrier) for worker, save in enumerate(saves)]
    acknowledged, errors = 0, Counter[str]()
    for future in running:
        successes, failures = future.result()
        acknowledged += successes
        errors.update(failures)
    return rounds.timing(acknowledged, errors)


class _Rounds:
    """The rounds of one run: times them, and decides, while every worker stands at the barrier, if another follows."""

    def __init__(self, workers: int, window_s: float, least: int) -> None:
        self.begun, self.ended = [0] * workers, [0] * workers  # of the round that runs, by worker
        self.done = False
        self._latencies: list[int] = []
        self._window_ns, self._least = int(window_s * _NS), least
        self._deadline: int | None = None

    def turn(self) -> None:
        now = time.perf_counter_ns()
        if self._deadline is None:
            self._deadline = now + self._window_ns
        else:
            self._latencies.append(max(self.ended) - min(self.begun))
        self.done = now >= self._deadline and len(self._latencies) >= self._least

    def timing(self, acknowledged: int, errors: Counter[str]) -> Timing:
        per_second = len(self._latencies) * _NS / sum(self._latencies)
        return Timing(sorted(self._latencies), per_second, acknowledged, errors)


def _take_part(save: Operation, worker: int, rounds: _Rounds, barrier: threading.Barrier) -> tuple[int, Counter[str]]:
    acknowledged, errors = 0, Counter[str]()
    for number in itertools.count():
        rounds.begun[worker] = time.perf_counter_ns()
        try:
            save(number)
            acknowledged += 1
        except Exception as error:  # noqa: BLE001 - counted, and the run goes on
            errors[_text(error)] += 1
        rounds.ended[worker] = time.perf_counter_ns()
        barrier.wait()
        if rounds.done:
            break
    return acknowledged, errors


async def run_rounds_of_tasks(saves: Sequence[AsyncOperation], window_s: float, *, least: int) -> Timing:
    """Do what `run_rounds` does with one asyncio task for each `save`, on the running loop."""
    rounds = _Rounds(1, window_s, least)
    acknowledged, errors = 0, Counter[str]()
    for number in itertools.count():
        rounds.begun[0] = time.perf_counter_ns()
        answers = await asyncio.gather(*(save(number) for save in saves), return_exceptions=True)
        rounds.ended[0] = time.perf_counter_ns()
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        errors.update(_text(error) for error in failures)
        acknowledged += len(answers) - len(failures)
        rounds.turn()
        if rounds.done:
            break
    return rounds.timing(acknowledged, errors)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class BusyThread:
    """A Python thread that computes without a pause."""

    def __init__(self) -> None:
        self.per_second = math.nan  # turns of its loop; known when it has stopped
        self._stop = False
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="bench-busy")

    def start(self) -> None:
        self._thread.start()
        self._running.wait()

    def stop(self) -> None:
        self._stop = True
        self._thread.join()

    def _spin(self) -> None:
        self._running.set()
        turns, total = 0, 0
        begun = time.perf_counter()
        while not self._stop:
            for number in range(1_000):
                total += number
            turns += 1_000
        self.per_second = turns / (time.perf_counter() - begun)


@contextlib.contextmanager
def busy_thread() -> Iterator[BusyThread]:
    """Keep a Python thread busy while the block runs; afterwards its `per_second` is how fast it was."""
    thread = BusyThread()
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
