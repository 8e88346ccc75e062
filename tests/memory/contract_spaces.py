"""What every memory store promises about updates, pages, upkeep and its neighbours; subclassed like `StoreContract`."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import pytest

from tests.memory.contract import NOON, ids, record
from walpool.errors import ConfigError, DataError
from walpool.memory import DimsError, EmbeddingError, MemoryStore, Query, Record, pack

Opener = Callable[..., MemoryStore]
DAY = timedelta(days=1)


class SpacesContract:
    """Single changes, pages, expiry, what is derived, and stores of others in the same database."""

    # update, touch

    @pytest.mark.parametrize(
        "changes",
        [
            {"content": "new"},
            {"scope": "new/"},
            {"categories": ("n", "m")},
            {"metadata": {"n": [1]}},
            {"importance": 1.0},
            {"created_at": NOON + DAY},
            {"accessed_at": NOON + DAY},
            {"embedding": pack([3.0, 4.0])},
            {"embedding": None},
            {"source": "new"},
            {"source": None},
            {"private": False},
            {"content": "new", "scope": "/x", "embedding": pack([0.0, 1.0]), "categories": ()},
        ],
        ids=lambda changes: "+".join(changes),
    )
    def test_update_changes_the_named_fields_alone(self, store: MemoryStore, changes: dict[str, Any]) -> None:
        before = record(
            "a",
            [1.0, 2.0],
            scope="/s",
            categories=("x",),
            metadata={"k": 1},
            created_at=NOON,
            accessed_at=NOON,
            source="s",
            private=True,
        )
        neighbour = record("b", [1.0, 2.0], scope="/s", categories=("x",))
        store.save([before, neighbour])
        assert store.update("a", **changes) is True
        assert store.get("a") == replace(before, **changes)
        assert store.get("b") == neighbour
        assert store.check() == []

    def test_update_of_no_record_changes_nothing(self, store: MemoryStore) -> None:
        assert store.update("a", scope="/x") is False
        store.save([record("b", [1.0])])
        assert store.update("a", scope="/x", content="c", embedding=pack([2.0])) is False
        assert store.update("b") is True
        assert store.scopes() == {}
        assert store.check() == []

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"color": "red"}, TypeError),
            ({"id": "b"}, TypeError),
            ({"importance": 2.0}, DataError),
            ({"embedding": pack([1.0])}, DimsError),
            ({"embedding": b"123"}, EmbeddingError),
            ({"embedding": [1.0] * 8}, EmbeddingError),
            ({"metadata": {"k": {1}}}, TypeError),
            ({"embedding": b"\0\0\xc0\x7f\0\0\0\0"}, EmbeddingError),
        ],
    )
    def test_update_that_is_refused_changes_nothing(
        self, store: MemoryStore, changes: dict[str, Any], error: Any
    ) -> None:
        before = record("a", [1.0, 2.0])
        store.save([before])
        with pytest.raises(error):
            store.update("a", **{"content": "new", "scope": "/new", **changes})
        assert store.get("a") == before
        assert store.check() == []

    @pytest.mark.bounced
    def test_updates_of_two_fields_at_once_lose_neither(
        self, store: MemoryStore, threads: Callable[[int, Callable[[int], None]], list[None]]
    ) -> None:
        store.save([record("a")])

        def work(index: int) -> None:
            for n in range(10):
                store.update("a", **({"content": f"c{n}"} if index else {"source": f"s{n}"}))  # type: ignore[arg-type]

        threads(2, work)
        found = store.get("a")
        assert found is not None
        assert (found.content, found.source) == ("c9", "s9")

    def test_touch_without_a_time_is_now(self, store: MemoryStore) -> None:
        store.save([record("a", accessed_at=NOON)])
        began = datetime.now(timezone.utc)
        assert store.touch(["a", "a", "b"]) == 1
        assert began <= store.get("a").accessed_at <= datetime.now(timezone.utc)  # type: ignore[union-attr]

    def test_touch_with_a_time_that_utc_has_not_leaves_what_can_be_read(self, store: MemoryStore) -> None:
        store.save([record("a", accessed_at=NOON)])
        with pytest.raises(DataError, match="UTC"):
            store.touch(["a"], datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))))
        assert store.get("a").accessed_at == NOON  # type: ignore[union-attr]

    def test_embedding_that_is_none_is_refused_and_nothing_is_saved(self, store: MemoryStore) -> None:
        # The third is a NaN; the others are numbers that nobody has packed, of a length that a packed one could have.
        unpacked: Any = ([1.0] * 8, array("f", [1.0] * 4), memoryview(array("f", [1.0] * 4)), "1234")
        for bad in (b"", b"123", b"\0\0\xc0\x7f", *unpacked):
            with pytest.raises(EmbeddingError):
                store.save([record("good", [1.0]), replace(record("bad"), embedding=bad)])
        for bad in unpacked:
            with pytest.raises(EmbeddingError, match="pack"):
                store.search(bad)
            with pytest.raises(EmbeddingError, match="pack"):
                store.search(bad, text="good")
        assert (store.count(), store.dims(), store.check()) == (0, None, [])

    def test_values_that_are_as_good_as_the_declared_types_come_back_as_those(self, store: MemoryStore) -> None:
        packed = pack([1.0, 2.0])
        likes: Any = (bytearray(packed), memoryview(packed))
        numbers: Any = (True, Fraction(1, 4))
        store.save(
            [
                replace(record(f"r{n}"), embedding=like, importance=number)
                for n, (like, number) in enumerate(zip(likes, numbers, strict=True))
            ]
        )
        found = store.list()
        assert [(one.embedding, one.importance) for one in found] == [(packed, 0.25), (packed, 1.0)]
        assert all(ids(store.search(like)) == ["r0", "r1"] for like in likes)
        assert store.check() == []

    # Pages

    @pytest.mark.parametrize("size", [1, 3, 7])
    def test_pages_of_a_listing_are_the_listing(self, store: MemoryStore, size: int) -> None:
        store.save([record(f"r{n}", scope=f"/s{n % 2}", created_at=NOON + n // 3 * DAY) for n in range(20)])
        for query in (Query(), Query(scope="/s1"), Query(created_after=NOON + DAY)):
            pages, after = [], None
            while True:
                page = store.list(query, limit=size, after=after)
                pages += ids(page)
                if page.next is None:
                    break
                assert len(page) == size
                after = page.next
            assert pages == ids(store.list(query))

    @pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
    def test_pages_of_a_search_are_the_search(self, store: MemoryStore, metric: Any) -> None:
        store.save(
            [record(f"r{n}", [float(n % 4), 1.0, n / 7], scope=f"/s{n % 2}") for n in range(20)] + [record("none")]
        )
        for query in (Query(), Query(scope="/s1")):
            whole = store.search(pack([1.0, 0.5, 2.0]), query, metric=metric, limit=100)
            pages, after = [], None
            while True:
                page = store.search(pack([1.0, 0.5, 2.0]), query, metric=metric, limit=3, after=after)
                pages += page
                if page.next is None:
                    break
                after = page.next
            assert pages == whole

    @pytest.mark.bounced
    def test_pages_stay_stable_while_others_write(self, store: MemoryStore) -> None:
        store.save([record(f"r{n}", [1.0, n / 10], created_at=NOON + n * DAY) for n in range(10)])
        first = store.list(limit=4)
        found = store.search(pack([1.0, 0.0]), limit=4)
        assert (ids(first), ids(found)) == (["r9", "r8", "r7", "r6"], ["r0", "r1", "r2", "r3"])
        store.save([record("new", [1.0, 0.45], created_at=NOON + 5 * DAY), record("r4", [1.0, 0.45], created_at=NOON)])
        store.delete(Query(ids=("r2",)))
        store.touch(["r5"])
        rest = store.list(after=first.next)
        assert (ids(rest), rest.next) == (["r5", "r3", "r1", "r0"], None)
        assert ids(store.search(pack([1.0, 0.0]), after=found.next)) == ["r5", "r6", "r7", "r8", "r9"]

    def test_token_of_something_else_is_refused(self, store: MemoryStore) -> None:
        store.save([record(str(n), [1.0]) for n in range(5)])
        listing, search = store.list(limit=2).next, store.search(pack([1.0]), limit=2).next
        for bad in ("", "x", "é", "\0", "AAAA", search, "a" * 10_000):
            with pytest.raises(DataError):
                store.list(limit=2, after=bad)
        with pytest.raises(DataError):
            store.list(Query(scope="/x"), limit=2, after=listing)
        for bad in ("", "x", listing):
            with pytest.raises(DataError):
                store.search(pack([1.0]), limit=2, after=bad)
        with pytest.raises(DataError):
            store.search(pack([2.0]), limit=2, after=search)

    @pytest.mark.parametrize("verb", ["reset", "compact"])
    def test_token_is_void_after_a_reset_or_compact(self, store: MemoryStore, verb: str) -> None:
        store.save([record(str(n), [1.0]) for n in range(5)])
        token = store.search(pack([1.0]), limit=2).next
        getattr(store, verb)()
        with pytest.raises(DataError, match="anew"):
            store.search(pack([1.0]), limit=2, after=token)

    # Scopes, expiry, iterating

    def test_deep_scopes_are_all_levels_with_what_lies_below(self, store: MemoryStore) -> None:
        store.save(
            [record(str(n), scope=scope) for n, scope in enumerate(["/", "/a/b/c", "/a/b/c", "/a", "/b/x", "/ab"])]
        )
        assert store.scopes() == {"/a": 3, "/ab": 1, "/b": 1}
        assert store.scopes(deep=True) == {"/a": 3, "/a/b": 2, "/a/b/c": 2, "/ab": 1, "/b": 1, "/b/x": 1}
        assert store.scopes("/a", deep=True) == {"/a/b": 2, "/a/b/c": 2}
        assert store.scopes("/a/b/c", deep=True) == {}

    @pytest.mark.bounced
    def test_counts_are_exact_whatever_moved(self, store: MemoryStore) -> None:
        store.save([record(str(n), scope=f"/{n % 2}", categories=("x", f"c{n}", "x")) for n in range(6)])
        store.save([record("0", scope="/1", categories=("y",))])
        store.update("2", scope="/1/deep")
        store.update("3", categories=())
        store.delete(Query(ids=("5",)))
        assert store.scopes(deep=True) == {"/0": 1, "/1": 4, "/1/deep": 1}
        assert store.categories() == {"c1": 1, "c2": 1, "c4": 1, "x": 3, "y": 1}
        assert store.categories(Query(scope="/1")) == {"c1": 1, "c2": 1, "x": 2, "y": 1}
        store.delete(Query())
        assert (store.scopes(deep=True), store.categories(), store.count(), store.check()) == ({}, {}, 0, [])
        store.save([record("a", scope="/1", categories=("x",))])
        assert (store.scopes(), store.categories(), store.check()) == ({"/1": 1}, {"x": 1}, [])

    @pytest.mark.parametrize(
        ("conditions", "kept"),
        [
            ({"older_than": 5 * DAY}, {"a0", "a1", "a2", "b0", "b1", "b2"}),
            ({"keep": 1}, {"a0", "b0"}),
            ({"keep": 0}, set()),
            ({"keep": 100}, {f"{scope}{age}" for scope in "ab" for age in range(8)}),
            ({"importance_below": 0.5}, {f"{scope}{age}" for scope in "ab" for age in range(0, 8, 2)}),
            ({"older_than": 5 * DAY, "keep": 6}, {f"{scope}{age}" for scope in "ab" for age in range(6)}),
            ({"query": Query(scope="/a"), "keep": 2}, {"a0", "a1"} | {f"b{age}" for age in range(8)}),
            (
                {"query": Query(ids=("a0", "a7")), "keep": 1},
                {f"a{age}" for age in range(7)} | {f"b{age}" for age in range(8)},
            ),
            ({"older_than": timedelta.max}, {f"{scope}{age}" for scope in "ab" for age in range(8)}),
        ],
    )
    def test_expire_takes_what_meets_every_condition(self, store: MemoryStore, conditions: Any, kept: set[str]) -> None:
        now = datetime.now(timezone.utc)
        every = [
            record(
                f"{scope}{age}",
                scope=f"/{scope}",
                created_at=now - (2 * age + 0.5) * DAY,
                importance=0.1 if age % 2 else 0.9,
            )
            for scope in "ab"
            for age in range(8)
        ]
        store.save(every)
        assert store.expire(**conditions) == len(every) - len(kept)
        assert set(ids(store.list())) == kept
        assert store.check() == []

    @pytest.mark.parametrize("conditions", [{}, {"keep": -1}, {"older_than": -DAY}, {"importance_below": -0.1}])
    def test_expire_without_a_condition_is_refused(self, store: MemoryStore, conditions: Any) -> None:
        store.save([record("a")])
        with pytest.raises(DataError):
            store.expire(**conditions)
        assert store.count() == 1

    @pytest.mark.bounced
    def test_iterating_is_oldest_first_in_one_snapshot(self, store: MemoryStore) -> None:
        every = [record(f"r{n}", [1.0], created_at=NOON + n * DAY) for n in range(10)]
        store.save(reversed(every))
        assert list(store.iterate()) == every
        found = store.iterate(chunk=2)
        assert next(found).id == "r0"
        store.delete(Query(ids=("r5",)))
        store.save([record("new", created_at=NOON + 8 * DAY)])
        assert ids(found) == [f"r{n}" for n in range(1, 10)]
        left = store.iterate(Query(created_after=NOON + 7 * DAY), chunk=1)
        next(left)
        left.close()  # type: ignore[attr-defined]

    # What is derived

    @pytest.mark.bounced
    def test_rebuild_and_compact_change_no_answer(self, store: MemoryStore) -> None:
        store.save(
            [
                record(f"r{n}", [n % 7, n % 5, 1.0], scope=f"/{n % 3}", categories=(f"c{n % 2}",), metadata={"n": n})
                for n in range(300)
            ]
        )
        store.delete(Query(ids=tuple(f"r{n}" for n in range(0, 300, 10))))

        def answers() -> list[Any]:
            query = Query(scope="/1", metadata={"n": 31})
            return [
                store.search(pack([1.0, 2.0, 3.0]), limit=50),
                store.list(limit=5),
                store.scopes(),
                store.categories(),
                store.count(query),
            ]

        before = answers()
        for verb in (store.rebuild, store.compact, store.compact, store.rebuild):
            verb()
            assert answers() == before
            assert store.check() == []
        store.save([record("after", [1.0, 2.0, 3.0])])
        assert ids(store.search(pack([1.0, 2.0, 3.0]), limit=1)) == ["after"]

    # Neighbours

    def test_looking_makes_nothing(self, store: MemoryStore, opener: Opener) -> None:
        assert (store.count(), store.list(), store.check(), store.dims()) == (0, [], [], None)
        store.delete(Query())
        store.touch(["a"])
        store.rebuild()
        store.compact()
        store.reset()
        with pytest.raises(DimsError):
            store.save([record("a", [1.0]), record("b", [1.0, 2.0])])
        opener(words="trigram").save([record("a")])  # nothing has fixed the words so far

    def test_words_are_fixed_by_the_first_save(self, store: MemoryStore, opener: Opener) -> None:
        early = opener(words="trigram")
        assert early.count() == 0
        store.save([record("a")])
        with pytest.raises(ConfigError, match=r"trigram.*unicode61"):
            early.save([record("b")])
        with pytest.raises(ConfigError, match=r"trigram.*unicode61"):
            opener(words="trigram").count()
        with pytest.raises(ConfigError, match=r"porter.*unicode61"):
            opener(words="porter")
        opener(words="trigram", collection="other").save([record("b")])
        assert store.count() == 1
        as_it_is = opener(collection="other")  # who does not say takes what there is
        as_it_is.save([record("c")])
        assert ids(as_it_is.search(text='"out b"')) == ["b"], "parts of words are found"

    @pytest.mark.bounced
    def test_stores_of_others_see_nothing_of_each_other(self, store: MemoryStore, opener: Opener) -> None:
        others = [opener(tenant="t"), opener(collection="c"), opener(tenant="t", collection="c")]
        for n, other in enumerate([store, *others], 1):
            other.save(
                [
                    record(
                        "a",
                        [1.0] * n,
                        scope=f"/s{n}",
                        categories=(f"c{n}",),
                        metadata={"k": n},
                        created_at=NOON,
                        source="s",
                    ),
                    record(f"own{n}", [0.5] * n, scope="/shared", categories=("shared",), metadata={"shared": True}),
                ]
            )
        self.look_at(store, 1)
        for n, other in enumerate(others, 2):
            self.look_at(other, n)
            assert other.touch(["a", "own1"], NOON) == 1
            assert other.update("own1", content="x") is False
            assert other.expire(importance_below=1.0, query=Query(ids=("own1",))) == 0
            assert other.delete(Query(ids=("own1",))) == 0
            assert other.delete(Query(scope="/s1")) == 0
            assert other.delete(Query(categories=("c1",))) == 0
            assert other.delete(Query(metadata={"k": 1})) == 0
            other.rebuild()
            other.compact()
        self.look_at(store, 1)
        for n, other in enumerate(others, 2):
            assert other.delete(Query(scope="/shared", metadata={"shared": True})) == 1
            assert other.expire(keep=0) == 1
            other.save([record("a", [1.0] * n)])
            other.reset()
            assert (other.count(), other.dims(), other.check()) == (0, None, [])
        self.look_at(store, 1)
        others[0].save([record("a", [1.0] * 9)])
        self.look_at(store, 1)

    def look_at(self, store: MemoryStore, n: int) -> None:
        assert store.dims() == n
        assert store.count() == len(store.list()) == len(list(store.iterate())) == 2
        assert store.scopes() == {f"/s{n}": 1, "/shared": 1}
        assert store.categories() == {f"c{n}": 1, "shared": 1}
        assert store.categories(Query(source="s")) == {f"c{n}": 1}
        found = store.get("a")
        assert isinstance(found, Record)
        assert (found.scope, found.metadata) == (f"/s{n}", {"k": n})
        summary = store.summary()
        assert (summary.count, summary.oldest, summary.children) == (2, NOON, (f"/s{n}", "/shared"))
        assert set(ids(store.search(pack([1.0] * n)))) == {"a", f"own{n}"}
        assert ids(store.search(pack([1.0] * n), Query(metadata={"shared": True}))) == [f"own{n}"]
        assert ids(store.list(Query(categories=("shared",)))) == [f"own{n}"]
        assert store.check() == []
