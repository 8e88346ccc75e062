"""The LangGraph cache, its synchronous and its asynchronous methods, and a graph whose nodes it serves."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest

pytest.importorskip("langgraph.cache.base")

from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from leftovers import engine_threads, open_descriptors, threads_left_since
from stores import KINDS, opened_cache

import walpool
from walpool.langgraph import WalpoolCache


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(kind: str, place: str) -> Iterator[Any]:
    with opened_cache(kind, place) as opened:
        yield opened


KEY = (("ns", "node"), "k")


def age(place: str, seconds: int) -> None:
    """Let every entry expire so much earlier, as if the time had passed."""
    with walpool.get_pool(place) as pool:
        pool.execute("UPDATE langgraph_cache SET expires_at = expires_at - ?", (seconds * 1_000_000,))


def entries(place: str) -> int:
    with walpool.get_pool(place) as pool:
        return int(pool.fetchval("SELECT count(*) FROM langgraph_cache"))


def test_cache_keeps_values_after_it_was_closed(kind: str, place: str) -> None:
    values = {(("a",), "1"): {"n": {1, 2}}, (("a", "b"), "1"): [b"x", None], ((), "empty"): bytearray(b"y")}
    with opened_cache(kind, place) as cache:
        cache.set({key: (value, None) for key, value in values.items()})
    with opened_cache(kind, place) as cache:
        assert cache.get([*values, (("a",), "absent")]) == values
        assert cache.get([]) == {}


@pytest.mark.bounced
def test_set_replaces_value_and_ttl(cache: Any, place: str) -> None:
    cache.set({KEY: ("old", 1)})
    cache.set({KEY: ("new", None)})
    age(place, 60)
    assert cache.get([KEY]) == {KEY: "new"}


def test_entry_is_gone_when_its_ttl_has_passed_and_deleted_by_a_later_write(cache: Any, place: str) -> None:
    cache.set({KEY: ("v", 30), (("ns",), "long"): ("v", 3600)})
    assert KEY in cache.get([KEY])
    age(place, 31)
    assert cache.get([KEY]) == {}
    cache.set({(("ns",), "other"): ("v", None)})
    assert entries(place) == 2


def test_clear_forgets_exactly_the_namespaces_it_is_given(cache: Any) -> None:
    keys = [(namespace, "k") for namespace in [("a",), ("a", "b"), ("a,b",), ("ab",), ("b",)]]
    cache.set(dict.fromkeys(keys, (1, None)))
    cache.clear([])
    assert len(cache.get(keys)) == 5
    cache.clear([("a", "b"), ("b",)])
    assert sorted(cache.get(keys)) == [(("a",), "k"), (("a,b",), "k"), (("ab",), "k")]
    cache.clear()
    assert cache.get(keys) == {}


def test_cache_answers_as_the_in_memory_cache_does(cache: Any) -> None:
    judge: InMemoryCache[Any] = InMemoryCache()
    keys = [((label, "x"), str(number)) for label in ("a", "b.c", 'q"', "ü") for number in range(3)]
    for number, key in enumerate(keys):
        for one in (cache, judge):
            one.set({key: ({"n": number}, None if number % 2 else 3600), keys[number // 2]: ("again", 3600)})
        if number % 5 == 4:
            for one in (cache, judge):
                one.clear([key[0]])
        assert cache.get(keys) == judge.get(keys)


def test_cache_takes_a_serializer(kind: str, place: str) -> None:
    class Shouting(JsonPlusSerializer):
        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            return str(super().loads_typed(data)).upper()

    with opened_cache(kind, place, serde=Shouting()) as cache:
        cache.set({KEY: ("quiet", None)})
        assert cache.get([KEY]) == {KEY: "QUIET"}


def test_both_kinds_of_methods_see_each_others_values_at_once(place: str, database: Path) -> None:
    async def main() -> None:
        async with WalpoolCache[Any](place) as cache:
            await cache.aset({KEY: ("async", None)})
            assert await asyncio.get_running_loop().run_in_executor(None, cache.get, [KEY]) == {KEY: "async"}
            await asyncio.get_running_loop().run_in_executor(None, cache.set, {KEY: ("sync", None)})
            assert await cache.aget([KEY]) == {KEY: "sync"}
            await cache.aclear()
            assert await cache.aget([KEY]) == {}

    before = engine_threads()
    asyncio.run(main())
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_close_closes_what_the_asynchronous_methods_opened(place: str, database: Path) -> None:
    before = engine_threads()
    cache: WalpoolCache[Any] = WalpoolCache(place)
    asyncio.run(cache.aset({KEY: (1, None)}))
    cache.set({KEY: (2, None)})
    cache.close()
    cache.close()
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}
    with pytest.raises(walpool.ClosedError):
        cache.get([KEY])
    with pytest.raises(walpool.ClosedError):
        asyncio.run(cache.aget([KEY]))


def test_cache_that_was_made_and_closed_on_an_event_loop_warns_of_nothing(place: str) -> None:
    async def main() -> None:
        cache: WalpoolCache[Any] = WalpoolCache(place)
        await cache.aset({KEY: (1, None)})
        await asyncio.get_running_loop().run_in_executor(None, cache.get, [KEY])
        await cache.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


class State(TypedDict, total=False):
    question: str
    answer: str
    seen: int


def graph_of(calls: list[str], *, cache: Any, store: Any) -> Any:
    from langgraph.graph import END, START, StateGraph
    from langgraph.runtime import Runtime
    from langgraph.types import CachePolicy

    def think(state: State) -> State:
        calls.append(state["question"])
        return {"answer": state["question"].upper()}

    async def athink(state: State) -> State:
        return think(state)

    def remember(state: State, runtime: Runtime[Any]) -> State:
        assert runtime.store is not None
        runtime.store.put(("answers",), state["question"], {"answer": state["answer"]})
        return {"seen": len(runtime.store.search(("answers",)))}

    async def aremember(state: State, runtime: Runtime[Any]) -> State:
        assert runtime.store is not None
        await runtime.store.aput(("answers",), state["question"], {"answer": state["answer"]})
        return {"seen": len(await runtime.store.asearch(("answers",)))}

    from langchain_core.runnables import RunnableLambda

    builder = StateGraph(State)
    builder.add_node("think", RunnableLambda(think, afunc=athink), cache_policy=CachePolicy(ttl=60))
    builder.add_node("remember", aremember if store.__class__.__name__.startswith("Async") else remember)
    builder.add_edge(START, "think")
    builder.add_edge("think", "remember")
    builder.add_edge("remember", END)
    return builder.compile(cache=cache, store=store)


def test_graph_runs_a_cached_node_once_for_each_input_in_any_run(database: Path) -> None:
    from walpool.langgraph import WalpoolStore

    calls: list[str] = []
    for _ in range(2):  # as two runs of a program
        with walpool.Pool(database) as pool, WalpoolCache[Any](pool) as cache, WalpoolStore(pool) as store:
            graph = graph_of(calls, cache=cache, store=store)
            assert graph.invoke({"question": "a"})["answer"] == "A"
            assert graph.invoke({"question": "b"})["seen"] == 2
    assert calls == ["a", "b"]


def test_asynchronous_graphs_share_cache_and_store(database: Path) -> None:
    from walpool.langgraph import AsyncWalpoolStore

    calls: list[str] = []

    async def main() -> None:
        async with (
            walpool.AsyncPool(database) as pool,
            WalpoolCache[Any](pool) as cache,
            AsyncWalpoolStore(pool) as store,
        ):
            graph = graph_of(calls, cache=cache, store=store)
            await graph.ainvoke({"question": "a"})
            states = await asyncio.gather(*(graph.ainvoke({"question": "a"}) for _ in range(10)))
            assert [state["answer"] for state in states] == ["A"] * 10

    asyncio.run(main())
    assert calls == ["a"]
    assert open_descriptors(database) == []
