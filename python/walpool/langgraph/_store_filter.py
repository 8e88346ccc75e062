"""Filters of a store search, on decoded values: `==` and the operators as `InMemoryStore` has them. Pure.

It differs from that store where that one raises in the middle of a search: an item whose value has no order with what
the filter names (it is missing, null, a list) does not match; two texts that are no numbers are compared as texts, as
`SqliteStore` does, so that ISO dates can be compared.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS: Final = frozenset({"$eq", "$ne", *_ORDERS})


def validate(conditions: Mapping[str, Any]) -> None:
    """Refuse operators that there are not, wherever they stand.

    Raises:
        ValueError: an operator is unknown, or stands beside names of fields.
    """
    for wanted in conditions.values():
        _validate(wanted)


def _validate(wanted: object) -> None:
    if isinstance(wanted, Mapping):
        if is_operators(wanted):
            for name in wanted:
                if name not in OPERATORS:
                    raise ValueError(f"Unsupported operator: {name}; there are {', '.join(sorted(OPERATORS))}")
        else:
            validate(wanted)
    elif isinstance(wanted, (list, tuple)):
        for entry in wanted:
            _validate(entry)


def matches(value: Mapping[str, Any], conditions: Mapping[str, Any]) -> bool:
    """Return whether an item's value meets every condition; a field that is missing counts as None."""
    return all(_meets(value.get(key), wanted) for key, wanted in conditions.items())


def is_operators(wanted: Mapping[Any, Any]) -> bool:
    """Return whether a mapping in a filter holds operators, rather than fields of a nested value."""
    return any(isinstance(key, str) and key.startswith("$") for key in wanted)


def _meets(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if is_operators(wanted):
            return all(_holds(found, name, operand) for name, operand in wanted.items())
        return isinstance(found, Mapping) and matches(found, wanted)
    if isinstance(wanted, (list, tuple)):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_meets, found, wanted))
    return bool(found == wanted)


def _holds(found: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return bool(found == _as_json(operand))
    if name == "$ne":
        return bool(found != _as_json(operand))
    in_order = _ORDERS[name]
    try:
        return in_order(float(found), float(operand))
    except (TypeError, ValueError, OverflowError):
        return isinstance(found, str) and isinstance(operand, str) and in_order(found, operand)


def _as_json(operand: Any) -> Any:
    # What was put as a tuple is a list when it comes back.
    return list(operand) if isinstance(operand, tuple) else operand
