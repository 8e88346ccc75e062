"""What a person typed, as a search that means what it looks like and is never an error; pure, knows no database.

    words here        records with both words, in any order and case, with or without accents
    "words here"      the phrase
    word*             a word that begins so
    -word, -"a b"     none of the records with it
    tea or coffee     either

All else is plain text: colons, carets, brackets, an unbalanced quote, AND, NOT and NEAR (words like others). What the
tokenizer drops anyway, such as a question mark that stands alone, is no condition. Where nothing is left to look for,
as in "???" or in exclusions alone, the search is None, and finds nothing.

The index is FTS5's. `unicode61` knows words; `trigram` knows each three characters, so it finds parts of words and text
that writes no spaces, but no term of one or two characters: those are patterns for LIKE.
https://www.sqlite.org/fts5.html#the_trigram_tokenizer
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from walpool.errors import DataError

__all__ = [
    "Lookup", "Option", "Term", "Tokenizer", "Typed", "alone", "anything", "counter", "either", "every", "excerpt",
    "folded", "parse",
]  # fmt: skip

Tokenizer: TypeAlias = Literal["unicode61", "trigram"]

MOST_TERMS: Final = 64
"""Terms of a text that are looked for, and as many exclusions; a question has ten. Those behind them are ignored."""

_SHORTEST: Final = 3  # characters that the trigram index needs
_LONGEST_PATTERN: Final = 5_000  # characters: LIKE takes 50,000 bytes. https://www.sqlite.org/limits.html
_WIDTH: Final = 160  # characters of an excerpt, about
_WORD_LENGTH: Final = 20  # characters that an excerpt is longer for the sake of a whole word
_LOOKED_AT: Final = 20_000  # characters of a content that excerpts are taken from
_WORD: Final = re.compile(r"[^\W_]+")
_BETWEEN: Final = re.compile(r"[\W_]+")
_TO_SPACE: Final = {code: " " for code in range(128) if not chr(code).isalnum()}
_MARKS: Final = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")  # combining
# Small letters that are another form of one to FTS5, as to Unicode's case folding, and not to `lower()`: micro, long s,
# sigma at the end of a word, and their like.
_OTHER_FORM: Final = re.compile("[\u00b5\u017f\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1e9b\u1fbe]")
_QUOTES: Final = str.maketrans("“”„‟«»", '""""""')
# A phrase, a word up to the next quote, or a quote without a partner. Right behind a phrase a new word begins.
_PIECES: Final = re.compile(r'(?P<minus>(?<!\S)-)?"(?P<phrase>[^"]*)"(?P<star>\*?)|(?P<word>[^\s"]+)|"')
# Scripts that write no spaces between words, so that a sentence looks like one word: Thai to Khmer, Han, kana.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Option(NamedTuple):
    """A word or a phrase."""

    text: str
    is_prefix: bool = False


class Term(NamedTuple):
    """What a record has if it has one of these."""

    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Typed:
    """What a text looks for; at least one term."""

    terms: tuple[Term, ...]
    excluded: tuple[Option, ...]
    tokenizer: Tokenizer


class Lookup(NamedTuple):
    """Conditions on a content; all of them are met."""

    match: str | None
    """A query for FTS5's MATCH, always of right syntax; None: no condition."""
    like: tuple[tuple[str, ...], ...] = ()
    """Of each group, one pattern is LIKE the content, with the escape character `!`."""
    unlike: tuple[str, ...] = ()
    """None of these patterns is."""


