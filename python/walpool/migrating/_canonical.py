"""What the server gives back for a value of a file: one value, in one spelling, whatever it was written as. Pure.

For columns of types that SQLite has not. Both sides are compared in this form: text as `CAST(x AS text)` has it in UTC,
numbers of `numeric` without the zeros at their end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from math import isfinite
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from walpool.migrating._jsonb import NotJsonb, jsonb, nearest_jsonb, plain
from walpool.postgres.binary import Form, Unfit, plain_number

if TYPE_CHECKING:
    from walpool.migrating.plan import Column, Table
    from walpool.types import Row

__all__ = ["SPELLED", "Bad", "as_given_back", "canonical", "is_typed", "nearest"]

SPELLED: Final = frozenset(
    {Form.NUMERIC, Form.CHAR, Form.JSONB, Form.UUID, Form.DATE, Form.TIMESTAMP, Form.TIMESTAMPTZ}
)
"""Forms whose values a file may spell in several ways, so that it has them in another order."""

_Read: TypeAlias = Callable[[Any, Sequence[int]], Any]
"""Takes a value, not None, and the limits of its column."""

_CLASSES: Final = {int: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB", bool: "BOOLEAN"}
_SPECIAL: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_ENDLESS: Final = frozenset({"infinity", "-infinity"})
_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SIMPLE: Final = re.compile(r"-?[1-9]\d{0,99}(?:\.\d{1,99})?", re.ASCII)  # most of them: fast
_UUID: Final = re.compile(r"([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})", re.IGNORECASE)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.(\d+))?)?"
    r"\s?(?:(Z)|([+-])(\d\d)(?::?([0-5]\d))?)?",
    re.ASCII,
)
_REAL: Final = Struct(">f")
_MICROSECONDS: Final = 6  # digits behind the second


class Bad(ValueError):
    """A value that a column cannot hold; the message says why, and quotes nothing."""


def is_typed(column: Column) -> bool:
    """Return whether a column's values have another spelling on the server, or a limit of their own."""
    return column.form in _READ or bool(column.limits)


def canonical(column: Column, value: Any) -> Any:
    """Return a value, not None, as the server gives it back from a column for which `is_typed`.

    Raises:
        Bad: the column cannot hold it as it is.
    """
    return _reader(column)(value, column.limits)


