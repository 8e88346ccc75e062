"""`WalpoolSession`: what it keeps, in which order, and what many of them do at once."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from agents.memory import Session, SessionSettings, SQLiteSession
from helpers import run_python

import walpool
from walpool.openai_agents import SessionClosedError, WalpoolSession

T = TypeVar("T")


def said(*texts: str) -> list[Any]:
    """Return one item of a user's for each text."""
    return [{"role": "user", "content": text} for text in texts]


def on(place: str | Path, work: Callable[[WalpoolSession], Awaitable[T]], **arguments: Any) -> T:
    """Return `await work(session)`, with a session on the database that is closed afterwards."""

    async def main() -> T:
        async with WalpoolSession("a", place, **arguments) as session:
            return await work(session)

    return asyncio.run(main())


def put_row(database: Path, sql_value: str) -> None:
    """Append to the session "a" a row that no session wrote."""
    with closing(sqlite3.connect(database)) as conn, conn:
        conn.execute(f"INSERT INTO agent_messages (session_id, message_data) VALUES ('a', {sql_value})")


def test_session_is_what_the_sdk_calls_a_session(place: str) -> None:
    async def work(session: WalpoolSession) -> None:
        assert isinstance(session, Session)
        assert session.session_id == "a"
        assert session.session_settings == SessionSettings()

    on(place, work)


@pytest.mark.bounced
def test_session_keeps_the_order_of_items_within_and_between_adds(place: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said("1", "2"))
        await session.add_items(said("3"))
        await session.add_items([])
        return await session.get_items()

    assert on(place, work) == said("1", "2", "3")


@pytest.mark.parametrize(
    ("limit", "of_settings", "found"),
    [
        (2, None, "45"),
        (9, None, "12345"),
        (0, None, ""),
        (-1, None, "12345"),
        (None, 3, "345"),
        (None, 0, ""),
        (1, 3, "5"),
        (None, None, "12345"),
    ],
)
def test_limit_takes_the_newest_and_one_that_is_given_wins_over_the_settings(
    place: str, limit: int | None, of_settings: int | None, found: str
) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said(*"12345"))
        return await session.get_items(limit)

    assert on(place, work, session_settings={"limit": of_settings}) == said(*found)


def test_session_settings_may_be_replaced(place: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said(*"123"))
        session.session_settings = SessionSettings(limit=1)
        newest = await session.get_items()
        session.session_settings = None
        return [newest, await session.get_items()]

    assert on(place, work) == [said("3"), said(*"123")]


def test_items_come_back_as_they_were_whatever_their_text(place: str) -> None:
    items = said("こんにちは", "😊", "half a pair: \ud83d", "nul: \0", "'); DROP TABLE agent_messages;--")
    items.append({"type": "reasoning", "summary": [{"text": "é", "score": 0.1, "none": None}], "n": 2**70})

    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(items)
        return await session.get_items()

    assert on(place, work) == items


BROKEN = ["'not JSON {'", "''", "CAST(x'22ff22' AS TEXT)", "x'fffe'"]


@pytest.mark.parametrize("value", BROKEN)
def test_row_that_is_no_json_is_left_out_and_does_not_count(database: Path, value: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said(*"1234"))
        for _ in range(5):
            put_row(database, value)
        return [await session.get_items(), await session.get_items(2), await session.get_items(9)]

    assert on(database, work) == [said(*"1234"), said(*"34"), said(*"1234")]


@pytest.mark.parametrize("value", BROKEN)
def test_pop_takes_rows_that_are_no_json_out_on_its_way(database: Path, value: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said("1"))
        put_row(database, value)
        put_row(database, value)
        popped = [await session.pop_item()]
        put_row(database, value)
        return [*popped, await session.pop_item(), await session.get_items()]

    assert on(database, work) == [*said("1"), None, []]
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("SELECT count(*) FROM agent_messages").fetchone() == (0,)


