"""Exceptions that come from outside: another thread sets them, or they come between any two steps of walpool's."""

from __future__ import annotations

import contextlib
import ctypes
import dis
import gc
import itertools
import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType

from helpers import Caller

from tests.torture import Torture


class Stop(BaseException):
    """What another thread sets."""


def stop(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))


# Between two steps


class AtStep:
    """Raise Stop at the n-th place in walpool's own Python, and in contextlib, where CPython looks for exceptions.

    It looks where a function or a generator is entered, and when a call has returned.

    Args:
        step: which place.
        ours: part of the path of the files that are walpool's.
    """

    def __init__(self, step: int, ours: str) -> None:
        self.left = step
        self._ours = ours
        self._last: dict[FrameType, str] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> AtStep | None:
        name = frame.f_code.co_filename
        if self._ours not in name and not name.endswith("contextlib.py"):
            return None
        if event == "call" and _is_finalizer(frame):  # what is raised there goes nowhere
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and self.left > 0:  # afterwards it would keep the frames, and what they hold
            last = self._last.get(frame, "")
            self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if last.startswith(("CALL", "RESUME")):
                self.left -= 1
                if self.left == 0:
                    self._last.clear()
                    raise Stop
        return self


def _is_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def stopped_at_each_step(
    call: Callable[[], object], ours: str, *, stride: int = 1, may_fail: tuple[type[Exception], ...] = ()
) -> Iterator[str]:
    """Make the call again and again, each time stopped `stride` steps later, until it is over before.

    Yields:
        After each call, where it was stopped.
    """
    expected: tuple[type[BaseException], ...] = (Stop, *may_fail)
    gc.collect()
    gc.freeze()  # what is there already is out of the collector's way, which is called after every step; see `heap`
    for step in itertools.count(1, stride):
        tracer, before, place = AtStep(step, ours), sys.gettrace(), ""
        sys.settrace(tracer)
        try:
            call()
        except expected:
            sys.settrace(before)
            place = traceback.format_exc(-4)
        finally:
            sys.settrace(before)
        gc.collect()  # contextlib keeps an exception in a cycle with its own frame
        yield place
        if tracer.left > 0:
            return


# At any moment


class Load:
    """Writes, each of two rows, and reads, by threads that are stopped at random; it remembers what was acknowledged.

    Args:
        writes: each is called with the value that its two rows are to hold.
        reads: called between them.
        may_fail: what a write may raise for the sake of another that was stopped.
    """

    THREADS = 6

    def __init__(
        self,
        writes: Sequence[Callable[[str], object]],
        reads: Sequence[Callable[[], object]],
        *,
        may_fail: tuple[type[Exception], ...] = (),
    ) -> None:
        self._writes = writes
        self._reads = reads
        self._may_fail = may_fail
        self._tried: set[str] = set()
        self._acknowledged: set[str] = set()
        self._heard = 0
        self._is_over = threading.Event()

    def run(self, rounds: int, pause: float) -> None:
        """Let the threads work, and stop one of them each round; then let them end.

        Args:
            rounds: how many.
            pause: the longest between two, in seconds.
        """
        drawn = random.Random(7)
        workers = [Caller(partial(self._live_on, str(index))) for index in range(self.THREADS)]
        for _ in range(rounds):
            stop(drawn.choice(workers).thread)
            self._is_over.wait(drawn.random() * pause)
        self._is_over.set()
        for worker in workers:  # one may have come after the last round's end
            assert worker.outcome() is None or isinstance(worker.outcome(), Stop)

    def assert_nothing_lost(self, found: Counter[object], rounds: int, torture: Torture, what: str) -> None:
        """Hold what is in the database, each value with how often it is there, to what was acknowledged."""
        lost = len(self._acknowledged - found.keys())
        torture.tell(what, tried=self._heard, unit="exceptions", lost=lost)
        assert self._heard > rounds / 4
        assert lost == 0
        assert set(found.values()) == {2}
        assert found.keys() <= self._tried

    def _live_on(self, name: str) -> None:
        for life in itertools.count():
            try:
                self._work(f"{name}.{life}")
            except Stop:
                self._heard += 1
            else:
                break

    def _work(self, name: str) -> None:
        for n in itertools.count():
            value = f"{name}/{n}"
            self._tried.add(value)
            with contextlib.suppress(*self._may_fail):
                self._writes[n % len(self._writes)](value)
                self._acknowledged.add(value)
            self._reads[n % len(self._reads)]()
            if self._is_over.is_set():
                return
