"""What a search finds in PostgreSQL (`_search.Finder`), as operations; no I/O.

The server finds, by its index over words; the ranking is ours, as on SQLite: BM25 with the frequencies of the space,
of bounded cost. First by what each term is worth and the length of the content; then the best `_READ` (or as many as
are asked for) are read, and how often they have each term counts too.

**All the terms**: every record is found; of more than `_MOST` the ones saved last are ranked. **Any of the terms**: a
term is common if more than `_RARE` records of the space have it. Beginning with the rarest, the terms that are not
common find their records, until those are more than `_ROOM` together. The others find none of their own, but where
fewer than a page are found so: then the `_LATEST` records that have one of them and were saved last. Terms that are too
short for the index of trigrams find records only where the text has no others, as on SQLite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from walpool.memory import _postgres_sql as reads
from walpool.memory import _postgres_words as index
from walpool.memory import _words
from walpool.memory._operations import Given, Read, Search, Space, Steps, ask
from walpool.memory._postgres_filters import OWNER, Selection, among, select
from walpool.memory._postgres_words import Lookup
from walpool.memory._ranking import Facts, bm25, rarity
from walpool.memory._search import SCALE, Chosen, Finder, Matches, facts_by_key
from walpool.memory._words import Typed
from walpool.memory.records import Hits, Query, Record
from walpool.types import Row

__all__ = ["PostgresFinder"]

_RARE: Final = 1_000  # records
_ROOM: Final = 3_000
_LATEST: Final = 1_000
_MOST: Final = 4_000
_READ: Final = 100  # contents
_PART: Final = 4_000  # characters of a content in which terms are counted
_NEWEST: Final = 100  # records whose mean length is the usual one
_COUNTED: Final = 2_000  # records of a space; that there are more is known from its changes
_SHOWN: Final = 160  # characters of a snippet without a mark


class Ground(NamedTuple):
    """The space of a search, as its snapshot shows it."""

    space: Space
    dims: int | None
    epoch: int
    change: int
    records: int
    """How many there are; of more than `_COUNTED` at most so many."""
    length: float
    """Of a usual content, at least 1."""


class PostgresFinder(Finder[Ground]):
    """Full text for words, pgvector for embeddings."""

    def nearest(self, space: Space, asked: Search, embedding: bytes) -> Read[Hits] | Steps[Hits]:
        return reads.nearest(space, asked, embedding)

    def ground(self, space: Space) -> Read[Ground | None]:
        sql = f"""SELECT s.words, s.dims, s.epoch, s.change,
            (SELECT count(*) FROM (SELECT 1 FROM memory_records AS r WHERE {OWNER} LIMIT {_COUNTED + 1}) AS found),
            (SELECT avg(CAST(length AS DOUBLE PRECISION)) FROM (SELECT r.length FROM memory_records AS r WHERE {OWNER}
                ORDER BY r.key DESC LIMIT {_NEWEST}) AS newest)
            FROM memory_spaces AS s WHERE s.tenant = ?1 AND s.collection = ?2"""

        def decode(rows: list[Row]) -> Ground | None:
            if not rows:
                return None
            words, dims, epoch, change, records, length = rows[0]
            records = records if records <= _COUNTED else max(records, change)
            return Ground(space._replace(words=words), dims, epoch, change, records, max(length or 0.0, 1.0))

        return Read(sql, space[:2], decode)

    def narrowed(self, space: Space, query: Query) -> Steps[Sequence[int] | None]:
        given = Given(space)
        selection = select(space, query, given)
        return (yield from reads.keys(given, selection)) if selection.python else None

    def of_query(self, ground: Ground, chosen: Chosen, query: str, *, depth: int) -> Steps[Matches]:
        given = Given(chosen.space)
        mark, raw = (f"CAST({given(text)} AS TSQUERY)" for text in index.raw(ground.space, query))
        sql = f"""SELECT r.key, ts_rank(r.words, {raw}) AS score FROM memory_records AS r
            WHERE {_where(chosen, given)} AND r.words @@ ({mark} && {raw}) AND numnode({raw}) > 0
            ORDER BY score DESC, r.key LIMIT {given(depth)}"""
        rows = yield from ask(Read(sql, given.values, list))
        return _ordered([(key, round(score * SCALE)) for key, score in rows], depth)

    def all_of(self, ground: Ground, chosen: Chosen, typed: Typed, *, depth: int) -> Steps[Matches]:
        having = yield from _frequencies(ground, typed)
        every = (1 << len(typed.terms)) - 1
        found = yield from _found(chosen, [(every, index.every(ground.space, typed), _MOST)])
        return (yield from _ranked(ground, typed, having, found, depth))

    def any_of(self, ground: Ground, chosen: Chosen, typed: Typed, *, depth: int, enough: int) -> Steps[Matches]:
        having = yield from _frequencies(ground, typed)
        lookups = index.either(ground.space, typed)
        looks: list[_Look] = []
        others: list[_Look] = []
        room = float(_ROOM)
        known = [term for term, lookup in enumerate(lookups) if lookup.is_indexed] or range(len(lookups))
        for number, term in sorted((having[term], term) for term in known):
            if number <= _RARE and (number <= room or not looks):
                looks.append((1 << term, lookups[term], _RARE))
                room -= number
            else:
                others.append((1 << term, lookups[term], _LATEST))
        found = yield from _found(chosen, looks)
        if len(found) < enough and others:
            for key, (terms, length) in (yield from _found(chosen, others[:3])).items():
                found[key] = (found[key][0] | terms if key in found else terms, length)
        return (yield from _ranked(ground, typed, having, found, depth))

    def near(self, asked: Search, embedding: bytes, chosen: Chosen, depth: int) -> Steps[list[int]]:
        given = Given(chosen.space)
        best = reads.nearest_keys(given, _selection(chosen, given), asked, embedding, depth)
        return (yield from ask(Read(best, given.values, lambda rows: [row[0] for row in rows])))

    def facts(self, space: Space, keys: Sequence[int], change: int) -> Read[dict[int, Facts]]:
        given = Given(space)
        sql = f"""SELECT r.key, r.created_at, r.importance FROM memory_records AS r
            WHERE {OWNER} AND {among(keys, given)} AND r.change <= {given(change)}"""
        return Read(sql, given.values, facts_by_key)

    def shown(self, space: Space, asked: Search, keys: Sequence[int]) -> Read[dict[int, tuple[Record, float | None]]]:
        given = Given(space)
        near = "NULL" if asked.embedding is None else reads.score(asked.metric, asked.embedding, given)
        sql = f"""SELECT {reads.COLUMNS}, r.key, {near} FROM memory_records AS r {reads.JOINED}
            WHERE {OWNER} AND {among(keys, given)}"""
        return Read(sql, given.values, lambda rows: {row[-2]: (reads.record(row), row[-1]) for row in rows})

    def snippets(
        self, ground: Ground, asked: Search, typed: Typed | None, hits: Sequence[tuple[int, Record]]
    ) -> Steps[dict[int, str]]:
        if typed is None and asked.fts is not None:
            _, raw = index.raw(ground.space, asked.fts)
            query = yield from ask(Read("SELECT CAST(CAST(?1 AS TSQUERY) AS TEXT)", (raw,), lambda rows: rows[0][0]))
            typed = index.lexemes(query, "trigram" if ground.space.words == "trigram" else "unicode61")
        found = {}
        for key, record in hits:
            marked = None if typed is None else _words.excerpt(typed, record.content, asked.marks)
            is_longer = len(record.content) > _SHOWN
            found[key] = record.content[:_SHOWN] + "…" * is_longer if marked is None else marked
        return found


_Look = tuple[int, Lookup, int]  # which terms a record has that it finds, as bits; what it looks for; most records


def _selection(chosen: Chosen, given: Given) -> Selection:
    if chosen.narrowed is not None:
        return Selection((among(chosen.narrowed, given),))
    return replace(select(chosen.space, chosen.query, given), python={})


def _where(chosen: Chosen, given: Given) -> str:
    return _selection(chosen, given).where


def _frequencies(ground: Ground, typed: Typed) -> Steps[list[float]]:
    """Return the read of how many records have each term; of what more than `_RARE` have, about how many."""
    lookups = index.alone(ground.space, typed)
    given = Given(ground.space)
    looks = [
        f"(SELECT count(*) FROM (SELECT 1 FROM memory_records AS r WHERE {OWNER} AND {lookup.where(given)}"
        f" LIMIT {_RARE + 1}) AS found)"
        for lookup in lookups
    ]
    having: list[float] = yield from ask(Read(f"SELECT {', '.join(looks)}", given.values, lambda rows: list(rows[0])))
    common = [term for term, number in enumerate(having) if number > _RARE]
    if common:
        given = Given(ground.space)
        shares = [f"avg(CASE WHEN {lookups[term].where(given)} THEN 1.0 ELSE 0.0 END)" for term in common]
        sql = f"""SELECT {", ".join(f"CAST({share} AS DOUBLE PRECISION)" for share in shares)} FROM (SELECT *
            FROM memory_records AS r WHERE {OWNER} ORDER BY r.key DESC LIMIT {_LATEST}) AS r"""
        for term, share in zip(common, (yield from ask(Read(sql, given.values, lambda rows: rows[0]))), strict=True):
            having[term] = max(having[term], share * ground.records)
    return having


def _found(chosen: Chosen, looks: Sequence[_Look]) -> Steps[dict[int, tuple[int, int]]]:
    """Return the read of what is found: by key, the terms that it has, as bits, and its length."""
    found: dict[int, tuple[int, int]] = {}
    if not looks:
        return found
    given = Given(chosen.space)
    where = _where(chosen, given)
    sql = " UNION ALL ".join(
        f"""(SELECT CAST({number} AS INTEGER), r.key, r.length FROM memory_records AS r
        WHERE {where} AND {lookup.where(given)} ORDER BY r.key DESC LIMIT {most})"""
        for number, (_, lookup, most) in enumerate(looks)
    )
    for number, key, length in (yield from ask(Read(sql, given.values, list))):
        terms = looks[number][0]
        found[key] = (found[key][0] | terms if key in found else terms, length)
    return found


def _ranked(
    ground: Ground, typed: Typed, having: list[float], found: dict[int, tuple[int, int]], depth: int
) -> Steps[Matches]:
    rarities = [rarity(ground.records, number) for number in having]
    usual = ground.length

    def promise(terms: int, length: int) -> float:
        worth = sum(value for term, value in enumerate(rarities) if terms >> term & 1)
        return -bm25((worth,), (1,), length / usual)

    promises = {kind: promise(*kind) for kind in set(found.values())}
    best = [key for _, key in sorted((promises[kind], key) for key, kind in found.items())[: max(depth, _READ)]]
    count = _words.counter(typed)
    given = Given(ground.space)
    sql = f"""SELECT r.key, substr(r.content, 1, {_PART}) FROM memory_records AS r
        WHERE {OWNER} AND {among(best, given)}"""
    scored = []
    for key, content in (yield from ask(Read(sql, given.values, list))) if best else []:
        terms, length = found[key]
        # The index knows better whether a term is there: the part that was read, or the folding, may not show it.
        counts = [number or terms >> term & 1 for term, number in enumerate(count(content))]
        scored.append((key, round(bm25(rarities, counts, length / usual) * SCALE)))
    return _ordered(scored, depth)


def _ordered(scored: Matches, depth: int) -> Matches:
    return sorted(scored, key=lambda one: (-one[1], one[0]))[:depth]
