"""Values in the form that COPY BINARY and `record_send` give them: rows of a table as bytes.

Pure: no psycopg. A field is its length and its bytes, as the server's own send functions write them, so that a row that
is hashed here and `sha256(record_send(...))` on the server are the same. Columns are encoded in loops that run in C: a
function of Python's for each value would take longer than all the rest. A number with decimals, a UUID, a date and a
time may be given as the text that the server spells it with in UTC, which alone says all of it.
https://www.postgresql.org/docs/18/sql-copy.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from enum import Enum
from itertools import chain, repeat
from math import isfinite
from operator import add, eq
from struct import Struct
from typing import Any, Final, TypeAlias

from walpool.types import Row

__all__ = ["HEADER", "TRAILER", "Form", "Unfit", "check", "digests_form", "plain_number", "rows"]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a COPY BINARY begins with."""

TRAILER: Final = b"\xff\xff"
"""What it ends with."""

_NULL: Final = b"\xff\xff\xff\xff"
_NONE: Final = type(None)
_NUMBER: Final = Struct(">i").pack


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
    JSONB = ("jsonb", 3802)
    CHAR = ("bpchar", 1042)
    UUID = ("uuid", 2950)
    REAL = ("real", 700)
    DATE = ("date", 1082)
    TIMESTAMP = ("timestamp without time zone", 1114)
    TIMESTAMPTZ = ("timestamp with time zone", 1184)

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


def rows(forms: Sequence[Form], given: Sequence[Row]) -> bytes:
    """Return rows as a COPY BINARY has them, without its header and trailer.

    Raises:
        Unfit: a value is not of its column's form.
    """
    parts = _parts(forms, given, Struct(">h").pack(len(forms)), with_types=False)
    return b"".join(chain.from_iterable(zip(*parts, strict=False)))


def digests_form(forms: Sequence[Form], given: Sequence[Row]) -> Iterator[bytes]:
    """Return each row as `record_send(ROW(...))` has it on the server.

    Raises:
        Unfit: a value is not of its column's form.
    """
    return map(b"".join, zip(*_parts(forms, given, _NUMBER(len(forms)), with_types=True), strict=False))


def check(forms: Sequence[Form], given: Sequence[Row]) -> None:
    """Return if every value is of its column's form.

    Raises:
        Unfit: one is not.
    """
    for number, (form, values) in enumerate(zip(forms, zip(*given, strict=True), strict=False)):
        try:
            _check(form, values, set(map(type, values)))
            some = [value for value in values if value is not None]
            if form in _CONVERTED:
                _whole(form, some)
            elif form is Form.NUMERIC:
                _spelled(form, some)
        except (ValueError, TypeError, OverflowError):
            raise Unfit(number) from None


def plain_number(value: float | Decimal) -> str:
    """Return a number as PostgreSQL writes `trim_scale(value::numeric)`: no exponent, no zeros at its end."""
    found = format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")
    if "." in found:
        found = found.rstrip("0").rstrip(".")
    return "0" if found in ("-0", "") else found


_Values: TypeAlias = Sequence[Any]
_Part: TypeAlias = Iterable[bytes]

_FIXED: Final = {
    Form.SMALLINT: ("h", 2),
    Form.INTEGER: ("i", 4),
    Form.BIGINT: ("q", 8),
    Form.DOUBLE: ("d", 8),
    Form.REAL: ("f", 4),
    Form.BOOLEAN: ("?", 1),
    Form.UUID: ("16s", 16),
    Form.DATE: ("i", 4),
    Form.TIMESTAMP: ("q", 8),
    Form.TIMESTAMPTZ: ("q", 8),
}
"""What always has one length: its code in a Struct, and its bytes."""

_EPOCH: Final = date(2000, 1, 1).toordinal()
_SPECIAL: Final = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}  # numbers without digits
_ENDLESS: Final = {"infinity": 1, "-infinity": -1}

