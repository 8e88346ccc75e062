"""The records that go best with a text, as the reads of one snapshot: found by FTS5, ranked by BM25; no I/O.

FTS5's own `bm25()` takes 6 µs for each row that matches, 0.5 s for a word that 80,000 have, and counts the words of the
whole file: it would tell a tenant how common a word is with the others. So FTS5 finds, at 50 ns a row, within the keys
of the space alone, and the ranking is ours, of bounded cost, with the frequencies of the space. In two steps: first by
what each term is worth and the length of the content; then the best `_READ` (or as many as are asked for) are read, and
how often they have each term counts too.

**All the terms** (`all_of`): every record is found, whatever the conditions. Of more than `_MOST` the ones saved last
are ranked.

**Any of the terms** (`any_of`): a term is common if more than `_RARE` records of the space have it. Beginning with the
rarest, the terms that are not common find their records, all of them, until those are more than `_ROOM` together. The
other terms find none of their own, but count where a record has them. That loses nothing in a space of up to `_RARE`
records. In a larger one, a record is left out only if all that it has of the text are common words, or those that came
behind `_ROOM` records of rarer ones. Where fewer than a page are found so, as with a text of common words alone, two
more looks are taken, at the `_LATEST` records saved last each: those with the three rarest terms, and those with one
of the two rarest others. Counting stops at `_RARE`: how common a common word is, is told from how far back its last
`_RARE` records reach.

Measured over 100,000 contents of 250 characters (Zipf's law), with questions of 6 to 10 words of which half are common,
on a core with other work: 10 to 15 ms of the core, of which FTS5 takes half; by `bm25()` over all that match, 0.9 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from walpool.memory import _words
from walpool.memory._operations import Given, Read, Space, Steps, ask, encoded
from walpool.memory._ranking import bm25, rarity
from walpool.memory._search import SCALE, Chosen
from walpool.memory._sqlite_filters import KEY_BITS, SPACE, select
from walpool.memory._sqlite_words import TABLE_OF
from walpool.memory._words import Lookup, Tokenizer, Typed
from walpool.memory.records import Query
from walpool.types import Row

__all__ = ["Ground", "all_of", "any_of", "ground", "of_query", "snippets"]

_RARE: Final = 1_000  # records
_ROOM: Final = 3_000  # rows: 1 to 2 µs each, to look up their lengths and test the conditions
_LATEST: Final = 1_000
_TOGETHER: Final = 3  # terms: looking for more that are all common takes longer, and finds less
_MOST: Final = 4_000
_READ: Final = 100  # contents: 10 to 20 µs each
_PART: Final = 4_000  # characters of a content in which terms are counted
_NEWEST: Final = 100  # records whose mean length is the usual one
_SHORT: Final = 0.1  # of the records: how many are taken to have a term that is too short for the index
_TOKENS: Final = {"unicode61": 24, "trigram": 64}  # of a snippet: words, and characters


class Ground(NamedTuple):
    """The space of a search, as its snapshot shows it."""

    space: int
    words: Tokenizer
    dims: int | None
    epoch: int
    change: int
    """The latest in the file."""
    records: int
    first: int
    """Key."""
    last: int
    length: float
    """Tokens of a usual content, at least 1."""

    @property
    def table(self) -> str:
        """The word index."""
        return TABLE_OF[self.words]

    @property
    def keys(self) -> tuple[int, int]:
        """The lowest and the highest that a record of the space may have."""
        return (self.space - 1 << KEY_BITS) + 1, self.space << KEY_BITS


class _Arm(NamedTuple):
    """One of the looks into the index that make up a statement."""

    terms: int
    """Which ones a record has that is found here, as bits."""
    lookup: Lookup
    latest: int | None = None
    """How many rows of the index are looked at, of the records saved last; None: all of them."""
    most: int | None = None
    """How many records are taken of those that meet the conditions too, saved last; None: all of them."""


def ground(space: Space) -> Read[Ground | None]:
    """Return the read of what a search has to know of the space; None as long as nothing was saved."""
    first, last = f"(s.space - 1 << {KEY_BITS})", f"(s.space << {KEY_BITS})"
    own = f"FROM memory_records AS r WHERE r.key > {first} AND r.key <= {last}"
    newest = f"SELECT sz FROM {TABLE_OF[space.words]}_docsize WHERE id > {first} AND id <= {last} ORDER BY id DESC"
    sql = f"""SELECT s.space, s.words, s.dims, s.epoch, coalesce((SELECT max(change) FROM memory_sketches), 0),
        coalesce((SELECT sum(records) FROM memory_scopes AS c WHERE c.space = s.space), 0),
        coalesce((SELECT min(r.key) {own}), 0), coalesce((SELECT max(r.key) {own}), 0),
        (SELECT group_concat(hex(sz)) FROM ({newest} LIMIT {_NEWEST}))
        FROM memory_spaces AS s WHERE s.space = {SPACE}"""

    def decode(rows: list[Row]) -> Ground | None:
        if not rows:
            return None
        lengths = [_length(bytes.fromhex(size)) for size in (rows[0][-1] or "").split(",")]
        return Ground(*(*rows[0][:-1], max(sum(lengths) / len(lengths), 1.0)))

    return Read(sql, space[:2], decode)


def of_query(ground: Ground, chosen: Chosen, query: str, *, depth: int) -> Steps[list[tuple[int, int]]]:
    """Return the reads of the `depth` best records for a query in FTS5's syntax, ranked by its own `bm25()`.

    That reads every row that matches, and counts words in the whole file.
    """
    given = Given(chosen.space)
    table, keys = ground.table, " AND ".join(map(given, ground.keys))
    sql = f"""SELECT r.key, -w.rank FROM {table} AS w CROSS JOIN memory_records AS r ON r.key = w.rowid
        WHERE {table} MATCH {given(query)} AND w.rowid BETWEEN {keys} AND {_where(chosen, given) or "true"}
        ORDER BY w.rank, r.key LIMIT {given(depth)}"""
    rows = yield from ask(Read(sql, given.values, list))
    return _ordered([(key, round(score * SCALE)) for key, score in rows], depth)


def all_of(ground: Ground, chosen: Chosen, typed: Typed, *, depth: int) -> Steps[list[tuple[int, int]]]:
    """Return the reads of the `depth` best records that have all the terms: (key, score in thousandths), best first."""
    having = yield from _frequencies(ground, chosen.space, typed)
    every = (1 << len(typed.terms)) - 1
    found = yield from _found(ground, chosen, [_Arm(every, _words.every(typed), most=_MOST)])
    return (yield from _ranked(ground, typed, having, found, depth))


def any_of(ground: Ground, chosen: Chosen, typed: Typed, *, depth: int, enough: int) -> Steps[list[tuple[int, int]]]:
    """Return the reads of the `depth` best records that have any of the terms: (key, score in thousandths), best first.

    Args:
        ground: the space.
        chosen: which records may be found.
        typed: the terms.
        depth: at most this many.
        enough: with fewer records than this, common terms find some too.
    """
    having = yield from _frequencies(ground, chosen.space, typed)
    lookups = _words.either(typed)
    rarest = sorted((number, term) for term, number in enumerate(having) if lookups[term].match is not None)
    arms: list[_Arm] = []
    others: list[_Arm] = []
    room = float(_ROOM)
    for number, term in rarest:
        if number <= _RARE and (number <= room or not arms):
            arms.append(_Arm(1 << term, lookups[term]))
            room -= number
        else:
            others.append(_Arm(1 << term, lookups[term], latest=_LATEST))
    if not rarest:  # nothing but terms that the index does not know
        arms = [_Arm(1 << term, lookup, most=_LATEST) for term, lookup in enumerate(lookups)]
    found = yield from _found(ground, chosen, arms)
    if len(found) < enough and others:
        rarest_ones = Typed(tuple(typed.terms[term] for _, term in rarest[:_TOGETHER]), typed.excluded, typed.tokenizer)
        bits = sum(1 << term for _, term in rarest[:_TOGETHER])
        together = _Arm(bits, _words.every(rarest_ones), latest=_LATEST)
        for key, (terms, length) in (yield from _found(ground, chosen, [together, *others[:2]])).items():
            found[key] = (found[key][0] | terms if key in found else terms, length)
    return (yield from _ranked(ground, typed, having, found, depth))


def snippets(ground: Ground, match: str, keys: Sequence[int], marks: tuple[str, str]) -> Read[dict[int, str]]:
    """Return the read of the words that match in their surroundings, by key, where any do."""
    table = ground.table
    sql = f"""SELECT w.rowid, snippet({table}, 0, ?1, ?2, '…', {_TOKENS[ground.words]}) FROM {table} AS w
        WHERE {table} MATCH ?3 AND w.rowid IN (SELECT value FROM json_each(?4))"""
    return Read(sql, (*marks, match, encoded(keys)), dict)


def _where(chosen: Chosen, given: Given) -> str:
    """Return the condition on `memory_records AS r` and add its values; empty for all of the space's records."""
    if chosen.narrowed is not None:
        return f"r.key IN (SELECT value FROM json_each({given(encoded(chosen.narrowed))}))"
    return "" if chosen.query == Query() else select(chosen.query, given).where()


