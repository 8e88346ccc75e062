"""The LangGraph store and cache on PostgreSQL: many writers, vectors that are gone, tenants, and what JSON may hold."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from helpers import run_together, start_python

pytest.importorskip("langgraph.store.base")

from langgraph.store.base import PutOp
from stores import INDEX, keys

import walpool
from tests.postgres.pools import plain, until_waiting_for_a_lock
from walpool.langgraph import AsyncWalpoolStore, WalpoolCache, WalpoolStore
from walpool.langgraph import store as store_module

pytestmark = pytest.mark.postgres

PUT_MANY = """
    import sys
    from walpool.langgraph import WalpoolStore

    index = {"dims": 2, "embed": lambda texts: [[1.0, 2.0] for _ in texts], "fields": ["text"]}
    with WalpoolStore(sys.argv[1], index=index) as store:
        for number in range(30):
            store.put(("n",), str(number % 5), {"text": "a", "by": sys.argv[2]})
"""


def count(url: str, table: str) -> int:
    with walpool.get_pool(url) as pool:
        return int(pool.fetchval(f"SELECT count(*) FROM {table}"))


def test_threads_that_put_and_delete_one_key_leave_the_vectors_of_its_value_and_no_other(postgres_url: str) -> None:
    with WalpoolStore(postgres_url, index=INDEX) as store:

        def work(number: int) -> None:
            for step in range(8):
                if number % 4 == 3:
                    store.delete(("n",), "k")
                else:
                    store.put(("n",), "k", {"text": ["a"] * (number + step)}, index=["text[*]"])

        run_together(16, work)
        found = store.get(("n",), "k")
        assert count(postgres_url, "langgraph_vectors") == (0 if found is None else len(found.value["text"]))
        value = {"text": ["a", "b", "c"]}
        store.put(("n",), "k", value, index=["text[*]"])
        assert count(postgres_url, "langgraph_vectors") == 3
        store.delete(("n",), "k")
        assert count(postgres_url, "langgraph_vectors") == 0


def test_batches_that_put_the_same_keys_in_other_orders_all_end(postgres_url: str) -> None:
    with WalpoolStore(postgres_url, index=INDEX) as store:
        names = [str(number) for number in range(12)]

        def work(number: int) -> None:
            order = names if number % 2 else names[::-1]
            for _ in range(5):
                store.batch([PutOp(("n",), name, {"text": "a", "by": number}) for name in order])

        run_together(8, work)
        found = store.search(("n",), query="a", limit=100)
        assert sorted(keys(found)) == sorted(names)
        assert len({item.value["by"] for item in found}) == 1  # jobs are whole: one of them was the last


def test_two_processes_that_put_one_namespace_lose_nothing(postgres_url: str) -> None:
    processes = [start_python(PUT_MANY, postgres_url, name) for name in ("one", "two")]
    for process in processes:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    assert count(postgres_url, "langgraph_items") == count(postgres_url, "langgraph_vectors") == 5


def test_sixteen_tasks_that_put_into_one_store_lose_nothing(postgres_url: str) -> None:
    async def main() -> None:
        async with AsyncWalpoolStore(postgres_url, index=INDEX) as store:
            await asyncio.gather(*(store.aput(("n", str(n)), "k", {"text": "a" * (n + 1)}) for n in range(16)))
            assert len(await store.asearch(("n",), query="a", limit=100)) == 16
            assert len(await store.alist_namespaces(prefix=("n",))) == 16

    asyncio.run(main())


def test_value_replaced_by_a_store_without_an_index_has_no_vector(postgres_url: str) -> None:
    with WalpoolStore(postgres_url, index=INDEX) as indexed, WalpoolStore(postgres_url) as plain:
        indexed.put(("n",), "k", {"text": "a"})
        plain.put(("n",), "k", {"text": "b"})
        assert [(item.key, item.score) for item in indexed.search((), query="a")] == [("k", None)]
        indexed.put(("n",), "k", {"text": "a"})
        assert [item.score for item in indexed.search((), query="a")] == [pytest.approx(1.0)]
        plain.delete(("n",), "k")
        assert count(postgres_url, "langgraph_vectors") == 0


def test_vector_of_zeros_has_the_score_that_it_has_on_sqlite(postgres_url: str, tmp_path: Any) -> None:
    scores = []
    for place in (postgres_url, tmp_path / "test.db"):
        with WalpoolStore(place, index=INDEX) as store:
            store.put(("n",), "zeros", {"text": "xyz"})
            store.put(("n",), "a", {"text": "a"})
            scores.append([(item.key, item.score) for item in store.search((), query="a")])
            scores.append([(item.key, item.score) for item in store.search((), query="xyz")])
    assert scores[:2] == scores[2:]


def test_index_without_pgvector_is_refused_by_name_and_a_store_without_one_works(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, said = store_module.VECTORS.needs or ("", "")
    monkeypatch.setattr(store_module, "VECTORS", store_module.VECTORS._replace(needs=(f"SELECT NOT ({query})", said)))
    with pytest.raises(walpool.NotSupportedError, match="pgvector"):
        WalpoolStore(postgres_url, index=INDEX)

    async def main() -> None:
        with pytest.raises(walpool.NotSupportedError, match="pgvector"):
            async with AsyncWalpoolStore(postgres_url, index=INDEX):
                pass

    asyncio.run(main())
    with WalpoolStore(postgres_url) as store:
        store.put(("n",), "k", {"text": "a"})
        assert keys(store.search((), query="a")) == ["k"]


ODD = {
    "nul": "a\0b",
    "half": "half of \ud83d",
    "nan": math.nan,
    "infinity": [-math.inf],
    "emoji": "😊",
    "number": 10**400,
    "quote": '"\\u0000',
}


def test_values_that_postgres_would_take_for_no_json_are_kept_and_found_by_filters(postgres_url: str) -> None:
    with WalpoolStore(postgres_url) as store:
        for name, value in ODD.items():
            store.put(("n",), name, {"v": value, "w": "x"})
        store.put(("n",), "array", {"v": ["x"], "w": ["x"]})
        store.put(("n",), "text", {"v": '["x"]', "w": None})
        assert sorted(keys(store.search((), filter={"w": "x"}))) == sorted(ODD)
        assert keys(store.search((), filter={"w": None})) == ["text"]
        assert keys(store.search((), filter={"v": '["x"]'})) == ["text"]
        for name in ("nul", "half", "emoji", "quote"):
            assert keys(store.search((), filter={"v": ODD[name]})) == [name]
        assert keys(store.search((), filter={"v": {"$eq": 10**400}})) == ["number"]
        for name, value in ODD.items():
            found = store.get(("n",), name)
            assert found is not None
            assert repr(found.value["v"]) == repr(value)
        with pytest.raises(walpool.DataError, match="NUL"):
            store.put(("n",), "k\0", {})


def test_each_tenant_has_a_store_and_a_cache_of_its_own(postgres_url: str) -> None:
    from walpool.postgres import PostgresPool

    key = (("n",), "k")
    for tenant in ("ann", "ben"):
        with (
            PostgresPool(postgres_url, tenant=tenant) as pool,
            WalpoolStore(pool, index=INDEX) as store,
            WalpoolCache[Any](pool) as cache,
        ):
            assert store.search((), query="a") == store.list_namespaces() == []
            assert cache.get([key]) == {}
            store.put(("n",), "k", {"text": "a", "of": tenant}, ttl=-1)
            cache.set({key: (tenant, None)})

            async def other_kind(store: WalpoolStore = store, cache: WalpoolCache[Any] = cache) -> None:
                assert len(await store.asearch((), query="a")) == 1
                assert len(await cache.aget([key])) == 1

            asyncio.run(other_kind())
    with (
        PostgresPool(postgres_url, tenant="ann") as pool,
        WalpoolStore(pool) as store,
        WalpoolCache[Any](pool) as cache,
    ):
        assert store.sweep_ttl() == 1
        cache.clear()
    with (
        PostgresPool(postgres_url, tenant="ben") as pool,
        WalpoolStore(pool) as store,
        WalpoolCache[Any](pool) as cache,
    ):
        assert store.search(())[0].value["of"] == "ben"
        assert cache.get([key]) == {key: "ben"}


def test_store_by_url_may_be_a_tenants_and_so_is_its_other_kind(postgres_url: str) -> None:
    async def main() -> None:
        async with AsyncWalpoolStore(postgres_url, tenant="ann") as store:
            await store.aput(("n",), "k", {})
            assert len(await asyncio.to_thread(store.search, ())) == 1

    asyncio.run(main())
    with WalpoolStore(postgres_url) as store:
        assert store.search(()) == []


def test_loop_goes_on_while_a_thread_waits_to_open_the_other_kind(postgres_url: str) -> None:
    # the loop                     a thread                        somebody else
    #                                                              locks walpool_schema
    #                              get: looks at the version, waits
    # aget begins
    # has it unlocked: only if it is not kept by what the thread holds
    with WalpoolCache[Any](postgres_url) as cache:
        cache.clear()  # makes walpool_schema
    freed_by: list[str] = []

    async def main() -> None:
        async_store = AsyncWalpoolStore(postgres_url)
        blocked = asyncio.create_task(asyncio.to_thread(async_store.get, ("n",), "k"))
        await asyncio.to_thread(until_waiting_for_a_lock, looking)
        ours = asyncio.create_task(async_store.aget(("n",), "k"))
        await asyncio.sleep(0)
        free("the loop")
        assert await asyncio.gather(blocked, ours) == [None, None]
        await async_store.close()

    def free(who: str) -> None:
        freed_by.append(who)
        other.execute("ROLLBACK")

    with plain(postgres_url) as looking, plain(postgres_url) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE walpool_schema")
        watch = threading.Timer(5.0, free, ["the watch"])
        watch.start()
        asyncio.run(main())
        watch.cancel()
    assert freed_by == ["the loop"]


def test_caches_that_set_the_same_keys_at_once_end_with_one_of_the_values(postgres_url: str) -> None:
    names = [((str(n),), "k") for n in range(10)]
    with WalpoolCache[Any](postgres_url) as cache:

        def work(number: int) -> None:
            for _ in range(5):
                cache.set(dict.fromkeys(names if number % 2 else names[::-1], (number, 60)))
                assert len(cache.get(names)) == 10

        run_together(8, work)
        assert len(set(cache.get(names).values())) == 1


def test_environment_names_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALPOOL_URL", postgres_url)
    with WalpoolStore() as store, WalpoolCache[Any]() as cache:
        store.put(("n",), "k", {})
        cache.set({((), "k"): (1, None)})
    assert count(postgres_url, "langgraph_items") == count(postgres_url, "langgraph_cache") == 1
