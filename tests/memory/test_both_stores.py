"""SQLite and PostgreSQL held to the same answers: random calls on a store of each, the scores of words aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import walpool.memory
from tests.memory.contract import NOON, ids, record
from tests.postgres.plugin import new_database
from walpool.errors import Error
from walpool.memory import (
    Contains,
    Exists,
    Hits,
    In,
    MemoryStore,
    PythonEquals,
    Query,
    Range,
    Record,
    Weights,
    pack,
)  # fmt: skip

if TYPE_CHECKING:
    from benches.postgres_server import Databases

Call = Callable[[MemoryStore], Any]
NUMBER = count()
NAMES = st.sampled_from(["a", "b", "c", "d", "é", "'"])
SCOPES = st.sampled_from(["/", "/x", "/x/y", "/x-y", "/xy", "/é", "/x/y/z"])
CATEGORIES = st.lists(st.sampled_from(["p", "q", "Ä"]), max_size=3).map(tuple)
TIMES = st.integers(-3, 3).map(lambda days: NOON + timedelta(days=days))
CONTENTS = st.lists(
    st.sampled_from(["tea", "Tea", "coffee", "café", "CAFE", "teapot", "a-b", "x_y", "don't", "日本語", "Ünï", "1.5"]),
    max_size=6,
).map(" ".join)
VALUES = st.sampled_from(
    [0, 1, 1.0, 1.5, -2, True, False, None, "", "1", "a", "é", [1, "a"], [], {"k": 1}, 2**60, 10**30]
)
METADATA = st.dictionaries(st.sampled_from(["k", "l", "é.$"]), VALUES, max_size=3)
VECTORS = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
TEXTS = st.lists(
    st.sampled_from(
        [
            "tea",
            "cafe",
            "coff*",
            "-tea",
            '"tea coffee"',
            "or",
            "日本",
            "b",
            "nothing",
            "don't",
            '-"a b"',
            "üni",
            "1",
            "*",
        ]
    ),
    min_size=1,
    max_size=4,
).map(" ".join)
CONDITIONS = st.one_of(
    VALUES,
    VALUES.map(PythonEquals),
    VALUES.map(Contains),
    st.lists(VALUES, max_size=3).map(In),
    st.booleans().map(Exists),
    st.builds(Range, at_least=st.sampled_from([0, 1, 1.5]), below=st.none() | st.sampled_from([2, 10**31])),
    st.builds(Range, above=st.sampled_from(["", "1", "a"]), at_most=st.none() | st.sampled_from(["a", "é"])),
)
METADATA_CONDITIONS = st.dictionaries(st.sampled_from(["k", "l", "é.$"]), CONDITIONS, min_size=1, max_size=2)
ONE_CONDITION = st.one_of(
    st.tuples(st.just("scope"), SCOPES),
    st.tuples(st.just("scope"), SCOPES),
    st.tuples(st.just("categories"), CATEGORIES),
    st.tuples(st.just("ids"), st.lists(NAMES, max_size=4).map(tuple)),
    st.tuples(st.just("metadata"), METADATA_CONDITIONS),
    st.tuples(st.just("metadata"), METADATA_CONDITIONS),
    st.tuples(st.just("source"), st.sampled_from(["s", "S"])),
    st.tuples(st.just("private"), st.booleans()),
    st.tuples(st.just("created_after"), TIMES),
    st.tuples(st.just("accessed_before"), TIMES),
    st.tuples(st.just("importance_at_least"), st.sampled_from([0.2, 0.5])),
)
# Few at once, or no record would meet them.
QUERIES = st.lists(ONE_CONDITION, max_size=2).map(lambda given: Query(**dict(given)))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "content": CONTENTS,
    "scope": SCOPES,
    "categories": CATEGORIES,
    "metadata": METADATA,
    "importance": st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    "created_at": TIMES,
    "accessed_at": TIMES,
    "source": st.none() | st.sampled_from(["s", "S"]),
    "private": st.booleans(),
    "embedding": st.none() | VECTORS.map(pack) | st.just(pack([1, 2, 3])),
}
RECORDS = st.builds(Record, id=NAMES, **FIELDS)
# Of dims that go together, so that something is there.
FIRST = st.lists(
    st.builds(Record, id=NAMES, **{**FIELDS, "embedding": st.none() | VECTORS.map(pack)}), min_size=3, max_size=8
)


class Ran(NamedTuple):
    """What was called; its name is what a failing example shows."""

    name: str
    call: Call

    def __repr__(self) -> str:
        return self.name


def near(hits: Hits) -> tuple[list[float], set[str], bool]:
    """Return what two stores agree on: the scores, and which records come before the last ones of one score."""
    scores = [round(hit.score, 5) for hit in hits]
    return scores, {hit.record.id for hit in hits if round(hit.score, 5) > scores[-1]}, hits.next is None


def pages(store: MemoryStore, query: Query, limit: int) -> list[str]:
    found, after = [], None
    while True:
        page = store.list(query, limit=limit, after=after)
        found += ids(page)
        if page.next is None:
            return found
        after = page.next


def by_words(store: MemoryStore, text: str, query: Query) -> Any:
    hits = store.search(text=text, query=query, limit=100)
    return {hit.record.id: hit.record for hit in hits}, all(hit.snippet for hit in hits)


def by_both(store: MemoryStore, vector: bytes, text: str, query: Query) -> Any:
    hits = store.search(vector, query, text=text, limit=100, weights=Weights(recency=0))
    found = {hit.record.id: (hit.why.words_rank is not None, round(hit.why.vector_score or 0, 5)) for hit in hits}
    return found, [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def ran(name: str, *strategies: st.SearchStrategy[Any], call: Callable[..., Any]) -> st.SearchStrategy[Ran]:
    return st.tuples(*strategies).map(lambda given: Ran(f"{name}{given}", lambda store: call(store, *given)))


CALLS = st.one_of(
    ran("save", st.lists(RECORDS, max_size=5), call=lambda store, some: store.save(some)),
    ran("save", st.lists(RECORDS, max_size=5), call=lambda store, some: store.save(some)),
    ran(
        "update",
        NAMES,
        st.fixed_dictionaries({}, optional=FIELDS),
        call=lambda store, name, changes: store.update(name, **changes),
    ),
    ran("touch", st.lists(NAMES, max_size=3), TIMES, call=lambda store, some, at: store.touch(some, at)),
    ran("delete", QUERIES, call=lambda store, query: store.delete(query)),
    ran("list", QUERIES, st.integers(0, 4), st.integers(0, 2), call=lambda store, query, limit, offset: list(
        store.list(query, limit=limit, offset=offset))),
    ran("pages", QUERIES, st.integers(1, 3), call=pages),
    ran("get", NAMES, call=lambda store, name: store.get(name)),
    ran("count", QUERIES, call=lambda store, query: store.count(query)),
    ran("scopes", SCOPES, st.booleans(), call=lambda store, scope, deep: list(
        store.scopes(scope, deep=deep).items())),
    ran("categories", QUERIES, call=lambda store, query: list(store.categories(query).items())),
    ran("summary", SCOPES, call=lambda store, scope: store.summary(scope)),
    ran("nearest", VECTORS.map(pack), QUERIES, st.sampled_from(["cosine", "dot", "l2"]), st.integers(1, 4),
        call=lambda store, vector, query, metric, limit: near(store.search(vector, query, metric=metric, limit=limit))),
    ran("words", TEXTS, QUERIES, call=by_words),
    ran("words", TEXTS, st.just(Query()), call=by_words),
    ran("both", VECTORS.map(pack), TEXTS, QUERIES, call=by_both),
    ran("expire", QUERIES, st.none() | st.integers(0, 2), st.sampled_from([None, 0.3]),
        call=lambda store, query, keep, below: store.expire(query, keep=keep, importance_below=below)),
    ran("iterate", QUERIES, call=lambda store, query: list(store.iterate(query, chunk=2))),
    ran("dims", call=lambda store: store.dims()),
    ran("reset", call=lambda store: store.reset()),
    ran("rebuild", call=lambda store: store.rebuild()),
    ran("compact", call=lambda store: store.compact()),
)  # fmt: skip


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory, postgres_server: Databases) -> Iterator[list[str]]:
    with new_database(postgres_server) as url:
        yield [str(tmp_path_factory.mktemp("both") / "test.db"), url]


def answer(call: Call, store: MemoryStore) -> Any:
    try:
        return call(store)
    except (Error, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("words", ["unicode61", "trigram"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(first=FIRST, calls=st.lists(CALLS, min_size=5, max_size=20))
def test_both_give_the_same_answers(urls: list[str], words: str, first: list[Record], calls: list[Ran]) -> None:
    collection = f"c{next(NUMBER)}"
    with ExitStack() as opened:
        stores = [opened.enter_context(walpool.memory.open(url, collection=collection, words=words)) for url in urls]
        for store in stores:
            store.save(first)
        for ran_here in calls:
            ours, theirs = (answer(ran_here.call, store) for store in stores)
            assert theirs == ours, ran_here
        assert list(stores[1].iterate()) == list(stores[0].iterate())
        assert [store.check() for store in stores] == [[], []]


def test_answers_that_differ_are_told_apart(urls: list[str]) -> None:
    with ExitStack() as opened:
        stores = [opened.enter_context(walpool.memory.open(url, collection="differ")) for url in urls]
        for n, store in enumerate(stores):
            store.save([record("a", [1, 0]), replace(record("b", [n, 1]), created_at=datetime.now(timezone.utc))])
        assert near(stores[0].search(pack([1, 0]))) != near(stores[1].search(pack([1, 0])))
