"""Conditions on the metadata of a record: what a key's value must be, compared by type and value, never by its text.

Plain data and its validation; knows no SQL and no backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias, TypeVar

from walpool.errors import DataError

__all__ = ["Condition", "Contains", "Equals", "Exists", "In", "PythonEquals", "Range"]

T = TypeVar("T")
Scalar: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Equals:
    """The value is this one: text equals text, a number a number (1 is 1.0), true is not 1, null is not a lacking key.

    Lists and objects are equal as JSON is: element by element, an object whatever the order of its keys.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class In:
    """The value is one of these, each compared as `Equals` does; none of an empty list."""

    values: Sequence[Any]

    def __post_init__(self) -> None:
        """Keep the values as a tuple, and take no text for a list of letters."""
        if isinstance(self.values, (str, bytes, Mapping)):
            raise DataError("In(...) takes a list of values")
        object.__setattr__(self, "values", tuple(self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The value lies between: numbers among numbers, text among text by code points; no other type lies anywhere."""

    at_least: str | int | float | None = None
    above: str | int | float | None = None
    at_most: str | int | float | None = None
    below: str | int | float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds of two types, of a type without an order, and none at all."""
        bounds = [bound for bound in (self.at_least, self.above, self.at_most, self.below) if bound is not None]
        if not bounds:
            raise DataError("Range() needs a bound: at_least, above, at_most or below")
        if any(isinstance(bound, bool) or not isinstance(bound, (str, int, float)) for bound in bounds):
            raise DataError("the bounds of a Range are numbers or texts")
        if len({isinstance(bound, str) for bound in bounds}) > 1:
            raise DataError("the bounds of a Range are all numbers or all texts")
        if any(isinstance(bound, float) and not isfinite(bound) for bound in bounds):
            raise DataError("the bounds of a Range are finite")


@dataclass(frozen=True, slots=True)
class Exists:
    """The key is there, whatever its value, null too; `Exists(False)`: it is not."""

    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Contains:
    """The value is a list, and one of its elements is this one, compared as `Equals` does."""

    element: Any


@dataclass(frozen=True, slots=True)
class PythonEquals:
    """What `record.metadata.get(key) == value` says: 1 is True, and None is met by a lacking key.

    Frameworks that filter in Python mean this. Python does the comparing, so it costs a look at each record that the
    other conditions leave.
    """

    value: Any


Condition: TypeAlias = "Equals | In | Range | Exists | Contains | PythonEquals"
"""What may stand behind a key in `Query.metadata`; any other value there means `Equals` of it."""

for _public in (Contains, Equals, Exists, In, PythonEquals, Range):
    _public.__module__ = "walpool.memory"
