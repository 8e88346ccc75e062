"""`walpool migrate` with CrewAI's components: what one backend answers the other does, is gone on with, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.async_feedback.types import PendingFeedbackContext
from crewai.flow.flow import Flow, FlowState, listen, start
from crewai.flow.persistence import persist
from pydantic import Field

import walpool
from examples.offline import ScriptedLLM
from walpool import cli
from walpool.crewai import (
    WalpoolCheckpointProvider,
    WalpoolFlowPersistence,
    WalpoolKickoffStorage,
    WalpoolLongTermStorage,
    install,
)
from walpool.crewai.checkpoint import CheckpointFiles

pytestmark = pytest.mark.postgres

FLOWS = ["one", "two", "drei \U0001f600"]
TASK = "write a page " + "x" * 500


@pytest.fixture
def back(tmp_path: Path) -> str:
    return str(tmp_path / "back.db")


@pytest.fixture
def files() -> Iterator[CheckpointFiles]:
    opened = CheckpointFiles()
    yield opened
    opened.close()


def migrate(*arguments: Any) -> int:
    return cli.main(["migrate", *map(str, arguments)])


def write(place: str, flows: list[str], turn: int) -> None:
    """Let flows save states that differ in their order alone, ask, and learn; the outputs are of the latest kickoff."""
    flow = WalpoolFlowPersistence(place)
    for step in (3, 1, 2):
        for name in flows:
            flow.save_state(name, f"step {step}", {"turn": turn, "step": step, "text": "ünïcode\n"})
    context = PendingFeedbackContext(
        flow_id=flows[0], flow_class="F", method_name="ask", method_output=turn, message="?"
    )
    flow.save_pending_feedback(flows[0], context, {"turn": turn})
    flow.close()
    lessons = WalpoolLongTermStorage(place)
    for quality in (8, 7.5, 8):
        lessons.save(TASK, {"turn": turn, "quality": quality}, "1700000000", quality)
    lessons.save("another", {}, f"17000000{turn:02}", 1)
    lessons.close()


def answers(place: str) -> list[Any]:
    flow, outputs, lessons = (
        kind(place) for kind in (WalpoolFlowPersistence, WalpoolKickoffStorage, WalpoolLongTermStorage)
    )
    found = [
        [flow.load_state(name) for name in FLOWS],
        [flow.load_pending_feedback(name) for name in FLOWS],
        outputs.load(),
        lessons.load(TASK, 100),
        lessons.load("another", 2),
    ]
    for storage in (flow, outputs, lessons):
        storage.close()
    return found


def kick_off(place: str) -> None:
    """Let a crew work, and a flow that is persisted."""
    with install(place, components=("flow", "kickoff")):
        agent = Agent(role="writer", goal="g", backstory="b", llm=ScriptedLLM())
        tasks = [Task(description=f"Say {n}", expected_output=f"{n}", agent=agent) for n in ("one", "two")]
        Crew(name="c", agents=[agent], tasks=tasks).kickoff(inputs={"about": "wind"})


def test_components_answer_alike_on_either_side_and_go_on(database: Path, postgres_url: str, back: str) -> None:
    write(str(database), FLOWS[:2], 1)
    kick_off(str(database))
    expected = answers(str(database))
    assert len(expected[2]) == 2
    assert migrate(database, postgres_url) == 0
    assert answers(postgres_url) == expected
    write(postgres_url, FLOWS[1:], 2)
    expected = answers(postgres_url)
    assert [state["turn"] for state in expected[0]] == [1, 2, 2]
    assert migrate(postgres_url, back) == 0
    assert answers(back) == expected
    write(back, FLOWS, 3)
    assert [state["turn"] for state in answers(back)[0]] == [3, 3, 3]
    with walpool.Pool(back) as pool:
        steps = pool.fetch("SELECT method_name FROM flow_states WHERE flow_uuid = 'two' ORDER BY id")
    assert [name for (name,) in steps if name != "ask"] == ["step 3", "step 1", "step 2"] * 3


def test_checkpoints_are_restored_on_either_side_and_pruned_in_their_order(
    database: Path, postgres_url: str, back: str, files: CheckpointFiles
) -> None:
    provider = WalpoolCheckpointProvider.on(files)

    def ids(place: str) -> list[str]:
        table = "checkpoints" if place != postgres_url else "crewai_checkpoints"
        with walpool.get_pool(place) as pool:
            return [name for (name,) in pool.fetch(f"SELECT id FROM {table} ORDER BY id")]

    stored = [
        provider.checkpoint(f'{{"n":  {n}}}', str(database), branch="fork" if n % 2 else "main").rpartition("#")[2]
        for n in range(7)
    ]
    with walpool.Pool(database) as pool:  # as CrewAI writes it
        pool.execute("UPDATE checkpoints SET data = jsonb(data) WHERE id = ?", (stored[3],))
        pool.execute("UPDATE checkpoints SET id = 'zz' WHERE id = ?", (stored[0],))
    stored[0] = "zz"
    files.close()
    assert migrate(database, postgres_url) == 0
    for n, name in enumerate(stored):
        assert provider.from_checkpoint(f"{postgres_url}#{name}") == (f'{{"n":{n}}}' if n == 3 else f'{{"n":  {n}}}')
    later = provider.checkpoint('{"n": 7}', postgres_url, branch="main").rpartition("#")[2]
    assert migrate(postgres_url, back) == 0
    for place in (postgres_url, back):
        assert ids(place) == sorted([*stored, later])
        provider.prune(place, 3)
        assert ids(place) == sorted([stored[4], stored[6], later, *stored[1::2]])
    assert provider.from_checkpoint(f"{back}#{later}") == '{"n": 7}'
    with walpool.Pool(database) as pool:
        assert {name for (name,) in pool.fetch("SELECT name FROM sqlite_schema WHERE type = 'table'")} == {
            "checkpoints"
        }


def test_flow_whose_states_differ_in_their_order_is_found_and_repaired(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(str(database), FLOWS, 1)
    expected = answers(str(database))
    assert migrate(database, postgres_url) == 0
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("UPDATE flow_states SET id = -id WHERE flow_uuid = 'two'")
        pool.execute("DELETE FROM long_term_memories WHERE id = 1")
    WalpoolFlowPersistence(postgres_url).save_state("one", "more", {})
    capsys.readouterr()
    assert migrate(database, postgres_url, "--verify") == 1
    assert "  2 changed: ['one'], ['two']" in capsys.readouterr().out.replace("['two'], ['one']", "['one'], ['two']")
    assert migrate(database, postgres_url, "--repair") == 0
    assert answers(postgres_url) == expected


class Steps(FlowState):
    log: list[str] = Field(default_factory=list)


def working() -> Any:
    """Return a flow that is kept where walpool is installed now."""

    @persist()
    class Working(Flow[Steps]):
        @start()
        def first(self) -> None:
            self.state.log.append("first")

        @listen(first)
        def second(self) -> None:
            self.state.log.append("second")

    return Working()


def test_flow_that_ran_on_a_file_is_taken_up_on_postgres_and_back(database: Path, postgres_url: str, back: str) -> None:
    with install(database, components=("flow",)):
        flow = working()
        flow.kickoff()
        flow_id = flow.state.id
    turn, before = 1, str(database)
    for after in (postgres_url, back):
        assert migrate(before, after) == 0
        with install(after, components=("flow",)):
            flow = working()
            flow.kickoff(inputs={"id": flow_id})
        turn, before = turn + 1, after
        assert flow.state.log == ["first", "second"] * turn
