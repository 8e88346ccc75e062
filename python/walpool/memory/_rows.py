"""Records as the values of columns, and back; the same on every backend, and no SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from walpool.errors import DataError
from walpool.memory._operations import encoded
from walpool.memory.records import Changes, DimsError, EmbeddingError, Record, utc
from walpool.types import Row

__all__ = ["COLUMNS", "changed", "embeddings", "meets", "metadata_text", "micros", "record", "time", "values"]

COLUMNS: Final = (
    "id", "scope", "content", "categories", "metadata", "importance", "created_at", "accessed_at", "source", "private",
)  # fmt: skip
"""The columns of what `values` returns."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIELDS: Final = frozenset(Changes.__annotations__)


def values(record: Record) -> tuple[Any, ...]:
    """Return the values of `COLUMNS`; what no store could give back is refused here."""
    for text in (record.id, record.scope, record.source or "", *record.categories):
        if "\0" in text:
            raise DataError("an id, a scope, a category or a source may hold no NUL")
    return (
        record.id,
        record.scope,
        record.content,
        encoded(record.categories) if record.categories else "[]",
        metadata_text(record.metadata) if record.metadata else "{}",
        record.importance,
        micros(record.created_at),
        micros(record.accessed_at),
        record.source,
        int(record.private),
    )


def record(row: Row) -> Record:
    """Return the record of a row; what stands behind these columns is left alone.

    They are: id, content, scope, metadata, importance, created_at, accessed_at, source, private, embedding, categories.
    """
    return Record(
        id=row[0],
        content=row[1],
        scope=row[2],
        metadata=json.loads(row[3]),
        importance=row[4],
        created_at=time(row[5]),
        accessed_at=time(row[6]),
        source=row[7],
        private=bool(row[8]),
        embedding=row[9],
        categories=tuple(json.loads(row[10])),
    )


def changed(record_id: str, changes: Mapping[str, Any]) -> Record:
    """Return a record with these changes, which checks them, and brings them into the form of the columns.

    Raises:
        TypeError: there is no such field.
        DataError: a record cannot have such a value.
    """
    unknown = sorted(set(changes) - _FIELDS)
    if unknown:
        raise TypeError(f"update() can change {', '.join(sorted(_FIELDS))}; not {', '.join(unknown)}")
    return Record(**{"id": record_id, "content": "", **changes})


def time(micros: int) -> datetime:
    """Return the time that a column holds in microseconds since 1970, UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def micros(time: datetime) -> int:
    """Return a time as the tables hold it: microseconds since 1970, UTC.

    Raises:
        DataError: it could not be given back.
    """
    return (utc(time) - _EPOCH) // _MICROSECOND


def meets(metadata: str, wanted: Mapping[Any, Any]) -> bool:
    """Return whether a record's metadata equals what is wanted, as Python compares."""
    found = json.loads(metadata)
    return all(found.get(key) == value for key, value in wanted.items())


def embeddings(records: Iterable[Record]) -> list[bytes]:
    """Return the embeddings of a batch, all of one length."""
    found = [record.embedding for record in records if record.embedding is not None]
    lengths: Sequence[int] = list({len(embedding): None for embedding in found})
    if any(length % 4 or not length for length in lengths):
        raise EmbeddingError("a packed embedding has 4 bytes a dimension, and one dimension at least")
    if len(lengths) > 1:
        first, other = lengths[0] // 4, lengths[1] // 4
        raise DimsError(f"one batch holds embeddings of {first} and of {other} dims", stored=first, given=other)
    return found


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON, in ASCII.

    Raises:
        TypeError: JSON cannot hold it.
        DataError: it is nested too deep, or holds a lone surrogate; a NUL in a key.
    """
    try:
        text = json.dumps(dict(metadata))
    except RecursionError:  # a RuntimeError, which frameworks take for a shutting-down interpreter
        raise DataError("the metadata of a record is nested too deep for JSON") from None
    if "\\ud" in text:  # the half of a pair, mostly with its other half
        _refuse_surrogates(json.loads(text))
    if "\\u0000" in text and any("\0" in str(key) for key in metadata):
        raise DataError("a key of metadata may hold no NUL")
    return text


def _refuse_surrogates(metadata: Any) -> None:
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("metadata holds a lone surrogate, which UTF-8 has not") from None
