"""The reads of the memory store in PostgreSQL, as operations (`_operations`); no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from walpool.errors import ConfigError
from walpool.memory import _pages
from walpool.memory._columns import levels
from walpool.memory._operations import MOST, Given, Read, Search, Space, Steps, ask, first, other_words
from walpool.memory._operations import opened as _opened
from walpool.memory._pages import ListPage, VectorPage
from walpool.memory._postgres_filters import OWNER, Selection, among, select, under
from walpool.memory._postgres_vectors import SCORES, around, bounds, from_server, to_server
from walpool.memory._rows import meets, time
from walpool.memory._rows import record as _record
from walpool.memory.records import (
    DimsError,
    Explanation,
    Hit,
    Hits,
    Metric,
    Query,
    Record,
    Records,
    ScopeSummary,
    normalize_scope,
)  # fmt: skip
from walpool.types import Row, Value

__all__ = [
    "COLUMNS", "JOINED", "by_id", "categories", "count", "dims", "every", "keys", "listed", "nearest", "nearest_keys",
    "opened", "record", "refusal", "scopes", "score", "summary",
]  # fmt: skip

COLUMNS: Final = """r.id, r.content, r.scope, r.metadata, r.importance, r.created_at, r.accessed_at, r.source,
    r.private, v.embedding, r.categories"""
_WIDTH: Final = 11  # columns
JOINED: Final = """LEFT JOIN memory_vectors AS v
    ON v.tenant = r.tenant AND v.collection = r.collection AND v.key = r.key"""
_MOST_HALVES: Final = 1_000
"""Hits; for more of them their halves are not looked at first, since the embeddings are read in any case."""
_SPACE: Final = "FROM memory_spaces AS s WHERE s.tenant = ?1 AND s.collection = ?2"


def record(row: Row) -> Record:
    """Return the record of a row of `COLUMNS`; what stands behind them is left alone."""
    return _record((*row[:9], from_server(row[9]), row[10]))


def by_id(space: Space, record_id: str) -> Read[Record | None]:
    """Return the read of one record."""
    given = Given(space)
    named = "false" if "\0" in record_id else f"r.id = {given(record_id)}"
    return Read(
        f"SELECT {COLUMNS} FROM memory_records AS r {JOINED} WHERE {OWNER} AND {named}",
        given.values,
        lambda rows: record(rows[0]) if rows else None,
    )


def space_row(space: Space) -> Read[tuple[int | None, int, int] | None]:
    """Return the read of the space's dims, epoch and latest change; None as long as nothing was saved."""
    sql = f"SELECT s.dims, s.epoch, s.change {_SPACE}"
    return Read(sql, space[:2], lambda rows: (rows[0][0], rows[0][1], rows[0][2]) if rows else None)


def dims(space: Space) -> Read[int | None]:
    """Return the read of the length of the space's embeddings."""
    return Read(f"SELECT s.dims {_SPACE}", space[:2], first)


def opened(space: Space, words: str | None) -> Read[Space | ConfigError]:
    """Return the read of the space with the word index that it has, or of what to tell who asked for another one."""
    return Read(f"SELECT s.words {_SPACE}", space[:2], lambda rows: _opened(space, words, first(rows)))


def refusal(space: Space, embeddings: Sequence[bytes]) -> Read[Exception | None]:
    """Return the read of why a constraint refused embeddings of one length; None: for no reason of the store's."""

    def decode(rows: list[Row]) -> Exception | None:
        words, stored = rows[0] if rows else (space.words, None)
        if words != space.words:
            return other_words(space, words)
        given = len(embeddings[0]) // 4 if embeddings else None
        if given is not None and stored is not None and stored != given:
            return DimsError(stored=stored, given=given)
        return None

    return Read(f"SELECT s.words, s.dims {_SPACE}", space[:2], decode)


def count(space: Space, query: Query) -> Read[int] | Steps[int]:
    """Return the read of how many records meet `query`."""
    given = Given(space)
    selection = select(space, query, given)
    if selection.python:
        return _counted(given, selection)
    return Read(f"SELECT count(*) FROM memory_records AS r WHERE {selection.where}", given.values, first)


