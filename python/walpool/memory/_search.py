"""Searching by an embedding, by words or by both, as operations (`_operations`); the same on every backend, no I/O.

A search with words ranks a window with its first page: the best `_pages.MOST_ENTRIES` hits at most, in a hybrid search
of lists that go five times as deep as a page, at least 50 records each. The token carries the rest of the window, so
the later pages keep the order of the first one, whatever is written meanwhile; a record that was changed since is left
out. What a backend finds, and how, is its `Finder`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final, Generic, Protocol, TypeVar, get_args

from walpool.errors import DataError
from walpool.memory import _pages, _words
from walpool.memory._operations import MOST, Read, Search, Space, Steps, ask
from walpool.memory._pages import MOST_ENTRIES, Entry, WindowPage
from walpool.memory._ranking import Facts, Found, Ranked, join, rank
from walpool.memory._rows import micros
from walpool.memory._words import Typed
from walpool.memory.records import DimsError, Hit, Hits, Metric, Mode, Query, Record, packed
from walpool.types import Row

__all__ = ["SCALE", "Chosen", "Finder", "Ground", "Matches", "facts_by_key"]

SCALE: Final = 1_000
"""Scores of words are whole thousandths, so that a page token holds them exactly."""
_DEEPER: Final = 5  # times a page
_LEAST: Final = 50  # records

Matches = list[tuple[int, int]]
"""(key, score in thousandths) of what words found, best first."""


class Ground(Protocol):
    """The space of a search, as its snapshot shows it."""

    @property
    def dims(self) -> int | None: ...

    @property
    def epoch(self) -> int: ...

    @property
    def change(self) -> int:
        """The latest."""
        ...


G = TypeVar("G", bound=Ground)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which records may be found."""

    space: Space
    query: Query
    narrowed: Sequence[int] | None = None
    """The keys, where Python had to compare."""