def parse(text: str, tokenizer: Tokenizer = "unicode61", *, any_part: bool = False) -> Typed | None:
    """Return what `text` looks for, None if that is nothing.

    Args:
        text: what a person typed.
        tokenizer: of the index.
        any_part: a text without spaces, such as a sentence in Chinese, is taken apart into its trigrams, for `either`;
            only with the trigram index.

    Raises:
        DataError: a lone surrogate, which no stored text holds either.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("the text of a search has a lone surrogate, which is no character") from None
    terms: list[Term] = []
    excluded: list[Option] = []
    is_joined = False  # the piece before was an `or` behind a term
    for option, is_excluded, is_or in _pieces(text, tokenizer):
        if is_excluded:
            excluded.append(option)
        elif is_or and terms and not is_joined:
            is_joined = True
            terms.append(Term((option,)))  # a word like others, unless a term follows
            continue
        elif is_joined:
            terms.pop()
            terms.append(Term((*terms.pop().options, option)))
        else:
            parts = _parts(option) if any_part and tokenizer == "trigram" else [option]
            terms += [Term((part,)) for part in parts]
        is_joined = False
    wanted = tuple(dict.fromkeys(terms))[:MOST_TERMS]
    return Typed(wanted, tuple(dict.fromkeys(excluded))[:MOST_TERMS], tokenizer) if wanted else None


def every(typed: Typed) -> Lookup:
    """Return the lookup of the contents that have all the terms and nothing excluded."""
    return _lookup(typed.terms, typed)


def either(typed: Typed) -> list[Lookup]:
    """Return for each term the lookup of the contents that have it and nothing excluded."""
    return [_lookup((term,), typed) for term in typed.terms]


def alone(typed: Typed) -> list[Lookup]:
    """Return for each term the lookup of the contents that have it, whatever else they have."""
    return either(Typed(typed.terms, (), typed.tokenizer))


def anything(typed: Typed) -> str | None:
    """Return the query for MATCH that marks every term in a content; None if the index knows none of them."""
    known = [option for term in typed.terms for option in term.options if not _is_short((option,), typed.tokenizer)]
    return " OR ".join(map(_quoted, known)) if known else None


def counter(typed: Typed) -> Callable[[str], list[int]]:
    """Return what counts the terms in a content: for each, how often it occurs, about as the tokenizer sees it."""
    if typed.tokenizer == "trigram":
        parts = [[folded(option.text) for option in term.options] for term in typed.terms]
        return lambda content: _count_parts(parts, folded(content))
    words = [[f" {folded(o.text)} " for o in term.options if _is_word(o)] for term in typed.terms]
    phrases = [(number, _phrase(o)) for number, term in enumerate(typed.terms) for o in term.options if not _is_word(o)]

    def count(content: str) -> list[int]:
        text = folded(content)
        spaced = _spaced(text)
        counts = [sum(map(spaced.count, options)) for options in words]
        for number, phrase in phrases:
            counts[number] += len(phrase.findall(text))
        return counts

    return count


def excerpt(typed: Typed, content: str, marks: tuple[str, str]) -> str | None:
    """Return the part of a content that has most of the terms, each between marks; None if none is found in there.

    FTS5's `snippet()` does the same from the index, and takes a hundred times as long for a row of a long query.
    """
    part = content[:_LOOKED_AT]
    spans = list(_in_words(typed, part) if typed.tokenizer == "unicode61" else _in_text(typed, part))
    if not spans:
        return None
    best, start, end = 0, 0, 0
    for first, (begun, _, _) in enumerate(spans):
        inside = [span for span in spans[first : first + _WIDTH] if span[1] <= begun + _WIDTH] or [spans[first]]
        if (many := len({term for _, _, term in inside})) > best:
            best, start, end = many, begun, inside[-1][1]
    around = max(_WIDTH - (end - start), 0) // 2
    start, end = _start(part, start - around), _end(part, end + around)
    marked, behind = "", start
    for begun, ended, _ in spans:
        if begun >= behind and ended <= end:
            marked += content[behind:begun] + marks[0] + content[begun:ended] + marks[1]
            behind = ended
    return ("…" if start else "") + marked + content[behind:end] + ("…" if end < len(content) else "")


def folded(text: str) -> str:
    """Return a text without case and accents, taken apart as Unicode's NFD is."""
    text = text.lower()
    if text.isascii():
        return text
    text = _OTHER_FORM.sub(lambda found: found[0].casefold(), text)
    return _MARKS.sub("", unicodedata.normalize("NFD", text))


def _in_words(typed: Typed, content: str) -> Iterator[tuple[int, int, int]]:
    """Yield where each term stands: start, end, its number."""
    if content.isascii():
        found = [(match.start(), match.end(), match[0]) for match in _WORD.finditer(content.lower())]
    else:
        found = [(match.start(), match.end(), folded(match[0])) for match in _WORD.finditer(content)]
    wanted = [
        (_WORD.findall(folded(option.text)), option.is_prefix, number)
        for number, term in enumerate(typed.terms)
        for option in term.options
    ]
    single = {words[0]: number for words, is_prefix, number in wanted if len(words) == 1 and not is_prefix}
    others = [one for one in wanted if one[0] and (len(one[0]) > 1 or one[1])]
    for place, (start, end, word) in enumerate(found):
        if word in single:
            yield start, end, single[word]
        for words, is_prefix, number in others:
            following = found[place : place + len(words)]
            *whole, last = [one[2] for one in following]
            is_last = last.startswith(words[-1]) if is_prefix else last == words[-1]
            if is_last and whole == words[:-1]:
                yield start, following[-1][1], number


def _in_text(typed: Typed, content: str) -> Iterator[tuple[int, int, int]]:
    options = [(option.text, number) for number, term in enumerate(typed.terms) for option in term.options]
    options.sort(key=lambda one: -len(one[0]))
    pattern = re.compile("|".join(f"({re.escape(text)})" for text, _ in options), re.IGNORECASE)
    for match in pattern.finditer(content):
        yield match.start(), match.end(), options[(match.lastindex or 1) - 1][1]


def _start(text: str, place: int) -> int:
    """Return where the word that a place lies in begins, or the place itself in a text without spaces."""
    if place <= _WORD_LENGTH:
        return 0
    cut = max(text.rfind(space, place - _WORD_LENGTH, place) for space in " \n\t")
    return place if cut < 0 else cut + 1


def _end(text: str, place: int) -> int:
    if place >= len(text) - _WORD_LENGTH:
        return len(text)
    cuts = [text.find(space, place, place + _WORD_LENGTH) for space in " \n\t"]
    return min((cut for cut in cuts if cut >= 0), default=place)


