"""The memory store in SQLite: the contract, its schema, other processes, and how it reads."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import walpool
import walpool.memory
from tests.memory.contract import StoreContract, TestPacking, record
from tests.memory.contract_conditions import ConditionsContract
from tests.memory.contract_spaces import SpacesContract
from tests.memory.contract_words import WordsContract
from walpool import schema
from walpool.errors import ClosedError, DataError, NotSupportedError
from walpool.memory import DimsError, MemoryStore, Query, pack
from walpool.memory.records import Metric

__all__ = ["TestPacking"]  # collected here

METRICS: Final[tuple[Metric, ...]] = ("cosine", "dot", "l2")

OTHER_PROCESS = """
import sys, walpool.memory as memory
with memory.open(sys.argv[1]) as store:
    store.save([memory.Record(id="theirs", content="x", scope="/p", embedding=memory.pack([0.0, 1.0]))])
    print(store.delete(memory.Query(ids=("ours",))))
"""


@pytest.fixture
def opener(database: Path) -> Iterator[Callable[..., MemoryStore]]:
    with ExitStack() as opened:
        yield lambda **names: opened.enter_context(walpool.memory.open(database, **names))


@pytest.fixture
def store(opener: Callable[..., MemoryStore]) -> MemoryStore:
    return opener()


class TestSqliteStore(StoreContract, ConditionsContract, SpacesContract, WordsContract):
    pass


def test_store_is_there_again_after_it_was_closed(database: Path) -> None:
    with walpool.memory.open(database) as store:
        store.save([record("a", [1.0, 2.0], categories=("x",))])
        before = store.get("a")
    with pytest.raises(ClosedError):
        store.count()
    with walpool.memory.open(str(database)) as store:
        assert store.get("a") == before
        assert store.dims() == 2


def test_other_process_sees_and_deletes_at_once(database: Path, store: MemoryStore) -> None:
    store.save([record("ours", [1.0, 0.0], scope="/p")])
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
            store.save([record(str(index))])

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
            store.save([record("a")])
            store.reset()
        assert pool.fetchval("SELECT x FROM mine") == 1


def test_deleting_a_record_leaves_no_row_of_it(database: Path) -> None:
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        store.save([record(str(i), [1.0], categories=("x", "y")) for i in range(3)])
        store.delete(Query(ids=("1",)))
        assert pool.fetchone(
            """SELECT (SELECT count(*) FROM memory_vectors), (SELECT count(*) FROM memory_sketches WHERE gone = 0),
                (SELECT count(*) FROM memory_categories)"""
        ) == (2, 2, 4)
        store.reset()
        assert pool.fetchval("SELECT count(*) FROM memory_sketches") == 0


def test_every_record_has_the_sketch_of_its_vector_whatever_was_put_before(database: Path) -> None:
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        store.save([record("a", [1.0, 2.0]), record("b"), record("c"), record("d", [5.0, 6.0])])
        store.save([record("a", [-3.0, 4.0]), record("b", [7.0, 8.0]), record("d")])
        rows = pool.fetch("""SELECT embedding IS NULL, sketch IS vec_sketch(embedding, NULL)
            FROM memory_vectors AS v LEFT JOIN memory_sketches AS s ON s.key = v.key ORDER BY v.key""")
        assert rows == [(0, 1), (0, 1), (1, 1), (0, 1)]


def scan(pool: walpool.Pool, wanted: bytes, metric: str, selected: str, limit: int) -> list[tuple[str, float]]:
    """Return the ids and scores that a search must find, by scoring the vectors of all records."""
    score = {
        "cosine": "coalesce(vec_cosine(embedding, ?1), 0.0)",
        "dot": "coalesce(vec_dot(embedding, ?1), 0.0)",
        "l2": "1.0 / (1.0 + coalesce(vec_l2sq(embedding, ?1), vec_dot(?1, ?1)))",
    }[metric]
    rows = pool.fetch(
        f"""SELECT r.id, {score} AS score FROM memory_records AS r JOIN memory_vectors AS v ON v.key = r.key
        JOIN memory_scopes AS s ON s.scope = r.scope WHERE {selected} ORDER BY score DESC, r.key LIMIT ?2""",
        (wanted, limit),
    )
    return [(row[0], row[1]) for row in rows]


SELECTIONS = [
    (Query(), "1"),
    (Query(scope="/s0"), "s.path = '/s0'"),
    (Query(categories=("c1",)), "r.key IN (SELECT key FROM memory_categories WHERE category = 'c1')"),
    (Query(ids=("r0", "r3", "r4", "r9")), "r.id IN ('r0', 'r3', 'r4', 'r9')"),
    (Query(metadata={"third": 0}), "r.metadata ->> 'third' = 0"),
]


def assert_search_is_a_scan(
    store: MemoryStore, pool: walpool.Pool, vectors: Sequence[Sequence[float] | None], wanted: Sequence[float]
) -> None:
    """Put the vectors, and compare each search with the scan: the same records, order and bits of the score."""
    store.reset()
    store.save(
        record(f"r{i}", vector, scope=f"/s{i % 2}", categories=(f"c{i % 3}",), metadata={"third": i % 3})
        for i, vector in enumerate(vectors)
    )
    for query, selected in SELECTIONS:
        for limit in (1, 3, 10, len(vectors) + 1):
            for metric in METRICS:
                hits = store.search(pack(wanted), query, limit=limit, metric=metric)
                found = [(hit.record.id, hit.score) for hit in hits]
                assert found == scan(pool, pack(wanted), metric, selected, limit), (query, limit, metric)


def clustered(rng: random.Random, count: int, dims: int, spread: float) -> list[list[float]]:
    centre = [rng.gauss(0, 1) for _ in range(dims)]
    return [[x + rng.gauss(0, spread) for x in centre] for _ in range(count)]


def hiding(rng: random.Random, count: int, dims: int) -> list[list[float]]:
    """Return vectors whose one large value takes the whole grid, so that all that tells them apart is left over."""
    return [[1000.0] + [rng.uniform(-3.9, 3.9) for _ in range(dims - 1)] for _ in range(count)]


@pytest.mark.parametrize("dims", [8, 1536])
@pytest.mark.parametrize("size", [1.0, 1e-40, 1e34])
def test_search_finds_what_a_scan_of_the_vectors_finds(database: Path, dims: int, size: float) -> None:
    rng = random.Random(dims)
    close = clustered(rng, 40, dims, 1e-3)
    near_ties = clustered(rng, 40, dims, 1e-7)
    hidden = hiding(rng, 40, dims)
    random_ones = clustered(rng, 1, dims, 1.0) + [[rng.gauss(0, 1) for _ in range(dims)] for _ in range(40)]
    vectors: list[Sequence[float] | None] = [None, [0.0] * dims]
    for kind in (close, near_ties, hidden, random_ones):
        vectors += [[x * size for x in vector] for vector in kind]
    rng.shuffle(vectors)
    vectors += vectors[:10]
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        for kind in (close, near_ties, hidden, random_ones, [[0.0] * dims]):
            assert_search_is_a_scan(store, pool, vectors, [x * size for x in kind[0]])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MemoryStore, walpool.Pool]]:
    database = tmp_path_factory.mktemp("memory") / "test.db"
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        yield store, pool


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_search_finds_what_a_scan_finds_for_any_vectors(
    shared: tuple[MemoryStore, walpool.Pool], data: st.DataObject
) -> None:
    dims = data.draw(st.integers(1, 4))
    # Few values, so that vectors are often equal, parallel or opposite; and any float that is finite.
    value = st.sampled_from([0.0, 1.0, -1.0, 1.0000001, 126.5, 127.0, 1e-45, 3e38]) | st.floats(
        width=32, allow_nan=False, allow_infinity=False
    )
    vector = st.lists(value, min_size=dims, max_size=dims)
    vectors = data.draw(st.lists(st.none() | vector, min_size=1, max_size=20))
    assert_search_is_a_scan(*shared, vectors, data.draw(vector))


def test_store_errors_survive_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(DimsError(stored=3, given=4)))
    assert (error.stored, error.given, str(error)) == (3, 4, str(DimsError(stored=3, given=4)))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"importance": 1.5},
        {"importance": float("nan")},
        {"created_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))},  # the year 10000 in UTC
    ],
)
def test_record_that_no_store_could_give_back_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DataError):
        walpool.memory.Record(**{"id": "a", "content": "", **fields})  # type: ignore[arg-type]


def test_query_for_a_time_that_utc_has_not_is_refused() -> None:
    with pytest.raises(DataError, match="UTC"):
        Query(created_before=datetime.min.replace(tzinfo=timezone(timedelta(hours=5))))
