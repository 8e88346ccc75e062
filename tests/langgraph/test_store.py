"""The LangGraph store: what the differential test (test_store_model.py) cannot see, and what is walpool's own."""

from __future__ import annotations

import asyncio
import enum
import math
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.store.base")

from helpers import retire
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from leftovers import engine_threads, open_descriptors, threads_left_since
from stores import INDEX, KINDS, keys, opened_store

import walpool
from walpool.langgraph import AsyncWalpoolStore, WalpoolStore
from walpool.memory import DimsError, EmbeddingError

LATER = timedelta(hours=1) // timedelta(microseconds=1)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, place: str) -> Iterator[Any]:
    with opened_store(kind, place) as opened:
        yield opened


@pytest.fixture
def indexed(kind: str, place: str) -> Iterator[Any]:
    with opened_store(kind, place, index=INDEX) as opened:
        yield opened


def let_pass(place: str, micros: int) -> None:
    """Let every item expire so much earlier, as if the time had passed."""
    with walpool.get_pool(place) as pool:
        pool.execute("UPDATE langgraph_items SET expires_at = expires_at - ?", (micros,))


def expiry(place: str, key: str) -> int:
    with walpool.get_pool(place) as pool:
        return int(pool.fetchval("SELECT expires_at FROM langgraph_items WHERE key = ?", (key,)))


def count(place: str, table: str) -> int:
    with walpool.get_pool(place) as pool:
        return int(pool.fetchval(f"SELECT count(*) FROM {table}"))


# Items


def vectors(place: str) -> int:
    """Return how many vectors there are; in a file each has its sketch."""
    found = count(place, "langgraph_vectors")
    assert "://" in place or count(place, "langgraph_sketches WHERE gone = 0") == found
    return found


# Items


@pytest.mark.bounced
def test_store_keeps_items_after_it_was_closed(kind: str, place: str) -> None:
    value = {"text": "Zoë 🦉", "nested": {"list": [1, 2.5, None, True]}, "nan": math.inf}
    with opened_store(kind, place) as store:
        store.put(("users", "1"), "k", value)
    with opened_store(kind, place) as store:
        found = store.get(("users", "1"), "k")
        assert (found.namespace, found.key, found.value) == (("users", "1"), "k", value)
        assert found.created_at == found.updated_at
        assert datetime.now(timezone.utc) - found.created_at < timedelta(minutes=1)


def test_put_of_a_key_that_exists_keeps_when_it_was_created(store: Any) -> None:
    store.put(("a",), "k", {"v": 1})
    first = store.get(("a",), "k")
    store.put(("a",), "k", {"v": 2})
    second = store.get(("a",), "k")
    assert (second.value, second.created_at) == ({"v": 2}, first.created_at)
    assert second.updated_at > first.updated_at


@pytest.mark.bounced
def test_search_without_a_query_gives_the_items_put_last_first(store: Any) -> None:
    for key in "abc":
        store.put(("n",), key, {})
    store.put(("n",), "a", {})
    assert keys(store.search(("n",))) == ["a", "c", "b"]
    assert keys(store.search(("n",), limit=1, offset=1)) == ["c"]


def test_values_are_kept_as_the_json_that_langgraphs_stores_make_of_them(store: Any) -> None:
    @dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = "red"

    moment, number = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), uuid.UUID(int=7)
    store.put(("n",), "k", {"at": moment, "id": number, "p": Point(1), "c": Colour.RED, "t": (1, 2), "u": "\ud83d"})
    assert store.get(("n",), "k").value == {
        "at": moment.isoformat(),
        "id": str(number),
        "p": {"x": 1},
        "c": "red",
        "t": [1, 2],
        "u": "\ud83d",
    }


def test_value_without_a_json_form_is_refused_and_nothing_of_its_batch_is_written(store: Any) -> None:
    secret = "hunter2"
    with pytest.raises(TypeError, match="bytes") as raised:
        store.batch([PutOp(("n",), "good", {"v": 1}), PutOp(("n",), "bad", {"v": secret.encode()})])
    assert secret not in str(raised.value)
    assert store.search(()) == []


