"""`Room`: how many connections are to be had, where the server lets a pool have fewer than it was set up for.

A server counts the connections of all who use it, so what fits is found out by being refused, and is forgotten again
after a while, each time a longer one. Knows no connections.
"""

from __future__ import annotations

import time
from typing import Final

__all__ = ["Room"]

_FIRST_S: Final = 1.0
_LONGEST_S: Final = 30.0


class Room:
    """The limit of some `Connections`. Guarded by their lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found = limit
        self._until = 0.0
        self._for_s = _FIRST_S
        self.said = ""
        """What the server said when it had no room."""

    @property
    def limit(self) -> int:
        """How many there may be just now, one at least."""
        return max(self._found, 1) if self.is_short else self._limit

    @property
    def is_short(self) -> bool:
        """Whether the server had no room for more a short while ago."""
        return time.monotonic() < self._until

    def fits(self, count: int, said: str) -> bool:
        """Make do with so many for a while; return whether that is news, for the log."""
        is_news = not self.is_short
        self._found, self.said = min(count, self._limit), said
        if is_news:
            self._until = time.monotonic() + self._for_s
            self._for_s = min(self._for_s * 2, _LONGEST_S)
        return is_news

    def grows(self) -> None:
        """Take note that one more was to be had."""
        if not self.is_short:
            self._for_s = _FIRST_S
