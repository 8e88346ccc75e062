"""`WalpoolStorage` as CrewAI's memory backend: what its protocol asks, and what its own stores get wrong."""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from crewai.memory.storage.backend import EmbeddingDimensionMismatchError, StorageBackend
from crewai.memory.types import MemoryConfig, MemoryRecord, compute_composite_score
from crewai.memory.unified_memory import Memory
from helpers import retire

import walpool
from walpool.crewai import Installation, WalpoolStorage

NOON = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - CrewAI's times are in UTC and say no zone


@pytest.fixture
def storage(place: str) -> Iterator[WalpoolStorage]:
    opened = WalpoolStorage(place)
    yield opened
    opened.close()


@pytest.fixture
def in_file(database: Path) -> Iterator[WalpoolStorage]:
    opened = WalpoolStorage(str(database))
    yield opened
    opened.close()


def record(name: str, embedding: list[float] | None = None, **fields: Any) -> MemoryRecord:
    return MemoryRecord(id=name, content=f"about {name}", embedding=embedding, **fields)


def names(found: list[Any]) -> set[str]:
    return {(item[0] if isinstance(item, tuple) else item).id for item in found}


def neighbours() -> list[MemoryRecord]:
    """Return records in /a, below it, at the root, and where LanceDB's prefixes reach by mistake."""
    scopes = ["/a", "/a/b", "/", "/ab", "/a-b", "/a.b", "/axb", "/a_b"]
    return [record(scope, [1.0, 0.0], scope=scope, categories=["c"], created_at=NOON) for scope in scopes]


def test_storage_is_what_crewai_calls_a_backend(storage: WalpoolStorage) -> None:
    assert isinstance(storage, StorageBackend)


# Scores


def test_scores_are_those_of_lancedb(storage: WalpoolStorage) -> None:
    vectors = {"same": [1.0, 0.0], "none": None, "across": [0.0, 1.0], "longer": [3.0, 0.0], "opposite": [-1.0, 0.0]}
    storage.save([record(name, vector) for name, vector in vectors.items()])
    found = storage.search([1.0, 0.0])
    # A record without an embedding counts as a zero vector; so does LanceDB's.
    assert {item.id: score for item, score in found} == pytest.approx(
        {"same": 1.0, "none": 0.5, "across": 1 / 3, "longer": 0.2, "opposite": 0.2}
    )
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_score_may_be_the_cosine(database: Path) -> None:
    storage = WalpoolStorage(str(database), score="cosine")
    storage.save([record("same", [1.0, 0.0]), record("longer", [3.0, 0.0]), record("opposite", [-1.0, 0.0])])
    found = storage.search([1.0, 0.0])
    assert {item.id: score for item, score in found} == pytest.approx({"same": 1.0, "longer": 1.0})
    storage.close()


def test_unknown_score_is_refused(database: Path) -> None:
    with pytest.raises(walpool.ConfigError, match="lance"):
        WalpoolStorage(str(database), score="l1")  # type: ignore[arg-type]


def test_min_score_leaves_out_what_scores_lower(storage: WalpoolStorage) -> None:
    storage.save([record("same", [1.0, 0.0]), record("across", [0.0, 1.0])])
    assert names(storage.search([1.0, 0.0], min_score=0.5)) == {"same"}


def test_results_carry_their_embeddings(storage: WalpoolStorage) -> None:
    storage.save([record("a", [0.5, 0.25])])
    assert storage.search([0.5, 0.25])[0][0].embedding == [0.5, 0.25]
    assert storage.list_records()[0].embedding == [0.5, 0.25]
    found = storage.get_record("a")
    assert found is not None
    assert found.embedding == [0.5, 0.25]


# Scopes


@pytest.mark.parametrize("scope", ["/a", "a", "/a/", "//a"])
def test_scope_is_a_path_and_not_a_prefix(storage: WalpoolStorage, scope: str) -> None:
    storage.save(neighbours())
    assert names(storage.search([1.0, 0.0], scope_prefix=scope)) == {"/a", "/a/b"}
    assert names(storage.list_records(scope)) == {"/a", "/a/b"}
    assert storage.count(scope) == 2
    assert storage.list_categories(scope) == {"c": 2}
    info = storage.get_scope_info(scope)
    assert (info.path, info.record_count, info.child_scopes) == ("/a", 2, ["/a/b"])
    assert storage.list_scopes(scope) == ["/a/b"]


