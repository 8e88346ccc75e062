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
from contextlib import contextmanager
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
        self._forget()
        # Weakly: what is registered for a fork can never be taken back.
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: _call(forget))

    def _forget(self) -> None:
        """Begin anew; in a child, close the descriptors of the parent, whose locks they share, without unlocking."""
        for held in getattr(self, "_held", ()):
            os.close(held)
        self._mutex = threading.Lock()  # guards the two below; held for a few instructions, never while waiting
        self._queues: dict[str, deque[threading.Event]] = {}  # by name; the first of a queue has or takes the file
        self._held: set[int] = set()  # descriptors of locked files

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
        path = self._path(name)
        what = f"Failed to acquire lock {name!r} at {path} (timeout={timeout}s)"
        pid = os.getpid()
        turn = self._queue_up(name, deadline, what)
        try:
            file = self._lock_file(path, deadline, what)
            try:
                yield
            finally:
                if os.getpid() == pid:  # else this is a child that was forked inside the block, and holds nothing
                    self._unlock_file(file)
        finally:
            if os.getpid() == pid:
                self._leave(name, turn)

    def _path(self, name: str) -> str:
        # CrewAI's own name for it.
        return os.path.join(self._directory, f"crewai:{md5(name.encode(), usedforsecurity=False).hexdigest()}.lock")

    def _queue_up(self, name: str, deadline: float, what: str) -> threading.Event:
        """Return when this thread is the first of the name's queue."""
        turn = threading.Event()
        with self._mutex:
            queue = self._queues.setdefault(name, deque())
            queue.append(turn)
            if queue[0] is turn:
                turn.set()
        try:
            if not turn.wait(max(0.0, deadline - time.monotonic())):
                raise LockException(f"{what}: other threads of this process were first")
        except BaseException:
            self._leave(name, turn)
            raise
        return turn

    def _leave(self, name: str, turn: threading.Event) -> None:
        """Take a turn out of its queue, and wake the one that is first now."""
        with self._mutex:
            queue = self._queues[name]
            queue.remove(turn)
            if queue:
                queue[0].set()
            else:
                del self._queues[name]

    def _lock_file(self, path: str, deadline: float, what: str) -> int:
        """Return a descriptor of the locked file."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _FileWaiter(file).wait(deadline):
                raise LockException(f"{what}: another process holds it") from None
        except BaseException:
            os.close(file)
            raise
        with self._mutex:
            self._held.add(file)
        return file

    def _unlock_file(self, file: int) -> None:
        with self._mutex:
            self._held.discard(file)
        _unlock(file)


WalpoolLock.__module__ = "walpool.crewai"


class _FileWaiter:
    """One wait for a file that another process has locked.

    `flock` knows no timeout, so a thread of its own blocks in it and wakes the one that asked. If nobody waits any more
    by then, it gives the lock back at once and ends; until then it sleeps in the kernel, where nobody can end it.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._mutex = threading.Lock()  # guards the two below: the lock is the caller's, or the thread gives it back
        self._is_over = False
        self._is_locked = False
        self._error: OSError | None = None  # set before `_ended`, read after it
        self._ended = threading.Event()
        threading.Thread(target=self._block, name="walpool-flock", daemon=True).start()

    def wait(self, deadline: float) -> bool:
        """Return whether the file is locked now; if it is not, the descriptor is no longer the caller's."""
        try:
            self._ended.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:  # Ctrl-C
            if self._settle():
                _unlock(self._file)
            raise
        is_locked = self._settle()
        if self._error is not None:
            raise self._error
        return is_locked

    def _settle(self) -> bool:
        with self._mutex:
            self._is_over = True
            return self._is_locked

    def _block(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._mutex:
            self._is_locked = is_wanted = self._error is None and not self._is_over
        self._ended.set()
        if not is_wanted:
            _unlock(self._file)


def _unlock(file: int) -> None:
    # By name, not only by closing: a child that was forked meanwhile may have the descriptor too, and with it the lock.
    try:
        fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _call(reference: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()
