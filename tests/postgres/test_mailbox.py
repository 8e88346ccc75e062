"""`Mailbox`, `Hands` and `Sockets`: how a loop is reached where Ctrl-C or the collector comes in between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future, thread
from functools import partial

import pytest
from helpers import WITHIN, Caller
from psycopg.waiting import Ready, Wait

from walpool.postgres._hands import Hands, Mailbox
from walpool.postgres._watching import Sockets, sockets


class Loop(asyncio.SelectorEventLoop):
    """A loop on which Ctrl-C comes once, while it is woken."""

    is_pressed = True

    def call_soon_threadsafe(self, *args: object, **kwargs: object) -> asyncio.Handle:
        if self.is_pressed:
            self.is_pressed = False
            raise KeyboardInterrupt
        return super().call_soon_threadsafe(*args, **kwargs)  # type: ignore[arg-type]


def test_mailbox_rings_again_after_ctrl_c_came_while_it_rang() -> None:
    loop = Loop()
    try:
        mailbox = Mailbox(loop)
        heard: list[int] = []
        puts: list[Callable[[], object]] = [lambda: heard.append(1), lambda: heard.append(2)]
        with pytest.raises(KeyboardInterrupt):
            mailbox.put(puts[0])
        mailbox.put(puts[1])
        loop.run_until_complete(asyncio.sleep(0))
        assert heard == [1, 2]
    finally:
        loop.close()


def test_loop_goes_on_looking_after_a_look_was_stopped() -> None:
    async def main() -> int:
        mailbox = Mailbox(asyncio.get_running_loop())
        looks: list[int] = []

        def look() -> bool:
            looks.append(1)
            return False

        def stopped() -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            mailbox.watch(stopped)
        mailbox.watch(look)
        return len(looks)

    assert asyncio.run(main()) == 1


def test_nothing_is_kept_for_a_loop_that_was_closed() -> None:
    loop = Loop()
    loop.is_pressed = False
    mailbox = Mailbox(loop)
    loop.close()
    for _ in range(3):
        mailbox.put(bool)
    assert not mailbox._calls


def test_what_the_collector_hands_over_in_the_midst_of_a_hand_over_waits_for_no_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hands = Hands(readers=1, writers=1, leaders=1)
    inner: list[Future[int]] = []
    made = thread._WorkItem

    def make(*args: object) -> object:  # called with the locks held; the collector may come here
        if not inner:
            inner.append(hands.alone.submit(int, "7"))
        return made(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(thread, "_WorkItem", make)
    outer = Caller(partial(hands.steps.submit, int, "3")).outcome()
    assert (outer.result(WITHIN), inner[0].result(WITHIN)) == (3, 7)
    hands.close()


class Waiter:
    """One end of a connection that has something to read, and somebody who waits for that and may be pressed."""

    def __init__(self, watching: Sockets, *, is_pressed: bool) -> None:
        self.ends = socket.socketpair()
        self.heard: list[Ready] = []
        self._is_pressed = is_pressed
        self.ends[0].send(b"x")
        watching.watch(self, self.ends[1].fileno(), Wait.R)

    def advance(self, ready: Ready) -> None:
        is_pressed, self._is_pressed = self._is_pressed, False
        if is_pressed:
            raise KeyboardInterrupt
        self.heard.append(ready)

    def lost(self) -> None:
        self.heard.append(Ready.NONE)

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.mark.usefixtures("watching")
def test_whoever_was_to_hear_of_a_socket_when_ctrl_c_came_hears_of_it_afterwards() -> None:
    loop = asyncio.new_event_loop()
    watching = sockets(loop)
    waiters = [Waiter(watching, is_pressed=n == 0) for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(10))
    loop.run_until_complete(asyncio.sleep(0.01))
    for waiter in waiters:
        assert waiter.heard
        watching.unwatch(waiter, waiter.ends[1].fileno())
        waiter.close()
    loop.close()
    assert not any(Ready.NONE in waiter.heard for waiter in waiters)


@pytest.mark.usefixtures("watching")
def test_whoever_waits_for_a_socket_hears_that_its_loop_was_closed() -> None:
    loop = asyncio.new_event_loop()
    watching = sockets(loop)
    waiter = Waiter(watching, is_pressed=False)
    loop.close()
    assert waiter.heard == [Ready.NONE]
    waiter.close()
