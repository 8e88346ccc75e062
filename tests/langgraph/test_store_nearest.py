"""The search of the LangGraph store by embedding in a file: what is read for it, and that it is exact at any size."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.store.base")

from langgraph.store.base import PutOp
from stores import KINDS, opened_store

import walpool
from walpool.langgraph import WalpoolStore, _store_nearest, _store_schema, _store_sql

DIMS = 40  # where the bounds of sketches are no longer those of Cauchy and Schwarz


def vector(text: str, dims: int = DIMS) -> list[float]:
    """Return a vector of a text: the same each time, another for each text."""
    rng = random.Random(text)
    return [rng.gauss(0.0, 1.0) for _ in range(dims)]


def index(dims: int = DIMS) -> Any:
    return {"dims": dims, "embed": lambda texts: [vector(text, dims) for text in texts], "fields": ["texts[*]"]}


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


Item = tuple[tuple[str, ...], str, dict[str, Any]]


def made(count: int) -> list[Item]:
    """Return items with none to three vectors, half of them in one namespace, the others in many."""
    return [
        (
            ("big",) if n % 2 else ("small", str(n % 40)),
            str(n),
            {"texts": [f"{n} {place}" for place in range(n % 4)], "even": n % 2 == 0, "rare": n % 100},
        )
        for n in range(count)
    ]


def check(store: Any, items: Sequence[Item], query: str, prefix: tuple[str, ...], wanted: dict[str, Any]) -> None:
    """Hold a search of any length to brute force."""
    scores: dict[str, float | None] = {}
    for namespace, key, value in items:
        if namespace[: len(prefix)] == prefix and all(value[name] == wanted[name] for name in wanted):
            cosines = [cosine(vector(text), vector(query)) for text in value["texts"]]
            scores[key] = max(cosines) if cosines else None
    ranked = sorted((key for key in scores if scores[key] is not None), key=lambda key: -(scores[key] or 0.0))
    for limit, offset in ((1, 0), (10, 0), (7, 30), (100_000, 0)):
        found = store.search(prefix, query=query, filter=wanted or None, limit=limit, offset=offset)
        page = [item.key for item in found if item.score is not None]
        assert page == ranked[offset : offset + limit]
        assert [item.score for item in found] == [pytest.approx(scores[item.key], abs=1e-6) for item in found]
        assert len(found) == len(list(scores)[offset : offset + limit])


@pytest.fixture
def store(database: Path) -> Iterator[WalpoolStore]:
    with WalpoolStore(database, index=index(), synchronous="normal") as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [{}, {"even": True}, {"rare": 7}, {"rare": 1, "even": True}, {"texts": []}])
def test_search_finds_what_brute_force_finds(kind: str, database: Path, wanted: dict[str, Any]) -> None:
    items = made(700)
    with opened_store(kind, database, index=index(), synchronous="normal") as store:
        store.batch([PutOp(*item) for item in items])
        for prefix in ((), ("big",), ("small",), ("small", "4"), ("nothing",)):
            check(store, items, "query", prefix, wanted)
        kept = [item for n, item in enumerate(items) if n % 3]
        store.batch([PutOp(*item[:2], None) for n, item in enumerate(items) if n % 3 == 0])
        check(store, kept, "another query", (), wanted)
        check(store, kept, "another query", ("big",), wanted)
    with walpool.Pool(database) as pool:
        assert pool.fetchval("SELECT count(*) FROM langgraph_sketches WHERE gone = 1") > 0


def test_item_of_many_vectors_takes_no_place_from_the_others(store: WalpoolStore) -> None:
    near = {"texts": ["query"] * 500}
    store.batch([PutOp(("n",), "near", near), *(PutOp(("n",), str(n), {"texts": [str(n)]}) for n in range(200))])
    found = store.search((), query="query", limit=100)
    assert found[0].key == "near"
    assert len({item.key for item in found}) == 100
    others = sorted(range(200), key=lambda n: -cosine(vector(str(n)), vector("query")))
    assert [item.key for item in found[1:]] == [str(n) for n in others[:99]]


def test_items_of_equal_scores_come_in_the_order_in_which_they_were_first_put(store: WalpoolStore) -> None:
    keys = [str(n) for n in range(150)]
    for start in range(0, 150, 50):
        store.batch([PutOp(("n",), key, {"texts": ["same"]}) for key in keys[start : start + 50]])
    store.put(("n",), "3", {"texts": ["same"]})
    assert [item.key for item in store.search((), query="same", limit=1000)] == keys
    pages = [store.search(("n",), query="same", limit=40, offset=start) for start in range(0, 160, 40)]
    assert [item.key for page in pages for item in page] == keys


def test_item_that_got_a_vector_of_other_dims_is_no_longer_found_by_the_old_ones(database: Path) -> None:
    with WalpoolStore(database, index=index(3)) as old, WalpoolStore(database, index=index(5)) as new:
        for key in ("moved", "stays"):
            old.put(("n",), key, {"texts": [key]})
        for _ in range(2):
            assert {item.key for item in old.search((), query="a") if item.score is not None} == {"moved", "stays"}
            new.put(("n",), "moved", {"texts": ["moved"]})
            for store, scored in ((old, "stays"), (new, "moved")):
                found = store.search((), query="a")
                assert [(item.key, item.score is None) for item in found] == [
                    (scored, False),
                    ({"stays", "moved"}.difference({scored}).pop(), True),
                ]
            old.put(("n",), "moved", {"texts": ["moved"]})


def test_namespace_that_was_emptied_and_filled_again_is_found(store: WalpoolStore, database: Path) -> None:
    items = made(400)
    store.batch([PutOp(*item) for item in items])
    with walpool.Pool(database) as pool:
        for turn in range(3):
            check(store, items, f"query {turn}", ("big",), {})
            store.batch([PutOp(*item[:2], None) for item in items if item[0] == ("big",)])
            assert store.search(("big",), query="query") == []
            assert pool.fetch("SELECT 1 FROM langgraph_scopes WHERE namespace = 'big'") == []
            store.batch([PutOp(*item) for item in items if item[0] == ("big",)])
        assert pool.fetchval("SELECT count(*) FROM langgraph_sketches WHERE gone = 1") > 0


def test_small_namespace_is_searched_without_a_look_at_the_others(store: WalpoolStore, database: Path) -> None:
    items = made(300)
    store.batch([PutOp(*item) for item in items])
    with walpool.Pool(database) as pool:
        check(store, items, "query", ("small", "4"), {})
        assert (pool.stats()["searches"], pool.stats()["sketch_loads"]) == (0, 0)
        check(store, items, "query", ("small",), {})
        assert pool.stats()["sketch_loads"] == 1


def test_tombstones_are_trimmed_and_searches_see_no_difference(store: WalpoolStore, database: Path) -> None:
    trigger = next(sql for sql in _store_schema.MIGRATIONS[-1] if "langgraph_sketches_trimmed" in sql)
    with walpool.Pool(database) as pool:
        small = trigger.replace("100000", "100").replace("50000", "50")
        pool.script(f"DROP TRIGGER langgraph_sketches_trimmed; {small}")
        items = made(200)
        for turn in range(10):
            store.batch([PutOp(("turn", str(turn)), str(n), {"texts": [f"{turn} {n}"]}) for n in range(40)])
            store.batch([PutOp(*item) for item in items[turn::10]])
            store.batch([PutOp(("turn", str(turn)), str(n), None) for n in range(40)])
            there = [item for n, item in enumerate(items) if n % 10 <= turn]
            check(store, there, f"query {turn}", (), {})
        assert pool.fetchval("SELECT count(*) FROM langgraph_sketches WHERE gone = 1") < 160
        assert pool.fetchval("SELECT trimmed FROM langgraph_spaces") > 0


def test_no_read_goes_through_all_sketches_for_each_item(
    store: WalpoolStore, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store_nearest, "_FEW", 10)
    # As SQLite would by the index of the space, or by one that it makes for the statement, if it were let to.
    store.batch([PutOp(*item) for item in made(100)])
    query = walpool.memory.pack(vector("query"))
    everything = _store_sql.Selection()
    selections = [everything, *(_store_sql.select(("big",), everything, live_at) for live_at in (None, 1))]
    with walpool.Pool(database) as pool:
        for selection in [*selections, _store_sql.select_ids(list(range(1, 90)))]:
            reads = [_store_sql.unscored(selection, DIMS, limit=5, offset=0)]
            steps = _store_nearest.nearest(query, selection, limit=5)
            answer: Any = None
            while True:
                try:
                    reads.append(read := steps.send(answer))
                except StopIteration:
                    break
                answer = read.decode(pool.fetch(read.sql, read.params))
            for read in reads:
                plan = [row[3] for row in pool.fetch(f"EXPLAIN QUERY PLAN {read.sql}", read.params)]
                assert not [step for step in plan if "(space=" in step or "AUTOMATIC" in step], plan
