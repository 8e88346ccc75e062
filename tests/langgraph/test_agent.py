"""Real agents on the savers: killed and resumed, and a hundred of them at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.prebuilt")
pytest.importorskip("langgraph.checkpoint.sqlite")

import scripted_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from leftovers import open_descriptors
from savers import KINDS
from scripted_agent import agent, config, expected, question, told

import walpool
from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver

QUESTION = "what was it that we wanted to know"
FOR_GOOD = -1  # a place at which no call is made: the agent runs to its end


def started(kind: str, database: Path, stop_at: int) -> subprocess.Popen[str]:
    program = [sys.executable, "-W", "error", scripted_agent.__file__, kind, str(database), f"{database}.journal"]
    return subprocess.Popen(
        [*program, QUESTION, str(stop_at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def calls_made(database: Path) -> list[int]:
    return sorted(int(line) for line in Path(f"{database}.journal").read_text(encoding="utf-8").split())


@pytest.mark.crash
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_agent_that_was_killed_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    database = tmp_path / "killed.db"
    for stop_at in (0, 3, 6):  # the first call; one of a pair; and one after it was resumed twice
        with started(kind, database, stop_at) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "standing still\n"
            process.send_signal(signal.SIGKILL)
    with started(kind, database, FOR_GOOD) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    uninterrupted = agent(InMemorySaver()).invoke(question(QUESTION), config("t"))
    assert output.strip() == repr(told(uninterrupted))
    made = calls_made(database)
    # The call that was killed is made again, and perhaps the one beside it; those that were answered are not.
    assert set(made) == set(range(len(QUESTION.split())))
    assert {place for place in made if made.count(place) > 1} <= {0, 1, 2, 3, 6, 7}
    with walpool.Pool(database) as pool:
        assert pool.check() == []


def questions(count: int) -> dict[str, str]:
    return {f"agent-{n}": " ".join(f"w{n}x{place}" for place in range(3 + n % 4)) for n in range(count)}


def assert_all_is_right(asked: dict[str, str], states: dict[str, Any], saver: WalpoolSaver) -> None:
    memory = InMemorySaver()
    reference = agent(memory)
    for thread_id, text in asked.items():
        alone = reference.invoke(question(text), config(thread_id))
        assert states[thread_id]["messages"][-1].content == expected(text)
        assert told(states[thread_id]) == told(alone)
        stored = agent(saver).get_state(config(thread_id))
        assert (told(stored.values), stored.next) == (told(alone), ())
        assert [found.metadata["step"] for found in saver.list(config(thread_id))] == [
            found.metadata["step"] for found in memory.list(config(thread_id))
        ]


@pytest.mark.timeout(120)
def test_many_agents_on_one_event_loop_do_not_mix(place: str, database: Path) -> None:
    asked = questions(48)

    async def run_all() -> dict[str, Any]:
        async with AsyncWalpoolSaver(place) as saver:
            graph = agent(saver)
            runs = {name: graph.ainvoke(question(text), config(name)) for name, text in asked.items()}
            return dict(zip(runs, await asyncio.gather(*runs.values()), strict=True))

    states = asyncio.run(run_all())
    assert open_descriptors(database) == []
    with WalpoolSaver(place) as saver:
        assert_all_is_right(asked, states, saver)


@pytest.mark.timeout(120)
def test_many_agents_on_sixteen_threads_do_not_mix(place: str) -> None:
    asked = questions(48)
    with WalpoolSaver(place) as saver:
        graph = agent(saver)
        with ThreadPoolExecutor(16) as threads:
            runs = threads.map(lambda item: graph.invoke(question(item[1]), config(item[0])), asked.items())
            states = dict(zip(asked, runs, strict=True))
        assert_all_is_right(asked, states, saver)


@pytest.mark.timeout(120)
def test_agents_end_well_while_their_threads_are_pruned_all_the_time(place: str) -> None:
    asked = questions(24)
    with WalpoolSaver(place) as saver:
        graph = agent(saver)
        done = threading.Event()

        def keep_pruning() -> int:
            rounds = 0
            while not done.is_set():
                saver.prune(list(asked))
                rounds += 1
            return rounds

        with ThreadPoolExecutor(9) as threads:
            pruning = threads.submit(keep_pruning)
            runs = [threads.submit(graph.invoke, question(text), config(name)) for name, text in asked.items()]
            states = [run.result() for run in runs]
            done.set()
            assert pruning.result() > 1
        saver.prune(list(asked))
        for (thread_id, text), state in zip(asked.items(), states, strict=True):
            assert state["messages"][-1].content == expected(text)
            assert told(graph.get_state(config(thread_id)).values) == told(state)
            assert len(list(saver.list(config(thread_id)))) == 1


def test_agent_is_interrupted_asked_and_resumed_by_the_other_saver(place: str) -> None:
    with WalpoolSaver(place) as saver:
        graph = agent(saver)
        graph.invoke(question(QUESTION), config("t"), interrupt_before=["tools"])
        assert graph.get_state(config("t")).next == ("tools",)

    async def resume() -> Any:
        async with AsyncWalpoolSaver(place) as saver:
            graph = agent(saver)
            state = await graph.ainvoke(None, config("t"))
            history = [item async for item in graph.aget_state_history(config("t"))]
            assert len({item.config["configurable"]["checkpoint_id"] for item in history}) == len(history) > 8
            forked = await graph.ainvoke(None, history[2].config)  # from the past: a branch
            assert forked["messages"][-1].content == expected(QUESTION)
            return state

    assert asyncio.run(resume())["messages"][-1].content == expected(QUESTION)


def copied(source: Any, target: Any) -> None:
    """Copy a thread by hand, oldest first, as one would between any two savers."""
    for found in reversed(list(source.list(config("t")))):
        parent = found.parent_config or {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        stored = target.put(parent, found.checkpoint, found.metadata, found.checkpoint["channel_versions"])
        for task_id, channel, value in found.pending_writes:
            target.put_writes(stored, [(channel, value)], f"{task_id}-{channel}")


@pytest.mark.parametrize("direction", ["to walpool", "from walpool"])
def test_thread_goes_on_after_it_was_copied_from_one_saver_to_the_other(direction: str, tmp_path: Path) -> None:
    alone = agent(InMemorySaver())
    expected_states = [alone.invoke(question(text), config("t")) for text in ("one two three", "and then")]
    with SqliteSaver.from_conn_string(str(tmp_path / "stock.db")) as stock, WalpoolSaver(tmp_path / "own.db") as own:
        first, second = (stock, own) if direction == "to walpool" else (own, stock)
        assert told(agent(first).invoke(question("one two three"), config("t"))) == told(expected_states[0])
        copied(first, second)
        assert agent(second).get_state(config("t")).values == agent(first).get_state(config("t")).values
        assert told(agent(second).invoke(question("and then"), config("t"))) == told(expected_states[1])
