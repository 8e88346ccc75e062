"""The types that walpool's signatures speak in: aliases, and one kind of bytes.

Knows no pool, no settings and no compiled module.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

__all__ = ["Binary", "Outcome", "Params", "Row", "RowFactory", "Value"]


class Binary(bytes):
    """A value of any type of PostgreSQL's in its binary form, such as `CAST(? AS VECTOR)` takes; bytes to SQLite."""

    __slots__ = ()


Value: TypeAlias = bool | int | float | str | bytes | bytearray | memoryview | None
"""What may be a parameter: an integer has 64 bits; a bool is stored as 0 or 1, any bytes-like object as a BLOB."""

Params: TypeAlias = Sequence[Value] | Mapping[str, Value]
"""The parameters of one statement: a sequence for `?` and `?1`, a mapping (keys without the colon) for `:name`."""

Row: TypeAlias = tuple[Any, ...]
"""One row as it comes back: None, int, float, str or bytes for each column, in the order of the SELECT."""

RowFactory: TypeAlias = type[Row] | type[dict[str, Any]] | Callable[[tuple[str, ...], Row], Any]
"""How a row is made: `tuple`, `dict` (keyed by column), or a callable that takes the column names and the values."""

Outcome: TypeAlias = Literal["not_applied", "applied", "unknown"]
"""The answer to "was the write applied?"; see `walpool.errors.Error.outcome`."""
