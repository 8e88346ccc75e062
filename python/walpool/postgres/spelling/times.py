"""Dates and times, with a zone and without. Pure.

Those with a day have it in the years 1 to 9999, or are `infinity`; those with a zone are given back in UTC, but for
`timetz`, which keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from struct import Struct
from typing import Any, Final

from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, plain_text

__all__ = ["DATE", "DIGITS", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "TIMETZ", "fraction"]

DIGITS: Final = 6
"""Digits behind the second, where a type does not limit them."""

_ENDLESS: Final = {"infinity": 1, "-infinity": -1}
_EPOCH: Final = date(2000, 1, 1).toordinal()
_DAY_END: Final = "24:00:00"
_NOWHERE: Final = ["00", None, None]  # the offset of what is in UTC, as the server writes it
_MOST_HOURS: Final = 16  # of an offset, as the server has it
_TOO_FAR: Final = "a time with an offset of 16 hours or more"

_CLOCK: Final = r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.(\d+))?)?"
_ZONE: Final = r"\s?(?:(Z)|([+-])(\d\d)(?::?([0-5]\d)(?:(?<=:\d\d):([0-5]\d))?)?)?"
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIMESTAMP: Final = re.compile(r"(\d{4}-\d\d-\d\d)[ T]" + _CLOCK + _ZONE, re.ASCII)
_TIME: Final = re.compile(_CLOCK + _ZONE, re.ASCII)
_MIDNIGHT: Final = re.compile(r"24:00(?::00(?:\.0*)?)?")


def fraction(digits: str | None, limits: Limits) -> str:
    """Return the digits behind a second without the zeros at their end, and with the point.

    Raises:
        Bad: there are more than a column takes.
    """
    part = (digits or "").rstrip("0")
    most = limits[0] if limits else DIGITS
    if len(part) > most:
        raise Bad(f"a time with more than {most} digits behind the second")
    return f".{part}" if part else ""


def _cut(digits: str | None, limits: Limits) -> str:
    return (digits or "")[: limits[0] if limits else DIGITS]


# Days.


def _date(value: Any, _: Limits) -> str:
    text = plain_text(value, "dates")
    if text in _ENDLESS:
        return text
    if not _DATE.fullmatch(text):
        raise Bad("TEXT that is no date as 2024-02-29")
    return _in_calendar(text)


def _nearest_date(value: Any, _: Limits) -> Any:
    found = _TIMESTAMP.fullmatch(value)
    return found[1] if found else None


def _days(text: str) -> int:
    if text in _ENDLESS:
        return 2**31 - 1 if _ENDLESS[text] > 0 else -(2**31)
    return _ordinal(text) - _EPOCH


def _in_calendar(day: str) -> str:
    try:
        date.fromisoformat(day)
    except ValueError:
        raise Bad("a date that no calendar has") from None
    return day


def _ordinal(text: str) -> int:
    if len(text) != 10 or text[4] + text[7] != "--":
        raise ValueError
    return date.fromisoformat(text).toordinal()


# Moments.


def _timestamp(value: Any, limits: Limits) -> str:
    return _moment(value, limits, has_zone=False)


def _timestamptz(value: Any, limits: Limits) -> str:
    return _moment(value, limits, has_zone=True)


def _moment(value: Any, limits: Limits, *, has_zone: bool) -> str:
    text = plain_text(value, "times")
    if text in _ENDLESS:
        return text
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        raise Bad("TEXT that is no time as 2024-02-29 23:59:59.5")
    day, hours, minutes, seconds, digits, utc, sign, *east = found.groups()
    part = fraction(digits, limits)
    if (utc or sign) and not has_zone:
        raise Bad("a time with an offset in a column without time zone")
    whole = f"{_in_calendar(day)} {hours}:{minutes}:{seconds or '00'}"
    if sign and east != _NOWHERE:
        whole = _moved(whole, sign, [int(number or 0) for number in east])
    return whole + part + ("+00" if has_zone else "")


def _moved(whole: str, sign: str, east: Sequence[int]) -> str:
    """Return a time in UTC; its offset is in hours, minutes and seconds."""
    hours, minutes, seconds = east
    if hours >= _MOST_HOURS:
        raise Bad(_TOO_FAR)
    offset = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    at = datetime.fromisoformat(whole)
    try:
        return str(at - offset if sign == "+" else at + offset)
    except OverflowError:
        raise Bad("a time beyond the years 1 to 9999") from None


def _nearest_timestamp(value: Any, limits: Limits) -> Any:
    return _nearest_moment(value, limits, has_zone=False)


def _nearest_timestamptz(value: Any, limits: Limits) -> Any:
    return _nearest_moment(value, limits, has_zone=True)


def _nearest_moment(value: Any, limits: Limits, *, has_zone: bool) -> Any:
    """Return a time in UTC with as many digits as there may be, those behind them cut off."""
    if _DATE.fullmatch(value):
        return _moment(f"{value} 00:00", limits, has_zone=has_zone)
    found = _TIMESTAMP.fullmatch(value)
    if found is None:
        return None
    given = value if found[5] is None else value[: found.start(5) - 1] + value[found.end(5) :]
    part = _cut(found[5], limits).rstrip("0")
    moved = _moment(given, limits, has_zone=True).removesuffix("+00")
    return moved + (f".{part}" if part else "") + ("+00" if has_zone else "")


def _microseconds(text: str) -> int:
    """Return the number of a time: `2024-02-29 23:59:59.123456`, with `+00` at its end or without."""
    if text in _ENDLESS:
        return 2**63 - 1 if _ENDLESS[text] > 0 else -(2**63)
    plain = text.removesuffix("+00")
    if plain[10:11] != " ":
        raise ValueError
    return (_ordinal(plain[:10]) - _EPOCH) * 86_400_000_000 + _of_day(plain[11:])


def _of_day(text: str) -> int:
    """Return the microseconds from midnight to a time: `23:59:59.123456`."""
    hours, minutes, seconds = int(text[:2]), int(text[3:5]), int(text[6:8])
    if text[2] + text[5] != "::" or hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError
    part = text[9:]
    if text[8:9] not in ("", ".") or len(part) > DIGITS:
        raise ValueError
    return (hours * 3600 + minutes * 60 + seconds) * 1_000_000 + int(part.ljust(DIGITS, "0"))


# Times of a day.


def _time(value: Any, limits: Limits) -> str:
    text = plain_text(value, "times")
    if _MIDNIGHT.fullmatch(text):
        return _DAY_END
    found = _TIME.fullmatch(text)
    if found is None:
        raise Bad("TEXT that is no time of a day as 23:59:59.5")
    if found[5] or found[6]:
        raise Bad("a time with an offset in a column without time zone")
    return _clock(found, limits)


def _timetz(value: Any, limits: Limits) -> str:
    text = plain_text(value, "times")
    is_end = text.startswith("24")
    found = _TIME.fullmatch(f"00{text[2:]}" if is_end else text)
    if found is None:
        raise Bad("TEXT that is no time of a day as 23:59:59.5+02")
    clock = _clock(found, limits)
    if is_end and clock != "00:00:00":
        raise Bad("a time behind the end of a day")
    return (_DAY_END if is_end else clock) + _offset(found)


def _clock(found: re.Match[str], limits: Limits) -> str:
    return f"{found[1]}:{found[2]}:{found[3] or '00'}{fraction(found[4], limits)}"


def _offset(found: re.Match[str]) -> str:
    """Return an offset as the server writes it: `+02`, `-03:30`."""
    hours, minutes, seconds = found[7] or "00", found[8] or "00", found[9] or "00"
    if int(hours) >= _MOST_HOURS:
        raise Bad(_TOO_FAR)
    sign = "+" if (hours, minutes, seconds) == ("00", "00", "00") else found[6]
    return f"{sign}{hours}" + (f":{minutes}:{seconds}" if seconds != "00" else f":{minutes}" if minutes != "00" else "")


def _nearest_time(value: Any, limits: Limits) -> Any:
    found = _TIME.fullmatch(value)
    part = _cut(found[4], limits) if found else ""
    return found and f"{found[1]}:{found[2]}:{found[3] or '00'}" + (f".{part}" if part else "")


def _nearest_timetz(value: Any, limits: Limits) -> Any:
    found = _TIME.fullmatch(value)
    return found and _nearest_time(value, limits) + _offset(found)


def _time_wire(text: str) -> int:
    return 86_400_000_000 if text == _DAY_END else _of_day(text)


def _timetz_wire(text: str) -> bytes:
    at = max(text.rfind("+"), text.rfind("-"))
    hours, minutes, seconds = (int(part) for part in (text[at + 1 :] + ":00:00").split(":")[:3])
    east = hours * 3600 + minutes * 60 + seconds
    return Struct(">qi").pack(_time_wire(text[:at]), -east if text[at] == "+" else east)


DATE: Final = Spelling(read=_date, nearest=_nearest_date, zero=always("1970-01-01"), wire=_days)
TIME: Final = Spelling(read=_time, nearest=_nearest_time, zero=always("00:00:00"), wire=_time_wire)
TIMETZ: Final = Spelling(read=_timetz, nearest=_nearest_timetz, zero=always("00:00:00+00"), wire=_timetz_wire)
TIMESTAMP: Final = Spelling(
    read=_timestamp, nearest=_nearest_timestamp, zero=always("1970-01-01 00:00:00"), wire=_microseconds
)
TIMESTAMPTZ: Final = Spelling(
    read=_timestamptz, nearest=_nearest_timestamptz, zero=always("1970-01-01 00:00:00+00"), wire=_microseconds
)
