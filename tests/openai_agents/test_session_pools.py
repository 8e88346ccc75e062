"""Which pool a `WalpoolSession` stores in, who shares it and who closes it; what two hundred of them cost."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import COUNT_TO, run_python
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool
from walpool.openai_agents import WalpoolSession, _database

ITEMS: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def no_pool_is_shared_any_more() -> Any:
    yield
    assert dict(_database._shared) == {}


def cost() -> tuple[int, int]:
    """Return how many of walpool's threads this process has, and how many descriptors."""
    process = psutil.Process()
    return len(engine_threads()), process.num_fds() if os.name == "posix" else process.num_handles()


async def check_out_at_once(pool: walpool.AsyncPool, readers: int) -> None:
    """Have the pool open all of its readers, and start a thread for each: they come when they are wanted."""
    last = asyncio.Event()
    out = 0

    async def check_out() -> None:
        nonlocal out
        async with pool.read() as snapshot:
            await snapshot.fetchval("SELECT 1")
            out += 1
            if out == readers:
                last.set()
            await last.wait()
            await snapshot.fetchval(COUNT_TO, (500_000,))  # some 25 ms, each on a thread of its own

    await asyncio.gather(*(check_out() for _ in range(readers)))


async def use(sessions: list[WalpoolSession]) -> None:
    await asyncio.gather(*(session.add_items(ITEMS) for session in sessions))
    for items in await asyncio.gather(*(session.get_items() for session in sessions)):
        assert items == ITEMS
    assert all(await asyncio.gather(*(session.pop_item() for session in sessions)))


@pytest.mark.parametrize("gives", ["pool", "path"])
def test_two_hundred_sessions_cost_no_thread_and_no_descriptor(database: Path, gives: str) -> None:
    async def main() -> None:
        async with walpool.AsyncPool(database, readers=4) as pool:

            def session(number: int) -> WalpoolSession:
                return WalpoolSession(f"session {number}", pool if gives == "pool" else database)

            few = [session(number) for number in range(20)]
            await use(few)
            await check_out_at_once(pool, 4)
            before = cost()
            many = [session(number) for number in range(100, 300)]
            await use(many)
            assert cost() == before
            for one in (*few, *many):
                await one.close()

    asyncio.run(main())


def test_sessions_on_one_path_share_one_pool_and_the_last_one_closes_it(database: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)

    async def main() -> None:
        first = WalpoolSession("a", database)
        second = WalpoolSession("b", str(link))
        await use([first, second])
        assert len(_database._shared) == 1
        await first.close()
        await first.close()  # counts once
        await use([second])
        await second.close()
        assert open_descriptors(database) == []

    asyncio.run(main())


def test_session_made_while_the_last_one_closes_works(database: Path) -> None:
    async def main() -> None:
        for _ in range(20):
            first = WalpoolSession("a", database)
            await use([first])
            closing = asyncio.create_task(first.close())
            await asyncio.sleep(0)
            second = WalpoolSession("b", database)
            await use([second])
            await closing
            await second.close()

    asyncio.run(main())


def test_sessions_in_many_event_loops_open_and_close_one_path(
    database: Path, threads: Callable[[int, Callable[[int], None]], list[None]]
) -> None:
    async def turn(name: str) -> None:
        async with WalpoolSession(name, database) as session:
            await use([session])

    def run(number: int) -> None:
        for _ in range(20):
            asyncio.run(turn(f"session {number}"))

    threads(4, run)


def test_pool_that_was_given_stays_open(database: Path) -> None:
    async def main() -> None:
        async with walpool.AsyncPool(database) as pool:
            async with WalpoolSession("a", pool) as session:
                await session.add_items(ITEMS)
            assert not pool.closed
            assert await pool.fetchval("SELECT count(*) FROM agent_messages") == 1
        with pytest.raises(walpool.ClosedError):
            await WalpoolSession("b", pool).get_items()

    asyncio.run(main())


def test_session_that_was_dropped_keeps_no_pool_open(database: Path) -> None:
    before = engine_threads()  # of pools that earlier tests left

    async def main() -> None:
        dropped, kept = WalpoolSession("a", database), WalpoolSession("b", database)
        await use([dropped, kept])
        del dropped
        gc.collect()
        await kept.close()
        assert open_descriptors(database) == []
        assert threads_left_since(before) == {}

    asyncio.run(main())


def test_last_session_that_is_dropped_instead_of_closed_gives_the_file_back_with_a_warning(database: Path) -> None:
    async def main() -> None:
        sessions = [WalpoolSession("a", database)]
        await use(sessions)
        sessions.clear()

    async def main_and_collect() -> None:
        await main()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        asyncio.run(main_and_collect())


def test_memory_is_private_to_its_session(database: Path) -> None:
    async def main() -> None:
        async with WalpoolSession("a", ":memory:") as first, WalpoolSession("a", ":memory:") as second:
            await first.add_items(ITEMS)
            assert await first.get_items() == ITEMS
            assert await second.get_items() == []

    asyncio.run(main())


def test_without_a_database_the_environment_names_it(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with WalpoolSession("a") as session:
            await session.add_items(ITEMS)

    with pytest.raises(walpool.ConfigError, match="WALPOOL_URL"):
        WalpoolSession("a")
    monkeypatch.setenv("WALPOOL_URL", f"walpool://{database}?synchronous=normal")
    asyncio.run(main())
    assert database.exists()


def test_settings_reach_the_pool_and_a_difference_is_refused(database: Path) -> None:
    async def main() -> None:
        async with WalpoolSession("a", database, synchronous="normal", readers=3) as first:
            await first.add_items(ITEMS)
            async with WalpoolSession("b", database, readers=2) as second:
                with pytest.raises(walpool.ConfigError, match="readers"):
                    await second.get_items()

    asyncio.run(main())


def test_what_cannot_be_a_sessions_database_is_refused_at_once(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    with pytest.raises(TypeError, match="readers"):
        WalpoolSession("a", pool, readers=2)
    with walpool.Pool(database) as synchronous, pytest.raises(TypeError, match="AsyncPool"):
        WalpoolSession("a", synchronous)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limitt"):
        WalpoolSession("a", pool, session_settings={"limitt": 1})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_child_has_sessions_of_its_own_and_closes_none_of_its_parents(database: Path) -> None:
    run_python(
        """
        import asyncio, os, sys, warnings
        from leftovers import engine_threads, threads_left_since
        from walpool.openai_agents import WalpoolSession
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads

        def item(text):
            return [{"role": "user", "content": text}]

        async def child():
            async with WalpoolSession("a", sys.argv[1]) as session:
                await session.add_items(item("child"))
                assert engine_threads()
            assert threads_left_since({}) == {}  # its own last session was the last one

        async def parent(session, text):
            await session.add_items(item(text))

        with asyncio.Runner() if sys.version_info >= (3, 11) else sys.exit(0) as runner:
            session = WalpoolSession("a", sys.argv[1])
            runner.run(parent(session, "parent"))
            pid = os.fork()
            if pid == 0:
                asyncio.run(child())
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            runner.run(parent(session, "parent again"))
            found = [entry["content"] for entry in runner.run(session.get_items())]
            assert found == ["parent", "child", "parent again"], found
            runner.run(session.close())
        """,
        database,
    )


def test_session_without_a_use_opens_nothing(database: Path) -> None:
    async def main() -> None:
        async with WalpoolSession("a", database):
            assert not database.exists()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert not database.exists()
