"""What the engine's tests do to the world around a pool: wait for it, queue jobs in order, run other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import walpool
from walpool import schema

T = TypeVar("T")

WITHIN = 20.0  # seconds in which anything that is waited for must have come; reached only by a test that fails

# About 5 ms of SQLite's time for each 100 000: statements that run for long without writing a test file to match.
COUNT_TO = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT count(*) FROM n"
FOREVER = 10**12

# Holds the file's write lock until its standard input ends.
LOCKING_PROCESS = """
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1], isolation_level=None)
    conn.execute("BEGIN " + sys.argv[2])
    print("locked", flush=True)
    sys.stdin.read()
"""


def eventually(condition: Callable[[], bool], *, within: float = WITHIN) -> None:
    """Return once `condition()` holds, for what has no event to wait for.

    Raises:
        AssertionError: it did not within `within` seconds.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        os.sched_yield()


class Caller:
    """A thread that makes one call and keeps what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._outcome: object = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread by `outcome`
            self._outcome = error

    def outcome(self) -> Any:
        """Return what the call returned or raised."""
        self.thread.join(WITHIN)
        assert not self.thread.is_alive(), "the call did not return"
        return self._outcome

    def error(self, kind: type[T]) -> T:
        """Return what the call raised, which must be of this class."""
        outcome = self.outcome()
        assert isinstance(outcome, kind), repr(outcome)
        return outcome


@contextmanager
def writer_held(pool: walpool.Pool) -> Iterator[None]:
    """Hold the writer from another thread, so that jobs queue up inside the block."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.transaction():
            held.set()
            assert let_go.wait(WITHIN)

    holder = Caller(hold)
    assert held.wait(WITHIN)
    try:
        yield
    finally:
        let_go.set()
        assert holder.outcome() is None


def queue_up(pool: walpool.Pool, calls: Sequence[Callable[[], object]]) -> list[Caller]:
    """Start a thread for each call, in this order in the queue; the writer must be held."""
    callers = []
    for call in calls:
        length = pool.stats()["jobs_waiting"]
        callers.append(Caller(call))
        eventually(partial(_is_longer, pool, length))
    return callers


def _is_longer(pool: walpool.Pool, length: float) -> bool:
    return pool.stats()["jobs_waiting"] > length


def run_queued(pool: walpool.Pool, calls: Sequence[Callable[[], object]]) -> list[Any]:
    """Queue the calls up behind a held writer, let it go, and return what each returned or raised."""
    with writer_held(pool):
        callers = queue_up(pool, calls)
    return [caller.outcome() for caller in callers]


def start_python(
    program: str, *args: object, options: Sequence[str] = (), env: Mapping[str, str] = os.environ
) -> subprocess.Popen[str]:
    """Start `program` in a Python of its own, with pipes for all it reads and writes."""
    command = [sys.executable, *options, "-c", textwrap.dedent(program), *map(str, args)]
    pipe = subprocess.PIPE
    environment = {**env, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def run_python(
    program: str,
    *args: object,
    options: Sequence[str] = (),
    env: Mapping[str, str] = os.environ,
    within: float = 2 * WITHIN,
) -> tuple[str, str]:
    """Run `program` in a Python of its own, which must end well, and return its output and its errors."""
    process = start_python(program, *args, options=options, env=env)
    try:
        output, errors = process.communicate(timeout=within)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return output, errors


@contextmanager
def other_process(program: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run `program` beside the block, from its first line of output on; it is killed at the end if it still runs."""
    with start_python(program, *args) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


@contextmanager
def locked_by_another_process(database: Path, kind: str = "IMMEDIATE") -> Iterator[subprocess.Popen[str]]:
    """Let another process, with the standard library's SQLite, hold the file's write lock."""
    with other_process(LOCKING_PROCESS, database, kind) as process:
        yield process


def retire(database: str | Path, successor: str = "postgresql://app@db.example/agents") -> None:
    """Mark a file as `walpool migrate --retire` does."""
    with walpool.Pool(database) as pool:
        pool.batch([schema.CREATE_RETIRED, (schema.RETIRE, (successor,))])


def run_together(count: int, work: Callable[[int], T], *, timeout: float = 30.0) -> list[T]:
    """Run `work(index)` on `count` threads that leave one barrier together.

    Args:
        count: the number of threads.
        work: called with the thread's index, 0 to count - 1.
        timeout: seconds until the slowest thread must have ended.

    Returns:
        The results in the order of the indices.

    Raises:
        BaseException: the first error by index; the others are added to it as notes where Python has notes.
        TimeoutError: a thread was still running after `timeout`; the threads are daemons and are left behind.
    """
    barrier = threading.Barrier(count)
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(index: int) -> None:
        try:
            barrier.wait(timeout)
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001 - raised again below, on the test's own thread
            errors[index] = error

    started = [threading.Thread(target=run, args=(i,), name=f"test-{i}", daemon=True) for i in range(count)]
    for thread in started:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise _first_of(errors)
    running = [thread.name for thread in started if thread.is_alive()]
    if running:
        raise TimeoutError(f"still running after {timeout} s: {', '.join(running)}")
    return [results[i] for i in range(count)]


def _first_of(errors: dict[int, BaseException]) -> BaseException:
    first, *others = sorted(errors)
    if others and sys.version_info >= (3, 11):
        errors[first].add_note("other threads failed too: " + "; ".join(f"{i}: {errors[i]!r}" for i in others))
    return errors[first]
