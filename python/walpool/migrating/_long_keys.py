"""Rows whose keys are too long for an index of PostgreSQL's: which a plan has found, and what they are cut to. Pure."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating._canonical import as_given_back
from walpool.migrating._faults import nothing
from walpool.migrating._hashing import hashes
from walpool.postgres.binary import Form, Unfit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from walpool.migrating.plan import Column, LongKeys, Table
    from walpool.types import Row

__all__ = ["LONG", "SURE", "cut", "is_long", "key_hash", "part_of", "too_long"]

SURE: Final = 2500
"""Bytes of a key that always fit: a third of a page of 8 KiB, less what stands before a key of many columns."""

_CUT: Final = frozenset({Form.TEXT, Form.CHAR, Form.BYTEA})
LONG: Final = _CUT | {Form.JSONB, Form.ARRAY, Form.VARBIT}
"""Forms of values that may be that long, and that an index takes."""

_BINARY: Final = 6  # times that the binary form of jsonb, or of an array, may be as long as its text


def part_of(table: Table, columns: Sequence[str]) -> Table:
    """Return a table with these columns of it alone, in the order of an index."""
    by_name = {column.name: column for column in table.columns}
    return replace(table, columns=tuple(by_name[name] for name in columns if name in by_name), key=(), long=())


def is_long(part: Table, values: Row) -> bool:
    """Return whether a key may be too long for an index."""
    return sum(map(_length, part.columns, values)) > SURE


def key_hash(part: Table, values: Row) -> int | None:
    """Return the hash of a key as the server has it; None if it cannot hold its values."""
    try:
        return hashes(part, as_given_back(part, [values]))[0]
    except Unfit:
        return None


def too_long(table: Table, row: Row) -> list[tuple[str, str]]:
    """Return the columns of a row whose values make keys of it too long, and why."""
    found = []
    for keys in table.long:
        part, values = _key(table, keys, row)
        if _is_among(keys, part, values):
            length = sum(map(_length, part.columns, values))
            found.append(
                (
                    _longest(part, values).name,
                    f"a key of {length} bytes, too long for an index on {', '.join(keys.columns)}",
                )
            )
    return found


def cut(table: Table, row: Row) -> Row:
    """Return a row whose keys fit: what is too long ends in a digest of all of it, so that it still differs."""
    for keys in table.long:
        part, values = _key(table, keys, row)
        is_bad = _is_among(keys, part, values)
        while is_bad and is_long(part, values):
            longest = _longest(part, values)
            place = next(place for place, column in enumerate(table.columns) if column.name == longest.name)
            row = (*row[:place], _shortened(longest, row[place], SURE // len(part.columns)), *row[place + 1 :])
            part, values = _key(table, keys, row)
    return row


def _key(table: Table, keys: LongKeys, row: Row) -> tuple[Table, Row]:
    part = part_of(table, keys.columns)
    by_name = dict(zip((column.name for column in table.columns), row, strict=True))
    return part, tuple(by_name[column.name] for column in part.columns)


def _is_among(keys: LongKeys, part: Table, values: Row) -> bool:
    if not is_long(part, values) or (number := key_hash(part, values)) is None:
        return False
    place = bisect_left(keys.hashes, number)
    return keys.hashes[place : place + 1] == (number,)


def _longest(part: Table, values: Row) -> Column:
    return max(zip(map(_length, part.columns, values), part.columns, strict=True), key=lambda pair: pair[0])[1]


def _length(column: Column, value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace")) * (_BINARY if column.form in (Form.JSONB, Form.ARRAY) else 1)
    return len(value) if isinstance(value, bytes) else 16


def _shortened(column: Column, value: Any, size: int) -> Any:
    if column.form not in _CUT:  # a piece of it is none of its type
        return nothing(column)
    if isinstance(value, bytes):
        return value[: size - 8] + hashlib.sha256(value).digest()[:8]
    whole = value.encode()
    return whole[: size - 16].decode("utf-8", "ignore") + hashlib.sha256(whole).hexdigest()[:16]