_TYPES: Final[dict[Form, tuple[type, ...]]] = {
    Form.SMALLINT: (int,),
    Form.INTEGER: (int,),
    Form.BIGINT: (int,),
    Form.DOUBLE: (float, int),
    Form.TEXT: (str,),
    Form.BYTEA: (bytes,),
    Form.BOOLEAN: (int, bool),
    Form.NUMERIC: (int, float, str),
    Form.JSON: (str,),
    Form.JSONB: (str,),
    Form.CHAR: (str,),
    Form.UUID: (str,),
    Form.REAL: (float, int),
    Form.DATE: (str,),
    Form.TIMESTAMP: (str,),
    Form.TIMESTAMPTZ: (str,),
}


def _parts(forms: Sequence[Form], given: Sequence[Row], head: bytes, *, with_types: bool) -> list[_Part]:
    """Return what rows are joined of, each part with a piece for every row.

    Neighbours of fixed length, and the lengths of what has none, are packed by one call for a row.
    """
    run = _Run(head)
    for number, (form, values) in enumerate(zip(forms, zip(*given, strict=True), strict=False)):
        kinds = set(map(type, values))
        prefix = _NUMBER(form.oid) if with_types else b""
        try:
            _check(form, values, kinds)
            if _NONE in kinds:
                run.add(_nullable(form, values, prefix))
            elif form in _FIXED:
                code, size = _FIXED[form]
                run.pack(prefix + _NUMBER(size), code, _whole(form, values))
            else:
                spelled = _spelled(form, values)
                run.pack(prefix, "i", map(len, spelled))
                run.add(spelled)
        except (ValueError, TypeError, OverflowError):
            raise Unfit(number) from None
    return run.parts()


class _Run:
    """Parts that become one as long as their length is fixed."""

    def __init__(self, head: bytes) -> None:
        self._constant = head  # what stands before the next value in every row
        self._format = ">"
        self._values: list[Iterable[Any]] = []
        self._parts: list[_Part] = []

    def pack(self, constant: bytes, code: str, values: Iterable[Any]) -> None:
        """Add a constant, and a number of each row."""
        self._constant += constant
        self._format += f"{len(self._constant)}s{code}"
        self._values += [repeat(self._constant), values]
        self._constant = b""

    def add(self, part: _Part) -> None:
        """Add what is as long as it is."""
        self._end()
        self._parts.append(part)

    def parts(self) -> list[_Part]:
        """Return all."""
        self._end()
        return self._parts

    def _end(self) -> None:
        if self._values:
            self._parts.append(map(Struct(self._format).pack, *self._values))
        if self._constant:
            self._parts.append(repeat(self._constant))
        self._constant, self._format, self._values = b"", ">", []


def _check(form: Form, values: _Values, kinds: set[type]) -> None:
    """Return if values are of a form.

    Raises:
        ValueError, TypeError, OverflowError: one is not.
    """
    if not kinds <= {*_TYPES[form], _NONE}:
        raise TypeError
    some = values if _NONE not in kinds else [value for value in values if value is not None]
    if some and not _FIT[form](form, some):
        raise ValueError


def _texts_fit(_: Form, values: _Values) -> bool:
    return b"\0" not in "".join(values).encode()


def _integers_fit(form: Form, values: _Values) -> bool:
    most: int = 1 << (8 * _FIXED[form][1] - 1)
    return bool(-most <= min(values) and max(values) < most)


def _doubles_fit(_: Form, values: _Values) -> bool:
    # A NaN differs from itself, and an integer that a double cannot hold from that double.
    return all(map(eq, values, map(add, values, repeat(0.0))))


def _reals_fit(_: Form, values: _Values) -> bool:
    pack, unpack = _REAL.pack, _REAL.unpack
    return all(value == unpack(pack(value))[0] for value in values)


def _uuid(text: str) -> bytes:
    found = bytes.fromhex(text.replace("-", ""))
    if (len(text), len(found)) != (36, 16):
        raise ValueError
    return found


def _days(text: str) -> int:
    if text in _ENDLESS:
        return 2**31 - 1 if _ENDLESS[text] > 0 else -(2**31)
    return _ordinal(text) - _EPOCH


