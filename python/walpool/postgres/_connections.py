"""`Connections`: so many connections at most, lent out in the order in which they are asked for.

Knows no SQL and no jobs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from walpool.errors import ClosedError
from walpool.postgres._address import Address, is_usable
from walpool.postgres._figures import Figures

if TYPE_CHECKING:
    from walpool.errors import Error
    from walpool.postgres._wire import Connection

__all__ = ["Connections"]

SLICE: Final = 0.05
"""Seconds between two looks of somebody who waits: Ctrl-C is heard, and a lost wake-up would cost no more than this."""


class Connections:
    """The connections of one purpose: opened when they are needed, `limit` at most, and kept.

    Whoever comes first is served first. A connection that was left in a transaction, or broke, is closed and not lent
    out again.
    """

    def __init__(self, address: Address, limit: int, figures: Figures, role: str) -> None:
        self._address = address
        self._limit = limit
        self._figures = figures
        self._role = role  # the name that the figures begin with
        self._lock = threading.Lock()  # guards all below; held for a few instructions
        self._idle: list[Connection] = []
        self._out = 0  # permits given: connections lent out, or being opened
        self._line: deque[threading.Event] = deque()
        self._granted: set[threading.Event] = set()
        self._is_closed = False
        self.while_waiting: Callable[[], object] = bool
        """Called now and then by who waits, with no lock held."""

    def checkout(self, timeout: float, refuse: Callable[[], Error]) -> Connection:
        """Return a connection; the caller gives it back by `checkin`.

        Args:
            timeout: seconds, for the wait and for opening one.
            refuse: makes the error of who waited in vain.
        """
        began = time.monotonic()
        self._enter(began + timeout, refuse)
        self._figures.sample(f"{self._role}_wait_ms", (time.monotonic() - began) * 1000)
        try:
            return self._idle_one() or self._opened(began + timeout)
        except BaseException:
            self._leave()
            raise

    def renewed(self, connection: Connection, timeout: float) -> Connection:
        """Return a new connection in place of one that broke; the others that lie idle are suspect too, and closed."""
        connection.close()
        self.clear()
        return self._opened(time.monotonic() + timeout)

    def checkin(self, connection: Connection) -> None:
        """Take a connection back."""
        with self._lock:
            keep = not self._is_closed and is_usable(connection)
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()  # the server rolls back
        self._leave()

    def clear(self) -> None:
        """Close what lies idle: after one of them proved dead the others are suspect too."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Refuse whoever comes or waits, and close what lies idle; the rest is closed when it comes back."""
        with self._lock:
            self._is_closed = True
            line, self._line = self._line, deque()
        for waiting in line:
            waiting.set()
        self.clear()

    def wait_until_all_are_back(self, deadline: float) -> None:
        """Wait for what is lent out, after `close`."""
        while self._out and time.monotonic() < deadline:
            self.while_waiting()
            time.sleep(SLICE / 10)

    @property
    def out(self) -> int:
        """How many are lent out now."""
        return self._out

    @property
    def waiting(self) -> int:
        """How many callers wait for one now."""
        return len(self._line)

    def _idle_one(self) -> Connection | None:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or is_usable(connection):
                return connection
            connection.close()

    def _opened(self, deadline: float) -> Connection:
        connection = self._address.connect(deadline - time.monotonic())
        self._figures.add("connections_opened")
        return connection

    def _enter(self, deadline: float, refuse: Callable[[], Error]) -> None:
        """Wait for a permit, in line."""
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"the pool is closed [{self._address.name}]")
            if self._out < self._limit and not self._line:
                self._out += 1
                return
            mine = threading.Event()
            self._line.append(mine)
        try:
            while not mine.wait(min(SLICE, max(deadline - time.monotonic(), 0.0))):
                if time.monotonic() >= deadline:
                    raise refuse()
                self.while_waiting()
        except BaseException:
            self._give_up(mine)
            raise
        with self._lock:
            if mine in self._granted:
                self._granted.discard(mine)
                return
        raise ClosedError(f"the pool was closed meanwhile [{self._address.name}]")

    def _give_up(self, mine: threading.Event) -> None:
        """Leave the line; a permit that came just now goes on to the next."""
        with self._lock:
            had_it = mine in self._granted
            self._granted.discard(mine)
            with suppress(ValueError):
                self._line.remove(mine)
        if had_it:
            self._leave()

    def _leave(self) -> None:
        """Give a permit back, to whoever is first in line."""
        with self._lock:
            if self._line:
                following = self._line.popleft()
                self._granted.add(following)
                following.set()
            else:
                self._out -= 1
