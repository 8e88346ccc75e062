"""The memory store in SQLite's terms: its tables, and each operation as SQL, parameters and a decoder; no I/O.

    memory_records      one row a record; `key` is what the other tables refer to
    memory_vectors      key -> embedding, nothing else
    memory_sketches     key -> sketch of the embedding, a quarter of its size: what a search reads of every record
    memory_categories   the categories of a record, in its order; found by name through an index
    memory_space        one row: the dims of the embeddings

Every value a caller gave is a parameter. Lists go in as one JSON parameter (`json_each`), since SQLite takes 32 766
parameters at most and each length would be a statement of its own to prepare.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from math import fsum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from walpool.errors import DataError
from walpool.memory.records import Hit, Metric, Query, Record, normalize_scope, unpack
from walpool.types import Row, Value

T_co = TypeVar("T_co", covariant=True)

Statement: TypeAlias = tuple[str, tuple[Value, ...]]
"""A write: SQL and its parameters."""

MIGRATIONS: Final = (
    (
        """CREATE TABLE memory_records (
            key INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            scope TEXT NOT NULL,
            content TEXT NOT NULL,
            metadata TEXT NOT NULL,
            importance REAL NOT NULL,
            created_at INTEGER NOT NULL,
            accessed_at INTEGER NOT NULL,
            source TEXT,
            private INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX memory_records_scope ON memory_records (scope, created_at)",
        "CREATE INDEX memory_records_created ON memory_records (created_at)",
        # A row for every record, NULL where it has no embedding: a search over everything needs no other table to know
        # what there is.
        "CREATE TABLE memory_vectors (key INTEGER PRIMARY KEY, embedding BLOB) STRICT",
        "CREATE TABLE memory_sketches (key INTEGER PRIMARY KEY, sketch BLOB) STRICT",
        """CREATE TABLE memory_categories (
            key INTEGER NOT NULL,
            position INTEGER NOT NULL,
            category TEXT NOT NULL,
            PRIMARY KEY (key, position)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX memory_categories_name ON memory_categories (category, key)",
        "CREATE TABLE memory_space (id INTEGER PRIMARY KEY CHECK (id = 1), dims INTEGER NOT NULL) STRICT",
        # Triggers rather than foreign keys: they hold whatever `foreign_keys` is set to, and deferrable keys would cost
        # every job of the file a savepoint.
        """CREATE TRIGGER memory_records_deleted AFTER DELETE ON memory_records BEGIN
            DELETE FROM memory_vectors WHERE key = OLD.key;
            DELETE FROM memory_sketches WHERE key = OLD.key;
            DELETE FROM memory_categories WHERE key = OLD.key;
        END""",
        # The first embedding fixes the dims. In the database rather than in Python: two processes may both be first.
        """CREATE TRIGGER memory_vectors_dims BEFORE INSERT ON memory_vectors WHEN NEW.embedding IS NOT NULL BEGIN
            INSERT INTO memory_space (id, dims) VALUES (1, length(NEW.embedding) / 4) ON CONFLICT (id) DO NOTHING;
            SELECT RAISE(ABORT, 'another length than the dims of this store')
            FROM memory_space WHERE dims * 4 <> length(NEW.embedding);
        END""",
        # A sketch of another vector would hide its record from searches. So the database makes it, whoever writes the
        # vector; a program that lacks the function can write none.
        """CREATE TRIGGER memory_vectors_put AFTER INSERT ON memory_vectors BEGIN
            INSERT INTO memory_sketches (key, sketch) VALUES (NEW.key, vec_sketch(NEW.embedding));
        END""",
        """CREATE TRIGGER memory_vectors_replaced AFTER UPDATE OF embedding ON memory_vectors BEGIN
            UPDATE memory_sketches SET sketch = vec_sketch(NEW.embedding) WHERE key = NEW.key;
        END""",
    ),
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)

# Decoded by `_record`, in this order.
_COLUMNS: Final = """r.id, r.content, r.scope, r.metadata, r.importance, r.created_at, r.accessed_at, r.source,
    r.private, v.embedding, (SELECT json_group_array(category) FROM (
        SELECT category FROM memory_categories AS c WHERE c.key = r.key ORDER BY c.position))"""
_TABLES: Final = "memory_records AS r JOIN memory_vectors AS v ON v.key = r.key"

# A record without an embedding counts as a zero vector: its distance is the query's own length, its cosine nothing.
_SCORES: Final[Mapping[Metric, str]] = {
    "l2": "1.0 / (1.0 + coalesce(vec_l2sq(embedding, ?1), ?2))",
    "cosine": "coalesce(vec_cosine(embedding, ?1), ?2)",
}
# What the score is at most. For "l2" it is that of the least distance: more distance is never more score, even rounded.
_BOUNDS: Final[Mapping[Metric, str]] = {
    "l2": "1.0 / (1.0 + coalesce(vec_sketch_l2sq(sketch, ?1), ?2))",
    "cosine": "coalesce(vec_sketch_cosine(sketch, ?1), ?2)",
}

_PUT_RECORD: Final = """INSERT INTO memory_records
    (id, scope, content, metadata, importance, created_at, accessed_at, source, private)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET scope = excluded.scope, content = excluded.content, metadata = excluded.metadata,
        importance = excluded.importance, created_at = excluded.created_at, accessed_at = excluded.accessed_at,
        source = excluded.source, private = excluded.private"""
_PUT_VECTOR: Final = """INSERT INTO memory_vectors (key, embedding) SELECT key, ? FROM memory_records WHERE id = ?
    ON CONFLICT (key) DO UPDATE SET embedding = excluded.embedding"""
_KEEP_VECTOR: Final = """INSERT INTO memory_vectors (key, embedding) SELECT key, NULL FROM memory_records WHERE id = ?
    ON CONFLICT (key) DO NOTHING"""
_DROP_CATEGORIES: Final = "DELETE FROM memory_categories WHERE key = (SELECT key FROM memory_records WHERE id = ?)"
_PUT_CATEGORIES: Final = """INSERT INTO memory_categories (key, position, category)
    SELECT r.key, c.key, c.value FROM memory_records AS r, json_each(?) AS c WHERE r.id = ?"""


@dataclass(frozen=True, slots=True)
class Read(Generic[T_co]):
    """A read: SQL, its parameters, and what makes an answer of its rows."""

    sql: str
    params: tuple[Value, ...]
    decode: Callable[[list[Row]], T_co]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which keys of `memory_records` take part: a condition on that table, empty for all of them."""

    condition: str = ""
    params: tuple[Value, ...] = ()

    def where(self) -> str:
        """Return the WHERE clause for a statement on `memory_records`."""
        return f"WHERE {self.condition}" if self.condition else ""

    def where_key(self) -> str:
        """Return the WHERE clause for a statement on another table with a `key`."""
        return f"WHERE key IN (SELECT key FROM memory_records WHERE {self.condition})" if self.condition else ""


def select(query: Query) -> Selection:
    """Return the selection of `query`, all but its metadata, which Python compares (`matching`)."""
    conditions: list[str] = []
    params: list[Value] = []
    if query.scope is not None:
        # "0" is the character after "/": the range holds what lies below the scope, and no neighbour such as /a-b.
        conditions.append("(scope = ? OR scope >= ? AND scope < ?)")
        params += [query.scope, query.scope + "/", query.scope + "0"]
    if query.ids is not None:
        conditions.append("id IN (SELECT value FROM json_each(?))")
        params.append(json.dumps(query.ids))
    if query.categories is not None:
        named = "SELECT key FROM memory_categories WHERE category IN (SELECT value FROM json_each(?))"
        conditions.append(f"key IN ({named})")
        params.append(json.dumps(query.categories))
    if query.created_before is not None:
        conditions.append("created_at < ?")
        params.append(_micros(query.created_before))
    return Selection(" AND ".join(conditions), tuple(params))


def select_keys(keys: Sequence[int]) -> Selection:
    """Return the selection of exactly these keys."""
    return Selection("key IN (SELECT value FROM json_each(?))", (json.dumps(keys),))


def matching(query: Query) -> Read[list[int]]:
    """Return the read of the keys that meet `query`, its metadata included.

    SQL only leaves out what cannot match, then Python's == decides on the decoded values. What SQL may leave out: a
    value other than None needs its key, and a string needs itself behind it, both in the text that `json.dumps` made.
    """
    wanted = dict(query.metadata or {})
    selection = select(query)
    conditions = [selection.condition] if selection.condition else []
    params = list(selection.params)
    for key, value in wanted.items():
        if type(key) is str and value is not None:
            conditions.append("instr(metadata, ?) > 0")
            params.append(f"{json.dumps(key)}: {json.dumps(value)}" if type(value) is str else f"{json.dumps(key)}: ")

    def decode(rows: list[Row]) -> list[int]:
        return [key for key, text in rows if _meets(json.loads(text), wanted)]

    narrowed = Selection(" AND ".join(conditions), tuple(params))
    return Read(f"SELECT key, metadata FROM memory_records {narrowed.where()}", narrowed.params, decode)


def nearest(embedding: bytes, selection: Selection, *, limit: int, metric: Metric) -> Read[list[Hit]]:
    """Return the read of the `limit` selected records nearest to `embedding`, by falling score.

    Exact, although it reads the sketches of all and the vectors of few. A sketch tells what its record scores at most
    (`bounds`). The `limit` records that look best are scored (`scored`), and the worst of them is the bar. Whatever may
    reach it is scored (`best`); what may not is behind `limit` others. The text is read for the winners only.
    """
    if metric not in _SCORES:
        raise DataError(f"the metric of a search is one of {', '.join(_SCORES)}")
    if_null = fsum(x * x for x in unpack(embedding)) if metric == "l2" else 0.0
    limited = f"LIMIT ?{3 + len(selection.params)}"
    score = f"{_SCORES[metric]} AS score"
    sql = f"""WITH bounds (key, bound) AS MATERIALIZED (
            SELECT key, {_BOUNDS[metric]} FROM memory_sketches {selection.where_key()}),
        scored (score) AS (
            SELECT {score} FROM (SELECT key FROM bounds ORDER BY bound DESC, key {limited}) AS first
            CROSS JOIN memory_vectors AS v ON v.key = first.key),
        best (key, score) AS MATERIALIZED (
            SELECT v.key, {score} FROM bounds CROSS JOIN memory_vectors AS v ON v.key = bounds.key
            WHERE bound >= (SELECT min(score) FROM scored) ORDER BY score DESC, v.key {limited})
        SELECT best.score, {_COLUMNS} FROM best
            CROSS JOIN memory_records AS r ON r.key = best.key CROSS JOIN memory_vectors AS v ON v.key = best.key
        ORDER BY best.score DESC, best.key"""

    def decode(rows: list[Row]) -> list[Hit]:
        return [Hit(_record(row[1:]), row[0]) for row in rows]

    return Read(sql, (embedding, if_null, *selection.params, limit), decode)


def newest(selection: Selection, *, limit: int, offset: int) -> Read[list[Record]]:
    """Return the read of one page of the selected records, newest first; of one instant, the last one put first."""
    page = f"SELECT key FROM memory_records {selection.where()} ORDER BY created_at DESC, key DESC LIMIT ? OFFSET ?"
    sql = f"SELECT {_COLUMNS} FROM {_TABLES} WHERE r.key IN ({page}) ORDER BY r.created_at DESC, r.key DESC"
    return Read(sql, (*selection.params, limit, offset), lambda rows: [_record(row) for row in rows])


def by_id(record_id: str) -> Read[Record | None]:
    """Return the read of one record."""
    return Read(
        f"SELECT {_COLUMNS} FROM {_TABLES} WHERE r.id = ?",
        (record_id,),
        lambda rows: _record(rows[0]) if rows else None,
    )


def count(selection: Selection) -> Read[int]:
    """Return the read of how many records are selected."""
    return Read(f"SELECT count(*) FROM memory_records {selection.where()}", selection.params, lambda rows: rows[0][0])


def age(selection: Selection) -> Read[tuple[int, datetime | None, datetime | None]]:
    """Return the read of how many records are selected, and when the oldest and the newest of them were made."""
    sql = f"SELECT count(*), min(created_at), max(created_at) FROM memory_records {selection.where()}"

    def decode(rows: list[Row]) -> tuple[int, datetime | None, datetime | None]:
        number, oldest, latest = rows[0]
        return number, None if oldest is None else _time(oldest), None if latest is None else _time(latest)

    return Read(sql, selection.params, decode)


def categories(selection: Selection) -> Read[dict[str, int]]:
    """Return the read of the categories of the selected records, each with its number of records."""
    sql = f"""SELECT category, count(DISTINCT key) FROM memory_categories {selection.where_key()}
        GROUP BY category ORDER BY category"""
    return Read(sql, selection.params, dict)


def children(parent: str) -> Read[tuple[str, ...]]:
    """Return the read of the scopes one level below `parent`.

    The recursion jumps through the index from each scope to the next one: its cost is the number of scopes, not that
    of records. https://www.sqlite.org/lang_with.html#recursive_common_table_expressions
    """
    below = normalize_scope(parent).rstrip("/") + "/"
    sql = """WITH RECURSIVE found (scope) AS (
            SELECT min(scope) FROM memory_records WHERE scope > ?1 AND scope < ?2
            UNION ALL
            SELECT (SELECT min(scope) FROM memory_records WHERE scope > found.scope AND scope < ?2)
            FROM found WHERE scope IS NOT NULL)
        SELECT scope FROM found WHERE scope IS NOT NULL"""

    def decode(rows: list[Row]) -> tuple[str, ...]:
        return tuple(sorted({below + scope[len(below) :].split("/", 1)[0] for (scope,) in rows}))

    return Read(sql, (below, below[:-1] + "0"), decode)


def dims() -> Read[int | None]:
    """Return the read of the length of the store's embeddings."""
    return Read("SELECT dims FROM memory_space", (), lambda rows: rows[0][0] if rows else None)


def put(record: Record) -> list[Statement]:
    """Return the statements that insert or replace one record."""
    # Encoded first: metadata that JSON cannot hold is the caller's TypeError, before anything is written.
    statements: list[Statement] = [(_PUT_RECORD, _values(record))]
    if record.embedding is None:
        statements.append((_KEEP_VECTOR, (record.id,)))
    else:
        statements.append((_PUT_VECTOR, (record.embedding, record.id)))
    statements.append((_DROP_CATEGORIES, (record.id,)))
    if record.categories:
        statements.append((_PUT_CATEGORIES, (json.dumps(record.categories), record.id)))
    return statements


def touch(record_ids: Iterable[str], at: datetime) -> Statement:
    """Return the statement that sets `accessed_at`."""
    sql = "UPDATE memory_records SET accessed_at = ? WHERE id IN (SELECT value FROM json_each(?))"
    return sql, (_micros(at), json.dumps(list(record_ids)))


def delete(selection: Selection) -> Statement:
    """Return the statement that deletes the selected records; a trigger takes their other rows along."""
    return f"DELETE FROM memory_records {selection.where()}", selection.params


def clear() -> list[Statement]:
    """Return the statements that empty the store; the wide tables first, so that the trigger has nothing left to do."""
    tables = ("memory_vectors", "memory_sketches", "memory_categories", "memory_records", "memory_space")
    return [(f"DELETE FROM {table}", ()) for table in tables]


def _values(record: Record) -> tuple[Value, ...]:
    return (
        record.id,
        record.scope,
        record.content,
        _encoded(record.metadata),
        record.importance,
        _micros(record.created_at),
        _micros(record.accessed_at),
        record.source,
        record.private,
    )


def _encoded(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata))
    except RecursionError:  # a RuntimeError, which frameworks take for a shutting-down interpreter
        raise DataError("the metadata of a record is nested too deep for JSON") from None


def _record(row: Row) -> Record:
    return Record(
        id=row[0],
        content=row[1],
        scope=row[2],
        metadata=json.loads(row[3]),
        importance=row[4],
        created_at=_time(row[5]),
        accessed_at=_time(row[6]),
        source=row[7],
        private=bool(row[8]),
        embedding=row[9],
        categories=tuple(json.loads(row[10])),
    )


def _meets(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(metadata.get(key) == value for key, value in wanted.items())


def _micros(time: datetime) -> int:
    aware = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time
    return (aware - _EPOCH) // _MICROSECOND


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
