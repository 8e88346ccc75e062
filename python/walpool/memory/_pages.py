"""The tokens of pages: where the next one begins, and for which search; pure, knows no database.

A token binds the search (a fingerprint of its arguments), and the state of the store when the first page was read: the
highest change number, behind which nothing is shown, and the epoch, with which the order may change. It is checked
against accidents, not signed: whoever makes one up reads no more than the store shows anyway.

    base64url( version  kind  fingerprint[8]  varints...  checksum[4] )
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from walpool.errors import DataError

__all__ = [
    "MOST_ENTRIES",
    "Entry",
    "ListPage",
    "Page",
    "VectorPage",
    "WindowPage",
    "decode",
    "encode",
    "fingerprint",
    "void",
]

MOST_ENTRIES: Final = 1_000
"""Hits that a window holds."""

_VERSION: Final = 1
_LONGEST: Final = 64 * 1024  # characters; a window of 1,000 entries has 5,000 to 13,000
_FINGERPRINT: Final = 8  # bytes
_CHECKSUM: Final = 4
_FOREIGN: Final = (
    "the page token belongs to another search: give it with the arguments that the page before was read with"
)
_NOT_ONE: Final = "this is no page token: give `next` of the page before as it is, or None for the first page"


class ListPage(NamedTuple):
    """What comes behind a record in a list, newest first."""

    change: int
    epoch: int
    created_at: int
    """Microseconds since 1970."""
    key: int


class VectorPage(NamedTuple):
    """What comes behind a hit of a search by embedding."""

    change: int
    epoch: int
    score: float
    """Exactly: the bits count."""
    key: int
    rank: int
    """How many hits came before what follows."""


class Entry(NamedTuple):
    """A hit that was ranked with the first page."""

    key: int
    vector_rank: int | None = None
    words_rank: int | None = None
    words_score: int | None = None
    """In thousandths."""


class WindowPage(NamedTuple):
    """The rest of the hits that were ranked with the first page, best first."""

    change: int
    epoch: int
    now: int
    """When the first page was read, microseconds since 1970: what ages are counted from."""
    entries: tuple[Entry, ...]


Page: TypeAlias = "ListPage | VectorPage | WindowPage"
P = TypeVar("P", ListPage, VectorPage, WindowPage)

_KINDS: Final[Mapping[type[Page], int]] = {ListPage: 1, VectorPage: 2, WindowPage: 3}


def fingerprint(*arguments: object) -> bytes:
    """Return 8 bytes that tell the arguments of one search from those of another; equal ones have the same.

    Mappings are the same in any order; 1, 1.0 and True differ.
    """
    text = _canonical(arguments).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_FINGERPRINT).digest()


def encode(page: Page, search: bytes) -> str:
    """Return the token of a page; letters, digits, `-` and `_` alone.

    Args:
        page: where it begins.
        search: `fingerprint` of what it belongs to.
    """
    body = bytes((_VERSION, _KINDS[type(page)])) + search + _packed(page)
    return base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode("ascii")


def decode(token: str, kind: type[P], search: bytes) -> P:
    """Return the page of a token.

    Raises:
        DataError: it is no token, was cut or changed, or belongs to another search.
    """
    body = _checked(token)
    if body[0] != _VERSION:
        raise DataError("the page token comes from another version of walpool: begin with the first page")
    if body[1] != _KINDS[kind] or body[2 : 2 + _FINGERPRINT] != search:
        raise DataError(_FOREIGN)
    try:
        return _unpacked(body[2 + _FINGERPRINT :], kind)
    except (ValueError, IndexError, struct.error, zlib.error):
        raise DataError(_NOT_ONE) from None


def void() -> DataError:
    """Return the error of a page whose store has another epoch by now."""
    return DataError("the pages of this search are void: the store was compacted, rebuilt or reset; search anew")


def _checked(token: str) -> bytes:
    try:
        if len(token) > _LONGEST:
            raise ValueError
        given = token.encode("ascii")
        raw = base64.b64decode(given + b"=" * (-len(given) % 4), altchars=b"-_", validate=True)
        if base64.urlsafe_b64encode(raw).rstrip(b"=") != given:  # `+`, `/`, padding and spare bits are not ours
            raise ValueError
    except ValueError:
        raise DataError(_NOT_ONE) from None
    body, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
    if len(body) < 2 + _FINGERPRINT or checksum != _checksum(body):
        raise DataError(_NOT_ONE)
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM, person=b"walpool page").digest()


def _packed(page: Page) -> bytes:
    if isinstance(page, ListPage):
        return _varints(*page)
    if isinstance(page, VectorPage):
        return struct.pack("<d", page.score) + _varints(page.change, page.epoch, page.key, page.rank)
    if len(page.entries) > MOST_ENTRIES:
        raise ValueError(f"a window has {MOST_ENTRIES} entries at most")
    # By column, each number less the one before it: ranks climb by one mostly, and scores fall slowly.
    columns = [
        _differences(-1 if value is None else value for value in column) for column in zip(*page.entries, strict=True)
    ]
    numbers = [number for column in columns for number in column]
    return _varints(page.change, page.epoch, page.now, len(page.entries)) + zlib.compress(_varints(*numbers), 9)


def _unpacked(packed: bytes, kind: type[P]) -> P:
    if kind is ListPage:
        numbers, rest = _read(packed, 4)
        page: Page = ListPage(*numbers)
    elif kind is VectorPage:
        numbers, rest = _read(packed[8:], 4)
        (score,) = struct.unpack("<d", packed[:8])
        page = VectorPage(numbers[0], numbers[1], score, *numbers[2:])
    else:
        page, rest = _window(packed)
    if rest or not isinstance(page, kind):
        raise ValueError
    return page


def _window(packed: bytes) -> tuple[WindowPage, bytes]:
    (change, epoch, now, length), packed = _read(packed, 4)
    if not 0 <= length <= MOST_ENTRIES:
        raise ValueError
    decompressor = zlib.decompressobj()
    unpacked = decompressor.decompress(packed, MOST_ENTRIES * len(Entry._fields) * 10)
    if not decompressor.eof:
        raise ValueError
    columns = []
    for _ in Entry._fields:
        differences, unpacked = _read(unpacked, length)
        columns.append(_sums(differences))
    keys, *others = columns
    optional = [[None if value < 0 else value for value in column] for column in others]
    entries = tuple(Entry(*row) for row in zip(keys, *optional, strict=True))
    return WindowPage(change, epoch, now, entries), unpacked + decompressor.unused_data


def _differences(numbers: Any) -> list[int]:
    before, differences = 0, []
    for number in numbers:
        differences.append(number - before)
        before = number
    return differences


def _sums(differences: list[int]) -> list[int]:
    total, numbers = 0, []
    for difference in differences:
        total += difference
        numbers.append(total)
    return numbers


def _varints(*numbers: int) -> bytes:
    """Return integers of any sign, 7 bits a byte, the lowest first."""
    packed = bytearray()
    for number in numbers:
        rest = number << 1 if number >= 0 else (-number << 1) - 1
        while rest > 0x7F:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    return bytes(packed)


def _read(packed: bytes, count: int) -> tuple[list[int], bytes]:
    """Return `count` integers and the bytes behind them."""
    numbers, position = [], 0
    for _ in range(count):
        number, shift = 0, 0
        while True:
            byte = packed[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte <= 0x7F:
                break
        numbers.append(number >> 1 if not number & 1 else -(number + 1 >> 1))
    return numbers, packed[position:]


def _canonical(value: object) -> str:
    """Return a text that equal arguments share and others do not; types are told apart."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        # Most are None in a query, and none of them is worth its text.
        return type(value).__name__ + _canonical({name: each for name, each in fields.items() if each is not None})
    if isinstance(value, Mapping):
        pairs = sorted((_canonical(key), _canonical(item)) for key, item in value.items())
        return "{" + ",".join(f"{key}:{item}" for key, item in pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, datetime):
        return f"time {value.astimezone(timezone.utc).isoformat()}"
    if isinstance(value, bytes):  # an embedding, whose repr would cost more than all else
        return f"bytes {hashlib.blake2b(value).hexdigest()}"
    return repr(value)
