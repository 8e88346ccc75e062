"""The writes of the memory store in PostgreSQL, as operations (`_operations`); no I/O.

Each job begins by locking the row of its space: so the changes of a space are numbered in the order in which they are
committed, and two jobs on one space never wait for each other's rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final

from walpool.errors import DataError
from walpool.memory import _postgres_marks as marks
from walpool.memory import _postgres_sql as reads
from walpool.memory import _postgres_words as words
from walpool.memory._columns import aged
from walpool.memory._operations import Given, Read, Space, Statement, Steps, Write, ask, nothing
from walpool.memory._postgres_filters import OWNER, Selection, ids_are, select
from walpool.memory._postgres_vectors import to_server
from walpool.memory._rows import COLUMNS, changed, embeddings, meets, micros, values
from walpool.memory.records import Query, Record

__all__ = ["LOCK", "delete", "derived", "expire", "reset", "save", "touch", "update"]

_MOST: Final = 1_000
"""Records in one statement."""
_VECTORS: Final = (64, 8, 1)
"""Vectors in one statement: few kinds of them, so that each is translated once."""

LOCK: Final = "SELECT s.change FROM memory_spaces AS s WHERE s.tenant = ?1 AND s.collection = ?2 FOR UPDATE"

# A value that the table refuses stands for another word index, and for another length than the dims.
_DIMS: Final = """CASE WHEN s.dims IS NULL THEN CAST({given} AS INTEGER)
        WHEN s.dims <> CAST({given} AS INTEGER) THEN 0 ELSE s.dims END"""
_SPACE: Final = f"""INSERT INTO memory_spaces AS s (tenant, collection, words, dims, epoch, change)
    VALUES (?1, ?2, ?3, CAST(?4 AS INTEGER), 0, ?5)
    ON CONFLICT (tenant, collection) DO UPDATE SET
        words = CASE WHEN s.words = excluded.words THEN s.words ELSE '' END,
        dims = {_DIMS.format(given="excluded.dims")},
        change = s.change + excluded.change"""
_DERIVED: Final = {
    "words": "TSVECTOR", "folded": "TEXT", "length": "INTEGER", "category_marks": "UUID[]", "metadata_marks": "UUID[]",
    "metadata_order": "JSONB",
}  # fmt: skip
_TYPES: Final = {
    "importance": "DOUBLE PRECISION", "created_at": "BIGINT", "accessed_at": "BIGINT", "private": "SMALLINT",
    **_DERIVED,
}  # fmt: skip
_ALL: Final = (*COLUMNS, *_DERIVED)
# The types that json_to_recordset reads; texts are cast to those that it would read as JSON.
_READ: Final = {name: "TEXT" if name in _DERIVED and name != "length" else _TYPES.get(name, "TEXT") for name in _ALL}
_RECORDS: Final = f"""INSERT INTO memory_records AS r (tenant, collection, key, change, {", ".join(_ALL)})
    SELECT s.tenant, s.collection, s.change - ?4 + g.n, s.change - ?4 + g.n,
        {", ".join(f"CAST(g.{name} AS {_TYPES.get(name, 'TEXT')})" for name in _ALL)}
    FROM json_to_recordset(CAST(?3 AS JSON)) AS g (n BIGINT, {", ".join(f"{name} {_READ[name]}" for name in _ALL)})
    CROSS JOIN memory_spaces AS s WHERE s.tenant = ?1 AND s.collection = ?2 ORDER BY g.n
    ON CONFLICT (tenant, collection, id) DO UPDATE SET change = excluded.change,
        {", ".join(f"{name} = excluded.{name}" for name in _ALL if name != "id")}"""


def save(space: Space, records: Sequence[Record]) -> Write[None]:
    """Return the job that inserts or replaces the records."""
    packed = embeddings(records)
    saved = _merged(records)
    owner = space[:2]
    dims = len(packed[0]) // 4 if packed else None
    statements: list[Statement] = [(_SPACE, (*space, dims, len(saved)))] if saved else []
    for start in range(0, len(saved), _MOST):
        rows = [
            {"n": number, **_columns(space, record)}
            for number, record in enumerate(saved[start : start + _MOST], start + 1)
        ]
        statements.append((_RECORDS, (*owner, _json(rows), len(saved))))
    # Of one scope next to each other: a search there reads half as many pages.
    by_scope = sorted(saved, key=attrgetter("scope"))
    if bare := [record.id for record in by_scope if record.embedding is None]:
        statements.append(_scoped(space, bare))
    pairs = [(record.id, record.embedding) for record in by_scope if record.embedding is not None]
    statements += _vectors(space, pairs)
    return Write(statements, nothing, reads.refusal(space, packed))


def update(space: Space, record_id: str, changes: Mapping[str, Any]) -> Write[bool]:
    """Return the job that changes the named fields of one record.

    Raises:
        TypeError: there is no such field.
        DataError: a record cannot have such a value.
    """
    record = changed(record_id, changes)
    packed = embeddings([record])
    columns = _columns(space, record)
    named = [column for column in _ALL if _source_of(column) in changes]
    owner = space[:2]
    given = Given(space)
    is_it = f"r.id = {given(record_id)}"
    dims = given(len(packed[0]) // 4 if packed else None)
    bump = f"""UPDATE memory_spaces AS s SET change = s.change + 1, dims = {_DIMS.format(given=dims)}
        WHERE s.tenant = ?1 AND s.collection = ?2
        AND EXISTS (SELECT 1 FROM memory_records AS r WHERE {OWNER} AND {is_it})"""
    statements: list[Statement] = [(LOCK, owner), (bump, given.values)]
    given = Given(space)
    is_it = f"r.id = {given(record_id)}"
    sets = [f"{name} = CAST({given(columns[name])} AS {_TYPES.get(name, 'TEXT')})" for name in named]
    behind: list[Statement] = []
    if "scope" in changes and not packed:
        behind.append(_scoped(space, [record_id]))
    if packed:
        behind += _vectors(space, [(record_id, packed[0])])
    elif "embedding" in changes:
        no_embedding = f"""UPDATE memory_vectors AS v SET embedding = NULL FROM memory_records AS r
            WHERE {OWNER} AND r.id = ?3 AND v.tenant = ?1 AND v.collection = ?2 AND v.key = r.key"""
        behind.append((no_embedding, (*owner, record_id)))
    sql = f"""UPDATE memory_records AS r SET {", ".join(("change = s.change", *sets))} FROM memory_spaces AS s
        WHERE s.tenant = ?1 AND s.collection = ?2 AND {OWNER} AND {is_it}"""
    statements.append((sql, given.values))
    place = len(statements) - 1  # its count says whether there is such a record
    return Write([*statements, *behind], lambda results: results[place].rowcount > 0, reads.refusal(space, packed))


def touch(space: Space, record_ids: Iterable[str], at: datetime) -> Write[int]:
    """Return the job that sets `accessed_at`; a change that pages do not see."""
    given = Given(space)
    time = given(micros(at))
    sql = f"UPDATE memory_records AS r SET accessed_at = {time} WHERE {OWNER} AND {ids_are(record_ids, given)}"
    return Write([(LOCK, space[:2]), (sql, given.values)], lambda results: results[-1].rowcount)


def delete(space: Space, query: Query) -> Write[int] | Steps[int]:
    """Return the job that deletes the records that meet `query`."""
    return _delete(space, lambda given: select(space, query, given))


def expire(
    space: Space, query: Query, *, older_than: timedelta | None, keep: int | None, importance_below: float | None
) -> Write[int] | Steps[int]:
    """Return the job that deletes the records that meet `query` and each condition given.

    Raises:
        DataError: there is no condition, or a negative one.
    """

    def selected(given: Given) -> Selection:
        selection = select(space, query, given)
        more = aged(given, older_than=older_than, keep=keep, importance_below=importance_below)
        if keep is not None:
            more.append(f"""r.key IN (SELECT o.key FROM (SELECT o.key, row_number() OVER
                (PARTITION BY o.scope ORDER BY o.created_at DESC, o.key DESC) AS place FROM memory_records AS o
                WHERE o.tenant = ?1 AND o.collection = ?2) AS o WHERE o.place > {given(keep)})""")
        return replace(selection, conditions=(*selection.conditions, *more))

    return _delete(space, selected)


def reset(space: Space) -> Write[None]:
    """Return the job that empties the space and forgets its dims."""
    owned = "WHERE tenant = ?1 AND collection = ?2"
    statements = (
        LOCK,
        f"DELETE FROM memory_vectors {owned}",
        f"DELETE FROM memory_records {owned}",
        f"UPDATE memory_spaces SET dims = NULL, epoch = epoch + 1 {owned}",
    )
    return Write([(sql, space[:2]) for sql in statements], nothing)


def derived(space: Space, content: str, categories: str, metadata: str) -> dict[str, Any]:
    """Return the derived columns of a record, by name."""
    if "\0" in content:
        raise DataError("PostgreSQL stores no NUL: the content of a record has one")
    marked, order = marks.metadata(space, metadata)
    return {
        **words.indexed(space, content)._asdict(),
        "category_marks": "{}" if categories == "[]" else marks.categories(space, json.loads(categories)),
        "metadata_marks": marked,
        "metadata_order": order,
    }


def _columns(space: Space, record: Record) -> dict[str, Any]:
    columns: dict[str, Any] = dict(zip(COLUMNS, values(record), strict=True))
    return columns | derived(space, columns["content"], columns["categories"], columns["metadata"])


def _merged(records: Sequence[Record]) -> list[Record]:
    """Return each id's last record, in the order in which the ids first come; it keeps an embedding as any other."""
    found: dict[str, Record] = {}
    for record in records:
        before = found.get(record.id)
        keeps = before is not None and record.embedding is None
        found[record.id] = replace(record, embedding=before.embedding) if keeps and before else record
    return list(found.values())


