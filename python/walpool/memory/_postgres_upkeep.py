"""Looking after what is derived from the records of a space: checking it, making it anew, compacting it; no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from walpool.memory._operations import Given, Read, Space, Steps, Write, ask, first, nothing
from walpool.memory._postgres_filters import OWNER
from walpool.memory._postgres_writes import LOCK, derived
from walpool.types import Row

__all__ = ["compact", "differences", "rebuild"]

_CHUNK: Final = 500
"""Records that are read and compared at once."""
_OWNED: Final = "tenant = ?1 AND collection = ?2"
_ORPHANS: Final = """v.tenant = ?1 AND v.collection = ?2 AND NOT EXISTS (SELECT 1 FROM memory_records AS r
    WHERE r.tenant = ?1 AND r.collection = ?2 AND r.key = v.key)"""
_LENGTH: Final = "coalesce(vector_dims(v.half), vector_dims(v.embedding))"  # the half lies in the row
_NEXT_EPOCH: Final = f"UPDATE memory_spaces SET epoch = epoch + 1 WHERE {_OWNED}"
# Text as text: two vectors that differ in no word are the same text.
_DERIVED: Final = """json_to_recordset(CAST(?3 AS JSON)) AS g (key BIGINT, change BIGINT, words TEXT, folded TEXT,
    length INTEGER, category_marks TEXT, metadata_marks TEXT, metadata_order TEXT)"""

# Each is a sentence, and the number of which it is true.
_CHECKS: Final = (
    (
        "memory_vectors: {} rows belong to no record",
        f"SELECT count(*) FROM memory_vectors AS v WHERE {_ORPHANS}",
    ),
    (
        "memory_vectors: {} embeddings have another length than the dims",
        f"""SELECT count(*) FROM memory_vectors AS v JOIN memory_spaces AS s
            ON s.tenant = v.tenant AND s.collection = v.collection
            WHERE v.tenant = ?1 AND v.collection = ?2 AND v.embedding IS NOT NULL
            AND {_LENGTH} IS DISTINCT FROM s.dims""",
    ),
    (
        "memory_vectors: {} records have no row there, or one of another scope",
        f"""SELECT count(*) FROM memory_records AS r LEFT JOIN memory_vectors AS v
            ON v.tenant = r.tenant AND v.collection = r.collection AND v.key = r.key
            WHERE {OWNER} AND v.scope IS DISTINCT FROM r.scope""",
    ),
    (
        "memory_spaces: {} records have a number that is still to be given",
        f"""SELECT count(*) FROM memory_records AS r WHERE {OWNER} AND NOT EXISTS (SELECT 1 FROM memory_spaces AS s
            WHERE s.tenant = ?1 AND s.collection = ?2 AND s.change >= r.change AND s.change >= r.key)""",
    ),
)
_COMPARED: Final = (
    (
        "memory_records: {} records have other words in the index",
        """r.words IS DISTINCT FROM CAST(g.words AS TSVECTOR) OR r.folded IS DISTINCT FROM g.folded
            OR r.length IS DISTINCT FROM g.length""",
    ),
    (
        "memory_records: {} records have other categories in the index",
        "r.category_marks IS DISTINCT FROM CAST(g.category_marks AS UUID[])",
    ),
    (
        "memory_records: {} records have other metadata in the index",
        """r.metadata_marks IS DISTINCT FROM CAST(g.metadata_marks AS UUID[])
            OR r.metadata_order IS DISTINCT FROM CAST(g.metadata_order AS JSONB)""",
    ),
)


def differences(space: Space) -> Steps[list[str]]:
    """Return the reads of what is derived and differs from the records."""
    counts = []
    for sentence, sql in _CHECKS:
        counts.append((sentence, (yield from ask(Read(sql, space[:2], first)))))
    compared = ", ".join(f"count(*) FILTER (WHERE {condition})" for _, condition in _COMPARED)
    totals = [0] * len(_COMPARED)
    last = -1
    while rows := (yield from ask(_chunk(space, last))):
        sql = f"SELECT {compared} FROM {_DERIVED} JOIN memory_records AS r ON {OWNER} AND r.key = g.key"
        found: Row = yield from ask(Read(sql, (*space[:2], _made(space, rows)), lambda rows: rows[0]))
        totals = [total + number for total, number in zip(totals, found, strict=True)]
        last = rows[-1][0]
    counts += [(sentence, total) for (sentence, _), total in zip(_COMPARED, totals, strict=True)]
    return [sentence.format(number) for sentence, number in counts if number]


def rebuild(space: Space) -> Steps[None]:
    """Return the jobs that make anew what is derived from the records of the space, some hundred of them at a time.

    A record that is changed meanwhile was derived anew by whoever changed it.
    """
    columns = {"words": "TSVECTOR", "category_marks": "UUID[]", "metadata_marks": "UUID[]", "metadata_order": "JSONB"}
    sets = ", ".join(f"{name} = CAST(g.{name} AS {kind})" for name, kind in columns.items())
    sql = f"""UPDATE memory_records AS r SET folded = g.folded, length = g.length, {sets}
        FROM {_DERIVED} WHERE {OWNER} AND r.key = g.key AND r.change = g.change"""
    last = -1
    while rows := (yield from ask(_chunk(space, last))):
        made = _made(space, rows)
        yield from ask(Write([(LOCK, space[:2]), (sql, (*space[:2], made))], nothing))
        last = rows[-1][0]
    latest = f"SELECT greatest(s.change, max(r.change), max(r.key)) FROM memory_records AS r WHERE {OWNER}"
    dims = f"SELECT max({_LENGTH}) FROM memory_vectors AS v WHERE {_OWNED}"
    statements = (
        LOCK,
        f"DELETE FROM memory_vectors AS v WHERE {_ORPHANS}",
        f"""INSERT INTO memory_vectors AS v (tenant, collection, key, scope)
            SELECT r.tenant, r.collection, r.key, r.scope FROM memory_records AS r WHERE {OWNER}
            ON CONFLICT (tenant, collection, key) DO UPDATE SET scope = excluded.scope
            WHERE v.scope <> excluded.scope""",
        f"""UPDATE memory_spaces AS s SET change = ({latest}), dims = coalesce(s.dims, ({dims})), epoch = s.epoch + 1
            WHERE s.tenant = ?1 AND s.collection = ?2""",
    )
    yield from ask(Write([(text, space[:2]) for text in statements], nothing))


def compact(space: Space) -> Write[None]:
    """Return the job that has the server count anew, for its plans; it tidies up by itself."""
    counted = ("ANALYZE memory_records", "ANALYZE memory_vectors")  # whoever may not is warned, not refused
    return Write([(_NEXT_EPOCH, space[:2]), *((sql, ()) for sql in counted)], nothing)


def _chunk(space: Space, last: int) -> Read[list[Row]]:
    given = Given(space)
    sql = f"""SELECT r.key, r.change, r.content, r.categories, r.metadata FROM memory_records AS r
        WHERE {OWNER} AND r.key > {given(last)} ORDER BY r.key LIMIT {_CHUNK}"""
    return Read(sql, given.values, list)


def _made(space: Space, rows: Sequence[Row]) -> str:
    """Return the derived columns of rows of `_chunk`, as JSON."""
    made: list[dict[str, Any]] = [
        {"key": key, "change": change, **derived(space, content, categories, metadata)}
        for key, change, content, categories, metadata in rows
    ]
    return json.dumps(made, ensure_ascii=False)
