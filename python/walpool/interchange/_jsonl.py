"""Memories as JSON Lines: a line for the head, one for each record, one for the end."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

from walpool.errors import DataError
from walpool.interchange._entries import End, Entry, Head, Read, entry_of, plain, sum_up
from walpool.memory import Record, unpack

__all__ = ["read", "write"]


def write(file: IO[bytes], head: Head, entries: Iterable[Entry], total: Read, *, as_lists: bool = False) -> None:
    """Write head, entries and end; count what was written in `total`.

    Args:
        file: where to.
        head: the first line.
        entries: records; what is refused is not written.
        total: takes count and checksum.
        as_lists: embeddings as lists of numbers in place of base64: longer, and readable.
    """
    _write_line(file, head.as_dict())
    for entry in entries:
        if isinstance(entry.record, Record):
            _write_line(file, _line(entry, entry.record, as_lists))
            sum_up(total.total, entry)
    total.end = End(total.total.count, str(total.total))
    _write_line(file, total.end.as_dict())


def read(file: IO[bytes], found: Read) -> Iterator[Entry]:
    """Yield the entries from the beginning of the file; what else stands there goes into `found`.

    Raises:
        DataError: a line is no JSON object, or stands where it should not; gzip says that the file is damaged.
    """
    file.seek(0)
    number = 0
    try:
        for number, line in enumerate(file, 1):
            written = _parse(line, number)
            if number == 1 and (head := Head.of(written)) is not None:
                found.head = head
                continue
            if found.end is not None:
                raise DataError(f"line {number} stands behind the end of the file")
            if (end := End.of(written)) is not None:
                found.end = end
                continue
            entry = entry_of(written, written.get("embedding"))
            if isinstance(entry.record, Record):
                sum_up(found.total, entry)
            else:
                found.refused += 1
            yield entry
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"the file is damaged or was cut off behind line {number}") from error


def _line(entry: Entry, record: Record, as_lists: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if entry.tenant:
        fields["tenant"] = entry.tenant
    if entry.collection != "memory":
        fields["collection"] = entry.collection
    fields.update(plain(record))
    if record.embedding is not None:
        fields["embedding"] = unpack(record.embedding) if as_lists else base64.b64encode(record.embedding).decode()
    return fields


def _write_line(file: IO[bytes], fields: dict[str, Any]) -> None:
    file.write(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        written = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"line {number} is no JSON: the file is damaged or was cut off") from None
    if not isinstance(written, dict):
        raise DataError(f"line {number} is no JSON object")
    return written
