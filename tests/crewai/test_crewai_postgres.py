"""CrewAI's components on PostgreSQL: an installation by URL, many writers, and what of a URL is written down."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, FlowState, listen, start
from crewai.flow.persistence import persist
from crewai.memory.types import MemoryRecord
from crewai.memory.unified_memory import Memory
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state.provider.sqlite_provider import SqliteProvider
from helpers import run_together

import walpool
from examples.offline import ScriptedLLM
from walpool.crewai import (
    Installation,
    WalpoolCheckpointProvider,
    WalpoolFlowPersistence,
    WalpoolKickoffStorage,
    WalpoolLongTermStorage,
    install,
)
from walpool.crewai.checkpoint import CheckpointFiles, is_checkpoint_location
from walpool.errors import ConfigError

pytestmark = pytest.mark.postgres

COMPONENTS = ("memory", "flow", "checkpoint", "kickoff", "lock")


@pytest.fixture
def installed(postgres_url: str) -> Iterator[Installation]:
    with install(postgres_url, components=COMPONENTS) as installation:
        assert all(surface.replaced for surface in installation.report), str(installation)
        yield installation


@pytest.fixture
def provider() -> Iterator[WalpoolCheckpointProvider]:
    files = CheckpointFiles()
    yield WalpoolCheckpointProvider.on(files)
    files.close()


class Count(FlowState):
    count: int = 0


def test_flows_that_run_at_once_keep_every_state_of_their_own(installed: Installation, postgres_url: str) -> None:
    @persist()
    class Counting(Flow[Count]):
        @start()
        def first(self) -> None:
            self.state.count += 1

        @listen(first)
        def second(self) -> None:
            self.state.count += 1

    def work(_: int) -> tuple[str, int]:
        flow = Counting()
        flow.kickoff()
        again = Counting()
        again.kickoff(inputs={"id": flow.state.id})
        return flow.state.id, again.state.count

    results = run_together(4, work, timeout=50)
    assert {count for _, count in results} == {4}
    with walpool.get_pool(postgres_url) as pool:
        kept = Counter(identity for (identity,) in pool.fetch("SELECT flow_uuid FROM flow_states"))
    assert kept == dict.fromkeys((identity for identity, _ in results), 4)


def test_crew_stores_its_latest_run_and_replays_from_it(installed: Installation) -> None:
    agent = Agent(role="analyst", goal="figures", backstory="counts", llm=ScriptedLLM())
    topics = ("the first", "the second")
    crew = Crew(agents=[agent], tasks=[Task(description=t, expected_output="a figure", agent=agent) for t in topics])
    crew.kickoff()
    stored = crew._task_output_handler.load()
    assert stored is not None
    assert [row["task_id"] for row in stored] == [str(task.id) for task in crew.tasks]
    crew.replay(str(crew.tasks[1].id))
    again = crew._task_output_handler.load()
    assert again is not None
    assert [row["was_replayed"] for row in again][-1] == 1


@pytest.mark.bounced
def test_sixteen_threads_that_save_one_flow_lose_no_state_and_the_last_one_counts(postgres_url: str) -> None:
    persistence = WalpoolFlowPersistence(postgres_url)
    run_together(16, lambda n: [persistence.save_state("f", "m", {"by": n, "step": step}) for step in range(10)])
    persistence.save_state("f", "m", {"last": True})
    assert persistence.load_state("f") == {"last": True}
    with walpool.get_pool(postgres_url) as pool:
        states = [json.loads(text) for (text,) in pool.fetch("SELECT state_json FROM flow_states ORDER BY id, tie")]
    for n in range(16):
        assert [state["step"] for state in states if state.get("by") == n] == list(range(10))
    persistence.close()


def test_state_that_is_saved_after_another_counts_although_its_clock_is_behind(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walpool.crewai import _sql

    persistence = WalpoolFlowPersistence(postgres_url)
    persistence.save_state("f", "m", {"step": 1})
    monkeypatch.setattr(_sql.time, "time_ns", lambda: 1_000_000_000)
    persistence.save_state("f", "m", {"step": 2})
    assert persistence.load_state("f") == {"step": 2}
    persistence.close()


SAVE = """
import sys
from walpool.crewai import WalpoolFlowPersistence
persistence = WalpoolFlowPersistence(sys.argv[1])
for step in range(20):
    persistence.save_state("f", sys.argv[2], {"step": step})
