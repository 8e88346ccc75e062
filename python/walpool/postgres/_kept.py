"""`Kept`: the statements that stay prepared in a session, so that the server parses and plans them once. Pure.

    asked for      for the first time      for the second time            from then on
    is sent as     text, without a name    Prepare, and its name          its name

Only a session of its own can keep any: behind a pooler each transaction has another one (`_address`). A statement that
is asked for once would only take the server's memory. At most `statement_cache` are kept; then the one that was not
used for longest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

__all__ = ["Kept", "Statement", "Types", "fit"]

MOST_TEXT: Final = 16_384
"""Bytes of a statement that is kept, at most: texts that are longer are seldom the same again."""

Types: TypeAlias = tuple[int, ...]
"""Those of a statement's parameters, as OIDs; 0 where the statement says which."""


class Statement(NamedTuple):
    """A statement as the session knows it."""

    types: Types
    name: bytes = b""
    """None yet, if it was asked for once."""
    is_new: bool = False
    """Whether the server is to prepare it under that name first."""


class Kept:
    """The statements of one session. Whoever sends what it says (`_wire.Exchange`) tells it what was refused."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._statements: OrderedDict[bytes, Statement] = OrderedDict()  # by text, in the order of their last use
        self._gone: list[bytes] = []  # names to be closed
        self._count = 0

    def find(self, sql: bytes, types: Types, values: Sequence[object]) -> Statement | None:
        """Return a statement with its name; None where it is asked for the first time, or with other types than then.

        Args:
            sql: its text.
            types: of the parameters.
            values: the parameters as they are sent; None is NULL, which has any type.
        """
        if len(sql) > MOST_TEXT or not self._limit:
            return None
        found = self._statements.get(sql)
        if found is None or not fit(values, types, found.types):
            self._drop(sql)
            self._statements[sql] = Statement(types)
            if len(self._statements) > self._limit:
                self._drop(next(iter(self._statements)))
            return None
        self._statements.move_to_end(sql)
        if found.name:
            return found
        self._count += 1
        named = self._statements[sql] = found._replace(name=b"walpool_kept_%d" % self._count)
        return named._replace(is_new=True)

    def forget(self, texts: Iterable[bytes]) -> None:
        """Keep some statements no longer."""
        for sql in texts:
            self._drop(sql)

    def take_gone(self) -> list[bytes]:
        """Return the names that are kept no longer; the caller has the server close them."""
        gone, self._gone = self._gone, []
        return gone

    def _drop(self, sql: bytes) -> None:
        statement = self._statements.pop(sql, None)
        if statement is not None and statement.name:
            self._gone.append(statement.name)


def fit(values: Sequence[object], given: Sequence[int], types: Sequence[int]) -> bool:
    """Return whether values of the given types fit a statement that was parsed for others: NULL fits any."""
    return given == types or all(
        kind == parsed or (kind == 0 and value is None)
        for value, kind, parsed in zip(values, given, types, strict=True)
    )
