"""`Line`: the queue of jobs, and who is to lead the next group of them. Knows no SQL and no connections."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from walpool.errors import ClosedError, QueueFull, WriteTimeout
from walpool.postgres._connections import SLICE

if TYPE_CHECKING:
    from walpool.postgres._jobs import Job
    from walpool.postgres._results import Result
    from walpool.settings import Settings

__all__ = ["LEADERS", "SLICE", "Line", "State", "Ticket"]

LEADERS: Final = 4
"""Groups at once at most: more than two only where one takes long."""
AT_ONCE: Final = 2
"""Groups at once: while the server works on one, the next is made ready and sent."""
CAUTION: Final = 500
"""Groups that go one by one after two have met at a locked row."""
STUCK_AFTER: Final = 0.02
"""Seconds after which a group takes long, and the next in line leads one beside it."""


class State(Enum):
    """Where a ticket stands."""

    WAITING = auto()  # in line
    LEADS = auto()  # in line, and whoever waits for it is to lead a group
    TAKEN = auto()  # in a group
    ALONE = auto()  # whoever waits for it is to run it alone
    ANSWERED = auto()


class Ticket:
    """A job in line, and how whoever waits for it hears of it."""

    __slots__ = ("_bell", "_wake", "error", "job", "joined", "results", "state")

    def __init__(self, job: Job, wake: Callable[[Ticket], None] | None = None) -> None:
        """Make one; `wake` is called with it, and no lock held, in place of waking a thread that sleeps on it."""
        self.job = job
        self.state = State.WAITING
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.joined = time.monotonic()
        self._wake = wake
        self._bell = threading.Event() if wake is None else None

    def tell(self, state: State) -> None:
        """Set the state, and wake whoever waits."""
        self.state = state
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits."""
        if self._bell is not None:
            self._bell.set()
        elif self._wake is not None:
            self._wake(self)

    def sleep(self, seconds: float) -> None:
        """Wait until it is told something."""
        if self._bell is not None and self._bell.wait(seconds):
            self._bell.clear()


class Line:
    """Tickets in the order in which they came, and the number of those who lead."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._lock = threading.Condition()  # guards all below; told when there is room for bytes, or nobody left
        self._tickets: deque[Ticket] = deque()
        self._bytes = 0
        self._leaders = 0
        self._caution = 0  # groups still to go one by one
        self._unanswered = 0
        self._led_at = 0.0  # when the newest group began
        self._is_closed = False

    def has_room(self, ticket: Ticket) -> bool:
        """Return whether `join` would not hold the caller back."""
        return not self._tickets or self._bytes + ticket.job.size <= self._settings.max_waiting_bytes

    def join(self, ticket: Ticket, deadline: float) -> None:
        """Put a ticket in line, and tell the first one to lead if nobody does.

        Args:
            ticket: a new one.
            deadline: until when the caller is held back while too many bytes wait.

        Raises:
            QueueFull: `max_waiting` tickets are in line.
            WriteTimeout: it was held back until its deadline.
        """
        with self._lock:
            self._refuse_closed()
            if self._settings.max_waiting and len(self._tickets) >= self._settings.max_waiting:
                raise QueueFull(f"{len(self._tickets)} jobs are waiting already (max_waiting) [{self._name}]")
            while not self.has_room(ticket):
                if time.monotonic() >= deadline:
                    raise self.late()
                self._lock.wait(SLICE)
                self._refuse_closed()
            self._tickets.append(ticket)
            self._bytes += ticket.job.size
            self._unanswered += 1
            leader = self._appointed()
        if leader is not None:
            leader.ring()

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a ticket out of the line, if it still stands there; return whether it did."""
        with self._lock:
            if ticket not in self._tickets:
                return False
            self._tickets.remove(ticket)
            self._bytes -= ticket.job.size
            led = ticket.state is State.LEADS
            ticket.state = State.ANSWERED
        self.answered(1)
        if led:
            self.pass_on()
        return True

    def take(self, leader: Ticket) -> list[Ticket]:
        """Take a group out of the line, the leader's ticket first; nothing if that was withdrawn meanwhile.

        A ticket whose own caller was told to lead is left to it: two leaders may stand in line at once.
        """
        with self._lock:
            if leader not in self._tickets:
                return []
            self._tickets.remove(leader)
            taken = [leader]
            size = leader.job.size
            most = min(self._settings.max_group, self._share())
            while self._tickets and len(taken) < most and not taken[-1].job.is_script:
                following = self._tickets[0]
                size += following.job.size
                is_apart = following.job.is_script or size > self._settings.max_group_bytes
                if is_apart or following.state is not State.WAITING:
                    break
                taken.append(self._tickets.popleft())
            for ticket in taken:
                ticket.state = State.TAKEN
                self._bytes -= ticket.job.size
            self._led_at = time.monotonic()
            self._caution = max(self._caution - 1, 0)
            self._lock.notify_all()
        return taken

    def pass_on(self) -> None:
        """Leave the lead to the first in line."""
        with self._lock:
            self._leaders -= 1
            leader = self._appointed()
        if leader is not None:
            leader.ring()

    def help(self) -> None:
        """Have the first in line lead a group if the one that runs takes long."""
        with self._lock:
            leader = self._appointed()
        if leader is not None:
            leader.ring()

    def be_careful(self) -> None:
        """Have groups go one by one for a while: each of two may hold what the other waits for."""
        with self._lock:
            self._caution = CAUTION

    def answered(self, count: int) -> None:
        """Count tickets that need no answer any more."""
        with self._lock:
            self._unanswered -= count
            self._lock.notify_all()

    def close(self, timeout: float) -> None:
        """Refuse new tickets, and wait until those in line are answered."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._is_closed = True
            while self._unanswered and time.monotonic() < deadline:
                self._lock.wait(SLICE)

    def late(self) -> WriteTimeout:
        """Return the error of a ticket whose turn did not come."""
        return WriteTimeout(f"the job's turn did not come in time (write_timeout); nothing was written [{self._name}]")

    @property
    def waiting(self) -> tuple[int, int]:
        """How many tickets stand in line, and the bytes of their jobs."""
        return len(self._tickets), self._bytes

    def _appointed(self) -> Ticket | None:
        """Make the first that waits a leader, if there may be another; the caller rings."""
        most = LEADERS if self._is_stuck() else 1 if self._caution else AT_ONCE
        if self._leaders >= most:
            return None
        first = next((ticket for ticket in self._tickets if ticket.state is State.WAITING), None)
        if first is not None:
            self._leaders += 1
            first.state = State.LEADS
        return first

    def _share(self) -> int:
        """Return how many tickets a group takes so that as many groups as may be at work have the same."""
        return self._unanswered if self._caution else -(-self._unanswered // AT_ONCE)

    def _is_stuck(self) -> bool:
        return self._leaders > 0 and time.monotonic() - self._led_at > STUCK_AFTER

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the pool is closed [{self._name}]")
