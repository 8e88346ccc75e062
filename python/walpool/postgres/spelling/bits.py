"""What is no text and no number: bytes, UUIDs, and strings of bits. Pure."""

from __future__ import annotations

import re
from struct import Struct
from typing import Any, Final

from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, class_of, plain_text

__all__ = ["BIT", "BYTEA", "UUID", "VARBIT"]

_HEX: Final = re.compile(r"\\x((?:[0-9a-f]{2})*)", re.IGNORECASE)
_UUID: Final = re.compile(r"([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})", re.IGNORECASE)
_BITS: Final = re.compile("[01]*")


def _bytea(value: Any, _: Limits) -> bytes:
    if not isinstance(value, bytes):
        raise Bad(f"{class_of(value)} in a column of bytes")
    return value


def _nearest_bytea(value: Any, _: Limits) -> bytes:
    return bytes(value) if isinstance(value, bytes) else str(value).encode()


def _bytea_element(value: Any, _: Limits) -> bytes:
    found = _HEX.fullmatch(value) if type(value) is str else None
    if found is None:
        raise Bad("what is no string as \\x00ff in an array of bytes")
    return bytes.fromhex(found[1])


def _bytea_json(value: bytes) -> str:
    return f'"\\\\x{value.hex()}"'


def _uuid(value: Any, _: Limits) -> str:
    found = _UUID.fullmatch(plain_text(value, "UUIDs"))
    if found is None:
        raise Bad("TEXT that is no UUID")
    return "-".join(found.groups()).lower()


def _uuid_wire(text: str) -> bytes:
    found = bytes.fromhex(text.replace("-", ""))
    if (len(text), len(found)) != (36, 16):
        raise ValueError
    return found


def _bit(value: Any, limits: Limits) -> str:
    text = _varbit(value, ())
    if limits and len(text) != limits[0]:
        raise Bad(f"another number of bits than {limits[0]}")
    return text


def _varbit(value: Any, limits: Limits) -> str:
    text = plain_text(value, "bits")
    if not _BITS.fullmatch(text):
        raise Bad("TEXT that is not made of 0 and 1")
    if limits and len(text) > limits[0]:
        raise Bad(f"more than {limits[0]} bits")
    return text


def _bits_wire(text: str) -> bytes:
    if not _BITS.fullmatch(text):
        raise ValueError
    size = -(-len(text) // 8)
    return Struct(">i").pack(len(text)) + int(text.ljust(size * 8, "0") or "0", 2).to_bytes(size, "big")


BYTEA: Final = Spelling(
    read=_bytea,
    nearest=_nearest_bytea,
    zero=always(b""),
    wire=bytes,
    element=_bytea_element,
    json=_bytea_json,
    is_plain=True,
    sorts_alike=True,
)
UUID: Final = Spelling(read=_uuid, zero=always("00000000-0000-0000-0000-000000000000"), wire=_uuid_wire)
BIT: Final = Spelling(read=_bit, zero=lambda limits: "0" * (limits[0] if limits else 1), wire=_bits_wire)
VARBIT: Final = Spelling(read=_varbit, zero=always(""), wire=_bits_wire)