def as_given_back(table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows as the server gives them back.

    Raises:
        Unfit: a column cannot hold a value.
    """
    places = [place for place, column in enumerate(table.columns) if is_typed(column)]
    required = [place for place, column in enumerate(table.columns) if column.is_required] if table.exists else []
    if not (places or required) or not rows:
        return rows
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    for place in required:  # a table that is made here is as strict as its source
        if None in columns[place]:
            raise Unfit(place)
    for place in places:
        column = table.columns[place]
        read, limits = _reader(column), column.limits
        try:
            columns[place] = [None if value is None else read(value, limits) for value in columns[place]]
        except Bad:
            raise Unfit(place) from None
    return list(zip(*columns, strict=True)) if places else rows


def nearest(column: Column, value: Any) -> Any:
    """Return the value nearest to one that `canonical` refuses, which it may refuse too; None if there is none."""
    try:
        return _NEAREST.get(column.form, _NEAREST_TEXT)(value, column.limits)
    except (ArithmeticError, ValueError, TypeError):
        return None


def _reader(column: Column) -> _Read:
    return _READ.get(column.form, _TEXT)


# Numbers.


def _numeric(value: Any, limits: Sequence[int]) -> str:
    try:
        text = _plain(value)
    except OverflowError:
        raise Bad("a number beyond the range of numeric") from None
    if text in _SPECIAL:
        if limits and text != "NaN":
            raise Bad("an infinity in a column of numbers with a scale")
        return text
    if limits:
        whole, _, part = text.removeprefix("-").partition(".")
        precision, scale = limits
        whole = whole.lstrip("0")
        if len(part) > max(scale, 0) or (scale < 0 and whole and not whole.endswith("0" * -scale)):
            raise Bad(f"a number with digits beyond the scale of numeric({precision},{scale})")
        digits = len(whole) or len(part.lstrip("0")) - len(part)
        if (whole or part) and digits > precision - scale:
            raise Bad(f"a number beyond the range of numeric({precision},{scale})")
    return text


def _plain(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is float:
        if not isfinite(value):
            raise Bad("an infinity in a column of numeric")
        return plain_number(value)
    if kind is not str:
        raise Bad(f"{_class(value)} in a column of numbers")
    if value in _SPECIAL:
        return str(value)
    if _SIMPLE.fullmatch(value):
        found: str = value.rstrip("0").removesuffix(".") if "." in value else value
        return found
    if not _NUMBER.fullmatch(value):
        raise Bad("TEXT that is no number in a column of numbers")
    try:
        return plain_number(Decimal(plain(Decimal(value))))
    except InvalidOperation:  # an exponent of more than 18 digits
        raise OverflowError from None


def _nearest_numeric(value: Any, limits: Sequence[int]) -> Any:
    found = Decimal(repr(value) if isinstance(value, float) else value)
    if limits and found.is_finite():
        exact = Context(prec=limits[0] + 2)
        found = found.quantize(Decimal(1).scaleb(-limits[1]), ROUND_HALF_UP, exact)  # too large: InvalidOperation
    return format(found, "f")


def _real(value: Any, _: Sequence[int]) -> float:
    if type(value) not in (int, float):
        raise Bad(f"{_class(value)} in a column of numbers")
    try:
        found = _single(value)
    except OverflowError:
        found = float("nan")
    if found != value:
        raise Bad("a number that real cannot hold to the last digit")
    return found + 0.0


def _nearest_real(value: Any, _: Sequence[int]) -> Any:
    return _single(float(value))


def _single(value: float) -> float:
    found: float = _REAL.unpack(_REAL.pack(value))[0]
    return found


# Texts.


def _text(value: Any, limits: Sequence[int]) -> str:
    text = _plain_text(value)
    if len(text) > limits[0]:
        raise Bad(f"text of more than {limits[0]} characters")
    return text


def _padded(value: Any, limits: Sequence[int]) -> str:
    """Return what `char(n)` gives back: the spaces at the end do not count."""
    text = _plain_text(value).rstrip(" ")
    return _text(text, limits) if limits else text


def _nearest_text(value: Any, limits: Sequence[int]) -> Any:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text[: limits[0]] if limits else text


def _plain_text(value: Any, of: str = "text") -> str:
    if type(value) is not str:
        raise Bad(f"{_class(value)} in a column of {of}")
    if "\0" in value:
        raise Bad("a NUL in text")
    return value


def _jsonb(value: Any, _: Sequence[int]) -> str:
    try:
        return jsonb(_plain_text(value))
    except NotJsonb as error:
        raise Bad(str(error)) from None


def _nearest_jsonb(value: Any, _: Sequence[int]) -> Any:
    return nearest_jsonb(_nearest_text(value, ()))


def _uuid(value: Any, _: Sequence[int]) -> str:
    found = _UUID.fullmatch(_plain_text(value, "UUIDs"))
    if found is None:
        raise Bad("TEXT that is no UUID")
    return "-".join(found.groups()).lower()


# Times.


def _date(value: Any, _: Sequence[int]) -> str:
    text = _plain_text(value, "dates")
    if text in _ENDLESS:
        return text
    if not _DATE.fullmatch(text):
        raise Bad("TEXT that is no date as 2024-02-29")
    return _in_calendar(text)


def _nearest_date(value: Any, _: Sequence[int]) -> Any:
    found = _TIME.fullmatch(value)
    return found[1] if found else None


def _timestamp(value: Any, limits: Sequence[int]) -> str:
    return _time(value, limits, has_zone=False)


def _timestamptz(value: Any, limits: Sequence[int]) -> str:
    return _time(value, limits, has_zone=True)


def _time(value: Any, limits: Sequence[int], *, has_zone: bool) -> str:
    text = _plain_text(value, "times")
    if text in _ENDLESS:
        return text
    found = _TIME.fullmatch(text)
    if found is None:
        raise Bad("TEXT that is no time as 2024-02-29 23:59:59.5")
    day, hours, minutes, seconds, fraction, utc, sign, east, more = found.groups()
    part = (fraction or "").rstrip("0")
    most = limits[0] if limits else _MICROSECONDS
    if len(part) > most:
        raise Bad(f"a time with more than {most} digits behind the second")
    if (utc or sign) and not has_zone:
        raise Bad("a time with an offset in a column without time zone")
    whole = f"{_in_calendar(day)} {hours}:{minutes}:{seconds or '00'}"
    if sign and (east, more or "00") != ("00", "00"):
        whole = _moved(whole, sign, int(east), int(more or 0))
    return whole + (f".{part}" if part else "") + ("+00" if has_zone else "")


def _in_calendar(day: str) -> str:
    try:
        date.fromisoformat(day)
    except ValueError:
        raise Bad("a date that no calendar has") from None
    return day


def _moved(whole: str, sign: str, hours: int, minutes: int) -> str:
    """Return a time in UTC."""
    if hours > 15:  # as the server has it
        raise Bad("a time with an offset of 16 hours or more")
    east = timedelta(hours=hours, minutes=minutes)
    at = datetime.fromisoformat(whole)
    try:
        return str(at - east if sign == "+" else at + east)
    except OverflowError:
        raise Bad("a time beyond the years 1 to 9999") from None


def _nearest_timestamp(value: Any, limits: Sequence[int]) -> Any:
    return _nearest_time(value, limits, has_zone=False)


def _nearest_timestamptz(value: Any, limits: Sequence[int]) -> Any:
    return _nearest_time(value, limits, has_zone=True)


def _nearest_time(value: Any, limits: Sequence[int], *, has_zone: bool) -> Any:
    """Return a time in UTC with as many digits as there may be, those behind them cut off."""
    if _DATE.fullmatch(value):
        return _time(f"{value} 00:00", limits, has_zone=has_zone)
    found = _TIME.fullmatch(value)
    if found is None:
        return None
    most = limits[0] if limits else _MICROSECONDS
    given = value if found[5] is None else value[: found.start(5) - 1] + value[found.end(5) :]
    part = (found[5] or "")[:most].rstrip("0")
    moved = _time(given, limits, has_zone=True).removesuffix("+00")
    return moved + (f".{part}" if part else "") + ("+00" if has_zone else "")


def _class(value: Any) -> str:
    return _CLASSES.get(type(value), type(value).__name__)


_TEXT: Final[_Read] = _text
_NEAREST_TEXT: Final[_Read] = _nearest_text
_READ: Final[dict[Form, _Read]] = {
    Form.NUMERIC: _numeric,
    Form.REAL: _real,
    Form.CHAR: _padded,
    Form.JSONB: _jsonb,
    Form.UUID: _uuid,
    Form.DATE: _date,
    Form.TIMESTAMP: _timestamp,
    Form.TIMESTAMPTZ: _timestamptz,
}
_NEAREST: Final[dict[Form, _Read]] = {
    Form.NUMERIC: _nearest_numeric,
    Form.REAL: _nearest_real,
    Form.CHAR: _nearest_text,
    Form.JSONB: _nearest_jsonb,
    Form.UUID: lambda _, __: None,
    Form.DATE: _nearest_date,
    Form.TIMESTAMP: _nearest_timestamp,
    Form.TIMESTAMPTZ: _nearest_timestamptz,
}
