"""What a search finds in SQLite (`_search.Finder`), as operations; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from walpool.memory import _sqlite_matches, _words
from walpool.memory import _sqlite_sql as reads
from walpool.memory._operations import MOST, Given, Read, Search, Space, Steps, ask, encoded
from walpool.memory._ranking import Facts
from walpool.memory._rows import record
from walpool.memory._search import Chosen, Finder, Matches, facts_by_key
from walpool.memory._sqlite_filters import SPACE, Selection, select
from walpool.memory._sqlite_matches import Ground
from walpool.memory._sqlite_rows import COLUMNS, JOINED
from walpool.memory._sqlite_sql import SCORES
from walpool.memory._words import Typed
from walpool.memory.records import Hits, Query, Record
from walpool.types import Row

__all__ = ["SqliteFinder"]


class SqliteFinder(Finder[Ground]):
    """FTS5 for words, the sketches for embeddings."""

    def nearest(self, space: Space, asked: Search, embedding: bytes) -> Steps[Hits]:
        return reads.nearest(space, asked, embedding)

    def ground(self, space: Space) -> Read[Ground | None]:
        return _sqlite_matches.ground(space)

    def narrowed(self, space: Space, query: Query) -> Steps[Sequence[int] | None]:
        given = Given(space)
        selection = select(query, given)
        return (yield from reads.keys(given, selection)) if selection.python else None

    def of_query(self, ground: Ground, chosen: Chosen, query: str, *, depth: int) -> Steps[Matches]:
        return _sqlite_matches.of_query(ground, chosen, query, depth=depth)

    def all_of(self, ground: Ground, chosen: Chosen, typed: Typed, *, depth: int) -> Steps[Matches]:
        return _sqlite_matches.all_of(ground, chosen, typed, depth=depth)

    def any_of(self, ground: Ground, chosen: Chosen, typed: Typed, *, depth: int, enough: int) -> Steps[Matches]:
        return _sqlite_matches.any_of(ground, chosen, typed, depth=depth, enough=enough)

    def near(self, asked: Search, embedding: bytes, chosen: Chosen, depth: int) -> Steps[list[int]]:
        given = Given(chosen.space)
        selection = select(asked.query, given) if chosen.narrowed is None else Selection()
        narrowed = None if chosen.narrowed is None else list(chosen.narrowed)
        limit = min(depth, MOST)
        best = reads.nearest_keys(given, selection, narrowed, given(embedding), asked.metric, limit, None)
        sql = f"SELECT value FROM json_each({best})"
        return (yield from ask(Read(sql, given.values, lambda rows: [row[0] for row in rows])))

    def facts(self, space: Space, keys: Sequence[int], change: int) -> Read[dict[int, Facts]]:
        sql = f"""SELECT r.key, r.created_at, r.importance FROM json_each(?3) AS found
            CROSS JOIN memory_records AS r ON r.key = found.value WHERE r.space = {SPACE} AND {reads.unchanged("?4")}"""
        return Read(sql, (*space[:2], encoded(keys), change), facts_by_key)

    def shown(self, space: Space, asked: Search, keys: Sequence[int]) -> Read[dict[int, tuple[Record, float | None]]]:
        given = Given(space)
        near = "NULL" if asked.embedding is None else SCORES[asked.metric].format(query=given(asked.embedding))
        sql = f"""SELECT r.key, {COLUMNS}, {near} FROM json_each({given(encoded(keys))}) AS shown
            CROSS JOIN memory_records AS r ON r.key = shown.value {JOINED}"""

        def decode(rows: list[Row]) -> dict[int, tuple[Record, float | None]]:
            return {row[0]: (record(row[1:]), row[-1]) for row in rows}

        return Read(sql, given.values, decode)

    def snippets(
        self, ground: Ground, asked: Search, typed: Typed | None, hits: Sequence[tuple[int, Record]]
    ) -> Steps[dict[int, str]]:
        match = asked.fts if typed is None else _words.anything(typed)
        if match is None:
            return {}
        keys = [key for key, _ in hits]
        return (yield from ask(_sqlite_matches.snippets(ground, match, keys, asked.marks)))
