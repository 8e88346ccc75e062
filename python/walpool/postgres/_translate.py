"""SQL written for either backend as PostgreSQL takes it: the parameters become `$1`, `$2`, ...; pure, no I/O.

    ?            the parameter behind the largest so far, as in SQLite: the one behind ?7 is the eighth
    ?1  ?12      by number; may be repeated
    :name        by name; may be repeated
    ??           the operator ? of jsonb, for PostgreSQL alone: `??|` is ?|, `@??` is @?, and `???` is ? and a parameter

In strings, quoted names and comments nothing is changed, and what has no parameters stays as it is. `x::int` and
`f(a := 1)` hold none; `a[1:2]` neither, but in `a[i:j]` j is the parameter :j (write `a[i : j]`). SQLite's other two
spellings mean something else here, so they are left alone: `@name` is an operator and a column, `$name` an error. `$1`
is PostgreSQL's own and reaches it as it is, but not beside parameters of ours, whose numbers it would share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeAlias

from walpool.errors import NotSupportedError, ProgrammingError
from walpool.postgres._fold import Fold, fold_of
from walpool.postgres._portable import refuse
from walpool.postgres.scan import Token, is_in_word, scan, statements
from walpool.types import Params

__all__ = ["Translated", "parse", "translate"]

_LARGEST: Final = 32_766  # SQLite's SQLITE_MAX_VARIABLE_NUMBER; PostgreSQL takes 65,535
_CACHED: Final = 512  # texts
_QUERIES: Final = frozenset({"SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN"})
_VERBS: Final = _QUERIES | {"INSERT", "UPDATE", "DELETE", "MERGE", "CREATE", "ALTER", "DROP", "CALL", "DO"}
_PLAIN: Final = (_QUERIES - {"EXPLAIN"}) | {"(", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE"}
"""How statements begin that change rows at most."""
_FOREIGN: Final = re.compile(r"%s|%\(\w+\)s|\$[0-9]+")  # how drivers of PostgreSQL's write parameters
_Place: TypeAlias = tuple[Token, int]  # a token and its n of `$n`; 0 for the operator ?


@dataclass(frozen=True, slots=True)
class Translated:
    """A text as PostgreSQL takes it, and what its parameters are."""

    sql: str
    """The text with `$1`, `$2`, ...: for psycopg's RawCursor."""
    names: tuple[str, ...] | None
    """The names of `:name` parameters, without colons, in the order of `$1`, `$2`, ...; None where there are none."""
    count: int
    """How many `$n` there are: as many values `arrange` returns."""
    wanted: int
    """How many values a sequence has: the largest number, since `?3` alone takes three, of which one is sent."""
    keyword: str
    """The first word, in capitals: SELECT, WITH, CREATE. Empty where the text holds no statement."""
    is_single: bool
    """Whether there is at most one statement."""
    encoded: bytes
    """The text as it goes to the server."""
    copies: bool = False
    """Whether a statement is a COPY from or to the client."""
    gives_rows: bool = False
    """Whether the first statement is a query, or has a RETURNING."""
    positions: tuple[int, ...] | None = None
    """Which of the caller's values each `$n` takes, from 0; None where it is all of them in order."""
    fold: Fold | None = None
    """How rows of it become one statement; None where they do not."""
    is_shaping: bool = False
    """Whether it may change what others of its transaction mean: by a setting, or by what it makes, alters or drops."""

    def arrange(self, params: Params) -> Sequence[object]:
        """Return the values in the order of `$1`, `$2`, ...; names that the statement lacks are ignored, as by SQLite.

        Raises:
            ProgrammingError: another number of values, a name without one, or a sequence where the SQL has names, a
                mapping where it has none.
        """
        given: object = params  # the caller may not be typed
        if isinstance(given, (tuple, list)):
            return self._in_order(given)
        if isinstance(given, Mapping):
            return self._by_name(given)
        if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)):
            return self._in_order(list(given))
        kind = type(given).__name__
        msg = f"parameters must be a sequence or a mapping, not {kind}; a single one is given as (value,)"
        raise ProgrammingError(msg)

    def place(self, index: int) -> str:
        """Return what the caller calls the parameter that is `$n` for n = index + 1: its place, or its name."""
        if self.names is not None:
            return f":{self.names[index]}"
        return str((index if self.positions is None else self.positions[index]) + 1)

    def refuse_copy(self) -> None:
        """Refuse COPY from or to the client, which takes the connection with it: another protocol begins there.

        Raises:
            NotSupportedError: it is one.
        """
        if self.copies:
            msg = "COPY from or to the client is not supported: use executemany() or stream(), or psycopg itself"
            raise NotSupportedError(msg)

    def _in_order(self, params: Sequence[object]) -> Sequence[object]:
        if len(params) != self.wanted:
            foreign = not self.wanted and _FOREIGN.search(self.sql)
            instead = f"; {foreign[0]} is none of them: they are written ?, ?1 and :name" if foreign else ""
            msg = f"the statement takes {self.wanted} parameters, but {len(params)} were given{instead}"
            raise ProgrammingError(msg)
        if self.names:
            msg = f"the statement names its parameter :{self.names[0]}; give a mapping instead of a sequence"
            raise ProgrammingError(msg)
        return params if self.positions is None else [params[position] for position in self.positions]

    def _by_name(self, params: Mapping[Any, object]) -> list[object]:
        for key in params:
            if not isinstance(key, str):
                msg = f"the names of parameters are str, not {type(key).__name__}"
                raise ProgrammingError(msg)
        if self.names is None and self.count:
            msg = "parameter 1 has no name; give a sequence instead of a mapping"
            raise ProgrammingError(msg)
        names = self.names or ()
        for name in names:
            if name not in params:  # not by KeyError: SQLite asks no defaultdict for more than it has
                msg = f"no value was given for parameter :{name}"
                raise ProgrammingError(msg)
        return [params[name] for name in names]


