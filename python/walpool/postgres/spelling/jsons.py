"""`json`, which keeps its text, and `jsonb`, which gives back one text for one value. Pure.

`jsonb` has keys by length and then by bytes, the last of those that are there twice, one space behind each comma and
colon, numbers without an exponent. https://www.postgresql.org/docs/18/datatype-json.html
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, Final, NoReturn

from walpool.postgres.spelling.numbers import plain
from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, nearest_text, plain_text

__all__ = ["JSON", "JSONB"]

_DEEPEST: Final = 400  # Python and the server both read nested values by recursion, and give up somewhere above
_LONGEST: Final = 0x0FFFFFFF  # bytes of one value
_PIECES: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNKNOWN: Final = "\N{REPLACEMENT CHARACTER}"


class _Number:
    """A number that Python would spell otherwise than `numeric` does."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _json(value: Any, _: Limits) -> str:
    text = plain_text(value)
    if not _is_json(text):
        raise Bad("no JSON by the standard (a NaN or an infinity, perhaps)")
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _nearest_json(value: Any, _: Limits) -> str:
    text = nearest_text(value)
    return text if _is_json(text) else json.dumps(text)


def _jsonb(value: Any, _: Limits) -> str:
    """Return what `CAST(value AS jsonb)` is as text."""
    found = _written(_parsed(plain_text(value)))
    try:
        length = len(found.encode())
    except UnicodeEncodeError:
        raise Bad("half of a surrogate pair in JSON, which jsonb cannot hold") from None
    if "\\u0000" in found and _NUL.search(found):
        raise Bad("a NUL (\\u0000) in JSON, which jsonb cannot hold")
    if length > _LONGEST:
        raise Bad("JSON that is too long for jsonb")
    return found


def _nearest_jsonb(value: Any, limits: Limits) -> str:
    """Return what a text becomes that `jsonb` does not take: U+FFFD for what it cannot hold, else a string of it."""
    text = nearest_text(value)
    try:
        found = _SURROGATE.sub(_UNKNOWN, _written(_parsed(text)))
        return _jsonb(_NUL.sub(rf"\1{_UNKNOWN}", found), limits)
    except Bad:
        return json.dumps(text, ensure_ascii=False)


def _parsed(text: str) -> Any:
    if text.count("[") + text.count("{") > _DEEPEST and _depth(text) > _DEEPEST:
        raise Bad(f"JSON that is nested more than {_DEEPEST} deep")
    try:
        return _read(text)
    except json.JSONDecodeError:
        raise Bad("no JSON by the standard (a NaN or an infinity, perhaps)") from None
    except OverflowError:
        raise Bad("a number in JSON that is beyond the range of numeric") from None


def _depth(text: str) -> int:
    deepest = depth = 0
    for piece in _PIECES.findall(text):
        if piece[0] != '"':
            depth += 1 if piece in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _whole(text: str) -> int | _Number:
    return int(text) if len(text) < 20 else _Number(plain(Decimal(text)))  # int() refuses thousands of digits


def _number(text: str) -> float | _Number:
    found = float(text)
    if found and repr(found) == text and "e" not in text:
        return found
    try:
        return _Number(plain(Decimal(text)))
    except ArithmeticError:  # an exponent of more than 18 digits
        raise OverflowError from None


def _refuse(name: str) -> NoReturn:
    raise json.JSONDecodeError(name, "", 0)


def _ordered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs, key=_place)) if len(pairs) > 1 else dict(pairs)


def _place(pair: tuple[str, Any]) -> tuple[int, str]:
    return len(pair[0].encode("utf-8", "surrogatepass")), pair[0]


def _unwritten(_: Any) -> NoReturn:
    raise TypeError


_read: Final = json.JSONDecoder(
    parse_int=_whole, parse_float=_number, parse_constant=_refuse, object_pairs_hook=_ordered
).decode
_write: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=_unwritten).encode


def _written(value: Any) -> str:
    try:
        return _write(value)
    except TypeError:  # somewhere in it stands a _Number
        return _spelled(value)


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join([f"{_write(name)}: {_spelled(each)}" for name, each in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    return value.text if isinstance(value, _Number) else _write(value)


def _wire(text: str) -> bytes:
    return b"\1" + text.encode()  # the version of the format, and the text


JSON: Final = Spelling(read=_json, nearest=_nearest_json, zero=always("null"), is_plain=True, sorts_alike=True)
JSONB: Final = Spelling(read=_jsonb, nearest=_nearest_jsonb, zero=always("null"), wire=_wire)