def _vectors(space: Space, pairs: Sequence[tuple[str, bytes]]) -> Iterator[Statement]:
    """Yield the statements that store embeddings by the ids of their records."""
    start = 0
    for size in _VECTORS:
        while len(pairs) - start >= size:
            given = Given(space)
            pairs_here = [
                f"(CAST({given(record_id)} AS TEXT), CAST({given(to_server(embedding))} AS VECTOR))"
                for record_id, embedding in pairs[start : start + size]
            ]
            sql = f"""INSERT INTO memory_vectors (tenant, collection, key, scope, embedding)
                SELECT r.tenant, r.collection, r.key, r.scope, g.embedding
                FROM (VALUES {", ".join(pairs_here)}) AS g (id, embedding)
                JOIN memory_records AS r ON {OWNER} AND r.id = g.id
                ON CONFLICT (tenant, collection, key) DO UPDATE
                SET scope = excluded.scope, embedding = excluded.embedding"""
            yield sql, given.values
            start += size


def _scoped(space: Space, ids: Sequence[str]) -> Statement:
    """Return the statement that gives records a row of vectors, with their scope; an embedding that is there stays."""
    given = Given(space)
    sql = f"""INSERT INTO memory_vectors AS v (tenant, collection, key, scope)
        SELECT r.tenant, r.collection, r.key, r.scope FROM memory_records AS r WHERE {OWNER} AND {ids_are(ids, given)}
        ON CONFLICT (tenant, collection, key) DO UPDATE SET scope = excluded.scope WHERE v.scope <> excluded.scope"""
    return sql, given.values