def categories(space: Space, query: Query) -> Read[dict[str, int]] | Steps[dict[str, int]]:
    """Return the read of the categories of the records that meet `query`, each with its number of records."""
    given = Given(space)
    selection = select(space, query, given)
    if selection.python:
        return _categories_of_narrowed(space, given, selection)
    return _categories_where(selection.where, given)


def scopes(space: Space, parent: str, *, deep: bool = False) -> Read[dict[str, int]]:
    """Return the read of the scopes below `parent`, each with its number of records."""
    given = Given(space)
    start = normalize_scope(parent)
    where = OWNER if start == "/" else f"{OWNER} AND {under(start, given)}"
    sql = f"SELECT r.scope, count(*) FROM memory_records AS r WHERE {where} GROUP BY r.scope"
    return Read(sql, given.values, lambda rows: levels(rows, parent, deep=deep))


def summary(space: Space, scope: str) -> Steps[ScopeSummary]:
    """Return the reads of what lies in `scope` and below it."""
    query = Query(scope=scope)
    given = Given(space)
    where = select(space, query, given).where
    sql = f"SELECT count(*), min(r.created_at), max(r.created_at) FROM memory_records AS r WHERE {where}"
    number, oldest, newest = yield from ask(Read(sql, given.values, lambda rows: rows[0]))
    names = yield from ask(_categories_where(where, given))
    children = yield from ask(scopes(space, scope))
    return ScopeSummary(
        scope=normalize_scope(scope),
        count=number,
        categories=tuple(names),
        oldest=None if oldest is None else time(oldest),
        newest=None if newest is None else time(newest),
        children=tuple(children),
    )


def listed(space: Space, query: Query, *, limit: int, offset: int, after: str | None) -> Steps[Records]:
    """Return the reads of one page of the records that meet `query`, newest first."""
    bound = _pages.fingerprint("list", *space, query)
    page = None if after is None else _pages.decode(after, ListPage, bound)
    _, epoch, latest = (yield from ask(space_row(space))) or (None, 0, 0)
    if page is not None and page.epoch != epoch:
        raise _pages.void()
    given, selection = yield from narrowed(space, query)
    where = [selection.where]
    if page is not None:
        where.append(f"(r.created_at, r.key) < ({given(page.created_at)}, {given(page.key)})")
        where.append(f"r.change <= {given(page.change)}")
    wanted = min(limit, MOST)
    newest = "ORDER BY r.created_at DESC, r.key DESC"
    sql = f"""SELECT {COLUMNS}, r.key FROM (SELECT * FROM memory_records AS r WHERE {" AND ".join(where)}
        {newest} LIMIT {given(wanted + 1)} OFFSET {given(min(offset, MOST))}) AS r {JOINED} {newest}"""

    def decode(rows: list[Row]) -> Records:
        found = Records(map(record, rows[:wanted]))
        if len(rows) > wanted:
            last = rows[wanted - 1]
            change = latest if page is None else page.change
            found.next = _pages.encode(ListPage(change, epoch, last[5], last[-1]), bound)
        return found

    return (yield from ask(Read(sql, given.values, decode)))


def nearest(
    space: Space, asked: Search, embedding: bytes, *, keys: Sequence[int] | None = None
) -> Read[Hits] | Steps[Hits]:
    """Return the read of the `limit` selected records nearest to `embedding`, by falling score.

    Exact: every record that meets the conditions is scored, or those among `keys` if they are given. One statement, and
    so one round trip, but where Python has to compare.
    """
    bound = _pages.fingerprint("vector", *space, asked.query, embedding, asked.metric)
    page = None if asked.after is None else _pages.decode(asked.after, VectorPage, bound)
    given = Given(space)
    selection = select(space, asked.query, given) if keys is None else Selection((among(keys, given),))
    if selection.python:
        return _nearest_narrowed(space, asked, embedding, page, bound)
    return _nearest(given, selection, asked, embedding, page, bound)