def _frequencies(ground: Ground, space: Space, typed: Typed) -> Steps[list[float]]:
    """Return the read of how many records have each term; of what more than `_RARE` have, about how many."""
    given = Given(space)
    table, keys = ground.table, " AND ".join(map(given, ground.keys))
    looks = [
        f"""SELECT {term}, count(*), min(key) FROM (SELECT rowid AS key FROM {table}
        WHERE {table} MATCH {given(lookup.match)} AND rowid BETWEEN {keys} ORDER BY rowid DESC LIMIT {_RARE + 1})"""
        for term, lookup in enumerate(_words.alone(typed))
        if lookup.match is not None
    ]
    having = [_SHORT * ground.records] * len(typed.terms)
    if looks:
        for term, number, first in (yield from ask(Read(" UNION ALL ".join(looks), given.values, list))):
            reach = (ground.last - first + 1) / (ground.last - ground.first + 1) if number > _RARE else 1.0
            having[term] = max(number, min(number / reach, ground.records))
    return having


def _found(ground: Ground, chosen: Chosen, arms: list[_Arm]) -> Steps[dict[int, tuple[int, bytes]]]:
    """Return the read of what is found: by key, the terms that it has, as bits, and its length (`_length`)."""
    given = Given(chosen.space)
    where = _where(chosen, given)
    keys = " AND ".join(map(given, ground.keys))
    looks = [_look(ground.table, arm, where, keys, given) for arm in arms]
    sql = " UNION ALL ".join(f"SELECT {number}, key, sz FROM ({look})" for number, look in enumerate(looks))
    found: dict[int, tuple[int, bytes]] = {}
    if looks:
        for number, key, length in (yield from ask(Read(sql, given.values, list))):
            terms = arms[number].terms
            found[key] = (found[key][0] | terms if key in found else terms, length)
    return found


