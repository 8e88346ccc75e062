"""`install()`: what it replaces and says, and that everything is as it was afterwards."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import crewai.flow.persistence.factory as flow_factory
import crewai.memory.storage.factory as memory_factory
import crewai.state.provider.utils as provider_utilities
import crewai.utilities.task_output_storage_handler as task_output_handler
import pytest
from crewai.flow.flow import Flow, start
from crewai.flow.persistence import SQLiteFlowPersistence, persist
from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
from crewai.memory.unified_memory import Memory
from crewai.state.provider.sqlite_provider import SqliteProvider
from crewai.utilities.task_output_storage_handler import TaskOutputStorageHandler
from crewai_core import lock_store

import walpool
import walpool.crewai
from walpool.crewai import (
    COMPONENTS,
    InstallWarning,
    WalpoolFlowPersistence,
    WalpoolKickoffStorage,
    WalpoolLock,
    WalpoolStorage,
    install,
)

METHODS = ("checkpoint", "acheckpoint", "prune", "from_checkpoint", "afrom_checkpoint")


def state_of_crewai() -> list[Any]:
    """Return everything that an installation may change."""
    return [
        memory_factory._factory,
        flow_factory._factory,
        task_output_handler.KickoffTaskOutputsSQLiteStorage,
        provider_utilities.detect_provider,
        lock_store._backend,
        *(vars(SqliteProvider)[name] for name in METHODS),
    ]


@pytest.fixture(autouse=True)
def nothing_is_left_installed() -> Any:
    before = state_of_crewai()
    yield
    assert state_of_crewai() == before


def run(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_replaced_and_given_back(database: Path) -> None:
    before = state_of_crewai()
    with install(database) as installation:
        assert all(now is not then for now, then in zip(state_of_crewai(), before, strict=True))
        assert [surface.component for surface in installation.report] == list(COMPONENTS)
        assert all(surface.replaced and surface.detail for surface in installation.report)
        assert installation.installed
        assert isinstance(Memory()._storage, WalpoolStorage)
        assert isinstance(flow_factory.default_flow_persistence(), WalpoolFlowPersistence)
        assert isinstance(TaskOutputStorageHandler().storage, WalpoolKickoffStorage)
        assert isinstance(lock_store._backend, WalpoolLock)
    assert state_of_crewai() == before
    assert not installation.installed
    installation.uninstall()  # safe again
    assert type(TaskOutputStorageHandler().storage) is KickoffTaskOutputsSQLiteStorage


@pytest.mark.parametrize("component", COMPONENTS)
def test_one_component_is_replaced_and_no_other(database: Path, component: str) -> None:
    touched = {
        "memory": {0},
        "flow": {1},
        "kickoff": {2},
        "checkpoint": {3, *range(5, 5 + len(METHODS))},
        "lock": {4},
    }
    before = state_of_crewai()
    with install(database, components=[component]):
        changed = {i for i, (now, then) in enumerate(zip(state_of_crewai(), before, strict=True)) if now is not then}
    assert changed == touched[component]


def test_all_of_them_share_one_database(database: Path) -> None:
    with install(database):
        Memory()._storage.count()
        flow_factory.default_flow_persistence().save_state("f", "m", {})
        TaskOutputStorageHandler().load()
        with walpool.Pool(database) as pool:
            tables = {name for (name,) in pool.fetch("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {"memory_records", "flow_states", "latest_kickoff_task_outputs", "walpool_schema"} <= tables


def test_database_lies_where_crewai_keeps_its_own_unless_told_otherwise(
    storage_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crewai_core.paths import db_storage_path

    with install() as installation:
        assert installation.url == f"walpool://{db_storage_path()}/walpool.db"
    monkeypatch.setenv("WALPOOL_URL", "walpool://relative.db?readers=3")
    monkeypatch.chdir(tmp_path)
    with install() as installation:
        assert installation.url == f"walpool://{tmp_path}/relative.db?readers=3"
        storage = Memory()._storage
        monkeypatch.chdir("/")
        assert storage.count() == 0
    assert (tmp_path / "relative.db").exists()
    with install(tmp_path / "given.db", readers=2) as installation:
        assert installation.url == f"walpool://{tmp_path}/given.db"


def test_no_file_is_made_before_its_first_use(database: Path) -> None:
    with install(database):
        assert not database.exists()
        assert Memory()._storage.count() == 0
        assert database.exists()


def test_installing_again_is_the_same_installation_and_ends_with_the_last_user(database: Path) -> None:
    before = state_of_crewai()
    first = install(database)
    with install() as second, install(database, components=["lock"]) as third:
        assert first is second is third
    assert first.installed
    first.uninstall()
    assert state_of_crewai() == before


@pytest.mark.parametrize(
    "other",
    [
        {"url": "other.db"},
        {"readers": 3},
        {"score": "cosine"},
        {"components": ["memory", "flow"]},
    ],
)
def test_installing_something_else_is_refused(database: Path, other: dict[str, Any]) -> None:
    with install(database, components=["flow", "lock"]) as installation:
        with pytest.raises(walpool.ConfigError, match="uninstall it first"):
            install(**other)
        assert installation.installed


@pytest.mark.parametrize(
    "wrong",
    [
        {"components": ["memory", "knowledge"]},
        {"url": "mysql://host/name"},
        {"readers": "many"},
        {"unknown": 1},
        {"score": "l1"},
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(walpool.ConfigError):
        install(**{"url": tmp_path / "test.db", **wrong})


def test_disabled_installation_does_nothing_and_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALPOOL_DISABLE", "1")
    before = state_of_crewai()
    with install(database) as installation:
        assert state_of_crewai() == before
        assert not installation.installed
        assert str(installation).count("WALPOOL_DISABLE is set") == len(COMPONENTS)
    assert not database.exists()


def test_import_of_auto_installs_and_warns_of_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    program = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import walpool.crewai.auto as auto, walpool.crewai
from crewai.memory.storage import factory
assert factory._factory is not None
assert auto.installation.installed
assert not [warning for warning in caught if issubclass(warning.category, walpool.crewai.InstallWarning)], caught
print(auto.installation)
"""
    database = tmp_path / "test.db"
    assert run(program, WALPOOL_URL=str(database)).startswith(f"walpool for CrewAI at walpool://{database}")


