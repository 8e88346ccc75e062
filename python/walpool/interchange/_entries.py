"""What a file of memories holds: records with their collections, a head that says so, an end that counts them. Pure.

Knows no file format; `plain` is what each of them writes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from walpool.copying import Checksum, Refused, canonical
from walpool.errors import DataError
from walpool.memory import Collection, Record, pack

__all__ = ["End", "Entry", "Head", "Selection", "entry_of", "plain", "sum_up", "time_of"]

VERSION: Final = 1
_MARK: Final = "walpool"
_LISTED: Final = ("tenant", "collection", "words", "dims", "records")


class Entry(NamedTuple):
    """A record of a collection, or the name of one that cannot be read."""

    tenant: str
    collection: str
    record: Record | Refused


@dataclass(frozen=True, slots=True)
class Selection:
    """Which collections: those of these tenants, with these names; None is any."""

    tenants: tuple[str, ...] | None = None
    collections: tuple[str, ...] | None = None

    def takes(self, tenant: str, collection: str) -> bool:
        """Return whether a collection is one of them."""
        is_tenant = self.tenants is None or tenant in self.tenants
        return is_tenant and (self.collections is None or collection in self.collections)


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the records."""

    collections: tuple[Collection, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {
            _MARK: "memory",
            "version": VERSION,
            "collections": [{name: getattr(each, name) for name in _LISTED} for each in self.collections],
        }

    @staticmethod
    def of(written: Any) -> Head | None:
        """Return the head that was written; None if this is something else.

        Raises:
            DataError: it comes from a newer walpool.
        """
        if not isinstance(written, dict) or written.get(_MARK) != "memory":
            return None
        if written.get("version") != VERSION:
            raise DataError(f"the file has version {written.get('version')!r}, and this walpool reads {VERSION}")
        try:
            listed = [{name: each[name] for name in _LISTED} for each in written["collections"]]
        except (KeyError, TypeError):
            raise DataError("the head of the file is damaged") from None
        return Head(tuple(Collection(**each) for each in listed))


@dataclass(frozen=True, slots=True)
class End:
    """What stands behind the records: how many there are, and their checksum, whatever their order."""

    records: int
    checksum: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is written."""
        return {_MARK: "end", "records": self.records, "checksum": self.checksum}

    @staticmethod
    def of(written: Any) -> End | None:
        """Return the end that was written; None if this is something else."""
        if not isinstance(written, dict) or written.get(_MARK) != "end":
            return None
        return End(int(written.get("records", -1)), str(written.get("checksum")))


@dataclass(slots=True)
class Read:
    """What reading a file came to.

    Attributes:
        head, end: None if the file has none: somebody else wrote it.
        total: count and checksum of the records that could be read.
        refused: how many could not.
    """

    head: Head | None = None
    end: End | None = None
    total: Checksum = field(default_factory=Checksum)
    refused: int = 0

    def check(self) -> None:
        """Raise a DataError if the file says of itself that it is not whole."""
        if self.head is not None and self.end is None:
            raise DataError("the file has no end: it was cut off")
        if self.end is None:
            return
        if self.total.count + self.refused != self.end.records:
            found = self.total.count + self.refused
            raise DataError(f"the file has {found} records, and its end says {self.end.records}")
        if not self.refused and str(self.total) != self.end.checksum:
            raise DataError("a record of the file is not what was written: its checksum differs")


def sum_up(total: Checksum, entry: Entry) -> None:
    """Add an entry to a checksum."""
    if isinstance(entry.record, Record):
        total.add(json.dumps([entry.tenant, entry.collection]).encode() + b"\n" + canonical(entry.record))


def plain(record: Record) -> dict[str, Any]:
    """Return the fields of a record as JSON has them, without the embedding."""
    return {
        "id": record.id,
        "content": record.content,
        "scope": record.scope,
        "categories": list(record.categories),
        "metadata": dict(record.metadata),
        "importance": record.importance,
        "created_at": record.created_at.isoformat(timespec="microseconds"),
        "accessed_at": record.accessed_at.isoformat(timespec="microseconds"),
        "source": record.source,
        "private": record.private,
    }


def entry_of(fields: Mapping[str, Any], embedding: bytes | str | Iterable[float] | None) -> Entry:
    """Return the entry with these fields; one that is refused if they make no record.

    Args:
        fields: as of `plain`, with `tenant` and `collection` where they are not the default ones; times also as
            datetimes. What is missing has its default, but for id, content and created_at.
        embedding: packed, as base64 of that, or as numbers.
    """
    tenant, collection = str(fields.get("tenant") or ""), str(fields.get("collection") or "memory")
    name = str(fields.get("id"))
    try:
        created = time_of(fields["created_at"])
        record = Record(
            id=_text(fields["id"]),
            content=_text(fields["content"]),
            scope=_text(fields.get("scope") or "/"),
            categories=tuple(_text(category) for category in fields.get("categories") or ()),
            metadata=_object(fields.get("metadata")),
            importance=float(fields.get("importance", 0.5)),
            created_at=created,
            accessed_at=time_of(fields["accessed_at"]) if fields.get("accessed_at") else created,
            embedding=None if embedding is None else _packed(embedding),
            source=fields.get("source"),
            private=bool(fields.get("private", False)),
        )
    except DataError as error:
        return Entry(tenant, collection, Refused(name, str(error)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        missing = (
            f"it has no {error}" if isinstance(error, KeyError) else "a field of it is not what a record has there"
        )
        return Entry(tenant, collection, Refused(name, missing))
    return Entry(tenant, collection, record)


def time_of(value: Any) -> datetime:
    """Return a time as files have it."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(_text(value).replace("Z", "+00:00"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _object(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise TypeError("not an object")
    return value or {}


def _packed(embedding: bytes | str | Iterable[float]) -> bytes:
    if isinstance(embedding, str):
        try:
            embedding = base64.b64decode(embedding, validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
    return pack(embedding)
