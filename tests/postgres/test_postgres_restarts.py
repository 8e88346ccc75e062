"""A server that is restarted again and again under threads and tasks that write by every way there is.

writer                          server
sends a job
                                stops: `fast` ends every connection, `immediate` is a crash
is told that it failed          recovers, starts again
sends the next one, which is acknowledged
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
from helpers import Caller, eventually

import walpool.memory
from tests.memory.contract import record
from tests.postgres.pools import INSERT, TABLE, assert_unharmed
from walpool import errors
from walpool.memory import AsyncMemoryStore, MemoryStore
from walpool.postgres import AsyncPostgresPool, AsyncTransaction, PostgresPool, Transaction

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer
    from tests.torture import Torture

THREADS = TASKS = 8
WRITE_TIMEOUT = 10.0  # seconds
# What a call may take: its turn, then a group that waits for a lost connection, twice; far less than for ever.
LONGEST = 4 * WRITE_TIMEOUT


def insert_pair(tx: Transaction, value: str) -> None:
    tx.execute(INSERT, (value,))
    tx.execute(INSERT, (value + "'",))


async def insert_pair_async(tx: AsyncTransaction, value: str) -> None:
    await tx.execute(INSERT, (value,))
    await tx.execute(INSERT, (value + "'",))


class Load:
    """Threads and tasks that write, each value once, and what each of them was told.

    Args:
        pool, store: for the threads.
        url: the database, where the tasks open their own.

    Attributes:
        told: by value, `acknowledged` or the outcome of the error.
        longest: how long a call took at most, in seconds.
    """

    def __init__(self, pool: PostgresPool, store: MemoryStore, url: str) -> None:
        self.told: dict[str, str] = {}
        self.strange: list[BaseException] = []
        self.longest = 0.0
        self._heard: Counter[tuple[str, bool]] = Counter()  # by writer, and whether it was an acknowledgement
        self._is_over = threading.Event()
        self._pool = pool
        self._store = store
        self._url = url
        self._names = [f"thread{n}" for n in range(THREADS)] + [f"task{n}" for n in range(TASKS)]
        self._callers = [Caller(partial(self._thread, f"thread{n}")) for n in range(THREADS)]
        self._callers.append(Caller(lambda: asyncio.run(self._tasks())))

    def wait_for_everybody(self, *, acknowledged: bool) -> None:
        """Return once each thread and each task was told of two more writes that they are there, or have failed."""
        before = self._heard.copy()
        keys = [(name, acknowledged) for name in self._names]
        eventually(lambda: all(self._heard[key] > before[key] + 1 for key in keys), within=LONGEST)

    def stop(self) -> list[str]:
        """End the writers, and return what is in the database against what its writer was told."""
        self._is_over.set()
        for caller in self._callers:
            assert caller.outcome() is None
        rows = {value for (value,) in self._pool.fetch("SELECT a FROM t")}
        records = {each.id for each in self._store.iterate()}
        found = rows | records
        acknowledged = {value for value, told in self.told.items() if told == "acknowledged"}
        absent = {value for value, told in self.told.items() if told == "not_applied"}
        halves = {value.rstrip("'") for value in rows if value.endswith("'")} - rows
        return [
            *(f"lost: {value}" for value in acknowledged - found),
            *(f"there: {value}" for value in absent & found),
            *(f"half: {value}" for value in halves),
            *(f"never written: {value}" for value in {value.rstrip("'") for value in found} - set(self.told)),
        ]

    def _thread(self, name: str) -> None:
        pool, store = self._pool, self._store
        ways: list[Callable[[str], object]] = [
            lambda value: pool.execute(INSERT, (value,)),
            lambda value: pool.batch([(INSERT, (value,)), (INSERT, (value + "'",))]),
            lambda value: pool.run(lambda tx: insert_pair(tx, value)),
            lambda value: store.save([record(value, [1.0, 2.0], scope=f"/{name}", categories=("c",))]),
        ]
        for n in itertools.count():
            value, began = f"{name}/{n}", time.monotonic()
            try:
                ways[n % len(ways)](value)
                self._hear(name, value, began, None)
            except errors.Error as error:
                self._hear(name, value, began, error)
            with suppress(errors.OperationalError):
                store.count() if n % 2 else pool.fetchval("SELECT count(*) FROM t")
            if self._is_over.is_set():
                return

    async def _tasks(self) -> None:
        async with (
            AsyncPostgresPool(self._url, readers=2, write_timeout=WRITE_TIMEOUT) as pool,
            walpool.memory.open_async(self._url, readers=2, write_timeout=WRITE_TIMEOUT) as store,
        ):
            await asyncio.gather(*(self._task(pool, store, f"task{n}") for n in range(TASKS)))

    async def _task(self, pool: AsyncPostgresPool, store: AsyncMemoryStore, name: str) -> None:
        ways: list[Callable[[str], Awaitable[object]]] = [
            lambda value: pool.execute(INSERT, (value,)),
            lambda value: pool.batch([(INSERT, (value,)), (INSERT, (value + "'",))]),
            lambda value: pool.run(lambda tx: insert_pair_async(tx, value)),
            lambda value: store.save([record(value, [1.0, 2.0], scope=f"/{name}", categories=("c",))]),
        ]
        for n in itertools.count():
            value, began = f"{name}/{n}", time.monotonic()
            try:
                await ways[n % len(ways)](value)
                self._hear(name, value, began, None)
            except errors.Error as error:
                self._hear(name, value, began, error)
            with suppress(errors.OperationalError):
                await (store.count() if n % 2 else pool.fetchval("SELECT count(*) FROM t"))
            if self._is_over.is_set():
                return

    def _hear(self, name: str, value: str, began: float, error: errors.Error | None) -> None:
        self.longest = max(self.longest, time.monotonic() - began)
        self.told[value] = "acknowledged" if error is None else error.outcome
        self._heard[name, error is None] += 1  # its own: no other counts it
        if error is not None and not isinstance(error, errors.OperationalError) and error.outcome != "unknown":
            self.strange.append(error)


@pytest.mark.torture
@pytest.mark.crash
@pytest.mark.timeout(3600)
def test_server_that_restarts_under_threads_and_tasks_loses_nothing_and_lets_nobody_wait(
    own_postgres_server: PostgresServer, own_postgres_url: str, torture: Torture
) -> None:
    rounds = torture.size(2, 120)
    with (
        PostgresPool(own_postgres_url, readers=2, write_timeout=WRITE_TIMEOUT) as pool,
        walpool.memory.open(own_postgres_url, readers=2, write_timeout=WRITE_TIMEOUT) as store,
    ):
        pool.script(TABLE)
        load = Load(pool, store, own_postgres_url)
        for n in range(rounds):
            load.wait_for_everybody(acknowledged=True)
            own_postgres_server.stop("immediate" if n % 2 else "fast")
            if n % 3 == 1:  # nobody waits for it to come back
                load.wait_for_everybody(acknowledged=False)
            own_postgres_server.start()
        load.wait_for_everybody(acknowledged=True)
        wrong = load.stop()
        heard = Counter(load.told.values())
        note = f"{heard['acknowledged']:,} acknowledged, {heard['unknown']:,} unknown, longest {load.longest:.1f} s"
        torture.tell(
            "a PostgreSQL server restarted under threads and tasks",
            tried=rounds,
            unit="restarts",
            lost=len(wrong),
            note=note,
        )
        assert wrong == []
        assert load.strange == []
        assert load.longest < LONGEST
        assert cast("list[str]", store.check()) == []
        assert_unharmed(pool)
