"""Contents and searched words as PostgreSQL's full text takes them: `tsvector` and `tsquery` texts; pure, no I/O.

Words are cut and folded here, as FTS5's `unicode61` does it, rather than by the server's parser, which takes `a/b` for
a path and keeps accents: so a search means the same on both backends. With `trigram` the lexemes are each three
characters of the folded content, without their places; which of the records they find have the text itself is seen in
the folded content, kept beside.

Every vector also has the mark of its space, and every query asks for it: one index serves all tenants, and a search
reads its own part of it.

The server keeps 255 places of a word in one content, none beyond the 16,383rd word, and about a megabyte of distinct
words; behind that phrases, or words, are not found. https://www.postgresql.org/docs/18/textsearch-limitations.html
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

from walpool.memory import _words
from walpool.memory._operations import Given, Space
from walpool.memory._words import Option, Term, Tokenizer, Typed

__all__ = ["Indexed", "Lookup", "alone", "either", "every", "folded", "indexed", "lexemes", "raw"]

_TOKEN: Final = re.compile("(?:[^\\W_]|[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd])+")
_LONGEST: Final = 500  # characters of a word; a lexeme has 2,046 bytes at most
_PLACES: Final = 255
_LAST_PLACE: Final = 16_383
_MOST_BYTES: Final = 900_000  # of a vector's lexemes and places; it has a megabyte at most
_SHORTEST: Final = 3
_LEXEME: Final = re.compile(r"'((?:[^']|'')*)'(?::(\*?))?")


class Indexed(NamedTuple):
    """The derived columns of a content."""

    words: str
    """The text of a tsvector."""
    folded: str | None
    """The content as substrings are looked for; None where words are."""
    length: int
    """Words, or characters."""


class Lookup(NamedTuple):
    """Conditions on a content; all of them are met."""

    query: str
    """The text of a tsquery."""
    contains: tuple[tuple[str, ...], ...] = ()
    """Of each group, one is in the folded content."""
    lacks: tuple[str, ...] = ()
    """None of these is."""
    is_indexed: bool = True
    """Whether the index finds something of it: terms of one or two characters are looked for in every content."""

    def where(self, given: Given) -> str:
        """Return the condition on `memory_records AS r`, and add its values."""
        groups = [
            " OR ".join(f"strpos(r.folded, {given(one)}) > 0" for one in some) or "false" for some in self.contains
        ]
        groups += [f"strpos(r.folded, {given(one)}) = 0" for one in self.lacks]
        return " AND ".join((f"r.words @@ CAST({given(self.query)} AS TSQUERY)", *(f"({group})" for group in groups)))


def indexed(space: Space, content: str) -> Indexed:
    """Return the derived columns of a content."""
    if space.words == "trigram":
        text = folded(content)
        entries = [_quoted(part) for part in _trigrams(text)]
        return Indexed(" ".join((_mark(space), *_within(entries))), text, len(text))
    tokens = _tokens(content)
    places: dict[str, list[int]] = {}
    for place, token in enumerate(tokens, 1):
        places.setdefault(token, []).append(place)
    if len(tokens) > _PLACES:
        for found in places.values():
            found[:] = [min(place, _LAST_PLACE) for place in found[:_PLACES]]
    entries = [f"'{token}':{','.join(map(str, found))}" for token, found in places.items()]
    return Indexed(" ".join((_mark(space), *_within(entries))), None, len(tokens))


def every(space: Space, typed: Typed) -> Lookup:
    """Return the lookup of the contents that have all the terms and nothing excluded."""
    return _lookup(space, typed.terms, typed.excluded, typed.tokenizer)


def either(space: Space, typed: Typed) -> list[Lookup]:
    """Return for each term the lookup of the contents that have it and nothing excluded."""
    return [_lookup(space, (term,), typed.excluded, typed.tokenizer) for term in typed.terms]


def alone(space: Space, typed: Typed) -> list[Lookup]:
    """Return for each term the lookup of the contents that have it, whatever else they have."""
    return [_lookup(space, (term,), (), typed.tokenizer) for term in typed.terms]


def raw(space: Space, query: str) -> tuple[str, str]:
    """Return the mark of the space and a query in the syntax of tsquery, folded as the lexemes are."""
    return _mark(space), folded(query)


def lexemes(query: str, tokenizer: Tokenizer) -> Typed | None:
    """Return what the text of a tsquery, as the server gives it, looks for, to mark it in a content."""
    found = [Option(text.replace("''", "'"), bool(star)) for text, star in _LEXEME.findall(query)]
    return Typed(tuple(Term((option,)) for option in found), (), tokenizer) if found else None


def folded(text: str) -> str:
    """Return a text without case and accents, put together again as Unicode's NFC is."""
    text = _words.folded(text)
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _tokens(text: str) -> list[str]:
    return [token[:_LONGEST] for token in _TOKEN.findall(folded(text))]


def _within(entries: list[str]) -> list[str]:
    """Return the entries of a vector that it has room for."""
    if sum(map(len, entries)) + 16 * len(entries) < _MOST_BYTES // 4:  # a character has 4 bytes at most
        return entries
    ends = accumulate(len(entry.encode()) + 16 for entry in entries)
    return [entry for entry, end in zip(entries, ends, strict=True) if end < _MOST_BYTES]


def _trigrams(text: str) -> Iterable[str]:
    return dict.fromkeys(text[start : start + _SHORTEST] for start in range(len(text) - _SHORTEST + 1))


def _lookup(space: Space, terms: Sequence[Term], excluded: Sequence[Option], tokenizer: Tokenizer) -> Lookup:
    make = _part if tokenizer == "trigram" else _phrase
    queries = [_mark(space)]
    for term in terms:
        options = [make(option) for option in term.options]
        if tokenizer == "trigram" and None in options:
            continue  # too short for the index: the folded content knows
        if known := [option for option in options if option is not None]:
            queries.append(f"({' | '.join(known)})")
    if tokenizer == "trigram":
        contains = tuple(_texts(term.options) for term in terms)
        return Lookup(" & ".join(queries), contains, _texts(excluded), is_indexed=len(queries) > 1)
    if is_nothing := len(queries) == 1:
        queries.append("!" + _mark(space))  # of the terms nothing is left: no record has it
    if not is_nothing and (unwanted := [one for one in map(make, excluded) if one is not None]):
        queries.append(f"!({' | '.join(unwanted)})")
    return Lookup(" & ".join(queries))


def _texts(options: Iterable[Option]) -> tuple[str, ...]:
    return tuple(text for option in options if (text := folded(option.text)))


def _phrase(option: Option) -> str | None:
    tokens = _tokens(option.text)
    if not tokens:
        return None
    return "(" + " <-> ".join(f"'{token}'" for token in tokens) + (":*" if option.is_prefix else "") + ")"


def _part(option: Option) -> str | None:
    parts = " & ".join(map(_quoted, _trigrams(folded(option.text))))
    return f"({parts})" if parts else None


def _quoted(lexeme: str) -> str:
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"


@lru_cache(maxsize=64)
def _mark(space: Space) -> str:
    """Return the lexeme that every record of a space has; no word has an `@`, and no trigram its length."""
    named = f"{len(space.tenant)}:{space.tenant}{space.collection}".encode("utf-8", "surrogatepass")
    return f"'@{hashlib.blake2b(named, digest_size=8).hexdigest()}'"
