"""Tokens of pages: what goes in comes out, and what is none, or belongs elsewhere, is refused."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from walpool.errors import DataError
from walpool.memory import _pages
from walpool.memory._pages import Entry, ListPage, Page, VectorPage, WindowPage
from walpool.memory.conditions import Equals, In
from walpool.memory.records import Query

SEARCH = _pages.fingerprint("search")
INT64 = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, 2**63 - 1)
OPTIONAL = st.none() | st.integers(0, 10**6)
ENTRIES = st.lists(st.builds(Entry, INT64, OPTIONAL, OPTIONAL, OPTIONAL), max_size=30).map(tuple)
PAGES = st.one_of(
    st.builds(ListPage, COUNTS, COUNTS, INT64, INT64),
    st.builds(VectorPage, COUNTS, COUNTS, st.floats(allow_nan=False), INT64, COUNTS),
    st.builds(WindowPage, COUNTS, COUNTS, INT64, ENTRIES),
)
PAGE = VectorPage(12, 3, 0.1, 5, 10)


@given(page=PAGES)
@example(VectorPage(0, 0, -0.0, 0, 0))
@example(WindowPage(0, 0, 0, ()))
def test_token_gives_back_what_it_was_made_of(page: Page) -> None:
    token = _pages.encode(page, SEARCH)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    decoded = _pages.decode(token, type(page), SEARCH)
    assert decoded == page
    if isinstance(page, VectorPage):
        assert math.copysign(1, decoded.score) == math.copysign(1, page.score)


@given(page=PAGES, data=st.data())
def test_changed_or_cut_token_is_refused(page: Page, data: st.DataObject) -> None:
    token = _pages.encode(page, SEARCH)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("Az09-_=+/ é\0\ud800").filter(lambda c: c != token[place]))
    for changed in (token[:place] + other + token[place + 1 :], token[:place], token + "A", token + "=", token + "\n"):
        with pytest.raises(DataError):
            _pages.decode(changed, type(page), SEARCH)


@given(token=st.text())
@example("")
@example("A" * 1_000_000)
def test_text_that_is_no_token_is_refused_with_advice(token: str) -> None:
    with pytest.raises(DataError, match="`next` of the page before"):
        _pages.decode(token, ListPage, SEARCH)


def test_token_of_another_search_is_refused() -> None:
    token = _pages.encode(PAGE, SEARCH)
    with pytest.raises(DataError, match="belongs to another search"):
        _pages.decode(token, VectorPage, _pages.fingerprint("another"))
    with pytest.raises(DataError, match="belongs to another search"):
        _pages.decode(token, ListPage, SEARCH)


def test_window_of_a_thousand_hits_is_a_token_of_a_few_kilobytes() -> None:
    chance = random.Random(1)
    matched = sorted((chance.randrange(30_000) for _ in range(1_000)), reverse=True)
    words = tuple(Entry(chance.randrange(100_000), None, rank, score) for rank, score in enumerate(matched, 1))
    assert len(_pages.encode(WindowPage(10**6, 3, 10**15, words), SEARCH)) < 7_000
    ranks = chance.sample(range(1, 1_001), 1_000)
    both = tuple(Entry(chance.randrange(100_000), rank, chance.choice([None, rank]), 5_000) for rank in ranks)
    assert len(_pages.encode(WindowPage(10**6, 3, 10**15, both), SEARCH)) < 12_000
    with pytest.raises(ValueError, match="1000 entries"):
        _pages.encode(WindowPage(1, 1, 1, (*words, Entry(1))), SEARCH)


def test_fingerprint_tells_arguments_apart_by_type_and_value() -> None:
    different = [
        (1,), (1.0,), (True,), ("1",), (None,), ((1,),), (1, 2), ("1, 2",), (b"1",), ("a\ud800",), (Query(),),
        (Query(scope="/a"),), (Query(ids=("/a",)),), (Query(metadata={"a": 1}),), (Query(metadata={"a": Equals(1)}),),
        (Query(metadata={"a": In([1])}),), (Query(metadata={"a": {"b": [1]}}),),
    ]  # fmt: skip
    assert len({_pages.fingerprint(*arguments) for arguments in different}) == len(different)


def test_fingerprint_is_the_same_for_equal_arguments() -> None:
    here = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
    there = here.astimezone(timezone(timedelta(hours=5)))
    one = Query(metadata={"a": 1, "b": [2]}, created_after=here)
    two = Query(metadata={"b": [2], "a": 1}, created_after=there)
    assert _pages.fingerprint(one) == _pages.fingerprint(two)
