"""What the indexes of categories and metadata hold, and the conditions on them; pure, no I/O.

    category_marks      a mark for each category
    metadata_marks      for each top-level key a mark that it is there, and one of its value; of a list one for each
                        element, of a list or object one that it is such
    metadata_order      {"n": {key: number}, "t": {key: text}}: what a Range compares

A mark is a hash of 128 bits over the tenant, the collection, and what is marked: values of any length and type in one
index over arrays, in which a tenant's marks are its own. It is taken over a canonical JSON in which two values have the
same text exactly if they are equal: a number beyond 64 bits is the float nearest to it, 1.0 is 1, NaN is null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import isinf, isnan
from typing import Any, Final

from walpool.errors import DataError
from walpool.memory._columns import number
from walpool.memory._operations import Given, Space
from walpool.memory.conditions import Contains, Equals, Exists, In, Range

__all__ = ["array", "categories", "condition", "is_category", "metadata", "narrowed"]

_BOUNDS: Final = (("at_least", ">="), ("above", ">"), ("at_most", "<="), ("below", "<"))
# jsonb holds no NUL; in this form, texts with one have their order.
_NO_NUL: Final = str.maketrans({"\0": "\1\1", "\1": "\1\2"})


def categories(space: Space, names: Iterable[str]) -> str:
    """Return the text of `category_marks`."""
    return _marks(_mark(space, "category", name) for name in names)


def metadata(space: Space, text: str) -> tuple[str, str | None]:
    """Return the texts of `metadata_marks` and `metadata_order` for the JSON of metadata."""
    if text == "{}":
        return "{}", None
    marks: list[str] = []
    numbers: dict[str, str] = {}
    texts: dict[str, str] = {}
    for key, value in _loaded(text).items():
        marks += (_mark(space, "key", key), _mark(space, "value", key, _canonical(value)))
        if isinstance(value, list):
            marks += {_mark(space, "element", key, _canonical(one)): None for one in value}
        if isinstance(value, (list, dict)):
            marks.append(_mark(space, "json", key))
        elif isinstance(value, str):
            texts[key] = value.translate(_NO_NUL)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[key] = _decimal(value)
    order = json.dumps({"n": numbers, "t": texts}) if numbers or texts else None
    return _marks(marks), order


def is_category(space: Space, names: Iterable[str], given: Given) -> str:
    """Return the condition that a record has one of these categories."""
    return _any_of("category", [_mark(space, "category", name) for name in names], given)


def condition(space: Space, key: Any, wanted: Any, given: Given) -> str:
    """Return the condition that a record's metadata meets a typed condition."""
    if not isinstance(key, str):
        raise DataError("the keys of metadata are texts")
    if isinstance(wanted, Exists):
        is_there = _any_of("metadata", [_mark(space, "key", key)], given)
        return is_there if wanted.wanted else f"NOT {is_there}"
    if isinstance(wanted, Range):
        return _range(space, key, wanted, given)
    if isinstance(wanted, Contains):
        return _equals(space, "element", key, [wanted.element], given)
    if isinstance(wanted, In):
        return _equals(space, "value", key, wanted.values, given)
    return _equals(space, "value", key, [wanted.value if isinstance(wanted, Equals) else wanted], given)


def narrowed(space: Space, key: Any, value: Any, given: Given) -> list[str]:
    """Return conditions without which `metadata.get(key) == value` cannot hold: Python decides on what they leave."""
    if not isinstance(key, str):
        return []
    if type(value) is str:
        return [_equals(space, "value", key, [value], given)]
    if type(value) in (bool, int, float):
        if value != value:
            return ["false"]
        as_number = [_mark(space, "value", key, _canonical(_whole(number(value + 0))))]  # True + 0 is 1
        as_bool = [_mark(space, "value", key, _canonical(bool(value)))] if value in (0, 1) else []
        return [_any_of("metadata", as_number + as_bool, given)]
    if type(value) in (list, dict):
        return [_any_of("metadata", [_mark(space, "json", key)], given)]
    return []  # also None, which a lacking key meets


def array(texts: Iterable[str]) -> str:
    """Return the text of an array of texts."""
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _equals(space: Space, kind: str, key: str, wanted: Sequence[Any], given: Given) -> str:
    real = [value for value in wanted if not (isinstance(value, float) and isnan(value))]  # NaN equals nothing
    try:
        values = _loaded(json.dumps(real))
    except RecursionError:  # a RuntimeError, which frameworks take for a shutting-down interpreter
        raise DataError("a condition on metadata is nested too deep for JSON") from None
    return _any_of("metadata", [_mark(space, kind, key, _canonical(value)) for value in values], given)


def _range(space: Space, key: str, wanted: Range, given: Given) -> str:
    bounds = [(sign, getattr(wanted, bound)) for bound, sign in _BOUNDS if getattr(wanted, bound) is not None]
    is_there = _any_of("metadata", [_mark(space, "key", key)], given)
    name = f"CAST({given(key)} AS TEXT)" if "\0" not in key else "''"
    if isinstance(bounds[0][1], str):
        held = f"""(r.metadata_order -> 't' ->> {name}) COLLATE "C" """
        compared = [f"{held} {sign} CAST({given(bound.translate(_NO_NUL))} AS TEXT)" for sign, bound in bounds]
    else:
        held = f"CAST(r.metadata_order -> 'n' ->> {name} AS NUMERIC)"
        compared = [
            f"{held} {sign} CAST({given(_decimal(_whole(number(bound))))} AS NUMERIC)" for sign, bound in bounds
        ]
    return " AND ".join((is_there, *compared))


def _any_of(column: str, marks: Sequence[str], given: Given) -> str:
    held = f"r.{column}_marks"
    if len(marks) == 1:
        return f"({held} @> ARRAY[CAST({given(marks[0])} AS UUID)])"
    return f"({held} && CAST({given(_marks(marks))} AS UUID[]))"


def _loaded(text: str) -> Any:
    """Return JSON with its numbers as they are compared."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise DataError("the metadata of a record is nested too deep for JSON") from None


def _canonical(value: Any) -> str:
    return _ENCODER.encode(value)


def _int(text: str) -> int | float:
    return _whole(number(int(text)))


def _float(text: str) -> int | float:
    return _whole(float(text))


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _whole(value: float) -> int | float:
    return value if isinstance(value, int) or isinf(value) or not value.is_integer() else int(value)


def _decimal(value: float) -> str:
    return ("-" if value < 0 else "") + "Infinity" if isinf(value) else repr(value)


def _marks(marks: Iterable[str]) -> str:
    return "{" + ",".join(dict.fromkeys(marks)) + "}"


def _mark(space: Space, kind: str, *what: str) -> str:
    digest = _of_space(space.tenant, space.collection).copy()
    # With its length in front, since a name may hold anything.
    named = "".join(f"{len(text)}:{text}" for text in (kind, *what))
    try:
        digest.update(named.encode())
    except UnicodeEncodeError:
        raise DataError("a category or a key of metadata has a lone surrogate, which UTF-8 has not") from None
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _of_space(tenant: str, collection: str) -> hashlib.blake2b:
    named = f"{len(tenant)}:{tenant}{len(collection)}:{collection}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(named, digest_size=16)


# Once, since json.loads and json.dumps would make them for each value.
_DECODER: Final = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=_constant)
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