def _nearest_narrowed(
    space: Space, asked: Search, embedding: bytes, page: VectorPage | None, bound: bytes
) -> Steps[Hits]:
    given, selection = yield from narrowed(space, asked.query)
    return (yield from ask(_nearest(given, selection, asked, embedding, page, bound)))


def _nearest(
    given: Given, selection: Selection, asked: Search, embedding: bytes, page: VectorPage | None, bound: bytes
) -> Read[Hits]:
    # With other dims nothing is scored, and the row of the space is there to say so.
    fits = f"coalesce(s.dims, {len(embedding) // 4}) = {len(embedding) // 4}"
    of_vectors = selection.of_vectors and tuple(f"{part} AND {fits}" for part in selection.of_vectors)
    selection = replace(selection, conditions=(*selection.conditions, fits), of_vectors=of_vectors)
    best = _nearest_rows(given, selection, asked, embedding, min(asked.limit, MOST) + 1, page)
    sql = f"""SELECT {COLUMNS}, s.dims, s.epoch, s.change, v.score, r.key FROM memory_spaces AS s
        LEFT JOIN LATERAL ({best}) AS v ON true
        LEFT JOIN memory_records AS r ON {OWNER} AND r.key = v.key
        WHERE s.tenant = ?1 AND s.collection = ?2 ORDER BY v.score DESC, v.key"""
    return Read(sql, given.values, lambda rows: _page_of_hits(rows, asked, embedding, page, bound))


