"""How a hybrid search joins what the embedding and the words found."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walpool.memory import _ranking
from walpool.memory._ranking import Facts, Found
from walpool.memory.records import Explanation, Weights

DAY = 24 * 3600 * 1_000_000  # µs
NOW = 20_000 * DAY
DEFAULT = Weights()
NEW = Facts(NOW, 0.5)
SHARES = st.floats(0, 10)
WEIGHTS = st.builds(
    Weights, vector=st.floats(0.01, 10), words=SHARES, relevance=SHARES, recency=SHARES, importance=SHARES,
    half_life=st.timedeltas(timedelta(microseconds=1), timedelta(days=10_000)),
)  # fmt: skip
FACTS = st.builds(Facts, created_at=st.integers(-NOW, 2 * NOW), importance=st.floats(0, 1))
RANKS = st.none() | st.integers(1, 10_000)


def scores(found: list[Found], weights: Weights = DEFAULT, facts: Facts = NEW) -> dict[int, float]:
    ranked = _ranking.rank(found, dict.fromkeys((one.key for one in found), facts), weights, NOW)
    return {hit.found.key: hit.score for hit in ranked}


def test_join_gives_each_record_its_ranks_and_scores() -> None:
    assert _ranking.join([7, 3], [(5, 4.0), (7, 2.0)]) == [Found(3, 2), Found(5, None, 1, 4.0), Found(7, 1, 2, 2.0)]


def test_score_is_explained_to_the_last_part() -> None:
    found = [Found(7, 1, 2, 2.0)]
    weights = Weights(vector=2, words=1, half_life=timedelta(days=10))
    (hit,) = _ranking.rank(found, {7: Facts(NOW - 20 * DAY, 0.5)}, weights, NOW)
    relevance = (2 / 61 + 1 / 62) / (3 / 61)
    assert hit.explain(0.9) == Explanation(
        vector_rank=1, vector_score=0.9, words_rank=2, words_score=2.0, relevance=pytest.approx(relevance),
        recency=0.25, importance=0.5,
    )  # fmt: skip
    assert hit.score == pytest.approx(0.5 * relevance + 0.3 * 0.25 + 0.2 * 0.5)


def test_record_that_is_first_in_both_lists_is_wholly_relevant() -> None:
    (hit,) = _ranking.rank([Found(1, 1, 1)], {1: Facts(NOW, 1.0)}, Weights(vector=0.7, words=0.1), NOW)
    assert (hit.relevance, hit.score) == (pytest.approx(1.0), pytest.approx(1.0))


def test_record_from_the_future_has_no_age() -> None:
    (hit,) = _ranking.rank([Found(1, 1)], {1: Facts(NOW + DAY, 0.0)}, Weights(), NOW)
    assert hit.recency == 1.0


def test_record_that_is_gone_is_left_out() -> None:
    assert _ranking.rank([Found(1, 1)], {}, Weights(), NOW) == []


def test_bm25_rises_with_what_is_rare_and_repeated_and_falls_with_length() -> None:
    rare, common = _ranking.rarity(1_000, 3), _ranking.rarity(1_000, 900)
    assert rare > common > 0
    assert _ranking.rarity(10, 12) == _ranking.rarity(10, 10) > 0
    assert _ranking.bm25([rare, common], [1, 0], 1.0) > _ranking.bm25([rare, common], [0, 1], 1.0)
    assert _ranking.bm25([rare], [2], 1.0) > _ranking.bm25([rare], [1], 1.0) > _ranking.bm25([rare], [1], 2.0)
    assert _ranking.bm25([rare], [0], 1.0) == 0
    assert _ranking.bm25([1.0], [1], 1.0) == pytest.approx(1.0)


def test_ties_are_in_order_of_key() -> None:
    assert list(scores([Found(3, 1, 2), Found(1, 2, 1), Found(2, 1, 2)])) == [1, 2, 3]


@given(vector=RANKS, words=RANKS, weights=WEIGHTS, facts=FACTS)
def test_score_lies_between_nothing_and_the_sum_of_the_weights(
    vector: int | None, words: int | None, weights: Weights, facts: Facts
) -> None:
    (score,) = scores([Found(1, vector, words)], weights, facts).values()
    total = weights.relevance + weights.recency + weights.importance
    assert 0 <= score <= total * (1 + 1e-12)


@given(vector=RANKS, words=RANKS, better=st.integers(1, 10_000), weights=WEIGHTS, facts=FACTS)
def test_better_rank_is_never_a_lower_score(
    vector: int | None, words: int | None, better: int, weights: Weights, facts: Facts
) -> None:
    if vector is None or better <= vector:
        both = scores([Found(1, vector, words), Found(2, better, words)], weights, facts)
        assert both[2] >= both[1]
    if words is None or better <= words:
        both = scores([Found(1, vector, words), Found(2, vector, better)], weights, facts)
        assert both[2] >= both[1]


@given(
    found=st.lists(st.builds(Found, st.integers(1, 50), RANKS, RANKS), unique_by=lambda one: one.key),
    seed=st.integers(),
)
def test_order_does_not_depend_on_the_order_of_the_lists(found: list[Found], seed: int) -> None:
    shuffled = random.Random(seed).sample(found, len(found))
    assert list(scores(shuffled).items()) == list(scores(found).items())