class Finder(ABC, Generic[G]):
    """What a backend finds; `search` puts it together."""

    @abstractmethod
    def nearest(self, space: Space, asked: Search, embedding: bytes) -> Read[Hits] | Steps[Hits]:
        """Return the reads of a page of the records nearest to an embedding."""

    @abstractmethod
    def ground(self, space: Space) -> Read[G | None]:
        """Return the read of what a search has to know of the space; None as long as nothing was saved."""

    @abstractmethod
    def narrowed(self, space: Space, query: Query) -> Steps[Sequence[int] | None]:
        """Return the read of the keys that may be found, where Python has to compare; else of None."""

    @abstractmethod
    def of_query(self, ground: G, chosen: Chosen, query: str, *, depth: int) -> Steps[Matches]:
        """Return the reads of the `depth` best records for a query in the backend's own syntax."""

    @abstractmethod
    def all_of(self, ground: G, chosen: Chosen, typed: Typed, *, depth: int) -> Steps[Matches]:
        """Return the reads of the `depth` best records that have all the terms."""

    @abstractmethod
    def any_of(self, ground: G, chosen: Chosen, typed: Typed, *, depth: int, enough: int) -> Steps[Matches]:
        """Return the reads of the `depth` best records that have any of the terms.

        Args:
            ground: the space.
            chosen: which records may be found.
            typed: the terms.
            depth: at most this many.
            enough: with fewer records than this, common terms find some too.
        """

    @abstractmethod
    def near(self, asked: Search, embedding: bytes, chosen: Chosen, depth: int) -> Steps[list[int]]:
        """Return the read of the keys of the nearest records, in order."""

    @abstractmethod
    def facts(self, space: Space, keys: Sequence[int], change: int) -> Read[dict[int, Facts]]:
        """Return the read of what ranking needs of the records that are as they were at a change, by key."""

    @abstractmethod
    def shown(self, space: Space, asked: Search, keys: Sequence[int]) -> Read[dict[int, tuple[Record, float | None]]]:
        """Return the read of some records and their nearness, by key."""

    @abstractmethod
    def snippets(
        self, ground: G, asked: Search, typed: Typed | None, hits: Sequence[tuple[int, Record]]
    ) -> Steps[dict[int, str]]:
        """Return the reads of snippets by key, of a raw query or where `_words.excerpt` did not see a term."""

    def search(self, space: Space, asked: Search) -> Read[Hits] | Steps[Hits]:
        """Return the reads of a search, by what it goes by.

        Raises:
            DataError: it lacks what its mode needs, or has two texts; see `MemoryStore.search`.
        """
        if asked.text is not None and asked.fts is not None:
            raise DataError("a search takes `text` or `fts`, not both")
        mode = asked.mode if asked.mode is not None else _mode(asked)
        if mode not in get_args(Mode):
            raise DataError(f"the mode of a search is one of {', '.join(get_args(Mode))}")
        if asked.metric not in get_args(Metric):
            raise DataError(f"the metric of a search is one of {', '.join(get_args(Metric))}")
        if mode != "vector" and asked.text is None and asked.fts is None:
            raise DataError(f"a search by {mode} needs a text")
        if mode == "words":
            asked = replace(asked, embedding=None)
        elif asked.embedding is None:
            raise DataError(f"a search by {mode} needs an embedding")
        else:
            embedding = packed(asked.embedding)
            if mode == "vector":
                return self.nearest(space, asked, embedding)
            asked = replace(asked, embedding=embedding)
        is_any = mode == "hybrid"
        typed = None if asked.text is None else _words.parse(asked.text, _tokenizer(space), any_part=is_any)
        return self._window(space, asked, typed)

    def _window(self, space: Space, asked: Search, typed: Typed | None) -> Steps[Hits]:
        bound = _pages.fingerprint(
            "window",
            *space,
            asked.query,
            asked.embedding,
            asked.text,
            asked.fts,
            asked.metric,
            asked.weights,
            asked.min_score,
        )
        page = None if asked.after is None else _pages.decode(asked.after, WindowPage, bound)
        ground = yield from ask(self.ground(space))
        if ground is None:
            return Hits()
        if asked.embedding is not None and ground.dims is not None and ground.dims * 4 != len(asked.embedding):
            raise DimsError(stored=ground.dims, given=len(asked.embedding) // 4)
        if page is None:
            page, ranked = yield from self._first(ground, space, asked, typed)
        elif page.epoch != ground.epoch:
            raise _pages.void()
        else:
            ranked = yield from self._ranked(space, asked, list(map(_found, page.entries)), page)
        return (yield from self._hits(ground, space, asked, typed, page, ranked, bound))

    def _first(
        self, ground: G, space: Space, asked: Search, typed: Typed | None
    ) -> Steps[tuple[WindowPage, list[Ranked]]]:
        """Return the reads of a whole window, and the page that it would be carried on with."""
        now = micros(datetime.now(timezone.utc))
        chosen = Chosen(space, asked.query, (yield from self.narrowed(space, asked.query)))
        depth = min(max(asked.limit, min(MOST_ENTRIES, max(_LEAST, _DEEPER * asked.limit))), MOST)
        if asked.fts is not None:
            matches = yield from self.of_query(ground, chosen, asked.fts, depth=depth)
        elif typed is None:
            matches = []
        elif asked.embedding is None:
            matches = yield from self.all_of(ground, chosen, typed, depth=depth)
        else:
            matches = yield from self.any_of(ground, chosen, typed, depth=depth, enough=asked.limit)
        near: list[int] = []
        if asked.embedding is not None:
            near = yield from self.near(asked, asked.embedding, chosen, depth)
        found = join(near, [(key, score / SCALE) for key, score in matches])
        page = WindowPage(ground.change, ground.epoch, now, ())
        ranked = yield from self._ranked(space, asked, found, page)
        return page, [hit for hit in ranked if asked.min_score is None or hit.score >= asked.min_score]

    def _ranked(self, space: Space, asked: Search, found: list[Found], page: WindowPage) -> Steps[list[Ranked]]:
        """Return the read that puts what was found in order, without what was changed since or is gone."""
        if asked.embedding is None:
            found.sort(key=lambda one: one.words_rank or 0)
        facts = yield from ask(self.facts(space, [one.key for one in found], page.change))
        if asked.embedding is not None:
            return rank(found, facts, asked.weights, page.now)
        return [Ranked(one, one.words_score or 0.0) for one in found if one.key in facts]

    def _hits(
        self,
        ground: G,
        space: Space,
        asked: Search,
        typed: Typed | None,
        page: WindowPage,
        ranked: list[Ranked],
        bound: bytes,
    ) -> Steps[Hits]:
        """Return the reads of one page of hits, the first ones of those that are ranked."""
        ranked_here, rest = ranked[: asked.limit], ranked[asked.limit :][:MOST_ENTRIES]
        rows = yield from ask(self.shown(space, asked, [one.found.key for one in ranked_here]))
        hits = Hits()
        for one in ranked_here:
            found, near = rows[one.found.key]
            snippet = None if typed is None else _words.excerpt(typed, found.content, asked.marks)
            hits.append(Hit(found, one.score, one.explain(near), snippet))
        unmarked = [
            (number, one.found.key)
            for number, one in enumerate(ranked_here)
            if hits[number].snippet is None and one.found.words_rank is not None
        ]
        if unmarked:
            records = [(key, hits[number].record) for number, key in unmarked]
            marked = yield from self.snippets(ground, asked, typed, records)
            for number, key in unmarked:
                hits[number] = replace(hits[number], snippet=marked.get(key))
        if rest:
            hits.next = _pages.encode(page._replace(entries=tuple(map(_entry, rest))), bound)
        return hits


def facts_by_key(rows: list[Row]) -> dict[int, Facts]:
    """Return the facts of rows (key, created_at, importance)."""
    return {key: Facts(created, importance) for key, created, importance in rows}


def _mode(asked: Search) -> Mode:
    if asked.text is None and asked.fts is None:
        return "vector"
    return "words" if asked.embedding is None else "hybrid"


def _tokenizer(space: Space) -> _words.Tokenizer:
    return "trigram" if space.words == "trigram" else "unicode61"


def _entry(hit: Ranked) -> Entry:
    found = hit.found
    score = None if found.words_score is None else round(found.words_score * SCALE)
    return Entry(found.key, found.vector_rank, found.words_rank, score)


def _found(entry: Entry) -> Found:
    score: Any = entry.words_score
    return Found(entry.key, entry.vector_rank, entry.words_rank, None if score is None else score / SCALE)