def test_value_nested_too_deep_is_refused_with_walpools_own_error(store: Any) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(walpool.DataError, match="nested too deep"):
        store.put(("n",), "k", {"v": deep})


def test_namespace_of_operations_handed_to_batch_is_validated_too(store: Any) -> None:
    for op in (
        PutOp(("a.b",), "k", {}),
        GetOp(("",), "k"),
        SearchOp(("a.b",)),
        ListNamespacesOp((MatchCondition("prefix", ("a.b",)),)),
    ):
        with pytest.raises(InvalidNamespaceError):
            store.batch([op])


@pytest.mark.bounced
def test_reads_of_a_batch_see_the_store_before_it_and_its_last_put_counts(store: Any) -> None:
    store.put(("n",), "k", {"v": 0})
    answers = store.batch(
        [PutOp(("n",), "k", {"v": 1}), GetOp(("n",), "k"), PutOp(("n",), "k", {"v": 2}), SearchOp(("n",))]
    )
    assert [answers[1].value, answers[3][0].value] == [{"v": 0}, {"v": 0}]
    assert answers[0] is None
    assert store.get(("n",), "k").value == {"v": 2}


def test_unknown_operator_is_refused_even_where_nothing_is_stored(store: Any) -> None:
    for bad in ({"a": {"$in": [1]}}, {"a": {"b": {"$regex": "x"}}}, {"a": [{"$or": 1}]}):
        with pytest.raises(ValueError, match="Unsupported operator"):
            store.search((), filter=bad)


def test_filter_with_an_order_leaves_out_what_has_none(store: Any) -> None:
    values = {"none": None, "list": [1], "text": "zz", "number": 5, "numeric": "7", "small": 1}
    for key, value in values.items():
        store.put(("n",), key, {"v": value})
    store.put(("n",), "missing", {})
    assert sorted(keys(store.search((), filter={"v": {"$gt": 2}}))) == ["number", "numeric"]


def test_filter_with_an_order_compares_dates_as_text(store: Any) -> None:
    for year in (2023, 2024, 2025):
        store.put(("n",), str(year), {"on": f"{year}-05-01"})
    assert keys(store.search((), filter={"on": {"$gte": "2024-05-01", "$lt": "2025-01-01"}})) == ["2024"]


def test_filter_that_python_decides_pages_over_many_items(store: Any) -> None:
    store.batch([PutOp(("n",), f"{i:04}", {"i": i, "odd": i % 2}) for i in range(1000)])
    found = store.search((), filter={"i": {"$ne": -1}, "odd": 1}, limit=300, offset=100)
    assert keys(found) == [f"{i:04}" for i in range(799, 199, -2)]


@pytest.mark.parametrize("key", ['quo"te', "back\\slash", "$.odd", "a.b", "new\nline", "", "ünï", "[0]"])
def test_filter_takes_any_name_of_a_field(store: Any, key: str) -> None:
    store.put(("n",), "yes", {key: "x"})
    store.put(("n",), "no", {key: "y", "x": "x"})
    assert keys(store.search((), filter={key: "x"})) == ["yes"]


def test_prefix_takes_no_neighbour_whose_name_begins_alike(store: Any) -> None:
    for namespace in [("u",), ("u", "1"), ("u-b",), ("u/b",), ("u1",), ("U",)]:
        store.put(namespace, "k", {})
    assert sorted(item.namespace for item in store.search(("u",))) == [("u",), ("u", "1")]
    assert store.list_namespaces(prefix=("u",)) == [("u",), ("u", "1")]
    assert store.list_namespaces() == [("U",), ("u",), ("u", "1"), ("u-b",), ("u/b",), ("u1",)]


def test_namespace_is_listed_only_while_it_holds_an_item(store: Any) -> None:
    assert store.get(("never",), "k") is None
    store.put(("once",), "k", {})
    store.delete(("once",), "k")
    assert store.list_namespaces() == []


# The index


