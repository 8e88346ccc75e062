"""Conditions of SQLite's CHECKs and indexes as PostgreSQL has them; only those that mean the same on both. Pure.

What is understood: comparisons of a column with a literal or another column of its kind, IN, BETWEEN, IS NULL, AND, OR,
NOT, and a few functions. A text is compared with texts alone, a number with numbers, so that SQLite converts nothing;
columns of integers and of reals are not compared with each other, since the server would round the integer.
https://www.sqlite.org/datatype3.html#comparison_expressions
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from walpool.migrating._sqlite_sql import affinity, quoted
from walpool.migrating.plan import Column, Index
from walpool.postgres.binary import Form
from walpool.postgres.scan import Token, scan

__all__ = ["checks_of", "index_of"]

_COMPARISONS: Final = {"=": "=", "==": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_FUNCTIONS: Final = {
    "LOWER": ("text", "text"), "UPPER": ("text", "text"), "TRIM": ("text", "text"), "LTRIM": ("text", "text"),
    "RTRIM": ("text", "text"), "LENGTH": ("text", "integer"),
}  # fmt: skip
"""What a function takes, and gives; of texts in COLLATE "C" they change letters of ASCII alone, as SQLite's do."""

_KINDS: Final = {
    Form.BIGINT: "integer",
    Form.BOOLEAN: "integer",
    Form.DOUBLE: "real",
    Form.NUMERIC: "numeric",
    Form.TEXT: "text",
}
_NUMBER: Final = re.compile(r"(?!(?:\.?\d){16})\d+(\.\d+)?", re.ASCII)  # 15 digits are the same in any form
_STRANGE: Final = re.compile(r"/\*|`|\[|\bCOLLATE\s+(?!BINARY\b)", re.IGNORECASE)


class _Unknown(Exception):
    """A condition that is not understood, or that might mean something else on the server."""


class _Value(NamedTuple):
    sql: str
    kind: str
    """`integer`, `real`, `numeric`, `text`; `number` for a literal; empty: it may be NULL, and no more is known."""


def checks_of(ddl: str, columns: Sequence[Column]) -> tuple[list[str], int]:
    """Return the CHECKs of a table as PostgreSQL has them, and how many there are besides.

    Args:
        ddl: its CREATE TABLE.
        columns: those that are copied.
    """
    tokens = scan(ddl)
    found: list[str] = []
    others = 0
    for place, (token, following) in enumerate(pairwise(tokens)):
        if token.shape != "CHECK" or following.shape != "(":
            continue
        try:
            found.append(_Reader(ddl, tokens[place + 1 : _behind(tokens, place + 1)], columns).condition())
        except _Unknown:
            others += 1
    return ([], others + len(found)) if _STRANGE.search(ddl) else (found, others)


def index_of(ddl: str, name: str, table_ddl: str, columns: Sequence[Column], *, is_unique: bool) -> Index | None:
    """Return an index on expressions, or on a part of a table, as PostgreSQL has it; None if it might mean another.

    Args:
        ddl: its CREATE INDEX.
        name: of it.
        table_ddl: the CREATE TABLE of its table.
        columns: those that are copied.
        is_unique: whether it is.
    """
    if _STRANGE.search(ddl) or _STRANGE.search(table_ddl):
        return None
    tokens = scan(ddl)
    start = next((place for place, token in enumerate(tokens) if token.shape == "("), len(tokens))
    end = _behind(tokens, start)
    rest = tokens[end:]
    try:
        reader = _Reader(ddl, tokens[start + 1 : end - 1], columns)
        parts, falling = reader.parts()
        where = ""
        if rest:
            if rest[0].shape != "WHERE":
                return None
            conditional = _Reader(ddl, rest[1:], columns)
            where = conditional.condition()
    except _Unknown:
        return None
    return Index(name, tuple(dict.fromkeys(reader.used)), is_unique, tuple(falling), tuple(parts), where)


