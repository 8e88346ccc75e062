"""`Driver`: an event loop that takes steps on its own thread, between two tasks. Knows no SQL and no jobs.

To send a group from another thread costs a hand-over of the interpreter's lock for each message of it. What may block
goes to a thread all the same, and so does what is left when the loop may be going away: steps do not mind who takes
them (`_steps`).
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from psycopg.waiting import Ready, Wait

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
"""Whether loops can watch sockets that are not theirs: Windows' usual one cannot."""


class Driver:
    """One event loop, and the steps that it takes for an engine. Its methods are called on the loop's thread.

    Attributes:
        mailbox: by which other threads reach the loop.
    """

    def __init__(self, mailbox: Mailbox, threads: ThreadPoolExecutor) -> None:
        self.mailbox = mailbox
        self._threads = threads
        self._drives: set[Drive[Any]] = set()  # those that are to be finished whatever becomes of the loop

    def begin(self, steps: Steps[None]) -> None:
        """Take steps that nobody on this loop waits for; what they raise is told as asyncio tells such things."""
        drive = Drive(steps, self.mailbox, self._threads, lambda _, error: self._over(drive, error))
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
        drive = Drive(steps, self.mailbox, self._threads, partial(_settle, future))
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
        "_ended",
        "_loop",
        "_mailbox",
        "_number",
        "_request",
        "_steps",
        "_threads",
        "_timer",
        "_watched",
        "_watching",
        "_writes",
        "is_over",
    )

    def __init__(
        self,
        steps: Steps[T],
        mailbox: Mailbox,
        threads: ThreadPoolExecutor,
        ended: Callable[[T | None, BaseException | None], object],
    ) -> None:
        """Make one; `ended` is called with the result, or with the error, unless the steps are left or abandoned."""
        self._steps = steps
        self._mailbox = mailbox
        self._threads = threads
        self._ended = ended
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
        self._quit()
        try:
            self._threads.submit(finish, self._steps, self._request)
        except ClosedError:  # no thread is there any more
            self._steps.close()

    def abandon(self) -> None:
        """End the steps where they are, as by an exception."""
        if not self.is_over:
            self._quit()
            self._steps.close()

    async def stopped(self, stop: Callable[[], object]) -> None:
        """Return once the steps have ended; they are made to, and the server too."""
        if self.is_over:
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
            if isinstance(request, Answers):
                self._watch_answers(request, next(request.generator))
            else:
                self._unwatch()  # else a socket that has something to read would call at each turn of the loop
                if isinstance(request, Blocking):
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
            self._loop.add_reader(self._number, watch.tell, Ready.R)
        writes = wait is not Wait.R
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._loop.add_writer(self._number, self.advance, Ready.W)
            else:
                self._loop.remove_writer(self._number)

    def advance(self, ready: Ready) -> None:
        """Take in what the socket has, and go on if it is all."""
        request = self._request
        if self.is_over or not isinstance(request, Answers):
            return
        try:
            self._watch_answers(request, request.generator.send(ready))
        except StopIteration as end:
            self._go(self._steps.send, end.value)
        except BaseException as error:  # noqa: BLE001
            self._unwatch()
            self._go(self._steps.throw, error)

    def _unwatch(self) -> None:
        if self._watched is None:
            return
        self._watched = None
        watch = self._watching()
        if watch is not None:
            watch.drive = None
        self._loop.remove_reader(self._number)
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._number)

    # What blocks.

    def _have_done(self, request: Blocking) -> None:
        work = self._threads.submit(request.do)
        self._request = Blocking(work.result)  # for a thread that takes the steps that are left
        work.add_done_callback(lambda work: self._tell(partial(self._done, work)))

    def _tell(self, call: Callable[[], object]) -> None:
        """Have the loop call it, from any thread; a loop that was closed does not take the steps that are left."""
        if not self._mailbox.put(call):
            self.leave()

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
        self._unwatch()

    def _end(self, result: T | None, error: BaseException | None) -> None:
        self._quit()
        self._steps.close()
        ended, self._ended = self._ended, _nothing
        self._request = None  # as `ended`, it may refer to this: no work for the collector
        ended(result, error)


class _Watch:
    """What a loop calls when a socket has something to read. It alone keeps this, and drops it when it is closed."""

    __slots__ = ("__weakref__", "drive")

    def __init__(self, drive: Drive[Any]) -> None:
        self.drive: Drive[Any] | None = drive  # None once the socket is watched no more

    def tell(self, ready: Ready) -> None:
        """Pass it on."""
        if self.drive is not None:
            self.drive.advance(ready)

    def __del__(self) -> None:
        if self.drive is not None:
            self.drive.leave()


def _nothing(*_: object) -> None:
    return None


def _settle(future: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
