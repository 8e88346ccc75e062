"""Which records the words find, against a look at every record; with bounds so small that common words are met."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import walpool.memory
from tests.memory.contract import ids
from walpool.memory import MemoryStore, Query, Record, Weights, pack
from walpool.memory import _sqlite_matches as matches

ONLY_WORDS = Weights(vector=0, recency=0, importance=0)
VOCABULARY = [f"word{n}" for n in range(200)]


def filled(store: MemoryStore, count: int, seed: int = 1) -> dict[str, set[str]]:
    """Save records of a few words each, the first words of the vocabulary the most common; return each one's words."""
    chance = random.Random(seed)
    contents = {f"r{n}": [VOCABULARY[int(200 * chance.random() ** 4)] for _ in range(8)] for n in range(count)}
    store.save(
        Record(id=name, content=" ".join(words), scope=f"/s{n % 10}", embedding=pack([1.0]))
        for n, (name, words) in enumerate(contents.items())
    )
    return {name: set(words) for name, words in contents.items()}


@pytest.mark.parametrize("scope", [None, "/s3"])
def test_each_record_with_any_of_the_words_is_found_in_a_space_without_common_ones(
    database: Path, scope: str | None
) -> None:
    with walpool.memory.open(database) as store:
        words = filled(store, 600)
        for text in ("word0 word5 word150", "word199 word3", "word100"):
            wanted = set(text.split())
            expected = {
                name for n, (name, own) in enumerate(words.items()) if own & wanted and (not scope or n % 10 == 3)
            }
            hits = store.search(pack([1.0]), Query(scope=scope), text=text, limit=1_000, weights=ONLY_WORDS)
            assert {hit.record.id for hit in hits if hit.why.words_rank is not None} == expected
            both = {name for name in expected if wanted <= words[name]}
            assert set(ids(store.search(query=Query(scope=scope), text=text, limit=1_000))) == both


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bound in {"_RARE": 20, "_ROOM": 40, "_LATEST": 15, "_READ": 30}.items():
        monkeypatch.setattr(matches, name, bound)


@pytest.mark.usefixtures("small_bounds")
def test_rare_words_find_all_their_records_and_common_ones_count_there(database: Path) -> None:
    with walpool.memory.open(database) as store:
        words = filled(store, 600)
        rare = next(word for word in reversed(VOCABULARY) if 10 <= sum(word in own for own in words.values()) <= 20)
        having = {name for name, own in words.items() if rare in own}
        hits = store.search(pack([1.0]), text=f"word0 word1 {rare}", limit=5, weights=ONLY_WORDS)
        assert set(ids(hits)) <= having
        both = {name for name in having if words[name] & {"word0", "word1"}}
        assert set(ids(hits[: min(len(both), 5)])) <= both


@pytest.mark.usefixtures("small_bounds")
def test_text_of_common_words_alone_finds_what_was_saved_last(database: Path) -> None:
    with walpool.memory.open(database) as store:
        words = filled(store, 600)
        hits = store.search(pack([1.0]), text="word0 word1 word2 word3", limit=10, weights=ONLY_WORDS)
        found = [hit for hit in hits if hit.why.words_rank is not None]
        assert len(found) == 10
        assert all(words[hit.record.id] & {"word0", "word1", "word2", "word3"} for hit in found)


@pytest.mark.usefixtures("small_bounds")
def test_all_of_the_words_find_every_record_however_common_they_are(database: Path) -> None:
    with walpool.memory.open(database) as store:
        words = filled(store, 600)
        expected = {name for name, own in words.items() if {"word0", "word1"} <= own}
        assert len(expected) > 20
        assert set(ids(store.search(text="word0 word1", limit=1_000))) == expected


def test_frequency_of_a_common_word_is_told_from_its_last_records(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = []
    for bound in (1_000, 50):
        monkeypatch.setattr(matches, "_RARE", bound)
        with walpool.memory.open(database, collection=str(bound)) as store:
            filled(store, 600)
            scores.append(store.search(text="word0")[0].score)
    exact, estimated = scores
    assert estimated == pytest.approx(exact, rel=0.15)


def test_long_content_is_found_and_ranked_by_its_end(database: Path) -> None:
    with walpool.memory.open(database) as store:
        store.save([Record(id="long", content="x " * 20_000 + "needle"), Record(id="short", content="needle")])
        hits = store.search(text="needle")
        assert ids(hits) == ["short", "long"]
        assert hits[1].snippet is not None
        assert "[needle]" in hits[1].snippet


def test_damaged_word_index_is_found_and_mended(database: Path) -> None:
    with walpool.memory.open(database) as store:
        filled(store, 20)
        assert store.check() == []
        store.pool.execute("INSERT INTO memory_words (memory_words) VALUES ('delete-all')")  # type: ignore[attr-defined]
        assert store.check() == ["memory_words: the word index differs from the contents of the records"]
        assert store.search(text="word0") == []
        store.rebuild()
        assert store.check() == []
        assert store.search(text="word0") != []