@pytest.mark.parametrize("verb", ["delete", "reset"])
def test_removing_a_scope_leaves_the_root_and_lookalikes(storage: WalpoolStorage, verb: str) -> None:
    storage.save(neighbours())
    getattr(storage, verb)(scope_prefix="/a")
    assert names(storage.list_records()) == {"/", "/ab", "/a-b", "/a.b", "/axb", "/a_b"}


def test_scope_without_a_slash_is_stored_with_one(storage: WalpoolStorage) -> None:
    storage.save([record("x", scope="team/notes/")])
    assert names(storage.list_records("/team")) == {"x"}
    assert storage.list_records()[0].scope == "/team/notes"


def test_scopes_are_sorted(storage: WalpoolStorage) -> None:
    storage.save([record(str(i), scope=f"/{name}") for i, name in enumerate(["z", "b/c", "a", "b"])])
    assert storage.list_scopes() == storage.get_scope_info("/").child_scopes == ["/a", "/b", "/z"]


def test_counts_have_no_cap(in_file: WalpoolStorage, database: Path) -> None:
    in_file.save([record("first", scope="/a", categories=["c"])])
    with walpool.Pool(database) as pool:
        pool.execute(
            """WITH RECURSIVE n (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value < 29)
            INSERT INTO memory_scopes (space, path) SELECT 1, '/a/s' || value FROM n"""
        )
        pool.execute(
            """WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 50039)
            INSERT INTO memory_records (space, id, scope, content, importance, created_at, accessed_at, private)
            SELECT 1, 'r' || value, (SELECT scope FROM memory_scopes WHERE path = '/a/s' || (value % 30)), '', 0.5,
                value, value, 0 FROM n"""
        )
    assert in_file.count("/a") == in_file.get_scope_info("/").record_count == 50_040
    assert len(in_file.list_scopes("/a")) == 30


# Deleting


def test_delete_takes_what_meets_every_condition(storage: WalpoolStorage) -> None:
    def fill() -> None:
        storage.reset()
        storage.save(
            [
                record("old", scope="/a", categories=["x"], metadata={"k": 1}, created_at=NOON),
                record("new", scope="/a", categories=["x"], metadata={"k": 1}, created_at=NOON + timedelta(days=2)),
                record("root", scope="/", categories=["y"], metadata={"k": 2}, created_at=NOON),
            ]
        )

    cutoff = NOON + timedelta(days=1)
    for conditions, gone in (
        ({"scope_prefix": "/a", "older_than": cutoff}, {"old"}),
        ({"record_ids": ["old", "root"], "scope_prefix": "/a"}, {"old"}),
        ({"record_ids": ["old", "new"], "older_than": cutoff}, {"old"}),
        ({"record_ids": ["new", "root"], "categories": ["x"]}, {"new"}),
        ({"record_ids": ["new", "root"], "metadata_filter": {"k": 2}}, {"root"}),
        ({"categories": ["x", "y"], "older_than": cutoff, "scope_prefix": "/"}, {"old", "root"}),
        ({"older_than": cutoff.replace(tzinfo=timezone.utc)}, {"old", "root"}),
        ({"record_ids": ["a1') OR id <> ('"]}, set()),
        ({}, {"old", "new", "root"}),
    ):
        fill()
        assert storage.delete(**conditions) == len(gone), conditions
        assert names(storage.list_records()) == {"old", "new", "root"} - gone, conditions


@pytest.mark.parametrize("empty", [{"record_ids": []}, {"categories": []}, {"metadata_filter": {}}])
def test_empty_filter_deletes_nothing(storage: WalpoolStorage, empty: dict[str, Any]) -> None:
    storage.save([record("a", categories=["x"], metadata={"k": 1})])
    assert storage.delete(**empty) == storage.delete(**empty, scope_prefix="/") == 0
    memory = Memory(storage=storage, llm=MagicMock(), embedder=MagicMock())
    assert memory.forget(record_ids=[]) == 0
    assert storage.count() == 1


# Saving


