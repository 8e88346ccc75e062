"""What every memory store promises; `test_sqlite.py` (and each later store) subclasses this with its own `store`."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walpool.memory import (
    DimsError,
    EmbeddingError,
    Hit,
    MemoryStore,
    PythonEquals,
    Query,
    Record,
    normalize_scope,
    pack,
    unpack,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
# The store is reset in each example; and each kind of store runs the same test.
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
NAMES = [
    "root", "a", "a/b", "a/b/c", "ab", "a-b", "a.b", "a!", "a0", "axb", "a_b", "a%", "ä", "other",
]  # fmt: skip


def record(name: str, embedding: Iterable[float] | None = None, **fields: Any) -> Record:
    return Record(id=name, content=f"about {name}", embedding=None if embedding is None else pack(embedding), **fields)


def ids(found: Iterable[Record | Hit]) -> list[str]:
    return [item.record.id if isinstance(item, Hit) else item.id for item in found]


def in_each_scope() -> list[Record]:
    """Return a record in each of the scopes that a sloppy comparison takes for a neighbour, `root` in `/`."""
    return [
        record(name, [1.0, float(i)], scope="/" if name == "root" else f"/{name}", categories=(name[:1],))
        for i, name in enumerate(NAMES)
    ]


class StoreContract:
    """The promises of `MemoryStore`, each a test."""

    @pytest.mark.bounced
    def test_record_comes_back_as_it_was_put(self, store: MemoryStore) -> None:
        given_record = Record(
            id="o'brien \U0001f600\n",
            content="text with \"quotes\" and 'more' and ✓",
            scope="/team/notes",
            categories=("b", "a", "b"),
            metadata={"n": 1, "f": 0.1, "deep": {"list": [1, None, True, "x"]}, "ключ": "значение", 'q"': "\\"},
            importance=0.25,
            created_at=NOON + timedelta(microseconds=1),
            accessed_at=datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc),
            embedding=pack([0.1, -2.5, 3e38]),
            source="user-1",
            private=True,
        )
        store.save([given_record])
        assert store.get(given_record.id) == given_record

    def test_time_without_a_zone_is_utc_and_one_with_a_zone_is_converted(self, store: MemoryStore) -> None:
        east = timezone(timedelta(hours=2))
        store.save(
            [
                record("naive", created_at=datetime(2026, 3, 1, 12)),  # noqa: DTZ001 - the subject of the test
                record("east", created_at=datetime(2026, 3, 1, 14, tzinfo=east)),
            ]
        )
        assert [store.get(name).created_at for name in ("naive", "east")] == [NOON, NOON]  # type: ignore[union-attr]

    @pytest.mark.bounced
    def test_putting_an_id_again_replaces_its_record(self, store: MemoryStore) -> None:
        store.save([record("a", [1.0, 0.0], scope="/x", categories=("old", "kept")), record("b", [1.0, 0.0])])
        changed = record("a", [0.0, 1.0], scope="/y", categories=("kept", "new"), metadata={"v": 2})
        store.save([changed])
        assert store.get("a") == changed
        assert store.count() == 2
        assert store.categories() == {"kept": 1, "new": 1}
        assert ids(store.search(pack([0.0, 1.0]), limit=1)) == ["a"]

    def test_record_put_without_an_embedding_keeps_the_one_it_has(self, store: MemoryStore) -> None:
        store.save([record("a", [1.0, 2.0])])
        store.save([replace(record("a"), content="new text")])
        kept = store.get("a")
        assert kept is not None
        assert kept.content == "new text"
        assert kept.embedding == pack([1.0, 2.0])

    def test_put_of_nothing_changes_nothing(self, store: MemoryStore) -> None:
        store.save([])
        assert store.count() == 0
        assert store.dims() is None

    def test_put_is_all_or_nothing_when_json_cannot_hold_the_metadata(self, store: MemoryStore) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            store.save([record("good"), record("bad", metadata={"when": NOON})])
        assert store.count() == 0

    def test_empty_store_answers_every_question(self, store: MemoryStore) -> None:
        assert store.search(pack([1.0, 2.0])) == []
        assert store.list() == []
        assert store.get("x") is None
        assert store.count() == 0
        assert store.categories() == {}
        assert list(store.scopes()) == []
        assert store.touch(["x"], NOON) == 0
        assert store.delete(Query(scope="/x")) == 0
        summary = store.summary("/x/")
        assert (summary.scope, summary.count, summary.oldest, summary.newest) == ("/x", 0, None, None)
        assert (summary.categories, summary.children) == ((), ())

    # Searching

    @pytest.mark.parametrize("metric", ["cosine", "l2"])
    def test_search_agrees_with_scoring_every_record(self, store: MemoryStore, metric: Any) -> None:
        rng = random.Random(7)
        vectors = {f"r{i}": [rng.gauss(0, 1) for _ in range(48)] for i in range(300)}
        store.save([record(name, vector) for name, vector in vectors.items()])
        wanted = [rng.gauss(0, 1) for _ in range(48)]
        scores = {name: _score(metric, wanted, vector) for name, vector in vectors.items()}
        best = sorted(scores, key=lambda name: -scores[name])[:20]

        hits = store.search(pack(wanted), limit=20, metric=metric)

        assert ids(hits) == best
        assert [hit.score for hit in hits] == pytest.approx([scores[name] for name in best], abs=1e-5)
        assert all(hit.record == store.get(hit.record.id) for hit in hits)

    @pytest.mark.parametrize(
        ("metric", "scores"),
        [("l2", [1.0, 1 / 2, 1 / 2, 1 / 3, 1 / 5]), ("cosine", [1.0, 1.0, 0.0, 0.0, -1.0])],
    )
    def test_scores_of_simple_vectors_are_those_of_the_formula(
        self, store: MemoryStore, metric: Any, scores: list[float]
    ) -> None:
        vectors = {"same": [1, 0], "longer": [2, 0], "none": None, "across": [0, 1], "opposite": [-1, 0]}
        store.save([record(name, vector) for name, vector in vectors.items()])
        hits = store.search(pack([1.0, 0.0]), metric=metric)
        assert [hit.score for hit in hits] == pytest.approx(scores)
        assert ids(hits) == list(vectors)  # ties in the order in which they were put

    @pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
    def test_scores_are_right_for_embeddings_of_any_length(self, store: MemoryStore, metric: Any) -> None:
        # Squares of the longest and the shortest are none in float32.
        vectors = {
            f"{size:g}/{n}": unpack(pack([size, (n - 1) * size / 2, size / 4]))
            for size in (1e-43, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e38)
            for n in range(3)
        }
        store.save([record(name, vector) for name, vector in vectors.items()])
        for asked in ("1e-43/0", "1e-30/1", "1/2", "1e+30/0", "1e+38/2"):
            hits = store.search(pack(vectors[asked]), metric=metric, limit=100)
            expected = {name: _score(metric, vectors[asked], vector) for name, vector in vectors.items()}
            assert {hit.record.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5, abs=1e-60)

    @pytest.mark.bounced
    def test_conditions_come_before_the_ranking(self, store: MemoryStore) -> None:
        # The one that is asked for is farther away than all the others.
        store.save([record(f"near{i}", [1.0, 0.0], scope="/a", categories=("common",)) for i in range(200)])
        store.save([record("far", [-1.0, 0.0], scope="/b/c", categories=("rare",), metadata={"k": [1]})])
        for query in (
            Query(scope="/b"),
            Query(categories=("rare", "unknown")),
            Query(metadata={"k": [1]}),
            Query(ids=("far", "unknown")),
            Query(scope="/b", categories=("rare",), metadata={"k": [1]}, ids=("far",)),
        ):
            assert ids(store.search(pack([1.0, 0.0]), query, limit=1)) == ["far"]

    def test_min_score_leaves_out_what_scores_lower(self, store: MemoryStore) -> None:
        store.save([record("same", [1, 0]), record("across", [0, 1]), record("opposite", [-1, 0])])
        assert ids(store.search(pack([1.0, 0.0]), min_score=0.0)) == ["same", "across"]
        assert ids(store.search(pack([1.0, 0.0]), min_score=0.5)) == ["same"]
        assert len(store.search(pack([1.0, 0.0]))) == 3

    @pytest.mark.parametrize("limit", [0, -1])
    def test_search_and_listing_of_no_records_return_none(self, store: MemoryStore, limit: int) -> None:
        store.save([record("a", [1.0])])
        assert store.search(pack([1.0]), limit=limit) == []
        assert store.list(limit=limit) == []
        assert store.list(offset=limit - 1) == []

    def test_first_embedding_fixes_the_dims_until_the_store_is_cleared(self, store: MemoryStore) -> None:
        store.save([record("none"), record("a", [1.0, 2.0, 3.0])])
        assert store.dims() == 3
        for refused in (
            lambda: store.save([record("b", [1.0])]),
            lambda: store.save([record("a", [1.0])]),
            lambda: store.search(pack([1.0])),
        ):
            with pytest.raises(DimsError) as caught:
                refused()
            assert (caught.value.stored, caught.value.given) == (3, 1)
        assert ids(store.list(Query(ids=("a", "b")))) == ["a"]
        store.reset()
        assert store.dims() is None
        store.save([record("b", [1.0])])
        assert store.dims() == 1

    def test_batch_with_two_lengths_of_embeddings_is_refused_whole(self, store: MemoryStore) -> None:
        with pytest.raises(DimsError):
            store.save([record("a", [1.0, 2.0]), record("b", [1.0])])
        assert store.count() == 0
        assert store.dims() is None

    # Selecting

    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            ("/a", {"a", "a/b", "a/b/c"}),
            ("a", {"a", "a/b", "a/b/c"}),
            ("//a/", {"a", "a/b", "a/b/c"}),
            ("/a/b", {"a/b", "a/b/c"}),
            ("/a_b", {"a_b"}),
            ("/a%", {"a%"}),
            ("/ä", {"ä"}),
            ("/a/b/c/d", set()),
            ("/A", set()),
            ("/a' OR scope <> '", set()),
            ("%", set()),
            ("/", set(NAMES)),
            ("", set(NAMES)),
        ],
    )
    def test_scope_means_itself_and_what_lies_below(self, store: MemoryStore, scope: str, expected: set[str]) -> None:
        store.save(in_each_scope())
        query = Query(scope=scope)
        assert set(ids(store.search(pack([1.0, 0.0]), query, limit=100))) == expected
        assert set(ids(store.list(query))) == expected
        assert store.count(query) == store.summary(scope).count == len(expected)
        assert sum(store.categories(query).values()) == len(expected)
        assert store.delete(query) == len(expected)
        assert set(ids(store.list())) == set(NAMES) - expected

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ({"k": 1}, {"int", "float", "true"}),  # as Python compares
            ({"k": "1"}, {"text"}),
            ({"k": None}, {"null", "lacking", "other"}),
            ({"k": [1, "2"]}, {"list"}),
            ({"k": {"x": {"y": 1}}}, {"nested"}),
            ({"k": ""}, {"empty"}),
            ({"k": 'say "hi" \\ é'}, {"quoted"}),
            ({'odd "key" é': "v"}, {"other"}),
            ({"odd": "v"}, set()),
            ({"k": 1, "z": None}, {"int", "float", "true"}),
            ({"k": 1, "z": 0}, set()),
            ({1: None}, {"all"}),
            ({}, {"all"}),
        ],
    )
    def test_metadata_is_compared_as_python_compares(
        self, store: MemoryStore, wanted: dict[Any, Any], expected: set[str]
    ) -> None:
        values: dict[str, Any] = {
            "int": 1, "float": 1.0, "true": True, "text": "1", "null": None, "list": [1, "2"], "empty": "",
            "nested": {"x": {"y": 1}}, "quoted": 'say "hi" \\ é', "inside": {"k": 1, "deep": "1"},
        }  # fmt: skip
        records = [record(name, [1.0], metadata={"k": value}) for name, value in values.items()]
        records += [record("lacking"), record("other", metadata={'odd "key" é': "v"})]
        store.save(records)
        everything = set(values) | {"lacking", "other"}
        query = Query(metadata={key: PythonEquals(value) for key, value in wanted.items()})
        chosen = everything if expected == {"all"} else expected
        assert set(ids(store.list(query))) == chosen
        assert set(ids(store.search(pack([1.0]), query, limit=100))) == chosen
        assert store.count(query) == len(chosen)
        assert store.delete(query) == len(chosen)

    def test_categories_match_any_and_exactly(self, store: MemoryStore) -> None:
        store.save(
            [record("a", categories=("x", "y")), record("b", categories=("X",)), record("c", categories=("y", "y"))]
        )
        assert set(ids(store.list(Query(categories=("x",))))) == {"a"}
        assert set(ids(store.list(Query(categories=("X", "y"))))) == {"a", "b", "c"}
        assert store.categories() == {"X": 1, "x": 1, "y": 2}
        assert store.categories(Query(ids=("c",))) == {"y": 1}

    @pytest.mark.parametrize("query", [Query(ids=()), Query(categories=())])
    def test_empty_list_is_met_by_no_record(self, store: MemoryStore, query: Query) -> None:
        store.save([record("a", [1.0]), record("b")])
        assert store.list(query) == []
        assert store.search(pack([1.0]), query) == []
        assert store.delete(query) == 0
        assert store.count() == 2

    @pytest.mark.bounced
    def test_delete_takes_what_meets_every_condition(self, store: MemoryStore) -> None:
        keep = {
            "scope": record("scope", scope="/b", categories=("x",), metadata={"k": 1}, created_at=NOON),
            "category": record("category", scope="/a", categories=("y",), metadata={"k": 1}, created_at=NOON),
            "metadata": record("metadata", scope="/a", categories=("x",), metadata={"k": 2}, created_at=NOON),
            "age": record("age", scope="/a", categories=("x",), metadata={"k": 1}, created_at=NOON + timedelta(1)),
            "id": record("id", scope="/a", categories=("x",), metadata={"k": 1}, created_at=NOON),
        }
        store.save([*keep.values(), replace(keep["id"], id="gone")])
        query = Query(
            scope="/a",
            categories=("x",),
            metadata={"k": 1},
            created_before=NOON + timedelta(microseconds=1),
            ids=("gone", *(name for name in keep if name != "id")),
        )
        assert store.delete(query) == 1
        assert set(ids(store.list())) == set(keep)

    def test_made_before_leaves_out_the_instant_itself(self, store: MemoryStore) -> None:
        store.save([record("a", created_at=NOON), record("b", created_at=NOON - timedelta(microseconds=1))])
        assert ids(store.list(Query(created_before=NOON))) == ["b"]

    def test_empty_query_deletes_everything_and_keeps_the_dims(self, store: MemoryStore) -> None:
        store.save([record("a", [1.0]), record("b")])
        assert store.delete(Query()) == 2
        assert (store.count(), store.categories(), store.dims()) == (0, {}, 1)

    def test_list_of_ids_may_be_longer_than_sqlite_has_parameters(self, store: MemoryStore) -> None:
        store.save([record(f"r{i}") for i in range(50)])
        many = tuple(f"r{i}" for i in range(40_000))
        assert store.count(Query(ids=many)) == 50
        assert store.touch(many, NOON) == 50
        assert store.delete(Query(ids=many)) == 50

    # Listing

    def test_records_come_newest_first_and_in_pages(self, store: MemoryStore) -> None:
        store.save([record(f"r{i}", scope=f"/s{i % 2}", created_at=NOON + timedelta(i)) for i in range(10)])
        store.save([record("tie", scope="/s0", created_at=NOON + timedelta(9))])
        assert ids(store.list(limit=3)) == ["tie", "r9", "r8"]
        assert ids(store.list(limit=3, offset=9)) == ["r1", "r0"]
        assert ids(store.list(Query(scope="/s0"), limit=2, offset=1)) == ["r8", "r6"]
        assert store.list(offset=11) == []

    def test_scopes_are_the_next_level_each_once_and_in_order(self, store: MemoryStore) -> None:
        store.save(in_each_scope())
        top = sorted({f"/{name.split('/')[0]}" for name in NAMES if name != "root"})
        assert list(store.scopes()) == list(store.scopes("")) == top
        assert list(store.scopes("/a")) == list(store.scopes("a/")) == ["/a/b"]
        assert list(store.scopes("/a/b/c")) == []

    @pytest.mark.bounced
    def test_summary_counts_what_lies_below(self, store: MemoryStore) -> None:
        store.save(
            [
                record("1", scope="/a", categories=("z", "y"), created_at=NOON),
                record("2", scope="/a/b", categories=("x",), created_at=NOON + timedelta(2)),
                record("3", scope="/ab", categories=("w",), created_at=NOON - timedelta(2)),
            ]
        )
        summary = store.summary("a")
        assert (summary.scope, summary.count, summary.categories) == ("/a", 2, ("x", "y", "z"))
        assert (summary.oldest, summary.newest, summary.children) == (NOON, NOON + timedelta(2), ("/a/b",))

    def test_touch_changes_the_time_of_the_last_access_alone(self, store: MemoryStore) -> None:
        store.save([record("a", [1.0], created_at=NOON, accessed_at=NOON), record("b", accessed_at=NOON)])
        later = NOON + timedelta(1)
        before = store.get("a")
        assert before is not None
        assert store.touch(["a", "unknown"], later) == 1
        assert store.get("a") == replace(before, accessed_at=later)
        assert store.get("b").accessed_at == NOON  # type: ignore[union-attr]

    # Sharing

    @pytest.mark.bounced
    def test_threads_that_put_at_once_lose_nothing(
        self, store: MemoryStore, threads: Callable[[int, Callable[[int], None]], list[None]]
    ) -> None:
        def work(index: int) -> None:
            for i in range(20):
                name = f"{index}-{i}"
                store.save([record(name, [float(index), float(i)], scope=f"/t/{index}", categories=(f"c{index}",))])
                # What was answered is seen by a read that begins afterwards.
                mine = Query(scope=f"/t/{index}")
                assert ids(store.search(pack([float(index), float(i)]), mine, limit=1, metric="l2")) == [name]
                store.touch([name], NOON)

        threads(8, work)
        assert store.count() == 160
        assert store.categories() == {f"c{i}": 20 for i in range(8)}

    @pytest.mark.bounced
    def test_threads_that_put_one_id_leave_one_whole_record(
        self, store: MemoryStore, threads: Callable[[int, Callable[[int], None]], list[None]]
    ) -> None:
        def work(index: int) -> None:
            for _ in range(20):
                store.save([record("one", [float(index)], scope=f"/{index}", categories=(str(index),) * index)])

        threads(6, work)
        survivor = store.get("one")
        assert survivor is not None
        index = int(survivor.scope[1:])
        assert survivor.categories == (str(index),) * index
        assert survivor.embedding == pack([float(index)])
        assert store.count() == 1

    @pytest.mark.bounced
    def test_of_two_first_embeddings_with_different_lengths_one_wins(
        self, store: MemoryStore, threads: Callable[[int, Callable[[int], bool]], list[bool]]
    ) -> None:
        def work(index: int) -> bool:
            try:
                store.save([record(str(index), [1.0] * (index + 1))])
            except DimsError:
                return False
            return True

        won = threads(6, work)
        assert sum(won) == 1
        assert store.dims() == won.index(True) + 1
        assert store.count() == 1

    # Any input

    @settings(max_examples=40, deadline=None, suppress_health_check=SUPPRESSED)
    @given(data=st.data())
    def test_selection_agrees_with_python(self, store: MemoryStore, data: st.DataObject) -> None:
        scopes = st.lists(st.sampled_from(["a", "b", "a-", "a/b", "0", "é", ""]), max_size=3).map("/".join)
        value = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "1", '"', "é", "k: 1"]))
        metadata = st.dictionaries(st.sampled_from(["k", "l", '"', "é"]), st.one_of(value, st.lists(value, max_size=2)))
        names = st.lists(st.sampled_from(string.ascii_lowercase[:8]), max_size=4, unique=True)
        categories = st.lists(st.sampled_from("xyz"), max_size=2).map(tuple)
        store.reset()
        kept = [
            record(name, scope=data.draw(scopes), categories=data.draw(categories), metadata=data.draw(metadata))
            for name in data.draw(names)
        ]
        store.save(kept)
        query = Query(
            scope=data.draw(st.none() | scopes),
            categories=data.draw(st.none() | categories),
            metadata=data.draw(st.none() | metadata.map(_as_python_compares)),
        )
        expected = {item.id for item in kept if _meets(item, query)}
        assert set(ids(store.list(query))) == expected
        assert set(ids(store.search(pack([1.0]), query))) == expected
        assert store.delete(query) == len(expected)


class TestPacking:
    """`pack` and `unpack` belong to no store."""

    def test_what_was_packed_is_float32_little_endian(self) -> None:
        assert pack([1.0, -2]) == b"\x00\x00\x80?\x00\x00\x00\xc0"
        assert unpack(pack([0.5, 1e-3])) == pytest.approx([0.5, 1e-3], rel=1e-7)
        assert pack(pack([1.0, 2.0])) == pack([1.0, 2.0])

    @pytest.mark.parametrize("bad", [[], b"", [math.nan], [math.inf], [1.0, -math.inf], [1e39], b"123"])
    def test_what_is_no_embedding_is_refused(self, bad: Any) -> None:
        with pytest.raises(EmbeddingError):
            pack(bad)


def _score(metric: str, a: list[float], b: list[float]) -> float:
    if metric == "l2":
        return 1 / (1 + sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if metric == "dot":
        return dot
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def _meets(item: Record, query: Query) -> bool:
    scope = None if query.scope is None else normalize_scope(query.scope)
    return (
        (scope in (None, "/") or item.scope == scope or item.scope.startswith(f"{scope}/"))
        and (query.categories is None or any(name in item.categories for name in query.categories))
        and all(item.metadata.get(key) == wanted.value for key, wanted in (query.metadata or {}).items())
    )


def _as_python_compares(metadata: dict[str, Any]) -> dict[str, PythonEquals]:
    return {key: PythonEquals(value) for key, value in metadata.items()}
