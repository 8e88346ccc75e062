"""Values that the target cannot take: what is wrong with one, and what it becomes if it is replaced. Pure."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

from walpool.migrating._canonical import nearest
from walpool.migrating.plan import Column, Table
from walpool.postgres.spelling.spelling import Bad

if TYPE_CHECKING:
    from walpool.types import Row

__all__ = ["Garbled", "as_json", "fault", "mended", "nothing", "shown_key"]

_SHOWN: Final = 200  # characters of a key


class Garbled(bytes):
    """A text that is no UTF-8: lone surrogates, or bytes of another encoding."""

    __slots__ = ()


def fault(column: Column, value: Any) -> str | None:
    """Return what is wrong with a value of a column, None if nothing is."""
    if value is None:
        return "NULL in a column that must not hold one" if column.is_required else None
    if isinstance(value, Garbled):
        return "text that is not valid UTF-8"
    try:
        column.spelling.read(value, column.limits)
    except Bad as bad:
        return str(bad)
    return None


def mended(column: Column, value: Any) -> Any:
    """Return what a value becomes: itself, if it has no fault, the nearest that the column can hold; else NULL.

    Where the column may not be NULL either, it is the zero of its type.
    """
    if fault(column, value) is None:
        return value
    found = None if value is None else nearest(column, value)
    if found is None or fault(column, found) is not None:
        found = nothing(column)
    return found


def nothing(column: Column) -> Any:
    """Return what stands for a value that the column cannot hold, nor one near to it."""
    return column.spelling.zero(column.limits) if column.is_required else None


def shown_key(table: Table, row: Row, number: int | None = None) -> str:
    """Return the key of a row as a person is shown it: JSON, cut off where it is long.

    Args:
        table: whose.
        row: its values.
        number: which one it is, where the table has no key.
    """
    return json.dumps([as_json(part) for part in table.key_of(row)] if table.key else number)[:_SHOWN]


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes as `{"base64": ...}`, an infinity or NaN as its name."""
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value
