"""Looking after what is derived from the records of a space: checking it, making it anew, compacting it; no I/O."""

from __future__ import annotations

from array import array
from typing import Any, Final

from walpool.memory import _sqlite_values as values
from walpool.memory import _sqlite_words as words
from walpool.memory._operations import Read, Space, Statement, Steps, Write, ask, nothing
from walpool.memory._sqlite_filters import SPACE
from walpool.memory._sqlite_schema import category_rows, fill, sketch
from walpool.types import Row, Value

__all__ = ["compact", "differences", "rebuild", "sample", "words_check", "words_differ"]

ENOUGH: Final = 256
"""Embeddings that a centroid is taken of at least; fewer say little of those to come."""
SAMPLE: Final = 2_048
"""Embeddings that it is taken of at most, spread evenly over the records."""

"""What `check` says where `words_check` fails."""

_OURS: Final = f"r.space = {SPACE}"
_RECORDS: Final = f"SELECT key FROM memory_records WHERE space = {SPACE}"
_SCOPES: Final = f"SELECT scope FROM memory_scopes WHERE space = {SPACE}"
_LOST: Final = f"""SELECT r.key FROM memory_records AS r LEFT JOIN memory_scopes AS s ON s.scope = r.scope
        WHERE {_OURS} AND s.space IS NOT r.space"""
_FROM: Final = "memory_records AS r, "


def _either(key: str, held: str, derived: str) -> str:
    """Return the SQL of how many records two queries of rows disagree on; `key` is their last column."""
    return f"""SELECT count(DISTINCT {key}) FROM (SELECT * FROM ({held} EXCEPT {derived})
        UNION ALL SELECT * FROM ({derived} EXCEPT {held}))"""


# Each is a sentence, and the number of records (or scopes) of which it is true.
_CHECKS: Final = (
    (
        "memory_scopes: {} records lie in no scope of this collection",
        f"SELECT count(*) FROM ({_LOST})",
    ),
    (
        "memory_scopes: the counts are {} records away from those that lie there",
        f"""SELECT coalesce(sum(abs(s.records - (SELECT count(*) FROM memory_records AS r WHERE r.scope = s.scope))), 0)
        FROM memory_scopes AS s WHERE s.space = {SPACE}""",
    ),
    (
        "memory_vectors: {} records have no row there",
        f"SELECT count(*) FROM memory_records AS r WHERE {_OURS} AND r.key NOT IN (SELECT key FROM memory_vectors)",
    ),
    (
        "memory_vectors: {} rows belong to no record",
        "SELECT count(*) FROM memory_vectors WHERE key NOT IN (SELECT key FROM memory_records)",
    ),
    (
        "memory_vectors: the embeddings of {} records have another length than the dims",
        f"""SELECT count(*) FROM memory_records AS r JOIN memory_vectors AS v ON v.key = r.key
        JOIN memory_spaces AS s ON s.space = r.space WHERE {_OURS} AND length(v.embedding) IS NOT NULL
        AND length(v.embedding) IS NOT s.dims * 4""",
    ),
    (
        "memory_sketches: {} records have no state there, or that of a deleted one",
        f"""SELECT count(*) FROM memory_records AS r LEFT JOIN memory_sketches AS k ON k.key = r.key
        WHERE {_OURS} AND k.gone IS NOT 0""",
    ),
    (
        "memory_sketches: {} records have the sketch of another embedding, or another scope",
        f"""SELECT count(*) FROM memory_records AS r JOIN memory_sketches AS k ON k.key = r.key
        JOIN memory_vectors AS v ON v.key = r.key JOIN memory_spaces AS s ON s.space = r.space
        WHERE {_OURS} AND k.gone = 0 AND (k.space <> r.space OR k.scope <> r.scope
        OR k.sketch IS NOT {sketch("v.embedding", "s.centroid")})""",
    ),
    (
        "memory_sketches: {} records are there that the collection does not have",
        f"SELECT count(*) FROM memory_sketches WHERE space = {SPACE} AND gone = 0 AND key NOT IN ({_RECORDS})",
    ),
    (
        "memory_categories: {} records have other categories there",
        _either(
            "key", f"SELECT space, category, key FROM memory_categories WHERE space = {SPACE}",
            category_rows("r", _FROM, _OURS),
        ),
    ),
    (
        "memory_category_counts: {} scopes have other counts there",
        _either(
            "scope", f"""SELECT category, records, scope FROM memory_category_counts
            WHERE scope IN ({_SCOPES}) AND records <> 0""",
            f"""SELECT c.value, count(DISTINCT r.key), r.scope FROM {_FROM}json_each(r.categories) AS c WHERE {_OURS}
            GROUP BY c.value, r.scope""",
        ),
    ),
    (
        "memory_metadata: {} records have other metadata there",
        _either(
            "key",
            f"SELECT space, name, element, kind, value, key FROM memory_metadata WHERE space = {SPACE}",
            f"SELECT * FROM ({' UNION '.join(values.rows('r', _FROM, _OURS))})",
        ),
    ),
)  # fmt: skip


