"""Reading the memories that CrewAI stored in LanceDB and in Qdrant-Edge, as records of walpool's."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from walpool.copying import Refused
from walpool.errors import DataError
from walpool.memory import EmbeddingError, Record, pack

__all__ = ["LanceTable", "QdrantShards", "lance_tables"]

_COLUMNS: Final = {"id", "content", "scope", "categories_str", "metadata_str", "importance", "created_at", "vector"}
_BATCH: Final = 500  # rows; 3 MB of embeddings of 1536 dims
_VECTOR: Final = "memory"  # the one named vector of a point


class _Version(NamedTuple):
    """Which of several versions of a record is the newest: the greatest."""

    accessed: str
    created: str
    place: int


def lance_tables(folder: Path) -> list[str]:
    """Return the tables of CrewAI's memory in a folder of LanceDB's; there may be others in it.

    Raises:
        ImportError: lancedb is not installed.
    """
    import lancedb

    database = lancedb.connect(str(folder))
    names = sorted(entry.name.removesuffix(".lance") for entry in folder.glob("*.lance"))
    return [name for name in names if set(database.open_table(name).schema.names) >= _COLUMNS]


class LanceTable:
    """One table of memories, as one version of it.

    A record that was saved twice has two rows there; the one that was used or made last counts. A vector of zeros
    stands for none. Nothing is written: LanceDB's files are never changed, only added to.

    Attributes:
        rows: how many there are.
        superseded: how many are older versions of records.
    """

    def __init__(self, folder: Path, name: str) -> None:
        import lancedb

        self._table = lancedb.connect(str(folder)).open_table(name)
        self._table.checkout(self._table.version)  # it stays at this version, whatever others write
        self.rows = int(self._table.count_rows())
        self._older = self._find_older()
        self.superseded = len(self._older)

    def records(self) -> Iterator[Record | Refused]:
        """Yield the records."""
        names = [name for name in self._table.schema.names if name != "_rowid"]
        for batch in self._batches(names):
            embedding = _embeddings(batch.column("vector"))
            rows = batch.drop_columns(["vector"]).to_pylist()
            for place, row in enumerate(rows):
                if row["_rowid"] not in self._older:
                    yield _from_lance(row, embedding, place)

    def _find_older(self) -> set[int]:
        newest: dict[str, _Version] = {}
        older: set[int] = set()
        for batch in self._batches(["id", "created_at", "last_accessed"]):
            for row in batch.to_pylist():
                version = _Version(str(row["last_accessed"]), str(row["created_at"]), row["_rowid"])
                other = newest.setdefault(str(row["id"]), version)
                if other is not version:
                    older.add(min(other, version).place)
                    newest[str(row["id"])] = max(other, version)
        return older

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        query = self._table.search().select(columns).with_row_id(True)
        return iter(query.to_batches(batch_size=_BATCH))


def _embeddings(column: Any) -> Callable[[int], Any]:
    """Return what gives the embedding of a row: its bytes, or a list, or None; never converted where it is float32."""
    if str(column.type).startswith("fixed_size_list<") and str(column.type.value_type) == "float":
        dims = column.type.list_size
        values = column.values
        content, start = values.buffers()[1], values.offset + column.offset * dims

        def packed(place: int) -> bytes | None:
            begin = (start + place * dims) * 4
            return content[begin : begin + dims * 4].to_pybytes() if column[place].is_valid else None

        return packed
    return lambda place: column[place].as_py()


def _from_lance(row: dict[str, Any], embedding: Callable[[int], Any], place: int) -> Record | Refused:
    try:
        fields = {
            **row,
            "categories": json.loads(row["categories_str"] or "[]"),
            "metadata": json.loads(row["metadata_str"] or "{}"),
        }
    except ValueError:
        return Refused(str(row["id"]), "its categories or its metadata are no JSON")
    return _record(str(row["id"]), fields, embedding(place))


class QdrantShards:
    """Memories in Qdrant-Edge: a central shard, and one for each process that has not put its own there yet.

    They are copied to a temporary folder first: opening a shard writes in it. A process's own version of a record hides
    the central one, as in CrewAI; of several, the one that was used or made last counts. Vectors are kept normalized
    there, so they come as directions.

    Attributes:
        rows, superseded: as of `LanceTable`.
    """

    def __init__(self, folder: Path) -> None:
        import qdrant_edge

        self._edge = qdrant_edge
        self._copies = tempfile.TemporaryDirectory(prefix="walpool-import-")
        shards = [folder] if (folder / "edge_config.json").exists() else sorted(folder.iterdir())
        self._shards = [self._open(shard) for shard in shards if (shard / "edge_config.json").exists()]
        self.rows = self.superseded = 0
        self._newest: dict[str, tuple[bool, _Version]] = {}  # with whether it is a process's own
        for place, (is_own, shard) in enumerate(self._shards):
            self._look(place, is_own, shard)
        self.superseded = self.rows - len(self._newest)

    def records(self) -> Iterator[Record | Refused]:
        """Yield the records."""
        for place, (_, shard) in enumerate(self._shards):
            for point in self._points(shard, with_vector=True):
                record_id = str(point.payload.get("record_id", point.id))
                if self._newest[record_id][1].place == place:
                    vector = point.vector.get(_VECTOR) if isinstance(point.vector, dict) else None
                    yield _record(record_id, point.payload, vector)

    def close(self) -> None:
        """Close the shards, and remove the copies."""
        for _, shard in self._shards:
            shard.close()
        self._copies.cleanup()

    def _open(self, shard: Path) -> tuple[bool, Any]:
        copy = Path(self._copies.name) / shard.name
        shutil.copytree(shard, copy)
        return shard.name.startswith("worker-"), self._edge.EdgeShard.load(str(copy))

    def _look(self, place: int, is_own: bool, shard: Any) -> None:
        for point in self._points(shard, with_vector=False):
            self.rows += 1
            payload = point.payload
            version = (is_own, _Version(str(payload.get("last_accessed")), str(payload.get("created_at")), place))
            record_id = str(payload.get("record_id", point.id))
            self._newest[record_id] = max(version, self._newest.get(record_id, version))

    def _points(self, shard: Any, *, with_vector: bool) -> Iterator[Any]:
        offset = None
        while True:
            request = self._edge.ScrollRequest(
                limit=_BATCH, offset=offset, with_payload=True, with_vector=with_vector, filter=None
            )
            points, offset = shard.scroll(request)
            yield from points
            if offset is None or not points:
                return


def _record(record_id: str, fields: dict[str, Any], embedding: Any) -> Record | Refused:
    """Return the record; what it cannot be, and why, where a field is not what CrewAI writes."""
    try:
        content, categories, metadata = fields["content"], fields.get("categories") or [], fields.get("metadata") or {}
        if not isinstance(content, str):
            return Refused(record_id, "it has no content")
        if not isinstance(categories, list) or not isinstance(metadata, dict):
            return Refused(record_id, "its categories are no list, or its metadata no object")
        created = _time(fields["created_at"])
        return Record(
            id=record_id,
            content=content,
            scope=str(fields["scope"]),
            categories=tuple(map(str, categories)),
            metadata=metadata,
            importance=float(fields.get("importance", 0.5)),
            created_at=created,
            accessed_at=_time(fields.get("last_accessed") or created),
            embedding=_packed(embedding),
            source=fields.get("source") or None,
            private=bool(fields.get("private", False)),
        )
    except (EmbeddingError, DataError) as error:
        return Refused(record_id, str(error))
    except (KeyError, TypeError, ValueError, OverflowError):
        return Refused(record_id, "a field of it is missing, or is not what CrewAI writes")


def _packed(embedding: Any) -> bytes | None:
    if embedding is None or not len(embedding):
        return None
    packed = pack(embedding)
    return packed if any(packed) else None


def _time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
