"""The long-term memory of CrewAI up to 1.9.3 on walpool: its own class, from its own source.

That class is taken from the source of 1.9.3 and put where it was, into the CrewAI that is installed. With --torture all
of 1.9.3 is installed besides, in an environment of its own, and used as a crew would.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

import walpool
from tests.sdists import CACHE, source_of
from tests.torture import Torture
from walpool.crewai import COMPONENTS, InstallWarning, WalpoolLongTermStorage, install

HOME = "crewai.memory.storage.ltm_sqlite_storage"
VERSION = "1.9.3"
METHODS = ("_initialize_db", "save", "load", "reset", "asave", "aload", "areset")


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return CrewAI's own class."""
    source = source_of("crewai", VERSION) / "src" / Path(*HOME.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(HOME, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, HOME, module)
    spec.loader.exec_module(module)
    before = {name: vars(module.LTMSQLiteStorage)[name] for name in METHODS}
    yield module.LTMSQLiteStorage
    assert {name: vars(module.LTMSQLiteStorage)[name] for name in METHODS} == before


def test_storage_answers_as_crewais_own_does(stock: Any, place: str, tmp_path: Path) -> None:
    theirs, ours = stock(str(tmp_path / "stock.db")), WalpoolLongTermStorage(place)
    memories = [
        ("write", {"quality": 7, "suggestions": ["é", 'a "b"']}, "1700000001.5", 7),
        ("write", {"agent": "writer"}, "1700000003", 3.5),
        ("write", {"n": None}, "1700000003", 2),
        ("read", {}, "1700000002", 10),
    ]
    for storage in (theirs, ours):
        for task, metadata, at, score in memories[:2]:
            storage.save(task, metadata, at, score)
        for task, metadata, at, score in memories[2:]:
            asyncio.run(storage.asave(task, metadata, at, score))
    for task in ("write", "read", "neither", "WRITE"):
        for latest in (-1, 0, 1, 2, 10):
            assert ours.load(task, latest) == theirs.load(task, latest)
            assert asyncio.run(ours.aload(task, latest)) == theirs.load(task, latest)
    assert ours.load("write", 1) == [{"metadata": {"n": None}, "datetime": "1700000003", "score": 2.0}]
    asyncio.run(ours.areset())
    assert ours.load("write", 1) is None
    ours.save("write", {}, "1", 1)
    ours.reset()
    assert ours.load("write", 1) is None
    ours.close()


def test_install_serves_objects_built_before_and_after_and_gives_all_back(
    stock: Any, database: Path, tmp_path: Path
) -> None:
    early, named = stock(), stock(str(tmp_path / "named.db"))
    early.save("task", {"of": "crewai"}, "1", 1)
    named.save("task", {"of": "named"}, "1", 1)
    with install(database) as installation:
        assert [surface.component for surface in installation.report] == [*COMPONENTS, "long_term"]
        assert all(surface.replaced for surface in installation.report)
        assert early.load("task", 3) is None
        early.save("task", {"of": "walpool"}, "2", 2)
        assert asyncio.run(stock().aload("task", 3)) == early.load("task", 3)
        with walpool.Pool(database) as pool:
            assert pool.fetchval("SELECT metadata FROM long_term_memories") == '{"of": "walpool"}'
        # A crew that named its file keeps it, and what is in it.
        named.save("task", {"of": "both"}, "2", 2)
        found = named.load("task", 3)
    assert [row["metadata"]["of"] for row in found] == ["both", "named"]
    assert named.load("task", 3) == found
    assert [row["metadata"]["of"] for row in early.load("task", 3)] == ["crewai"]


def test_threads_share_one_storage_and_lose_nothing(place: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        storage = WalpoolLongTermStorage(place)
        list(threads.map(lambda n: storage.save("task", {"n": n}, f"{n:04}", n), range(200)))
        loaded = storage.load("task", 1000)
    assert loaded is not None
    assert [row["metadata"]["n"] for row in loaded] == list(range(199, -1, -1))
    storage.close()


def test_newer_crewai_has_none_and_says_so_only_when_asked(database: Path) -> None:
    with install(database) as installation:
        assert [surface.component for surface in installation.report] == list(COMPONENTS)
    with (
        pytest.warns(InstallWarning, match="has no long_term that walpool could replace"),
        install(database, components=["long_term"]) as installation,
    ):
        assert "newer than what walpool replaces" in str(installation)


def test_older_crewai_keeps_what_it_has_in_place_and_is_told_once_what_it_lacks(
    stock: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lacking in ("crewai.memory.storage.factory", "crewai.flow.persistence.factory", "crewai_core.lock_store"):
        monkeypatch.setitem(sys.modules, lacking, None)  # type: ignore[arg-type] # so that importing it fails
    with pytest.warns(InstallWarning) as caught, install(database) as installation:
        replaced = {surface.component for surface in installation.report if surface.replaced}
    assert replaced == {"checkpoint", "kickoff", "long_term"}
    messages = [str(warning.message) for warning in caught if "built before" not in str(warning.message)]
    assert len(messages) == 1
    assert "has no memory, flow, lock that walpool could replace" in messages[0]


USER = """
import asyncio, sys
from importlib.metadata import version
assert version("crewai") == "{version}"
from crewai.memory.long_term.long_term_memory import LongTermMemory
from crewai.memory.long_term.long_term_memory_item import LongTermMemoryItem
from crewai.utilities.task_output_storage_handler import TaskOutputStorageHandler
import walpool.crewai

with walpool.crewai.install(sys.argv[1]) as installation:
    assert {{s.component for s in installation.report if s.replaced}} == {{"kickoff", "long_term"}}, str(installation)
    memory = LongTermMemory()
    item = LongTermMemoryItem("writer", "task", "a page", "1", 8.5, {{"quality": 8.5, "suggestions": ["shorter"]}})
    memory.save(item)
    asyncio.run(memory.asave(item))
    found = memory.search("task")
    assert found == asyncio.run(memory.asearch("task")) and len(found) == 2, found
    assert found[0]["metadata"]["suggestions"] == ["shorter"] and found[0]["metadata"]["agent"] == "writer"
    memory.reset()
    assert memory.search("task") == []
    assert type(TaskOutputStorageHandler().storage) is walpool.crewai.WalpoolKickoffStorage
"""


@pytest.mark.torture
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_crewai_of_then_remembers_on_walpool(torture: Torture, database: Path, storage_folder: Path) -> None:
    if not torture.is_full:
        pytest.skip("with --torture: installs crewai 1.9.3, 600 MB")
    place = CACHE / f"crewai-{VERSION}-environment"
    python = place / "bin" / "python"
    if not (place / "done").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"crewai=={VERSION}"], check=True, timeout=1100)
        (place / "done").touch()
    # walpool as it is here, and the note that says which version it is.
    paths = [str(Path(walpool.__file__).parent.parent), str(_only_the_note(database.parent))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CREWAI_DISABLE_TELEMETRY": "true"}
    command = [python, "-W", "ignore", "-c", USER.format(version=VERSION), str(database)]
    subprocess.run(command, check=True, env=environment, timeout=100)


def _only_the_note(folder: Path) -> Path:
    """Return a folder with walpool's metadata, and nothing else of this environment."""
    note = folder / "note" / "walpool-0.dist-info"
    note.mkdir(parents=True)
    (note / "METADATA").write_text(str(distribution("walpool").read_text("METADATA")), encoding="utf-8")
    return note.parent
