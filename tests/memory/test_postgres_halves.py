"""The halves of embeddings: no answer rests on them, whatever the embeddings; tables of version 1 get them."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

import walpool.memory
from tests.memory.contract import record
from walpool import schema
from walpool.doctor import _vectors
from walpool.memory import Metric, Query, Weights, pack, postgres
from walpool.memory import _postgres_roles as roles
from walpool.memory import _postgres_sql as reads
from walpool.memory._operations import Read, Search
from walpool.memory.postgres import MIGRATIONS, PostgresMemoryStore, init_sql
from walpool.postgres.probe import probe

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer

METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")
# Lengths that half precision or a square in float32 cannot hold, and those next to them.
SIZES = (0.0, 1e-30, 1e-20, 1e-13, 1e-11, 1e-5, 1.0, 3.0, 1e4, 1e11, 1e13, 1e20)


def vector(chance: random.Random, dims: int) -> list[float]:
    return [chance.gauss(0, 1) for _ in range(dims)]


def near_ties(chance: random.Random, dims: int, count: int) -> list[list[float]]:
    """Return vectors that half precision orders otherwise, or tells none from the other, and ones that are the same."""
    centre = vector(chance, dims)
    found = [[x + chance.gauss(0, noise) for x in centre] for noise in (3e-5, 3e-4, 3e-3) for _ in range(count)]
    return found + found[: count // 4]


def store_on(url: str, **named: Any) -> PostgresMemoryStore:
    return cast("PostgresMemoryStore", walpool.memory.open(url, **named))


@contextmanager
def without_halves() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reads, "_MOST_HALVES", 0)
        yield


def answers(store: PostgresMemoryStore, question: list[float], metric: Metric, limit: int) -> Any:
    """Return the pages of a search in a scope, everywhere, and with a condition that the vectors' table cannot tell."""
    found = []
    for query in (Query(scope="/a"), Query(), Query(categories=("even",))):
        hits = store.search(pack(question), query, metric=metric, limit=limit)
        found.append([(hit.record.id, repr(hit.score)) for hit in hits])
        hits = store.search(pack(question), query, metric=metric, limit=limit, after=hits.next) if hits.next else hits
        found.append([(hit.record.id, repr(hit.score)) for hit in hits])
    return found


@pytest.mark.parametrize("dims", [1, 3, 1500])
def test_search_answers_as_if_each_embedding_had_been_looked_at(dims: int, postgres_url: str) -> None:
    chance = random.Random(dims)
    vectors = [
        *near_ties(chance, dims, 20),
        *(vector(chance, dims) for _ in range(40)),
        *([size * x for x in vector(chance, dims)] for size in SIZES),
    ]
    with store_on(postgres_url) as store:
        records = [
            record(f"r{n}", one, scope=f"/a{'/b' * (n % 3)}", categories=("even",) * (1 - n % 2))
            for n, one in enumerate(vectors)
        ]
        store.save([*records, record("none", scope="/a"), record("elsewhere", vectors[0], scope="/a-b")])
        questions = [vectors[0], vectors[70], *([-s * x for x in vectors[1]] for s in (0.0, 1e-30, 1e20))]
        for question in questions:
            for metric in METRICS:
                for limit in (7, 60):
                    found = answers(store, question, metric, limit)
                    with without_halves():
                        assert found == answers(store, question, metric, limit)


def test_search_looks_at_few_embeddings(postgres_url: str) -> None:
    chance = random.Random(1)
    with store_on(postgres_url) as store:
        store.save([record(f"r{n}", vector(chance, 1024)) for n in range(300)])
        store.compact()
        question = pack(vector(chance, 1024))
        asked = Search(question, Query(), None, None, None, "cosine", Weights(), 10, None, ("", ""), None)
        for metric in METRICS:
            read = reads.nearest(store._space, replace(asked, metric=metric), question)
            assert isinstance(read, Read)
            plan = "\n".join(line for (line,) in store.pool.fetch(f"EXPLAIN (ANALYZE) {read.sql}", read.params))
            (looked_at,) = re.findall(r"CTE Scan on halves h .*actual .*rows=([0-9]+)", plan)
            assert 11 <= int(looked_at) < 30


