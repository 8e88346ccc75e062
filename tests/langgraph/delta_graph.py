"""A graph with delta channels, which are rebuilt from their ancestors, and what a saver says of them."""

from __future__ import annotations

import operator
from typing import Annotated, Any

from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from savers import Face
from typing_extensions import TypedDict


def extend(state: list[Any], writes: Any) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


class State(TypedDict):
    log: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=4)]
    notes: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=6)]
    total: Annotated[int, operator.add]


def graph(saver: Any) -> Any:
    def work(state: State) -> dict[str, Any]:
        return {"log": [f"worked {len(state['log'])}"], "total": 1}

    def review(state: State) -> dict[str, Any]:
        return {"log": [f"reviewed {state['total']}"], "notes": [f"note {state['total']}"]}

    builder = StateGraph(State)
    builder.add_node("work", work)
    builder.add_node("review", review)
    builder.add_edge(START, "work")
    builder.add_edge("work", "review")
    builder.add_conditional_edges("review", lambda state: END if state["total"] % 3 == 0 else "work")
    return builder.compile(checkpointer=saver)


def run_graph(face: Face, config: Any, **extra: Any) -> dict[str, Any]:
    compiled = graph(face.saver)
    given = {"log": ["asked"], "total": 0}
    if face.loop is None:
        return dict(compiled.invoke(given, {**config, **extra}))
    return dict(face.loop.run_until_complete(compiled.ainvoke(given, {**config, **extra})))


def state(face: Face, config: Any) -> dict[str, Any]:
    compiled = graph(face.saver)
    if face.loop is None:
        return dict(compiled.get_state(config).values)
    return dict(face.loop.run_until_complete(compiled.aget_state(config)).values)


def rebuilt(face: Face, config: Any) -> Any:
    return face.get_delta_channel_history(config=config, channels=["log", "notes", "unknown"])
