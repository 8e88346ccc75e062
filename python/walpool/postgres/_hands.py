"""`Hands`: the threads that work for callers on event loops, and `Mailbox`, by which a loop hears of it. Knows no SQL.

    reads    one read each, and the wait for its reader, where loops cannot watch sockets
    begins   the wait for a connection that will be held; those who hold one never stand behind these
    held     one statement of a transaction or a snapshot each
    groups   what a loop itself cannot do of its reads and groups: opening a connection, a large group, a job alone

Threads are begun as they are needed, and end with the engine.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from walpool.errors import ClosedError

__all__ = ["Hands", "Mailbox", "ended", "finished"]

T = TypeVar("T")

WATCH_S: Final = 0.025
"""Seconds between two looks of a loop whether those in line wait for a group that takes long."""


class Hands:
    """Threads, so many of each kind at most."""

    def __init__(self, *, readers: int, writers: int, leaders: int) -> None:
        self.reads = _threads("reads", readers)
        self.begins = _threads("begins", readers + writers)
        self.held = _threads("held", readers + writers)
        self.groups = _threads("groups", leaders + writers)

    def close(self) -> None:
        """Let the threads end when they have done what they were given."""
        for threads in (self.reads, self.begins, self.held, self.groups):
            threads.shutdown(wait=False)


class Mailbox:
    """What a loop is to do soon: woken once for a burst, since from another thread each wake-up is a system call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # whoever keeps the box does not keep the loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_rung = False
        self._watches = False

    def put(self, call: Callable[[], object]) -> bool:
        """Have the loop call it soon; return False if the loop was closed meanwhile, and calls nothing any more."""
        self._calls.append(call)  # before the look: whoever empties the box looks after it
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        if not self._is_rung:
            self._is_rung = True
            try:
                soon = loop.call_soon if _running() is loop else loop.call_soon_threadsafe
                soon(self._empty)
            except RuntimeError:
                return False
        return True

    def watch(self, look: Callable[[], bool]) -> None:
        """Have the loop look now and then, from its own thread, until `look` returns that there is nothing to see."""
        if not self._watches:
            self._watches = True
            self._watch(look)

    def _watch(self, look: Callable[[], bool]) -> None:
        loop = self._loop()
        self._watches = loop is not None and look()
        if self._watches and loop is not None:
            loop.call_later(WATCH_S, self._watch, look)

    def _empty(self) -> None:
        self._is_rung = False
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            if self._calls:  # one raised, as on Ctrl-C; the others are called all the same
                self.put(self._calls.popleft())


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Threads(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:  # the pool was closed since it was looked at; or the interpreter is going away
            msg = "the pool was closed meanwhile"
            raise ClosedError(msg) from None


def _threads(name: str, count: int) -> ThreadPoolExecutor:
    return _Threads(count, thread_name_prefix=f"walpool-postgres-{name}")


async def finished(threads: ThreadPoolExecutor, do: Callable[[], T], cancel: Callable[[], object] | None = None) -> T:
    """Return what `do` returns on a thread; if the task is cancelled, wait for its end all the same.

    Args:
        threads: whose.
        do: what to do; if it has not begun when the task is cancelled it never does.
        cancel: makes it end soon; called on a thread.
    """
    loop = asyncio.get_running_loop()
    work = threads.submit(do)
    future = asyncio.wrap_future(work, loop=loop)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not work.cancel():
            if cancel is not None:
                await ended(loop.run_in_executor(None, cancel))
            await ended(future)
        raise


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
