"""A pool's place on one event loop: where it is told what native threads have done, and how a task waits for that.

Knows no pool.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from walpool import _core

if TYPE_CHECKING:
    from walpool._core import _Begun

__all__ = ["DONE", "Desk", "prepare", "running_loop", "settled", "taken"]

DONE = -1  # a read that took no longer than a moment: its value is at hand
LINGER = 0.05  # seconds between two looks whether a closed pool's last calls on this loop are answered
PIECE = 0.0005  # seconds of converting parameters before the loop's other tasks take their turns


async def settled(mailbox: _core.Mailbox, begun: _Begun) -> Any:
    """Return what was begun comes to; give it up if the waiting task is cancelled."""
    number, future = begun
    if number < 0:
        if number != DONE:
            await mailbox.turn()  # this loop's reads have used up their share of its turn
        return future
    try:
        return await future
    except BaseException:
        mailbox.withdraw(number)
        raise
    finally:
        del begun, future  # its exception knows this frame: together they would wait for the garbage collector


async def taken(mailbox: _core.Mailbox, begun: _Begun) -> Any:
    """As `settled`, for what holds a connection: it goes back where it comes too late for its task."""
    _, future = begun
    try:
        return await settled(mailbox, begun)
    except BaseException:
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().abandon()
        raise
    finally:
        del begun, future


class Desk:
    """A pool's place on one event loop: the loop's mailbox, and the engine as the loop sees it once it is open."""

    __slots__ = ("engine", "loop", "mailbox", "opening")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.mailbox = _core.Mailbox(loop)
        self.engine: _core.AsyncEngine | None = None
        self.opening: asyncio.Task[None] | None = None
        try:
            if self.mailbox.fileno() < 0:
                raise NotImplementedError
            loop.add_reader(self.mailbox.fileno(), self.mailbox.drain)
        except NotImplementedError:  # Windows' proactor watches no descriptors
            self.mailbox.ring_by(loop.call_soon_threadsafe)

    def opened(self, opening: asyncio.Task[None]) -> None:
        """Forget an opening that is done: its exception, whose frames know the pool, is for those who wait."""
        self.opening = None
        if not opening.cancelled():
            opening.exception()

    def leave(self) -> None:
        """Settle what has come in, and stop watching; from any thread."""
        if self.loop.is_closed():
            self.mailbox.close()
        elif running_loop() is self.loop:
            self._leave_here()
        else:
            try:
                self.loop.call_soon_threadsafe(self._leave_here)
            except RuntimeError:  # closed meanwhile
                self.mailbox.close()

    def _leave_here(self) -> None:
        self.mailbox.drain_all()
        if self.mailbox.waiting:  # another handle keeps the engine open, and this one's last calls or blocks with it
            self.loop.call_later(LINGER, self._leave_here)
            return
        if self.mailbox.fileno() >= 0:
            with suppress(NotImplementedError):
                self.loop.remove_reader(self.mailbox.fileno())
        self.mailbox.close()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def prepare(prepared: _core.PreparedRows | _core.PreparedBatch) -> None:
    """Convert parameters in pieces, since many of them take long."""
    while prepared.prepare(PIECE):
        await asyncio.sleep(0)