def _behind(tokens: Sequence[Token], start: int) -> int:
    """Return the place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place].shape, 0)
        if not depth:
            return place + 1
    return len(tokens)


class _Reader:
    """Reads one condition, or the parts of an index, from the left to the right."""

    def __init__(self, sql: str, tokens: Sequence[Token], columns: Sequence[Column]) -> None:
        self._sql = sql
        self._tokens = tokens
        self._columns = {column.name.lower(): column for column in columns}
        self._place = 0
        self.used: list[str] = []

    def condition(self) -> str:
        """Return all of it as one condition."""
        found = self._either()
        if self._place != len(self._tokens):
            raise _Unknown
        return found

    def parts(self) -> tuple[list[str], list[bool]]:
        """Return all of it as the parts of an index, and which of them fall."""
        found, falling = [], []
        while True:
            value = self._value()
            if value.kind == "":
                raise _Unknown
            found.append(f"({value.sql})")
            falling.append(self._takes("DESC"))
            self._takes("ASC")
            if self._place == len(self._tokens):
                return found, falling
            self._expect(",")

    def _either(self) -> str:
        found = [self._both()]
        while self._takes("OR"):
            found.append(self._both())
        return f"({' OR '.join(found)})" if len(found) > 1 else found[0]

    def _both(self) -> str:
        found = [self._factor()]
        while self._takes("AND"):
            found.append(self._factor())
        return f"({' AND '.join(found)})" if len(found) > 1 else found[0]

    def _factor(self) -> str:
        if self._takes("NOT"):
            return f"(NOT {self._factor()})"
        place, used = self._place, len(self.used)
        try:
            return self._comparison()
        except _Unknown:
            self._place = place
            del self.used[used:]
        self._expect("(")
        found = self._either()
        self._expect(")")
        return found

    def _comparison(self) -> str:
        left = self._value()
        if self._takes("IS"):
            is_not = self._takes("NOT")
            self._expect("NULL")
            return f"({left.sql} IS {'NOT ' if is_not else ''}NULL)"
        sign = _COMPARISONS.get(self._next())
        if sign is not None:
            self._place += 1
            return f"({left.sql} {sign} {self._alike(left)})"
        no = "NOT " if self._takes("NOT") else ""
        if self._takes("BETWEEN"):
            low = self._alike(left)
            self._expect("AND")
            return f"({left.sql} {no}BETWEEN {low} AND {self._alike(left)})"
        self._expect("IN")
        self._expect("(")
        listed = [self._alike(left)]
        while self._takes(","):
            listed.append(self._alike(left))
        self._expect(")")
        return f"({left.sql} {no}IN ({', '.join(listed)}))"

    def _alike(self, left: _Value) -> str:
        """Return a value that is compared with another one, of one kind with it."""
        right = self._value()
        kinds = {left.kind, right.kind}
        if "" in kinds or (len(kinds) > 1 and ("number" not in kinds or "text" in kinds)):
            raise _Unknown
        if _is_literal(left) and _is_literal(right):  # two texts would be compared as the database does by default
            raise _Unknown
        return right.sql

    def _value(self) -> _Value:
        token = self._token()
        text = self._sql[token.start : token.end]
        if token.kind == "string":
            return _Value(text, "text")
        if token.shape in ("-", "0"):
            number = self._token() if token.shape == "-" else token
            digits = self._sql[number.start : number.end]
            if not _NUMBER.fullmatch(digits):
                raise _Unknown
            return _Value(f"({'-' if token.shape == '-' else ''}{digits})", "number")
        if token.shape == "(":
            found = self._value()
            self._expect(")")
            return found
        if token.kind == "word" and self._next() == "(":
            return self._called(token.shape)
        name = text[1:-1].replace('""', '"') if text.startswith('"') else text
        column = self._columns.get(name.lower())
        if token.kind not in ("word", "quoted") or column is None:
            raise _Unknown
        self.used.append(column.name)
        return _of(column)

    def _called(self, name: str) -> _Value:
        takes, gives = _FUNCTIONS.get(name, ("", ""))
        self._expect("(")
        given = self._value()
        self._expect(")")
        if not takes or given.kind != takes or _is_literal(given):
            raise _Unknown
        return _Value(f"{name.lower()}({given.sql})", gives)

    def _next(self) -> str:
        return self._tokens[self._place].shape if self._place < len(self._tokens) else ""

    def _token(self) -> Token:
        if self._place == len(self._tokens):
            raise _Unknown
        self._place += 1
        return self._tokens[self._place - 1]

    def _takes(self, shape: str) -> bool:
        is_next = self._next() == shape
        self._place += is_next
        return is_next

    def _expect(self, shape: str) -> None:
        if not self._takes(shape):
            raise _Unknown


def _is_literal(value: _Value) -> bool:
    return value.kind == "number" or value.sql.startswith("'")


def _of(column: Column) -> _Value:
    name, kind = quoted(column.name), _KINDS.get(column.form, "")
    if kind == "text" and affinity(column.sqlite) not in ("TEXT", "BLOB"):
        kind = ""  # SQLite takes a text beside it for a number, where it looks like one
    return _Value(f"{name}::integer" if column.form is Form.BOOLEAN and kind else name, kind)
