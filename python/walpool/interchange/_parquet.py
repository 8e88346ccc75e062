"""Memories as Parquet, through pyarrow: a column for each field, head and end in the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from typing import IO, Any, Final

from walpool.errors import ConfigError, DataError
from walpool.interchange._entries import End, Entry, Head, Read, entry_of, sum_up
from walpool.memory import Record

__all__ = ["read", "write"]

_ROWS: Final = 1000  # in a row group: 6 MB of embeddings of 1536 dims
_HEAD: Final = b"walpool"
_END: Final = b"walpool.end"
_NEEDED: Final = ("id", "content", "created_at")


def write(file: IO[bytes], head: Head, entries: Iterable[Entry], total: Read) -> None:
    """Write head, entries and end; count what was written in `total`.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    dims = {each.dims for each in head.collections if each.dims is not None}
    schema = _schema(arrow, dims.pop() if len(dims) == 1 else None)
    schema = schema.with_metadata({_HEAD: json.dumps(head.as_dict())})
    # A dictionary of embeddings would only be in the way.
    texts = ["tenant", "collection", "scope", "source"]
    with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=texts) as writer:
        records = iter(entries)
        while chunk := [entry for entry in islice(records, _ROWS) if isinstance(entry.record, Record)]:
            writer.write_table(arrow.Table.from_batches([_batch(arrow, schema, chunk)]))
            for entry in chunk:
                sum_up(total.total, entry)
        total.end = End(total.total.count, str(total.total))
        writer.add_key_value_metadata({_END: json.dumps(total.end.as_dict())})


def read(file: IO[bytes], found: Read) -> Iterator[Entry]:
    """Yield the entries from the beginning of the file; what else stands there goes into `found`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is no Parquet file, is damaged, or has no columns of memories.
    """
    arrow, parquet = _arrow()
    file.seek(0)
    try:
        source = parquet.ParquetFile(file)
        written = source.schema_arrow.metadata or {}
        stored = source.metadata.metadata or {}
        found.head = Head.of(json.loads(written[_HEAD])) if _HEAD in written else None
        found.end = End.of(json.loads(stored[_END])) if _END in stored else None
        if missing := [name for name in _NEEDED if name not in source.schema_arrow.names]:
            raise DataError(f"the file has no column {', '.join(missing)}")
        for batch in source.iter_batches(batch_size=_ROWS):
            for entry in _entries(batch):
                if isinstance(entry.record, Record):
                    sum_up(found.total, entry)
                else:
                    found.refused += 1
                yield entry
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"the file is no Parquet file, is damaged or was cut off: {error}") from error


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")  # which has no types
    except ImportError as error:
        raise ConfigError(f"Parquet needs pyarrow: pip install 'walpool[export]' ({error})") from error


def _schema(arrow: Any, dims: int | None) -> Any:
    time = arrow.timestamp("us", tz="UTC")
    embedding = arrow.list_(arrow.float32()) if dims is None else arrow.list_(arrow.float32(), dims)
    return arrow.schema(
        [
            arrow.field("tenant", arrow.string(), nullable=False),
            arrow.field("collection", arrow.string(), nullable=False),
            arrow.field("id", arrow.string(), nullable=False),
            arrow.field("content", arrow.string(), nullable=False),
            arrow.field("scope", arrow.string(), nullable=False),
            arrow.field("categories", arrow.list_(arrow.string()), nullable=False),
            arrow.field("metadata", arrow.string(), nullable=False),  # JSON
            arrow.field("importance", arrow.float64(), nullable=False),
            arrow.field("created_at", time, nullable=False),
            arrow.field("accessed_at", time, nullable=False),
            arrow.field("source", arrow.string()),
            arrow.field("private", arrow.bool_(), nullable=False),
            arrow.field("embedding", embedding),
        ]
    )


def _batch(arrow: Any, schema: Any, chunk: list[Entry]) -> Any:
    records: list[Any] = [entry.record for entry in chunk]
    columns: dict[str, Any] = {
        "tenant": [entry.tenant for entry in chunk],
        "collection": [entry.collection for entry in chunk],
        "categories": [list(record.categories) for record in records],
        "metadata": [json.dumps(dict(record.metadata), ensure_ascii=False) for record in records],
    }
    arrays = [
        _embeddings(arrow, field.type, [record.embedding for record in records])
        if field.name == "embedding"
        else arrow.array(columns.get(field.name) or [getattr(record, field.name) for record in records], field.type)
        for field in schema
    ]
    return arrow.RecordBatch.from_arrays(arrays, schema=schema)


def _embeddings(arrow: Any, kind: Any, embeddings: list[bytes | None]) -> Any:
    """Return a column of embeddings from their bytes, never through Python's numbers."""
    is_missing = arrow.array([embedding is None for embedding in embeddings])
    dims = getattr(kind, "list_size", None)
    filler = b"" if dims is None else bytes(4 * dims)
    content = [filler if embedding is None else embedding for embedding in embeddings]
    joined = b"".join(content)
    values = arrow.Array.from_buffers(arrow.float32(), len(joined) // 4, [None, arrow.py_buffer(joined)])
    if dims is not None:
        return arrow.FixedSizeListArray.from_arrays(values, dims, mask=is_missing)
    offsets = [0]
    for embedding in content:
        offsets.append(offsets[-1] + len(embedding) // 4)
    return arrow.ListArray.from_arrays(arrow.array(offsets, arrow.int32()), values, mask=is_missing)


def _entries(batch: Any) -> Iterator[Entry]:
    has_embeddings = "embedding" in batch.schema.names
    rows = (batch.drop_columns(["embedding"]) if has_embeddings else batch).to_pylist()
    embeddings = batch.column("embedding") if has_embeddings else None
    for place, row in enumerate(rows):
        embedding = None if embeddings is None or not embeddings[place].is_valid else _bytes(embeddings[place].values)
        if isinstance(row.get("metadata"), str):
            try:
                row["metadata"] = json.loads(row["metadata"])
            except ValueError:
                row["metadata"] = 0  # no object: it is refused by its id
        yield entry_of(row, embedding)


def _bytes(values: Any) -> Any:
    """Return the embedding's bytes where the file has float32, else its numbers."""
    if str(values.type) != "float" or values.null_count:
        return values.to_pylist()
    start = 4 * values.offset
    return values.buffers()[1][start : start + 4 * len(values)].to_pybytes()
