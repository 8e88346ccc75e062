"""Numbers: integers of each width, booleans, `real`, `double precision` and `numeric`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from fractions import Fraction
from math import frexp, inf, isfinite, isnan, nan, ulp
from struct import Struct
from typing import Any, Final

from walpool.postgres.spelling.spelling import Bad, Limits, Number, Spelling, always, class_of

__all__ = ["BIGINT", "BOOLEAN", "DOUBLE", "INTEGER", "NUMERIC", "OID", "REAL", "SMALLINT", "plain", "plain_number"]

# What `numeric` holds before and behind its point. https://www.postgresql.org/docs/18/datatype-numeric.html
_WHOLE_DIGITS: Final = 131_072
_PART_DIGITS: Final = 16_383

_SPECIAL: Final = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}  # numbers without digits
_FLOATS: Final = {"NaN": nan, "Infinity": inf, "-Infinity": -inf}
_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SIMPLE: Final = re.compile(r"-?[1-9]\d{0,99}(?:\.\d{1,99})?", re.ASCII)  # most of them: fast
_WHOLE: Final = re.compile(r"-?\d{1,40}", re.ASCII)
_REAL: Final = Struct(">f")
_ALONE: Final = 1e15
"""From here on `double precision` is written with an exponent; Python begins a power of ten later."""

_APART: Final = 2.0**53
_MOST_DIGITS: Final = 17


def plain_number(value: float | Decimal) -> str:
    """Return a number as PostgreSQL writes `trim_scale(value::numeric)`: no exponent, no zeros at its end."""
    found = format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")
    if "." in found:
        found = found.rstrip("0").rstrip(".")
    return "0" if found in ("-0", "") else found


def plain(number: Decimal) -> str:
    """Return a number as `numeric` writes it: all of its digits, the zeros at its end too, and no exponent.

    Raises:
        OverflowError: it has more digits than `numeric` holds.
    """
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or number.adjusted() >= _WHOLE_DIGITS or exponent < -_PART_DIGITS:
        raise OverflowError
    if not number:
        return "0." + "0" * -exponent if exponent < 0 else "0"
    return format(number, "f")


def _is_one(element: Any) -> str:
    if type(element) is not Number:
        raise Bad("what is no number in an array of numbers")
    return element


# Integers and booleans.


def _integers(name: str, least: int, most: int, **more: Any) -> Spelling:
    def read(value: Any, _: Limits) -> int:
        if type(value) is not int:
            raise Bad(f"{class_of(value)} in a column of integers")
        if not least <= value <= most:
            raise Bad(f"an integer beyond the range of {name}")
        return value

    def element(value: Any, limits: Limits) -> int:
        if not _WHOLE.fullmatch(_is_one(value)):
            raise Bad("what is no integer in an array of integers")
        return read(int(value), limits)

    return Spelling(
        read=read,
        nearest=_nearest_integer,
        zero=always(0),
        element=element,
        json=str,
        is_plain=True,
        sorts_alike=True,
        **more,
    )


def _nearest_integer(value: Any, _: Limits) -> int:
    return int(value)  # of a text too; a REAL loses what is behind its point


def _boolean(value: Any, _: Limits) -> Any:
    if not isinstance(value, int) or value not in (0, 1):
        raise Bad(f"{class_of(value)} other than 0 and 1 in a column of booleans")
    return value


def _boolean_element(value: Any, _: Limits) -> bool:
    if not isinstance(value, bool):
        raise Bad("what is neither true nor false in an array of booleans")
    return value


# Numbers with a point.


def _double(value: Any, _: Limits) -> Any:
    if type(value) not in (int, float):
        raise Bad(f"{class_of(value)} in a column of numbers")
    if isnan(value):
        raise Bad("NaN, which SQLite would store as NULL")
    if value + 0.0 != value:
        raise Bad("an integer that a double cannot hold")
    return value


def _real(value: Any, _: Limits) -> float:
    if type(value) not in (int, float):
        raise Bad(f"{class_of(value)} in a column of numbers")
    try:
        found = _single(value)
    except OverflowError:
        found = nan
    if found != value:
        raise Bad("a number that real cannot hold to the last digit")
    return found + 0.0


def _double_element(value: Any, _: Limits) -> float:
    if type(value) is str and value in _FLOATS:
        return _FLOATS[value]
    found = float(_is_one(value))
    if not isfinite(found):
        raise Bad("a number beyond the range of double precision")
    if _WHOLE.fullmatch(value) and int(value) != found:
        raise Bad("an integer that a double cannot hold")
    return found


def _real_element(value: Any, limits: Limits) -> float:
    found = _double_element(value, limits)
    if isfinite(found):
        _real(found, limits)
    return found


def _double_json(value: float) -> str:
    if not isfinite(value):
        return '"NaN"' if isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    text = _shortest(value)
    if "e" in text or abs(value) < _ALONE:
        return text.removesuffix(".0")
    sign, digits = ("-" if value < 0 else ""), text.lstrip("-").removesuffix(".0")
    part = digits[1:].rstrip("0")
    return f"{sign}{digits[0]}{'.' if part else ''}{part}e+{len(digits) - 1}"


def _shortest(value: float) -> str:
    """Return the fewest digits that give a number back, as the server finds them.

    Python takes a number that lies halfway between two, where it is rounded to the right one; the server does not. With
    so few digits that happens only where numbers lie more than 1 apart.
    """
    text = repr(value)
    if abs(value) < _APART or not _is_halfway(text, value):
        return text
    longer = (f"{value:.{digits}e}" for digits in range(_MOST_DIGITS))
    return next(each for each in longer if float(each) == value and not _is_halfway(each, value))


def _is_halfway(text: str, value: float) -> bool:
    """Return whether a text lies in the middle between two numbers; those below a power of two are nearer to it."""
    off = (Fraction(text) - Fraction(value)) / Fraction(ulp(value))
    below = Fraction(1, 4 if abs(frexp(value)[0]) == 0.5 else 2)
    return off in ((Fraction(1, 2), -below) if value > 0 else (below, Fraction(-1, 2)))


def _double_same(value: float) -> str:
    return _double_json(value + 0.0)


def _nearest_real(value: Any, _: Limits) -> float:
    return _single(float(value))


def _single(value: float) -> float:
    found: float = _REAL.unpack(_REAL.pack(value))[0]
    return found


# Numbers of any length.


def _numeric(value: Any, limits: Limits) -> str:
    try:
        text = _written(value)
    except OverflowError:
        raise Bad("a number beyond the range of numeric") from None
    if not limits:
        return text
    if text in _SPECIAL:
        if text != "NaN":
            raise Bad("an infinity in a column of numbers with a scale")
        return text
    precision, scale = limits
    whole, _, part = text.removeprefix("-").partition(".")
    whole = whole.lstrip("0")
    if len(part) > max(scale, 0) or (scale < 0 and whole and not whole.endswith("0" * -scale)):
        raise Bad(f"a number with digits beyond the scale of numeric({precision},{scale})")
    digits = len(whole) or len(part.lstrip("0")) - len(part)
    if (whole or part) and digits > precision - scale:
        raise Bad(f"a number beyond the range of numeric({precision},{scale})")
    return text


def _written(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is float:
        if not isfinite(value):
            raise Bad("an infinity in a column of numeric")
        return plain_number(value)
    if not isinstance(value, str):
        raise Bad(f"{class_of(value)} in a column of numbers")
    if value in _SPECIAL:
        return str(value)
    if _SIMPLE.fullmatch(value):
        return value.rstrip("0").removesuffix(".") if "." in value else str(value)
    return plain_number(Decimal(_digits(value)))


def _digits(text: str) -> str:
    """Return a text of a number as `numeric` writes it, with the zeros at its end."""
    if not _NUMBER.fullmatch(text):
        raise Bad("TEXT that is no number in a column of numbers")
    try:
        return plain(Decimal(text))
    except InvalidOperation:  # an exponent of more than 18 digits
        raise OverflowError from None


def _nearest_numeric(value: Any, limits: Limits) -> str:
    found = Decimal(repr(value) if isinstance(value, float) else value)
    if limits and found.is_finite():
        exact = Context(prec=limits[0] + 2)
        found = found.quantize(Decimal(1).scaleb(-limits[1]), ROUND_HALF_UP, exact)  # too large: InvalidOperation
    return format(found, "f")


def _numeric_element(value: Any, limits: Limits) -> str:
    """Return a number with the zeros at its end, since no array can be trimmed on the server."""
    if not isinstance(value, str):
        raise Bad("what is no number in an array of numbers")
    return _numeric_sent(value, limits)


def _numeric_sent(value: Any, limits: Limits) -> str:
    """Return a number with as many zeros at its end as the server gives back."""
    found = _numeric(value, limits)
    if found in _SPECIAL:
        return found
    if not limits:
        return _digits(value) if isinstance(value, str) else found
    whole, _, part = found.partition(".")
    return f"{whole}.{part.ljust(limits[1], '0')}" if limits[1] > 0 else whole


def _numeric_wire(value: Any) -> bytes:
    """Return the binary form of a number: groups of four decimal digits. See numeric_recv() of the server."""
    text = value if isinstance(value, str) else plain_number(value)
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


def _numeric_same(text: str) -> str:
    return text if text in _SPECIAL else plain_number(Decimal(text))


_TRUTH: Final[Callable[[bool], str]] = {False: "false", True: "true"}.__getitem__

SMALLINT: Final = _integers("smallint", -(2**15), 2**15 - 1)
INTEGER: Final = _integers("integer", -(2**31), 2**31 - 1)
BIGINT: Final = _integers("bigint", -(2**63), 2**63 - 1)
OID: Final = _integers("oid", 0, 2**32 - 1)
BOOLEAN: Final = Spelling(
    read=_boolean,
    nearest=_nearest_integer,
    zero=always(0),
    element=_boolean_element,
    json=_TRUTH,
    is_plain=True,
    sorts_alike=True,
)
DOUBLE: Final = Spelling(
    read=_double,
    nearest=lambda value, _: float(value),
    zero=always(0.0),
    element=_double_element,
    json=_double_json,
    same=_double_same,
    is_plain=True,
    sorts_alike=True,
)
REAL: Final = Spelling(
    read=_real,
    nearest=_nearest_real,
    zero=always(0.0),
    element=_real_element,
    json=_double_json,
    same=_double_same,
    sorts_alike=True,
)
NUMERIC: Final = Spelling(
    read=_numeric,
    sent=_numeric_sent,
    nearest=_nearest_numeric,
    zero=always(0),
    wire=_numeric_wire,
    element=_numeric_element,
    same=_numeric_same,
)
