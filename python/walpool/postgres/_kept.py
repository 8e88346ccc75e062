"""`Kept`: the statements that stay prepared in a session, so that the server parses and plans them once. Pure.

    asked for      for the first time      for the second time            from then on
    is sent as     text, without a name    Prepare, and its name          its name

Only a session of its own can keep any: behind a pooler each transaction has another one (`_address`). A statement that
is asked for once would only take the server's memory. At most `statement_cache` are kept; then the one that was not
used for longest goes.

What a statement means is settled when it is parsed, and nothing is refused where it would mean something else later:
the server plans it anew with the same constants and types. So what depends on the moment is not kept, and neither is
what has a parameter whose type the server made out to be another than text (`bar`): once the column is altered, a text
for it would still be read as a number or a date.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

__all__ = ["Kept", "Key", "Statement", "Types"]

MOST_TEXT: Final = 16_384
"""Bytes of a statement that is kept, at most: texts that are longer are seldom the same again."""

Types: TypeAlias = tuple[int, ...]
"""Those of a statement's parameters, as OIDs; 0 where the statement says which."""
Key: TypeAlias = tuple[bytes, Types]
"""A statement's text and the types of its parameters: with others it is another statement, with a NULL too."""

_MOMENTS: Final = re.compile(rb"\b(?:now|today|tomorrow|yesterday)\b(?!\s*\()", re.IGNORECASE)
"""What a literal of a time may say (https://www.postgresql.org/docs/18/datatype-datetime.html), or a mere name."""


class Statement(NamedTuple):
    """A statement as the session knows it."""

    name: bytes = b""
    """None yet, if it was asked for once."""
    is_new: bool = False
    """Whether the server is to prepare it under that name first."""


class Kept:
    """The statements of one session. Whoever sends what it says (`_wire.Exchange`) tells it what was refused."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._statements: OrderedDict[Key, Statement | None] = OrderedDict()  # in the order of their last use
        self._gone: list[bytes] = []  # names to be closed
        self._count = 0

    def find(self, key: Key) -> Statement | None:
        """Return a statement with its name; None where it is asked for the first time, or must not be kept."""
        sql, _ = key
        if len(sql) > MOST_TEXT or not self._limit:
            return None
        if key not in self._statements:
            self._statements[key] = None if _MOMENTS.search(sql) else Statement()
            if len(self._statements) > self._limit:
                self._drop(next(iter(self._statements)))
            return None
        self._statements.move_to_end(key)
        found = self._statements[key]
        if found is None or found.name:
            return found
        self._count += 1
        named = self._statements[key] = Statement(b"walpool_kept_%d" % self._count)
        return named._replace(is_new=True)

    def forget(self, keys: Iterable[Key]) -> None:
        """Keep some statements no longer."""
        for key in keys:
            self._drop(key)

    def bar(self, key: Key) -> None:
        """Keep a statement no longer, and not again either."""
        self._drop(key)
        self._statements[key] = None

    def take_gone(self) -> list[bytes]:
        """Return the names that are kept no longer; the caller has the server close them."""
        gone, self._gone = self._gone, []
        return gone

    def _drop(self, key: Key) -> None:
        statement = self._statements.pop(key, None)
        if statement is not None and statement.name:
            self._gone.append(statement.name)
