"""Values on their way to PostgreSQL and back: which Python types may be parameters, and in which type each one goes.

The same values as on SQLite, so that a call means the same on both. Owns psycopg's adapters. Knows no connection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import isnan
from typing import Any, Final, NoReturn

import psycopg
from psycopg import adapt, pq
from psycopg.types.array import ArrayBinaryLoader
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import ByteaBinaryLoader, TextBinaryLoader

from walpool.errors import DataError, ProgrammingError
from walpool.types import Binary

__all__ = ["Unknown", "adapters", "checked", "learn"]

_PLAIN: Final = frozenset((type(None), bool))
_INT64: Final = 2**63
_CONVERSIONS: Final = {  # by the name of a type, in the words of the SQLite engine
    name: advice
    for names, advice in (
        ("datetime date time", "give .isoformat(), or microseconds as an int"),
        ("Decimal UUID Path PosixPath WindowsPath", "give str(value)"),
        ("list dict set tuple", "give json.dumps(value)"),
        ("ndarray", "give value.tobytes()"),
        ("int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ bool float16 float32", "give value.item()"),
    )
    for name in names.split()
}
_SENT_AS_TEXT: Final = frozenset({
    "bpcharsend", "citextsend", "cstring_send", "enum_send", "namesend", "textsend", "unknownsend", "varcharsend",
    "void_send", "xml_send",
})  # fmt: skip
_SENT_AS_BYTES: Final = frozenset({"halfvec_send", "vector_send"})  # `Binary` takes them back
_OVERHEAD: Final = 16  # bytes that a parameter is reckoned at besides its text


def checked(values: Sequence[object], place: Callable[[int], str]) -> tuple[list[object], int]:
    """Return parameters as psycopg takes them, and about how many bytes they take in memory.

    What PostgreSQL could not give back as it was is refused.

    Args:
        values: in the order of `$1`, `$2`, ...
        place: what the caller calls the one of an index.

    Raises:
        ProgrammingError: a type that walpool does not convert in silence; the message names the place and a conversion.
        DataError: an integer over 64 bits, a NaN, a NUL or a lone surrogate in a text.
    """
    taken: list[object] = []
    size = _OVERHEAD * len(values)
    for value in values:
        kind = type(value)
        if kind is str:
            size += len(value)  # type: ignore[arg-type]
            is_plain = value.isascii() and "\0" not in value  # type: ignore[attr-defined, operator]
        elif kind is int:
            is_plain = -_INT64 <= value < _INT64  # type: ignore[operator]
        elif kind is bytes:
            size += len(value)  # type: ignore[arg-type]
            is_plain = True
        else:
            is_plain = kind in _PLAIN
        taken.append(value if is_plain else _checked(value, place(len(taken))))
    return taken, size


def _checked(value: object, place: str) -> object:
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, int):  # a subclass of int too, as an IntEnum
        if not -_INT64 <= value < _INT64:
            raise DataError(f"parameter {place} is an int that does not fit in 64 bits; give a str or bytes")
        return int.__int__(value)
    if isinstance(value, float):
        if isnan(value):
            raise DataError(f"parameter {place} is NaN, which SQLite would store as NULL; give None")
        return value
    if isinstance(value, Binary):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    kind = type(value).__name__
    advice = _CONVERSIONS.get(kind, "give None, bool, int, float, str or bytes")
    raise ProgrammingError(f"parameter {place} is a {kind}, which walpool does not convert; {advice}")


def _text(value: str, place: str) -> str:
    if "\0" in value:
        raise DataError(f"parameter {place} is a str with a NUL, which PostgreSQL cannot store; give bytes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"parameter {place} is a str with lone surrogates, which UTF-8 has not") from None
    return str.__str__(value)  # a member of a `str` enumeration is its value, as on SQLite


class _BoolAsUnknown(adapt.Dumper):
    """A bool as an untyped 0 or 1: as on SQLite it may go into an integer column, and into a boolean one as well."""

    oid = 0
    format = pq.Format.TEXT

    def dump(self, obj: Any) -> bytes:
        return b"1" if obj else b"0"


class _BinaryAsUnknown(adapt.Dumper):
    """What is in a type's binary form already; the statement says which type it is."""

    oid = 0
    format = pq.Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj)


class Unknown(Exception):
    """A value came of a type that the connection has not met yet."""

    def __init__(self, oid: int) -> None:
        super().__init__()
        self.oid = oid


class _Unknown(adapt.Loader):
    format = pq.Format.BINARY

    def load(self, _: bytes | bytearray | memoryview) -> NoReturn:
        raise Unknown(self.oid)


class _Refusing(adapt.Loader):
    format = pq.Format.BINARY

    def load(self, _: bytes | bytearray | memoryview) -> NoReturn:
        raise psycopg.DataError  # `Connection.rows` says what to do


def learn(types: adapt.AdaptersMap, oid: int, send: str, element: int) -> None:
    """Say how values of a type are given back: texts as str, arrays as lists, vectors as bytes, others not at all.

    Args:
        types: where to say it.
        oid: of the type.
        send: the name of its function that makes the binary form.
        element: the OID of its elements' type, if it is an array, else 0.
    """
    loader: type[adapt.Loader] = _Refusing
    if element:
        loader = ArrayBinaryLoader
    elif send in _SENT_AS_TEXT:
        loader = TextBinaryLoader
    elif send in _SENT_AS_BYTES:
        loader = ByteaBinaryLoader
    types.register_loader(oid, loader)


class _Text(adapt.Loader):
    """JSON as its text, as SQLite gives it."""

    format = pq.Format.TEXT

    def load(self, data: bytes | bytearray | memoryview) -> str:
        return bytes(data).decode()


class _BinaryText(_Text):
    format = pq.Format.BINARY


class _BinaryJsonb(adapt.Loader):
    """The binary form of jsonb is a version number, 1, and its text."""

    format = pq.Format.BINARY

    def load(self, data: bytes | bytearray | memoryview) -> str:
        return bytes(data[1:]).decode()


@functools.cache
def adapters() -> adapt.AdaptersMap:
    """Return psycopg's adapters with walpool's in front; psycopg's own, global ones stay as they are."""
    ours = adapt.AdaptersMap(psycopg.adapters)
    ours.register_dumper(bool, _BoolAsUnknown)
    ours.register_dumper(Binary, _BinaryAsUnknown)
    ours.register_dumper(int, Int8BinaryDumper)  # psycopg's own takes the type from the value: int2 for 1
    ours.register_loader(0, _Unknown)  # psycopg's own gives the bytes of whatever it has no other for
    for name in ("json", "jsonb"):
        ours.register_loader(name, _Text)
    ours.register_loader("json", _BinaryText)
    ours.register_loader("jsonb", _BinaryJsonb)
    return ours
