"""Values in the form that COPY BINARY and `record_send` give them: columns of a table as lists of fields.

Pure: no psycopg. A field is its length and its bytes, as the server's own send functions write them, so that a row that
is hashed here and `sha256(record_send(...))` on the server are the same. A column is encoded at once, since a call for
each value would take longer than all the rest. https://www.postgresql.org/docs/18/sql-copy.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from enum import Enum
from itertools import chain, repeat
from struct import Struct
from typing import Any, Final, TypeAlias

from walpool.types import Row

__all__ = ["HEADER", "TRAILER", "Form", "Unfit", "columns", "digests_form", "fields", "plain_number", "rows"]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a COPY BINARY begins with."""

TRAILER: Final = b"\xff\xff"
"""What it ends with."""

_NULL: Final = b"\xff\xff\xff\xff"
_NONE: Final = type(None)


class Form(Enum):
    """The forms of values, by the name of the type in PostgreSQL, with the number that the type has there."""

    SMALLINT = ("smallint", 21)
    INTEGER = ("integer", 23)
    BIGINT = ("bigint", 20)
    DOUBLE = ("double precision", 701)
    TEXT = ("text", 25)
    BYTEA = ("bytea", 17)
    BOOLEAN = ("boolean", 16)
    NUMERIC = ("numeric", 1700)
    JSON = ("json", 114)

    @property
    def type(self) -> str:
        """The name of the type."""
        return self.value[0]

    @property
    def oid(self) -> int:
        """The number of the type."""
        return self.value[1]


class Unfit(Exception):
    """Some value of a column is none of its form's; which one is for the caller to find, value by value."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


def fields(form: Form, values: Sequence[object], prefix: bytes = b"") -> list[bytes]:
    """Return the fields of a column.

    Args:
        form: what they are.
        values: None for NULL.
        prefix: what stands before each field: nothing in a COPY, the type's number in a record.

    Raises:
        ValueError, TypeError, OverflowError: one of them is not of this form, or PostgreSQL cannot hold it.
    """
    return _ENCODERS[form](values, set(map(type, values)), prefix)


def columns(forms: Sequence[Form], given: Sequence[Row], prefixes: Iterable[bytes] = repeat(b"")) -> list[list[bytes]]:
    """Return the fields of rows, column by column.

    Raises:
        Unfit: a value is not of its column's form.
    """
    found = []
    for number, (form, values, prefix) in enumerate(zip(forms, zip(*given, strict=True), prefixes, strict=False)):
        try:
            found.append(fields(form, values, prefix))
        except (ValueError, TypeError, OverflowError, AttributeError):
            raise Unfit(number) from None
    return found


def rows(encoded: Sequence[list[bytes]]) -> bytes:
    """Return columns of fields as the rows of a COPY BINARY, without its header and trailer."""
    count = Struct(">h").pack(len(encoded))
    return b"".join(chain.from_iterable(zip(repeat(count), *encoded, strict=False)))


def digests_form(forms: Sequence[Form], given: Sequence[Row]) -> Iterator[bytes]:
    """Yield each row as `record_send(ROW(...))` has it on the server.

    Raises:
        Unfit: a value is not of its column's form.
    """
    number = Struct(">i")
    head = number.pack(len(forms))
    encoded = columns(forms, given, [number.pack(form.oid) for form in forms])
    return map(head.__add__, map(b"".join, zip(*encoded, strict=True)))


def plain_number(value: float | Decimal) -> str:
    """Return a number as PostgreSQL writes `trim_scale(value::numeric)`: no exponent, no zeros at its end."""
    found = format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")
    if "." in found:
        found = found.rstrip("0").rstrip(".")
    return "0" if found in ("-0", "") else found


_Values: TypeAlias = Sequence[Any]


def _ints(pattern: str, size: int) -> Callable[[_Values, set[type], bytes], list[bytes]]:
    def encode(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
        _only(kinds, int)
        pack, null = Struct(f">{len(prefix)}si{pattern}").pack, prefix + _NULL
        try:
            if _NONE not in kinds:
                return [pack(prefix, size, value) for value in values]
            return [null if value is None else pack(prefix, size, value) for value in values]
        except Exception as error:  # struct.error, which is nothing but an Exception
            raise OverflowError from error

    return encode


def _floats(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
    _only(kinds, float, int)
    # A NaN differs from itself, and an integer that a double cannot hold from that double; -0.0 + 0.0 is 0.0.
    if any(value is not None and value + 0.0 != value for value in values):
        raise ValueError
    pack, null = Struct(f">{len(prefix)}sid").pack, prefix + _NULL
    return [null if value is None else pack(prefix, 8, value + 0.0) for value in values]


def _texts(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
    _only(kinds, str)
    given = values if _NONE not in kinds else [value for value in values if value is not None]
    if "\0" in "".join(given):
        raise ValueError
    return _sized([None if value is None else value.encode() for value in values], prefix)


def _blobs(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
    _only(kinds, bytes)
    return _sized(values, prefix)


def _booleans(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
    _only(kinds, int, bool)
    size = Struct(">i").pack(1)
    spelled = {None: prefix + _NULL, 0: prefix + size + b"\0", 1: prefix + size + b"\1"}
    try:
        return [spelled[value] for value in values]
    except KeyError:
        raise ValueError from None


def _numerics(values: _Values, kinds: set[type], prefix: bytes) -> list[bytes]:
    _only(kinds, int, float)
    return _sized([None if value is None else _numeric(plain_number(value)) for value in values], prefix)


def _numeric(text: str) -> bytes:
    """Return the binary form of a number: groups of four decimal digits. See numeric_recv() of the server."""
    whole, _, part = text.removeprefix("-").partition(".")
    if not (whole + part).isdecimal():
        raise ValueError  # an infinity
    scale = len(part)
    whole = whole.zfill(-(-len(whole) // 4) * 4)
    digits = whole + part.ljust(-(-len(part) // 4) * 4, "0")
    groups = [int(digits[at : at + 4]) for at in range(0, len(digits), 4)]
    weight = len(whole) // 4 - 1
    while groups and not groups[0]:
        del groups[0]
        weight -= 1
    head = (len(groups), weight if groups else 0, 0x4000 if text.startswith("-") else 0, scale)
    return Struct(f">hhHH{len(groups)}H").pack(*head, *groups)


def _sized(values: Iterable[bytes | None], prefix: bytes) -> list[bytes]:
    pack, null = Struct(f">{len(prefix)}si").pack, prefix + _NULL
    return [null if value is None else pack(prefix, len(value)) + value for value in values]


def _only(kinds: set[type], *allowed: type) -> None:
    if not kinds <= {*allowed, _NONE}:
        raise TypeError


_ENCODERS: Final = {
    Form.SMALLINT: _ints("h", 2),
    Form.INTEGER: _ints("i", 4),
    Form.BIGINT: _ints("q", 8),
    Form.DOUBLE: _floats,
    Form.TEXT: _texts,
    Form.BYTEA: _blobs,
    Form.BOOLEAN: _booleans,
    Form.NUMERIC: _numerics,
    Form.JSON: _texts,
}