def test_search_with_a_query_ranks_by_the_best_vector_then_gives_what_has_none(indexed: Any) -> None:
    indexed.put(("n",), "both", {"text": "b", "more": "a"}, index=["text", "more"])
    indexed.put(("n",), "half", {"text": "ab"})
    indexed.put(("n",), "unindexed", {"text": "a"}, index=False)
    indexed.put(("n",), "other", {"text": "b"})
    found = indexed.search(("n",), query="a")
    assert keys(found) == ["both", "half", "other", "unindexed"]
    assert [item.score for item in found] == [pytest.approx(1.0), pytest.approx(0.5**0.5), 0.0, None]


@pytest.mark.bounced
def test_pages_of_a_ranked_search_follow_each_other_without_gap_or_repeat(indexed: Any) -> None:
    for number in range(7):
        indexed.put(("n",), f"scored{number}", {"text": "a" * (7 - number) + "b" * number})
    for number in range(5):
        indexed.put(("n",), f"plain{number}", {})
    whole = keys(indexed.search((), query="a", limit=100))
    pages = [keys(indexed.search((), query="a", limit=4, offset=start)) for start in range(0, 16, 4)]
    assert [key for page in pages for key in page] == whole
    assert len(whole) == 12


@pytest.mark.bounced
def test_value_that_is_put_again_loses_the_vectors_of_the_old_one(indexed: Any, place: str) -> None:
    indexed.put(("n",), "k", {"text": ["a", "b", "c"]}, index=["text[*]"])
    assert vectors(place) == 3
    indexed.put(("n",), "k", {"text": "a"}, index=False)
    assert indexed.search((), query="a")[0].score is None
    assert vectors(place) == 0


def test_vectors_go_with_their_item(indexed: Any, place: str) -> None:
    indexed.put(("n",), "k", {"text": "a"})
    indexed.put(("n",), "stays", {"text": "b"})
    indexed.delete(("n",), "k")
    assert keys(indexed.search((), query="a")) == ["stays"]
    assert vectors(place) == 1


def test_same_text_is_embedded_once_for_a_batch(kind: str, place: str) -> None:
    asked: list[list[str]] = []

    def embed(texts: list[str]) -> list[list[float]]:
        asked.append(list(texts))
        return [[1.0, 2.0] for _ in texts]

    with opened_store(kind, place, index={"dims": 2, "embed": embed, "fields": ["text"]}) as store:
        store.batch([PutOp(("n",), key, {"text": "same"}) for key in "abc"])
        assert asked == [["same"]]
        assert [item.score for item in store.search((), query="same")] == [pytest.approx(1.0)] * 3


def test_nobody_waits_for_an_embedding(kind: str, place: str) -> None:
    # The embedding function writes to the same file: it would wait for itself, were a transaction open around it.
    with walpool.get_pool(place, write_timeout="2s") as other:

        def embed(texts: list[str]) -> list[list[float]]:
            other.execute("INSERT INTO seen VALUES (1)")
            return [[1.0] for _ in texts]

        other.execute("CREATE TABLE seen (one INTEGER)")
        with opened_store(kind, place, index={"dims": 1, "embed": embed}) as store:
            store.put(("n",), "k", {"text": "a"})
            store.batch([SearchOp((), query="a"), PutOp(("n",), "l", {})])
        assert other.fetchval("SELECT count(*) FROM seen") == 3


def test_embedding_of_other_dims_than_configured_is_refused_and_nothing_is_written(kind: str, place: str) -> None:
    config: Any = {"dims": 3, "embed": lambda texts: [[1.0, 2.0] for _ in texts]}
    with opened_store(kind, place, index=config) as store:
        with pytest.raises(DimsError, match="3 dims"):
            store.put(("n",), "k", {"text": "a"})
        with pytest.raises(DimsError):
            store.search((), query="a")
        assert store.get(("n",), "k") is None


@pytest.mark.parametrize("made", [[[math.nan]], [[1.0], [1.0]], []])
def test_embedding_that_is_none_is_refused(kind: str, place: str, made: list[list[float]]) -> None:
    with opened_store(kind, place, index={"dims": 1, "embed": lambda texts: made}) as store:
        with pytest.raises(EmbeddingError):
            store.put(("n",), "k", {"text": "a"})
        assert store.get(("n",), "k") is None


