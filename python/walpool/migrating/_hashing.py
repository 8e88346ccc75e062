"""Hashes of rows, as the server's `sha256(record_send(ROW(...)))` has them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from struct import unpack
from typing import Final, TypeAlias

from walpool.migrating.plan import Column, Table
from walpool.postgres.binary import Form, check, digests_form
from walpool.types import Row

__all__ = ["Digest", "Hash", "bucket_of", "hashed_form", "hashes", "key_hashes", "total"]

Digest: TypeAlias = tuple[int, int]
"""How many rows, and the sum of their hashes."""

Hash: TypeAlias = int
"""The first 8 bytes of a SHA-256, as a signed number."""


_HASHED: Final = {
    **dict.fromkeys((Form.SMALLINT, Form.INTEGER, Form.BIGINT, Form.OID), Form.BIGINT),
    **dict.fromkeys((Form.DOUBLE, Form.REAL), Form.DOUBLE),
    **dict.fromkeys((Form.BYTEA, Form.VECTOR), Form.BYTEA),
    Form.BOOLEAN: Form.BOOLEAN,
}
_NARROW: Final = frozenset({Form.SMALLINT, Form.INTEGER, Form.OID})


def hashed_form(form: Form) -> Form:
    """Return the form in which values are hashed, and read: what SQLite has no class for as text."""
    return _HASHED.get(form, Form.TEXT)


def hashes(table: Table, rows: Sequence[Row], places: Iterable[int] = ()) -> list[Hash]:
    """Return the hash of each row, as the server gives it back.

    Args:
        table: whose.
        rows: all columns of it.
        places: the place of each among those of its key, where they are one thing.

    Raises:
        Unfit: a value is not of its column's form.
    """
    if table.part is None:
        return _hashes(table.columns, rows)
    kept = [place for place, column in enumerate(table.columns) if column.is_compared]
    found = [[row[place] for row in rows] for place in kept] + ([list(places)] if table.is_grouped else [])
    return _hashes(table.hashed_columns, list(zip(*found, strict=True)))


def key_hashes(table: Table, rows: Sequence[Row]) -> list[Hash]:
    """Return the hash of the key of each row."""
    return _hashes(table.key_columns, table.keys_of(rows))


def total(found: Sequence[Hash]) -> Digest:
    """Return the count and the sum of hashes."""
    return len(found), sum(found)


def bucket_of(found: Hash) -> int:
    """Return in which of 256 buckets a hash falls: its first byte."""
    return found >> 56 & 0xFF


def _hashes(columns: Sequence[Column], rows: Sequence[Row]) -> list[Hash]:
    if not rows:
        return []
    narrow = [place for place, column in enumerate(columns) if column.form in _NARROW]
    if narrow:  # hashed as wider ones, they would be taken for what the server cannot hold
        check([columns[place].form for place in narrow], [tuple(row[place] for place in narrow) for row in rows])
    forms = [hashed_form(column.form) for column in columns]
    digests = b"".join([hashlib.sha256(row).digest() for row in digests_form(forms, rows)])
    return list(unpack(">" + "q24x" * len(rows), digests))
