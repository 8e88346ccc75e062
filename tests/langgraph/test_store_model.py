"""Random operations on the LangGraph store, beside LangGraph's own `InMemoryStore`, the judge, and its `SqliteStore`.

The judge is mended where it contradicts its own interface: each mend says what it mends. It raises in the middle of a
search whose filter orders what has no order; those searches are left out (test_store.py has them). It gives items in
the order of their first put, and walpool's those put last first, as LangGraph's stores on databases do: the test sorts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest

pytest.importorskip("langgraph.store.base")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore
from stores import INDEX, KINDS, opened_store

from walpool.langgraph import WalpoolStore, _store_nearest

EVERYTHING = 10**6
FAST = {"synchronous": "normal"}  # what is answered is the same, and a test is short

labels = st.sampled_from(["a", "ab", "a-b", "a/b", "b", "ü", "*"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
names = st.sampled_from(["k", "l", "m", "n"])
fields = st.sampled_from(["f", "g", "text", "wei.rd", "d d"])
texts = st.sampled_from(["", "a", "ab", "aab", "cde", "5", "true", "[1]"])
scalars = st.none() | st.booleans() | st.integers(-3, 6) | st.sampled_from([0.5, 1.0, 5.0, 2**60, 1e300]) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(fields, inner, max_size=2), max_leaves=4
)
documents = st.dictionaries(fields, values, max_size=3)
operators = st.dictionaries(
    st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), scalars | values, min_size=1, max_size=2
)
filters = st.none() | st.dictionaries(fields, values | operators, max_size=2)
indexes = st.sampled_from([None, None, None, False, ["f"], ["text", "f[*]"], ["g.f"]])

puts = st.builds(PutOp, namespaces, names, st.none() | documents | documents, index=indexes, ttl=st.none())
gets = st.builds(GetOp, namespaces, names)
searches = st.builds(
    SearchOp,
    st.lists(labels, max_size=2).map(tuple),
    filters,
    limit=st.integers(0, 6),
    offset=st.integers(0, 4),
    query=st.sampled_from([None, None, "", "a", "ab", "cd"]),
)
conditions = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), st.lists(labels, max_size=2).map(tuple))
listings = st.builds(
    ListNamespacesOp,
    st.none() | st.lists(conditions, max_size=2).map(tuple),
    max_depth=st.none() | st.integers(1, 3),
    limit=st.integers(0, 8),
    offset=st.integers(0, 3),
)
batches = st.lists(st.lists(puts | puts | gets | searches | listings, max_size=6), max_size=12)


class Judge(InMemoryStore):
    """An `InMemoryStore` that keeps to its interface, and knows when its items were put."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.order: dict[tuple[tuple[str, ...], str], tuple[int, int]] = {}  # batch of the last put, count of the first
        self.batches = self.created = 0

    def answer(self, op: Any) -> Any:
        # A mend: it lists namespaces that hold nothing, for having been read or emptied.
        for namespace in [namespace for namespace, items in self._data.items() if not items]:
            del self._data[namespace]
        return self.batch([op])[0]

    def apply(self, ops: Sequence[PutOp]) -> None:
        self.batches += 1
        for op in {(op.namespace, op.key): op for op in ops}.values():
            place = (op.namespace, op.key)
            # A mend: it keeps the vectors of the value that is replaced.
            self._vectors[op.namespace].pop(op.key, None)
            if op.value is None:
                self.order.pop(place, None)
            else:
                self.created += 1
                self.order[place] = (self.batches, self.order.get(place, (0, self.created))[1])
        self.batch(ops)

    def _insertinmem_store(self, to_embed: Any, embeddings: Any) -> None:
        # A mend: it refuses a batch in which one text stands twice.
        for places, embedding in zip(to_embed.values(), embeddings, strict=True):
            for namespace, key, path in places:
                self._vectors[namespace][key][path] = embedding


def plain(item: Any) -> Any:
    return None if item is None else (item.namespace, item.key, exact(item.value))