def test_doctor_tells_of_a_pgvector_that_knows_no_halves(postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        server = probe(pool)
    found = {
        version: _vectors(replace(server, vector=version)).verdict for version in ("0.6.2", "0.7.0", "0.10.1", "1.0")
    }
    assert found == {"0.6.2": "warning", "0.7.0": "ok", "0.10.1": "ok", "1.0": "ok"}


@pytest.fixture
def first_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Have stores and scripts make version 1 of the tables, until it is undone."""
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "_POSTGRES", replace(postgres._POSTGRES, migrations=MIGRATIONS[:1]))
        patch.setattr(postgres, "_HNSW", replace(postgres._HNSW, migrations=MIGRATIONS[:1]))
        patch.setattr(roles, "MIGRATIONS", MIGRATIONS[:1])
        yield patch


@pytest.mark.parametrize("index", [None, "hnsw"])
@pytest.mark.parametrize("dims", [3, 1536, 3072])
def test_tables_of_version_1_get_halves_and_lose_nothing(
    index: Any, dims: int, postgres_url: str, first_version: pytest.MonkeyPatch
) -> None:
    chance = random.Random(2)
    question = pack(vector(chance, dims))
    with without_halves(), store_on(postgres_url, index=index) as store:
        store.save([*(record(f"r{n}", vector(chance, dims), scope=f"/{n % 2}") for n in range(30)), record("none")])
        before = store.list()
        assert schema.version(store.pool, "memory") == 1
    first_version.undo()
    with store_on(postgres_url, index=index) as store:
        assert schema.version(store.pool, "memory") == len(MIGRATIONS)
        assert store.list() == before
        with without_halves():
            hits = store.search(question, Query(scope="/1"), metric="dot")
        assert len(hits) == 10
        assert store.search(question, Query(scope="/1"), metric="dot") == hits
        assert store.pool.fetchval("SELECT count(half) FROM memory_vectors") == 30
        assert store.pool.fetchval("SELECT sum(pg_column_size(half)) FROM memory_vectors") >= 30 * 2 * dims
        beside = "SELECT count(*) FROM memory_vectors WHERE pg_column_toast_chunk_id(half) IS NOT NULL"
        if store.pool.fetchval("SHOW server_version_num") >= "170000":
            assert store.pool.fetchval(beside) == 0
        assert store.check() == []


def test_what_is_saved_together_lies_by_scope(postgres_url: str) -> None:
    chance = random.Random(3)
    with store_on(postgres_url) as store:
        store.save([record(f"r{n}", vector(chance, 1536), scope=f"/{n % 10}") for n in range(120)])
        pages = """SELECT count(DISTINCT (CAST(CAST(ctid AS TEXT) AS POINT))[0]) FROM memory_vectors
            GROUP BY scope ORDER BY 1 DESC LIMIT 1"""
        assert store.pool.fetchval(pages) <= 12 // 2 + 1  # two lie on a page
        assert [found.id for found in store.list(limit=3)] == ["r119", "r118", "r117"]


def test_owner_brings_tables_under_forced_policies_up_to_date(
    own_postgres_server: PostgresServer, first_version: pytest.MonkeyPatch
) -> None:
    own_postgres_server.create_database("memory_halves")
    try:
        own_postgres_server.execute(init_sql(), database="memory_halves")
        url = own_postgres_server.url(database="memory_halves", user="walpool_app")
        superuser = own_postgres_server.url(database="memory_halves")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(postgres, "MIGRATIONS", MIGRATIONS[:1])
            with without_halves(), store_on(url, tenant="a", tenancy="rls") as store:
                store.save([record("1", [1.0, 2.0])])
        first_version.undo()
        own_postgres_server.execute(init_sql(version=1), database="memory_halves")
        with store_on(url, tenant="a", tenancy="rls") as store, walpool.get_pool(superuser) as above:
            assert [hit.record.id for hit in store.search(pack([1.0, 2.0]))] == ["1"]
            assert above.fetchval("SELECT count(half) FROM memory_vectors") == 1
    finally:
        own_postgres_server.drop_database("memory_halves")


def test_processes_that_open_version_1_at_once_bring_it_up_to_date_once(
    postgres_url: str, first_version: pytest.MonkeyPatch
) -> None:
    with without_halves(), store_on(postgres_url) as store:
        store.save([record("1", [1.0, 2.0])])
    first_version.undo()
    program = "import sys, walpool.memory; s = walpool.memory.open(sys.argv[1]); print(s.count()); s.close()"
    started = [
        subprocess.Popen([sys.executable, "-c", program, postgres_url], stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["1"] * 8
    with store_on(postgres_url) as store:
        assert store.pool.fetchval("SELECT count(half) FROM memory_vectors") == 1
