"""The reads of the memory store in SQLite, as operations (`_operations`); no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from walpool.errors import ConfigError, DataError
from walpool.memory import _pages
from walpool.memory._columns import levels
from walpool.memory._operations import MOST, Given, Read, Search, Space, Steps, ask, encoded, first, other_words
from walpool.memory._operations import opened as _opened
from walpool.memory._pages import ListPage, VectorPage
from walpool.memory._rows import meets, record, time
from walpool.memory._sqlite_filters import SPACE, Selection, select, under
from walpool.memory._sqlite_rows import COLUMNS, JOINED
from walpool.memory.records import (
    DimsError,
    EmbeddingError,
    Explanation,
    Hit,
    Hits,
    Metric,
    Query,
    Record,
    Records,
    ScopeSummary,
    normalize_scope,
    pack,
)  # fmt: skip
from walpool.types import Row, Value

__all__ = [
    "SCORES", "by_id", "categories", "count", "dims", "every", "keys", "listed", "nearest", "nearest_keys", "opened",
    "refusal", "scopes", "summary", "unchanged",
]  # fmt: skip

_FEW: Final = 5_000  # records that are faster sorted than found along the index of all the others
_NEWEST: Final = "ORDER BY r.created_at DESC, r.key DESC"
# A record without an embedding counts as a zero vector: its distance is the query's own length.
SCORES: Final[dict[Metric, str]] = {
    "cosine": "coalesce(vec_cosine(v.embedding, {query}), 0.0)",
    "dot": "coalesce(vec_dot(v.embedding, {query}), 0.0)",
    "l2": "1.0 / (1.0 + coalesce(vec_l2sq(v.embedding, {query}), vec_dot({query}, {query})))",
}


def by_id(space: Space, record_id: str) -> Read[Record | None]:
    """Return the read of one record."""
    return Read(
        f"SELECT {COLUMNS} FROM memory_records AS r {JOINED} WHERE r.space = {SPACE} AND r.id = ?3",
        (space.tenant, space.collection, record_id),
        lambda rows: record(rows[0]) if rows else None,
    )


def space_row(space: Space) -> Read[tuple[int | None, int] | None]:
    """Return the read of the space's dims and epoch; None as long as nothing was saved."""
    sql = f"SELECT dims, epoch FROM memory_spaces WHERE space = {SPACE}"
    return Read(sql, space[:2], lambda rows: (rows[0][0], rows[0][1]) if rows else None)


def dims(space: Space) -> Read[int | None]:
    """Return the read of the length of the space's embeddings."""
    return Read(f"SELECT dims FROM memory_spaces WHERE space = {SPACE}", space[:2], first)


def opened(space: Space, words: str | None) -> Read[Space | ConfigError]:
    """Return the read of the space with the word index that it has, or of what to tell who asked for another one."""
    sql = f"SELECT words FROM memory_spaces WHERE space = {SPACE}"
    return Read(sql, space[:2], lambda rows: _opened(space, words, first(rows)))


def refusal(space: Space, embeddings: Sequence[bytes]) -> Read[Exception | None]:
    """Return the read of why a trigger refused embeddings of one length; None: for no reason of the store's."""

    def decode(rows: list[Row]) -> Exception | None:
        words, stored = rows[0] if rows else (space.words, None)
        if words != space.words:
            return other_words(space, words)
        given = len(embeddings[0]) // 4 if embeddings else None
        if given is not None and stored is not None and stored != given:
            return DimsError(stored=stored, given=given)
        try:
            for embedding in embeddings:
                pack(embedding)
        except EmbeddingError as error:
            return error
        return None

    return Read(f"SELECT words, dims FROM memory_spaces WHERE space = {SPACE}", space[:2], decode)


def count(space: Space, query: Query) -> Read[int] | Steps[int]:
    """Return the read of how many records meet `query`."""
    given = Given(space)
    selection = select(query, given)
    if selection.is_scope:
        sql = f"SELECT coalesce(sum(s.records), 0) FROM memory_scopes AS s WHERE {selection.in_scopes}"
        return Read(sql, given.values, first)
    if selection.python:
        return _counted(given, selection)
    return Read(f"SELECT count(DISTINCT key) FROM ({selection.keys})", given.values, first)


def categories(space: Space, query: Query) -> Read[dict[str, int]] | Steps[dict[str, int]]:
    """Return the read of the categories of the records that meet `query`, each with its number of records."""
    given = Given(space)
    selection = select(query, given)
    if selection.is_scope:
        return Read(
            f"""SELECT c.category, sum(c.records) AS records FROM memory_scopes AS s
            CROSS JOIN memory_category_counts AS c ON c.scope = s.scope WHERE {selection.in_scopes}
            GROUP BY c.category HAVING sum(c.records) > 0 ORDER BY c.category""",
            given.values,
            dict,
        )
    if selection.python:
        return _categories_of_narrowed(space, given, selection)
    return _categories_where(selection.keys, given)


