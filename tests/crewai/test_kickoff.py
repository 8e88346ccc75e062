"""`WalpoolKickoffStorage`: method for method what CrewAI's own store does, and a real crew that replays from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
from crewai.utilities.errors import DatabaseOperationError

import walpool
from examples.offline import ScriptedLLM, answer_to
from walpool.crewai import Installation, WalpoolKickoffStorage


@pytest.fixture
def storage(place: str) -> Iterator[WalpoolKickoffStorage]:
    opened = WalpoolKickoffStorage(place)
    yield opened
    opened.close()


@pytest.fixture
def stock(tmp_path: Path) -> KickoffTaskOutputsSQLiteStorage:
    return KickoffTaskOutputsSQLiteStorage(str(tmp_path / "stock.db"))


def tasks(number: int) -> list[Task]:
    return [Task(description=f"task {i}", expected_output=f"output {i}") for i in range(number)]


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "timestamp"} for row in rows]


def test_every_operation_leaves_what_crewais_own_store_would_have(
    storage: WalpoolKickoffStorage, stock: KickoffTaskOutputsSQLiteStorage
) -> None:
    some = tasks(3)
    for store in (storage, stock):
        store.add(some[2], {"raw": "c"}, 2)
        store.add(some[0], {"raw": "a", "deep": {"x": [1]}}, 0, False, {"topic": "ai"})
        store.add(some[1], {"raw": "b"}, task_index=1, was_replayed=True, inputs=None)
        store.add(some[1], {"raw": "b again"}, task_index=1)
        store.update(2, output={"raw": "changed"}, was_replayed=True, expected_output="more")
    assert without_time(storage.load()) == without_time(stock.load())
    assert [row["task_index"] for row in storage.load()] == [0, 1, 2]
    assert set(storage.load()[0]) == set(stock.load()[0])
    storage.delete_all()
    assert storage.load() == []


def test_time_is_kept_as_crewai_keeps_it(storage: WalpoolKickoffStorage) -> None:
    storage.add(tasks(1)[0], {"raw": "a"}, 0)
    assert len(storage.load()[0]["timestamp"]) == len("2026-03-01 12:00:00")


def test_update_of_what_is_not_there_is_a_warning(
    storage: WalpoolKickoffStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage.update(5, output={"raw": "x"})
    assert "No row found with task_index 5" in caplog.text


@pytest.mark.parametrize("changes", [{"unknown": 1}, {"task_index = 0; DROP TABLE x; --": 1}, {}])
def test_update_of_no_column_is_refused(storage: WalpoolKickoffStorage, changes: dict[str, Any]) -> None:
    with pytest.raises(DatabaseOperationError, match="no such column"):
        storage.update(0, **changes)


def test_errors_are_crewais_and_carry_walpools(storage: WalpoolKickoffStorage, place: str) -> None:
    with walpool.get_pool(place) as pool:
        pool.execute("DROP TABLE latest_kickoff_task_outputs")
    for failing, text in (
        (storage.load, "Error loading task outputs"),
        (storage.delete_all, "Error deleting task outputs"),
        (lambda: storage.update(0, output={}), "Error updating task outputs"),
        (lambda: storage.add(tasks(1)[0], {}, 0), "Error saving task outputs"),
    ):
        with pytest.raises(DatabaseOperationError, match=text) as caught:
            failing()  # type: ignore[operator]
        assert isinstance(caught.value.original_error, walpool.Error)


def test_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(DatabaseOperationError, match="Database initialization error"):
        WalpoolKickoffStorage(str(tmp_path / "folder.db"))


def crew(*topics: str) -> Crew:
    agent = Agent(role="analyst", goal="figures", backstory="counts", llm=ScriptedLLM())
    return Crew(
        agents=[agent], tasks=[Task(description=topic, expected_output="a figure", agent=agent) for topic in topics]
    )


def test_crew_stores_its_latest_run_and_replays_from_it(installation: Installation, storage_folder: Path) -> None:
    built = crew("the first", "the second")
    built.kickoff()
    stored = built._task_output_handler.load()
    assert stored is not None
    assert [row["output"]["raw"] for row in stored] == [answer_to("the first"), answer_to("the second")]
    replayed = built.replay(task_id=stored[1]["task_id"])
    assert replayed.raw == answer_to("the second")
    rows = built._task_output_handler.load()
    assert rows is not None
    assert [row["was_replayed"] for row in rows] == [0, 1]
    # The next kickoff takes the place of the last one, whichever crew's it is: CrewAI's semantics.
    other = crew("another")
    other.kickoff()
    assert [row["task_index"] for row in built._task_output_handler.load() or []] == [0]
    assert not list(Path().glob("latest_kickoff*"))


def test_copies_of_a_crew_use_the_same_store(installation: Installation) -> None:
    built = crew("{topic} of today")
    results = built.kickoff_for_each([{"topic": "rain"}, {"topic": "snow"}])
    assert [result.raw for result in results] == [answer_to("rain of today"), answer_to("snow of today")]
    copied = built.copy()
    assert isinstance(copied._task_output_handler.storage, WalpoolKickoffStorage)
