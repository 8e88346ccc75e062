"""Copying the records of a memory: into a store, in jobs, and comparing what it gives back for them.

Knows no store but the contract, and nothing of where the records come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

from walpool.copying._report import Part
from walpool.errors import DataError
from walpool.memory.contract import MemoryStore
from walpool.memory.records import DimsError, Query, Record

__all__ = ["RecordCopy", "Refused", "canonical"]

_CHUNK: Final = 500  # records in one job, at most
_CHUNK_BYTES: Final = 4 << 20  # of content and embeddings in one job, about: other writers wait meanwhile


class Refused(NamedTuple):
    """A record of the source that no store could keep as it is."""

    id: str
    why: str


Incoming: TypeAlias = "Record | Refused"


def canonical(record: Record) -> bytes:
    """Return all of a record as bytes: JSON with sorted keys, then the embedding; equal records have equal ones."""
    fields = [
        record.id,
        record.content,
        record.scope,
        list(record.categories),
        record.metadata,
        record.importance,
        record.created_at.isoformat(timespec="microseconds"),
        record.accessed_at.isoformat(timespec="microseconds"),
        record.source,
        record.private,
    ]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return text.encode() + (b"" if record.embedding is None else b"\n" + record.embedding)


@dataclass
class RecordCopy:
    """Records on their way into one store: first all of them by `add`, then all of them again by `compare`.

    Attributes:
        store: where they go; None looks at what would be done, for a target that is not there yet.
        part: the report; `found` is the source's to fill in.
        advance: called with how many records are done.
        overwrite: whether what differs in the store is replaced.
        is_dry: whether nothing is written.
        subject: what a record is called in the report, before its id.
    """

    store: MemoryStore | None
    part: Part
    advance: Callable[[int], None] = lambda _: None
    overwrite: bool = False
    is_dry: bool = False
    subject: str = "record"
    _left: set[str] = field(
        default_factory=set
    )  # ids that are not in the store as they are in the source, and why is said
    _dims: int | None = None

    def add(self, records: Iterable[Incoming]) -> None:
        """Save the records that the store lacks; a job is about 4 MiB, and one that fails is taken record by record."""
        self._dims = None if self.store is None else self.store.dims()
        for chunk in _chunks(records):
            wanted = [record for record in chunk if isinstance(record, Record)]
            for refused in chunk:
                if isinstance(refused, Refused):
                    self._leave(refused.id, refused.why)
            found = self._stored(wanted)
            missing: list[Record] = []
            for record in wanted:
                self._sort(record, found.get(record.id), missing)
            self._save(missing)
            self.advance(len(chunk))

    def compare(self, records: Iterable[Incoming]) -> None:
        """Read the records back, and note what differs; what was left out before is not looked at again."""
        for chunk in _chunks(records):
            wanted = [record for record in chunk if isinstance(record, Record) and record.id not in self._left]
            stored = self._stored(wanted)
            for record in wanted:
                theirs = stored.get(record.id)
                mine = canonical(record)
                self.part.read.add(mine)
                if theirs is None:
                    self._leave(record.id, "it is missing in the target")
                    continue
                content = canonical(_before_access(theirs, record))
                self.part.stored.add(content)
                if content != mine:
                    self._leave(record.id, "it was not stored as it is")
            self.advance(len(chunk))

    def _sort(self, record: Record, theirs: Record | None, missing: list[Record]) -> None:
        """Decide what becomes of one record."""
        if theirs is not None and canonical(_before_access(theirs, record)) == canonical(record):
            self.part.present += 1
        elif theirs is not None and not self.overwrite:
            self._leave(record.id, "the target has it with other content: left alone")
        elif (wrong := self._wrong_dims(record)) is not None:
            self._leave(record.id, str(wrong))
        else:
            missing.append(record)

    def _wrong_dims(self, record: Record) -> DimsError | None:
        if record.embedding is None:
            return None
        given = len(record.embedding) // 4
        if self._dims is None:
            self._dims = given  # as the store will: the first one fixes it
        return None if given == self._dims else DimsError(stored=self._dims, given=given)

    def _save(self, records: Sequence[Record]) -> None:
        if not records:
            return
        if self.is_dry or self.store is None:
            self.part.added += len(records)
            return
        try:
            self.store.save(records)
            if self.overwrite:  # a record that is saved without an embedding keeps the one that its id had
                for record in records:
                    if record.embedding is None:
                        self.store.update(record.id, embedding=None)
            self.part.added += len(records)
        except (DataError, TypeError, ValueError) as error:
            if len(records) == 1:
                self._leave(records[0].id, str(error))
                return
            for record in records:
                self._save([record])

    def _stored(self, records: Sequence[Record]) -> dict[str, Record]:
        if self.store is None or not records:
            return {}
        ids = tuple({record.id: None for record in records if _is_text(record.id)})
        return {found.id: found for found in self.store.list(Query(ids=ids), limit=len(ids))}

    def _leave(self, record_id: str, why: str) -> None:
        self._left.add(record_id)
        self.part.differs(f"{self.subject} {record_id!r}", why)


def _before_access(theirs: Record, mine: Record) -> Record:
    """Return the target's record as it was before it was last recalled there, if that is later than the source's."""
    return replace(theirs, accessed_at=mine.accessed_at) if theirs.accessed_at > mine.accessed_at else theirs


def _is_text(text: str) -> bool:
    """Return whether it can stand in a database; what cannot is refused when it is saved."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chunks(records: Iterable[Incoming]) -> Iterator[list[Incoming]]:
    chunk: list[Incoming] = []
    length = 0
    for record in records:
        chunk.append(record)
        if isinstance(record, Record):
            length += len(record.content) + len(record.embedding or b"")
        if len(chunk) >= _CHUNK or length >= _CHUNK_BYTES:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk
