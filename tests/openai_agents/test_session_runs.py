"""Runs of an agent by the SDK's own `Runner`, with a scripted model and no network, on a `WalpoolSession`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agents import Agent, RunConfig, Runner, SessionSettings, function_tool
from helpers import run_python

import walpool
from tests.openai_agents.scripted import ScriptedModel, calls, says, told
from walpool.openai_agents import WalpoolSession

WITH_TRANSCRIPT = """
    import asyncio, json, sys
    from agents import Agent, Runner
    from tests.openai_agents.scripted import ScriptedModel, says, told
    from walpool.openai_agents import WalpoolSession

    async def main():
        model = ScriptedModel(says("Paris it was."))
        async with WalpoolSession("trip", sys.argv[1]) as session:
            done = await Runner.run(Agent(name="guide", model=model), "Where did I go?", session=session)
            assert done.final_output == "Paris it was."
            print(json.dumps([told(model.asked[0]), told(await session.get_items())]))

    asyncio.run(main())
"""


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"rain in {city}"


def test_agent_remembers_its_turns_and_tools_and_goes_on_in_a_second_process(place: str) -> None:
    model = ScriptedModel(says("Noted."), calls("weather", '{"city": "Paris"}'), says("Take an umbrella."))

    async def main() -> None:
        agent = Agent(name="guide", model=model, tools=[weather])
        async with WalpoolSession("trip", place) as session:
            await Runner.run(agent, "I go to Paris.", session=session)
            done = await Runner.run(agent, "What do I need?", session=session)
            assert done.final_output == "Take an umbrella."

    asyncio.run(main())
    first, second = ["I go to Paris.", "Noted."], ["What do I need?", "weather", "rain in Paris", "Take an umbrella."]
    assert [told(items) for items in model.asked] == [first[:1], [*first, second[0]], [*first, *second[:3]]]

    asked, kept = json.loads(run_python(WITH_TRANSCRIPT, place)[0])
    assert asked == [*first, *second, "Where did I go?"]
    assert kept == [*asked, "Paris it was."]


def test_run_takes_as_much_of_the_history_as_its_settings_say(place: str) -> None:
    model = ScriptedModel(*(says(f"answer {turn}") for turn in range(4)))

    async def main() -> None:
        agent = Agent(name="guide", model=model)
        async with WalpoolSession("a", place, session_settings=SessionSettings(limit=2)) as session:
            for turn in range(3):
                await Runner.run(agent, f"question {turn}", session=session)
            config = RunConfig(session_settings=SessionSettings(limit=1))
            await Runner.run(agent, "question 3", session=session, run_config=config)
            assert len(await session.get_items(-1)) == 8

    asyncio.run(main())
    assert told(model.asked[2]) == ["question 1", "answer 1", "question 2"]
    assert told(model.asked[3]) == ["answer 2", "question 3"]


def test_a_hundred_agents_at_once_keep_their_conversations_apart(place: str) -> None:
    async def converse(pool: Any, number: int) -> None:
        model = ScriptedModel(*(says(f"answer {number}.{turn}") for turn in range(3)))
        agent = Agent(name="guide", model=model)
        session = WalpoolSession(f"user {number}", pool)
        for turn in range(3):
            await Runner.run(agent, f"question {number}.{turn}", session=session)
        texts = [text for turn in range(3) for text in (f"question {number}.{turn}", f"answer {number}.{turn}")]
        assert told(await session.get_items()) == texts

    async def main() -> None:
        async with walpool.get_async_pool(place) as pool:
            await asyncio.gather(*(converse(pool, number) for number in range(100)))
            assert await pool.fetchval("SELECT count(*) FROM agent_messages") == 600

    asyncio.run(main())
