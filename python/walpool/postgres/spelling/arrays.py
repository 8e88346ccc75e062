"""Arrays, as JSON: a list of elements, or for several dimensions of lists of one length; null is NULL. Pure.

Numbers and booleans are JSON's own, but for `numeric`, whose digits many readers of JSON would lose, and for NaN and
infinities, which JSON lacks: these are strings, as all else is. The text is the one that the server's `array_to_json`
gives. Where the subscripts do not begin at 1 they stand before it as `[0:1]=`, which is no JSON: nothing may lose them
in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from struct import Struct
from typing import Any, Final, NamedTuple, NoReturn

from walpool.postgres.spelling.spelling import Bad, Limits, Number, Spelling, always, class_of

__all__ = ["has_bounds", "literal", "of", "quoted", "wire"]

_MOST_DIMENSIONS: Final = 6
_BOUNDS: Final = re.compile(r"\A\[-?\d+:[^=]*=", re.ASCII)


class _Array(NamedTuple):
    dimensions: tuple[int, ...]
    """None of an empty one."""
    elements: list[Any]
    """Of all lists, one after the other; `Number`, str, bool or None."""


def has_bounds(text: str) -> bool:
    """Return whether an array has subscripts that do not begin at 1."""
    return text.startswith("[") and _BOUNDS.match(text) is not None


def of(element: Spelling, limits: Limits = ()) -> Spelling:
    """Return what is known of arrays; how one is sent is for `wire` to say, which takes the number of a type.

    Args:
        element: what is known of their elements.
        limits: of the elements' type.
    """
    read = partial(_element, element, limits)
    mend = partial(_nearest, element, limits)

    def same(text: str) -> str:
        return _written(_parsed(text), read, element.same or element.json)

    return Spelling(
        read=lambda value, _: _written(_parsed(value), read, element.json),
        nearest=lambda value, _: _written(_parsed(_BOUNDS.sub("", value, count=1)), mend, element.json),
        zero=always("[]"),
        same=None if element.same is None else same,
    )


def wire(text: str, element: Spelling, oid: int, fields: Callable[[list[Any]], Sequence[bytes]]) -> bytes:
    """Return the binary form of an array, as `read` returns it. See array_recv() of the server.

    Args:
        text: the array.
        element: what its elements are.
        oid: the number of their type on the server.
        fields: returns elements as their lengths and bytes.
    """
    found = _parsed(text)
    make = element.element or _as_it_is
    elements = [None if token is None else make(token, ()) for token in found.elements]
    head = [len(found.dimensions), int(None in elements), oid]
    head += chain.from_iterable((size, 1) for size in found.dimensions)
    return Struct(f">iiI{len(head) - 3}i").pack(*head) + b"".join(fields(elements))


def literal(text: str) -> str:
    """Return an array, as the server gives it back in JSON, as PostgreSQL writes it: `{"a",NULL}`."""
    bounds = _BOUNDS.match(text)
    if bounds is not None:
        return bounds[0] + literal(text[bounds.end() :])
    found = _parsed(text)
    return _nested(found.dimensions, list(map(quoted, found.elements)), "{}")


def quoted(value: Any) -> str:
    """Return a value as it stands in such a text."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _element(element: Spelling, limits: Limits, token: Any) -> Any:
    if element.element is not None:
        return element.element(token, limits)
    if type(token) is not str:
        raise Bad("what is no string in an array of strings")
    try:
        return element.read(token, limits)
    except Bad as bad:
        raise Bad(f"in an array, {bad}") from None


def _nearest(element: Spelling, limits: Limits, token: Any) -> Any:
    """Return what is nearest to an element; None if nothing is."""
    try:
        return _element(element, limits, token)
    except Bad:
        pass
    try:
        found = element.nearest(str(token) if isinstance(token, Number) else token, limits)
        return None if found is None else _element(element, limits, _token(found))
    except (ArithmeticError, ValueError, TypeError):
        return None


def _token(value: Any) -> Any:
    """Return a value of a column as JSON has it."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return Number(value) if type(value) in (int, float) else value


def _as_it_is(token: Any, _: Limits) -> Any:
    return token


def _written(array: _Array, element: Callable[[Any], Any], spelled: Callable[[Any], str]) -> str:
    texts = []
    for token in array.elements:
        value = None if token is None else element(token)
        texts.append("null" if value is None else spelled(value))
    found = _nested(array.dimensions, texts, "[]")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise Bad("half of a surrogate pair in an array") from None
    return found


def _nested(dimensions: Sequence[int], texts: list[str], brackets: str) -> str:
    for size in reversed(dimensions):
        parts = [",".join(texts[at : at + size]) for at in range(0, len(texts), size)]
        texts = [f"{brackets[0]}{part}{brackets[1]}" for part in parts]
    return texts[0] if texts else brackets


def _parsed(text: Any) -> _Array:
    if type(text) is not str:
        raise Bad(f"{class_of(text)} in a column of arrays")
    if has_bounds(text):
        raise Bad("an array whose subscripts do not begin at 1")
    try:
        level = _decode(text)
    except (ValueError, RecursionError):
        raise Bad("no JSON by the standard in a column of arrays") from None
    if not isinstance(level, list):
        raise Bad("JSON that is no list in a column of arrays")
    return _flat(level) if level else _Array((), [])


def _flat(level: list[Any]) -> _Array:
    dimensions = [len(level)]
    while any(isinstance(each, list) for each in level):
        if not all(isinstance(each, list) for each in level):
            raise Bad("an array with elements beside lists")
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise Bad("an array whose lists differ in length")
        if lengths == {0}:
            raise Bad("an array of lists without elements")
        dimensions += lengths
        level = list(chain.from_iterable(level))
    if len(dimensions) > _MOST_DIMENSIONS:
        raise Bad(f"an array of more than {_MOST_DIMENSIONS} dimensions")
    return _Array(tuple(dimensions), level)


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


_decode: Final = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_refuse).decode
