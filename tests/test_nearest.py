"""`vec_nearest` answers what brute force would, of the snapshot that it is asked in, whatever is in memory.

The tables are the memory store's, made here by hand: the store itself is not needed.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import other_process, run_python, run_together
from looping import run

import walpool
from walpool import errors

DIMS = 40  # where the bounds of sketches are no longer those of Cauchy and Schwarz
METRICS = ("cosine", "dot", "l2")

TABLES = """
    CREATE TABLE memory_spaces (space INTEGER PRIMARY KEY, dims INTEGER, centroid BLOB,
        epoch INTEGER NOT NULL DEFAULT 0, trimmed INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE memory_vectors (key INTEGER PRIMARY KEY, embedding BLOB);
    CREATE TABLE memory_sketches (change INTEGER PRIMARY KEY AUTOINCREMENT, space INTEGER NOT NULL,
        key INTEGER NOT NULL UNIQUE, scope INTEGER NOT NULL, gone INTEGER NOT NULL, sketch BLOB);
    CREATE INDEX memory_sketches_space ON memory_sketches (space);
"""
NEAREST = "SELECT vec_nearest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
WORD = "the tables are named by a word of lower-case letters, such as 'memory'"
KEY_SET = "SELECT vec_key_set(value) FROM json_each(?)"

T = TypeVar("T")
Vector = Sequence[float]
Statement = tuple[str, tuple[Any, ...]]


def pack(vector: Vector) -> bytes:
    return struct.pack(f"<{len(vector)}f", *vector)


def unpack(blob: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(blob) // 4}f", blob))


def save(key: int, vector: Vector | None, scope: int = 1, space: int = 1) -> list[Statement]:
    """Return the statements by which the store saves a record."""
    blob = None if vector is None else pack(vector)
    sketch = "vec_sketch(?, (SELECT centroid FROM memory_spaces WHERE space = ?))"
    return [
        ("INSERT INTO memory_vectors VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET embedding = ?2", (key, blob)),
        ("DELETE FROM memory_sketches WHERE key = ?", (key,)),
        (
            f"INSERT INTO memory_sketches (space, key, scope, gone, sketch) VALUES (?, ?, ?, 0, {sketch})",
            (space, key, scope, blob, space),
        ),
    ]


def remove(key: int, space: int = 1) -> list[Statement]:
    """Return the statements by which the store deletes a record, and leaves a tombstone."""
    return [
        ("DELETE FROM memory_vectors WHERE key = ?", (key,)),
        ("DELETE FROM memory_sketches WHERE key = ?", (key,)),
        ("INSERT INTO memory_sketches (space, key, scope, gone) VALUES (?, ?, 1, 1)", (space, key)),
    ]


def trim(space: int = 1) -> list[Statement]:
    newest = "(SELECT max(change) FROM memory_sketches WHERE space = ?1)"
    return [
        (f"UPDATE memory_spaces SET trimmed = {newest} WHERE space = ?1", (space,)),
        ("DELETE FROM memory_sketches WHERE space = ? AND gone = 1", (space,)),
    ]


def make(dims: int | None, centroid: Vector | None = None) -> list[Statement]:
    """Return the statements that make the tables, with one space."""
    blob = None if centroid is None else pack(centroid)
    space = ("INSERT INTO memory_spaces (space, dims, centroid) VALUES (1, ?, ?)", (dims, blob))
    return [*((sql, ()) for sql in TABLES.split(";") if sql.strip()), space]


def make_tables(pool: walpool.Pool, *, dims: int | None = DIMS, centroid: Vector | None = None) -> None:
    pool.batch(make(dims, centroid))


def key_set(source: Any, keys: Sequence[int] | None) -> bytes | None:
    blob: bytes | None = None if keys is None else source.fetch(KEY_SET, (json.dumps(keys),))[0][0]
    return blob


def search(
    source: Any,
    query: Vector,
    metric: str = "cosine",
    limit: int = 10,
    *,
    scopes: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    change: int | None = None,
    after: tuple[float, int] | None = None,
    space: int = 1,
    tables: str = "memory",
) -> list[int]:
    """Return the keys that `vec_nearest` finds; `source` is a pool, a snapshot or a transaction."""
    sets = (key_set(source, scopes), key_set(source, keys))
    after_score, after_key = after or (None, None)
    arguments = (tables, space, pack(query), metric, limit, *sets, change, after_score, after_key)
    found: list[int] = json.loads(source.fetch(NEAREST, arguments)[0][0])
    return found


def brute_force(source: Any, query: Vector, metric: str, space: int = 1) -> list[tuple[float, int, int, int]]:
    """Return (score, key, scope, change) of every record in the order in which they must be found."""
    functions = {"cosine": "vec_cosine(e, ?1)", "dot": "vec_dot(e, ?1)", "l2": "1.0 / (1.0 + vec_l2sq(e, ?1))"}
    rows = source.fetch(
        f"""SELECT {functions[metric]}, key, scope, change
            FROM (SELECT key, scope, change, coalesce(embedding, zeroblob(length(?1))) AS e
                  FROM memory_sketches LEFT JOIN memory_vectors USING (key) WHERE space = ?2 AND NOT gone)""",
        (pack(query), space),
    )
    return sorted(rows, key=lambda row: (-row[0], row[1]))


def best(source: Any, query: Vector, metric: str = "cosine", limit: int = 10, space: int = 1) -> list[int]:
    return [key for _, key, _, _ in brute_force(source, query, metric, space)[:limit]]


def gaussian(rng: random.Random, dims: int = DIMS, size: float = 1.0) -> list[float]:
    return unpack(pack([rng.gauss(0.0, 1.0) * size for _ in range(dims)]))


def hostile(rng: random.Random, dims: int = DIMS) -> list[list[float] | None]:
    """Return vectors near each other, equal, opposite, sparse, huge, tiny, of no length, and none at all."""
    centre = gaussian(rng, dims)
    vectors: list[list[float] | None] = [None, None, [0.0] * dims, [0.0] * dims, [-0.0] * dims]
    for n in range(60):
        vectors.append(gaussian(rng, dims))
        vectors.append([c + 0.01 * x for c, x in zip(centre, gaussian(rng, dims), strict=True)])
        vectors.append([float(i == n % dims) for i in range(dims)])
        vectors.append(list(centre))
        vectors.append([-x * n for x in centre])
        vectors.append(gaussian(rng, dims, [1e37, 1e-38, 1e-44, 1e20][n % 4]))
    rng.shuffle(vectors)
    return vectors


def fill(pool: walpool.Pool, vectors: Sequence[Vector | None], first: int = 1) -> None:
    statements: list[Statement] = []
    for key, vector in enumerate(vectors, first):
        statements += save(key, vector, scope=key % 3)
    pool.batch(statements)


@pytest.fixture
def filled(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with 100 plain records."""
    make_tables(pool)
    rng = random.Random(1)
    fill(pool, [gaussian(rng) for _ in range(100)])
    return pool


@pytest.mark.parametrize("dims", [1, 2, 3, 17, DIMS, 384])
@pytest.mark.parametrize("has_centroid", [False, True])
def test_search_finds_what_brute_force_finds(pool: walpool.Pool, dims: int, has_centroid: bool) -> None:
    rng = random.Random(dims)
    vectors = hostile(rng, dims)
    make_tables(pool, dims=dims, centroid=gaussian(rng, dims) if has_centroid else None)
    fill(pool, vectors)
    queries = [vector for vector in rng.sample(vectors, 12) if vector is not None] + [gaussian(rng, dims), [0.0] * dims]
    for query in queries:
        for metric in METRICS:
            rows = brute_force(pool, query, metric)
            ordered = [row[1] for row in rows]
            for limit in (1, 7, len(rows) + 5):
                assert search(pool, query, metric, limit) == ordered[:limit]
            middle = rows[len(rows) // 2][3]
            assert search(pool, query, metric, scopes=[0, 2]) == [row[1] for row in rows if row[2] != 1][:10]
            assert search(pool, query, metric, keys=ordered[3::5]) == sorted(ordered[3::5], key=ordered.index)[:10]
            assert search(pool, query, metric, change=middle) == [row[1] for row in rows if row[3] <= middle][:10]
            for at in (0, 4, len(rows) - 2):
                assert search(pool, query, metric, after=rows[at][:2]) == ordered[at + 1 : at + 11]
    assert (pool.stats()["sketch_loads"], pool.stats()["searches_from_table"]) == (1, 0)


def test_pages_after_each_other_make_the_whole_order(pool: walpool.Pool) -> None:
    make_tables(pool)
    rng = random.Random(2)
    fill(pool, hostile(rng))
    query = gaussian(rng)
    for metric in METRICS:
        rows = brute_force(pool, query, metric)
        found: list[int] = []
        while True:
            after = None if not found else rows[len(found) - 1][:2]
            page = search(pool, query, metric, 13, after=after)
            found += page
            if not page:
                break
        assert found == [row[1] for row in rows]


def test_nothing_is_found_where_nothing_can_be(filled: walpool.Pool) -> None:
    query = [1.0] * DIMS
    assert search(filled, query, limit=0) == search(filled, query, limit=-1) == []
    assert search(filled, query, space=2) == search(filled, query, keys=[]) == search(filled, query, scopes=[7]) == []
    assert search(filled, query, change=0) == []


def test_space_without_any_embedding_takes_queries_of_all_dims(pool: walpool.Pool) -> None:
    make_tables(pool, dims=None)
    fill(pool, [None] * 5)
    for query in ([1.0], [1.0, 2.0]):
        assert search(pool, query, limit=3) == search(pool, query, "l2", 3) == [1, 2, 3]
    pool.execute("UPDATE memory_spaces SET dims = 2")
    pool.batch(save(6, [1.0, 1.0]))
    assert search(pool, [1.0, 2.0], limit=3) == [6, 1, 2]


def test_search_sees_every_write_that_was_acknowledged(filled: walpool.Pool) -> None:
    rng = random.Random(3)
    for step in range(60):
        key = rng.randrange(1, 150)
        filled.batch(remove(key) if rng.random() < 0.3 else save(key, gaussian(rng), scope=step % 3))
        if step % 20 == 19:
            filled.batch(trim())
        query = gaussian(rng)
        assert search(filled, query, METRICS[step % 3]) == best(filled, query, METRICS[step % 3])
    assert filled.stats()["sketch_loads"] <= 1 + 3
    assert filled.stats()["searches_from_table"] == 0


def test_what_is_rolled_back_was_seen_by_its_transaction_alone(filled: walpool.Pool) -> None:
    query = [1.0] * DIMS
    before = search(filled, query)
    with pytest.raises(KeyError), filled.transaction() as tx:
        for sql, params in save(500, query) + remove(before[0]):
            tx.execute(sql, params)
        assert search(tx, query) == [500, *before[1:]]
        raise KeyError
    assert search(filled, query) == before
    # The numbers of the changes that were rolled back are dealt out again, to others.
    filled.batch(save(501, [-1.0] * DIMS) + save(502, query))
    assert search(filled, query) == [502, *before[:9]] == best(filled, query)


def test_snapshot_sees_its_own_state_while_others_write(filled: walpool.Pool) -> None:
    rng = random.Random(4)
    query = gaussian(rng)
    with filled.read() as snapshot:
        expected = best(snapshot, query)
        for step in range(40):
            change = save(rng.randrange(1, 100), gaussian(rng)) + remove(rng.randrange(1, 100))
            elsewhere(lambda change=change: filled.batch(change))  # type: ignore[misc]
            if step % 3 == 0:
                assert elsewhere(lambda: search(filled, query)) == elsewhere(lambda: best(filled, query))
            assert search(snapshot, query) == expected
        elsewhere(lambda: filled.execute("UPDATE memory_spaces SET epoch = epoch + 1"))
        assert elsewhere(lambda: search(filled, query)) == elsewhere(lambda: best(filled, query))
        assert search(snapshot, query) == expected


def elsewhere(work: Callable[[], T]) -> T:
    """Call from another thread: this one has a snapshot in hand."""
    return run_together(1, lambda _: work())[0]


def test_commits_of_another_process_are_seen(filled: walpool.Pool, database: Path) -> None:
    query = [1.0] * DIMS
    before = search(filled, query)
    program = """
        import sys
        from test_nearest import *
        with walpool.Pool(sys.argv[1]) as pool:
            pool.batch(save(900, [1.0] * DIMS) + remove(int(sys.argv[2])))
    """
    run_python(program, database, before[0])
    assert search(filled, query) == [900, *before[1:]]
    assert filled.stats()["sketch_loads"] == 1


def test_index_is_loaded_anew_where_tombstones_are_missing_or_the_epoch_is_new(filled: walpool.Pool) -> None:
    query = [1.0] * DIMS
    first = search(filled, query)
    filled.batch(remove(first[0]) + trim())
    assert search(filled, query) == best(filled, query) != first
    assert filled.stats()["sketch_loads"] == 2
    centroid = pack([0.5] * DIMS)
    filled.batch(
        [
            ("UPDATE memory_spaces SET epoch = epoch + 1, centroid = ?", (centroid,)),
            (
                """INSERT OR REPLACE INTO memory_sketches (space, key, scope, gone, sketch)
                   SELECT 1, key, 1, 0, vec_sketch(embedding, ?) FROM memory_vectors""",
                (centroid,),
            ),
        ]
    )
    assert search(filled, query) == best(filled, query)
    assert (filled.stats()["sketch_loads"], filled.stats()["searches_from_table"]) == (3, 0)


def test_threads_that_search_and_write_at_once_all_find_what_is_right(filled: walpool.Pool) -> None:
    def work(index: int) -> None:
        rng = random.Random(index)
        for _ in range(40):
            if index % 2:
                key = rng.randrange(1, 200)
                filled.batch(remove(key) if rng.random() < 0.3 else save(key, gaussian(rng)))
            else:
                with filled.read() as snapshot:
                    query = gaussian(rng)
                    assert search(snapshot, query) == best(snapshot, query)

    run_together(4, work)


@pytest.mark.parametrize("memory", [0, "20KiB"])
def test_search_reads_the_table_where_sketch_memory_is_too_small(database: Path, memory: int | str) -> None:
    rng = random.Random(5)
    with walpool.Pool(database, sketch_memory=memory) as pool:
        make_tables(pool)
        fill(pool, [gaussian(rng) for _ in range(3000)])
        query = gaussian(rng)
        for metric in METRICS:
            assert search(pool, query, metric) == best(pool, query, metric)
        stats = pool.stats()
        assert (stats["searches_from_table"], stats["sketch_loads"], stats["sketch_bytes"]) == (3, 0, 0)


def test_index_searched_least_recently_is_dropped_for_another(database: Path) -> None:
    rng = random.Random(6)
    with walpool.Pool(database, sketch_memory="400KiB") as pool:
        make_tables(pool)
        pool.execute("INSERT INTO memory_spaces (space, dims) VALUES (2, ?), (3, ?)", (DIMS, DIMS))
        for space in (1, 2, 3):
            for key in range(1000):
                if key % 500 == 0:
                    statements: list[Statement] = []
                statements += save(space * 1000 + key, gaussian(rng), space=space)
                if key % 500 == 499:
                    pool.batch(statements)
        query = gaussian(rng)
        loads = []
        for space in (1, 2, 1, 3, 1, 2):
            assert search(pool, query, space=space) == best(pool, query, space=space)
            loads.append(pool.stats()["sketch_loads"])
        assert loads == [1, 2, 2, 3, 3, 4]
        assert 0 < pool.stats()["sketch_bytes"] <= 400 * 1024


def test_close_frees_the_index(database: Path) -> None:
    pool = walpool.Pool(database)
    make_tables(pool)
    fill(pool, [[1.0] * DIMS] * 10)
    search(pool, [1.0] * DIMS)
    assert 0 < pool.stats()["sketch_bytes"] < 10 * 200
    pool.close()
    assert pool.stats()["sketch_bytes"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_has_an_index_of_its_own(database: Path) -> None:
    program = """
        import os, sys, threading
        from test_nearest import *
        rng = random.Random(7)
        pool = walpool.Pool(sys.argv[1])
        make_tables(pool)
        fill(pool, [gaussian(rng) for _ in range(3000)])
        query = gaussian(rng)
        expected = search(pool, query)
        is_over = threading.Event()
        def keep_searching():
            while not is_over.is_set():
                assert search(pool, query) == expected
        thread = threading.Thread(target=keep_searching)
        thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                is_right = search(pool, query) == expected and pool.stats()["sketch_loads"] == 1
                os._exit(0 if is_right else 1)
            assert os.waitpid(child, 0)[1] == 0
        is_over.set()
        thread.join()
        pool.close()
    """
    run_python(program, database)


def test_search_is_stopped_by_its_timeout(database: Path) -> None:
    rng = random.Random(8)
    with walpool.Pool(database, sketch_memory=0) as pool:
        make_tables(pool)
        fill(pool, [gaussian(rng) for _ in range(2000)])
        arguments = ("memory", 1, pack(gaussian(rng)), "cosine", 2000, None, None, None, None, None)
        with pytest.raises(errors.StatementTimeout):
            pool.fetch(NEAREST, arguments, timeout=0.001)
        assert len(json.loads(pool.fetchval(NEAREST, arguments))) == 2000


def test_search_on_an_event_loop_finds_the_same(database: Path) -> None:
    rng = random.Random(9)
    query = gaussian(rng)
    with walpool.Pool(database) as pool:
        make_tables(pool)
        fill(pool, [gaussian(rng) for _ in range(3000)])
        expected = best(pool, query)

    async def search_often() -> None:
        arguments = ("memory", 1, pack(query), "cosine", 10, None, None, None, None, None)
        async with walpool.AsyncPool(database) as pool:
            for _ in range(30):
                assert json.loads(await pool.fetchval(NEAREST, arguments)) == expected

    run(search_often())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({2: pack([1.0] * 3)}, errors.DataError, f"vectors of {DIMS} and 3 dims cannot be compared"),
        ({2: pack([math.nan] * DIMS)}, errors.DataError, "the query is not finite"),
        ({2: pack([math.inf] * DIMS)}, errors.DataError, "the query is not finite"),
        ({2: b"12345"}, errors.DataError, "a blob of 5 bytes is not a vector of 4-byte floats"),
        ({2: None}, errors.ProgrammingError, "argument 3 must be a BLOB, not Null"),
        ({1: None}, errors.ProgrammingError, "argument 2 must be an INTEGER, not Null"),
        ({1: "1"}, errors.ProgrammingError, "argument 2 must be an INTEGER, not Text"),
        ({3: "euclid"}, errors.ProgrammingError, "the metric must be 'cosine', 'dot' or 'l2'"),
        ({3: None}, errors.ProgrammingError, "the metric must be 'cosine', 'dot' or 'l2'"),
        ({4: None}, errors.ProgrammingError, "argument 5 must be an INTEGER, not Null"),
        ({5: b"\x02"}, errors.DataError, "a blob of 1 bytes is not a set of vec_key_set"),
        ({6: "x"}, errors.ProgrammingError, "argument 7 must be a BLOB, not Text"),
        ({7: 1.5}, errors.ProgrammingError, "argument 8 must be an INTEGER, not Real"),
        ({8: "x", 9: 1}, errors.ProgrammingError, "argument 9 must be a REAL, not Text"),
        ({8: 0.5}, errors.ProgrammingError, "after_score and after_key go together"),
        ({0: None}, errors.ProgrammingError, "argument 1 must be a TEXT, not Null"),
        ({0: "memory; --"}, errors.ProgrammingError, WORD),
        ({0: ""}, errors.ProgrammingError, WORD),
    ],
)
def test_wrong_argument_is_an_error_that_says_so(
    filled: walpool.Pool, change: dict[int, Any], error: type[errors.Error], message: str
) -> None:
    arguments: list[Any] = ["memory", 1, pack([1.0] * DIMS), "cosine", 10, None, None, None, None, None]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(error) as caught:
        filled.fetch(NEAREST, arguments)
    assert str(caught.value).startswith(f"vec_nearest: {message} [")


def test_file_without_the_stores_tables_is_named(pool: walpool.Pool) -> None:
    with pytest.raises(errors.ProgrammingError, match="vec_nearest: this file has no such tables"):
        search(pool, [1.0])


def test_spaces_of_the_same_number_in_other_tables_are_others(filled: walpool.Pool) -> None:
    rng = random.Random(2)
    statements = make(DIMS) + [statement for key in range(1, 51) for statement in save(key, gaussian(rng))]
    filled.batch([(sql.replace("memory_", "other_"), params) for sql, params in statements])
    for _ in range(3):
        query = gaussian(rng)
        in_memory = best(filled, query)
        assert search(filled, query) == in_memory
        found = search(filled, query, tables="other")
        assert sorted(found) != sorted(in_memory)
        assert max(search(filled, query, limit=1000, tables="other")) == 50
    assert filled.stats()["sketch_loads"] == 2


def test_sketches_of_other_dims_are_refused_and_missing_embeddings_are_zeros(filled: walpool.Pool) -> None:
    filled.execute("DELETE FROM memory_vectors WHERE key = 5")
    assert sorted(search(filled, [1.0] * DIMS, limit=1000)) == list(range(1, 101))
    filled.execute("UPDATE memory_spaces SET dims = 50, epoch = 1")
    with pytest.raises(errors.DataError, match="vec_nearest: a sketch of 44 bytes is not one of a vector of 50 dims"):
        search(filled, [1.0] * 50)


def test_search_stands_in_no_view_and_no_trigger(filled: walpool.Pool) -> None:
    filled.script("CREATE VIEW v AS SELECT vec_nearest('memory', 1, x'00', 'dot', 1, NULL, NULL, NULL, NULL, NULL)")
    with pytest.raises(errors.ProgrammingError, match="unsafe use of vec_nearest"):
        filled.fetch("SELECT * FROM v")


def test_key_set_takes_integers_from_0_on(pool: walpool.Pool) -> None:
    empty = pool.fetchval("SELECT vec_key_set(1) WHERE 0")
    assert empty == pool.fetchval("SELECT vec_key_set(NULL)") != pool.fetchval("SELECT vec_key_set(0)")
    assert key_set(pool, [3, 1, 2, 3]) == key_set(pool, [1, 2, 3])
    for bad, message in (("'5'", "not Text"), ("1.0", "not Real"), ("-1", "negative")):
        with pytest.raises(errors.ProgrammingError, match=f"vec_key_set: .*{message}"):
            pool.fetch(f"SELECT vec_key_set({bad})")


def test_sketch_with_a_centroid_is_half_a_byte_for_each_value(pool: walpool.Pool) -> None:
    vector = pack([1.0] * 1536)
    assert len(pool.fetchval("SELECT vec_sketch(?, NULL)", (vector,))) == 768 + 24
    assert pool.fetchval("SELECT vec_sketch(NULL, ?)", (vector,)) is None
    assert pool.fetchval("SELECT vec_sketch(?, NULL)", (pack([math.nan, 1.0]),)) is None
    with pytest.raises(errors.ProgrammingError, match="vec_sketch: vectors of 1536 and 2 dims cannot be compared"):
        pool.fetch("SELECT vec_sketch(?, ?)", (vector, pack([1.0, 2.0])))


def test_another_process_that_writes_meanwhile_disturbs_no_search(database: Path) -> None:
    rng = random.Random(10)
    program = """
        import sys
        from test_nearest import *
        rng = random.Random(11)
        print("begins", flush=True)
        with walpool.Pool(sys.argv[1], synchronous="normal") as pool:
            while True:
                key = rng.randrange(1, 300)
                pool.batch(save(key, gaussian(rng)) if rng.random() < 0.7 else remove(key))
    """
    with walpool.Pool(database) as pool:
        make_tables(pool)
        fill(pool, [gaussian(rng) for _ in range(300)])
        with other_process(program, database):
            for _ in range(100):
                with pool.read() as snapshot:
                    query = gaussian(rng)
                    assert search(snapshot, query) == best(snapshot, query)
