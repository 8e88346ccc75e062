"""An agent of LangGraph's with a scripted model: real messages, real tool calls, a last word that tells all of them.

As a program it runs one agent and stands still inside a tool, so that it can be killed there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver


class ScriptedModel(BaseChatModel):
    """Calls `look_up` for each word of the question, two at a time where it can, then says what it learnt."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        words = str(messages[0].content).split()
        learnt = [str(message.content) for message in messages if isinstance(message, ToolMessage)]
        calls = [
            {"name": "look_up", "args": {"word": word, "place": place}, "id": f"call-{place}"}
            for place, word in list(enumerate(words))[len(learnt) : len(learnt) + 2]
        ]
        answer = AIMessage("" if calls else " ".join(learnt), tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=answer)])


def agent(saver: Any, on_call: Callable[[int], None] = lambda place: None) -> Any:
    """Return the agent, compiled with a checkpointer; `on_call` hears the place of each word that is looked up."""

    @tool
    def look_up(word: str, place: int) -> str:
        """Look a word up."""
        on_call(place)
        return f"{place}:{word.upper()}"

    model = ScriptedModel()

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode([look_up]))
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", tools_condition)
    builder.add_edge("tools", "think")
    return builder.compile(checkpointer=saver)


def question(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def config(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def told(state: Any) -> list[tuple[str, Any, Any]]:
    """Return what was said in a state, without the random ids of the messages."""
    return [(m.type, m.content, getattr(m, "tool_calls", None)) for m in state["messages"]]


def expected(text: str) -> str:
    """Return the agent's last word on a question."""
    return " ".join(f"{place}:{word.upper()}" for place, word in enumerate(text.split()))


def main(kind: str, database: str, journal: str, text: str, stop_at: int) -> None:
    """Run or resume one agent; each call is noted in the journal, and the one at `stop_at` never returns."""

    def on_call(place: int) -> None:
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(f"{place}\n")
        if place == stop_at:
            print("standing still", flush=True)  # noqa: T201
            sys.stdin.read()

    def given(is_known: bool) -> dict[str, Any] | None:
        return None if is_known else question(text)

    async def run_async() -> Any:
        async with AsyncWalpoolSaver(database) as saver:
            is_known = await saver.aget_tuple(config("t")) is not None
            return await agent(saver, on_call).ainvoke(given(is_known), config("t"), durability="sync")

    if kind == "async":
        state = asyncio.run(run_async())
    else:
        with WalpoolSaver(database) as saver:
            is_known = saver.get_tuple(config("t")) is not None
            state = agent(saver, on_call).invoke(given(is_known), config("t"), durability="sync")
    print(repr(told(state)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:5], stop_at=int(sys.argv[5]))
