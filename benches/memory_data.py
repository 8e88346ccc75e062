"""Seeded memories for the stores of agents, and the exact answers to questions about them. Knows no contender.

Records come in blocks, each from a seed of its own: a million of them never lie in memory together, and a smaller
corpus is the beginning of a larger one.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from benches.data import SEED

BLOCK = 1_000  # records
CLUSTERS = 64
TEAMS, AGENTS = 10, 20  # scopes: /crew, the teams below it, and 200 agents below those, where the records are
CATEGORIES = tuple(f"category-{number:02}" for number in range(20))
EACH = 2  # categories of a record
TIERS = {"gold": 0.01, "silver": 0.10}  # a metadata value, and its share of the records; the others are "plain"
WORDS, WORDS_EACH = 20_000, 53  # of the vocabulary; of a content, which has about 300 characters then
TIE = 1e-6  # two scores as near as float32 can tell

_BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Item:
    """One memory, as every contender is to store it."""

    number: int
    content: str
    scope: str
    categories: tuple[str, ...]
    tier: str
    importance: float
    vector: Any  # float32, shape (dims,), of length 1

    @property
    def id(self) -> str:
        return f"record-{self.number}"

    @property
    def metadata(self) -> dict[str, Any]:
        return {"tier": self.tier, "run": self.number % 97, "tool": "search", "confirmed": self.number % 3 == 0}

    @property
    def created_at(self) -> datetime:
        return _BEGIN + timedelta(seconds=self.number)


@dataclass(frozen=True)
class Selection:
    """Which memories a search is to look at."""

    name: str
    scope: str | None = None  # this one and those below
    tier: str | None = None

    def takes(self, item: Item) -> bool:
        in_scope = self.scope is None or f"{item.scope}/".startswith(f"{self.scope}/")
        return in_scope and self.tier in (None, item.tier)


def scope_of(place: int) -> str:
    """Return the scope of an agent, 0 to 199."""
    return f"/crew/team-{place // AGENTS}/agent-{place % AGENTS:02}"


ALL = Selection("all")
WIDE = Selection("wide", scope="/crew")  # every record, but a store does not know that
NARROW = Selection("narrow", scope=scope_of(0))  # one of the 200
TENTH = Selection("10 %", tier="silver")
HUNDREDTH = Selection("1 %", tier="gold")
SELECTIONS = (ALL, WIDE, NARROW, TENTH, HUNDREDTH)


class Corpus(Protocol):
    """Memories, and questions that are none of them."""

    def __hash__(self) -> int:
        """Return a number, so that what is known of a corpus can be kept."""

    @property
    def name(self) -> str:
        """Return a word that no other corpus has."""

    @property
    def rows(self) -> int:
        """Return how many memories there are."""

    @property
    def dims(self) -> int:
        """Return the length of each vector."""

    def blocks(self) -> Iterator[list[Item]]:
        """Yield all memories in the order of their numbers, at most `BLOCK` at once."""

    def questions(self, count: int) -> Any:
        """Return vectors to search by: float32, shape (count, dims), each of length 1."""


@dataclass(frozen=True)
class Synthetic:
    """Unit vectors in loose clusters, as gaussian noise around gaussian centres, and made-up words."""

    rows: int
    dims: int = 1536

    @property
    def name(self) -> str:
        return f"synthetic-{self.dims}-{self.rows}"

    def blocks(self) -> Iterator[list[Item]]:
        for block in range(math.ceil(self.rows / BLOCK)):
            yield _block(self.dims, block)[: self.rows - block * BLOCK]

    def questions(self, count: int) -> Any:
        import numpy as np

        return clustered(np.random.default_rng([SEED, 0, 2]), count, self.dims)


@functools.lru_cache(maxsize=1)
def _block(dims: int, block: int) -> list[Item]:
    import numpy as np

    vectors = clustered(np.random.default_rng([SEED, block]), BLOCK, dims)
    return items(block, vectors, _contents(np.random.default_rng([SEED, block, 1]), BLOCK))


def clustered(rng: Any, count: int, dims: int) -> Any:
    """Return unit vectors around the centres that all corpora of these dims share: float32, shape (count, dims)."""
    import numpy as np

    vectors = rng.standard_normal((count, dims), dtype=np.float32)
    vectors += _centres(dims)[rng.integers(0, CLUSTERS, count)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@functools.lru_cache(maxsize=2)
def _centres(dims: int) -> Any:
    import numpy as np

    return np.random.default_rng(SEED).standard_normal((CLUSTERS, dims), dtype=np.float32)


def items(block: int, vectors: Any, contents: Sequence[str]) -> list[Item]:
    """Return a block of memories; where each belongs and how it is marked follows from the block's number."""
    import numpy as np

    rng = np.random.default_rng([SEED, block, 3])
    count = len(contents)
    places = rng.integers(0, TEAMS * AGENTS, BLOCK)[:count]
    marks = rng.random(BLOCK)[:count]
    first_of = rng.integers(0, len(CATEGORIES), BLOCK)[:count]
    importance = rng.random(BLOCK)[:count].round(2)
    if block == 0:
        places[0], marks[0] = 0, 0.0  # so that every selection finds something, however small the corpus
    return [
        Item(
            block * BLOCK + i,
            contents[i],
            scope_of(int(places[i])),
            tuple(CATEGORIES[(first_of[i] + 7 * j) % len(CATEGORIES)] for j in range(EACH)),
            _tier(marks[i]),
            float(importance[i]),
            vectors[i],
        )
        for i in range(count)
    ]