def _page_of_hits(rows: list[Row], asked: Search, embedding: bytes, page: VectorPage | None, bound: bytes) -> Hits:
    hits, limit, min_score = Hits(), asked.limit, asked.min_score
    if not rows:
        return hits
    stored, epoch, latest = rows[0][_WIDTH : _WIDTH + 3]
    if stored is not None and stored * 4 != len(embedding):
        raise DimsError(stored=stored, given=len(embedding) // 4)
    if page is not None and page.epoch != epoch:
        raise _pages.void()
    found = [row for row in rows if row[-1] is not None]
    before = 0 if page is None else page.rank
    for rank, row in enumerate(found[:limit], before + 1):
        if min_score is None or row[-2] >= min_score:
            hits.append(Hit(record(row), row[-2], Explanation(vector_rank=rank, vector_score=row[-2])))
    if len(found) > limit == len(hits):
        score, key = found[limit - 1][-2:]
        at = VectorPage(latest if page is None else page.change, epoch, score, key, before + limit)
        hits.next = _pages.encode(at, bound)
    return hits


def nearest_keys(given: Given, selection: Selection, asked: Search, embedding: bytes, limit: int) -> str:
    """Return the SELECT of key and score of the best records, in order."""
    best = _nearest_rows(given, selection, asked, embedding, limit, None)
    return f"SELECT best.key, best.score FROM ({best}) AS best ORDER BY best.score DESC, best.key"


def _nearest_rows(
    given: Given, selection: Selection, asked: Search, embedding: bytes, limit: int, page: VectorPage | None
) -> str:
    """Return the SELECT of key, score and embedding of the best records, in order.

    First by what the halves of the embeddings tell. Those that may belong to the answer are scored: as many as are
    wanted, and those that come too near to the last of them to tell.
    """
    query = _vector(embedding, given)
    scored = SCORES[asked.metric].format(query=query)
    where, behind = selection.where, "true"
    if page is not None:
        where += f" AND r.change <= {given(page.change)}"
        at = given(page.score)
        behind = f"(scored.score < {at} OR scored.score = {at} AND scored.key > {given(page.key)})"
    wanted = given(limit)
    source = f"SELECT r.key, {scored} AS score, v.embedding FROM memory_records AS r {JOINED} WHERE {where}"
    if limit <= _MOST_HALVES:
        middle, error = bounds(asked.metric, query, len(embedding) // 4)
        of_half = f"{middle} AS middle, {error} AS error"
        halves = f"SELECT r.key, {of_half} FROM memory_records AS r {JOINED} WHERE {where}"
        if selection.of_vectors is not None and page is None:
            halves = " UNION ALL ".join(
                f"SELECT v.key, {of_half} FROM memory_vectors AS v WHERE {part}" for part in selection.of_vectors
            )
        may_be, is_behind = "true", "true"
        if page is not None:
            most, least = (given(bound) for bound in around(asked.metric, page.score))
            may_be, is_behind = f"coalesce(h.middle - h.error <= {most}, true)", f"middle + error < {least}"
        # LIMIT: the server expects that half of all are looked at, and would read the table for them once more.
        source = f"""WITH halves AS MATERIALIZED ({halves})
            SELECT h.key, {scored} AS score, v.embedding
            FROM halves AS h LEFT JOIN LATERAL (SELECT v.embedding, v.norm FROM memory_vectors AS v
                WHERE v.tenant = ?1 AND v.collection = ?2 AND v.key = h.key LIMIT 1) AS v ON true
            WHERE {may_be} AND coalesce(h.middle + h.error >= (SELECT middle - error AS least FROM halves
                WHERE {is_behind} ORDER BY least DESC NULLS LAST LIMIT 1 OFFSET {wanted} - 1), true)"""
    return f"""SELECT scored.key, scored.score, scored.embedding FROM ({source}) AS scored
        WHERE {behind} ORDER BY scored.score DESC, scored.key LIMIT {wanted}"""


def score(metric: Metric, embedding: bytes, given: Given) -> str:
    """Return the SQL of how near `memory_vectors AS v` is to an embedding."""
    return SCORES[metric].format(query=_vector(embedding, given))


def _vector(embedding: bytes, given: Given) -> str:
    return f"CAST({given(to_server(embedding))} AS VECTOR)"


def narrowed(space: Space, query: Query) -> Steps[tuple[Given, Selection]]:
    """Return the selection of `query` with what Python compares done, by a read of what the other conditions leave."""
    given = Given(space)
    selection = select(space, query, given)
    if selection.python:
        found = yield from keys(given, selection)
        given = Given(space)
        selection = Selection((among(found, given),))
    return given, selection


def keys(given: Given, selection: Selection) -> Steps[list[int]]:
    """Return the read of the keys that are selected, with what Python compares."""
    sql = f"SELECT r.key, r.metadata FROM memory_records AS r WHERE {selection.where}"
    python = selection.python

    def decode(rows: list[Row]) -> list[int]:
        return [key for key, metadata in rows if meets(metadata, python)]

    return (yield from ask(Read(sql, given.values, decode)))


def every(space: Space, query: Query) -> tuple[str, Sequence[Value], Callable[[Row], Record | None]]:
    """Return the statement of all records that meet `query`, oldest first, and what makes a record or None of a row."""
    given = Given(space)
    selection = select(space, query, given)
    sql = f"""SELECT {COLUMNS} FROM memory_records AS r {JOINED} WHERE {selection.where}
        ORDER BY r.created_at, r.key"""
    python = selection.python
    return sql, given.values, lambda row: record(row) if not python or meets(row[3], python) else None


def _counted(given: Given, selection: Selection) -> Steps[int]:
    return len((yield from keys(given, selection)))


def _categories_of_narrowed(space: Space, given: Given, selection: Selection) -> Steps[dict[str, int]]:
    found = yield from keys(given, selection)
    given = Given(space)
    return (yield from ask(_categories_where(f"{OWNER} AND {among(found, given)}", given)))


def _categories_where(where: str, given: Given) -> Read[dict[str, int]]:
    sql = f"""SELECT c.name, count(DISTINCT r.key) FROM memory_records AS r
        CROSS JOIN LATERAL json_array_elements_text(CAST(r.categories AS JSON)) AS c (name)
        WHERE r.categories <> '[]' AND {where} GROUP BY c.name"""

    def decode(rows: list[Row]) -> dict[str, int]:
        found: list[Any] = sorted(rows)  # by code points, whatever the database's own order is
        return dict(found)

    return Read(sql, given.values, decode)
