"""One AsyncPool on many event loops: at once in several threads, one after another, and on loops of every make."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from helpers import COUNT_TO, WITHIN, eventually, run_together
from leftovers import engine_threads, open_descriptors, threads_left_since
from loopmakes import ADD, LONG, MAKES, Make, counts, is_free, on_each_make, run, shared_pool

import walpool
from walpool import errors

SAME_LOOP = "belongs to the event loop"


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture
def shared(database: Path) -> Iterator[walpool.AsyncPool]:
    with shared_pool(database) as pool:
        yield pool


async def work_of_all_kinds(pool: walpool.AsyncPool, who: str, number: int) -> None:
    """Write three rows, 3 * number and the two after it, in three ways, and read them back in four."""
    first = 3 * number
    await pool.execute(ADD, (who, first))
    await pool.executemany(ADD, [(who, first + 1)])
    async with pool.transaction() as tx:
        await tx.execute(ADD, (who, first + 2))
    mine = "SELECT a FROM t WHERE who = ? AND a BETWEEN ? AND ? ORDER BY a"
    expected = [(first,), (first + 1,), (first + 2,)]
    assert await pool.fetch(mine, (who, first, first + 2)) == expected
    async with pool.read() as snapshot:
        assert await snapshot.fetch(mine, (who, first, first + 2)) == expected
    assert [row async for row in pool.stream(mine, (who, first, first + 2), chunk=2)] == expected
    assert await pool.fetchval(COUNT_TO, (LONG,)) == LONG


async def tasks_of_all_kinds(pool: walpool.AsyncPool, who: str, tasks: int) -> None:
    await asyncio.gather(*(work_of_all_kinds(pool, who, number) for number in range(tasks)))


# Many loops at once


def test_loops_in_several_threads_write_and_read_at_once_and_each_sees_its_own_answers(
    shared: walpool.AsyncPool,
) -> None:
    makes = [*MAKES.values()] * 2
    run_together(len(makes), lambda n: run(tasks_of_all_kinds(shared, f"loop {n}", 25), makes[n]))
    assert run(counts(shared)) == {f"loop {n}": 75 for n in range(len(makes))}
    assert run(is_free(shared))


@contextmanager
def threads_taking_turns_all_the_time() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def test_threads_begin_and_end_loops_on_one_pool_all_the_time(shared: walpool.AsyncPool) -> None:
    def one_loop_after_another(n: int) -> None:
        for number in range(60):
            asyncio.run(asyncio.wait_for(shared.execute(ADD, (n, number)), WITHIN))

    with threads_taking_turns_all_the_time():
        run_together(8, one_loop_after_another)
    assert run(counts(shared)) == dict.fromkeys(range(8), 60)


class Interrupting(asyncio.SelectorEventLoop):
    """Has something done by another thread as soon as anybody asks whether it is closed, once."""

    meanwhile: Callable[[], object] | None = None

    def is_closed(self) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            thread = threading.Thread(target=meanwhile, daemon=True)
            thread.start()
            thread.join(1.0)  # it may as well have to wait for this thread
        return super().is_closed()


def test_loop_may_begin_on_a_pool_while_another_thread_looks_for_loops_that_have_ended(
    shared: walpool.AsyncPool,
) -> None:
    asked = []

    def meanwhile() -> None:
        asked.append(run(shared.fetchval(COUNT_TO, (LONG,))))

    loop = Interrupting()
    run(shared.fetchval("SELECT 1"), lambda: loop)
    loop.meanwhile = meanwhile
    assert run(shared.fetchval("SELECT 2")) == 2
    eventually(lambda: asked == [LONG])


def test_first_calls_of_loops_in_several_threads_open_one_engine(database: Path) -> None:
    before = engine_threads()
    for _ in range(10):
        pool = walpool.AsyncPool(database)
        assert run_together(6, lambda _, pool=pool: run(pool.fetchval("SELECT 1"))) == [1] * 6
        run(pool.close())
        assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_threads_and_loops_share_a_file_under_load(shared: walpool.AsyncPool, database: Path) -> None:
    def in_a_thread(plain: walpool.Pool, n: int) -> None:
        for number in range(60):
            plain.execute(ADD, (n, number))
            assert plain.fetchval("SELECT max(a) FROM t WHERE who = ?", (n,)) == number
            if number % 10 == 0:
                with plain.transaction() as tx:
                    tx.execute(ADD, (n, number))

    async def on_a_loop(n: int) -> None:
        async def rows(numbers: range) -> None:
            for number in numbers:
                await shared.execute(ADD, (n, number))
                found = "SELECT count(*) FROM t WHERE who = ? AND a = ?"
                assert await shared.fetchval(found, (n, number)) == 1

        await asyncio.gather(*(rows(range(part, 60, 10)) for part in range(10)))

    with walpool.Pool(database) as plain:
        run_together(6, lambda n: in_a_thread(plain, n) if n % 2 else run(on_a_loop(n)))
        assert dict(plain.fetch("SELECT who, count(DISTINCT a) FROM t GROUP BY who")) == dict.fromkeys(range(6), 60)


def test_two_handles_on_one_file_on_one_loop_see_each_others_commits_and_close_apart(
    shared: walpool.AsyncPool, database: Path
) -> None:
    async def main() -> None:
        other = walpool.AsyncPool(database)
        await asyncio.gather(tasks_of_all_kinds(shared, "one", 20), tasks_of_all_kinds(other, "two", 20))
        assert await counts(shared) == await counts(other) == {"one": 60, "two": 60}
        late = asyncio.create_task(shared.fetchval(COUNT_TO, (100_000,)))
        await other.close()
        with pytest.raises(errors.ClosedError):
            await other.fetchval("SELECT 1")
        assert await late == 100_000
        assert await is_free(shared)

    run(main())


def test_pool_that_is_made_without_a_loop_is_opened_by_whichever_loop_comes_first(database: Path) -> None:
    pool = walpool.AsyncPool(database)  # as at the import of a module
    assert open_descriptors(database) == []
    assert run_together(1, lambda _: run(pool.fetchval("SELECT 7"))) == [7]
    assert run(pool.fetchval("SELECT 8")) == 8
    run(pool.close())


# What belongs to one loop


@pytest.mark.parametrize("block", ["transaction", "read", "stream"])
def test_block_that_is_used_from_another_loop_refuses_and_goes_on_with_its_own(
    shared: walpool.AsyncPool, block: str
) -> None:
    run(shared.executemany(ADD, [("before", n) for n in range(3)]))

    async def main() -> None:
        stream = shared.stream("SELECT a FROM t ORDER BY a", chunk=1)
        async with stream if block == "stream" else getattr(shared, block)() as inside:
            use = inside.__anext__ if block == "stream" else partial(inside.fetchval, "SELECT min(a) FROM t")
            await use()

            async def elsewhere() -> None:
                with pytest.raises(errors.InterfaceError, match=SAME_LOOP):
                    await use()

            await asyncio.to_thread(run, elsewhere())
            assert await use() == ((1,) if block == "stream" else 0)

    run(main())
    assert run(is_free(shared))


# Loops one after another


@on_linux
@on_each_make
def test_loops_one_after_another_leave_no_descriptors_and_no_threads(shared: walpool.AsyncPool, make: Make) -> None:
    async def main(number: int) -> None:
        await shared.execute(ADD, ("one", number))
        assert await shared.fetchval(COUNT_TO, (LONG,)) == LONG
        pending = asyncio.create_task(shared.execute(ADD, ("pending", number)))
        await asyncio.sleep(0)
        assert not pending.done()

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(engine_threads())

    for number in range(10):
        run(main(number), make)
    before = held()
    for number in range(10, 210):
        run(main(number), make)
    after = held()
    assert after[0] <= before[0] + 4
    assert after[1] <= before[1] + 4, engine_threads()
    assert run(counts(shared))["one"] == 210


@on_linux
def test_pools_that_were_closed_and_are_kept_hold_no_descriptors(database: Path) -> None:
    async def main() -> None:
        async with walpool.AsyncPool(database) as pool:
            await pool.fetchval("SELECT 1")
        kept.append(pool)

    kept: list[walpool.AsyncPool] = []
    run(main())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        run(main())
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 5, "of ten pools"


def test_close_that_ended_with_its_loop_is_done_by_the_next(database: Path) -> None:
    before = engine_threads()
    pool = walpool.AsyncPool(database)

    async def main() -> None:
        await pool.fetchval("SELECT 1")
        asyncio.create_task(pool.close())  # noqa: RUF006 - the loop ends before it does
        await asyncio.sleep(0)

    run(main())
    run(pool.close())
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_close_on_a_second_loop_waits_too_until_the_file_is_closed(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    reading, closing, let_go = threading.Event(), threading.Event(), threading.Event()

    async def read() -> None:
        async with pool.read() as snapshot:
            await snapshot.fetchval("SELECT 1")
            reading.set()
            assert await asyncio.to_thread(let_go.wait, WITHIN)

    async def close() -> None:
        assert await asyncio.to_thread(reading.wait, WITHIN)
        task = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        closing.set()
        await task

    async def close_too() -> list[str]:
        assert await asyncio.to_thread(closing.wait, WITHIN)
        task = asyncio.create_task(pool.close())
        for _ in range(3):
            await asyncio.sleep(0)
        returned_early = task.done()
        let_go.set()
        await task
        assert not returned_early
        return open_descriptors(database)

    left = run_together(3, lambda n: run([read, close, close_too][n]()))
    assert left[2] == []
