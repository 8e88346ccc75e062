"""`Line`: the queue of jobs, and who is to lead the next group of them. Knows no SQL and no connections."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum, auto
from itertools import islice
from typing import TYPE_CHECKING, Final

from walpool.errors import ClosedError, QueueFull, WriteTimeout
from walpool.postgres._connections import SLICE

if TYPE_CHECKING:
    from walpool.postgres._jobs import Job
    from walpool.postgres._results import Result
    from walpool.postgres._steps import Steps
    from walpool.settings import Settings

__all__ = ["LEADERS", "SLICE", "Line", "State", "Ticket"]

LEADERS: Final = 4
"""Groups at once at most: more than one only where one takes long."""
STUCK_AFTER: Final = 0.02
"""Seconds after which a group takes long, and the next in line leads one beside it."""
ABREAST: Final = 2
"""Groups that loops lead at once: the loop fills one while the server works on the other."""
KEPT_TO_ONE: Final = 1.0
"""Seconds for which only one is led at once after two may have met at the same rows."""
LOOP_RUNS: Final = 1_000
LOOP_BYTES: Final = 2**20
"""Statements and bytes of a group that a loop sends from its own thread: a few milliseconds. A larger one is sent by a
thread."""


class State(Enum):
    """Where a ticket stands."""

    WAITING = auto()  # in line
    LEADS = auto()  # in line, and whoever waits for it is to lead a group
    TAKEN = auto()  # in a group, or running alone
    ALONE = auto()  # whoever waits for it is to run it alone
    ANSWERED = auto()


class Ticket:
    """A job in line, and how whoever waits for it hears of it."""

    __slots__ = (
        "_bell",
        "_wake",
        "error",
        "is_a_threads",
        "is_driven",
        "is_given_up",
        "job",
        "joined",
        "led",
        "loop",
        "results",
        "state",
    )

    def __init__(self, job: Job, wake: Callable[[Ticket], None] | None = None, loop: object = None) -> None:
        """Make one; `wake` is called with it, and no lock held, in place of waking a thread that sleeps on it.

        Args:
            job: what is to be done.
            wake: how who waits hears of it.
            loop: what stands for the loop that would lead a group of its own tasks' jobs itself.
        """
        self.job = job
        self.loop = loop
        self.state = State.WAITING
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.joined = time.monotonic()
        self.led = 0.0  # when it was told to lead
        self.is_given_up = False  # nobody waits for it any more: it neither joins the line nor runs alone
        self.is_driven = False  # it leads, and its loop takes the steps
        self.is_a_threads = wake is None  # a thread sleeps on it
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

    def forget(self) -> None:
        """Wake nobody any more: whoever waited has gone, and is not kept by it."""
        self._wake = None

    def sleep(self, seconds: float) -> None:
        """Wait until it is told something."""
        if self._bell is not None and self._bell.wait(seconds):
            self._bell.clear()


class Line:
    """Tickets in the order in which they came, and those of them that lead.

    Sets of tickets, not numbers of them: an exception from outside (Ctrl-C) may come between any two steps, and what
    was done by halves may then be done again. CPython raises it where a call has returned, so a call comes last.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._lock = threading.Condition()  # guards all below; told when there is room for bytes, or nobody left
        self._tickets: deque[Ticket] = deque()
        self._bytes = 0
        self.held_back: dict[Ticket, Callable[[], object]] = {}
        """What is called when there may be room for the bytes of those on which no thread sleeps."""
        self._of_threads = 0  # tickets in line on which threads sleep
        self._leaders: set[Ticket] = set()
        self._unanswered: set[Ticket] = set()
        self._led_at = 0.0  # when the newest group began, or got its leader
        self._one_until = 0.0  # until when loops lead one group at once
        self._is_closed = False

    def join(self, ticket: Ticket, deadline: float, *, may_wait: bool = True) -> bool:
        """Put a ticket in line, and tell the first one to lead if nobody does; return whether it stands there.

        Args:
            ticket: a new one.
            deadline: until when the caller is held back while too many bytes wait.
            may_wait: False for a caller that must not be held back: the ticket does not join then.

        Raises:
            QueueFull: `max_waiting` tickets are in line.
            WriteTimeout: it was held back until its deadline.
        """
        leader = None
        try:
            with self._lock:
                self._refuse_closed()
                if self._settings.max_waiting and len(self._tickets) >= self._settings.max_waiting:
                    raise QueueFull(f"{len(self._tickets)} jobs are waiting already (max_waiting) [{self._name}]")
                while not self._has_room(ticket):
                    if ticket.is_given_up or time.monotonic() >= deadline:
                        raise self.late()
                    if not may_wait:
                        return False
                    self._lock.wait(SLICE)
                    self._refuse_closed()
                self._unanswered.add(ticket)
                self._bytes += ticket.job.size
                self._of_threads += ticket.is_a_threads
                self._tickets.append(ticket)
                leader = self._appointed()
        finally:
            if leader is not None:
                leader.ring()
        return True

    def joining(self, ticket: Ticket, deadline: float) -> Steps[None]:
        """Put a ticket in line, as soon as there is room. See `join`."""
        try:
            if not self.join(ticket, deadline, may_wait=False):
                yield _Room(self, ticket, deadline)
        finally:
            self.held_back.pop(ticket, None)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a ticket out of the line, if it still stands there; one that is held back before it joins no more.

        Returns:
            Whether it stood there.
        """
        with self._lock:
            ticket.is_given_up = True
            if ticket.state not in (State.WAITING, State.LEADS):
                return False
            ticket.state = State.ANSWERED
            stood = ticket in self._tickets
            if stood:
                self._bytes -= ticket.job.size
                self._of_threads -= ticket.is_a_threads
                self._tickets.remove(ticket)
        self.answered([ticket])
        self.pass_on(ticket)
        return stood

    def take(self, leader: Ticket, group: list[Ticket]) -> None:
        """Take a group out of the line, the leader's ticket first; nothing if that was withdrawn meanwhile.

        A ticket whose own caller was told to lead is left to it: two leaders may stand in line at once.

        Args:
            leader: the ticket whose turn it is.
            group: where those that are taken are put, each before it leaves the line.
        """
        with self._lock:
            if leader.state is not State.LEADS:
                return
            group.append(leader)
            leader.state = State.TAKEN
            self._bytes -= leader.job.size
            self._of_threads -= leader.is_a_threads
            self._tickets.remove(leader)
            size = leader.job.size
            most = self._share(leader)
            while self._tickets and len(group) < most and not group[-1].job.is_apart:
                following = self._tickets[0]
                size += following.job.size
                is_apart = following.job.is_apart or size > self._settings.max_group_bytes
                is_apart |= leader.is_driven and following.loop is not leader.loop
                if is_apart or following.state is not State.WAITING:
                    break
                group.append(following)
                following.state = State.TAKEN
                self._bytes -= following.job.size
                self._of_threads -= following.is_a_threads
                self._tickets.popleft()
            self._led_at = time.monotonic()
            self._lock.notify_all()
        self._tell_of_room()

    def is_for_its_loop(self, leader: Ticket) -> bool:
        """Return whether the leader's loop may send the group from its own thread: it is small, and all its own.

        Then it takes no others: nobody else's job waits for a loop whose thread is busy with something else.
        """
        runs = size = 0
        with self._lock:
            for ticket in islice(self._tickets, self._share(leader)):
                runs += ticket.job.runs
                size += ticket.job.size
                if ticket.loop is not leader.loop or ticket.job.is_script or runs > LOOP_RUNS or size > LOOP_BYTES:
                    return False
            leader.is_driven = True
        return True

    def keep_to_one(self) -> None:
        """Have loops lead one group at once for a while."""
        self._one_until = time.monotonic() + KEPT_TO_ONE

    def claim(self, ticket: Ticket) -> bool:
        """Take a ticket that is to run alone; return False if somebody else did, or it is answered."""
        with self._lock:
            if ticket.state is not State.ALONE:
                return False
            ticket.state = State.TAKEN
            return True

    def pass_on(self, leader: Ticket) -> None:
        """Leave the lead to the first in line; does nothing to one who does not lead."""
        following = None
        try:
            with self._lock:
                if leader in self._leaders:
                    self._leaders.remove(leader)
                    following = self._appointed()
        finally:
            if following is not None:
                following.ring()

    def help(self) -> bool:
        """Have the first in line lead a group if the one that runs takes long, or if nobody leads.

        Returns:
            Whether anybody stands in line.
        """
        leader = None
        try:
            with self._lock:
                leader = self._appointed()
                return bool(self._tickets)
        finally:
            if leader is not None:
                leader.ring()

    def answered(self, tickets: Iterable[Ticket]) -> None:
        """Forget tickets that need no answer any more."""
        with self._lock:
            self._unanswered.difference_update(tickets)
            self._lock.notify_all()
        self._tell_of_room()

    def close(self, timeout: float) -> None:
        """Refuse new tickets, and wait until those in line are answered."""
        deadline = time.monotonic() + timeout
        self._is_closed = True
        while time.monotonic() < deadline:
            self.help()  # whose loop runs no more would wait for ever
            with self._lock:
                if not self._unanswered:
                    return
                self._lock.wait(SLICE)

    def late(self) -> WriteTimeout:
        """Return the error of a ticket whose turn did not come."""
        return WriteTimeout(f"the job's turn did not come in time (write_timeout); nothing was written [{self._name}]")

    @property
    def waiting(self) -> tuple[int, int]:
        """How many tickets stand in line, and the bytes of their jobs."""
        return len(self._tickets), self._bytes

    def _tell_of_room(self) -> None:
        if self.held_back:
            for call in list(self.held_back.values()):
                call()

    def _has_room(self, ticket: Ticket) -> bool:
        return not self._tickets or self._bytes + ticket.job.size <= self._settings.max_waiting_bytes

    def _appointed(self) -> Ticket | None:
        """Make the first a leader that waits and may be one; the caller rings.

        A loop leads by itself, two groups at once at most; and threads have groups of their own, since a loop whose
        thread is busy with something else may not come to lead for long. Of its tasks' jobs a thread takes care then.
        """
        if (leader := self._forsaken()) is not None:
            return leader
        waiting = (ticket for ticket in self._tickets if ticket.state is State.WAITING)
        leader = next(waiting, None)
        if leader is None or len(self._leaders) >= LEADERS:
            return None
        by_loops = sum(ticket.loop is not None for ticket in self._leaders)
        is_stuck = self._is_stuck()
        has_thread = len(self._leaders) - by_loops < (LEADERS if is_stuck else 1)
        if leader.loop is not None and by_loops >= self._abreast(leader):
            if not has_thread:
                return None
            if is_stuck:
                leader.loop = None
            else:
                leader = next((ticket for ticket in waiting if ticket.is_a_threads), None) if self._of_threads else None
        elif leader.loop is None and not has_thread:
            return None
        if leader is not None:
            leader.state = State.LEADS
            self._leaders.add(leader)
            self._led_at = leader.led = time.monotonic()
        return leader

    def _forsaken(self) -> Ticket | None:
        """Return a leader whose loop does not come to lead for long, if it runs at all; a thread leads in its place."""
        late = time.monotonic() - STUCK_AFTER
        for leader in self._leaders:
            if leader.loop is not None and leader.led < late and leader.state is State.LEADS and not leader.is_driven:
                leader.loop = None
                return leader
        return None

    def _abreast(self, leader: Ticket) -> int:
        """Return how many groups are led at once, where this one leads one of them."""
        return ABREAST if leader.loop is not None and time.monotonic() >= self._one_until else 1

    def _share(self, leader: Ticket) -> int:
        """Return how many tickets a group takes at most; where two are led at once, half of all that are under way."""
        most = self._settings.max_group
        return min(most, -(-len(self._unanswered) // self._abreast(leader)))

    def _is_stuck(self) -> bool:
        return bool(self._leaders) and time.monotonic() - self._led_at > STUCK_AFTER

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the pool is closed [{self._name}]")


class _Room:
    """Room in the line for a ticket (`_steps.Turn`): it joins when that has come."""

    def __init__(self, line: Line, ticket: Ticket, deadline: float) -> None:
        self._line = line
        self._ticket = ticket
        self._deadline = deadline

    def wait(self) -> None:
        """Block until it has joined."""
        self._line.join(self._ticket, self._deadline)

    def has_come(self) -> bool:
        """Have it join, if there is room."""
        return self._line.join(self._ticket, self._deadline, may_wait=False)

    def listen(self, call: Callable[[], object]) -> None:
        """Have it called each time when there may be room."""
        self._line.held_back[self._ticket] = call
