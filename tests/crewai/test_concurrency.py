"""Real crews and flows, many at once: nothing is lost, nothing leaks into a neighbour, nothing waits for a lock."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, FlowState, listen, start
from crewai.flow.persistence import persist
from crewai_core import lock_store

import walpool
from examples.offline import EMBEDDER, ScriptedLLM, answer_to
from walpool.crewai import Installation, WalpoolStorage

THREADS = 16


def crew(name: str, *descriptions: str) -> Crew:
    agent = Agent(role="analyst", goal="figures", backstory="counts", llm=ScriptedLLM())
    tasks = [Task(description=text, expected_output="a figure", agent=agent) for text in descriptions]
    return Crew(agents=[agent], tasks=tasks, memory=True, embedder=EMBEDDER, name=name)


def sentences(*descriptions: str) -> set[str]:
    """Return what a crew with these tasks remembers."""
    return {f"{part.strip()}." for text in descriptions for part in answer_to(text).split(".") if part.strip()}


@pytest.mark.timeout(120)
def test_crews_that_run_at_once_remember_everything_and_nothing_of_each_other(
    installation: Installation,
    database: Path,
    threads: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked: list[str] = []

    def work(index: int) -> list[str]:
        first, second = (f"count the {thing} of place {index}" for thing in ("stars", "stones"))
        return [crew(f"crew-{index}", first).kickoff().raw, crew(f"crew-{index}", second).kickoff().raw]

    with monkeypatch.context() as watched:
        backend = lock_store._backend
        assert backend is not None
        watched.setattr(lock_store, "_backend", lambda name, **k: (locked.append(name), backend(name, **k))[1])
        results = threads(THREADS, work, timeout=100)

    storage = WalpoolStorage(str(database))
    for index, answers in enumerate(results):
        tasks = (f"count the stars of place {index}", f"count the stones of place {index}")
        assert answers == [answer_to(text) for text in tasks]
        kept = storage.list_records(f"/crew/crew-{index}")
        assert {record.content for record in kept} == sentences(*tasks)
        assert len(kept) == 4
    assert storage.count() == 4 * THREADS
    assert len(storage.list_scopes("/crew")) == THREADS
    assert locked == []
    storage.close()


class Count(FlowState):
    count: int = 0


@pytest.mark.timeout(120)
def test_flows_that_run_at_once_keep_every_state_of_their_own(
    installation: Installation, database: Path, threads: Callable[..., list[Any]]
) -> None:
    @persist()
    class Counting(Flow[Count]):
        @start()
        def first(self) -> None:
            self.state.count += 1

        @listen(first)
        def second(self) -> None:
            self.state.count += 1

    def work(index: int) -> tuple[str, int]:
        flow = Counting()
        flow.kickoff()
        for _ in range(3):
            again = Counting()
            again.kickoff(inputs={"id": flow.state.id})
        return flow.state.id, again.state.count

    results = threads(THREADS, work, timeout=100)

    assert {count for _, count in results} == {8}
    with walpool.Pool(database) as pool:
        kept = Counter(identity for (identity,) in pool.fetch("SELECT flow_uuid FROM flow_states"))
    assert kept == dict.fromkeys((identity for identity, _ in results), 8)


PROCESS = """
import sys
sys.path.insert(0, sys.argv[3])
import walpool.crewai
from tests.crewai.test_concurrency import crew
walpool.crewai.install(sys.argv[1])
for round in range(3):
    crew(f"crew-{sys.argv[2]}", f"count the grains of {sys.argv[2]} in round {round}").kickoff()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_that_run_at_once_share_one_database(database: Path) -> None:
    checkout = str(Path(__file__).parent.parent.parent)
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(database), name, checkout]) for name in ("a", "b", "c")
    ]
    assert [process.wait(100) for process in started] == [0, 0, 0]
    storage = WalpoolStorage(str(database))
    for name in ("a", "b", "c"):
        kept = {record.content for record in storage.list_records(f"/crew/crew-{name}")}
        assert kept == sentences(*(f"count the grains of {name} in round {i}" for i in range(3)))
    assert storage.count() == 18
    storage.close()