"""


def test_two_processes_that_save_one_flow_lose_nothing(postgres_url: str) -> None:
    started = [subprocess.Popen([sys.executable, "-c", SAVE, postgres_url, name]) for name in ("a", "b")]
    assert [process.wait(50) for process in started] == [0, 0]
    with walpool.get_pool(postgres_url) as pool:
        found = pool.fetch("SELECT method_name FROM flow_states ORDER BY id")
    assert Counter(name for (name,) in found) == {"a": 20, "b": 20}


def test_checkpoints_may_lie_on_a_server_and_are_found_and_pruned_there(
    provider: WalpoolCheckpointProvider, postgres_url: str
) -> None:
    main = [provider.checkpoint(f'["{n}", "\\\\u0000"]', postgres_url) for n in range(4)]
    fork = provider.checkpoint("9", postgres_url, branch="fork/a", parent_id="p")
    assert is_checkpoint_location(main[0])
    assert provider.prune(postgres_url, -1) == 0  # keeps them all, as SQLite's LIMIT does
    assert provider.prune(postgres_url, 2) == 2
    assert provider.prune(postgres_url, 2) == 0
    assert [provider.from_checkpoint(kept) for kept in (*main[2:], fork)] == [
        '["2", "\\\\u0000"]',
        '["3", "\\\\u0000"]',
        "9",
    ]
    with pytest.raises(ValueError, match="not found"):
        provider.from_checkpoint(main[1])


def test_location_that_crewai_gave_a_files_ending_names_the_same_database(
    installed: Installation, postgres_url: str
) -> None:
    config = CheckpointConfig(location=postgres_url, provider=SqliteProvider())
    assert config.location != postgres_url
    stored = SqliteProvider().checkpoint("{}", config.location)
    assert SqliteProvider().from_checkpoint(stored) == "{}"
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT data FROM crewai_checkpoints") == "{}"


def with_password(url: str) -> str:
    """Return a URL with a password in it, which the test server does not ask for."""
    changed = re.sub(r"//([^:/@]+)@", r"//\1:geheim@", url)
    assert "geheim" in changed
    return changed


def test_password_is_in_nothing_that_crewai_stores_or_shows(
    provider: WalpoolCheckpointProvider, postgres_url: str
) -> None:
    url = with_password(postgres_url)
    persistence = WalpoolFlowPersistence(url)
    persistence.save_state("f", "m", {"step": 1})
    kickoff, long_term = WalpoolKickoffStorage(url), WalpoolLongTermStorage(url)
    with install(url, components=COMPONENTS) as installation:
        shown = [str(installation), installation.url]
    stored = provider.checkpoint("{}", url)
    fields = persistence.model_dump_json()
    shown += [fields, repr(persistence), stored, kickoff.url, kickoff.db_path, long_term.url, long_term.db_path]
    shown += [repr(pickle.dumps(persistence))]
    assert not [text for text in shown if "geheim" in text]
    restored = WalpoolFlowPersistence.model_validate(json.loads(fields))
    assert restored.load_state("f") == {"step": 1}
    assert provider.from_checkpoint(stored) == "{}"
    for opened in (persistence, restored, kickoff):
        opened.close()


def test_restored_persistence_takes_the_password_from_where_this_process_has_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walpool.crewai import _database

    full = with_password(postgres_url)
    shown = _database.canonical_url(full)
    assert _database.full_url(shown) == full
    monkeypatch.setattr(_database, "_given", {})
    assert _database.full_url(shown) == shown
    monkeypatch.setenv("WALPOOL_URL", full)
    assert _database.full_url(shown) == full
    monkeypatch.setenv("WALPOOL_URL", "postgresql://other:geheim@host/name")
    assert _database.full_url(shown) == shown


def use_every_component(word: str, place: str) -> None:
    """Store something of each kind through what CrewAI would take for its own."""
    memory = Memory(embedder=lambda texts: [[1.0, 2.0] for _ in texts])
    storage: Any = memory._storage
    storage.save([MemoryRecord(id="m", content=word, embedding=[1.0, 2.0])])

    @persist()
    class Saying(Flow[Count]):
        @start()
        def first(self) -> None:
            self.state.count = len(word)

    Saying().kickoff(inputs={"id": "flow"})
    agent = Agent(role="analyst", goal="figures", backstory="counts", llm=ScriptedLLM())
    Crew(agents=[agent], tasks=[Task(description=word, expected_output="a figure", agent=agent)]).kickoff()
    SqliteProvider().checkpoint(json.dumps(word), place)


def flows_of(url: str, tenant: str | None) -> closing[WalpoolFlowPersistence]:
    return closing(WalpoolFlowPersistence(url, settings={"tenant": tenant}))


TABLES = ("memory_records", "flow_states", "latest_kickoff_task_outputs", "crewai_checkpoints")


@pytest.mark.bounced
def test_installation_for_a_tenant_keeps_every_component_to_the_rows_of_that_tenant(postgres_url: str) -> None:
    for tenant in ("acme", "other"):
        with install(postgres_url, tenant=tenant) as installation:
            assert installation.report[0].replaced
            use_every_component(tenant, postgres_url)
            storage: Any = Memory(embedder=lambda texts: [[1.0, 2.0] for _ in texts])._storage
            assert [record.content for record in storage.list_records()] == [tenant]
    with walpool.get_pool(postgres_url) as pool:
        for table in TABLES:
            found = [name for (name,) in pool.fetch(f"SELECT DISTINCT tenant FROM {table} ORDER BY tenant")]
            assert found == ["acme", "other"], table
    with flows_of(postgres_url, "acme") as flows:
        assert flows.load_state("flow")["count"] == len("acme")


def test_provider_that_a_crew_was_given_stores_for_the_tenant_of_the_installation(postgres_url: str) -> None:
    provider = WalpoolCheckpointProvider()  # as in a CheckpointConfig, before or after install()
    with install(postgres_url, tenant="acme"):
        for each in (provider, WalpoolCheckpointProvider()):
            stored = each.checkpoint('"kept"', postgres_url)
            assert each.from_checkpoint(stored) == SqliteProvider().from_checkpoint(stored) == '"kept"'
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tenant, count(*) FROM crewai_checkpoints GROUP BY tenant") == [("acme", 2)]


def test_file_that_a_crew_names_under_a_tenant_is_opened_without_one(postgres_url: str, database: Path) -> None:
    with install(postgres_url, tenant="acme"):
        stored = SqliteProvider().checkpoint('"kept"', str(database))
        assert SqliteProvider().from_checkpoint(stored) == '"kept"'
        storage: Any = Memory(storage=str(database.with_name("m.db")))._storage
        storage.save([MemoryRecord(id="m", content="kept", embedding=[1.0])])
        assert storage.count() == 1


def test_tenant_is_refused_for_a_file_and_beside_another_tenant(postgres_url: str, database: Path) -> None:
    with pytest.raises(ConfigError, match="tenant= is for a server"):
        install(database, tenant="acme")
    with install(postgres_url, tenant="acme", components=("flow",)) as first:
        with pytest.raises(ConfigError, match="tenant='other'"):
            install(postgres_url, tenant="other", components=("flow",))
        with install(components=("flow",)) as again:  # says nothing else
            assert again is first
    assert not first.installed


def test_restored_persistence_of_a_tenant_reads_the_rows_of_that_tenant(postgres_url: str) -> None:
    with flows_of(postgres_url, "acme") as flows:
        flows.save_state("f", "m", {"of": "acme"})
        restored = WalpoolFlowPersistence.model_validate(json.loads(flows.model_dump_json()))
        assert restored.load_state("f") == {"of": "acme"}
        restored.close()
    with flows_of(postgres_url, None) as flows:
        assert flows.load_state("f") is None


def test_environment_names_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALPOOL_URL", postgres_url)
    with install(components=("flow", "kickoff")) as installation:
        assert installation.url.startswith("postgresql://")
    storages: list[Any] = [WalpoolFlowPersistence(), WalpoolKickoffStorage(), WalpoolLongTermStorage()]
    storages[0].save_state("f", "m", {})
    storages[2].save("task " * 4000, {"n": 1}, "1", 0.5)
    assert storages[2].load("task " * 4000, 3) == [{"metadata": {"n": 1}, "datetime": "1", "score": 0.5}]
    assert storages[2].load("task " * 4001, 3) is None
    for storage in storages:
        storage.close()
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT count(*) FROM flow_states") == 1