# Seams of another CrewAI


@pytest.mark.parametrize(
    ("component", "module", "name"),
    [
        ("memory", "crewai.memory.storage.factory", "set_memory_storage_factory"),
        ("flow", "crewai.flow.persistence.factory", "set_flow_persistence_factory"),
        ("checkpoint", "crewai.state.provider.utils", "detect_provider"),
        ("checkpoint", "crewai.state.provider.sqlite_provider", "SqliteProvider"),
        ("kickoff", "crewai.utilities.task_output_storage_handler", "KickoffTaskOutputsSQLiteStorage"),
        ("lock", "crewai_core.lock_store", "set_lock_backend"),
    ],
)
def test_seam_that_is_missing_costs_its_component_and_no_other(
    database: Path, monkeypatch: pytest.MonkeyPatch, component: str, module: str, name: str
) -> None:
    with monkeypatch.context() as older:
        older.delattr(importlib.import_module(module), name)
        with pytest.warns(InstallWarning, match=f"CrewAI's {component}: not replaced .*{name}"):
            installation = install(database)
        assert {surface.component: surface.replaced for surface in installation.report} == {
            other: other != component for other in COMPONENTS
        }
        installation.uninstall()


def test_module_that_is_missing_costs_its_component(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crewai.flow.persistence.factory", None)  # type: ignore[arg-type]
    with pytest.warns(InstallWarning, match="CrewAI's flow: not replaced"):
        install(database).uninstall()


def test_provider_that_lacks_a_method_is_left_whole(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Half a component would be worse than none: what was rebound before the gap was met is given back.
    stock = provider_utilities.detect_provider
    broken = ModuleType("broken")
    broken.SqliteProvider = type("SqliteProvider", (), {"checkpoint": lambda *_: None})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "crewai.state.provider.sqlite_provider", broken)
    with pytest.warns(InstallWarning, match="CrewAI's checkpoint: not replaced"):
        installation = install(database, components=["checkpoint"])
    assert provider_utilities.detect_provider is stock
    installation.uninstall()


def test_nothing_is_installed_where_its_warning_is_an_error(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_store, "_redis_available", lambda: True)
    with pytest.raises(InstallWarning):  # as the settings of this project's pytest have it
        install(database)


def test_redis_lock_is_left_alone(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_store, "_redis_available", lambda: True)
    with pytest.warns(InstallWarning, match="REDIS_URL is set"):
        installation = install(database)
    assert lock_store._backend is None
    installation.uninstall()


def test_what_others_put_there_before_comes_back_and_what_they_put_there_after_stays(database: Path) -> None:
    theirs, later = (lambda spec: None), (lambda spec: None)
    memory_factory.set_memory_storage_factory(theirs)
    try:
        with install(database, components=["memory"]):
            assert memory_factory._factory is not theirs
        assert memory_factory._factory is theirs
        installation = install(database, components=["memory", "lock"])
        memory_factory.set_memory_storage_factory(later)
        with pytest.warns(InstallWarning, match="replaced by somebody else"):
            installation.uninstall()
        assert memory_factory._factory is later
        assert lock_store._backend is None
    finally:
        memory_factory.set_memory_storage_factory(None)


# What was built before


def test_flow_that_was_decorated_before_is_named(database: Path) -> None:
    @persist()
    class Early(Flow[dict[str, Any]]):
        @start()
        def begin(self) -> None: ...

    class EarlyMethod(Flow[dict[str, Any]]):
        @start()
        @persist()
        def begin(self) -> None: ...

    @persist(SQLiteFlowPersistence(str(database.with_name("chosen.db"))))
    class Chosen(Flow[dict[str, Any]]):
        @start()
        def begin(self) -> None: ...

    with pytest.warns(InstallWarning) as caught:
        install(database, components=["flow"]).uninstall()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert all("before install()" in message for message in messages)
    for flow in (Early, EarlyMethod):
        assert any(f"{__name__}." in message and f"{flow.__qualname__} was" in message for message in messages)
    assert not any(Chosen.__qualname__ in message for message in messages)


def test_crew_that_was_built_before_is_counted(database: Path) -> None:
    early = TaskOutputStorageHandler()  # as every crew has one
    with pytest.warns(InstallWarning, match=r"\d+ crews were built before"):
        install(database, components=["kickoff"]).uninstall()
    assert early.load() == []


def test_memory_that_was_built_before_is_counted(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = ModuleType("crewai.memory.storage.lancedb_storage")
    stock.LanceDBStorage = type("LanceDBStorage", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stock.__name__, stock)
    early = [stock.LanceDBStorage()]
    with pytest.warns(InstallWarning, match="1 memories were built before"):
        install(database, components=["memory"]).uninstall()
    assert early


def test_crew_that_was_built_meanwhile_goes_on_after_the_end(database: Path) -> None:
    with install(database):
        memory = Memory(llm=MagicMock(), embedder=lambda texts: [[1.0] for _ in texts])
    memory.remember("after", scope="/a", categories=[], importance=0.5)
    storage = WalpoolStorage(str(database))
    assert [record.content for record in storage.list_records()] == ["after"]
    storage.close()
    memory.close()


# The memory factory


@pytest.mark.parametrize(
    ("spec", "file"),
    [
        ("lancedb", "test.db"),
        ("walpool://{folder}/a.db", "a.db"),
        ("sqlite:///{folder}/b.sqlite", "b.sqlite"),
        ("{folder}/c.db", "c.db"),
        ("{folder}/d.sqlite3", "d.sqlite3"),
        ("qdrant-edge", None),
        ("./memories", None),
        ("{folder}/lance", None),
    ],
)
def test_memory_is_replaced_where_its_name_is_a_databases(database: Path, spec: str, file: str | None) -> None:
    with install(database):
        spec = spec.format(folder=database.parent)
        storage: Any = memory_factory.resolve_memory_storage(spec)
        if file is None:
            assert storage is None
        else:
            assert storage.url == f"walpool://{database.parent}/{file}"
            assert memory_factory.resolve_memory_storage(spec) is storage


def test_score_of_the_installation_is_that_of_its_memories(database: Path) -> None:
    with install(database, score="cosine"):
        assert "cosine" in repr(Memory()._storage)


# All of it


WHOLE_RUN = """
import sys, warnings
sys.path.insert(0, sys.argv[2])
import sqlite3
opened = []
connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: (opened.append(a), connect(*a, **k))[1]
from examples.offline import EMBEDDER, ScriptedLLM
import walpool.crewai
installation = walpool.crewai.install(sys.argv[1])
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.flow.persistence import persist
from crewai_core import lock_store

locked = []
backend = lock_store._backend
lock_store.set_lock_backend(lambda name, **k: (locked.append(name), backend(name, **k))[1])

@persist()
class Ask(Flow[dict]):
    @start()
    def begin(self):
        agent = Agent(role="analyst", goal="figures", backstory="counts", llm=ScriptedLLM())
        task = Task(description="count the stars", expected_output="a figure", agent=agent)
        crew = Crew(agents=[agent], tasks=[task], memory=True, embedder=EMBEDDER, name="stars")
        self.state["answer"] = crew.kickoff().raw
        self.state["remembered"] = crew._memory._storage.count("/crew/stars")

flow = Ask()
flow.kickoff()
assert flow.state["remembered"] == 2, flow.state
print("lancedb" in sys.modules, opened, locked)
"""


def test_whole_run_touches_no_store_of_crewais(database: Path, storage_folder: Path) -> None:
    checkout = str(Path(__file__).parent.parent.parent)
    printed = run(WHOLE_RUN, str(database), checkout, CREWAI_STORAGE_DIR=str(storage_folder))
    assert printed.splitlines()[-1] == "False [] []"
    assert not [file for file in storage_folder.rglob("*") if file.is_file()]
    with walpool.Pool(database) as pool:
        assert pool.fetchval("SELECT count(*) FROM memory_records") == 2
        assert pool.fetchval("SELECT count(*) FROM flow_states") == 1
        assert pool.fetchval("SELECT count(*) FROM latest_kickoff_task_outputs") == 1
