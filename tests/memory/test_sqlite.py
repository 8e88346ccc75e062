"""The memory store in SQLite: the contract, its schema, other processes, and how it reads."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import walpool
import walpool.memory
from tests.memory.contract import StoreContract, TestPacking, record
from walpool import schema
from walpool.errors import ClosedError, DataError, NotSupportedError
from walpool.memory import DimsError, MemoryStore, Query, SqliteMemoryStore, _sqlite_sql, pack

__all__ = ["TestPacking"]  # collected here

OTHER_PROCESS = """
import sys, walpool.memory as memory
with memory.open(sys.argv[1]) as store:
    store.put([memory.Record(id="theirs", content="x", scope="/p", embedding=memory.pack([0.0, 1.0]))])
    print(store.delete(memory.Query(ids=("ours",))))
"""


@pytest.fixture
def store(database: Path) -> Iterator[MemoryStore]:
    with walpool.memory.open(database) as opened:
        yield opened


class TestSqliteStore(StoreContract):
    pass


def test_store_is_there_again_after_it_was_closed(database: Path) -> None:
    with walpool.memory.open(database) as store:
        store.put([record("a", [1.0, 2.0], categories=("x",))])
        before = store.get("a")
    with pytest.raises(ClosedError):
        store.count()
    with walpool.memory.open(str(database)) as store:
        assert store.get("a") == before
        assert store.dims() == 2


def test_other_process_sees_and_deletes_at_once(database: Path, store: MemoryStore) -> None:
    store.put([record("ours", [1.0, 0.0], scope="/p")])
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(database)], check=True, capture_output=True, text=True, timeout=50
    )
    assert done.stdout.strip() == "1"
    assert [hit.record.id for hit in store.search(pack([1.0, 0.0]))] == ["theirs"]


def test_memory_of_a_newer_walpool_is_refused_by_name(database: Path) -> None:
    walpool.memory.open(database).close()
    with walpool.Pool(database) as pool:
        known = schema.version(pool, "memory")
        pool.execute("UPDATE walpool_schema SET version = ? WHERE name = 'memory'", (known + 1,))
    with pytest.raises(NotSupportedError, match=f"'memory' tables of .* version {known + 1}.* up to {known}"):
        walpool.memory.open(database)


def test_threads_that_open_a_new_file_at_once_make_its_tables_once(
    database: Path, threads: Callable[[int, Callable[[int], None]], list[None]]
) -> None:
    def work(index: int) -> None:
        with walpool.memory.open(database) as store:
            store.put([record(str(index))])

    threads(8, work)
    with walpool.memory.open(database) as store:
        assert store.count() == 8


def test_failed_migration_leaves_the_file_as_it_was(database: Path) -> None:
    migrations = [["CREATE TABLE one (x)"], ["CREATE TABLE two (x)", "CREATE TABLE two (x)"]]
    with walpool.Pool(database) as pool:
        with pytest.raises(walpool.DatabaseError):
            schema.migrate(pool, "test", migrations)
        assert schema.version(pool, "test") == 0
        schema.migrate(pool, "test", migrations[:1])
        assert schema.version(pool, "test") == 1
        schema.migrate(pool, "test", [*migrations[:1], ["CREATE TABLE two (x)"]])
        assert pool.fetch("SELECT * FROM two") == []


def test_tables_of_others_in_the_file_are_left_alone(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
        with walpool.memory.open(database) as store:
            store.put([record("a")])
            store.clear()
        assert pool.fetchval("SELECT x FROM mine") == 1


def test_deleting_a_record_leaves_no_row_of_it(database: Path) -> None:
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        store.put([record(str(i), [1.0], categories=("x", "y")) for i in range(3)])
        store.delete(Query(ids=("1",)))
        assert pool.fetchone(
            "SELECT (SELECT count(*) FROM memory_vectors), (SELECT count(*) FROM memory_categories)"
        ) == (2, 4)


@pytest.mark.parametrize(
    "selection",
    [
        Query(),
        Query(scope="/a"),
        Query(categories=("x",)),
        Query(scope="/a", categories=("x",)),
        Query(ids=("r",)),
    ],
)
def test_search_scores_only_what_was_selected_and_reads_text_by_key(database: Path, selection: Query) -> None:
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        assert isinstance(store, SqliteMemoryStore)
        read = _sqlite_sql.nearest(pack([1.0]), _sqlite_sql.select(selection), limit=3, metric="l2")
        plan = [row[3] for row in pool.fetch("EXPLAIN QUERY PLAN " + read.sql, read.params)]
        scans = [step for step in plan if step.startswith("SCAN") and "best" not in step and "subquery" not in step]
        allowed = ["SCAN memory_vectors"] if selection == Query() else ["SCAN json_each"]
        assert all(any(step.startswith(start) for start in allowed) for step in scans), plan
        # The distance is computed once a vector, not again for the order.
        calls = [row for row in pool.fetch("EXPLAIN " + read.sql, read.params) if "vec_l2sq" in str(row)]
        assert len(calls) == 1


def test_store_errors_survive_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(DimsError(stored=3, given=4)))
    assert (error.stored, error.given, str(error)) == (3, 4, str(DimsError(stored=3, given=4)))


@pytest.mark.parametrize("fields", [{"id": ""}, {"importance": 1.5}, {"importance": float("nan")}])
def test_record_that_no_store_could_give_back_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DataError):
        walpool.memory.Record(**{"id": "a", "content": "", **fields})  # type: ignore[arg-type]
