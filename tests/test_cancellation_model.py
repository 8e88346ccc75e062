"""Cancellation against a model: what was withdrawn is absent, what was acknowledged is there, once and whole.

tasks, on several loops        writer
queue up, of every verb        held
some are cancelled
                               let go
the others are answered        rows: those of the others, in their order, and no more
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, run_together
from looping import INSERT, LOOPS, async_table, held, kept, outcome, run, stat, until

import walpool
from tests.torture import Torture

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

PARTS = 3  # rows of each write
CHECKPOINTS = 1  # may stand in the queue among the jobs
VALUES = "INSERT INTO t VALUES (?), (?), (?)"


def parts(name: str) -> list[str]:
    return [f"{name}/{part}" for part in range(PARTS)]


async def write_in_transaction(pool: walpool.AsyncPool, name: str) -> None:
    async with pool.transaction() as tx:
        for part in parts(name):
            await tx.execute(INSERT, (part,))


async def write_in_savepoints(pool: walpool.AsyncPool, name: str) -> None:
    async with pool.transaction() as tx:
        for part in parts(name):
            async with tx.transaction():
                await tx.executemany(INSERT, [(part,)])


# Each writes PARTS rows, all of them or none.
WRITES: list[Callable[[walpool.AsyncPool, str], Coroutine[Any, Any, Any]]] = [
    lambda pool, name: pool.execute(VALUES, parts(name)),
    lambda pool, name: pool.executemany(INSERT, [(part,) for part in parts(name)]),
    lambda pool, name: pool.batch([(INSERT, (part,)) for part in parts(name)]),
    lambda pool, name: pool.script("; ".join(f"INSERT INTO t VALUES ('{part}')" for part in parts(name))),
    write_in_transaction,
    write_in_savepoints,
]


def whole(rows: list[str]) -> set[str]:
    """Return the names of the writes whose rows are there, which must be there once and completely."""
    counted = Counter(rows)
    assert not [row for row, times in counted.items() if times > 1], "written twice"
    names = Counter(row.rpartition("/")[0] for row in rows)
    assert {name for name, found in names.items() if found != PARTS} == set(), "written in part"
    return set(names)


async def are_queued(pool: walpool.AsyncPool, jobs: int) -> bool:
    return await stat(pool, "jobs_waiting") >= jobs


@pytest.mark.parametrize("loop", LOOPS)
def test_withdrawn_jobs_are_absent_and_all_others_are_there(database: Path, loop: str, torture: Torture) -> None:
    rounds, chosen = torture.size(10, 300), random.Random(7)
    withdrawn: set[str] = set()
    answered: set[str] = set()

    async def one_round(pool: walpool.AsyncPool, number: int) -> None:
        async with held(pool.transaction):
            tasks = {
                f"{number}/{index}": asyncio.create_task(chosen.choice(WRITES)(pool, f"{number}/{index}"))
                for index in range(100)
            }
            await until(partial(are_queued, pool, len(tasks)))
            given_up = set(chosen.sample(sorted(tasks), chosen.randrange(100)))
            for name in given_up:
                tasks[name].cancel()
            await asyncio.wait([tasks[name] for name in given_up] or [asyncio.create_task(asyncio.sleep(0))])
            assert {name for name, task in tasks.items() if task.done()} == given_up
            assert await stat(pool, "jobs_waiting") <= len(tasks) - len(given_up) + CHECKPOINTS
        ends = await outcome(asyncio.gather(*tasks.values(), return_exceptions=True))
        assert {name for name, end in zip(tasks, ends, strict=True) if isinstance(end, BaseException)} == given_up
        withdrawn.update(given_up)
        answered.update(tasks.keys() - given_up)

    async def main(pool: walpool.AsyncPool) -> None:
        for number in range(rounds):
            await one_round(pool, number)

    with async_table(database, synchronous="normal") as pool:
        run(main(pool), loop=loop)
        found = whole(run(kept(pool)))
    torture.tell(
        f"withdrawals on {loop}",
        tried=len(withdrawn),
        unit="jobs",
        lost=len(withdrawn & found) + len(answered - found),
    )
    assert found == answered


async def storm(pool: walpool.AsyncPool, name: str, rounds: int) -> tuple[set[str], set[str]]:
    """Write in bursts and cancel at random instants; return what was acknowledged, and what may or may not be there."""
    chosen = random.Random(name)
    acknowledged: set[str] = set()
    unknown: set[str] = set()
    for number in range(rounds):
        tasks = {
            f"{name}/{number}/{index}": asyncio.create_task(
                chosen.choice(WRITES)(pool, f"{name}/{number}/{index}"),
            )
            for index in range(chosen.randrange(1, 30))
        }
        reads = [asyncio.create_task(pool.fetchval(COUNT_TO, (chosen.randrange(50_000),))) for _ in range(3)]
        for task in chosen.sample([*tasks.values(), *reads], len(tasks) // 2 + 2):
            for _ in range(chosen.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
            if chosen.random() < 0.2:
                task.cancel()
        ends = await outcome(asyncio.gather(*tasks.values(), return_exceptions=True))
        await outcome(asyncio.gather(*reads, return_exceptions=True))
        for written, end in zip(tasks, ends, strict=True):
            assert not isinstance(end, Exception), repr(end)
            (unknown if isinstance(end, BaseException) else acknowledged).add(written)
    return acknowledged, unknown


def test_storms_of_cancellations_on_several_loops_lose_nothing_and_leave_nothing_torn(
    database: Path, torture: Torture
) -> None:
    rounds = torture.size(15, 600)

    async def is_free(pool: walpool.AsyncPool) -> bool:
        stats = await pool.stats()
        return stats["jobs_waiting"] == stats["bytes_waiting"] == stats["readers_out"] == 0

    def weather(pool: walpool.AsyncPool, index: int) -> tuple[set[str], set[str]]:
        async def main() -> tuple[set[str], set[str]]:
            return await storm(pool, f"loop {index}", rounds)

        if LOOPS[index % len(LOOPS)] == "asyncio":
            return asyncio.run(main())
        import uvloop

        return uvloop.run(main())  # type: ignore[no-any-return, unused-ignore]

    with async_table(database, readers=2, max_waiting_bytes=4096, synchronous="normal") as pool:
        results = run_together(4, partial(weather, pool), timeout=800)
        acknowledged, unknown = (set[str]().union(*sets) for sets in zip(*results, strict=True))

        async def look() -> list[str]:
            await until(lambda: is_free(pool))
            return await kept(pool)

        found = whole(run(look()))
    torture.tell("cancellations on four loops", tried=len(unknown), unit="jobs", lost=len(acknowledged - found))
    assert len(unknown) > rounds
    assert acknowledged <= found <= acknowledged | unknown
