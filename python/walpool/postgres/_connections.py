"""`Connections`: so many connections at most, lent out in the order in which they are asked for.

Where the server has no room for so many, callers take turns on those that there are. Knows no SQL and no jobs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from walpool.errors import ClosedError, InterfaceError, OperationalError
from walpool.postgres._address import is_usable
from walpool.postgres._room import Room
from walpool.postgres._steps import Blocking, finish
from walpool.postgres._unreached import has_no_room, no_room

if TYPE_CHECKING:
    from walpool.errors import Error
    from walpool.postgres._address import Address
    from walpool.postgres._figures import Figures
    from walpool.postgres._steps import Steps
    from walpool.postgres._wire import Connection

__all__ = ["Connections", "Loan"]

SLICE: Final = 0.05
"""Seconds between two looks of somebody who waits: Ctrl-C is heard, and a lost wake-up would cost no more than this."""


_logger = logging.getLogger("walpool")


class Loan:
    """What one caller has of some `Connections`: a place in line, then a permit and a connection, until `end`.

    One that nobody refers to any more has ended: an exception from outside (Ctrl-C) may come between any two steps, and
    a permit that it took away would be missed for ever.
    """

    __slots__ = ("_connection", "_home", "is_renewed", "turn")

    def __init__(self, home: Connections) -> None:
        self._home = home
        self._connection: Connection | None = None
        self.turn: object = None  # what stands for it in line and among the permits
        self.is_renewed = False

    @property
    def connection(self) -> Connection:
        """The connection, until the end."""
        if self._connection is None:
            msg = "the connection was given back"
            raise InterfaceError(msg)
        return self._connection

    def take(self, connection: Connection) -> None:
        """Have this connection from now on."""
        self._connection = connection

    def renew(self, timeout: float) -> None:
        """Take a new connection in place of one that broke; others that lie idle are suspect too, and closed."""
        self.is_renewed = True
        self.connection.close()
        self._home.clear()
        self._connection = self._home.opened(time.monotonic() + timeout)

    def end(self) -> None:
        """Give back what it has. Safe to call twice."""
        self._home.take_back(self)

    def __enter__(self) -> Loan:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __del__(self) -> None:
        if self.turn is not None:
            try:
                self.end()
            finally:
                self.end()  # an exception from outside came: what is raised here goes nowhere, and nobody tries again


class _Place:
    """A place in line, for whoever waits there: a thread, or a loop (`_steps.Turn`)."""

    def __init__(self, deadline: float, look: Callable[[_Place], bool]) -> None:
        self._deadline = deadline
        self._look = look
        self._bell = threading.Event()
        self._call: Callable[[], object] | None = None

    @property
    def is_told(self) -> bool:
        """Whether its turn has come, or comes no more."""
        return self._bell.is_set()

    def tell(self) -> None:
        """Wake whoever waits."""
        self._bell.set()
        call, self._call = self._call, None
        if call is not None:
            call()

    def wait(self) -> None:
        """Block until the permit is there."""
        while not self.has_come():
            self._bell.wait(min(SLICE, max(self._deadline - time.monotonic(), 0.0)))

    def has_come(self) -> bool:
        """Return whether the permit is there."""
        return self._look(self)

    def listen(self, call: Callable[[], object]) -> None:
        """Have it called when there is something to see; it is called twice where both happens at once."""
        self._call = call
        if self.is_told:
            call()


class Connections:
    """The connections of one purpose: opened when they are needed, `limit` at most, and kept.

    Whoever comes first is served first. A connection that was left in a transaction, or broke, is closed and not lent
    out again.
    """

    def __init__(self, address: Address, limit: int, figures: Figures, role: str, *, reads_only: bool = False) -> None:
        self._address = address
        self._reads_only = reads_only
        self._room = Room(limit)
        self._figures = figures
        self._role = role  # the name that the figures begin with
        self._process = os.getpid()
        # Guards all below, and is held for a few instructions. The collector may end a loan in the midst of them.
        self._lock = threading.RLock()
        self._idle: list[Connection] = []
        self._out: set[object] = set()  # the turns that have a permit: a connection, or one that is being opened
        self._line: deque[_Place] = deque()
        self._is_closed = False
        self._opened: weakref.WeakSet[Connection] = weakref.WeakSet()  # all, out or idle
        self._was_reached = False
        self._neighbours: tuple[Connections, ...] = ()
        self._inherited: list[Connection | None] = []  # kept in a child, whose end of them must not be closed
        self.while_waiting: Callable[[], object] = bool
        """Called now and then by who waits, with no lock held."""

    def acquaint(self, *neighbours: Connections) -> None:
        """Tell who else of this process has connections to the server; those may have to go to make room."""
        self._neighbours = neighbours

    def lend(self, timeout: float, refuse: Callable[[], Error]) -> Loan:
        """Take the steps of `lending` on this thread."""
        return finish(self.lending(timeout, refuse))

    def lending(self, timeout: float, refuse: Callable[[], Error]) -> Steps[Loan]:
        """Lend a connection, until the loan ends.

        Args:
            timeout: seconds, for the wait and for opening one.
            refuse: makes the error of who waited in vain.
        """
        began = time.monotonic()
        loan = Loan(self)
        try:
            while True:
                place = self._enter(loan, began + timeout, refuse)
                if place is not None:
                    yield place
                if self._lend_idle(loan):
                    break
                try:
                    yield Blocking(partial(self._open, loan, began + timeout))
                    break
                except OperationalError as error:
                    if time.monotonic() >= began + timeout or not self._makes_do(error):
                        raise
                self._leave(loan)
                yield Blocking(partial(time.sleep, SLICE))
            self._figures.sample(f"{self._role}_wait_ms", (time.monotonic() - began) * 1000)
        except BaseException:
            loan.end()
            raise
        return loan

    def _makes_do(self, error: OperationalError) -> bool:
        """Return whether to wait for room, where the server has none for one more; the first call of all does not."""
        if not has_no_room(error) or not any(each._was_reached for each in (self, *self._neighbours)):
            return False
        for neighbours in self._neighbours:
            neighbours.clear()  # what they do not need just now
        count = self._count()
        with self._lock:
            is_news = self._room.fits(count, str(error))
        if is_news:
            _logger.warning("no more connections for the %s, which have %d: %s", self._role, count, error)
        return True

    def _count(self) -> int:
        """Return how many connections there are, out or idle."""
        with self._lock:
            return sum(not connection.closed for connection in self._opened)

    def _open(self, loan: Loan, deadline: float) -> None:
        loan.take(self.opened(deadline))
        if loan.turn is None:  # it has ended meanwhile
            loan.end()

    def opened(self, deadline: float) -> Connection:
        """Return a new connection, for a loan that has a permit."""
        connection = self._address.connect(deadline - time.monotonic(), reads_only=self._reads_only)
        with self._lock:
            self._was_reached = True
            self._opened.add(connection)
            self._room.grows()
        self._figures.add("connections_opened")
        return connection

    def take_back(self, loan: Loan) -> None:
        """Take back what a loan has: its connection, and its permit or its place in line."""
        if self._process != os.getpid():
            self._inherited.append(loan._connection)
            loan._connection = loan.turn = None
            return
        with self._lock:
            connection = loan._connection
            if connection is not None and not self._is_closed and is_usable(connection):
                loan._connection = None  # no call stands between: an exception would lose it, or lend it out twice
                self._idle.append(connection)
                connection = None
        if connection is not None:
            connection.close()  # the server rolls back
            loan._connection = None
        self._leave(loan)
        if loan._connection is not None:  # a thread has opened it meanwhile
            self.take_back(loan)

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
        for place in line:
            place.tell()
        self.clear()

    def wait_until_all_are_back(self, deadline: float) -> None:
        """Wait for what is lent out, after `close`."""
        while self._out and time.monotonic() < deadline:
            self.while_waiting()
            time.sleep(SLICE / 10)

    @property
    def out(self) -> int:
        """How many are lent out now."""
        return len(self._out)

    @property
    def waiting(self) -> int:
        """How many callers wait for one now."""
        return len(self._line)

    def _lend_idle(self, loan: Loan) -> bool:
        """Lend one that lies idle, if there is one."""
        while True:
            with self._lock:
                if not self._idle:
                    return False
                loan.take(self._idle[-1])
                self._idle.pop()
            if is_usable(loan.connection):
                return True
            loan.connection.close()

    def _enter(self, loan: Loan, deadline: float, refuse: Callable[[], Error]) -> _Place | None:
        """Give a loan a permit; or the place in line that it returns, which is to be waited for."""
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"the pool is closed [{self._address.name}]")
            if len(self._out) < self._room.limit and not self._line:
                loan.turn = object()
                self._out.add(loan.turn)
                return None
            loan.turn = place = _Place(deadline, partial(self._look, deadline, refuse))
            self._line.append(place)
            return place

    def _look(self, deadline: float, refuse: Callable[[], Error], place: _Place) -> bool:
        """Return whether a place has its permit; do what is done now and then by who waits for one."""
        if not place.is_told:
            if time.monotonic() >= deadline:
                raise no_room(self._room.said) if self._room.is_short else refuse()
            self.while_waiting()
            return place.is_told
        if place not in self._out:
            raise ClosedError(f"the pool was closed meanwhile [{self._address.name}]")
        return True

    def _leave(self, loan: Loan) -> None:
        """Take a loan out of the line; or give its permit to whoever is first there."""
        with self._lock:
            turn = loan.turn
            if isinstance(turn, _Place) and turn in self._line:
                self._line.remove(turn)
            self._out.discard(turn)
            while self._line and len(self._out) < self._room.limit:
                following = self._line.popleft()
                self._out.add(following)
                following.tell()
            loan.turn = None
