"""`WalpoolCheckpointProvider` and what `install()` does to CrewAI's own: same file format, both ways."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.events.event_bus import crewai_event_bus
from crewai.flow.flow import Flow, FlowState, listen, start
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state.provider import sqlite_provider
from crewai.state.provider.json_provider import JsonProvider
from crewai.state.provider.sqlite_provider import SqliteProvider
from crewai.state.runtime import RuntimeState
from helpers import retire
from pydantic import Field

import walpool
import walpool.crewai
from examples.offline import ScriptedLLM
from walpool.crewai import Installation, WalpoolCheckpointProvider, WalpoolFlowPersistence
from walpool.crewai.checkpoint import CheckpointFiles, is_checkpoint_location


@pytest.fixture
def files() -> Iterator[CheckpointFiles]:
    opened = CheckpointFiles()
    yield opened
    opened.close()


@pytest.fixture
def provider(files: CheckpointFiles) -> WalpoolCheckpointProvider:
    return WalpoolCheckpointProvider.on(files)


def written_as_crewai_does(location: Path, checkpoint_id: str, data: str, insert: str) -> None:
    """Write a checkpoint with CrewAI's own statements; on walpool's SQLite, since not every Python's knows JSONB."""
    with walpool.Pool(location) as pool:
        pool.execute(sqlite_provider._CREATE_TABLE)
        pool.execute(insert, (checkpoint_id, "20260301T120000", None, "main", data))


