"""`walpool migrate` with sessions: what one backend remembers the other does, it is gone on with, and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner
from scripted import ScriptedModel, says, told

import walpool
from walpool import cli
from walpool.openai_agents import WalpoolSession, _sql

pytestmark = pytest.mark.postgres

NAMES = ["a", "b", "c \U0001f600"]


@pytest.fixture
def back(tmp_path: Path) -> str:
    return str(tmp_path / "back.db")


def migrate(*arguments: Any) -> int:
    return cli.main(["migrate", *map(str, arguments)])


def run(place: Any, name: str, *questions: str) -> None:
    """Let an agent answer."""

    async def main() -> None:
        async with WalpoolSession(name, place) as session:
            for question in questions:
                agent = Agent(name="agent", model=ScriptedModel(says(f"you said {question}")))
                await Runner.run(agent, question, session=session)

    asyncio.run(main())


def histories(place: Any) -> list[list[Any]]:
    async def main() -> list[list[Any]]:
        found = []
        for name in NAMES:
            async with WalpoolSession(name, place) as session:
                found.append([await session.get_items(), await session.get_items(3)])
        return found

    return asyncio.run(main())


def test_conversations_go_on_on_either_side(database: Path, postgres_url: str, back: str) -> None:
    for question in ("one", "two", "half \ud83d a pair \0"):
        for name in NAMES[:2]:
            run(database, name, question)
    expected = histories(database)
    assert migrate(database, postgres_url) == 0
    assert histories(postgres_url) == expected
    run(postgres_url, "b", "three")
    run(postgres_url, NAMES[2], "hello")
    expected = histories(postgres_url)
    assert told(expected[1][0])[-2:] == ["three", "you said three"]
    with walpool.get_pool(postgres_url) as pool:  # as two servers may number them
        pool.execute("UPDATE agent_messages SET id = id - (SELECT min(id) FROM agent_messages WHERE session_id = 'b')")
    assert migrate(postgres_url, back) == 0
    assert histories(back) == expected
    run(back, "a", "four")
    assert told(histories(back)[0][0])[-2:] == ["four", "you said four"]

    async def pop() -> Any:
        async with WalpoolSession("b", back) as session:
            return await session.pop_item()

    assert asyncio.run(pop()) == expected[1][0][-1]


def test_times_come_back_as_they_were(database: Path, postgres_url: str, back: str) -> None:
    run(database, "a", "one")
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE agent_sessions SET created_at = '2026-02-28 23:59:59'")
    assert migrate(database, postgres_url) == 0
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT created_at FROM agent_sessions") == 1_772_323_199_000_000
        pool.execute("UPDATE agent_sessions SET updated_at = created_at + 1234")
    assert migrate(postgres_url, back) == 0
    with walpool.Pool(back) as pool:
        times = pool.fetchone("SELECT created_at, updated_at FROM agent_sessions")
    assert times == ("2026-02-28 23:59:59", "2026-02-28 23:59:59.001234")
    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert migrate(back, postgres_url) == 0
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT updated_at - created_at FROM agent_sessions") == 1234


def test_what_cannot_be_taken_is_found_first(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(database, "a", "one")
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE agent_messages SET created_at = 'yesterday' WHERE id = 2")
    assert migrate(database, postgres_url) == 2
    assert 'bad: agent_messages.created_at, key ["a"]: NULL' in capsys.readouterr().out
    assert migrate(database, postgres_url, "--on-bad", "replace") == 0
    assert histories(postgres_url) == histories(database)


def test_conversation_that_went_on_in_the_target_is_left_alone_and_others_are_added(
    database: Path, postgres_url: str
) -> None:
    for name in NAMES[:2]:
        run(database, name, "one")
    assert migrate(database, postgres_url) == 0
    run(postgres_url, "a", "two")
    run(database, "a", "other")
    run(database, NAMES[2], "new")
    before = histories(postgres_url)
    assert migrate(database, postgres_url, "--force") == 1
    after = histories(postgres_url)
    assert after[:2] == before[:2]
    assert told(after[2][0]) == ["new", "you said new"]
    assert migrate(database, postgres_url, "--repair") == 0
    assert histories(postgres_url) == histories(database)


def test_numbers_of_a_server_that_are_the_same_in_two_conversations_are_kept_apart(
    postgres_url: str, back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sql.time, "time_ns", lambda: 1_772_323_199_000_000_000)
    for name in NAMES:
        run(postgres_url, name, "one", "two")
    assert migrate(postgres_url, back) == 0
    assert histories(back) == histories(postgres_url)
