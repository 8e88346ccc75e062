"""The HNSW index, for who asks for it: never fewer records than there are, scores from the embeddings themselves."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from looping import on_asyncio

import walpool
import walpool.memory
from tests.memory.contract import ids, record
from walpool.errors import NotSupportedError
from walpool.memory import Contains, PythonEquals, Query, pack
from walpool.memory._postgres_hnsw import statement

CHANCE = random.Random(3)


def vector(dims: int = 8) -> list[float]:
    return [CHANCE.gauss(0, 1) for _ in range(dims)]


def clustered(count: int, dims: int = 8) -> list[Any]:
    """Return records close together, of which one in a hundred is of the rare kind, on the far side."""
    centre = vector(dims)
    near = [[x + CHANCE.gauss(0, 0.1) for x in centre] for _ in range(count)]
    return [
        record(
            f"r{n}",
            [-x for x in one] if n % 100 == 0 else one,
            scope="/rare" if n % 100 == 0 else "/common",
            metadata={"k": [n % 100]},
        )
        for n, one in enumerate(near)
    ]


def indexes(url: str) -> list[str]:
    with walpool.get_pool(url) as pool:
        sql = "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'memory_vectors_hnsw%' ORDER BY indexname"
        return [name for (name,) in pool.fetch(sql)]


def test_search_finds_as_many_as_there_are_and_scores_them_exactly(postgres_url: str) -> None:
    with (
        walpool.memory.open(postgres_url) as exact,
        walpool.memory.open(postgres_url, index="hnsw") as store,
        walpool.memory.open(postgres_url, tenant="other", index="hnsw") as other,
    ):
        assert store.search(pack(vector())) == []
        other.save(clustered(500))
        store.save(clustered(2_000))
        store.compact()
        exact.save([record("none", scope="/rare")])
        assert indexes(postgres_url) == ["memory_vectors_hnsw_8"]
        for query in (
            Query(),
            Query(scope="/rare"),
            Query(metadata={"k": Contains(0)}),
            Query(metadata={"k": PythonEquals([0])}),
            Query(ids=("r1", "r2")),
            Query(scope="/nowhere"),
        ):
            for wanted in (vector(), [0.0] * 8):
                for limit in (1, 10, 30):
                    found = store.search(pack(wanted), query, limit=limit)
                    truth = exact.search(pack(wanted), query, limit=limit)
                    assert len(found) == len(truth)
                    scores = {hit.record.id: hit.score for hit in exact.search(pack(wanted), query, limit=3_000)}
                    assert [hit.score for hit in found] == [scores[hit.record.id] for hit in found]
                    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_index_is_what_answers_and_finds_the_near_ones(postgres_url: str) -> None:
    with walpool.memory.open(postgres_url, index="hnsw") as store, walpool.get_pool(postgres_url) as pool:
        store.save([record(f"r{n}", vector(32)) for n in range(3_000)])
        store.compact()
        used = "SELECT pg_stat_force_next_flush(), idx_scan FROM pg_stat_user_indexes WHERE indexrelname LIKE '%hnsw%'"
        found = total = 0
        for _ in range(20):
            wanted = pack(vector(32))
            near = set(ids(store.search(wanted, limit=10)))
            page = store.search(wanted, limit=5)
            exact = store.search(wanted, limit=10, metric="dot")
            assert len(near) == len(exact) == 10
            assert page.next is not None
            assert not set(ids(page)) & set(ids(store.search(wanted, limit=5, after=page.next)))
            scores = sorted(
                (hit.score for hit in store.search(wanted, Query(metadata={"x": PythonEquals(None)}), limit=10)),
                reverse=True,
            )
            total += 10
            found += sum(hit.score >= scores[-1] for hit in store.search(wanted, limit=10))
        assert found / total > 0.8
        hybrid = store.search(pack(vector(32)), text="about")
        assert len(hybrid) == 10
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch(used)[0][1] > 0


def test_index_is_made_at_the_next_opening(postgres_url: str) -> None:
    with walpool.memory.open(postgres_url, index="hnsw") as store:
        store.save([record("a", [1.0, 2.0])])
        assert indexes(postgres_url) == []
    with walpool.memory.open(postgres_url, index="hnsw") as store:
        assert indexes(postgres_url) == ["memory_vectors_hnsw_2"]
        store.reset()
        store.save([record("a", vector(2_001))])
        store.compact()
        assert indexes(postgres_url) == ["memory_vectors_hnsw_2", "memory_vectors_hnsw_2001"]
        assert ids(store.search(pack(vector(2_001)))) == ["a"]


def test_embeddings_that_no_index_holds_are_searched_exactly(postgres_url: str) -> None:
    with pytest.raises(NotSupportedError, match="4000"):
        statement(4_001)
    with walpool.memory.open(postgres_url, index="hnsw") as store:
        store.save([record("a", vector(4_001))])
        store.compact()
        assert (ids(store.search(pack(vector(4_001)))), indexes(postgres_url)) == (["a"], [])


@pytest.mark.bounced
@on_asyncio
async def test_async_store_has_the_index_too(postgres_url: str) -> None:
    async with walpool.memory.open_async(postgres_url, index="hnsw") as store:
        await store.save([record(f"r{n}", vector()) for n in range(50)])
        await store.compact()
        assert len(await store.search(pack(vector()), limit=20)) == 20
    assert await asyncio.to_thread(indexes, postgres_url) == ["memory_vectors_hnsw_8"]
