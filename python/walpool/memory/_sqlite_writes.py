"""The writes of the memory store in SQLite, as operations (`_operations`); no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from walpool.memory import _sqlite_sql as reads
from walpool.memory import _sqlite_words as words
from walpool.memory._columns import aged
from walpool.memory._operations import Given, Result, Space, Statement, Steps, Write, ask, encoded, nothing
from walpool.memory._rows import COLUMNS, changed, embeddings, micros, values
from walpool.memory._sqlite_filters import KEY_BITS, SPACE, Selection, select
from walpool.memory.records import Query, Record

__all__ = ["delete", "expire", "reset", "save", "touch", "update"]

# A space has the words that it was begun with: a trigger refuses others.
_SPACE: Final = """INSERT INTO memory_spaces (tenant, collection, words) VALUES (?1, ?2, ?3)
    ON CONFLICT (tenant, collection) DO UPDATE SET words = excluded.words WHERE words <> excluded.words"""
_SCOPE: Final = f"INSERT INTO memory_scopes (space, path) VALUES ({SPACE}, ?3) ON CONFLICT (space, path) DO NOTHING"
_SCOPE_KEY: Final = f"(SELECT scope FROM memory_scopes WHERE space = {SPACE} AND path = ?{{}})"
# The next one of the space. Of a record that exists already the conflict comes first, and its key stays.
_NEXT_KEY: Final = f"""(SELECT coalesce(max(key), {SPACE} - 1 << {KEY_BITS}) + 1 FROM memory_records
        WHERE key > ({SPACE} - 1 << {KEY_BITS}) AND key <= {SPACE} << {KEY_BITS})"""
_RECORD: Final = f"""INSERT INTO memory_records (key, space, id, scope, content, categories, metadata, importance,
        created_at, accessed_at, source, private)
    VALUES ({_NEXT_KEY}, {SPACE}, ?3, {_SCOPE_KEY.format(4)}, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
    ON CONFLICT (space, id) DO UPDATE SET scope = excluded.scope, content = excluded.content,
        categories = excluded.categories, metadata = excluded.metadata, importance = excluded.importance,
        created_at = excluded.created_at, accessed_at = excluded.accessed_at, source = excluded.source,
        private = excluded.private"""
_KEY: Final = f"(SELECT key FROM memory_records WHERE space = {SPACE} AND id = ?3)"
_VECTOR: Final = f"""INSERT INTO memory_vectors (key, embedding) VALUES ({_KEY}, ?4)
    ON CONFLICT (key) DO UPDATE SET embedding = excluded.embedding WHERE embedding IS NOT excluded.embedding"""
_NO_VECTOR: Final = f"INSERT INTO memory_vectors (key) VALUES ({_KEY}) ON CONFLICT (key) DO NOTHING"
_WORDS: Final = f"(SELECT words FROM memory_spaces WHERE space = {SPACE})"
_TOUCH: Final = f"""UPDATE memory_records SET accessed_at = ?3
    WHERE space = {SPACE} AND id IN (SELECT value FROM json_each(?4))"""


def save(space: Space, records: Sequence[Record]) -> Write[None]:
    """Return the job that inserts or replaces the records."""
    packed = embeddings(records)
    owner = space[:2]
    statements: list[Statement] = [(_SPACE, tuple(space))] if records else []
    statements += [(_SCOPE, (*owner, scope)) for scope in {record.scope: None for record in records}]
    for record in records:
        statements.append((_RECORD, (*owner, *values(record))))
        if record.embedding is None:
            statements.append((_NO_VECTOR, (*owner, record.id)))
        else:
            statements.append((_VECTOR, (*owner, record.id, record.embedding)))
    return Write(statements, nothing, reads.refusal(space, packed))


def update(space: Space, record_id: str, changes: Mapping[str, Any]) -> Write[bool]:
    """Return the job that changes the named fields of one record.

    Raises:
        TypeError: there is no such field.
        DataError: a record cannot have such a value.
    """
    record = changed(record_id, changes)
    packed = embeddings([record])
    columns = dict(zip(COLUMNS, values(record), strict=True))
    named = [column for column in COLUMNS if column in changes]
    owner = space[:2]
    statements: list[Statement] = []
    if "scope" in changes:
        known = f"SELECT {SPACE}, ?3 WHERE EXISTS (SELECT 1 FROM memory_records WHERE space = {SPACE} AND id = ?4)"
        sql = f"INSERT INTO memory_scopes (space, path) {known} ON CONFLICT (space, path) DO NOTHING"
        statements.append((sql, (*owner, record.scope, record_id)))
    if "embedding" in changes:
        sql = f"UPDATE memory_vectors SET embedding = ?4 WHERE key = {_KEY}"
        statements.append((sql, (*owner, record_id, record.embedding)))
    # Last, and of a column that is not changed where none is named: its count says whether there is such a record.
    given_values = [columns[column] for column in named]
    sets = [f"{name} = {_SCOPE_KEY.format(n) if name == 'scope' else f'?{n}'}" for n, name in enumerate(named, 4)]
    sql = f"""UPDATE memory_records SET {", ".join(sets) or "accessed_at = accessed_at"}
        WHERE space = {SPACE} AND id = ?3"""
    statements.append((sql, (*owner, record_id, *given_values)))
    return Write(statements, lambda results: results[-1].rowcount > 0, reads.refusal(space, packed))


def touch(space: Space, record_ids: Iterable[str], at: datetime) -> Write[int]:
    """Return the job that sets `accessed_at`."""
    return Write([(_TOUCH, (*space[:2], micros(at), encoded(record_ids)))], _rowcount)


def delete(space: Space, query: Query, *more: str, given: Given | None = None) -> Write[int] | Steps[int]:
    """Return the job that deletes the records that meet `query`, and more conditions; triggers take all else along."""
    given = given or Given(space)
    selection = select(query, given)
    selection = replace(selection, rows=(*selection.rows, *more))
    if selection.python:
        return _delete_narrowed(given, selection)
    return Write([(f"DELETE FROM memory_records AS r WHERE {selection.where()}", given.values)], _rowcount)


def expire(
    space: Space, query: Query, *, older_than: timedelta | None, keep: int | None, importance_below: float | None
) -> Write[int] | Steps[int]:
    """Return the job that deletes the records that meet `query` and each condition given.

    Raises:
        DataError: there is no condition, or a negative one.
    """
    given = Given(space)
    more = aged(given, older_than=older_than, keep=keep, importance_below=importance_below)
    if keep is not None:
        # Only in scopes that hold more than that; the newest ones of each are numbered along the index.
        most = given(keep)
        more.append(f"""r.key IN (SELECT key FROM (SELECT o.key, row_number() OVER
            (PARTITION BY o.scope ORDER BY o.created_at DESC, o.key DESC) AS place FROM memory_records AS o
            WHERE o.scope IN (SELECT scope FROM memory_scopes WHERE space = {SPACE} AND records > {most}))
            WHERE place > {most})""")
    return delete(space, query, *more, given=given)


def reset(space: Space) -> Write[None]:
    """Return the job that empties the space and forgets its dims.

    Table by table rather than record by record: the triggers stand aside meanwhile. The next epoch says that all that
    was known of the sketches is void, so no tombstones are left.
    """
    scopes = f"SELECT scope FROM memory_scopes WHERE space = {SPACE}"
    keys = f"SELECT key FROM memory_records WHERE space = {SPACE}"
    statements = (
        f"UPDATE memory_spaces SET resetting = 1 WHERE space = {SPACE}",
        # Of the index that the space has, which may be another than this store asks for.
        *(f"{words.forget(name, SPACE)} AND {_WORDS} = '{name}'" for name in words.TABLE_OF),
        f"DELETE FROM memory_vectors WHERE key IN ({keys})",
        f"DELETE FROM memory_category_counts WHERE scope IN ({scopes})",
        f"DELETE FROM memory_categories WHERE space = {SPACE}",
        f"DELETE FROM memory_metadata WHERE space = {SPACE}",
        f"DELETE FROM memory_records WHERE space = {SPACE}",
        f"DELETE FROM memory_scopes WHERE space = {SPACE}",
        f"DELETE FROM memory_sketches WHERE space = {SPACE}",
        f"""UPDATE memory_spaces SET resetting = 0, dims = NULL, centroid = NULL, epoch = epoch + 1,
            trimmed = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'memory_sketches'), 0)
            WHERE space = {SPACE}""",
    )
    return Write([(sql, space[:2]) for sql in statements], nothing)


def _delete_narrowed(given: Given, selection: Selection) -> Steps[int]:
    keys = yield from reads.keys(given, selection)
    sql = "DELETE FROM memory_records WHERE key IN (SELECT value FROM json_each(?1))"
    return (yield from ask(Write([(sql, (encoded(keys),))], _rowcount)))


def _rowcount(results: Sequence[Result]) -> int:
    return results[-1].rowcount