def _delete(space: Space, selected: Callable[[Given], Selection]) -> Write[int] | Steps[int]:
    given = Given(space)
    selection = selected(given)
    return _delete_narrowed(space, selected) if selection.python else _deletion(space, selection.where, given)


def _deletion(space: Space, where: str, given: Given) -> Write[int]:
    sql = f"""WITH gone AS (DELETE FROM memory_records AS r WHERE {where} RETURNING r.key),
        vectors AS (DELETE FROM memory_vectors AS v USING gone
            WHERE v.tenant = ?1 AND v.collection = ?2 AND v.key = gone.key)
        SELECT count(*) FROM gone"""
    return Write([(LOCK, space[:2]), (sql, given.values)], lambda results: int(results[-1].rows[0][0]))


def _delete_narrowed(space: Space, selected: Callable[[Given], Selection]) -> Steps[int]:
    """Return the reads of what Python compares, and the jobs that delete of it what was not changed meanwhile."""
    total = 0
    while True:
        given = Given(space)
        selection = selected(given)
        sql = f"SELECT r.key, r.change, r.metadata FROM memory_records AS r WHERE {selection.where}"
        rows = yield from ask(Read(sql, given.values, list))
        found = [(key, change) for key, change, metadata in rows if meets(metadata, selection.python)]
        if not found:
            return total
        given = Given(space)
        keys, changes = (given("{" + ",".join(map(str, column)) + "}") for column in zip(*found, strict=True))
        as_read = f"""{OWNER} AND (r.key, r.change) IN
            (SELECT * FROM unnest(CAST({keys} AS BIGINT[]), CAST({changes} AS BIGINT[])))"""
        gone = yield from ask(_deletion(space, as_read, given))
        total += gone
        if gone == len(found):
            return total


def _source_of(column: str) -> str:
    """Return which field a column is made of."""
    if column in ("words", "folded", "length"):
        return "content"
    return {"category_marks": "categories", "metadata_marks": "metadata", "metadata_order": "metadata"}.get(
        column, column
    )


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False)