def test_items_of_an_earlier_embedding_model_count_as_unindexed_until_they_are_put_again(kind: str, place: str) -> None:
    with opened_store(kind, place, index={"dims": 2, "embed": lambda texts: [[1.0, 0.0] for _ in texts]}) as store:
        store.put(("n",), "old", {})
        store.put(("n",), "moved", {})
    with opened_store(kind, place, index={"dims": 3, "embed": lambda texts: [[1.0, 0, 0] for _ in texts]}) as store:
        store.put(("n",), "moved", {})
        assert [(item.key, item.score) for item in store.search((), query="a")] == [("moved", 1.0), ("old", None)]


def test_query_without_an_index_is_a_search_without_a_query(store: Any) -> None:
    store.put(("n",), "k", {"text": "a"}, index=["text"])
    assert [(item.key, item.score) for item in store.search((), query="a")] == [("k", None)]


# Expiry


def test_item_outlives_its_ttl_until_it_is_swept(store: Any, place: str) -> None:
    store.put(("n",), "k", {}, ttl=1)
    store.put(("n",), "forever", {})
    assert store.sweep_ttl() == 0
    let_pass(place, LATER)
    assert store.get(("n",), "k", refresh_ttl=False) is not None
    assert store.sweep_ttl() == 1
    assert keys(store.search(())) == ["forever"]


def test_omit_expired_hides_what_was_not_swept_yet(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"omit_expired": True}, index=INDEX) as store:
        store.put(("n",), "k", {"text": "a", "v": 1}, ttl=1)
        assert keys(store.search((), query="a")) == ["k"]
        let_pass(place, LATER)
        assert store.get(("n",), "k") is None
        assert store.search(()) == store.search((), query="a") == store.search((), filter={"v": {"$gt": 0}}) == []
        assert store.list_namespaces() == []


def test_read_refreshes_the_ttl_unless_it_says_not_to(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"default_ttl": 10}) as store:
        store.put(("n",), "k", {})
        put = expiry(place, "k")
        let_pass(place, 5_000_000)
        store.get(("n",), "k", refresh_ttl=False)
        assert expiry(place, "k") == put - 5_000_000
        store.get(("n",), "k")
        assert expiry(place, "k") >= put
        let_pass(place, 5_000_000)
        store.search(("n",))
        assert expiry(place, "k") >= put


def test_item_with_a_ttl_is_read_from_a_retired_file(kind: str, database: Path) -> None:
    with opened_store(kind, database, ttl={"default_ttl": 10}) as store:
        store.put(("n",), "k", {"v": 1})
    let_pass(str(database), 5_000_000)  # so long that a read refreshes it
    left = expiry(str(database), "k")
    retire(database)
    with opened_store(kind, database, ttl={"default_ttl": 10}) as store:
        assert store.get(("n",), "k").value == {"v": 1}
        assert keys(store.search(("n",))) == ["k"]
        with pytest.raises(walpool.ReadOnlyError):
            store.batch([GetOp(("n",), "k"), PutOp(("n",), "other", {})])
    assert expiry(str(database), "k") == left


def test_refresh_on_read_off_is_the_default_of_reads_that_do_not_say(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"default_ttl": 10, "refresh_on_read": False}) as store:
        store.put(("n",), "k", {})
        let_pass(place, 5_000_000)
        before = expiry(place, "k")
        store.get(("n",), "k")
        store.search(())
        assert expiry(place, "k") == before
        store.get(("n",), "k", refresh_ttl=True)
        assert expiry(place, "k") > before


def test_read_of_what_was_refreshed_a_moment_ago_writes_nothing(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"default_ttl": 10}) as store, walpool.get_pool(place) as pool:
        store.put(("n",), "k", {})
        jobs = pool.stats()["jobs"]
        store.get(("n",), "k")
        assert pool.stats()["jobs"] == jobs


