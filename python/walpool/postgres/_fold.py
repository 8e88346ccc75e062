"""`Fold`: an `INSERT ... VALUES (...)` of one row as the same of many rows, which costs the server one statement. Pure.

    INSERT INTO t (a, b) VALUES ($1, $2)     INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4), ($5, $6), ($7, $8)

Only where each row surely does the same as by itself: parameters and constants, nothing behind the row. With ON
CONFLICT DO UPDATE two rows must not meet in one statement, and RETURNING would not say which row is whose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from walpool.postgres.scan import Token, scan

__all__ = ["Fold", "fold_of"]

_MOST_ROWS: Final = 64
_MOST_PARAMETERS: Final = 65_535  # the protocol's own limit for a statement
_PLAIN: Final = frozenset({"native", "word", "string", "escaped", "dollars", "number"})
_SIGNS: Final = frozenset({",", "-", "+", "::"})
_OF_A_QUERY: Final = frozenset({"SELECT", "TABLE", "WITH", "$1", "["})
"""What stands before VALUES where it is an arm of a query (UNION VALUES ...), or where an element is named by a
parameter: `(a[$1])`."""


class Fold:
    """A statement of one row that can be one of many. The texts are kept: one for each power of two."""

    __slots__ = ("_count", "_pieces", "_start", "_texts")

    def __init__(self, start: str, pieces: Sequence[str | int], count: int) -> None:
        """Make one of the text before the row, the pieces of the row (text, and n for each `$n`), and how many `$n`."""
        self._start = start
        self._pieces = pieces
        self._count = count
        self._texts: dict[int, bytes] = {}

    def folded(self, rows: Sequence[Sequence[object]]) -> Iterator[tuple[bytes, Sequence[object], int]]:
        """Yield the statements that insert rows: the text, its parameters, and how many rows it is of."""
        most = min(_MOST_ROWS, _MOST_PARAMETERS // self._count)
        at = 0
        while at < len(rows):
            size = 1 << (min(len(rows) - at, most).bit_length() - 1)
            yield self._text(size), [value for row in rows[at : at + size] for value in row], size
            at += size

    def _text(self, size: int) -> bytes:
        text = self._texts.get(size)
        if text is None:
            rows = ", ".join(self._row(number * self._count) for number in range(size))
            text = self._texts[size] = (self._start + rows).encode()
        return text

    def _row(self, before: int) -> str:
        return "".join(piece if isinstance(piece, str) else f"${piece + before}" for piece in self._pieces)


def fold_of(sql: str, count: int) -> Fold | None:
    """Return how a statement of one row is folded; None where it is not.

    Args:
        sql: one statement, as PostgreSQL takes it.
        count: how many parameters it has.
    """
    tokens = scan(sql)
    if not count or [token.shape for token in tokens[:2]] != ["INSERT", "INTO"]:
        return None
    if tokens[-1].shape == ";":
        tokens.pop()
    opening = _opening(tokens)
    if opening is None or not all(_is_plain(token) for token in tokens[opening + 1 : -1]):
        return None
    start, end = tokens[opening].start, tokens[-1].end
    pieces: list[str | int] = []
    for token in tokens[opening:]:
        if token.kind == "native":
            pieces += [sql[start : token.start], int(sql[token.start + 1 : token.end])]
            start = token.end
    pieces.append(sql[start:end])
    return Fold(sql[: tokens[opening].start], pieces, count)


def _opening(tokens: Sequence[Token]) -> int | None:
    """Return where the one row of VALUES opens, if the statement ends with it."""
    shapes = [token.shape for token in tokens]
    if shapes[-1] != ")" or "VALUES" not in shapes:
        return None
    opening = shapes.index("VALUES") + 1
    if not _OF_A_QUERY.isdisjoint(shapes[:opening]):
        return None
    is_one = shapes[opening] == "(" and not {"(", ")"} & set(shapes[opening + 1 : -1])
    return opening if is_one else None


def _is_plain(token: Token) -> bool:
    """Return whether it may stand in a row: a parameter, a constant, a type. A word alone calls no function."""
    return token.kind in _PLAIN or token.shape in _SIGNS
