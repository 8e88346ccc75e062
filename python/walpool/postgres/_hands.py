"""`Hands`: the threads that work for callers on event loops, and `Mailbox`, by which a loop hears of it. Knows no SQL.

    steps    what a loop itself cannot do of its reads, groups and transactions, one each at most for a connection:
             opening it, sending a large group, converting a large result, finishing what a closed loop began
    alone    jobs that run alone; they may wait for long, and nothing else stands behind these
    stops    asking the server to end what a cancelled task has it do: a few seconds at most, and behind no work

Threads are begun as they are needed, and end with the engine.
"""

from __future__ import annotations

import _thread
import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from walpool.desk import running_loop
from walpool.errors import ClosedError

__all__ = ["Hands", "Mailbox", "ended"]

T = TypeVar("T")

STOPS: Final = 4
"""Threads that ask a server to end something, at most."""
WATCH_S: Final = 0.025
"""Seconds between two looks of a loop whether those in line wait for a group that takes long."""


class Hands:
    """Threads, so many of each kind at most."""

    def __init__(self, *, readers: int, writers: int, leaders: int) -> None:
        self.steps = _threads("steps", readers + writers + leaders)
        self.alone = _threads("alone", writers)
        self.stops = _threads("stops", STOPS)

    def close(self) -> None:
        """Let the threads end when they have done what they were given."""
        for threads in (self.steps, self.alone, self.stops):
            threads.shutdown(wait=False)


class Mailbox:
    """What a loop is to do soon: woken once for a burst, since from another thread each wake-up is a system call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # whoever keeps the box does not keep the loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_rung = False
        self._watches = False

    def put(self, call: Callable[[], object]) -> None:
        """Have the loop call it soon; a loop that was closed calls nothing any more."""
        self._calls.append(call)  # before the look: whoever empties the box looks after it
        if self._is_rung:
            return
        loop = self._loop()
        try:
            self._is_rung = True
            if loop is not None:
                soon = loop.call_soon if running_loop() is loop else loop.call_soon_threadsafe
                soon(self._empty)
                return
        except RuntimeError:  # it was closed
            pass
        except BaseException:  # from outside (Ctrl-C): whoever comes next rings
            self._is_rung = False
            raise
        self._is_rung = False
        self._calls.clear()

    def watch(self, look: Callable[[], bool]) -> None:
        """Have the loop look now and then, from its own thread, until `look` returns that there is nothing to see."""
        if not self._watches:
            self._watches = True
            self._watch(look)

    def _watch(self, look: Callable[[], bool]) -> None:
        loop, self._watches = self._loop(), False  # so it stays if `look` raises, as on Ctrl-C
        if loop is not None and look():
            self._watches = True
            loop.call_later(WATCH_S, self._watch, look)

    def _empty(self) -> None:
        self._is_rung = False
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            if self._calls:  # one raised, as on Ctrl-C; the others are called all the same
                self.put(self._calls.popleft())


class _Threads(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if getattr(_submits, "is_so", False):  # the collector ends something in the midst of it, and its locks are held
            return _run_apart(partial(fn, *args, **kwargs))
        _submits.is_so = True
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:  # the pool was closed since it was looked at; or the interpreter is going away
            msg = "the pool was closed meanwhile"
            raise ClosedError(msg) from None
        finally:
            _submits.is_so = False


_submits: Final = threading.local()


def _run_apart(do: Callable[[], T]) -> Future[T]:
    """Have it done by a thread of its own; to begin one takes no lock."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:  # noqa: BLE001  (whoever waits hears of it)
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    _thread.start_new_thread(run, ())
    return future


def _threads(name: str, count: int) -> ThreadPoolExecutor:
    return _Threads(count, thread_name_prefix=f"walpool-postgres-{name}")


async def ended(future: asyncio.Future[Any]) -> None:
    """Return once a future is done, whatever came of it; the task may be cancelled again meanwhile, to no effect.

    Or what the future works on would be given to somebody else while it works.
    """
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    future.cancelled() or future.exception()  # looked at: nobody else will