def differences(space: Space) -> Steps[list[str]]:
    """Return the reads of what is derived and differs from the records."""
    found = []
    for sentence, sql in _CHECKS:
        number = yield from ask(Read(sql, _owner(sql, space), _first))
        if number:
            found.append(sentence.format(number))
    return found


def rebuild(space: Space) -> Write[None]:
    """Return the job that makes anew what is derived from the records of the space."""
    statements = [
        # A record whose scope is lost comes to the root.
        f"INSERT INTO memory_scopes (space, path) SELECT {SPACE}, '/' WHERE EXISTS ({_LOST}) ON CONFLICT DO NOTHING",
        f"""UPDATE memory_records SET scope = (SELECT scope FROM memory_scopes WHERE space = {SPACE} AND path = '/')
            WHERE key IN ({_LOST})""",
        # What the deletion of a vector alone, or a foreign program, may have left.
        f"INSERT INTO memory_vectors (key) SELECT r.key FROM memory_records AS r WHERE {_OURS} ON CONFLICT DO NOTHING",
        "DELETE FROM memory_vectors WHERE key NOT IN (SELECT key FROM memory_records)",
        f"DELETE FROM memory_category_counts WHERE scope IN ({_SCOPES})",
        f"DELETE FROM memory_categories WHERE space = {SPACE}",
        f"DELETE FROM memory_metadata WHERE space = {SPACE}",
        f"DELETE FROM memory_sketches WHERE space = {SPACE} OR key IN ({_RECORDS})",
        *fill(_OURS).values(),
        words.REBUILD[space.words],
        _NEXT_EPOCH,
    ]
    return Write([(sql, _owner(sql, space)) for sql in statements], nothing)


def sample(space: Space) -> Read[bytes | None]:
    """Return the read of the mean of the space's embeddings, packed; None if there are not enough."""
    sql = f"""WITH ours (key, place) AS (SELECT r.key, row_number() OVER (ORDER BY r.key) FROM memory_records AS r
            WHERE {_OURS})
        SELECT v.embedding FROM ours JOIN memory_vectors AS v ON v.key = ours.key
        WHERE place % max(1, (SELECT count(*) FROM ours) / {SAMPLE}) = 0 AND v.embedding IS NOT NULL LIMIT {SAMPLE}"""
    return Read(sql, space[:2], _mean)


def compact(space: Space, centroid: bytes | None) -> Write[None]:
    """Return the job that sketches every embedding around `centroid`, and drops what nobody needs any more."""
    owner = space[:2]
    embedding = "(SELECT embedding FROM memory_vectors AS v WHERE v.key = memory_sketches.key)"
    statements: list[Statement] = []
    if centroid is not None:
        statements += [
            (f"UPDATE memory_spaces SET centroid = ?3 WHERE space = {SPACE}", (*owner, centroid)),
            (
                f"UPDATE memory_sketches SET sketch = {sketch(embedding, '?3')} WHERE space = {SPACE} AND gone = 0",
                (*owner, centroid),
            ),
        ]
    statements += [
        (f"DELETE FROM memory_sketches WHERE space = {SPACE} AND gone = 1", owner),
        (f"DELETE FROM memory_category_counts WHERE records = 0 AND scope IN ({_SCOPES})", owner),
        (f"DELETE FROM memory_scopes WHERE space = {SPACE} AND records = 0", owner),
        (words.OPTIMIZE[space.words], ()),
        (_NEXT_EPOCH, owner),
    ]
    return Write(statements, nothing)


def words_check(space: Space) -> Write[None]:
    """Return the job that fails with a CorruptError if the word index of the space's kind differs from the records.

    A job, since FTS5 compares at the command of an INSERT; it writes nothing. https://www.sqlite.org/fts5.html
    """
    return Write([(words.CHECK[space.words], ())], nothing)


def words_differ(space: Space) -> str:
    """Return the sentence for a word index that failed its check; FTS5 does not say how many records it is about."""
    return f"{words.TABLE_OF[space.words]}: the word index differs from the contents of the records"


_NEXT_EPOCH: Final = f"""UPDATE memory_spaces SET epoch = epoch + 1, trimmed =
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'memory_sketches'), 0) WHERE space = {SPACE}"""


def _owner(sql: str, space: Space) -> tuple[Value, ...]:
    """Return the parameters of a statement: some look at rows that are nobody's."""
    return space[:2] if SPACE in sql else ()


def _first(rows: list[Row]) -> int:
    return int(rows[0][0])


def _mean(rows: list[Row]) -> bytes | None:
    """Return the mean of packed embeddings; None if there are fewer than `ENOUGH`."""
    if len(rows) < ENOUGH:
        return None
    columns: Any = zip(*(array("f", row[0]) for row in rows), strict=True)
    return array("f", [sum(column) / len(rows) for column in columns]).tobytes()