def _look(table: str, arm: _Arm, where: str, keys: str, given: Given) -> str:
    """Return the SELECT of one look: key and sz."""
    lookup = arm.lookup
    order = "w.key"
    if lookup.match is None:
        matching = f"SELECT key FROM memory_records WHERE key BETWEEN {keys}"
    else:
        matching = (
            f"SELECT rowid AS key FROM {table} WHERE {table} MATCH {given(lookup.match)} AND rowid BETWEEN {keys}"
        )
    if arm.latest is not None:
        matching += f" ORDER BY rowid DESC LIMIT {arm.latest}"
    patterns = [" OR ".join(f"r.content LIKE {given(one)} ESCAPE '!'" for one in some) for some in lookup.like]
    patterns += [f"r.content NOT LIKE {given(one)} ESCAPE '!'" for one in lookup.unlike]
    conditions = [f"({condition})" for condition in (where, *patterns) if condition]
    source = f"({matching}) AS w" + (" CROSS JOIN memory_records AS r ON r.key = w.key" if conditions else "")
    limited = f" ORDER BY {order} DESC LIMIT {arm.most}" if arm.most is not None else ""
    return f"""SELECT w.key, d.sz FROM {source} CROSS JOIN {table}_docsize AS d ON d.id = w.key
        {"WHERE " if conditions else ""}{" AND ".join(conditions)}{limited}"""


def _ranked(
    ground: Ground, typed: Typed, having: list[float], found: dict[int, tuple[int, bytes]], depth: int
) -> Steps[list[tuple[int, int]]]:
    rarities = [rarity(ground.records, number) for number in having]
    usual = ground.length
    # Of the many records most are alike in this: as long, with the same terms.
    alike = set(found.values())
    worth = {
        terms: (sum(value for term, value in enumerate(rarities) if terms >> term & 1),)
        for terms in {terms for terms, _ in alike}
    }
    promises = {(terms, sz): -bm25(worth[terms], (1,), _length(sz) / usual) for terms, sz in alike}
    promising = [(promises[kind], key) for key, kind in found.items()]
    best = [key for _, key in sorted(promising)[: max(depth, _READ)]]
    count = _words.counter(typed)
    sql = f"""SELECT r.key, substr(r.content, 1, {_PART}) FROM json_each(?1) AS best
        CROSS JOIN memory_records AS r ON r.key = best.value"""
    scored = []
    for key, content in (yield from ask(Read(sql, (encoded(best),), list))):
        terms, sz = found[key]
        # The index knows better whether a term is there: the part that was read, or the folding, may not show it.
        counts = [number or terms >> term & 1 for term, number in enumerate(count(content))]
        scored.append((key, round(bm25(rarities, counts, _length(sz) / usual) * SCALE)))
    return _ordered(scored, depth)


def _length(size: bytes) -> int:
    """Return the tokens of a content of its `sz`, a varint: https://www.sqlite.org/fts5.html#fts5_data_structures."""
    tokens = 0
    for byte in size:  # at most 8 of them, the highest first
        tokens = tokens << 7 | byte & 0x7F
    return tokens


def _ordered(scored: list[tuple[int, int]], depth: int) -> list[tuple[int, int]]:
    return sorted(scored, key=lambda one: (-one[1], one[0]))[:depth]
