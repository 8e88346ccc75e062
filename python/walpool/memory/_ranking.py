"""How well a content goes with words, and joining what words and an embedding found; pure, knows no database.

Reciprocal-rank fusion: it needs ranks alone, which no two measures disagree about.
Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
SIGIR 2009. https://doi.org/10.1145/1571941.1572114
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from math import log1p
from typing import Final, NamedTuple

from walpool.memory.records import Explanation, Weights

__all__ = ["Facts", "Found", "Ranked", "bm25", "join", "rank", "rarity"]

_K: Final = 60  # how little the first ranks differ; the paper's own value
_K1: Final = 1.2  # how soon repetition tires, and
_B: Final = 0.75  # how much length counts; FTS5's own values
_MICROSECOND: Final = timedelta(microseconds=1)


class Found(NamedTuple):
    """Where a record stood in the lists that a search went by; None: it was not in that list, or there was none."""

    key: int
    vector_rank: int | None = None
    """1 for the nearest."""
    words_rank: int | None = None
    """1 for the best match."""
    words_score: float | None = None


class Facts(NamedTuple):
    """What a hybrid search knows of a record."""

    created_at: int
    """Microseconds since 1970."""
    importance: float


class Ranked(NamedTuple):
    """A record with its score, and what that is made of; None for what a search did not go by."""

    found: Found
    score: float
    relevance: float | None = None
    recency: float | None = None
    importance: float | None = None

    def explain(self, vector_score: float | None) -> Explanation:
        """Return the explanation of the score; the nearness is left out where the embedding did not find it."""
        found = self.found
        return Explanation(
            vector_rank=found.vector_rank,
            vector_score=None if found.vector_rank is None else vector_score,
            words_rank=found.words_rank,
            words_score=found.words_score,
            relevance=self.relevance,
            recency=self.recency,
            importance=self.importance,
        )


def join(vector: Iterable[int], words: Iterable[tuple[int, float]]) -> list[Found]:
    """Return each record of two lists once, with its rank in each; by key.

    Args:
        vector: the keys that the embedding found, best first.
        words: (key, score) of what the words found, best first.
    """
    near = {key: rank for rank, key in enumerate(vector, 1)}
    matched = {key: (rank, score) for rank, (key, score) in enumerate(words, 1)}
    found = []
    for key in sorted(near.keys() | matched.keys()):
        words_rank, words_score = matched.get(key, (None, None))
        found.append(Found(key, near.get(key), words_rank, words_score))
    return found


def rank(found: Iterable[Found], facts: Mapping[int, Facts], weights: Weights, now: int) -> list[Ranked]:
    """Return the records in the order of a hybrid search: by falling score, ties by key.

    Args:
        found: the records, in any order; those that `facts` does not know are left out.
        facts: by key.
        weights: how much each part counts.
        now: when the search began, microseconds since 1970; a record from the future has no age.
    """
    ranked = [_scored(one, facts[one.key], weights, now) for one in found if one.key in facts]
    return sorted(ranked, key=lambda hit: (-hit.score, hit.found.key))


def rarity(records: float, having: float) -> float:
    """Return what a term is worth that `having` of `records` have; never nothing.

    The idf of BM25 as Lucene has it: that of FTS5 is next to nothing from half of the records on.
    """
    having = min(having, records)
    return log1p((records - having + 0.5) / (having + 0.5))


def bm25(rarities: Sequence[float], counts: Sequence[int], length: float) -> float:
    """Return how well a content goes with some terms: FTS5's formula, https://www.sqlite.org/fts5.html#the_bm25_function.

    Args:
        rarities: `rarity` of each term.
        counts: how often the content has each.
        length: of the content, over that of the usual one.
    """
    damped = _K1 * (1 - _B + _B * length)
    score = 0.0
    for worth, count in zip(rarities, counts, strict=True):
        if count:
            score += worth * count / (count + damped)
    return score * (_K1 + 1)


def _scored(found: Found, facts: Facts, weights: Weights, now: int) -> Ranked:
    relevance = _relevance(found, weights)
    age = max(now - facts.created_at, 0)
    recency = 0.5 ** (age / (weights.half_life / _MICROSECOND))
    score = weights.relevance * relevance + weights.recency * recency + weights.importance * facts.importance
    return Ranked(found, score, relevance, recency, facts.importance)


def _relevance(found: Found, weights: Weights) -> float:
    """Return the fused ranks over those of a record that is first in both lists: 0 to 1."""
    total = weights.vector + weights.words
    relevance = 0.0
    for weight, at in ((weights.vector, found.vector_rank), (weights.words, found.words_rank)):
        if at is not None:
            relevance += weight / total * ((_K + 1) / (_K + at))
    return min(relevance, 1.0)  # two halves of 1 may round to more
