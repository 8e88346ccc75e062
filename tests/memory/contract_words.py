"""What every memory store promises of searches by words and by both; a base of each store's test class."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.contract import ids, record
from walpool.errors import DataError, ProgrammingError
from walpool.memory import Hits, MemoryStore, PythonEquals, Query, Record, Weights, pack

Opener = Callable[..., MemoryStore]
HOSTILE = [
    "", " ", '"', '""', '"a', "*", "-", "--", "a-", "(", ")", "a:b", "content:a", "^a", "a AND", "NOT", "NEAR(a b)",
    "{a}", "a OR", "or", "a + b", "' OR 1=1 --", "%", "_", "\\", "\0", "a\0b", "\x01", "😀", "\u0301", "日", "-a",
    '-"a',
    "a*b*", "a" * 5_000, "a " * 5_000, '"' * 999, "(" * 999, "\ufeff", "\u2028", "\u0600", "\U0001d518\U0001d52b",
]  # fmt: skip


def note(name: str, content: str, embedding: Iterable[float] | None = None, **fields: Any) -> Record:
    return replace(record(name, embedding, **fields), content=content)


def fruit() -> list[Record]:
    return [
        note("apple", "a green apple and a red one", [1.0, 0.0], scope="/fruit", metadata={"n": 1}),
        note("pear", "a green pear", [0.9, 0.1], scope="/fruit", metadata={"n": 2}),
        note("cafe", "Café crème, naïve", [0.1, 1.0], scope="/drink"),
        note("tea", "green tea", [0.0, 1.0], scope="/drink", metadata={"n": True}),
        note("none", "apples without an embedding", scope="/fruit"),
    ]


def all_pages(search: Callable[..., Hits], **arguments: Any) -> list[list[Any]]:
    pages, after = [], None
    while True:
        page = search(**arguments, after=after)
        pages.append(list(page))
        if page.next is None:
            return pages
        after = page.next


class WordsContract:
    """The promises of `MemoryStore.search` with a text."""

    keeps_nul = True
    """Whether a content may hold a NUL."""
    raw_query = "NEAR(green apple, 2) OR tea"
    raw_exclusion = "green NOT (apple OR pear)"
    raw_mistakes: tuple[str, ...] = ('"', "a AND", "nocolumn: a", "(a", "a ^^ b")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("green", {"apple", "pear", "tea"}),
            ("GREEN apple", {"apple"}),
            ("apple*", {"apple", "none"}),
            ("green -apple", {"pear", "tea"}),
            ("apple or tea", {"apple", "tea"}),
            ('"green pear"', {"pear"}),
            ('"pear green"', set()),
            ("cafe creme NAIVE", {"cafe"}),
            ("café", {"cafe"}),
            ("gre", set()),
            ("green nowhere", set()),
            ("-green", set()),
            ("???", set()),
        ],
    )
    def test_text_finds_what_it_says(self, store: MemoryStore, text: str, expected: set[str]) -> None:
        store.save(fruit())
        hits = store.search(text=text)
        assert set(ids(hits)) == expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    @pytest.mark.parametrize("text", HOSTILE)
    def test_no_text_is_an_error(self, store: MemoryStore, text: str) -> None:
        kept = text if self.keeps_nul else text.replace("\0", " ")
        store.save([*fruit(), note("hostile", kept or "x")])
        store.search(text=text)
        store.search(pack([1.0, 0.0]), text=text)
        assert store.check() == []

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(text=st.text(max_size=30))
    def test_any_text_is_a_search(self, store: MemoryStore, text: str) -> None:
        if store.count() == 0:
            store.save(fruit())
        for hit in store.search(pack([1.0, 0.0]), text=text):
            assert hit.why.words_rank is None or hit.snippet is not None
        store.search(text=text, query=Query(scope="/fruit"))

    def test_lone_surrogate_is_a_data_error(self, store: MemoryStore) -> None:
        store.save(fruit())
        with pytest.raises(DataError):
            store.search(text="a \ud800")

    @pytest.mark.bounced
    def test_words_are_ranked_by_rarity_repetition_and_length(self, store: MemoryStore) -> None:
        store.save(
            [
                note("once", "tea in the morning"),
                note("twice", "tea and tea again"),
                note("long", "tea " + "and many other words " * 20),
                *(note(f"c{n}", "coffee in the morning") for n in range(20)),
            ]
        )
        assert ids(store.search(text="tea")) == ["twice", "once", "long"]
        hits = store.search(pack([1.0]), text="coffee tea", weights=Weights(vector=0, recency=0, importance=0))
        assert ids(hits)[:3] == ["twice", "once", "long"]

    def test_limit_may_be_larger_than_a_database_counts(self, store: MemoryStore) -> None:
        store.save([record("a", [1.0]), record("b", [2.0])])
        asked: list[dict[str, Any]] = [{"text": "about"}, {"fts": "about"}, {"embedding": pack([1.0])}]
        for one in (*asked, {**asked[0], **asked[2]}, {**asked[1], **asked[2]}):
            assert sorted(ids(store.search(**one, limit=2**70))) == ["a", "b"]

    def test_ties_are_in_the_order_of_the_first_save(self, store: MemoryStore) -> None:
        store.save([note(name, "the same words") for name in "dcba"])
        store.save([note("c", "the same words")])
        assert ids(store.search(text="same")) == ["d", "c", "b", "a"]

    @pytest.mark.bounced
    def test_index_follows_every_change(self, store: MemoryStore) -> None:
        store.save(fruit())
        store.save([note("apple", "a plum")])
        assert ids(store.search(text="plum")) == ["apple"]
        assert ids(store.search(text="red")) == []
        store.update("apple", content="a cherry")
        store.update("pear", importance=1.0)
        assert (ids(store.search(text="plum")), ids(store.search(text="cherry"))) == ([], ["apple"])
        store.delete(Query(ids=("apple",)))
        assert ids(store.search(text="cherry")) == []
        store.reset()
        assert ids(store.search(text="green")) == []
        assert store.check() == []

    def test_snippet_marks_the_words_that_matched(self, store: MemoryStore) -> None:
        store.save([*fruit(), note("long", "x " * 500 + "a needle in it " + "y " * 500)])
        (hit,) = store.search(text="apple* red", marks=("<b>", "</b>"))
        assert hit.snippet == "a green <b>apple</b> and a <b>red</b> one"
        (hit,) = store.search(text='"café crème"')
        assert hit.snippet in ("[Café crème], naïve", "[Café] [crème], naïve")
        (hit,) = store.search(text="needle")
        assert hit.snippet is not None
        assert "[needle]" in hit.snippet
        assert len(hit.snippet) < 300
        assert hit.snippet.startswith("…")
        assert hit.snippet.endswith("…")
        assert store.search(pack([1.0, 0.0]))[0].snippet is None

    # Trigrams

    def test_trigrams_find_parts_of_words_and_text_without_spaces(self, opener: Opener) -> None:
        store = opener(collection="cjk", words="trigram")
        contents = {"a": "日本の首都は東京です", "b": "京都は古い町です", "c": "walking at 東京"}
        store.save([note(name, content, [1.0]) for name, content in contents.items()])
        assert set(ids(store.search(text="東京"))) == {"a", "c"}
        assert set(ids(store.search(text="京"))) == {"a", "b", "c"}
        assert ids(store.search(text="首都は東")) == ["a"]
        assert ids(store.search(text="東京 -首都")) == ["c"]
        assert ids(store.search(text="alk")) == ["c"]
        assert ids(store.search(text="ALKING 東京")) == ["c"]
        (hit,) = store.search(text="首都")
        assert hit.snippet == "日本の[首都]は東京です"
        only_words = Weights(vector=0, recency=0, importance=0)
        assert ids(store.search(pack([1.0]), text="日本の首都はどこですか", weights=only_words))[0] == "a"
        assert store.check() == []
        for text in HOSTILE:
            store.search(text=text)
            store.search(pack([1.0]), text=text)

    # The raw syntax

    @pytest.mark.parametrize("words", ["unicode61", "trigram"])
    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("10 \u00b5mol each", "\u03bcmol"),  # the micro sign, and the letter
            ("ΛΟΓΟΣ", "λογος"),
            ("ΛΟΓΟΣΤΕΧΝΙΑ", "ΛΟΓΟΣ*"),  # a sigma at the end of what was typed, not of the word
            ("the \u017fecret", "secret"),
        ],
    )
    def test_letters_of_two_small_forms_are_one(self, opener: Opener, words: str, content: str, text: str) -> None:
        store = opener(collection=words, words=words)
        store.save([note("a", content), note("b", "something else")])
        for asked in ({}, {"embedding": pack([1.0])}):
            (hit, *_) = store.search(text=text, **asked)
            assert hit.record.id == "a"
            assert "[" in (hit.snippet or "")

    def test_raw_query_is_in_the_syntax_of_the_backend(self, store: MemoryStore) -> None:
        store.save(fruit())
        assert set(ids(store.search(fts=self.raw_query))) == {"apple", "tea"}
        assert ids(store.search(fts=self.raw_exclusion, query=Query(scope="/drink"))) == ["tea"]
        hits = store.search(pack([1.0, 0.0]), fts="tea")
        assert {hit.record.id: hit.why.words_rank for hit in hits}["tea"] == 1
        assert store.search(fts="tea")[0].snippet == "green [tea]"

    def test_raw_query_that_is_none_is_a_programming_error(self, store: MemoryStore) -> None:
        store.save(fruit())
        for fts in self.raw_mistakes:
            with pytest.raises(ProgrammingError):
                store.search(fts=fts)

    # Both

    @pytest.mark.bounced
    def test_hybrid_score_is_what_its_explanation_says(self, store: MemoryStore) -> None:
        now = datetime.now(timezone.utc)
        day = timedelta(days=1)
        given_records = [replace(one, created_at=now - n * 10 * day, importance=n / 4) for n, one in enumerate(fruit())]
        store.save(given_records)
        weights = Weights(vector=2, words=1, relevance=0.6, recency=0.3, importance=0.1, half_life=10 * day)
        hits = store.search(pack([0.0, 1.0]), text="green tea", weights=weights)
        assert set(ids(hits)) == {"apple", "pear", "cafe", "tea", "none"}
        for hit in hits:
            why = hit.why
            shares = [(2, why.vector_rank), (1, why.words_rank)]
            relevance = sum(weight / (60 + rank) for weight, rank in shares if rank is not None) / (3 / 61)
            recency = 0.5 ** ((now - hit.record.created_at) / (10 * day))
            assert why.relevance == pytest.approx(relevance)
            assert why.recency == pytest.approx(recency, rel=1e-4)
            assert why.importance == hit.record.importance
            assert hit.score == pytest.approx(0.6 * relevance + 0.3 * recency + 0.1 * hit.record.importance, rel=1e-4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        by_id = {hit.record.id: hit.why for hit in hits}
        assert (by_id["tea"].vector_rank, by_id["tea"].words_rank) == (1, 1)
        assert by_id["tea"].vector_score == pytest.approx(1.0)
        assert (by_id["cafe"].words_rank, by_id["cafe"].words_score) == (None, None)

    def test_hybrid_search_goes_by_any_of_the_words(self, store: MemoryStore) -> None:
        store.save([*fruit(), *(note(f"other{n}", "nothing of it", [1.0, 0.0]) for n in range(300))])
        hits = store.search(
            pack([1.0, 0.0]), text="what about tea or an apple?", limit=3, weights=Weights(vector=0, recency=0)
        )
        assert set(ids(hits)) >= {"tea", "apple"}

    def test_weights_decide_between_the_lists(self, store: MemoryStore) -> None:
        store.save(fruit())
        near, said = Weights(words=0, recency=0, importance=0), Weights(vector=0, recency=0, importance=0)
        assert ids(store.search(pack([1.0, 0.0]), text="tea", weights=near))[0] == "apple"
        assert ids(store.search(pack([1.0, 0.0]), text="tea", weights=said))[0] == "tea"

    def test_mode_says_what_a_search_goes_by(self, store: MemoryStore) -> None:
        store.save(fruit())
        vector = pack([1.0, 0.0])
        assert store.search(vector, text="tea", mode="vector") == store.search(vector)
        assert store.search(vector, text="tea", mode="words") == store.search(text="tea")
        (hit,) = store.search(text="tea")
        assert (hit.why.vector_rank, hit.why.relevance, hit.why.words_rank) == (None, None, 1)
        assert hit.score == hit.why.words_score
        assert store.search(vector)[0].why.vector_rank == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"mode": "words"},
            {"mode": "vector", "text": "a"},
            {"mode": "hybrid", "text": "a"},
            {"mode": "nearest", "text": "a"},
            {"text": "a", "fts": "a"},
            {"text": "a", "after": "x"},
        ],
    )
    def test_search_that_lacks_what_it_needs_is_refused(self, store: MemoryStore, arguments: Any) -> None:
        store.save(fruit())
        with pytest.raises(DataError):
            store.search(**arguments)
        with pytest.raises(DataError):
            store.search(pack([1.0, 0.0]), mode="hybrid")

    def test_conditions_come_first(self, store: MemoryStore) -> None:
        store.save(fruit())
        for query, expected in (
            (Query(scope="/fruit"), {"apple", "pear"}),
            (Query(metadata={"n": 2}), {"pear"}),
            (Query(metadata={"n": PythonEquals(1)}), {"apple", "tea"}),
            (Query(ids=("tea", "cafe")), {"tea"}),
            (Query(ids=()), set()),
        ):
            assert set(ids(store.search(query=query, text="green"))) == expected
            hits = store.search(pack([1.0, 0.0]), query, text="green")
            assert {hit.record.id for hit in hits if hit.why.words_rank is not None} == expected
            assert set(ids(store.search(query=query, fts="green"))) == expected

    def test_min_score_leaves_out_what_scores_lower(self, store: MemoryStore) -> None:
        store.save(fruit())
        for arguments in ({"text": "green"}, {"text": "green tea", "embedding": pack([1.0, 0.0])}):
            whole = store.search(**arguments)
            bar = whole[1].score
            assert store.search(**arguments, min_score=bar) == [hit for hit in whole if hit.score >= bar]

    def test_store_without_records_finds_nothing(self, store: MemoryStore) -> None:
        assert store.search(text="a") == store.search(pack([1.0]), text="a") == store.search(fts="a") == []

    # Pages

    @pytest.mark.parametrize("size", [1, 4, 20])
    def test_pages_are_the_whole_search(self, store: MemoryStore, size: int) -> None:
        store.save([note(f"r{n}", "tea " * (n % 5) + "and coffee", [1.0, n / 10]) for n in range(30)])
        for arguments in ({"text": "coffee"}, {"fts": "tea"}, {"text": "tea", "embedding": pack([1.0, 1.0])}):
            pages = all_pages(store.search, limit=size, **arguments)
            assert all(len(page) == size for page in pages[:-1])
            found = [hit for page in pages for hit in page]
            whole = store.search(limit=100, **arguments)
            assert ids(found) == ids(whole)
            assert [hit.why.words_rank for hit in found] == [hit.why.words_rank for hit in whole]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in whole], rel=1e-4)

    @pytest.mark.parametrize("mode", ["vector", "words", "hybrid"])
    def test_pages_stay_stable_while_another_thread_writes(self, store: MemoryStore, mode: Any) -> None:
        #     reader                    writer
        #     page 1
        #                               replaces some, deletes some, saves new ones, touches some
        #     page 2, with the token of page 1 ...
        store.save([note(f"r{n}", f"tea {n}", [1.0, n / 50]) for n in range(50)])
        arguments: dict[str, Any] = {"embedding": pack([1.0, 1.0]), "text": "tea", "mode": mode, "limit": 7}
        expected = ids(store.search(**{**arguments, "limit": 50}))
        gate, done, changed = threading.Barrier(2), threading.Event(), set()

        def write() -> None:
            for n in range(0, 50, 10):
                gate.wait(30)
                store.save([note(f"r{n}", "tea, and more tea", [1.0, 1.0]), note(f"new{n}", "tea", [1.0, 1.0])])
                store.delete(Query(ids=(f"r{n + 1}",)))
                store.touch([f"r{n + 2}"])
                changed.update((f"r{n}", f"r{n + 1}"))
                gate.wait(30)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        found: list[str] = []
        after = None
        while True:
            page = store.search(**arguments, after=after)
            found += ids(page)
            if page.next is None:
                break
            after = page.next
            if not done.is_set():
                gate.wait(30)
                gate.wait(30)
        while not done.is_set() and writer.is_alive():
            gate.wait(30)
            gate.wait(30)
        writer.join()
        assert len(found) == len(set(found))
        assert not any(name.startswith("new") for name in found)
        assert [name for name in found if name not in changed] == [name for name in expected if name not in changed]

    def test_token_belongs_to_its_search(self, store: MemoryStore) -> None:
        store.save([note(f"r{n}", "tea", [1.0, n]) for n in range(9)])
        token = store.search(text="tea", limit=2).next
        both = store.search(pack([1.0, 0.0]), text="tea", limit=2).next
        assert len(store.search(text="tea", limit=5, after=token)) == 5
        for arguments in (
            {"text": "coffee", "after": token},
            {"fts": "tea", "after": token},
            {"text": "tea", "query": Query(scope="/a"), "after": token},
            {"text": "tea", "after": both},
            {"embedding": pack([1.0, 0.0]), "after": both},
            {"embedding": pack([2.0, 0.0]), "text": "tea", "after": both},
        ):
            with pytest.raises(DataError, match="another search"):
                store.search(**arguments)  # type: ignore[arg-type]

    @pytest.mark.parametrize("verb", ["reset", "compact", "rebuild"])
    def test_window_is_void_after_its_order_may_have_changed(self, store: MemoryStore, verb: str) -> None:
        store.save([note(f"r{n}", "tea", [1.0, n]) for n in range(9)])
        token = store.search(text="tea", limit=2).next
        getattr(store, verb)()
        with pytest.raises(DataError, match="anew"):
            store.search(text="tea", limit=2, after=token)

    # Others

    def test_store_of_another_changes_no_score(self, store: MemoryStore, opener: Opener) -> None:
        store.save(fruit())
        before = store.search(text="green"), store.search(text="tea or apple")
        for names in ({"tenant": "other"}, {"collection": "other"}):
            other = opener(**names)
            other.save([note(f"r{n}", "green tea " * 50) for n in range(50)])
            assert len(other.search(text="green", limit=100)) == 50
        assert (store.search(text="green"), store.search(text="tea or apple")) == before
        assert set(ids(store.search(fts="green"))) == set(ids(before[0]))
