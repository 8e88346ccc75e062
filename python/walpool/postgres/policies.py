"""Row-level security, as far as it matters to whoever reads or writes a table. Knows no tables and no connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["is_secured"]

_IS_SECURED: Final = "SELECT coalesce(row_security_active(to_regclass(?)), false)"


def is_secured(fetch: Callable[[str, tuple[str]], list[Any]], table: str) -> bool:
    """Return whether policies hold for the role of a connection on a table; False where there is no such table.

    Args:
        fetch: runs a query with its parameters, and returns its rows.
        table: its name, quoted.
    """
    return bool(fetch(_IS_SECURED, (table,))[0][0])