def test_saving_an_id_again_replaces_its_record(storage: WalpoolStorage) -> None:
    storage.save([record("a", [1.0, 0.0])])
    storage.save([record("a", [0.0, 1.0], scope="/new")])
    assert storage.count() == 1
    found = storage.get_record("a")
    assert found is not None
    assert (found.scope, found.embedding) == ("/new", [0.0, 1.0])


def test_update_keeps_times_as_given_and_an_embedding_that_is_not(storage: WalpoolStorage) -> None:
    storage.save([record("a", [1.0, 0.0], created_at=NOON, last_accessed=NOON, source="s", private=True)])
    later = NOON + timedelta(seconds=1)
    changed = record("a", created_at=later, last_accessed=later, importance=0.9)
    storage.update(changed)
    assert storage.get_record("a") == changed.model_copy(update={"embedding": [1.0, 0.0]})


def test_update_of_an_unknown_id_inserts_it_and_fixes_the_dims(storage: WalpoolStorage) -> None:
    storage.update(record("a", [1.0, 0.0, 0.0, 0.0]))
    storage.save([record("b", [0.0, 1.0, 0.0, 0.0])])
    assert storage.count() == 2


def test_wrong_dims_are_refused_in_crewais_words(storage: WalpoolStorage) -> None:
    storage.save([record("a", [1.0, 0.0])])
    for refused in (
        lambda: storage.save([record("b", [1.0])]),
        lambda: storage.update(record("a", [1.0])),
        lambda: storage.search([1.0]),
    ):
        with pytest.raises(EmbeddingDimensionMismatchError) as caught:
            refused()
        assert (caught.value.stored_dim, caught.value.new_dim) == (2, 1)
        assert not isinstance(caught.value, RuntimeError)
    with pytest.raises(EmbeddingDimensionMismatchError):
        storage.save([record("b", [1.0, 0.0]), record("c", [1.0])])
    assert storage.count() == 1
    storage.reset()
    storage.save([record("b", [1.0])])
    assert names(storage.search([1.0])) == {"b"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_number_that_is_none_is_refused(storage: WalpoolStorage, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        storage.save([record("good", [1.0, 0.0]), record("bad", [1.0, bad])])
    with pytest.raises(ValueError, match="NaN"):
        storage.search([bad, 0.0])
    assert storage.count() == 0


def test_metadata_that_json_cannot_hold_leaves_the_stored_record(storage: WalpoolStorage) -> None:
    storage.save([record("a", metadata={"v": 1})])
    with pytest.raises(TypeError, match="not JSON serializable"):
        storage.update(record("a", metadata={"when": NOON}))
    assert storage.list_records()[0].metadata == {"v": 1}


@pytest.mark.parametrize("name", ["o'brien", "aaaaaaaa1", "\U0001f600", "x" * 5000, "a1') OR id <> ('", "1"])
def test_id_may_be_any_string(storage: WalpoolStorage, name: str) -> None:
    storage.save([record(name), record("aaaaaaaa2")])
    found = storage.get_record(name)
    assert found is not None
    assert found.id == name
    assert storage.count() == 2


def test_times_come_back_in_utc_without_a_zone(storage: WalpoolStorage) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    storage.save([record("aware", created_at=datetime(2026, 3, 1, 17, 30, tzinfo=east)), record("new")])
    found = storage.get_record("aware")
    assert found is not None
    assert found.created_at == NOON
    assert storage.get_scope_info("/").oldest_record == NOON
    # What CrewAI does with it; an aware time would be a TypeError.
    fresh = storage.get_record("new")
    assert fresh is not None
    assert compute_composite_score(fresh, 1.0, MemoryConfig())[0] == pytest.approx(0.9, abs=1e-3)


def test_saving_nothing_and_asking_an_empty_store_is_no_error(storage: WalpoolStorage) -> None:
    storage.save([])
    storage.touch_records([])
    storage.touch_records(["unknown"])
    assert storage.search([1.0]) == storage.list_records() == storage.list_scopes() == []
    assert storage.count() == storage.delete(scope_prefix="/a") == 0
    assert storage.list_categories() == {}
    assert storage.get_record("x") is None
    info = storage.get_scope_info("/x")
    assert (info.path, info.record_count, info.oldest_record, info.child_scopes) == ("/x", 0, None, [])
    storage.reset()
    storage.reset("/x")


def test_touch_changes_the_last_access_alone(storage: WalpoolStorage) -> None:
    storage.save([record(name, [1.0], last_accessed=NOON, created_at=NOON) for name in ("a", "b")])
    storage.touch_records(["a"])
    touched, untouched = storage.get_record("a"), storage.get_record("b")
    assert touched is not None
    assert untouched is not None
    assert touched.last_accessed > NOON
    assert touched.created_at == untouched.last_accessed == NOON
    assert touched.embedding == [1.0]


def test_recall_from_a_retired_file_touches_nothing_and_succeeds(database: Path) -> None:
    # CrewAI's recall: a search, then touch_records of what it found.
    before = WalpoolStorage(str(database))
    before.save([record("a", [1.0], last_accessed=NOON)])
    before.close()
    retire(database)
    storage = WalpoolStorage(str(database))
    assert names(storage.search([1.0])) == {"a"}
    storage.touch_records(["a"])
    found = storage.get_record("a")
    assert found is not None
    assert found.last_accessed == NOON
    with pytest.raises(walpool.ReadOnlyError):
        storage.save([record("b", [1.0])])
    storage.close()


# Searching


def test_filters_come_before_the_ranking(storage: WalpoolStorage) -> None:
    storage.save([record(f"near{i}", [1.0, 0.0], categories=["common"]) for i in range(100)])
    storage.save([record("far", [-1.0, 0.0], categories=["rare"], metadata={"k": "v"}, scope="/x")])
    for filters in ({"categories": ["rare"]}, {"metadata_filter": {"k": "v"}}, {"scope_prefix": "/x"}):
        assert names(storage.search([1.0, 0.0], limit=5, **filters)) == {"far"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [({"z": None}, {"lacks", "null"}), ({"z": 1}, {"one"}), ({"z": "1"}, {"text"}), ({"z": [1, 2]}, {"list"})],
)
def test_metadata_is_compared_as_python_compares(
    storage: WalpoolStorage, wanted: dict[str, Any], expected: set[str]
) -> None:
    storage.save([record(name, [1.0], metadata={"z": value}) for name, value in
                  {"one": 1, "text": "1", "null": None, "list": [1, 2]}.items()])  # fmt: skip
    storage.save([record("lacks", [1.0])])
    assert names(storage.search([1.0], metadata_filter=wanted)) == expected


def test_categories_match_any_and_exactly(storage: WalpoolStorage) -> None:
    storage.save([record("a", [1.0], categories=["x", "y"]), record("b", [1.0], categories=["X"])])
    assert names(storage.search([1.0], categories=["x", "unknown"])) == {"a"}
    assert names(storage.search([1.0], categories=["y", "X"])) == {"a", "b"}


def test_empty_filter_filters_nothing_in_a_search(storage: WalpoolStorage) -> None:
    storage.save([record("a", [1.0])])
    assert names(storage.search([1.0], categories=[], metadata_filter={}, scope_prefix="")) == {"a"}


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_that_is_not_positive_finds_nothing(storage: WalpoolStorage, limit: int) -> None:
    storage.save([record("a", [1.0])])
    assert storage.search([1.0], limit=limit) == []
    assert storage.list_records(limit=limit) == storage.list_records(offset=-1) == []


# Many users


def test_other_process_is_seen_at_once(storage: WalpoolStorage, place: str) -> None:
    storage.save([record("ours", [1.0])])
    program = """
import sys
from crewai.memory.types import MemoryRecord
from walpool.crewai import WalpoolStorage
storage = WalpoolStorage(sys.argv[1])
assert storage.get_record("ours") is not None
storage.reset()
storage.save([MemoryRecord(id="theirs", content="x", embedding=[1.0, 2.0])])
storage.close()
"""
    subprocess.run([sys.executable, "-c", program, place], check=True, timeout=55)
    assert names(storage.list_records()) == names(storage.search([1.0, 2.0])) == {"theirs"}
    storage.save([record("again", [0.0, 1.0])])
    assert storage.count() == 2


def test_closing_does_not_take_the_storage_from_others(
    storage: WalpoolStorage, threads: Callable[[int, Callable[[int], None]], list[None]]
) -> None:
    done = threading.Event()

    def work(index: int) -> None:
        if index == 0:
            while not done.is_set():
                storage.close()
            return
        try:
            for i in range(50):
                storage.save([record(f"{index}-{i}", [1.0])])
                assert storage.get_record(f"{index}-{i}") is not None
                assert storage.search([1.0], limit=1)
        finally:
            if index == 1:
                done.set()

    threads(4, work)
    assert storage.count() == 150


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12: the subject of the test
def test_forked_child_opens_the_storage_for_itself(storage: WalpoolStorage) -> None:
    storage.save([record("parent", [1.0])])

    def child() -> None:
        storage.save([record("child", [1.0])])
        assert names(storage.list_records()) == {"parent", "child"}
        storage.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert names(storage.list_records()) == {"parent", "child"}
    storage.save([record("parent again", [1.0])])
    assert storage.count() == 3


def test_deleted_file_is_made_anew(in_file: WalpoolStorage, database: Path) -> None:
    in_file.save([record("lost", [1.0])])
    for file in database.parent.glob(database.name + "*"):
        file.unlink()
    in_file.save([record("kept", [1.0, 2.0])])
    assert names(in_file.list_records()) == {"kept"}
    in_file.close()
    assert names(WalpoolStorage(str(database)).list_records()) == {"kept"}


def test_copies_are_the_storage_and_pickles_are_on_its_file(storage: WalpoolStorage) -> None:
    storage.save([record("a")])
    assert copy.copy(storage) is copy.deepcopy(storage) is storage
    pickled = pickle.loads(pickle.dumps(storage))
    assert names(pickled.list_records()) == {"a"}
    assert (pickled.url, repr(pickled)) == (storage.url, repr(storage))
    pickled.close()


def test_storage_opens_no_file_before_its_first_use(database: Path) -> None:
    storage = WalpoolStorage(str(database.parent / "new" / "folder" / "memory.db"))
    assert not database.parent.joinpath("new").exists()
    assert storage.count() == 0
    assert database.parent.joinpath("new", "folder", "memory.db").exists()
    storage.close()


async def _asynchronously(storage: WalpoolStorage) -> int:
    await storage.asave([record("a", [1.0])])
    assert names(await storage.asearch([1.0])) == {"a"}
    return await storage.adelete(record_ids=["a"])


def test_async_methods_do_what_the_others_do(storage: WalpoolStorage) -> None:
    import asyncio

    assert asyncio.run(_asynchronously(storage)) == 1


def test_optimize_moves_the_wal_into_the_file(in_file: WalpoolStorage, database: Path) -> None:
    in_file.save([record(str(i), [1.0]) for i in range(100)])
    assert database.with_name(database.name + "-wal").stat().st_size > 0
    in_file.optimize()
    assert database.with_name(database.name + "-wal").stat().st_size == 0


# In a Memory


def test_memory_with_the_storage_goes_through_json_and_back(installation: Installation, database: Path) -> None:
    memory = Memory(storage=WalpoolStorage(str(database)), llm="gpt-4o-mini")
    dumped = memory.model_dump(mode="json")
    assert dumped["storage"] == installation.url
    restored = Memory.model_validate(dumped)
    memory._storage.save([record("a")])
    assert names(restored._storage.list_records()) == {"a"}
    assert Memory(storage="lancedb")._storage is restored._storage  # one for each database
    memory._storage.close()


def test_memory_remembers_recalls_forgets_and_resets(storage: WalpoolStorage) -> None:
    memory = Memory(storage=storage, llm=MagicMock(), embedder=lambda texts: [[1.0, float(len(t))] for t in texts])
    memory.remember("short", scope="/a", categories=["x"], importance=0.5)
    memory.remember_many(["much longer than that"], scope="/b", categories=["y"], importance=0.5)
    found = memory.recall("short", depth="shallow")
    assert [match.record.content for match in found] == ["short", "much longer than that"]
    assert memory.tree("/").splitlines()[0] == "/ (2 records)"
    memory.close()
    assert memory.forget(scope="/a") == 1
    memory.reset_all()
    assert storage.count() == 0
