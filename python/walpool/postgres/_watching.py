"""`Sockets`: which sockets an event loop watches for an engine, and who hears of it. Knows no SQL and no steps.

To have a loop watch a socket and stop again costs 20 us of its thread, at each statement. On Linux one descriptor
stands for all of them (epoll), which the loop watches once and for all; a statement costs one system call.
"""

from __future__ import annotations

import os
import select
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from psycopg.waiting import Ready, Wait

if TYPE_CHECKING:
    import asyncio

__all__ = ["WATCHES_SOCKETS", "Call", "Listener", "Sockets", "sockets"]

WATCHES_SOCKETS: Final = sys.platform != "win32"
"""Whether loops can watch sockets that are not theirs. Windows' usual one cannot: there a thread waits for answers."""
NESTS: Final = hasattr(select, "epoll")
"""Whether a descriptor may stand for many."""


class Listener(Protocol):
    """Who waits for a socket."""

    def advance(self, ready: Ready) -> None:
        """Hear what it is ready for."""

    def lost(self) -> None:
        """Hear that the loop was closed, or has dropped what it was to call."""


class Sockets(ABC):
    """The sockets that one loop watches; used on its thread. In a child process nobody is told anything."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # whoever keeps this does not keep the loop

    @abstractmethod
    def watch(self, listener: Listener, number: int, wait: Wait) -> None:
        """Have somebody told when a socket is ready: once at least, and at most until `unwatch`."""

    @abstractmethod
    def unwatch(self, listener: Listener, number: int) -> None:
        """Tell somebody nothing any more of a socket, which is still open."""

    @abstractmethod
    def close(self) -> None:
        """Take nothing of the loop any more, as soon as nobody waits."""


def sockets(loop: asyncio.AbstractEventLoop) -> Sockets:
    """Return what watches sockets on a loop."""
    return _Nested(loop) if NESTS else _Single(loop)


class Call:
    """What a loop is to call. It alone keeps this, and drops it when it is closed: whoever is to hear does."""

    __slots__ = ("_lost",)

    def __init__(self, lost: Callable[[], object]) -> None:
        self._lost: Callable[[], object] | None = lost

    def __call__(self, call: Callable[[], object]) -> None:
        """Call it; this is all that the loop was to do."""
        self._lost = None
        call()

    def __del__(self) -> None:
        if self._lost is not None:
            self._lost()


# All by one descriptor.


class _Nested(Sockets):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._board: Callable[[], _Board | None] = _nothing
        self._is_closed = False

    def watch(self, listener: Listener, number: int, wait: Wait) -> None:
        board = self._board()
        if board is None:
            loop = self._loop()
            assert loop is not None  # it runs here
            board = _Board(loop)
            self._board = weakref.ref(board)
        board.watch(listener, number, wait)

    def unwatch(self, listener: Listener, number: int) -> None:
        board = self._board()
        if board is not None:
            board.unwatch(listener, number)
            self._end(board)

    def close(self) -> None:
        self._is_closed = True
        board = self._board()
        if board is not None:
            self._end(board)

    def _end(self, board: _Board) -> None:
        if self._is_closed and not board.listeners:
            board.end()


class _Board:
    """The descriptor, and who waits for what stands behind it. The loop alone keeps it, and drops it when it is closed.

    A socket is told of once (EPOLLONESHOT), so that nothing needs to be done when the answer is there, nor where others
    use the connection. One that was closed has left by itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.listeners: dict[int, Listener] = {}
        self._epoll = select.epoll()
        self._loop = loop
        self._process = os.getpid()
        loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, listener: Listener, number: int, wait: Wait) -> None:
        self.listeners[number] = listener
        events = select.EPOLLONESHOT | select.EPOLLIN | (0 if wait is Wait.R else select.EPOLLOUT)
        try:
            self._epoll.modify(number, events)
        except FileNotFoundError:  # the first time
            self._epoll.register(number, events)

    def unwatch(self, listener: Listener, number: int) -> None:
        if self.listeners.get(number) is listener:
            del self.listeners[number]

    def end(self) -> None:
        if self._process == os.getpid():
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        if self._process != os.getpid():
            return  # what is told here is not told to the parent
        is_told = False
        try:
            for number, events in self._epoll.poll(0):
                self._tell(number, Ready.W if events == select.EPOLLOUT else Ready.R)
            is_told = True
        finally:
            if not is_told:  # an exception from outside (Ctrl-C): what was to be told is not told again
                self._loop.call_soon(self._look_at_all)

    def _look_at_all(self) -> None:
        for number in list(self.listeners):
            self._tell(number, Ready.R)

    def _tell(self, number: int, ready: Ready) -> None:
        listener = self.listeners.get(number)
        if listener is not None:
            listener.advance(ready)

    def __del__(self) -> None:
        for listener in self.listeners.values():
            listener.lost()


# Each by itself.


class _Single(Sockets):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._handles: dict[int, Callable[[], _Handle | None]] = {}

    def watch(self, listener: Listener, number: int, wait: Wait) -> None:
        handle = self._handles.get(number, _nothing)()
        if handle is None or handle.listener is not listener:
            loop = self._loop()
            assert loop is not None  # it runs here
            handle = _Handle(loop, listener, number)
            self._handles[number] = weakref.ref(handle)
        if wait is not Wait.R:
            handle.watch_writes()

    def unwatch(self, listener: Listener, number: int) -> None:
        handle = self._handles.get(number, _nothing)()
        if handle is not None and handle.listener is listener:
            handle.end()
            del self._handles[number]

    def close(self) -> None:
        """Nothing is taken where nobody waits."""


class _Handle:
    """One socket that is watched. The loop alone keeps it, and drops it when it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener, number: int) -> None:
        self.listener: Listener | None = listener  # None once there is nothing to tell any more
        self._loop = loop
        self._number = number
        self._writes = False
        self._process = os.getpid()
        try:
            loop.add_reader(number, self._tell, Ready.R)
        except RuntimeError:  # uvloop's keeps a useless rest of what watched a socket that broke
            loop.remove_reader(number)
            loop.add_reader(number, self._tell, Ready.R)

    def watch_writes(self) -> None:
        self._writes = True
        self._loop.add_writer(self._number, self._tell, Ready.W)

    def end(self) -> None:
        self.listener = None
        if self._process == os.getpid():
            self._watch_no_writes()
            self._loop.remove_reader(self._number)

    def _tell(self, ready: Ready) -> None:
        if self.listener is not None and self._process == os.getpid():
            # The socket is open yet. Once libpq has closed it, to stop half of the watch fails, on uvloop for ever.
            self._watch_no_writes()
            self.listener.advance(ready)

    def _watch_no_writes(self) -> None:
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._number)

    def __del__(self) -> None:
        if self.listener is not None:
            self.listener.lost()


def _nothing() -> None:
    return None