def scopes(space: Space, parent: str, *, deep: bool = False) -> Read[dict[str, int]]:
    """Return the read of the scopes below `parent`, each with its number of records."""
    given = Given(space)
    start = normalize_scope(parent)
    condition = "true" if start == "/" else under(start, given)
    sql = f"SELECT s.path, s.records FROM memory_scopes AS s WHERE s.space = {SPACE} AND s.records > 0 AND {condition}"

    return Read(sql, given.values, lambda rows: levels(rows, parent, deep=deep))


def summary(space: Space, scope: str) -> Steps[ScopeSummary]:
    """Return the reads of what lies in `scope` and below it."""
    query = Query(scope=scope)
    given = Given(space)
    selection = select(query, given)
    if selection.scopes:  # the ends of each scope, through the index
        ends = f"""SELECT min((SELECT min(created_at) FROM memory_records WHERE scope = s.scope)),
            max((SELECT max(created_at) FROM memory_records WHERE scope = s.scope))
            FROM memory_scopes AS s WHERE {selection.in_scopes} AND s.records > 0"""
    else:
        ends = f"""SELECT (SELECT min(created_at) FROM memory_records WHERE space = {SPACE}),
            (SELECT max(created_at) FROM memory_records WHERE space = {SPACE})"""
    number = yield from _all(count(space, query))
    oldest, newest = yield from ask(Read(ends, given.values, _times))
    names = yield from _all(categories(space, query))
    children = yield from ask(scopes(space, scope))
    return ScopeSummary(
        scope=normalize_scope(scope),
        count=number,
        categories=tuple(names),
        oldest=oldest,
        newest=newest,
        children=tuple(children),
    )


def listed(space: Space, query: Query, *, limit: int, offset: int, after: str | None) -> Steps[Records]:
    """Return the reads of one page of the records that meet `query`, newest first."""
    given = Given(space)
    selection = select(query, given)
    bound = _pages.fingerprint("list", *space, query)
    page = None if after is None else _pages.decode(after, ListPage, bound)
    row = yield from ask(space_row(space))
    epoch = 0 if row is None else row[1]
    if page is not None and page.epoch != epoch:
        raise _pages.void()
    by_time = False
    if selection.scopes and not selection.keyed and not selection.ids:
        lying = yield from ask(count(space, Query(scope=query.scope)))  # type: ignore[arg-type] # a Read: a scope alone
        by_time = lying > _FEW
    where = [selection.where(by_time=by_time)]
    if selection.python:
        narrowed = yield from keys(given, selection)
        given = Given(space)
        where = [f"r.key IN (SELECT value FROM json_each({given(encoded(narrowed))}))"]
    if page is not None:
        where.append(f"(r.created_at, r.key) < ({given(page.created_at)}, {given(page.key)})")
        where.append(unchanged(given(page.change)))
    wanted = min(limit, MOST)
    rows = f"""SELECT r.key FROM memory_records AS r WHERE {" AND ".join(where)}
        {_NEWEST} LIMIT {given(wanted + 1)} OFFSET {given(min(offset, MOST))}"""
    sql = f"""WITH page (key) AS MATERIALIZED ({rows})
        SELECT {COLUMNS}, r.key, (SELECT max(change) FROM memory_sketches)
        FROM page CROSS JOIN memory_records AS r ON r.key = page.key {JOINED} {_NEWEST}"""

    def decode(rows: list[Row]) -> Records:
        found = Records(map(record, rows[:wanted]))
        if len(rows) > wanted:
            last = rows[wanted - 1]
            change = last[-1] if page is None else page.change
            found.next = _pages.encode(ListPage(change, epoch, last[5], last[-2]), bound)
        return found

    return (yield from ask(Read(sql, given.values, decode)))


