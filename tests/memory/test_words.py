"""What a person typed, against FTS5 itself: each text is a query of right syntax, and means what it looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import walpool
from walpool.errors import DataError
from walpool.memory import _words
from walpool.memory._sqlite_words import CONFIGURED
from walpool.memory._words import Lookup, Tokenizer

TOKENIZERS: tuple[Tokenizer, ...] = ("unicode61", "trigram")
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# What the syntax of FTS5 is made of, and anything else.
SYNTAX = st.sampled_from(
    [
        '"',
        "*",
        "-",
        " or ",
        " OR ",
        " AND ",
        " NOT ",
        "NEAR(",
        "(",
        ")",
        "{",
        "}",
        ":",
        "^",
        "+",
        ",",
        "%",
        "_",
        "!",
        "\0",
    ]
)
TEXTS = st.lists(
    SYNTAX | st.sampled_from(["ab", "é", "日本", "😀", " ", "\n", "“", "\u0301"]) | st.text(max_size=4)
).map("".join)
# Letters whose case and accents every table of Unicode agrees on.
WORDS = st.text(st.sampled_from("abcdeéüßœñзжяλπ日本語中"), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[walpool.Pool]:
    path: Path = tmp_path_factory.mktemp("words") / "words.db"
    with walpool.Pool(path, synchronous="normal") as pool:
        for tokenizer, configured in CONFIGURED.items():
            pool.execute(f"CREATE VIRTUAL TABLE {tokenizer} USING fts5(content, {configured})")
        yield pool


def found(pool: walpool.Pool, tokenizer: Tokenizer, lookup: Lookup, *documents: str) -> list[int]:
    """Return which of the documents the lookup finds, by number."""
    conditions, params = [], []
    if lookup.match is not None:
        conditions.append(f"{tokenizer} MATCH ?")
        params.append(lookup.match)
    for group in lookup.like:
        conditions.append("(" + " OR ".join(["content LIKE ? ESCAPE '!'"] * len(group)) + ")")
        params += group
    for pattern in lookup.unlike:
        conditions.append("content NOT LIKE ? ESCAPE '!'")
        params.append(pattern)
    with pool.transaction() as tx:
        tx.execute(f"DELETE FROM {tokenizer}")
        for number, document in enumerate(documents):
            tx.execute(f"INSERT INTO {tokenizer} (rowid, content) VALUES (?, ?)", (number, document))
        rows = tx.fetch(f"SELECT rowid FROM {tokenizer} WHERE {' AND '.join(conditions)} ORDER BY rowid", params)
    return [row[0] for row in rows]


def search(pool: walpool.Pool, text: str, *documents: str, tokenizer: Tokenizer = "unicode61") -> list[int]:
    typed = _words.parse(text, tokenizer)
    return [] if typed is None else found(pool, tokenizer, _words.every(typed), *documents)


def search_any(pool: walpool.Pool, text: str, *documents: str, tokenizer: Tokenizer = "unicode61") -> list[int]:
    typed = _words.parse(text, tokenizer, any_part=True)
    lookups = [] if typed is None else _words.either(typed)
    return sorted({number for lookup in lookups for number in found(pool, tokenizer, lookup, *documents)})


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@FEW
@given(text=TEXTS)
@example("a" + "\u0301" * 60_000)
@example('-"' + "a" * 60_000 + '" b')
@example("ab " * 5_000)
@example(" ".join(f"-a{n} b{n} or c{n}" for n in range(2_000)))
def test_no_text_is_an_error(contents: walpool.Pool, tokenizer: Tokenizer, text: str) -> None:
    typed = _words.parse(text, tokenizer)
    if typed is not None:
        found(contents, tokenizer, _words.every(typed), text.replace("\0", " "))
        for lookup in _words.either(typed):
            found(contents, tokenizer, lookup, text.replace("\0", " "))
        counts = _words.counter(typed)(text)
        assert len(counts) == len(typed.terms)
        _words.excerpt(typed, text, ("[", "]"))
        if (match := _words.anything(typed)) is not None:
            found(contents, tokenizer, Lookup(match), text.replace("\0", " "))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@FEW
@given(words=st.lists(WORDS, min_size=1, max_size=6), noise=st.sampled_from(["", "?", " ... ", "\t", "😀"]))
def test_content_is_found_by_its_own_words(
    contents: walpool.Pool, tokenizer: Tokenizer, words: list[str], noise: str
) -> None:
    content = f" {' '.join(words)} "
    typed_noise = noise if tokenizer == "unicode61" or noise != "😀" else ""
    assert search(contents, " ".join([*reversed(words), typed_noise]), content, tokenizer=tokenizer) == [0]
    for word in words:
        assert search(contents, f'"{word}"', content, tokenizer=tokenizer) == [0]
        assert search(contents, f"{word[:1]}*", content, tokenizer=tokenizer) == [0]
        assert search(contents, f"xqx -{word}", f"xqx {content}", "xqx", tokenizer=tokenizer) == [1]
    phrase = '"' + " ".join(words) + '"'
    assert search(contents, phrase, content, tokenizer=tokenizer) == [0]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@FEW
@given(text=st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_any_text_finds_itself_by_its_words(contents: walpool.Pool, tokenizer: Tokenizer, text: str) -> None:
    plain = re.sub(r'["“”„‟«»*-]|\b(or|OR)\b', " ", text)  # what has a meaning of its own
    if _words.parse(plain, tokenizer) is not None and tokenizer == "trigram":
        assert search(contents, plain, plain, tokenizer=tokenizer) == [0]
    elif _words.parse(plain) is not None and plain.isascii():
        assert search(contents, plain, plain) == [0]


def test_words_are_all_looked_for_in_any_order_and_case(contents: walpool.Pool) -> None:
    assert search(contents, "World HELLO", "hello wide world", "hello", "world") == [0]


def test_words_are_found_without_their_accents_and_with_them(contents: walpool.Pool) -> None:
    assert search(contents, "naive cafe", "naïve café", "naive cafe", "nave caf") == [0, 1]
    assert search(contents, "CAFÉ", "naïve café", "naive cafe") == [0, 1]
    assert search(contents, "cafe", "a CAFÉ", tokenizer="trigram") == [0]


def test_phrase_is_found_as_it_stands(contents: walpool.Pool) -> None:
    documents = ("a big red house", "red big house", "big, red")
    assert search(contents, '"big red"', *documents) == [0, 2]
    assert search(contents, "“big red”", *documents) == [0, 2]
    assert search(contents, '"big re"*', *documents) == [0, 2]
    assert search(contents, "big-red", *documents) == [0, 2]


def test_star_means_a_beginning(contents: walpool.Pool) -> None:
    assert search(contents, "walk*", "walking", "walk", "sleepwalk") == [0, 1]
    assert search(contents, "walk", "walking", "walk", "sleepwalk") == [1]
    assert search(contents, "walk", "walking", "walk", "sleepwalk", tokenizer="trigram") == [0, 1, 2]


def test_minus_excludes_at_the_beginning_of_a_word_only(contents: walpool.Pool) -> None:
    documents = ("tea", "tea and milk", "tea with cold milk", "well-known tea")
    assert search(contents, "tea -milk", *documents) == [0, 3]
    assert search(contents, 'tea -"cold milk"', *documents) == [0, 1, 3]
    assert search(contents, "well-known", *documents) == [3]
    assert search(contents, "--tea - tea", *documents) == [0, 1, 2, 3]
    assert search(contents, "-tea", *documents) == []
    assert search_any(contents, "tea milk -cold", *documents) == [0, 1, 3]


def test_or_means_either_between_two_terms_only(contents: walpool.Pool) -> None:
    documents = ("green tea", "green coffee", "green", "tea or coffee", "green or")
    assert search(contents, "green tea or coffee", *documents) == [0, 1]
    assert search(contents, "tea OR coffee OR green", *documents) == [0, 1, 2, 3, 4]
    assert search(contents, "green or", *documents) == [4]
    assert search(contents, "or green", *documents) == [4]
    assert search(contents, "Or tea", *documents) == [3]
    assert search(contents, "??? or tea", *documents) == [3]
    assert search(contents, 'tea "or" coffee', *documents) == [3]


def test_operators_of_fts5_are_words(contents: walpool.Pool) -> None:
    documents = ("this and that", "this that", "near this", "content this", "not this")
    assert search(contents, "this AND that", *documents) == [0]
    assert search(contents, "NEAR(this)", *documents) == [2]
    assert search(contents, "content:this", *documents) == [3]
    assert search(contents, "this NOT", *documents) == [4]
    assert search(contents, '^this (that} + "', *documents) == [0, 1]


def test_nothing_to_look_for_is_none() -> None:
    for tokenizer in TOKENIZERS:
        for text in ("", " ", "???", '"', '""', "-a", '-"a b" -c', "\0\x01", "- -", "*", "...!"):
            assert _words.parse(text, tokenizer) is None, text
    assert _words.parse("😀") is None
    assert _words.parse("😀", "trigram") is not None


def test_lone_surrogate_is_a_data_error() -> None:
    with pytest.raises(DataError, match="surrogate"):
        _words.parse("a \ud800")


@pytest.mark.parametrize("word", ["日", "日本", "日本語", "京都", "ab", "😀"])
def test_trigram_finds_words_of_any_length(contents: walpool.Pool, word: str) -> None:
    documents = (f"東京 {word}", f"私は{word}を", word, "x")
    assert search(contents, word, *documents, tokenizer="trigram") == [0, 1, 2]
    assert search(contents, f"{word}。", *documents, tokenizer="trigram") == [0, 1, 2]
    assert search(contents, f"東京 {word}", *documents, tokenizer="trigram") == [0]
    assert search(contents, f"東京 or {word}", *documents, tokenizer="trigram") == [0, 1, 2]
    assert search(contents, f"私は* -{word}", *documents, "私は!", tokenizer="trigram") == [4]


def test_trigram_takes_a_sentence_without_spaces_apart_for_a_search_by_any(contents: walpool.Pool) -> None:
    documents = ("京都は昔の町です", "日本の首都は東京", "大阪")
    assert search_any(contents, "日本の首都はどこですか", *documents, tokenizer="trigram") == [1]
    assert search(contents, "日本の首都はどこですか", *documents, tokenizer="trigram") == []


def test_patterns_take_percent_and_underscore_for_what_they_are(contents: walpool.Pool) -> None:
    documents = ("5%", "50", "a_b", "axb", "!")
    assert search(contents, "5% ", *documents, tokenizer="trigram") == [0, 1]  # the sign ends a word, as in prose
    assert search(contents, '"5%"', *documents, tokenizer="trigram") == [0]
    assert search(contents, '"_b"', *documents, tokenizer="trigram") == [2]
    assert search(contents, '"!"', *documents, tokenizer="trigram") == [4]


def test_occurrences_are_counted_as_words() -> None:
    typed = _words.parse('run* "on time" or soon tea')
    assert typed is not None
    assert _words.counter(typed)("Running, run! overrun. On-time; on times SÓON, soon_tea") == [2, 3, 1]
    typed = _words.parse("日本 tea", "trigram")
    assert typed is not None
    assert _words.counter(typed)("日本と日本のTea, steam") == [2, 2]


def test_excerpt_marks_what_it_finds_in_its_surroundings() -> None:
    typed = _words.parse("日本 tea", "trigram")
    assert typed is not None
    assert _words.excerpt(typed, "東京は日本の首都", ("<", ">")) == "東京は<日本>の首都"
    assert _words.excerpt(typed, "x" * 100 + "TEA" + "y" * 100, ("[", "]")) == "…" + "x" * 78 + "[TEA]" + "y" * 78 + "…"
    assert _words.excerpt(typed, "京都", ("[", "]")) is None
