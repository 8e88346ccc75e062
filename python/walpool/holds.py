"""What a thread or task holds open, and whether an event loop runs here: what a pool's verb must know before it waits.

Knows no pool.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from walpool.errors import ReentrantError

__all__ = ["Hold", "hold_open", "is_on_event_loop", "open_here", "refuse_reentry"]

# What this thread or task, and the tasks it began, hold open: pools' own verbs would wait for themselves there.
open_here: ContextVar[tuple[Hold, ...]] = ContextVar("walpool_open_here", default=())


class Hold:
    """A block that holds a connection, for a verb of its pool that is called inside."""

    __slots__ = ("engine", "held", "is_open", "path", "process", "use")

    def __init__(self, engine: object, path: str, held: str, use: str | None) -> None:
        self.engine = engine
        self.path = path
        self.held = held
        self.use = use  # what to use instead of the pool; None where the pool may be used
        self.is_open = True
        self.process = os.getpid()

    def blocks(self, verb: str, engine: object, path: str) -> bool:
        """Return whether the verb would wait for this block."""
        if not self.is_open or self.process != os.getpid():
            return False  # what a child inherited holds nothing of its own
        if verb == "close":
            return self.engine is engine  # another handle on the file is not the last one
        return self.use is not None and self.path == path


def refuse_reentry(verb: str, engine: object, path: str) -> None:
    """Raise `ReentrantError` if the verb, of a pool on this file, would wait for a block that is open here."""
    for hold in open_here.get():
        if hold.blocks(verb, engine, path):
            advice = "end the block first" if verb == "close" else f"use {hold.use} in hand"
            msg = f"{verb}() inside {hold.held} of the same pool would wait for itself; {advice} [{path}]"
            raise ReentrantError(msg)


@contextmanager
def hold_open(hold: Hold) -> Iterator[None]:
    """Hold it for the length of a block."""
    try:  # from before it is entered: an exception that comes in between must not leave it open for ever
        open_here.set((*open_here.get(), hold))
        yield
    finally:
        # Generators and tasks end blocks in any order, and in other contexts than those in which they began them:
        # the flag reaches the copies of the variable that those keep.
        hold.is_open = False
        open_here.set(tuple(other for other in open_here.get() if other.is_open))


def is_on_event_loop() -> bool:
    """Return whether this thread runs an asyncio event loop just now; asyncio is not imported for the question."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None
