"""Event loops for tests: a test on each kind of loop, what a loop complained of, and how long it stood still.

A test is run with `on_asyncio` or `on_every_loop`. It fails when its loop had anything to complain of, such as an
answer that came for a future that was no longer waiting.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import WITHIN
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool

T = TypeVar("T")

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
INSERT = "INSERT INTO t VALUES (?)"
LONGEST = 50.0  # seconds for a test: uvloop lets no exception of a signal's handler through, so not pytest-timeout's
BEAT = 0.005  # seconds
STILL = (
    0.25  # seconds: far more than a busy machine keeps a free loop waiting, far less than anything that is waited for
)

Test = Callable[..., Coroutine[Any, Any, object]]


def run(main: Coroutine[Any, Any, T], *, loop: str = "asyncio") -> T:
    """Run `main` in a loop of its own, which must have nothing to complain of."""
    if loop == "uvloop":
        import uvloop

        return uvloop.run(_without_complaints(main))  # type: ignore[no-any-return, unused-ignore]
    return asyncio.run(_without_complaints(main))


async def _without_complaints(main: Coroutine[Any, Any, T]) -> T:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    result = await asyncio.wait_for(main, LONGEST)
    gc.collect(1)  # a task whose error nobody asked for complains when it goes; it is young
    assert complaints == []
    return result


def on_every_loop(test: Test) -> Callable[..., None]:
    """Make a test of a coroutine function that runs on each kind of loop."""
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(_as_test(test, ("loop",)))
    return parametrized


def on_asyncio(test: Test) -> Callable[..., None]:
    """Make a test of a coroutine function that runs on asyncio's own loop."""
    return _as_test(test, ())


def _as_test(test: Test, more: Iterable[str]) -> Callable[..., None]:
    @functools.wraps(test)
    def run_it(*args: Any, **kwargs: Any) -> None:
        loop = kwargs.pop("loop", "asyncio")
        run(test(*args, **kwargs), loop=loop)

    signature = inspect.signature(test)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
    run_it.__signature__ = signature.replace(  # type: ignore[attr-defined]  # where pytest looks for fixtures
        parameters=[*signature.parameters.values(), *added]
    )
    return run_it


def make_table(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE IF NOT EXISTS t (a)")


@contextmanager
def async_table(database: Path, **settings: object) -> Iterator[walpool.AsyncPool]:
    """Make an empty table t (a), and lend a pool on it that is not open yet; nothing may be left once it is closed."""
    before = engine_threads()
    make_table(database)
    pool = walpool.AsyncPool(database, **settings)
    try:
        yield pool
    finally:
        run(pool.close())
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


async def kept(pool: walpool.AsyncPool) -> list[Any]:
    """Return what is in the table, in the order in which it came."""
    return [a for (a,) in await pool.fetch("SELECT a FROM t ORDER BY rowid")]


async def stat(pool: walpool.AsyncPool, key: str) -> int | float:
    return (await pool.stats())[key]


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within: float = WITHIN) -> None:
    """Return once the condition holds, for what has no event to wait for; the loop goes on meanwhile."""
    deadline = time.monotonic() + within
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.001)


async def until_waiting(pool: walpool.AsyncPool, jobs: int) -> None:
    """Return once so many jobs and transactions are in the queue."""

    async def are_waiting() -> bool:
        return await stat(pool, "jobs_waiting") == jobs

    await until(are_waiting)


async def until_reading(pool: walpool.AsyncPool, readers: int) -> None:
    """Return once so many readers are out."""

    async def are_out() -> bool:
        return await stat(pool, "readers_out") == readers

    await until(are_out)


async def queue_up(pool: walpool.AsyncPool, calls: Iterable[Coroutine[Any, Any, T]]) -> list[asyncio.Task[T]]:
    """Start a task for each call, in this order in a queue that is empty; the writer must be held."""
    await until_waiting(pool, 0)
    tasks = []
    for call in calls:
        tasks.append(asyncio.create_task(call))
        await until_waiting(pool, len(tasks))
    return tasks


async def outcome(task: Awaitable[T], *, within: float = WITHIN) -> T:
    """Return what a task returned or raised, which must have come in time."""
    return await asyncio.wait_for(task, within)


async def cancel(task: asyncio.Task[Any], *, within: float = WITHIN) -> None:
    """Cancel a task, which must end as cancelled and in time."""
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=within)
    assert done, "the cancelled task goes on"
    assert task.cancelled(), repr(task)


class Holder:
    """A task that holds a block of a pool until it is told to let go, in a context of its own."""

    def __init__(self, block: Callable[[], Any], then: Callable[[Any], Awaitable[object]] | None = None) -> None:
        self._block = block
        self._then = then
        self.held, self.let_go = asyncio.Event(), asyncio.Event()
        self.inside: Any = None
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._block() as self.inside:
            self.held.set()
            await self.let_go.wait()
            if self._then:
                await self._then(self.inside)

    async def begun(self) -> Holder:
        """Return once the block is entered."""
        entered = asyncio.create_task(self.held.wait())
        await asyncio.wait([entered, self.task], return_when=asyncio.FIRST_COMPLETED, timeout=WITHIN)
        entered.cancel()
        assert self.held.is_set(), repr(self.task)
        return self

    async def end(self) -> None:
        """Let the block end, and return once it has."""
        self.let_go.set()
        await outcome(self.task)


@asynccontextmanager
async def held(block: Callable[[], Any]) -> AsyncIterator[Holder]:
    """Hold `pool.transaction` or `pool.read` in another task, so that this one is free to call the pool."""
    holder = await Holder(block).begun()
    try:
        yield holder
    finally:
        await holder.end()


def waits_for_a_core() -> dict[str, float]:
    """Return for how many seconds each thread of this process was ready to run and had no core; nothing if not told."""
    waits = {}
    for told in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            waits[told.parent.name] = int(told.read_text().split()[1]) / 1e9
    return waits


class Heartbeat:
    """A task that wakes each BEAT, and the longest time that it was kept from it, in seconds.

    For which it did not wait for a core: what others do on the machine is no fault of the loop's.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.beats = 0
        self._last = (time.monotonic(), waits_for_a_core())

    async def __aenter__(self) -> Heartbeat:
        self._last = (time.monotonic(), waits_for_a_core())
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._note()

    def assert_free(self) -> None:
        """Fail if the loop stood still. A machine may too: what says so is tried again (pyproject.toml)."""
        assert self.longest < STILL, f"the loop stood still for {self.longest:.2f} s"

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            self._note()
            self.beats += 1

    def _note(self) -> None:
        last, self._last = self._last, (time.monotonic(), waits_for_a_core())
        waited = sum(waits - last[1].get(thread, 0.0) for thread, waits in self._last[1].items())
        self.longest = max(self.longest, self._last[0] - last[0] - waited)