@pytest.mark.bounced
def test_clear_forgets_one_session_and_leaves_the_others(place: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        async with WalpoolSession("b", place) as other:
            await session.add_items(said("mine"))
            await other.add_items(said("theirs"))
            await session.clear_session()
            await session.add_items(said("anew"))
            return [await session.get_items(), await other.get_items()]

    assert on(place, work) == [said("anew"), said("theirs")]


def test_item_without_a_json_form_is_a_type_error_and_nothing_is_written(place: str) -> None:
    async def work(session: WalpoolSession) -> list[Any]:
        with pytest.raises(TypeError):
            await session.add_items([*said("1"), {"role": "user", "content": object()}])
        await session.add_items(said("2"))
        return await session.get_items()

    assert on(place, work) == said("2")


def test_session_does_what_the_sdks_own_does_on_any_sequence_of_calls(place: str, tmp_path: Path) -> None:
    rng = random.Random(4)

    async def step(session: Any, call: int, number: int) -> Any:
        if call < 5:
            return await session.add_items(said(*(f"{number}.{i}" for i in range(call))))
        if call < 8:
            return await session.pop_item()
        if call < 12:
            return await session.get_items(number % 7 - 1)
        return await session.clear_session() if number % 9 == 0 else await session.get_items()

    async def work(session: WalpoolSession) -> None:
        sdks = SQLiteSession("a", tmp_path / "sdk.db")
        for number in range(150):
            call = rng.randrange(13)
            assert await step(session, call, number) == await step(sdks, call, number)
        assert await session.get_items() == await sdks.get_items()
        sdks.close()

    on(place, work)


def test_file_of_the_sdks_own_session_goes_on_and_may_go_back(database: Path) -> None:
    async def sdk(*texts: str) -> list[Any]:
        session = SQLiteSession("a", database)
        await session.add_items(said(*texts))
        items = await session.get_items()
        session.close()
        return items

    async def work(session: WalpoolSession) -> list[Any]:
        await session.add_items(said("walpool's"))
        return await session.get_items()

    asyncio.run(sdk("SQLiteSession's"))
    assert on(database, work) == said("SQLiteSession's", "walpool's")
    assert asyncio.run(sdk("again")) == said("SQLiteSession's", "walpool's", "again")


def test_history_goes_on_in_another_process(place: str) -> None:
    async def add(session: WalpoolSession) -> None:
        await session.add_items(said("before"))

    async def get(session: WalpoolSession) -> list[Any]:
        return await session.get_items()

    on(place, add)
    run_python(
        """
        import asyncio, sys
        from walpool.openai_agents import WalpoolSession

        async def main():
            async with WalpoolSession("a", sys.argv[1]) as session:
                assert [item["content"] for item in await session.get_items()] == ["before"]
                await session.add_items([{"role": "user", "content": "in between"}])

        asyncio.run(main())
        """,
        place,
    )
    assert on(place, get) == said("before", "in between")


@asynccontextmanager
async def many(count: int, place: str) -> AsyncIterator[list[WalpoolSession]]:
    sessions = [WalpoolSession(f"session {i}", place) for i in range(count)]
    yield sessions
    for session in sessions:
        await session.close()


@pytest.mark.bounced
def test_two_hundred_sessions_that_add_at_once_lose_nothing_and_keep_their_orders(place: str) -> None:
    async def talk(session: WalpoolSession) -> None:
        for number in range(10):
            await session.add_items(said(f"{session.session_id}: {number}", "answer"))

    async def main() -> None:
        async with many(200, place) as sessions:
            await asyncio.gather(*(talk(session) for session in sessions))
            for session in sessions:
                lines = [text for number in range(10) for text in (f"{session.session_id}: {number}", "answer")]
                assert await session.get_items() == said(*lines)

    asyncio.run(main())


def test_adds_to_one_session_do_not_mix(place: str) -> None:
    async def work(session: WalpoolSession) -> None:
        await asyncio.gather(*(session.add_items(said(*[str(caller)] * 5)) for caller in range(100)))
        texts = [str(item["content"]) for item in await session.get_items()]
        assert len(texts) == 500
        assert all(len(set(texts[start : start + 5])) == 1 for start in range(0, 500, 5))

    on(place, work)


@pytest.mark.bounced
def test_each_of_many_pops_at_once_gets_another_item(
    place: str, threads: Callable[[int, Callable[[int], list[Any]]], list[list[Any]]]
) -> None:
    async def fill(session: WalpoolSession) -> None:
        await session.add_items(said(*(str(i) for i in range(100))))

    async def pop(session: WalpoolSession) -> list[Any]:
        return await asyncio.gather(*(session.pop_item() for _ in range(40)))

    on(place, fill)
    # Three event loops, in threads of their own, 120 pops in all.
    popped = [item for items in threads(3, lambda _: on(place, pop)) for item in items]
    assert sorted(int(item["content"]) for item in popped if item) == list(range(100))
    assert popped.count(None) == 20


@pytest.mark.bounced
def test_cancelled_adds_are_whole_or_not_there(place: str) -> None:
    rng = random.Random(7)

    async def add(session: WalpoolSession, number: int) -> bool:
        try:
            await session.add_items(said(*[str(number)] * 3))
        except asyncio.CancelledError:
            return False
        return True

    async def work(session: WalpoolSession) -> None:
        await session.get_items()  # opens
        acknowledged, seen = set[str](), list[str]()
        for burst in range(20):
            tasks = {number: asyncio.create_task(add(session, number)) for number in range(burst * 20, burst * 20 + 20)}
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            for task in rng.sample(list(tasks.values()), 10):
                task.cancel()
            done = await asyncio.gather(*tasks.values(), return_exceptions=True)
            acknowledged |= {str(number) for number, was in zip(tasks, done, strict=True) if was is True}
            await session.add_items(said("mark"))  # after all that were begun before it
            seen = [str(item["content"]) for item in await session.get_items() if item["content"] != "mark"]
            assert all(seen[start] == seen[start + 1] == seen[start + 2] for start in range(0, len(seen), 3))
            assert acknowledged <= set(seen)
        assert len(seen) == 3 * len(set(seen))
        assert len(acknowledged) >= 200

    on(place, work)


def test_closed_session_refuses_every_call_as_walpool_and_as_the_sdk_do(place: str) -> None:
    async def main() -> None:
        session = WalpoolSession("a", place)
        await session.add_items(said("1"))
        await session.close()
        await session.close()
        calls: list[Callable[[], Awaitable[object]]] = [
            session.get_items,
            session.pop_item,
            session.clear_session,
            lambda: session.add_items([]),
            lambda: session.add_items(said("2")),
        ]
        for call in calls:
            with pytest.raises(SessionClosedError, match="WalpoolSession is closed") as caught:
                await call()
            assert isinstance(caught.value, RuntimeError)  # what the SDK's sessions raise
            assert isinstance(caught.value, walpool.ClosedError)

    asyncio.run(main())


def test_tables_of_a_newer_walpool_are_refused_by_name(database: Path) -> None:
    async def get(session: WalpoolSession) -> list[Any]:
        return await session.get_items()

    on(database, get)
    with closing(sqlite3.connect(database)) as conn, conn:
        conn.execute("UPDATE walpool_schema SET version = 99 WHERE name = 'openai_agents'")
    with pytest.raises(walpool.NotSupportedError, match=r"'openai_agents' tables .* version 99"):
        on(database, get)
