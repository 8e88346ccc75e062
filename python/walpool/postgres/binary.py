"""Values in the form that COPY BINARY and `record_send` give them: rows of a table as bytes.

Pure: no psycopg. A field is its length and its bytes, as the server's own send functions write them, so that a row that
is hashed here and `sha256(record_send(...))` on the server are the same. Columns are encoded in loops that run in C: a
function of Python's for each value would take longer than all the rest. What SQLite has no class for is given as the
text that the server spells it with in UTC, which alone says all of it: see `walpool.postgres.spelling`, where each type
has a module. https://www.postgresql.org/docs/18/sql-copy.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain, repeat
from math import isfinite
from operator import add, eq
from struct import Struct, calcsize
from typing import Any, Final, TypeAlias

from walpool.postgres.spelling import arrays, bits, intervals, jsons, networks, numbers, texts, times, vectors
from walpool.postgres.spelling.spelling import Spelling
from walpool.types import Row

__all__ = ["HEADER", "TRAILER", "Array", "Form", "Unfit", "Wire", "check", "digests_form", "rows"]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a COPY BINARY begins with."""

TRAILER: Final = b"\xff\xff"
"""What it ends with."""

_NULL: Final = b"\xff\xff\xff\xff"
_NONE: Final = type(None)
_NUMBER: Final = Struct(">i").pack


_Classes: TypeAlias = tuple[type, ...]


@dataclass(frozen=True, slots=True)
class _Type:
    """One type of PostgreSQL's.

    Attributes:
        name: of it.
        oid: its number on every server; 0 for what has another one on each.
        spelling: what is known of its values.
        takes: the classes of values that are encoded.
        code: what `struct` calls it, if it always has one length.
    """

    name: str
    oid: int
    spelling: Spelling
    takes: _Classes = (str,)
    code: str = ""


class Form(Enum):
    """The forms of values, each with the type of PostgreSQL's that it is the form of."""

    SMALLINT = _Type("smallint", 21, numbers.SMALLINT, (int,), "h")
    INTEGER = _Type("integer", 23, numbers.INTEGER, (int,), "i")
    BIGINT = _Type("bigint", 20, numbers.BIGINT, (int,), "q")
    DOUBLE = _Type("double precision", 701, numbers.DOUBLE, (float, int), "d")
    TEXT = _Type("text", 25, texts.TEXT)
    BYTEA = _Type("bytea", 17, bits.BYTEA, (bytes,))
    BOOLEAN = _Type("boolean", 16, numbers.BOOLEAN, (int, bool), "?")
    NUMERIC = _Type("numeric", 1700, numbers.NUMERIC, (int, float, str))
    JSON = _Type("json", 114, jsons.JSON)
    JSONB = _Type("jsonb", 3802, jsons.JSONB)
    CHAR = _Type("bpchar", 1042, texts.CHAR)
    UUID = _Type("uuid", 2950, bits.UUID, code="16s")
    REAL = _Type("real", 700, numbers.REAL, (float, int), "f")
    DATE = _Type("date", 1082, times.DATE, code="i")
    TIMESTAMP = _Type("timestamp without time zone", 1114, times.TIMESTAMP, code="q")
    TIMESTAMPTZ = _Type("timestamp with time zone", 1184, times.TIMESTAMPTZ, code="q")
    TIME = _Type("time without time zone", 1083, times.TIME, code="q")
    TIMETZ = _Type("time with time zone", 1266, times.TIMETZ, code="12s")
    INTERVAL = _Type("interval", 1186, intervals.INTERVAL, code="16s")
    NAME = _Type("name", 19, texts.NAME)
    OID = _Type("oid", 26, numbers.OID, (int,), "I")
    INET = _Type("inet", 869, networks.INET)
    CIDR = _Type("cidr", 650, networks.CIDR)
    MACADDR = _Type("macaddr", 829, networks.MACADDR, code="6s")
    MACADDR8 = _Type("macaddr8", 774, networks.MACADDR8, code="8s")
    BIT = _Type("bit", 1560, bits.BIT)
    VARBIT = _Type("bit varying", 1562, bits.VARBIT)
    ENUM = _Type("enum", 0, texts.ENUM)
    ARRAY = _Type("array", 0, arrays.of(texts.TEXT))  # of which elements, an `Array` says
    VECTOR = _Type("vector", 0, vectors.VECTOR, (bytes,))

    @property
    def type(self) -> str:
        """The name of the type."""
        return self.value.name

    @property
    def oid(self) -> int:
        """The number of the type."""
        return self.value.oid

    @property
    def spelling(self) -> Spelling:
        """What is known of its values."""
        return self.value.spelling

    @property
    def takes(self) -> _Classes:
        """The classes of values that are encoded."""
        return self.value.takes

    @property
    def code(self) -> str:
        """What `struct` calls it, if it always has one length."""
        return self.value.code

    @property
    def wire(self) -> Callable[[Any], Any] | None:
        """What makes bytes of a value, or a number; None where the value or its text is sent as it is."""
        return self.value.spelling.wire


