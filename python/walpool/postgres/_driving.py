"""`Driver`: an event loop that takes steps on its own thread, between two tasks. Knows no SQL and no jobs.

To send a group from another thread costs a hand-over of the interpreter's lock for each message of it. What may block
goes to a thread all the same, and so does what is left when the loop may be going away: steps do not mind who takes
them (`_steps`).
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from psycopg.waiting import Ready

from walpool.desk import running_loop
from walpool.errors import ClosedError
from walpool.postgres._connections import SLICE
from walpool.postgres._hands import ended
from walpool.postgres._steps import Answers, Blocking, Unanswered, finish
from walpool.postgres._watching import WATCHES_SOCKETS, Call, sockets
from walpool.postgres._wire import CANCEL_S

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from psycopg.waiting import Wait

    from walpool.postgres._hands import Mailbox
    from walpool.postgres._steps import Request, Steps, Turn

__all__ = ["Drive", "Driver"]

T = TypeVar("T")


class Driver:
    """One event loop, and the steps that it takes for an engine. Its methods are called on the loop's thread.

    Attributes:
        mailbox: by which other threads reach the loop.
        threads: they do what may block.
        stops: those that ask the server to end something.
        sockets: what the loop watches.
    """

    def __init__(self, mailbox: Mailbox, threads: ThreadPoolExecutor, stops: ThreadPoolExecutor) -> None:
        self.mailbox = mailbox
        self.threads = threads
        self.stops = stops
        self.sockets = sockets(asyncio.get_running_loop())
        self._process = os.getpid()
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._drives: set[Drive[Any]] = set()  # those that are to be finished whatever becomes of the loop
        self._awaited: set[Drive[Any]] = set()  # those that tasks wait for
        self._looking: set[Drive[Any]] = set()  # those that look now and then whether to go on
        self._looks = False

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child process: the sockets, and what the loop watches them with, are its parent's too."""
        return self._process != os.getpid()

    def begin(self, steps: Steps[None]) -> None:
        """Take steps that nobody on this loop waits for; what they raise is told as asyncio tells such things."""
        drive = Drive(self, steps, lambda _, error: self._over(drive, error), outlives=True)
        self._drives.add(drive)
        drive.begin()

    def leave(self) -> None:
        """Have threads finish what `begin` began: somebody who waited was stopped, and the loop may be next."""
        drives, self._drives = self._drives, set()
        for drive in drives:
            drive.leave()

    def hand_over(self) -> None:
        """Have threads finish what tasks wait for, since the loop stands still; the tasks hear of it later."""
        for drive in list(self._awaited):
            drive.hand_over()

    async def result(
        self, steps: Steps[T], stop: Callable[[], object] | None = None, *, may_be_left: bool = False
    ) -> T:
        """Return what steps come to; if the task is cancelled, wait for their end all the same.

        Args:
            steps: what to do; where they only wait, in a line or for what is being opened, they are given up at once.
            stop: makes the server end what it does; called on a thread. The steps stand still meanwhile.
            may_be_left: whether a task that is cancelled leaves what the server does to itself, and does not wait.
        """
        try:
            request = next(steps)
        except StopIteration as end:  # they wait for nothing
            result: T = end.value
            return result
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        drive = Drive(self, steps, partial(_settle, future))
        is_left = False
        self._awaited.add(drive)
        try:
            drive.go_on(request)
            return await future
        except asyncio.CancelledError:
            is_left = may_be_left and not drive.only_waits
            if not is_left:
                await drive.stopped(stop)
            raise
        finally:
            self._awaited.discard(drive)
            if not is_left and not drive.is_over:
                drive.abandon()  # the loop is going away, if they are not over

    def look_after(self, drive: Drive[Any]) -> None:
        """Have a drive look every `SLICE` seconds whether to go on, until `look_away`: one timer does for all."""
        self._looking.add(drive)
        self._look_soon()

    def look_away(self, drive: Drive[Any]) -> None:
        """Have it look no more."""
        self._looking.discard(drive)

    def _look_soon(self) -> None:
        loop = self._loop()
        if self._looking and not self._looks and loop is not None:
            self._looks = True
            loop.call_later(SLICE, self._look)

    def _look(self) -> None:
        self._looks = False  # and so it stays if one raises, as on Ctrl-C, until the next is looked after
        for drive in list(self._looking):
            drive.look()
        self._look_soon()

    def close(self) -> None:
        """Take nothing of the loop any more; from any thread."""
        self.mailbox.put(self.sockets.close)

    def _over(self, drive: Drive[None], error: BaseException | None) -> None:
        self._drives.discard(drive)
        if error is not None:
            raise error