@lru_cache(maxsize=_CACHED)
def translate(sql: str) -> Translated:
    """Return a text as PostgreSQL takes it; kept, so that the next time costs nothing.

    Raises:
        ProgrammingError: the parameters are mixed; or it is SQL of SQLite's alone, or would change the session for
            whoever has the connection next: the message says what to write.
    """
    return parse(sql)


def parse(sql: str) -> Translated:
    """Return what `translate` does, without keeping it: for a script, which is long and runs once."""
    given: object = sql  # the caller may not be typed
    if not isinstance(given, str):
        raise TypeError(f"the SQL is a str, not {type(given).__name__}")
    if "\0" in sql:
        msg = "the SQL contains a NUL character"
        raise ProgrammingError(msg)
    tokens = scan(sql)
    held = list(statements(tokens))
    for statement in held:
        refuse([token.shape for token in statement])
    keyword = next((token.shape for token in tokens if token.kind == "word"), "")
    places, names, numbers = _parameters(sql, tokens)
    wanted = numbers[-1] if numbers else len(names)
    text = _rewritten(sql, places) if places else sql
    count = len(numbers) or len(names)
    if count > _LARGEST:
        msg = f"the statement names {count} parameters; {_LARGEST} are the most"
        raise ProgrammingError(msg)
    return Translated(
        sql=text,
        encoded=_encoded(text),
        names=tuple(names) or None,
        count=count,
        wanted=wanted,
        keyword=keyword,
        is_single=len(held) <= 1,
        copies=any(map(_copies, held)),
        gives_rows=any(map(_gives_rows, held[:1])),
        positions=tuple(number - 1 for number in numbers) if wanted != len(numbers) and numbers else None,
        fold=fold_of(text, count) if keyword == "INSERT" and len(held) == 1 else None,
        is_shaping=any(map(_is_shaping, held)),
    )


def _copies(statement: list[Token]) -> bool:
    shapes = [token.shape for token in statement]
    return shapes[0] == "COPY" and not {("FROM", "STDIN"), ("TO", "STDOUT")}.isdisjoint(pairwise(shapes))


def _is_shaping(statement: list[Token]) -> bool:
    """Return whether it may; what a function of the user's does inside is not seen."""
    shapes = [token.shape for token in statement]
    makes_table = any(word == "INTO" and verb not in ("INSERT", "MERGE") for verb, word in pairwise(shapes))
    return makes_table or "SET_CONFIG" in shapes or shapes[0] not in _PLAIN


def _gives_rows(statement: list[Token]) -> bool:
    depth = 0
    outside = []  # the words that stand in no parentheses
    for token in statement:
        depth += (token.shape == "(") - (token.shape == ")")
        if not depth and token.kind == "word":
            outside.append(token.shape)
    verb = next((word for word in outside if word in _VERBS), "")
    return verb in _QUERIES or "RETURNING" in outside


def _encoded(sql: str) -> bytes:
    try:
        return sql.encode()
    except UnicodeEncodeError:
        msg = "the SQL holds a lone surrogate, which UTF-8 has not"
        raise ProgrammingError(msg) from None


def _parameters(sql: str, tokens: list[Token]) -> tuple[list[_Place], list[str], list[int]]:
    """Return where parameters and `??` stand, the names in order, and the numbers that are used, rising.

    PostgreSQL cannot tell the type of a `$2` that no text mentions, so the numbers it gets have no gaps.
    """
    found = [token for token in tokens if token.kind in ("param", "name", "literal")]
    if not found:
        return [], [], []
    _refuse_mixture({token.kind for token in tokens})
    names: dict[str, int] = {}
    given: list[int] = []  # for each of `found`: its number in the caller's sequence, or 0
    largest = 0
    for token in found:
        number = 0
        if token.kind == "name":
            number = names.setdefault(sql[token.start + 1 : token.end], len(names) + 1)
        elif token.kind == "param":
            number = _number(sql[token.start + 1 : token.end], largest)
            largest = max(largest, number)
        given.append(number)
    numbers = [] if names else sorted(set(given) - {0})
    dense = {number: index for index, number in enumerate(numbers, 1)}
    return [(token, dense.get(number, number)) for token, number in zip(found, given, strict=True)], [*names], numbers


def _refuse_mixture(kinds: set[str]) -> None:
    if {"param", "name"} <= kinds:
        msg = "the statement mixes ? and :name; name all of its parameters, or none"
        raise ProgrammingError(msg)
    if "native" in kinds and kinds & {"param", "name"}:
        msg = "the statement has $1 beside ? or :name, which become $1, $2, ... themselves; write ?1, as in SQLite"
        raise ProgrammingError(msg)


def _number(digits: str, largest: int) -> int:
    if not digits:
        return largest + 1
    number = int(digits) if len(digits) < 10 else 0  # int() refuses thousands of digits with an error of its own
    if not 1 <= number <= _LARGEST:
        msg = f"variable number must be between ?1 and ?{_LARGEST}"
        raise ProgrammingError(msg)
    return number


def _rewritten(sql: str, places: list[_Place]) -> str:
    """Return the text with `$n` and `?` in these places, apart from what would run into a `$n`: `SELECT?`, `?AND`."""
    pieces: list[str] = []
    behind = 0
    for token, number in places:
        pieces.append(sql[behind : token.start])
        behind = token.end
        if not number:
            pieces.append("?")
            continue
        if token.start and is_in_word(sql[token.start - 1]):
            pieces.append(" ")
        pieces.append(f"${number}")
        if is_in_word(sql[behind : behind + 1] or " "):
            pieces.append(" ")
    pieces.append(sql[behind:])
    return "".join(pieces)
