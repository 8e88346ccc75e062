"""The lock that CrewAI takes around files of its own: fair inside a process, woken up rather than polled.

Knows `flock` and threads; knows nothing of walpool's databases, which take no such lock.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import md5

from portalocker.exceptions import LockException

if sys.platform != "win32":
    import fcntl

__all__ = ["WalpoolLock"]

_DEFAULT_TIMEOUT = 120.0  # seconds; CrewAI's own


class WalpoolLock:
    """A backend for `crewai_core.lock_store.set_lock_backend`: `with lock(name, timeout=...)`.

    Threads of one process get a name in the order in which they asked, each woken up by the one before it. Between
    processes the kernel decides: the file of the name is locked with `flock`, and of the processes that wait for it
    the first one to be woken up gets it. So no process is shut out, but there is no order among them, and a process
    whose threads queue for a name may get it several times before another does.

    The file is the one that CrewAI's own lock takes, in the same way, so that processes with and without walpool
    exclude each other. Not re-entrant, as CrewAI's is not: whoever holds a name and asks for it again waits in vain.
    A thread may release what another thread took.

    A forked child holds nothing of its parent's. Not on Windows, which has no `flock`.

    Args:
        directory: where the files lie; None is the system's folder for temporary files, as with CrewAI's own.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = tempfile.gettempdir() if directory is None else directory
        self._mutex = threading.Lock()  # guards `_queues`; held for a few instructions, never while waiting
        self._queues: dict[str, deque[threading.Event]] = {}  # by name; the first of a queue has or takes the file
        self._files: set[_FileLock] = set()  # of all the calls that are under way
        # Weakly: what is registered for a fork can never be taken back.
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: _call(forget))

    @contextmanager
    def __call__(self, name: str, *, timeout: float = _DEFAULT_TIMEOUT) -> Iterator[None]:
        """Hold the lock called `name` while the block runs.

        Args:
            name: any string.
            timeout: seconds to wait for it, other threads and other processes together.

        Raises:
            portalocker.exceptions.LockException: it did not come in time.
        """
        deadline = time.monotonic() + timeout
        # CrewAI's own name for the file.
        digest = md5(name.encode(), usedforsecurity=False).hexdigest()
        path = os.path.join(self._directory, f"crewai:{digest}.lock")
        failed = f"Failed to acquire lock {name!r} at {path} (timeout={timeout}s)"
        turn, file, pid = threading.Event(), _FileLock(path), os.getpid()
        # Both know how far they have come: Ctrl-C may strike between any two lines.
        try:
            self._files.add(file)
            if not self._queue_up(name, turn, deadline):
                raise LockException(f"{failed}: other threads of this process were first")
            if not file.lock(deadline):
                raise LockException(f"{failed}: another process holds it")
            yield
        finally:
            if os.getpid() == pid:  # else this is a child that was forked inside the block, and holds nothing
                file.unlock()
                self._leave(name, turn)
                self._files.discard(file)

    def _queue_up(self, name: str, turn: threading.Event, deadline: float) -> bool:
        """Return whether this call came to be the first of the name's queue in time."""
        with self._mutex:
            queue = self._queues.setdefault(name, deque())
            queue.append(turn)
            if queue[0] is turn:
                turn.set()
        return turn.wait(max(0.0, deadline - time.monotonic()))

    def _leave(self, name: str, turn: threading.Event) -> None:
        """Take a call out of its queue, and wake the one that is first now."""
        with self._mutex:
            queue = self._queues.get(name, deque())
            if turn in queue:
                queue.remove(turn)
            if queue:
                queue[0].set()
            else:
                self._queues.pop(name, None)

    def _forget(self) -> None:
        """Begin anew in a child: its parent's threads are not there, and its parent's locks are not its own."""
        for file in self._files:
            file.abandon()
        self._mutex, self._queues, self._files = threading.Lock(), {}, set()


WalpoolLock.__module__ = "walpool.crewai"


class _FileLock:
    """The lock of one file, for one call.

    `flock` knows no timeout, so where the file is not free a thread of its own blocks in it and wakes the one that
    asked. If nobody waits any more by then, it gives the lock back at once and ends; until then it sleeps in the
    kernel, where nobody can end it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._mutex = threading.Lock()  # guards the three below: either the caller closes the file, or the thread
        self._is_locked = False
        self._is_over = False  # the caller has gone
        self._has_thread = False
        self._error: OSError | None = None  # the thread's; set before `_ended`, read after it
        self._ended = threading.Event()

    def lock(self, deadline: float) -> bool:
        """Return whether the file came to be locked in time. Call `unlock` whatever comes of it."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return deadline > time.monotonic() and self._wait(self._file, deadline)
        return True

    def unlock(self) -> None:
        """Release the file, or tell the thread to as soon as it has it."""
        with self._mutex:
            self._is_over = True
            is_ours = self._is_locked or not self._has_thread
        if is_ours:
            self._close()

    def abandon(self) -> None:
        """Close a descriptor of the parent's without unlocking it: the lock is the parent's still."""
        if self._file is not None:
            with suppress(OSError):  # the parent had just closed it
                os.close(self._file)

    def _wait(self, file: int, deadline: float) -> bool:
        self._has_thread = True
        try:
            threading.Thread(target=self._block, args=(file,), name="walpool-flock", daemon=True).start()
        except RuntimeError:  # no more threads
            self._has_thread = False
            raise
        self._ended.wait(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        with self._mutex:
            return self._is_locked

    def _block(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._mutex:
            self._is_locked = is_wanted = self._error is None and not self._is_over
        self._ended.set()
        if not is_wanted:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        # Unlocked by name too: a child that was forked meanwhile may have the descriptor, and with it the lock.
        try:
            fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)


def _call(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()
