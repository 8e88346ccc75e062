"""`Driver`: an event loop that takes steps on its own thread, between two tasks. Knows no SQL and no jobs.

To send a group from another thread costs a hand-over of the interpreter's lock for each message of it. What may block
goes to a thread all the same, and so does what is left when the loop may be going away: steps do not mind who takes
them (`_steps`).
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from psycopg.waiting import Ready, Wait

from walpool.desk import running_loop
from walpool.errors import ClosedError
from walpool.postgres._connections import SLICE
from walpool.postgres._hands import ended
from walpool.postgres._steps import Answers, Blocking, finish

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import psycopg

    from walpool.postgres._hands import Mailbox
    from walpool.postgres._steps import Request, Steps, Turn

__all__ = ["WATCHES_SOCKETS", "Drive", "Driver"]

T = TypeVar("T")

WATCHES_SOCKETS: Final = sys.platform != "win32"
"""Whether loops can watch sockets that are not theirs. Windows' usual one cannot: there a thread waits for answers."""


class Driver:
    """One event loop, and the steps that it takes for an engine. Its methods are called on the loop's thread.

    Attributes:
        mailbox: by which other threads reach the loop.
        threads: they do what may block.
    """

    def __init__(self, mailbox: Mailbox, threads: ThreadPoolExecutor) -> None:
        self.mailbox = mailbox
        self.threads = threads
        self._process = os.getpid()
        self._drives: set[Drive[Any]] = set()  # those that are to be finished whatever becomes of the loop

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

    async def result(self, steps: Steps[T], stop: Callable[[], object]) -> T:
        """Return what steps come to; if the task is cancelled, wait for their end all the same.

        Args:
            steps: what to do.
            stop: makes the server end what it does; called on a thread.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        drive = Drive(self, steps, partial(_settle, future))
        try:
            drive.begin()
            return await future
        except asyncio.CancelledError:
            await drive.stopped(stop)
            raise
        finally:
            drive.abandon()  # the loop is going away, if they are not over

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
        "_request",
        "_steps",
        "_timer",
        "_watched",
        "_watching",
        "_writes",
        "is_over",
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
        self._watched: psycopg.Connection[Any] | None = None  # whose socket the loop watches
        self._number = -1  # of that socket
        self._watching: Callable[[], _Watch | None] = _nothing
        self._writes = False  # whether it watches for room to write, too
        self._timer: asyncio.TimerHandle | None = None  # of the next look whether a turn has come
        self.is_over = False

    def begin(self) -> None:
        """Take steps until they wait for something."""
        self._go(self._steps.send, None)

    def leave(self) -> None:
        """Have a thread take the steps that are left."""
        if self.is_over:
            return
        request = self._request
        self._quit()
        if self._driver.is_inherited:
            return
        try:
            self._driver.threads.submit(finish, self._steps, request)
        except ClosedError:  # no thread is there any more
            self._steps.close()

    def abandon(self) -> None:
        """End the steps where they are, as by an exception."""
        if not self.is_over:
            self._quit()
            self._steps.close()

    def lost(self) -> None:
        """Leave or abandon the steps: the loop was closed, and has dropped what it was to call.

        It may be half gone, and is not touched: uvloop's would crash. One that runs has dropped it because the socket
        broke, as uvloop's does.
        """
        self._watched = None
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self.advance, Ready.R)
        elif self._outlives:
            self.leave()
        else:
            self.abandon()

    async def stopped(self, stop: Callable[[], object]) -> None:
        """Return once the steps have ended; they are made to, and the server too."""
        if self.is_over or self._driver.is_inherited:
            return
        over: asyncio.Future[None] = self._loop.create_future()
        self._ended = lambda *_: over.set_result(None)
        if isinstance(self._request, (Answers, Blocking)):
            await ended(self._loop.run_in_executor(None, stop))
        else:
            self._go(self._steps.throw, asyncio.CancelledError())
        await ended(over)

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
        if self._watched is not request.connection:
            self._unwatch()
            self._watched, self._number = request.connection, request.connection.pgconn.socket
            watch = _Watch(self)
            self._watching = weakref.ref(watch)
            try:
                self._loop.add_reader(self._number, watch.tell, Ready.R)
            except RuntimeError:  # uvloop's keeps a useless rest of what watched a socket that broke
                self._loop.remove_reader(self._number)
                self._loop.add_reader(self._number, watch.tell, Ready.R)
        if wait is not Wait.R:
            self._writes = True
            self._loop.add_writer(self._number, self.advance, Ready.W)

    def _watch_no_writes(self) -> None:
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._number)

    def advance(self, ready: Ready) -> None:
        """Take in what the socket has, and go on if it is all."""
        request = self._request
        if not isinstance(request, Answers) or self._driver.is_inherited:
            return
        # The socket is open yet. Once libpq has closed it, to stop half of the watch fails, on uvloop for ever after.
        self._watch_no_writes()
        try:
            self._watch_answers(request, request.generator.send(ready))
        except StopIteration as end:
            self._go(self._steps.send, end.value)
        except BaseException as error:  # noqa: BLE001
            self._unwatch()
            self._go(self._steps.throw, error)

    def _unwatch(self) -> None:
        if self._watched is None or self._driver.is_inherited:
            return
        self._watched = None
        watch = self._watching()
        if watch is not None:
            watch.drive = None
        self._watch_no_writes()
        self._loop.remove_reader(self._number)

    # What blocks.

    def _have_done(self, request: Answers | Blocking) -> None:
        work = self._driver.threads.submit(request.wait)
        self._request = Blocking(work.result)  # for a thread that takes the steps that are left
        work.add_done_callback(lambda work: self._tell(partial(self._done, work)))

    def _tell(self, call: Callable[[], object]) -> None:
        """Have the loop call it, from any thread."""
        watch = _Watch(self)
        soon = self._loop.call_soon if running_loop() is self._loop else self._loop.call_soon_threadsafe
        with suppress(RuntimeError):  # it was closed: the watch goes, and says so
            soon(watch.call, call)

    def _done(self, work: Future[Any]) -> None:
        if self.is_over:
            return
        error = work.exception()
        if error is not None:
            self._go(self._steps.throw, error)
        else:
            self._go(self._steps.send, work.result())

    # What others have.

    def _await_turn(self, turn: Turn) -> None:
        turn.listen(lambda: self._tell(partial(self._look, turn)))
        self._timer = self._loop.call_later(SLICE, self._look, turn)

    def _look(self, turn: Turn) -> None:
        if self._request is not turn or self.is_over:
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            if not turn.has_come():
                self._timer = self._loop.call_later(SLICE, self._look, turn)
                return
        except BaseException as error:  # noqa: BLE001
            self._go(self._steps.throw, error)
        else:
            self._go(self._steps.send, None)

    # The end.

    def _quit(self) -> None:
        self.is_over = True
        self._request = None  # it may refer to this, as `_ended` does: no work for the collector
        self._unwatch()

    def _end(self, result: T | None, error: BaseException | None) -> None:
        self._quit()
        self._steps.close()
        ended, self._ended = self._ended, _nothing
        ended(result, error)


class _Watch:
    """What a loop is to call for a drive. It alone keeps this, and drops it when it is closed: then the drive hears."""

    __slots__ = ("__weakref__", "drive")

    def __init__(self, drive: Drive[Any]) -> None:
        self.drive: Drive[Any] | None = drive  # None once there is nothing to call any more

    def tell(self, ready: Ready) -> None:
        """Say that the socket has something to read."""
        if self.drive is not None:
            self.drive.advance(ready)

    def call(self, call: Callable[[], object]) -> None:
        """Call it; this is all that the loop was to do."""
        self.drive = None
        call()

    def __del__(self) -> None:
        if self.drive is not None:
            self.drive.lost()


def _nothing(*_: object) -> None:
    return None


def _settle(future: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