def nearest(space: Space, asked: Search, embedding: bytes) -> Steps[Hits]:
    """Return the reads of the `limit` selected records nearest to `embedding`, by falling score.

    The conditions come first: the scope as a set that is tested beside each sketch, whatever else is asked as the set
    of the keys that meet it.
    """
    query, metric, limit, min_score = asked.query, asked.metric, asked.limit, asked.min_score
    if metric not in SCORES:
        raise DataError(f"the metric of a search is one of {', '.join(SCORES)}")
    bound = _pages.fingerprint("vector", *space, query, embedding, metric)
    page = None if asked.after is None else _pages.decode(asked.after, VectorPage, bound)
    found = yield from ask(space_row(space))
    if found is None:
        return Hits()
    stored, epoch = found
    if stored is not None and stored * 4 != len(embedding):
        raise DimsError(stored=stored, given=len(embedding) // 4)
    if page is not None and page.epoch != epoch:
        raise _pages.void()
    given = Given(space)
    selection = select(query, given)
    narrowed: list[int] | None = None
    if selection.python:
        narrowed = yield from keys(given, selection)
        given = Given(space)
        selection = Selection()
    vector = given(embedding)
    score = SCORES[metric].format(query=vector)
    best = nearest_keys(given, selection, narrowed, vector, metric, min(limit, MOST) + 1, page)
    sql = f"""SELECT {COLUMNS}, {score}, r.key, (SELECT max(change) FROM memory_sketches)
        FROM json_each({best}) AS best CROSS JOIN memory_records AS r ON r.key = best.value {JOINED}
        ORDER BY best.key"""

    before = 0 if page is None else page.rank

    def decode(rows: list[Row]) -> Hits:
        hits = Hits()
        for rank, row in enumerate(rows[:limit], before + 1):
            if min_score is None or row[-3] >= min_score:
                hits.append(Hit(record(row), row[-3], Explanation(vector_rank=rank, vector_score=row[-3])))
        if len(rows) > limit == len(hits):
            *_, score, key, change = rows[limit - 1]
            at = VectorPage(change if page is None else page.change, epoch, score, key, before + limit)
            hits.next = _pages.encode(at, bound)
        return hits

    return (yield from ask(Read(sql, given.values, decode)))


def keys(given: Given, selection: Selection) -> Steps[list[int]]:
    """Return the read of the keys that are selected, with what Python compares; they are never bound one by one."""
    sql = f"SELECT r.key, r.metadata FROM memory_records AS r WHERE {selection.where()}"
    python = selection.python

    def decode(rows: list[Row]) -> list[int]:
        return [key for key, metadata in rows if meets(metadata, python)]

    return (yield from ask(Read(sql, given.values, decode)))


def every(space: Space, query: Query) -> tuple[str, Sequence[Value], Callable[[Row], Record | None]]:
    """Return the statement of all records that meet `query`, oldest first, and what makes a record or None of a row."""
    given = Given(space)
    selection = select(query, given)
    # Along the index, so that nothing is sorted and the first row comes at once, however wide the rows are.
    sql = f"""SELECT {COLUMNS} FROM memory_records AS r INDEXED BY memory_records_created {JOINED}
        WHERE {selection.where(by_time=True)} ORDER BY r.created_at, r.key"""
    python = selection.python
    return sql, given.values, lambda row: record(row) if not python or meets(row[3], python) else None


def nearest_keys(
    given: Given,
    selection: Selection,
    narrowed: list[int] | None,
    vector: str,
    metric: Metric,
    limit: int,
    page: VectorPage | None,
) -> str:
    """Return the SQL of the JSON list of the keys of the best records, in order."""
    scopes = keys = "NULL"
    if selection.scopes:
        scopes = f"(SELECT vec_key_set(s.scope) FROM memory_scopes AS s WHERE {selection.in_scopes})"
    if narrowed is not None:
        keys = f"(SELECT vec_key_set(value) FROM json_each({given(encoded(narrowed))}))"
    elif not selection.is_scope:
        # Where the indexes alone know the keys, the scope is left to the other set.
        found = selection if selection.ids or selection.rows else replace(selection, scopes="")
        keys = f"(SELECT vec_key_set(key) FROM ({found.keys}))"
    after = (None,) * 3 if page is None else (page.change, page.score, page.key)
    behind = ", ".join(given(value) for value in after)
    return f"vec_nearest('memory', {SPACE}, {vector}, {given(metric)}, {given(limit)}, {scopes}, {keys}, {behind})"


def _counted(given: Given, selection: Selection) -> Steps[int]:
    return len((yield from keys(given, selection)))


def _categories_of_narrowed(space: Space, given: Given, selection: Selection) -> Steps[dict[str, int]]:
    narrowed = yield from keys(given, selection)
    given = Given(space)
    found = _categories_where(f"SELECT value FROM json_each({given(encoded(narrowed))})", given)
    return (yield from ask(found))


def _categories_where(selected: str, given: Given) -> Read[dict[str, int]]:
    sql = f"""SELECT c.category, count(*) FROM memory_categories AS c WHERE c.space = {SPACE} AND c.key IN ({selected})
        GROUP BY c.category ORDER BY c.category"""
    return Read(sql, given.values, dict)


def _all(operation: Read[Any] | Steps[Any]) -> Steps[Any]:
    return (yield from (ask(operation) if isinstance(operation, Read) else operation))


def unchanged(change: str) -> str:
    """Return the condition that the record `r` is as it was at a change."""
    return f"EXISTS (SELECT 1 FROM memory_sketches AS k WHERE k.key = r.key AND k.change <= {change})"


def _times(rows: list[Row]) -> tuple[datetime | None, datetime | None]:
    oldest, newest = rows[0]
    return None if oldest is None else time(oldest), None if newest is None else time(newest)
