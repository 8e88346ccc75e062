"""Conditions on the plain columns of `memory_records AS r`, in the SQL that every backend takes; no I/O."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from math import inf
from typing import Any, Final

from walpool.errors import DataError
from walpool.memory._operations import Given
from walpool.memory._rows import micros
from walpool.memory.records import Query, normalize_scope
from walpool.types import Row

__all__ = ["aged", "fields", "levels", "number"]

_TIMES: Final = (
    ("created_after", "created_at >="),
    ("created_before", "created_at <"),
    ("accessed_before", "accessed_at <"),
)
_NUMBERS: Final = (("importance_at_least", "importance >="), ("importance_below", "importance <"))


def fields(query: Query, given: Given) -> list[str]:
    """Return the conditions on columns that are neither the scope nor the id."""
    rows = []
    if query.source is not None:
        rows.append(f"r.source = {given(query.source)}")
    if query.private is not None:
        rows.append(f"r.private = {given(int(query.private))}")
    for name, comparison in _TIMES:
        if (time := getattr(query, name)) is not None:
            rows.append(f"r.{comparison} {given(micros(time))}")
    for name, comparison in _NUMBERS:
        if (number := getattr(query, name)) is not None:
            rows.append(f"r.{comparison} {given(float(number))}")
    return rows


def aged(given: Given, *, older_than: timedelta | None, keep: int | None, importance_below: float | None) -> list[str]:
    """Return the conditions of `expire`, but for `keep`, which is the backend's to say.

    Raises:
        DataError: there is no condition, or a negative one.
    """
    if older_than is None and keep is None and importance_below is None:
        raise DataError("expire() needs a condition: older_than, keep or importance_below")
    if (older_than is not None and older_than < timedelta(0)) or (keep or 0) < 0 or (importance_below or 0) < 0:
        raise DataError("a condition of expire() is not negative")
    more: list[str] = []
    if older_than is not None:
        ago = micros(datetime.now(timezone.utc)) - older_than // timedelta(microseconds=1)
        more.append(f"r.created_at < {given(max(ago, -(2**63)))}")
    if importance_below is not None:
        more.append(f"r.importance < {given(float(importance_below))}")
    return more


def levels(rows: list[Row], parent: str, *, deep: bool) -> dict[str, int]:
    """Return the scopes below `parent` with their numbers, of rows (path, number of records right there)."""
    below = normalize_scope(parent).rstrip("/") + "/"
    found: dict[str, int] = {}
    for path, number in rows:
        names = path[len(below) :].split("/") if len(path) > len(below) else []
        for depth in range(1, len(names) + 1 if deep else min(2, len(names) + 1)):
            scope = below + "/".join(names[:depth])
            found[scope] = found.get(scope, 0) + number
    return dict(sorted(found.items()))


def number(value: Any) -> int | float:
    """Return a number as both backends keep it: beyond 64 bits an integer is the float nearest to it."""
    if isinstance(value, float) or -(2**63) <= value < 2**63:
        return value  # type: ignore[no-any-return]
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf
