"""`Writer`: jobs of many callers in few transactions, and what becomes of each.

The callers' own threads do the work, as on SQLite: whoever finds no leader leads the group that stands in line. What
differs: another connection may hold a row for as long as it likes. So a group waits only a moment for a lock, and a job
that was refused in a group runs again alone, in a transaction of its own, beside the groups.

    caller A                     caller B                       caller C
    joins, leads A and B         joins, sleeps                  joins meanwhile, sleeps
    BEGIN; A; B                  (B meets a locked row)
    B is refused: ROLLBACK
    BEGIN; A; COMMIT
    answers A, wakes B and C     alone: BEGIN; B (waits) ...    leads the next group
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from walpool.errors import DatabaseError, Error
from walpool.postgres._errors import is_conflict, is_lock_timeout, mapped
from walpool.postgres._line import SLICE, Line, State, Ticket
from walpool.postgres._running import Doubtful, Lost, Refused, running
from walpool.postgres._steps import Blocking, finish
from walpool.postgres._wire import durations

if TYPE_CHECKING:
    from walpool.postgres._address import Address
    from walpool.postgres._connections import Connections, Loan
    from walpool.postgres._figures import Figures
    from walpool.postgres._jobs import Job
    from walpool.postgres._results import Result
    from walpool.postgres._steps import Steps
    from walpool.settings import Settings

__all__ = ["Writer"]

GROUP_LOCK_TIMEOUT: Final = 0.05
"""Seconds that a group waits for somebody else's lock before it goes on without the job."""
REPLAYS: Final = 3
"""Refused jobs that a group goes on without; then each of the others runs alone."""
RETRIES: Final = 10
"""Times that a job is run again after a deadlock or a serialization failure."""
BACKOFF: Final = 0.005  # seconds, doubled each time; a random part of it is waited


