"""`WalpoolSession` on PostgreSQL: what many threads and processes do to one conversation, tenants, others' tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from helpers import Caller, eventually, run_together, start_python

import walpool
from walpool.openai_agents import WalpoolSession, _sql

T = TypeVar("T")

pytestmark = pytest.mark.postgres

ADD_FIVES = """
    import asyncio, sys
    from walpool.openai_agents import WalpoolSession

    async def main():
        async with WalpoolSession("a", sys.argv[1]) as session:
            for number in range(20):
                await session.add_items([{"role": "user", "content": f"{sys.argv[2]} {number}"}] * 5)

    asyncio.run(main())
"""


def on(where: Any, work: Callable[[WalpoolSession], Awaitable[T]]) -> T:
    """Return `await work(session)`, with a session that is closed afterwards."""

    async def main() -> T:
        async with WalpoolSession("a", where) as session:
            return await work(session)

    return asyncio.run(main())


def said(*texts: str) -> list[Any]:
    """Return one item of a user's for each text."""
    return [{"role": "user", "content": text} for text in texts]


def assert_whole_and_in_order(contents: list[str]) -> None:
    """Hold items that were added in fives to being together, and those of each writer to being in its order."""
    fives = [contents[start : start + 5] for start in range(0, len(contents), 5)]
    assert all(len(set(five)) == 1 for five in fives)
    of_writer: dict[str, list[int]] = {}
    for writer, number in (five[0].split() for five in fives):
        of_writer.setdefault(writer, []).append(int(number))
    assert all(numbers == sorted(numbers) for numbers in of_writer.values())


async def contents_of(session: WalpoolSession) -> list[str]:
    return [str(item["content"]) for item in await session.get_items()]


@pytest.mark.bounced
def test_sixteen_threads_that_add_to_one_session_lose_nothing_and_do_not_mix(postgres_url: str) -> None:
    def write(writer: int) -> None:
        async def work(session: WalpoolSession) -> None:
            for number in range(10):
                await session.add_items(said(*[f"{writer} {number}"] * 5))

        on(postgres_url, work)

    run_together(16, write)
    contents = on(postgres_url, contents_of)
    assert len(contents) == 16 * 10 * 5
    assert_whole_and_in_order(contents)


def test_two_processes_that_add_to_one_session_lose_nothing_and_do_not_mix(postgres_url: str) -> None:
    processes = [start_python(ADD_FIVES, postgres_url, name) for name in ("one", "two")]
    for process in processes:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    contents = on(postgres_url, contents_of)
    assert len(contents) == 2 * 20 * 5
    assert_whole_and_in_order(contents)


def waits_for_a_lock(url: str) -> bool:
    """Return whether a connection to the database waits for a row of another's."""
    with walpool.get_pool(url) as pool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(pool.fetchval(waiting))


@pytest.mark.bounced
def test_pop_that_waits_for_another_gets_the_item_before(postgres_url: str) -> None:
    on(postgres_url, lambda session: session.add_items(said("1", "2", "3")))
    job, decode = _sql.pop_item("postgres", "a")
    with walpool.get_pool(postgres_url) as pool:
        with pool.transaction() as tx:
            popped = [tx.execute(*statement) for statement in job]
            other = Caller(lambda: on(postgres_url, lambda session: session.pop_item()))
            eventually(lambda: Caller(lambda: waits_for_a_lock(postgres_url)).outcome())
        assert decode(popped[-1].rows) == said("3")
    assert [other.outcome()] == said("2")
    assert on(postgres_url, contents_of) == ["1"]


def test_add_that_waits_for_another_comes_behind_it(postgres_url: str) -> None:
    on(postgres_url, lambda session: session.add_items(said("1")))
    with walpool.get_pool(postgres_url) as pool, pool.transaction() as tx:
        for statement in _sql.add_items("postgres", "a", said("2", "3")):
            tx.execute(*statement)
        other = Caller(lambda: on(postgres_url, lambda session: session.add_items(said("4", "5"))))
        eventually(lambda: Caller(lambda: waits_for_a_lock(postgres_url)).outcome())
    assert other.outcome() is None
    assert on(postgres_url, contents_of) == ["1", "2", "3", "4", "5"]


def test_clears_and_adds_at_once_leave_whole_adds_and_a_session_that_goes_on(postgres_url: str) -> None:
    def write(writer: int) -> None:
        async def work(session: WalpoolSession) -> None:
            for number in range(10):
                if writer == 0:
                    await session.clear_session()
                else:
                    await session.add_items(said(*[f"{writer} {number}"] * 5))

        on(postgres_url, work)

    run_together(6, write)
    assert_whole_and_in_order(on(postgres_url, contents_of))
    on(postgres_url, lambda session: session.add_items(said("last")))
    assert on(postgres_url, contents_of)[-1] == "last"


def test_pool_that_was_given_stays_open_and_one_for_threads_is_refused(postgres_url: str) -> None:
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    async def main() -> None:
        async with AsyncPostgresPool(postgres_url) as pool:
            async with WalpoolSession("a", pool) as session:
                await session.add_items(said("1"))
            assert await pool.fetchval("SELECT count(*) FROM agent_messages") == 1

    asyncio.run(main())
    with PostgresPool(postgres_url) as pool, pytest.raises(TypeError, match="AsyncPool"):
        WalpoolSession("a", pool)  # type: ignore[arg-type]


@pytest.mark.bounced
def test_each_tenant_has_a_conversation_of_its_own_under_the_same_id(postgres_url: str) -> None:
    from walpool.postgres import AsyncPostgresPool

    async def main() -> None:
        for tenant in ("ann", "ben", None):
            async with AsyncPostgresPool(postgres_url, tenant=tenant) as pool:
                await WalpoolSession("a", pool).add_items(said(f"of {tenant}"))
        for tenant in ("ann", "ben"):
            async with AsyncPostgresPool(postgres_url, tenant=tenant) as pool:
                session = WalpoolSession("a", pool)
                assert await session.get_items() == said(f"of {tenant}")
                await session.clear_session()
                assert await session.get_items() == []

    asyncio.run(main())
    assert on(postgres_url, contents_of) == ["of None"]


def test_sessions_of_two_tenants_on_one_url_share_no_pool(postgres_url: str) -> None:
    async def main() -> None:
        ann = WalpoolSession("a", postgres_url, tenant="ann")
        ben = WalpoolSession("a", postgres_url, tenant="ben")
        await ann.add_items(said("ann's"))
        await ben.add_items(said("ben's"))
        assert (await contents_of(ann), await contents_of(ben)) == (["ann's"], ["ben's"])
        await ann.close()
        await ben.close()

    asyncio.run(main())
    with pytest.raises(walpool.ConfigError, match="tenant"):
        WalpoolSession("a", "file.db", tenant="ann")


def test_environment_names_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALPOOL_URL", postgres_url)
    on(None, lambda session: session.add_items(said("1")))
    assert on(postgres_url, contents_of) == ["1"]


def test_tables_of_another_library_under_these_names_are_refused_by_name(postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("CREATE TABLE agent_sessions (session_id TEXT PRIMARY KEY)")
    with pytest.raises(walpool.ProgrammingError, match="agent_sessions"):
        on(postgres_url, contents_of)