@dataclass(frozen=True, slots=True)
class Array:
    """The form of arrays: values are JSON, as `walpool.postgres.spelling.arrays` has it.

    Attributes:
        element: the form of their elements.
        oid: the number of their elements' type on the server.
    """

    element: Form
    oid: int

    takes = (str,)
    code = ""

    def wire(self, text: str) -> bytes:
        """Return the bytes of an array."""
        return arrays.wire(text, self.element.spelling, self.oid, partial(_element_fields, self.element))


Wire: TypeAlias = Form | Array
"""What a column is encoded as."""


class Unfit(Exception):
    """Some value of a column is none of its form's; which one is for the caller to find, value by value."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


def rows(forms: Sequence[Wire], given: Sequence[Row]) -> bytes:
    """Return rows as a COPY BINARY has them, without its header and trailer.

    Raises:
        Unfit: a value is not of its column's form.
    """
    parts = _parts(forms, given, Struct(">h").pack(len(forms)), with_types=False)
    return b"".join(chain.from_iterable(zip(*parts, strict=False)))


def digests_form(forms: Sequence[Wire], given: Sequence[Row]) -> Iterator[bytes]:
    """Return each row as `record_send(ROW(...))` has it on the server.

    Raises:
        Unfit: a value is not of its column's form.
    """
    return map(b"".join, zip(*_parts(forms, given, _NUMBER(len(forms)), with_types=True), strict=False))


def check(forms: Sequence[Wire], given: Sequence[Row]) -> None:
    """Return if every value is of its column's form.

    Raises:
        Unfit: one is not.
    """
    for number, (form, values) in enumerate(zip(forms, zip(*given, strict=True), strict=False)):
        try:
            _check(form, values, set(map(type, values)))
            some = [value for value in values if value is not None]
            if form.wire is not None:
                list(map(form.wire, some))
        except (ValueError, TypeError, OverflowError):
            raise Unfit(number) from None


_Values: TypeAlias = Sequence[Any]
_Part: TypeAlias = Iterable[bytes]


def _parts(forms: Sequence[Wire], given: Sequence[Row], head: bytes, *, with_types: bool) -> list[_Part]:
    """Return what rows are joined of, each part with a piece for every row.

    Neighbours of fixed length, and the lengths of what has none, are packed by one call for a row.
    """
    run = _Run(head)
    for number, (form, values) in enumerate(zip(forms, zip(*given, strict=True), strict=False)):
        kinds = set(map(type, values))
        prefix = _NUMBER(form.oid) if with_types else b""  # only forms of types that all servers have are hashed
        try:
            _check(form, values, kinds)
            if _NONE in kinds:
                run.add(_nullable(form, values, prefix))
            elif form.code:
                run.pack(prefix + _size(form), form.code, _whole(form, values))
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


def _check(form: Wire, values: _Values, kinds: set[type]) -> None:
    """Return if values are of a form.

    Raises:
        ValueError, TypeError, OverflowError: one is not.
    """
    if not kinds <= {*form.takes, _NONE}:
        raise TypeError
    some = values if _NONE not in kinds else [value for value in values if value is not None]
    fit = _FIT.get(form)  # where there is none, what does not fit is refused where it is converted
    if some and fit is not None and not fit(form, some):
        raise ValueError


def _texts_fit(_: Wire, values: _Values) -> bool:
    return b"\0" not in "".join(values).encode()


def _integers_fit(form: Wire, values: _Values) -> bool:
    least, most = _RANGES[form.code]
    return bool(least <= min(values) and max(values) <= most)


def _doubles_fit(_: Wire, values: _Values) -> bool:
    # A NaN differs from itself, and an integer that a double cannot hold from that double.
    return all(map(eq, values, map(add, values, repeat(0.0))))


def _reals_fit(_: Wire, values: _Values) -> bool:
    pack, unpack = _REAL.pack, _REAL.unpack
    return all(value == unpack(pack(value))[0] for value in values)


_REAL: Final = Struct(">f")
_RANGES: Final = {
    "h": (-(2**15), 2**15 - 1),
    "i": (-(2**31), 2**31 - 1),
    "q": (-(2**63), 2**63 - 1),
    "I": (0, 2**32 - 1),
}
_FIT: Final[dict[Wire, Callable[[Wire, _Values], bool]]] = {
    **dict.fromkeys((Form.SMALLINT, Form.INTEGER, Form.BIGINT, Form.OID), _integers_fit),
    **dict.fromkeys((Form.TEXT, Form.JSON, Form.JSONB, Form.CHAR, Form.NAME, Form.ENUM), _texts_fit),
    Form.DOUBLE: _doubles_fit,
    Form.REAL: _reals_fit,
    Form.BOOLEAN: lambda _, values: {0, 1}.issuperset(values),
    Form.NUMERIC: lambda _, values: all(isinstance(value, str) or isfinite(value) for value in values),
}


def _size(form: Wire) -> bytes:
    return _NUMBER(calcsize(f">{form.code}"))


def _whole(form: Wire, values: _Values) -> Iterable[Any]:
    """Return values as a Struct takes them; -0.0 becomes 0.0."""
    if form in (Form.DOUBLE, Form.REAL):
        return map(add, values, repeat(0.0))
    return values if form.wire is None else list(map(form.wire, values))


def _spelled(form: Wire, values: _Values) -> list[bytes]:
    """Return values that have no fixed length as their bytes."""
    return list(map(form.wire or str.encode, values))


def _nullable(form: Wire, values: _Values, prefix: bytes) -> list[bytes]:
    """Return the fields of a column with NULLs in it."""
    some = [value for value in values if value is not None]
    if form.code:
        pack = Struct(f">{len(prefix) + 4}s{form.code}").pack
        fields = map(pack, repeat(prefix + _size(form)), _whole(form, some))
    else:
        spelled = _spelled(form, some)
        fields = map(b"".join, zip(repeat(prefix), map(_NUMBER, map(len, spelled)), spelled, strict=False))
    null = prefix + _NULL
    return [null if value is None else next(fields) for value in values]


def _element_fields(form: Form, values: _Values) -> list[bytes]:
    """Return the fields of an array's elements, in which -0.0 stays what it is, and a NaN too."""
    if form.code:
        pack, make = Struct(f">4s{form.code}").pack, form.wire or _as_it_is
        size = _size(form)
        return [_NULL if value is None else pack(size, make(value)) for value in values]
    found = [None if value is None else (form.wire or str.encode)(value) for value in values]
    return [_NULL if each is None else _NUMBER(len(each)) + each for each in found]


def _as_it_is(value: Any) -> Any:
    return value