def exact(value: Any) -> Any:
    """Return a value of which 1, 1.0 and True are not the same."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    return [exact(inner) for inner in value] if isinstance(value, list) else repr(value)


def check_search(store: Any, judge: Judge, op: SearchOp, found: list[Any]) -> None:
    try:
        wanted = judge.answer(op._replace(limit=EVERYTHING, offset=0))
    except (TypeError, ValueError, OverflowError):
        return  # it raises where an item has no order with the filter
    whole = store.batch([op._replace(limit=EVERYTHING, offset=0)])[0]
    assert list(map(plain, found)) == list(map(plain, whole[op.offset : op.offset + op.limit]))
    scored = [item for item in whole if item.score is not None]
    unscored = whole[len(scored) :]
    wanted_scores = {(item.namespace, item.key): item.score for item in wanted}
    assert {(item.namespace, item.key): item.score for item in whole} == pytest.approx(wanted_scores, abs=1e-6)
    assert sorted(map(repr, map(plain, whole))) == sorted(map(repr, map(plain, wanted)))
    assert [item.score for item in scored] == sorted((item.score for item in scored), reverse=True)
    order = [judge.order[item.namespace, item.key] for item in unscored]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None)
@given(batches=batches)
def test_store_answers_as_the_in_memory_store_does(kind: str, few: int, batches: list[list[Any]]) -> None:
    # With none that count as few, each search goes the way of one in a large namespace.
    with (
        TemporaryDirectory() as folder,
        patch.object(_store_nearest, "_FEW", few),
        opened_store(kind, Path(folder) / "test.db", **FAST, index=INDEX) as store,
    ):
        check_batches(store, batches)


@pytest.mark.postgres
@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=batches)
def test_store_on_postgres_answers_as_the_in_memory_store_does(postgres_url: str, batches: list[list[Any]]) -> None:
    from walpool.postgres import PostgresPool

    # An empty store for each run: a tenant of its own.
    with PostgresPool(postgres_url, tenant=uuid4().hex) as pool, WalpoolStore(pool, index=INDEX) as store:
        check_batches(store, batches)


def check_batches(store: Any, batches: list[list[Any]]) -> None:
    """Hold an empty store to answering as the judge does."""
    judge = Judge(index=INDEX)
    for ops in batches:
        # The reads of a batch see the store before it, so they may be judged before it; a search is asked again.
        searched = {place: store.batch([op])[0] for place, op in enumerate(ops) if isinstance(op, SearchOp)}
        for place, found in searched.items():
            check_search(store, judge, ops[place], found)
        wanted = [judge.answer(op) if isinstance(op, (GetOp, ListNamespacesOp)) else None for op in ops]
        found = store.batch(ops)
        for place, op in enumerate(ops):
            if isinstance(op, GetOp):
                assert plain(found[place]) == plain(wanted[place])
            elif isinstance(op, ListNamespacesOp):
                assert found[place] == wanted[place]
            elif isinstance(op, SearchOp):
                assert list(map(plain, found[place])) == list(map(plain, searched[place]))
        judge.apply([op for op in ops if isinstance(op, PutOp)])


# SqliteStore compares numbers, texts and null as Python does; the rest its own way. It orders by the second.
simple_filters = st.none() | st.dictionaries(st.sampled_from(["f", "g", "text"]), st.none() | texts, max_size=2)
simple_documents = st.dictionaries(st.sampled_from(["f", "g", "text"]), scalars, max_size=3)
simple_batches = st.lists(
    st.builds(PutOp, namespaces, names, st.none() | simple_documents | simple_documents, ttl=st.none())
    | gets
    | st.builds(SearchOp, st.lists(labels, max_size=2).map(tuple), simple_filters, st.just(EVERYTHING), st.just(0))
    | st.builds(
        ListNamespacesOp,
        st.none() | st.lists(conditions, max_size=2).map(tuple),
        st.none() | st.integers(1, 3),
        st.just(EVERYTHING),
        st.just(0),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None)
@given(ops=simple_batches)
def test_store_answers_as_the_sqlite_store_does(kind: str, ops: list[Any]) -> None:
    sqlite_store = pytest.importorskip("langgraph.store.sqlite").SqliteStore
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with TemporaryDirectory() as folder, opened_store(kind, Path(folder) / "test.db", **FAST) as store:
        other = sqlite_store(connection)
        for op in ops:
            found, wanted = store.batch([op])[0], other.batch([op])[0]
            if isinstance(op, GetOp):
                assert plain(found) == plain(wanted)
            elif isinstance(op, SearchOp):
                assert sorted(map(repr, map(plain, found))) == sorted(map(repr, map(plain, wanted)))
            elif isinstance(op, ListNamespacesOp):
                assert found == sorted(wanted)
    connection.close()


def test_judge_of_this_test_sees_a_difference(tmp_path: Path) -> None:
    judge = Judge(index=INDEX)
    with opened_store("sync", tmp_path / "test.db", index=INDEX) as store:
        judge.apply([PutOp(("a",), "k", {"text": "a"})])
        op = SearchOp((), query="a")
        with pytest.raises(AssertionError):
            check_search(store, judge, op, store.batch([op])[0])
