"""Searching by an embedding, by words or by both, as operations (`_sqlite_rows`); no I/O.

A search with words ranks a window with its first page: the best `_pages.MOST_ENTRIES` hits at most, in a hybrid search
of lists that go five times as deep as a page, at least 50 records each. The token carries the rest of the window, so
the later pages keep the order of the first one, whatever is written meanwhile; a record that was changed since is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Final, get_args

from walpool.errors import DataError
from walpool.memory import _pages, _sqlite_matches, _words
from walpool.memory import _sqlite_sql as reads
from walpool.memory._pages import MOST_ENTRIES, Entry, WindowPage
from walpool.memory._ranking import Facts, Found, Ranked, join, rank
from walpool.memory._sqlite_filters import SPACE, Given, Selection, Space, encoded, micros, select
from walpool.memory._sqlite_matches import Chosen, Ground
from walpool.memory._sqlite_rows import COLUMNS, JOINED, Read, Steps, ask, record
from walpool.memory._sqlite_sql import SCORES, Search
from walpool.memory._words import Typed
from walpool.memory.records import DimsError, Hit, Hits, Mode
from walpool.types import Row

__all__ = ["search"]

_DEEPER: Final = 5  # times a page
_LEAST: Final = 50  # records
_THOUSANDTHS: Final = 1_000


def search(space: Space, asked: Search) -> Steps[Hits]:
    """Return the reads of a search, by what it goes by.

    Raises:
        DataError: it lacks what its mode needs, or has two texts; see `MemoryStore.search`.
    """
    if asked.text is not None and asked.fts is not None:
        raise DataError("a search takes `text` or `fts`, not both")
    mode = asked.mode if asked.mode is not None else _mode(asked)
    if mode not in get_args(Mode):
        raise DataError(f"the mode of a search is one of {', '.join(get_args(Mode))}")
    if asked.metric not in SCORES:
        raise DataError(f"the metric of a search is one of {', '.join(SCORES)}")
    if mode != "vector" and asked.text is None and asked.fts is None:
        raise DataError(f"a search by {mode} needs a text")
    if mode == "words":
        asked = replace(asked, embedding=None)
    elif asked.embedding is None:
        raise DataError(f"a search by {mode} needs an embedding")
    elif mode == "vector":
        return reads.nearest(space, asked, asked.embedding)
    is_any = mode == "hybrid"
    typed = None if asked.text is None else _words.parse(asked.text, _tokenizer(space), any_part=is_any)
    return _window(space, asked, typed)


def _mode(asked: Search) -> Mode:
    if asked.text is None and asked.fts is None:
        return "vector"
    return "words" if asked.embedding is None else "hybrid"


def _tokenizer(space: Space) -> _words.Tokenizer:
    return "trigram" if space.words == "trigram" else "unicode61"


def _window(space: Space, asked: Search, typed: Typed | None) -> Steps[Hits]:
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
    ground = yield from ask(_sqlite_matches.ground(space))
    if ground is None:
        return Hits()
    if asked.embedding is not None and ground.dims is not None and ground.dims * 4 != len(asked.embedding):
        raise DimsError(stored=ground.dims, given=len(asked.embedding) // 4)
    if page is None:
        page, ranked = yield from _first(ground, space, asked, typed)
    elif page.epoch != ground.epoch:
        raise reads.void()
    else:
        ranked = yield from _later(space, asked, page)
    return (yield from _hits(ground, space, asked, typed, page, ranked, bound))


def _first(ground: Ground, space: Space, asked: Search, typed: Typed | None) -> Steps[tuple[WindowPage, list[Ranked]]]:
    """Return the reads of a whole window, and the page that it would be carried on with."""
    now = micros(datetime.now(timezone.utc))
    given = Given(space)
    selection = select(asked.query, given)
    narrowed = (yield from reads.keys(given, selection)) if selection.python else None
    chosen = Chosen(space, asked.query, narrowed)
    depth = max(asked.limit, min(MOST_ENTRIES, max(_LEAST, _DEEPER * asked.limit)))
    if asked.fts is not None:
        matches = yield from _sqlite_matches.of_query(ground, chosen, asked.fts, depth=depth)
    elif typed is None:
        matches = []
    elif asked.embedding is None:
        matches = yield from _sqlite_matches.all_of(ground, chosen, typed, depth=depth)
    else:
        matches = yield from _sqlite_matches.any_of(ground, chosen, typed, depth=depth, enough=asked.limit)
    near: list[int] = []
    if asked.embedding is not None:
        near = yield from _near(asked, asked.embedding, chosen, depth)
    found = join(near, [(key, score / _THOUSANDTHS) for key, score in matches])
    page = WindowPage(ground.change, ground.epoch, now, ())
    ranked = yield from _ranked(space, asked, found, page)
    return page, [hit for hit in ranked if asked.min_score is None or hit.score >= asked.min_score]


def _later(space: Space, asked: Search, page: WindowPage) -> Steps[list[Ranked]]:
    found = [
        Found(e.key, e.vector_rank, e.words_rank, None if e.words_score is None else e.words_score / _THOUSANDTHS)
        for e in page.entries
    ]
    return (yield from _ranked(space, asked, found, page))


def _near(asked: Search, embedding: bytes, chosen: Chosen, depth: int) -> Steps[list[int]]:
    """Return the read of the keys of the nearest records, in order."""
    given = Given(chosen.space)
    selection = select(asked.query, given) if chosen.narrowed is None else Selection()
    narrowed = None if chosen.narrowed is None else list(chosen.narrowed)
    limit = min(depth, reads.MOST)
    best = reads.nearest_keys(given, selection, narrowed, given(embedding), asked.metric, limit, None)
    sql = f"SELECT value FROM json_each({best})"
    return (yield from ask(Read(sql, given.values, lambda rows: [row[0] for row in rows])))


def _ranked(space: Space, asked: Search, found: list[Found], page: WindowPage) -> Steps[list[Ranked]]:
    """Return the read that puts what was found in order, without what was changed since or is gone."""
    if asked.embedding is None:
        found.sort(key=lambda one: one.words_rank or 0)
    sql = f"""SELECT r.key, r.created_at, r.importance FROM json_each(?3) AS found
        CROSS JOIN memory_records AS r ON r.key = found.value WHERE r.space = {SPACE} AND {reads.unchanged("?4")}"""
    given = (*space[:2], encoded(one.key for one in found), page.change)

    def decode(rows: list[Row]) -> list[Ranked]:
        facts = {key: Facts(created, importance) for key, created, importance in rows}
        if asked.embedding is not None:
            return rank(found, facts, asked.weights, page.now)
        return [Ranked(one, one.words_score or 0.0) for one in found if one.key in facts]

    return (yield from ask(Read(sql, given, decode)))


def _hits(
    ground: Ground,
    space: Space,
    asked: Search,
    typed: Typed | None,
    page: WindowPage,
    ranked: list[Ranked],
    bound: bytes,
) -> Steps[Hits]:
    """Return the reads of one page of hits, the first ones of those that are ranked."""
    shown, rest = ranked[: asked.limit], ranked[asked.limit :][:MOST_ENTRIES]
    rows = yield from _rows(space, asked, [one.found.key for one in shown])
    hits = Hits()
    for one in shown:
        *columns, near = rows[one.found.key]
        found = record(tuple(columns))
        snippet = None if typed is None else _words.excerpt(typed, found.content, asked.marks)
        hits.append(Hit(found, one.score, one.explain(near), snippet))
    # Of a raw query, or where the excerpt did not see what the index did.
    match = asked.fts if typed is None else _words.anything(typed)
    unmarked = [number for number, hit in enumerate(hits) if hit.snippet is None and hit.why.words_rank is not None]
    if match is not None and unmarked:
        keys = [shown[number].found.key for number in unmarked]
        marked = yield from ask(_sqlite_matches.snippets(ground, match, keys, asked.marks))
        for number, key in zip(unmarked, keys, strict=True):
            hits[number] = replace(hits[number], snippet=marked.get(key))
    if rest:
        hits.next = _pages.encode(page._replace(entries=tuple(map(_entry, rest))), bound)
    return hits


def _rows(space: Space, asked: Search, keys: Sequence[int]) -> Steps[dict[int, Row]]:
    """Return the read of the columns of some records and their nearness, by key."""
    given = Given(space)
    near = "NULL" if asked.embedding is None else SCORES[asked.metric].format(query=given(asked.embedding))
    sql = f"""SELECT r.key, {COLUMNS}, {near} FROM json_each({given(encoded(keys))}) AS shown
        CROSS JOIN memory_records AS r ON r.key = shown.value {JOINED}"""
    return (yield from ask(Read(sql, given.values, lambda rows: {row[0]: row[1:] for row in rows})))


def _entry(hit: Ranked) -> Entry:
    found = hit.found
    score = None if found.words_score is None else round(found.words_score * _THOUSANDTHS)
    return Entry(found.key, found.vector_rank, found.words_rank, score)