class Drive(Generic[T]):
    """Steps on their way, on a loop's thread."""

    __slots__ = (
        "_driver",
        "_ended",
        "_loop",
        "_number",
        "_outlives",
        "_postponed",
        "_request",
        "_steps",
        "_until",
        "is_handed",
        "is_over",
        "is_still",
    )

    def __init__(
        self,
        driver: Driver,
        steps: Steps[T],
        ended: Callable[[T | None, BaseException | None], object],
        *,
        outlives: bool = False,
    ) -> None:
        """Make one.

        Args:
            driver: whose.
            steps: what is to be done.
            ended: called with the result, or with the error, unless the steps are left or abandoned.
            outlives: whether a thread goes on with the steps if the loop is closed.
        """
        self._driver = driver
        self._steps = steps
        self._ended = ended
        self._outlives = outlives
        self._loop = asyncio.get_running_loop()
        self._request: Request | None = None  # what the steps wait for
        self._number = -1  # of the socket that the loop watches
        self._until = inf  # when to give the server up, whose doing was to be stopped
        self._postponed: Callable[[], object] | None = None  # what came while it stood still
        self.is_handed = False  # to a thread, which takes them to their end
        self.is_still = False
        self.is_over = False

    @property
    def only_waits(self) -> bool:
        """Whether nothing is under way for the steps but what others see to."""
        request = self._request
        return not (isinstance(request, Answers) or (isinstance(request, Blocking) and not request.may_be_left))

    def begin(self) -> None:
        """Take steps until they wait for something."""
        self._go(self._steps.send, None)

    def go_on(self, request: Request) -> None:
        """Take steps after a first one that waits for something."""
        self._request = request
        following = self._wait(request)
        if following is not None:
            self._go(*following)

    def leave(self) -> None:
        """Have a thread take the steps that are left."""
        if self.is_over:
            return
        request = self._request
        self._quit()
        if self._driver.is_inherited or self.is_handed:
            return
        try:
            self._driver.threads.submit(finish, self._steps, request)
        except ClosedError:  # no thread is there any more
            self._steps.close()

    def hand_over(self) -> None:
        """Have a thread take what steps are left, unless they stand in a line, and tell the loop what came of it."""
        request = self._request
        is_under_way = isinstance(request, (Answers, Blocking)) and not (self.is_handed or self.is_still)
        if not is_under_way or self._driver.is_inherited:
            return
        with suppress(ClosedError):  # no thread is there any more: the loop goes on with it when it can
            self._have_thread(partial(finish, self._steps, request), self._end)
            self.is_handed = True
            self._unwatch()

    def abandon(self) -> None:
        """End the steps where they are, as by an exception; those that a thread has it takes to their end."""
        if not self.is_over:
            self._quit()
            if not self.is_handed:
                self._steps.close()

    def lost(self) -> None:
        """Leave or abandon the steps: the loop was closed, and has dropped what it was to call.

        It may be half gone, and is not touched: uvloop's would crash. One that runs has dropped it because the socket
        broke, as uvloop's does.
        """
        if self._loop.is_running() and not self._driver.is_inherited:
            self._loop.call_soon_threadsafe(self._go_on_unwatched)
            return
        self._number = -1
        if self._outlives:
            self.leave()
        else:
            self.abandon()

    async def stopped(self, stop: Callable[[], object] | None) -> None:
        """Return once the steps have ended; they are made to, and the server too."""
        if self.is_over or self._driver.is_inherited:
            return
        over: asyncio.Future[None] = self._loop.create_future()
        self._ended = lambda *_: over.set_result(None)
        if self.only_waits:
            self._go(self._steps.throw, asyncio.CancelledError())
        elif stop is not None:
            # The steps must not end meanwhile: what is stopped then would be somebody else's, on the same connection.
            self._unwatch()
            self.is_still = True
            # Not by the loop's own threads, which may all wait for what this connection is to do next.
            with suppress(ClosedError):  # the pool was closed, and stops all that runs
                await ended(asyncio.wrap_future(self._driver.stops.submit(stop)))
            self._until = time.monotonic() + CANCEL_S
            self._driver.look_after(self)
            self._move()
        await ended(over)

    def _move(self) -> None:
        """Go on after standing still."""
        self.is_still = False
        postponed, self._postponed = self._postponed, None
        if postponed is not None:
            postponed()
        else:
            self.advance(Ready.R)  # or nothing, if it is no answer that they wait for

    def _go(self, step: Callable[[Any], Request], value: object) -> None:
        """Take steps, first `step(value)`, until they wait for something."""
        following: tuple[Callable[[Any], Request], object] | None = (step, value)
        try:
            while following is not None:
                step, value = following
                self._request = request = step(value)
                following = self._wait(request)
        except StopIteration as end:
            self._end(end.value, None)
        except BaseException as error:  # noqa: BLE001  (`ended` hears of it)
            self._end(None, error)

    def _wait(self, request: Request) -> tuple[Callable[[Any], Request], object] | None:
        """See that the loop goes on when a request is fulfilled; return the next step if it is already."""
        try:
            if isinstance(request, Answers) and WATCHES_SOCKETS:
                self._watch_answers(request, next(request.generator))
            else:
                self._unwatch()  # else a socket that has something to read would call at each turn of the loop
                if isinstance(request, (Answers, Blocking)):
                    self._have_done(request)
                else:
                    self._await_turn(request)
        except StopIteration as end:
            return self._steps.send, end.value
        except BaseException as error:  # noqa: BLE001  (the steps hear of it, here and below)
            self._unwatch()  # before whoever hears of it closes the socket, and its number goes to another
            return self._steps.throw, error
        return None

    # What a server answers.

    def _watch_answers(self, request: Answers, wait: Wait) -> None:
        connection = request.connection
        if self._number < 0 and (request.until < inf or connection.may_be_pending):
            self._driver.look_after(self)
        self._number = connection.pgconn.socket
        self._driver.sockets.watch(self, self._number, wait)

    def advance(self, ready: Ready) -> None:
        """Take in what the socket has, and go on if it is all."""
        request = self._request
        if not isinstance(request, Answers) or self.is_still:
            return
        try:
            self._watch_answers(request, request.told(ready))
        except StopIteration as end:
            self._go(self._steps.send, end.value)
        except BaseException as error:  # noqa: BLE001
            self._unwatch()
            self._go(self._steps.throw, error)

    def _go_on_unwatched(self) -> None:
        self._unwatch()  # uvloop's keeps a useless rest, and the number of the socket goes to another
        self.advance(Ready.R)

    def _unwatch(self) -> None:
        if self._number >= 0:
            number, self._number = self._number, -1
            self._driver.sockets.unwatch(self, number)
            if self._until == inf:
                self._driver.look_away(self)

    # What blocks.

    def _have_done(self, request: Answers | Blocking) -> None:
        may_be_left = isinstance(request, Blocking) and request.may_be_left
        self._have_thread(request.wait, self._go_on_with, may_be_left=may_be_left)

    def _have_thread(
        self,
        do: Callable[[], Any],
        then: Callable[[Any, BaseException | None], object],
        *,
        may_be_left: bool = False,
    ) -> None:
        """Have a thread do something; then the loop calls `then` with the result or the error, unless it was left."""
        work = self._driver.threads.submit(do)
        self._request = Blocking(work.result, may_be_left)  # for a thread that takes the steps that are left
        work.add_done_callback(lambda work: self._tell(partial(self._done, work, then)))

    def _tell(self, call: Callable[[], object]) -> None:
        """Have the loop call it, from any thread."""
        soon = self._loop.call_soon if running_loop() is self._loop else self._loop.call_soon_threadsafe
        with suppress(RuntimeError):  # it was closed: the call goes, and says so
            soon(Call(self.lost), call)

    def _done(self, work: Future[Any], then: Callable[[Any, BaseException | None], object]) -> None:
        request = self._request
        if not isinstance(request, Blocking) or request.do != work.result:  # it was left
            return
        if self.is_still:
            self._postponed = partial(self._done, work, then)
            return
        error = work.exception()
        then(None if error is not None else work.result(), error)

    def _go_on_with(self, result: Any, error: BaseException | None) -> None:
        if error is not None:
            self._go(self._steps.throw, error)
        else:
            self._go(self._steps.send, result)

    # What others have.

    def _await_turn(self, turn: Turn) -> None:
        turn.listen(lambda: self._tell(partial(self._try_turn, turn)))
        self._driver.look_after(self)

    def _try_turn(self, turn: Turn) -> None:
        if self._request is not turn or self.is_over:
            return
        try:
            if not turn.has_come():
                return
        except BaseException as error:  # noqa: BLE001
            self._driver.look_away(self)
            self._go(self._steps.throw, error)
        else:
            self._driver.look_away(self)
            self._go(self._steps.send, None)

    # Now and then.

    def look(self) -> None:
        """See whether a turn has come, whether the server has been given long enough, and what its socket hides."""
        request = self._request
        if self.is_still or self.is_over or self._driver.is_inherited:
            return
        if isinstance(request, Answers):
            if time.monotonic() >= min(request.until, self._until):
                self._unwatch()
                self._go(self._steps.throw, Unanswered())
            elif request.connection.may_be_pending:
                self.advance(Ready.NONE)
        elif request is not None and not isinstance(request, Blocking):
            self._try_turn(request)

    # The end.

    def _quit(self) -> None:
        self.is_over = True
        self._request = self._postponed = None  # they may refer to this, as `_ended` does: no work for the collector
        self._unwatch()
        self._driver.look_away(self)

    def _end(self, result: T | None, error: BaseException | None) -> None:
        self._quit()
        self._steps.close()
        ended, self._ended = self._ended, _nothing
        ended(result, error)


def _nothing(*_: object) -> None:
    return None


def _settle(future: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