def _tier(mark: float) -> str:
    for tier, share in TIERS.items():
        if mark < share:
            return tier
        mark -= share
    return "plain"


@functools.lru_cache(maxsize=1)
def vocabulary() -> tuple[list[str], Any]:
    """Return made-up words and the cumulated chances of each: the n-th is drawn 1/n times as often as the first.

    The frequent ones are short; those of one length are mixed, or the frequent ones would all begin alike.
    """
    import numpy as np

    syllables = ["ba", "ke", "di", "no", "ru", "sa", "te", "li", "mo", "vu", "pa", "ge", "fi", "o", "en"]
    words: dict[str, None] = {}
    for length in (1, 2, 3, 4):
        made = {"".join(parts) for parts in itertools.product(syllables, repeat=length)}
        words.update(dict.fromkeys(sorted(made, key=lambda word: (zlib.crc32(word.encode()), word))))
    chances = 1 / np.arange(1, WORDS + 1)
    return list(words)[:WORDS], np.cumsum(chances / chances.sum())


def _contents(rng: Any, count: int) -> list[str]:
    import numpy as np

    words, cumulated = vocabulary()
    drawn = np.searchsorted(cumulated, rng.random((count, WORDS_EACH)) * cumulated[-1])
    return [" ".join([words[index] for index in row]) for row in drawn.tolist()]


def texts(corpus: Corpus, count: int) -> list[str]:
    """Return questions of 6 to 10 words, each out of one memory's content, in its order; that one has them all."""
    rng = random.Random(SEED)
    block = next(corpus.blocks())
    asked: list[str] = []
    while len(asked) < count:
        words = [word for word in rng.choice(block).content.split() if word.isalnum()]
        distinct = list(dict.fromkeys(word.lower() for word in words))
        if len(distinct) >= 10:
            chosen = sorted(rng.sample(range(len(distinct)), rng.randint(6, 10)))
            asked.append(" ".join(distinct[index] for index in chosen))
    return asked


@dataclass(frozen=True)
class Exact:
    """The exact answer to one question: whoever is as near as the last of the best is right too."""

    right: frozenset[int]  # numbers
    wanted: int  # hits, at most the limit

    def recall(self, found: Sequence[int]) -> float:
        """Return the share of the wanted hits that were found; 1 if there are none to find."""
        return min(1.0, len(self.right.intersection(found)) / self.wanted) if self.wanted else 1.0


@dataclass(frozen=True)
class Truth:
    """What is right for one corpus."""

    answers: Mapping[str, Sequence[Exact]]  # to each question, by selection
    members: Mapping[str, frozenset[int]]  # the numbers of the records in each selection but the whole

    def mistakes(self, selection: Selection, found: Sequence[int]) -> list[str]:
        """Return what no store may do, however near it only comes: a record twice, or one that was not selected."""
        mistakes = ["a record was found twice"] if len(set(found)) < len(found) else []
        members = self.members.get(selection.name)
        if members is not None and not members.issuperset(found):
            mistakes.append(f"a record was found that is not in the selection: {selection.name}")
        return mistakes


@functools.lru_cache(maxsize=2)
def truth(corpus: Corpus, count: int, limit: int) -> Truth:
    """Return the exact answers to the first `count` questions: cosines of all memories, in float64."""
    import numpy as np

    questions = corpus.questions(count).astype(np.float64).T
    best = {selection.name: _Best(count, 2 * limit) for selection in SELECTIONS}
    members: dict[str, set[int]] = {selection.name: set() for selection in SELECTIONS if selection is not ALL}
    for block in corpus.blocks():
        scores = np.stack([item.vector for item in block]).astype(np.float64) @ questions
        for selection in SELECTIONS:
            rows = [i for i, item in enumerate(block) if selection.takes(item)]
            numbers = [block[i].number for i in rows]
            best[selection.name].add(scores[rows].T, np.array(numbers, dtype=np.int64))
            if selection is not ALL:
                members[selection.name].update(numbers)
    answers = {name: found.exact(limit) for name, found in best.items()}
    return Truth(answers, {name: frozenset(numbers) for name, numbers in members.items()})


class _Best:
    """The best `keep` memories for each question, as blocks come by."""

    def __init__(self, count: int, keep: int) -> None:
        import numpy as np

        self._keep = keep
        self._scores = np.full((count, keep), -np.inf)
        self._numbers = np.full((count, keep), -1)

    def add(self, scores: Any, numbers: Any) -> None:
        import numpy as np

        scores = np.concatenate([self._scores, scores], axis=1)
        numbers = np.concatenate([self._numbers, np.broadcast_to(numbers, (len(scores), len(numbers)))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._keep]
        self._scores = np.take_along_axis(scores, order, axis=1)
        self._numbers = np.take_along_axis(numbers, order, axis=1)

    def exact(self, limit: int) -> list[Exact]:
        answers = []
        for scores, numbers in zip(self._scores, self._numbers, strict=True):
            wanted = min(limit, int((numbers >= 0).sum()))
            last = scores[wanted - 1] if wanted else 0.0
            answers.append(Exact(frozenset(numbers[(scores >= last - TIE) & (numbers >= 0)].tolist()), wanted))
        return answers