def _microseconds(text: str) -> int:
    """Return the number of a time: `2024-02-29 23:59:59.123456`, with `+00` at its end or without."""
    if text in _ENDLESS:
        return 2**63 - 1 if _ENDLESS[text] > 0 else -(2**63)
    plain = text.removesuffix("+00")
    hours, minutes, seconds = int(plain[11:13]), int(plain[14:16]), int(plain[17:19])
    if plain[10] + plain[13] + plain[16] != " ::" or hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError
    part = plain[20:]
    if plain[19:20] not in ("", ".") or len(part) > 6:
        raise ValueError
    whole = ((_ordinal(plain[:10]) - _EPOCH) * 86_400) + hours * 3600 + minutes * 60 + seconds
    return whole * 1_000_000 + int(part.ljust(6, "0"))


def _ordinal(text: str) -> int:
    if len(text) != 10 or text[4] + text[7] != "--":
        raise ValueError
    return date.fromisoformat(text).toordinal()


_REAL: Final = Struct(">f")
_CONVERTED: Final[dict[Form, Callable[[str], Any]]] = {
    Form.UUID: _uuid,
    Form.DATE: _days,
    Form.TIMESTAMP: _microseconds,
    Form.TIMESTAMPTZ: _microseconds,
}
"""What goes as the number, or the bytes, that its text stands for."""

_FIT: Final[dict[Form, Callable[[Form, _Values], bool]]] = {
    Form.SMALLINT: _integers_fit,
    Form.INTEGER: _integers_fit,
    Form.BIGINT: _integers_fit,
    Form.DOUBLE: _doubles_fit,
    Form.TEXT: _texts_fit,
    Form.JSON: _texts_fit,
    Form.BYTEA: lambda _, __: True,
    Form.BOOLEAN: lambda _, values: {0, 1}.issuperset(values),
    Form.NUMERIC: lambda _, values: all(isinstance(value, str) or isfinite(value) for value in values),
    Form.JSONB: _texts_fit,
    Form.CHAR: _texts_fit,
    Form.REAL: _reals_fit,
    **dict.fromkeys(_CONVERTED, lambda _, __: True),  # what is none is refused where it is converted
}


def _whole(form: Form, values: _Values) -> Iterable[Any]:
    """Return values as a Struct takes them; -0.0 becomes 0.0."""
    if form in (Form.DOUBLE, Form.REAL):
        return map(add, values, repeat(0.0))
    return list(map(_CONVERTED[form], values)) if form in _CONVERTED else values


def _spelled(form: Form, values: _Values) -> list[bytes]:
    """Return values that have no fixed length as their bytes."""
    if form is Form.BYTEA:
        return list(values)
    if form is Form.NUMERIC:
        return [_numeric(value if isinstance(value, str) else plain_number(value)) for value in values]
    if form is Form.JSONB:
        return [b"\1" + value.encode() for value in values]  # the version of the format, and the text
    return list(map(str.encode, values))


def _nullable(form: Form, values: _Values, prefix: bytes) -> list[bytes]:
    """Return the fields of a column with NULLs in it."""
    some = [value for value in values if value is not None]
    if form in _FIXED:
        code, size = _FIXED[form]
        pack = Struct(f">{len(prefix) + 4}s{code}").pack
        fields = map(pack, repeat(prefix + _NUMBER(size)), _whole(form, some))
    else:
        spelled = _spelled(form, some)
        fields = map(b"".join, zip(repeat(prefix), map(_NUMBER, map(len, spelled)), spelled, strict=False))
    null = prefix + _NULL
    return [null if value is None else next(fields) for value in values]


def _numeric(text: str) -> bytes:
    """Return the binary form of a number: groups of four decimal digits. See numeric_recv() of the server."""
    if text in _SPECIAL:
        return Struct(">HhHH").pack(0, 0, _SPECIAL[text], 0)
    whole, _, part = text.removeprefix("-").partition(".")
    if not (whole + part).isdecimal():
        raise ValueError
    scale = len(part)
    whole = whole.zfill(-(-len(whole) // 4) * 4)
    digits = whole + part.ljust(-(-len(part) // 4) * 4, "0")
    groups = [int(digits[at : at + 4]) for at in range(0, len(digits), 4)]
    weight = len(whole) // 4 - 1
    while groups and not groups[0]:
        del groups[0]
        weight -= 1
    head = (len(groups), weight if groups else 0, 0x4000 if text.startswith("-") else 0, scale)
    return Struct(f">HhHH{len(groups)}H").pack(*head, *groups)