def _pieces(text: str, tokenizer: Tokenizer) -> Iterable[tuple[Option, bool, bool]]:
    """Yield each word and phrase of which a tokenizer leaves something: (option, is excluded, is an `or`)."""
    cleaned = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text.translate(_QUOTES))
    for piece in _PIECES.finditer(cleaned):
        phrase, word = piece["phrase"], piece["word"]
        if phrase is not None:
            found, is_excluded = Option(phrase.strip(), bool(piece["star"])), bool(piece["minus"])
        elif word is not None:
            is_excluded = word[0] == "-" and word[1:2] not in ("", "-") and not _follows(cleaned, piece.start())
            found = _word(word[1:] if is_excluded else word, tokenizer)
        else:
            continue
        if _is_something(found.text, tokenizer):
            yield found, is_excluded, word in ("or", "OR")


def _follows(text: str, start: int) -> bool:
    """Return whether something stands right before: the hyphen in `"a"-b` excludes nothing."""
    return start > 0 and not text[start - 1].isspace()


def _word(word: str, tokenizer: Tokenizer) -> Option:
    is_prefix = word.endswith("*") and len(word) > 1
    word = word.rstrip("*") if is_prefix else word
    if tokenizer == "unicode61":
        return Option(word, is_prefix)
    # Trigrams hold punctuation too, and would look for the one that only ends the sentence that was typed.
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] == "P":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] == "P":
        end -= 1
    return Option(word[start:end])


def _is_something(text: str, tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer leaves something of a text: `unicode61` drops what is no letter, number or private."""
    if tokenizer == "trigram":
        return any(not c.isspace() for c in text)
    return any(_is_token_character(c) for c in text)


def _is_token_character(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _parts(option: Option) -> list[Option]:
    """Return the trigrams of a word that has no spaces where words end, else the word itself."""
    text = option.text
    if len(text) <= _SHORTEST or " " in text or not _UNSPACED.search(text):
        return [option]
    return [Option(text[start : start + _SHORTEST]) for start in range(len(text) - _SHORTEST + 1)]


def _lookup(terms: tuple[Term, ...], typed: Typed) -> Lookup:
    is_short = [_is_short(term.options, typed.tokenizer) for term in terms]
    matched = [term for term, short in zip(terms, is_short, strict=True) if not short]
    like = tuple(
        tuple(pattern for option in term.options for pattern in _patterns(option.text))
        for term, short in zip(terms, is_short, strict=True)
        if short
    )
    outside = [option for option in typed.excluded if _is_short((option,), typed.tokenizer) or not matched]
    inside = [option for option in typed.excluded if option not in outside]
    match = _all(matched) if matched else None
    if match is not None and inside:
        match = f"({match}) NOT ({' OR '.join(map(_quoted, inside))})"
    return Lookup(match, like, tuple(pattern for option in outside for pattern in _patterns(option.text)))


def _is_short(options: tuple[Option, ...], tokenizer: Tokenizer) -> bool:
    return tokenizer == "trigram" and any(_trigram_length(option.text) < _SHORTEST for option in options)


def _trigram_length(text: str) -> int:
    """Return how many characters the trigram tokenizer makes of a text: it skips combining marks."""
    return sum(unicodedata.category(c) != "Mn" for c in text)


def _all(terms: list[Term]) -> str:
    # Side by side rather than with AND: that way FTS5 passes over a phrase of which its tokenizer leaves nothing, such
    # as a letter that is younger than its tables. https://www.sqlite.org/fts5.html#fts5_boolean_operators
    single = " ".join(_quoted(term.options[0]) for term in terms if len(term.options) == 1)
    groups = [" OR ".join(map(_quoted, term.options)) for term in terms if len(term.options) > 1]
    parts = [part for part in (single, *groups) if part]
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)


def _quoted(option: Option) -> str:
    return '"' + option.text.replace('"', '""') + '"' + (" *" if option.is_prefix else "")


def _patterns(text: str) -> list[str]:
    # LIKE knows the two cases of ASCII letters only. https://www.sqlite.org/lang_expr.html#like
    text = text[:_LONGEST_PATTERN]
    forms = dict.fromkeys((text,) if text.isascii() else (text, text.lower(), text.upper()))
    return ["%" + re.sub("[!%_]", r"!\g<0>", form) + "%" for form in forms]


def _spaced(text: str) -> str:
    """Return a folded text with two spaces between its words, so that each has its own two."""
    if text.isascii():
        return f" {text.translate(_TO_SPACE).replace(' ', '  ')} "
    return f" {_BETWEEN.sub('  ', text)} "


def _is_word(option: Option) -> bool:
    return not option.is_prefix and _WORD.fullmatch(folded(option.text)) is not None


def _phrase(option: Option) -> re.Pattern[str]:
    words = r"[\W_]+".join(_WORD.findall(folded(option.text)))
    return re.compile(rf"(?<![^\W_]){words}" + ("" if option.is_prefix else r"(?![^\W_])"))


def _count_parts(parts: list[list[str]], text: str) -> list[int]:
    return [sum(text.count(part) for part in options if part) for options in parts]