def test_checkpoint_comes_back_as_it_was_stored(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    location = str(tmp_path / "new folder" / "checkpoints.db")
    stored = provider.checkpoint('{"ключ":  "значение"}', location, parent_id="p1", branch="fork/a")
    path, _, checkpoint_id = stored.rpartition("#")
    assert path == location
    assert provider.extract_id(stored) == checkpoint_id
    assert is_checkpoint_location(stored)
    assert provider.from_checkpoint(stored) == '{"ключ":  "значение"}'
    with walpool.Pool(location) as pool:
        assert pool.fetch("SELECT id, parent_id, branch, typeof(data) FROM checkpoints") == [
            (checkpoint_id, "p1", "fork/a", "text")
        ]


def test_what_is_not_there_is_a_value_error_and_makes_no_file(
    provider: WalpoolCheckpointProvider, tmp_path: Path
) -> None:
    location = str(tmp_path / "checkpoints.db")
    with pytest.raises(ValueError, match="not found"):
        provider.from_checkpoint(f"{location}#20260301T120000_00000000")
    assert provider.prune(location, 1) == 0
    assert not Path(location).exists()
    provider.checkpoint("{}", location)
    with pytest.raises(ValueError, match="not found"):
        provider.from_checkpoint(f"{location}#20260301T120000_00000000")


def test_checkpoint_in_a_retired_file_is_restored_from(tmp_path: Path) -> None:
    location = str(tmp_path / "checkpoints.db")
    before = CheckpointFiles()
    stored = WalpoolCheckpointProvider.on(before).checkpoint("{}", location)
    before.close()
    retire(location)
    after = CheckpointFiles()
    provider = WalpoolCheckpointProvider.on(after)
    assert provider.from_checkpoint(stored) == "{}"
    with pytest.raises(walpool.ReadOnlyError):
        provider.checkpoint("{}", location)
    after.close()


def test_prune_keeps_the_newest_of_the_branch(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    location = str(tmp_path / "checkpoints.db")
    main = [provider.checkpoint(str(i), location) for i in range(4)]
    fork = provider.checkpoint("9", location, branch="fork/a")
    assert provider.prune(location, 2) == 2
    assert provider.prune(location, 2) == 0
    assert [provider.from_checkpoint(kept) for kept in (*main[2:], fork)] == ["2", "3", "9"]
    with pytest.raises(ValueError, match="not found"):
        provider.from_checkpoint(main[1])
    assert provider.prune(location, 0) == 2


def test_async_twins_do_the_same(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    async def there_and_back() -> str:
        stored = await provider.acheckpoint("[1]", str(tmp_path / "checkpoints.db"), branch="b", parent_id="p")
        return await provider.afrom_checkpoint(stored)

    assert asyncio.run(there_and_back()) == "[1]"


def test_more_files_than_stay_open_are_all_written_and_read(
    provider: WalpoolCheckpointProvider, files: CheckpointFiles, tmp_path: Path
) -> None:
    stored = [provider.checkpoint(str(i), str(tmp_path / f"{i}.db")) for i in range(12)]
    assert [provider.from_checkpoint(location) for location in stored] == [str(i) for i in range(12)]
    assert len(files._open) == 8


def test_deleted_file_is_made_anew(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    location = tmp_path / "checkpoints.db"
    lost = provider.checkpoint("1", str(location))
    for file in tmp_path.glob("checkpoints.db*"):
        file.unlink()
    kept = provider.checkpoint("2", str(location))
    assert provider.from_checkpoint(kept) == "2"
    with pytest.raises(ValueError, match="not found"):
        provider.from_checkpoint(lost)


def test_checkpoints_are_read_by_crewai_without_walpool(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    stored = provider.checkpoint('{"a": [1, "é"]}', str(tmp_path / "checkpoints.db"))
    program = """
import json, sys
from crewai.state.provider.utils import detect_provider
provider = detect_provider(sys.argv[1])
assert type(provider).__module__ == "crewai.state.provider.sqlite_provider"
assert json.loads(provider.from_checkpoint(sys.argv[1])) == {"a": [1, "é"]}
from crewai_cli.checkpoint_cli import _list_sqlite
assert [entry["name"] for entry in _list_sqlite(sys.argv[1].rpartition("#")[0])] == [sys.argv[1].rpartition("#")[2]]
"""
    subprocess.run([sys.executable, "-c", program, stored], check=True, timeout=55)


@pytest.mark.parametrize("form", ["jsonb(?)", "?"])
def test_checkpoints_of_crewais_own_are_read(provider: WalpoolCheckpointProvider, tmp_path: Path, form: str) -> None:
    location = tmp_path / "checkpoints.db"
    insert = sqlite_provider._INSERT.replace("jsonb(?)", form)
    written_as_crewai_does(location, "20260301T120000_0123abcd", '{"a": 1}', insert)
    assert json.loads(provider.from_checkpoint(f"{location}#20260301T120000_0123abcd")) == {"a": 1}


def test_configuration_takes_the_provider_and_keeps_it(provider: WalpoolCheckpointProvider, tmp_path: Path) -> None:
    config = CheckpointConfig(location=str(tmp_path / "checkpoints"), provider=provider)
    assert config.provider is provider
    assert config.location.endswith("checkpoints.db")
    assert config.model_dump(mode="json")["provider"] == {"provider_type": "sqlite"}
    for twin in (copy.deepcopy(provider), pickle.loads(pickle.dumps(WalpoolCheckpointProvider()))):
        assert isinstance(twin, WalpoolCheckpointProvider)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("./.checkpoints.db#20260301T120000_0123abcd", True),
        ("/a#b/c.db#20260301T120000_0123abcd", True),
        ("./.checkpoints/main/20260301T120000_0123abcd_p-none.json", False),
        ("./run#1/main/20260301T120000_0123abcd_p-none.json", False),
        ("#20260301T120000_0123abcd", False),
        ("checkpoints.db", False),
    ],
)
def test_location_says_by_its_form_whose_it_is(location: str, expected: bool) -> None:
    assert is_checkpoint_location(location) is expected


# While walpool is installed


def test_providers_that_were_there_before_store_through_walpool(tmp_path: Path, database: Path) -> None:
    before = SqliteProvider()
    location = str(tmp_path / "checkpoints.db")
    stock = {name: vars(SqliteProvider)[name] for name in ("checkpoint", "from_checkpoint", "prune")}
    with walpool.crewai.install(database, components=["checkpoint"]):
        stored = before.checkpoint('{"a":1}', location, branch="b", parent_id="p")
        assert SqliteProvider().from_checkpoint(stored) == '{"a":1}'
        assert asyncio.run(SqliteProvider().afrom_checkpoint(stored)) == '{"a":1}'
        assert before.prune(location, 0, branch="b") == 1
    assert {name: vars(SqliteProvider)[name] for name in stock} == stock


def test_restore_goes_through_walpool_and_json_stays_json(installation: Installation, tmp_path: Path) -> None:
    from crewai.state.provider.utils import detect_provider

    stored = SqliteProvider().checkpoint("{}", str(tmp_path / "checkpoints.db"))
    assert type(detect_provider(stored)) is WalpoolCheckpointProvider
    assert type(detect_provider(str(tmp_path / "checkpoints.db"))) is WalpoolCheckpointProvider
    assert type(detect_provider(JsonProvider().checkpoint("{}", str(tmp_path / "json")))) is JsonProvider
    assert type(detect_provider(str(tmp_path / "nothing"))) is JsonProvider


class Steps(FlowState):
    steps: list[str] = Field(default_factory=list)


class Stepping(Flow[Steps]):
    @start()
    def first(self) -> None:
        self.state.steps.append("first")

    @listen(first)
    def second(self) -> None:
        self.state.steps.append("second")


def test_crew_is_checkpointed_and_restored(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # CrewAI restores a model of an unknown class as one of its own of that name, which wants a key and calls nobody.
    monkeypatch.setenv("OPENAI_API_KEY", "never-used")
    llm = ScriptedLLM(model="gpt-4o-mini", provider="openai")
    agent = Agent(role="analyst", goal="figures", backstory="counts", llm=llm)
    tasks = [Task(description=f"task {i}", expected_output="a figure", agent=agent) for i in range(2)]
    # One checkpoint, at the end: those of single tasks are written by several threads, in any order.
    config = CheckpointConfig(
        location=str(tmp_path / "checkpoints"),
        provider=SqliteProvider(),
        on_events=["crew_kickoff_completed"],
        max_checkpoints=1,
    )
    built = Crew(agents=[agent], tasks=tasks, checkpoint=config)
    result = built.kickoff()
    assert crewai_event_bus.flush()
    with walpool.Pool(config.location) as pool:
        rows: list[Any] = pool.fetch("SELECT id FROM checkpoints")
    assert len(rows) == 1
    restored = Crew.from_checkpoint(CheckpointConfig(restore_from=f"{config.location}#{rows[0][0]}"))
    assert [task.output.raw for task in restored.tasks if task.output] == [out.raw for out in result.tasks_output]


def test_flow_is_checkpointed_with_its_persistence_and_restored(installation: Installation, tmp_path: Path) -> None:
    persistence = WalpoolFlowPersistence(str(tmp_path / "flows.db"))
    config = CheckpointConfig(
        location=str(tmp_path / "checkpoints.db"), provider=SqliteProvider(), on_events=["flow_finished"]
    )
    flow = Stepping(persistence=persistence, checkpoint=config)
    flow.kickoff()
    assert crewai_event_bus.flush()
    with walpool.Pool(config.location) as pool:
        last = pool.fetchval("SELECT id FROM checkpoints ORDER BY rowid DESC")
    restore = CheckpointConfig(restore_from=f"{config.location}#{last}")
    # A checkpoint holds every flow that the process has, those inside the agents of other tests too.
    entities = RuntimeState.from_checkpoint(restore, context={"from_checkpoint": True}).root
    restored = [entity.persistence for entity in entities if getattr(entity, "persistence", None) is not None]
    assert [type(found) for found in restored] == [WalpoolFlowPersistence]
    assert restored[0].url == persistence.url
    persistence.close()