class Writer:
    """The line of jobs, and the connections on which they run: in groups, or alone."""

    def __init__(
        self,
        address: Address,
        settings: Settings,
        figures: Figures,
        *,
        groups: Connections,
        alone: Connections,
    ) -> None:
        self._name = address.name
        self._settings = settings
        self._figures = figures
        self._groups = groups
        self._alone = alone
        self.line = Line(settings, address.name)
        self.set_durability(())

    def set_durability(self, local: Sequence[tuple[str, str]]) -> None:
        """Take the server settings that each transaction begins with so that a COMMIT means what `synchronous` says."""
        self._in_group = (*durations(lock_timeout=GROUP_LOCK_TIMEOUT), *local)
        self._by_itself = (*durations(lock_timeout=self._settings.busy_timeout), *local)

    def submit(self, job: Job, timeout: float | None) -> list[Result]:
        """Run a job and return its results once it is committed; sleeps, or works for those in line, meanwhile."""
        ticket = Ticket(job)
        deadline = ticket.joined + (self._settings.write_timeout if timeout is None else timeout)
        try:
            self.line.join(ticket, deadline)
            self.drive(ticket, deadline)
        except BaseException:
            self.abandon(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    def drive(self, ticket: Ticket, deadline: float = float("inf")) -> None:
        """Do what whoever waits for a ticket does, until it is answered: sleep, lead a group, or run it alone."""
        while ticket.state is not State.ANSWERED:
            if ticket.state is State.LEADS:
                finish(self.leading(ticket))
            elif ticket.state is State.ALONE:
                self.run_alone(ticket)
            else:
                ticket.sleep(min(SLICE, max(deadline - time.monotonic(), 0.0)))
                if ticket.state is State.WAITING:
                    if time.monotonic() >= deadline and self.withdraw(ticket):
                        raise self.line.late()
                    self.line.help()

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a job back that no group has taken; return whether that was so."""
        if not self.line.withdraw(ticket):
            return False
        self._figures.add("jobs_withdrawn")
        return True

    def abandon(self, ticket: Ticket) -> None:
        """Leave a job whose caller was stopped: nobody waits for it, nor for what its caller was to do."""
        if ticket.state is not State.ANSWERED and not self.withdraw(ticket) and self.line.claim(ticket):
            self._fail([ticket], self.line.late)  # it was set aside, and nobody is there to run it
        self.line.pass_on(ticket)

    # A group.

    def leading(self, leader: Ticket) -> Steps[None]:
        """Run the group in line, and answer it; then somebody else leads."""
        tickets: list[Ticket] = []
        try:
            self.line.take(leader, tickets)
            if not tickets:
                return  # it was withdrawn
            began = time.monotonic()
            for ticket in tickets:
                self._figures.sample("job_wait_ms", (began - ticket.joined) * 1000)
            yield from self._running_group(sorted(tickets, key=_order))
            taken = time.monotonic() - began
            self._figures.sample("group_ms", taken * 1000)
            self._figures.took(f"group of {len(tickets)} jobs", taken, leader.job.sql(0))
        except BaseException as error:
            self._give_up(tickets, error)
            raise
        finally:
            self.line.pass_on(leader)

    def _running_group(self, group: list[Ticket]) -> Steps[None]:
        """Run jobs in one transaction, without those that are refused, and answer each."""
        try:
            loan = yield from self._groups.lending(self._settings.write_timeout, self.line.late)
        except Error as error:
            self._fail(group, partial(_another, error))
            return
        replays = 0
        with loan:
            while group:
                try:
                    results = yield from running(loan.connection, [ticket.job for ticket in group], self._in_group)
                except Refused as refusal:
                    replays += 1
                    aside = self._refused(group, refusal, is_last=replays > REPLAYS)
                    group = [ticket for ticket in group if ticket not in aside]
                except Doubtful as failure:
                    self._doubt(group, failure)
                    return
                except Lost as failure:
                    if loan.is_renewed and len(group) > 1:  # one of them may be what breaks it
                        self._set_aside(group)
                        return
                    is_renewed: bool = yield Blocking(partial(self._renew, loan, failure, group))
                    if not is_renewed:
                        return
                else:
                    self._figures.sample("jobs_per_group", len(group))
                    self._figures.add("groups")
                    self._answer(group, results)
                    return

    def _refused(self, group: list[Ticket], refusal: Refused, *, is_last: bool) -> list[Ticket]:
        """Set the job aside that was refused; all of them if it is not known which, or if this goes on for long."""
        self._figures.add("group_replays")
        if is_lock_timeout(refusal.error) or is_conflict(refusal.error):
            self.line.keep_to_one()
        if len(group) == 1 and not is_lock_timeout(refusal.error) and not is_conflict(refusal.error):
            self._fail(group, self._error(refusal))  # it has no neighbours whose doing this could be
            return group
        aside = list(group) if is_last or refusal.job is None else [group[refusal.job]]
        self._set_aside(aside)
        return aside

    def _set_aside(self, tickets: Sequence[Ticket]) -> None:
        """Have each job run alone by whoever waits for it."""
        self._figures.add("jobs_alone", len(tickets))
        for ticket in tickets:
            ticket.tell(State.ALONE)
            if ticket.is_given_up and self.line.claim(ticket):
                self._fail([ticket], self.line.late)

    def _give_up(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        """Answer what an exception in the leader has left: nobody waits for one who is gone."""
        left = [ticket for ticket in tickets if ticket.state is State.TAKEN]
        for ticket in tickets:
            ticket.ring()  # one may have been told its state, and not woken
        text = f"whoever led the group was stopped ({type(error).__name__}) [{self._name}]"
        self._fail(left, lambda: DatabaseError(text, outcome="unknown"))

    # A job alone.

    def run_alone(self, ticket: Ticket) -> None:
        """Run a job in a transaction of its own, again where the server undid it for the sake of another."""
        began = time.monotonic()
        try:
            if not self.line.claim(ticket):
                return
            with self._alone.lend(self._settings.write_timeout, self.line.late) as loan:
                for attempt in range(RETRIES + 1):
                    if self._attempt(loan, ticket, is_last=attempt == RETRIES):
                        return
                    self._figures.add("jobs_retried")
                    time.sleep(random.random() * BACKOFF * 2**attempt)
        except Error as error:
            self._fail([ticket], partial(_another, error))
        except BaseException as error:
            if ticket.state is not State.ANSWERED:
                text = f"the thread that ran the job ended ({type(error).__name__}) [{self._name}]"
                self._fail([ticket], lambda: DatabaseError(text, outcome="unknown"))
            raise
        finally:
            self._figures.took("job", time.monotonic() - began, ticket.job.sql(0))

    def _attempt(self, loan: Loan, ticket: Ticket, *, is_last: bool) -> bool:
        """Run a job once; return whether it is answered."""
        try:
            results = finish(running(loan.connection, [ticket.job], self._by_itself))
        except Refused as refusal:
            if is_conflict(refusal.error) and not is_last:
                return False
            self._fail([ticket], self._error(refusal))
        except Doubtful as failure:
            self._doubt([ticket], failure)
        except Lost as failure:
            return not self._renew(loan, failure, [ticket])
        else:
            self._answer([ticket], results)
        return True

    # Answers.

    def _answer(self, group: Sequence[Ticket], results: Sequence[list[Result]]) -> None:
        self._figures.add("jobs", len(group))
        self.line.answered(group)
        for ticket, result in zip(group, results, strict=True):
            ticket.results = result
            ticket.tell(State.ANSWERED)

    def _fail(self, group: Sequence[Ticket], error: Callable[[], Error]) -> None:
        """Tell each that it failed, by an error of its own: an exception keeps the frames of whoever raised it."""
        self._figures.add("jobs_failed", len(group))
        self.line.answered(group)
        for ticket in group:
            ticket.error = error()
            ticket.tell(State.ANSWERED)

    def _doubt(self, group: Sequence[Ticket], failure: Lost) -> None:
        self._figures.add("connections_lost")
        what = f"COMMIT on {self._name}: a later read tells whether it was applied"
        self._fail(group, lambda: mapped(failure.error, what, outcome="unknown"))

    def _renew(self, loan: Loan, failure: Lost, group: Sequence[Ticket]) -> bool:
        """Take a new connection for one that broke before COMMIT, once; answer the group if there is none."""
        self._figures.add("connections_lost")
        if loan.is_renewed:
            self._fail(group, lambda: mapped(failure.error, self._name))
            return False
        try:
            loan.renew(self._settings.write_timeout)
        except Error as error:
            self._fail(group, partial(_another, error))
            return False
        return True

    def _error(self, refusal: Refused) -> Callable[[], Error]:
        if is_lock_timeout(refusal.error):
            self._figures.add("busy_waits")
        return lambda: mapped(refusal.error, self._name, place=refusal.place, sql=refusal.sql)


def _order(ticket: Ticket) -> tuple[bool, str]:
    return ticket.job.key is None, ticket.job.key or ""


def _another(error: Error) -> Error:
    """Return an error that says the same."""
    other = type(error)(str(error), outcome=error.outcome)
    other.retryable = error.retryable
    return other
