"""The tokens of a PostgreSQL statement, as its own lexer cuts them: what is quoted or a comment is never looked into.

Pure. Takes `standard_conforming_strings` as on, its default: backslashes count in E'...' alone.
https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["Token", "is_in_word", "scan", "statements"]

# Every character from U+0080 on is part of a word, a no-break space too: so both PostgreSQL and SQLite have it.
_FIRST: Final = r"[A-Za-z_\x80-\U0010ffff]"
_WORD: Final = _FIRST + r"[A-Za-z0-9_$\x80-\U0010ffff]*"
_TAG: Final = _FIRST + r"[A-Za-z0-9_\x80-\U0010ffff]*"
# Two literals with a new line between them are one; the second goes on with the first one's backslashes. A line's
# comment is taken whole or not at all (the look-ahead), or a text of many `--` would be tried in very many ways.
_COMMENT: Final = r"--[^\r\n]*(?=[\r\n]|\Z)"
_GOES_ON: Final = rf"'(?:[ \t\f\v]|{_COMMENT})*[\r\n](?:[ \t\r\n\f\v]|{_COMMENT})*'"

# What is not closed reaches to the end: the server says so better than we could.
_TOKEN: Final = re.compile(
    rf"""[ \t\r\n\f\v]*(?:
        (?P<escaped>[eE]'[^'\\]*(?:(?:\\(?:.|\Z)|''|{_GOES_ON})[^'\\]*)*(?:'|\Z))
      | (?P<word>{_WORD})
      | (?P<string>'[^']*(?:''[^']*)*(?:'|\Z))
      | (?P<quoted>"[^"]*(?:""[^"]*)*(?:"|\Z))
      | (?P<number>[0-9][0-9A-Za-z_]*(?:\.[0-9A-Za-z_]*)?)
      | (?P<line>--[^\r\n]*)
      | (?P<comment>/\*)
      | (?P<dollars>(?P<tag>\$(?:{_TAG})?\$).*?(?:(?P=tag)|\Z))
      | (?P<native>\$[0-9]+)
      | (?P<literal>\?\?)
      | (?P<param>\?[0-9]*)
      | (?P<name>:{_WORD})
      | (?P<operator>::|:=|(?:(?!--|/\*)[-+*/<>=~!@\#%^&|`])+)
      | (?P<other>.)
      | \Z
    )""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_SHAPES: Final = {
    "escaped": "'s'", "string": "'s'", "dollars": "'s'", "quoted": '"i"', "number": "0", "native": "$1", "param": "?",
    "name": "?",
}  # fmt: skip


class Token(NamedTuple):
    """A piece of the text; white space and comments are none."""

    kind: str
    """`word`; `quoted`, a name that is no keyword; `string`, `escaped` or `dollars`, strings all; `number`; `native`,
    which is $1; `literal`, ??; `param`, ? or ?1; `name`, :name; `operator`; or `other`, one character."""
    start: int
    end: int
    shape: str
    """What a pattern sees: a word in capitals; `'s'` for any string, `"i"` for a quoted name, `0`, `$1`, `?` for any
    parameter; or the text itself."""


def scan(sql: str) -> list[Token]:
    """Return the tokens of a text. Never fails: each character is in one token, in white space or in a comment."""
    tokens: list[Token] = []
    position, match, shape_of = 0, _TOKEN.match, _SHAPES.get
    while found := match(sql, position):
        kind = found.lastgroup
        if kind is None:
            break  # the end
        start, position = found.span(kind)
        if kind == "comment":
            position = _behind_comment(sql, position)
        elif kind == "word":
            word = found[kind]
            # What has other letters is no keyword; and `str.upper` would make an I of a dotless one.
            is_name = not word.isascii()
            tokens.append(Token("quoted" if is_name else kind, start, position, '"i"' if is_name else word.upper()))
        elif kind != "line":
            tokens.append(Token(kind, start, position, shape_of(kind) or found[kind]))
    return tokens


def _behind_comment(sql: str, position: int) -> int:
    """Return where a comment ends that began right before `position`; comments nest, which SQLite's do not."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(sql)


def statements(tokens: list[Token]) -> Iterator[list[Token]]:
    """Yield the tokens of each statement that has any, without the semicolons between them.

    A semicolon inside parentheses (CREATE RULE) or in a body from BEGIN ATOMIC to END ends none.
    """
    current: list[Token] = []
    parentheses = body = 0
    before = ""
    for token in tokens:
        shape = token.shape
        if shape == ";" and parentheses <= 0 and not body:
            if current:
                yield current
            current, parentheses = [], 0
        else:
            current.append(token)
            if shape in "()":
                parentheses += 1 if shape == "(" else -1
            elif before not in ("AS", "."):  # behind them a keyword is a mere name
                body += _opens(shape, before, body) if parentheses <= 0 or body else 0
        before = shape
    if current:
        yield current


def _opens(shape: str, before: str, body: int) -> int:
    """Return 1 where a body begins, or a CASE inside of one; -1 where either ends."""
    if not body:
        return int(shape == "ATOMIC" and before == "BEGIN")
    return {"CASE": 1, "END": -1}.get(shape, 0)


def is_in_word(character: str) -> bool:
    """Return whether a word or a number goes on with this character."""
    return character.isalnum() or character in "_$" or character > "\x7f"