def test_put_with_a_ttl_of_none_never_expires_whatever_the_default(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"default_ttl": 0}) as store:
        store.put(("n",), "k", {}, ttl=None)
        store.put(("n",), "gone", {})
        assert store.sweep_ttl() == 1
        assert keys(store.search(())) == ["k"]


def test_put_sweeps_on_its_way_when_the_interval_has_passed(kind: str, place: str) -> None:
    with opened_store(kind, place, ttl={"sweep_interval_minutes": 60}) as store:
        store.put(("n",), "first", {}, ttl=0)  # it sweeps, then puts: the interval begins
        store.put(("n",), "second", {})
        assert count(place, "langgraph_items") == 2
    with opened_store(kind, place, ttl={"sweep_interval_minutes": 60}) as store:
        store.put(("n",), "third", {})
        assert sorted(keys(store.search(()))) == ["second", "third"]


@pytest.mark.bounced
def test_sweep_deletes_more_than_one_job_may(store: Any, place: str) -> None:
    store.batch([PutOp(("n",), str(i), {}, ttl=0) for i in range(2500)])
    assert store.sweep_ttl() == 2500
    assert count(place, "langgraph_items") == 0


@pytest.mark.parametrize("ttl", [math.inf, 1e300, -math.inf])
def test_ttl_of_any_size_is_taken(store: Any, ttl: float) -> None:
    store.put(("n",), "k", {}, ttl=ttl)
    assert store.sweep_ttl() == (ttl < 0)


# Life


def test_store_leaves_a_pool_that_was_given_open() -> None:
    with walpool.Pool(":memory:") as pool:
        with WalpoolStore(pool) as store:
            store.put(("n",), "k", {})
        assert pool.fetchval("SELECT count(*) FROM langgraph_items") == 1
        with pytest.raises(walpool.ConfigError, match="settings"):
            WalpoolStore(pool, readers=2)


def test_store_is_made_from_a_connection_string_as_langgraphs_own_is(place: str) -> None:
    with WalpoolStore.from_conn_string(place, index=INDEX) as store:
        store.setup()
        store.put(("n",), "k", {"text": "a"})

    async def main() -> None:
        async with AsyncWalpoolStore.from_conn_string(place, index=INDEX) as store:
            await store.setup()
            assert keys(await store.asearch((), query="a")) == ["k"]

    asyncio.run(main())


def test_each_store_has_the_methods_of_the_other_kind_on_the_same_engine(place: str, database: Path) -> None:
    async def main() -> None:
        with WalpoolStore(place) as store:
            await store.aput(("n",), "sync", {"v": 1})
            assert keys(await store.asearch(())) == ["sync"]
        async with AsyncWalpoolStore(place) as store:
            in_thread = asyncio.get_running_loop().run_in_executor
            await in_thread(None, lambda: store.put(("n",), "async", {"v": 1}))
            assert (await store.aget(("n",), "async")).value == {"v": 1}  # type: ignore[union-attr]

    with warnings.catch_warnings():
        # A synchronous store on a loop's thread is what `Pool` warns of.
        warnings.filterwarnings("ignore", category=RuntimeWarning, message=".*event loop")
        asyncio.run(main())
    assert open_descriptors(database) == []


def test_closed_store_refuses_work_and_leaves_no_thread_and_no_file_open(kind: str, place: str, database: Path) -> None:
    before = engine_threads()
    with opened_store(kind, place) as store:
        store.put(("n",), "k", {})
        store.close()
        with pytest.raises(walpool.ClosedError):
            store.get(("n",), "k")
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


def test_setting_that_is_wrong_is_refused_when_the_store_is_made(kind: str, database: Path) -> None:
    with pytest.raises(walpool.ConfigError):
        (WalpoolStore if kind == "sync" else AsyncWalpoolStore)(database, reeders=2)
    assert not database.exists()


@pytest.mark.bounced
def test_threads_that_put_into_one_store_lose_nothing(place: str, threads: Any) -> None:
    with WalpoolStore(place) as store:
        threads(8, lambda number: [store.put((f"t{number}",), str(i), {"i": i}) for i in range(20)])
        assert len(store.search((), limit=1000)) == 160
        assert len(store.list_namespaces()) == 8
