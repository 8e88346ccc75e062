"""Event loops of every make, each run as asyncio.run runs one, and a pool that one after another of them uses."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import WITHIN
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool

T = TypeVar("T")
Make = Callable[[], asyncio.AbstractEventLoop]

ADD = "INSERT INTO t VALUES (?, ?)"
LONG = 3_000  # of COUNT_TO: longer than what is read on the loop's own thread


class Unwatchful(asyncio.SelectorEventLoop):
    """Watches no descriptors for others, as Windows' proactor does not."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError

    def remove_reader(self, *_: object) -> bool:
        raise NotImplementedError


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()  # type: ignore[no-any-return, unused-ignore]


MAKES: dict[str, Make] = {
    "asyncio": asyncio.new_event_loop,
    "unwatchful": Unwatchful,
}
if importlib.util.find_spec("uvloop"):
    MAKES["uvloop"] = new_uvloop

on_each_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())


def run(main: Coroutine[Any, Any, T], make: Make = asyncio.new_event_loop) -> T:
    """As asyncio.run, on a loop of this make, which must have nothing to complain of."""
    complaints: list[object] = []
    loop = make()
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    try:
        return loop.run_until_complete(asyncio.wait_for(main, 2 * WITHIN))
    finally:
        loop.run_until_complete(_cancel_what_is_left())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        assert complaints == []


async def _cancel_what_is_left() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def shared_pool(database: Path) -> Iterator[walpool.AsyncPool]:
    """Lend a pool with an empty table t (who, a) that a loop has used already; nothing of it may be left."""
    before = engine_threads()
    pool = walpool.AsyncPool(database)
    run(pool.script("CREATE TABLE t (who, a)"))
    yield pool
    run(pool.close())
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


async def counts(pool: walpool.AsyncPool) -> dict[object, int]:
    """Return how many different rows each writer has."""
    return dict(await pool.fetch("SELECT who, count(DISTINCT a) FROM t GROUP BY who"))


async def is_free(pool: walpool.AsyncPool) -> bool:
    """Return whether the writer answers, and no reader stays out once it has had time to come back."""
    await pool.execute("DELETE FROM t WHERE who = 'nobody'", timeout=WITHIN)
    deadline = time.monotonic() + WITHIN
    while (await pool.stats())["readers_out"] and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    figures = await pool.stats()
    return figures["readers_out"] == 0 and figures["jobs_waiting"] == 0
