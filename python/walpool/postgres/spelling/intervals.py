"""`interval`: months, days and microseconds, written as ISO 8601 has durations (`P1Y2M3DT4H5M6.5S`). Pure.

The three do not follow from each other (a month has no fixed length, nor has a day), so each has a sign of its own. The
server writes them so where `IntervalStyle` is `iso_8601`.
https://www.postgresql.org/docs/18/datatype-datetime.html#DATATYPE-INTERVAL-OUTPUT
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Any, Final, NamedTuple

from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, plain_text
from walpool.postgres.spelling.times import DIGITS, fraction

__all__ = ["INTERVAL"]

_PARTS: Final = re.compile(
    r"P(?=.)(?:(-?\d{1,12})Y)?(?:(-?\d{1,12})M)?(?:(-?\d{1,12})W)?(?:(-?\d{1,12})D)?"
    r"(?:T(?=.)(?:(-?\d{1,20})H)?(?:(-?\d{1,20})M)?(?:(-?)(\d{1,20})(?:\.(\d+))?S)?)?",
    re.ASCII,
)
_WIRE: Final = Struct(">qii")
_SECOND: Final = 1_000_000
_HOUR: Final = 3600 * _SECOND
_DAY: Final = 24 * _HOUR
_DAYS_OF_MONTH: Final = 30  # where the server compares two of them


class _Interval(NamedTuple):
    microseconds: int
    days: int
    months: int


# Since PostgreSQL 17; an older server has them for what they are in numbers.
_ENDLESS: Final = {
    "infinity": _Interval(2**63 - 1, 2**31 - 1, 2**31 - 1),
    "-infinity": _Interval(-(2**63), -(2**31), -(2**31)),
}


def _interval(value: Any, limits: Limits) -> str:
    text = plain_text(value, "intervals")
    return text if text in _ENDLESS else _written(_parsed(text, limits))


def _parsed(text: str, limits: Limits) -> _Interval:
    found = _PARTS.fullmatch(text)
    if found is None:
        raise Bad("TEXT that is no interval as P1Y2M3DT4H5M6.5S")
    years, months, weeks, days, hours, minutes, seconds = (int(found[n] or 0) for n in (1, 2, 3, 4, 5, 6, 8))
    part = int(fraction(found[9], limits)[1:].ljust(DIGITS, "0"))
    whole = seconds * _SECOND + part
    made = _Interval(
        hours * _HOUR + minutes * 60 * _SECOND + (-whole if found[7] == "-" else whole),
        weeks * 7 + days,
        years * 12 + months,
    )
    least, most = _ENDLESS["-infinity"], _ENDLESS["infinity"]
    if made in (least, most) or not all(low <= n <= high for low, n, high in zip(least, made, most, strict=True)):
        raise Bad("an interval beyond its range")
    return made


def _written(interval: _Interval) -> str:
    """Return what the server writes: whole years in place of months, whole hours and minutes in place of seconds."""
    years, months = _split(interval.months, 12)
    hours, rest = _split(interval.microseconds, _HOUR)
    minutes, rest = _split(rest, 60 * _SECOND)
    seconds, part = _split(abs(rest), _SECOND)
    digits = f".{part:06}".rstrip("0") if part else ""
    ahead = "".join(f"{n}{unit}" for n, unit in ((years, "Y"), (months, "M"), (interval.days, "D")) if n)
    behind = "".join(f"{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M")) if n)
    behind += f"{'-' if rest < 0 else ''}{seconds}{digits}S" if rest else ""
    return f"P{ahead}{'T' if behind else ''}{behind}" if ahead or behind else "PT0S"


def _split(number: int, size: int) -> tuple[int, int]:
    """Return how often a number holds another, and what is left, both with its sign."""
    whole, rest = divmod(abs(number), size)
    return (whole, rest) if number >= 0 else (-whole, -rest)


def _nearest(value: Any, limits: Limits) -> Any:
    """Return an interval with as many digits as there may be, those behind them cut off."""
    found = _PARTS.fullmatch(value)
    if found is None or found[9] is None:
        return None
    most = limits[0] if limits else DIGITS
    return value[: found.start(9) - (0 if most else 1)] + found[9][:most] + value[found.end(9) :]


def _wire(text: str) -> bytes:
    return _WIRE.pack(*(_ENDLESS.get(text) or _parsed(text, ())))


def _same(text: str) -> str:
    interval = _ENDLESS.get(text) or _parsed(text, ())
    return str(interval.microseconds + (interval.days + interval.months * _DAYS_OF_MONTH) * _DAY)


INTERVAL: Final = Spelling(read=_interval, nearest=_nearest, zero=always("PT0S"), wire=_wire, same=_same)
