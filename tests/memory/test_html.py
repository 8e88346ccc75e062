"""What a notebook shows of a store, of records and of hits: tables, bounded, and nothing stored becomes markup."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import pytest

from walpool.memory import _html, pack
from walpool.memory.records import Hit, Hits, Record, Records

HOSTILE = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)> &amp; ]]> <!-- \x00\x1b[31m\u202e\ud800"
VOID = {"br", "hr", "img"}
NOW = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


class Page(HTMLParser):
    """The elements and the cells of a piece of HTML, which must be well nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")


def record(**fields: Any) -> Record:
    return Record(**{"id": "1", "content": "the sky is blue", "created_at": NOW - timedelta(days=3), **fields})


def html_of(shown: Any) -> str:
    html = shown._repr_html_()
    assert isinstance(html, str)
    html.encode()  # a notebook is UTF-8: a lone surrogate would break all of it
    return html


def test_records_are_a_table_of_content_scope_categories_and_age() -> None:
    html = _html.records([record(scope="/facts", categories=("sky", "blue"))], more=False, now=NOW)
    page = Page(html)
    assert page.rows == [
        ["content", "scope", "categories", "age"],
        ["the sky is blue", "/facts", "sky, blue", "3 d"],
    ]
    assert page.text.endswith("1 record")


def test_hits_show_their_score_and_where_the_words_are() -> None:
    plain = Hit(record(), 0.98765)
    found = Hit(record(content="long " * 100 + "sky"), 0.5, snippet="…long [sky]")
    page = Page(_html.hits([plain, found], more=False, now=NOW))
    assert page.rows[0] == ["score", "content", "scope", "categories", "age"]
    assert [row[:2] for row in page.rows[1:]] == [["0.9877", "the sky is blue"], ["0.5000", "…long [sky]"]]


def test_a_store_is_a_tree_of_its_scopes_with_their_numbers() -> None:
    page = Page(_html.store("notes.db", {"/a": 1200, "/a/b": 7}, 1201))
    assert page.rows == [["scope", "records"], ["/a", "1,200"], ["/a/b", "7"]]
    assert "notes.db" in page.text
    assert "1,201 records" in page.text


@pytest.mark.parametrize(
    "html",
    [
        html_of(Records([record(content=HOSTILE, scope=HOSTILE, categories=(HOSTILE,) * 9, id=HOSTILE)])),
        html_of(Hits([Hit(record(content=HOSTILE, scope=HOSTILE), 0.5, snippet=HOSTILE)])),
        _html.store(HOSTILE, {f"/{HOSTILE}": 1}, 1),
    ],
    ids=["records", "hits", "store"],
)
def test_what_is_stored_never_becomes_markup(html: str) -> None:
    page = Page(html)
    assert set(page.tags) <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert page.attributes <= {"style"}
    assert "alert('1')" in page.text
    assert not any(char in html for char in "\x00\x1b\u202e\ud800")


@pytest.mark.parametrize("kind", [Records, Hits])
def test_a_page_is_bounded_in_size_whatever_it_holds(kind: Any) -> None:
    large = record(content="<" * 10**7, scope="/" + "<" * 10**5, categories=tuple("<" * 999 for _ in range(999)))
    page = kind([large if kind is Records else Hit(large, 0.5)] * 10_000)
    html = html_of(page)
    assert len(html) < 150_000
    assert f"{10_000 - _html.MAX_ROWS:,} not shown" in Page(html).text
    assert len(repr(page)) < 3_000
    assert "... 9990 more" in repr(page)


def test_a_store_of_many_scopes_is_bounded_in_size() -> None:
    html = _html.store("<" * 10**6, {"/" + "<" * 10**4 + str(number): 1 for number in range(1_000)}, 1_000)
    assert len(html) < 150_000
    assert "800 not shown" in Page(html).text


@pytest.mark.parametrize("kind", [Records, Hits])
def test_a_page_says_whether_another_follows(kind: Any) -> None:
    page = kind([record() if kind is Records else Hit(record(), 0.5)])
    assert "next" not in html_of(page) + repr(page)
    page.next = "zq7token"
    assert "next" in Page(html_of(page)).text
    assert "next" in repr(page)
    assert "zq7token" not in html_of(page) + repr(page)  # of no use to whoever reads it, and long


def test_no_records_are_a_table_too() -> None:
    assert Page(html_of(Records())).text.endswith("0 records")
    assert repr(Hits()) == "<Hits: 0>"


def test_repr_of_a_page_has_a_line_for_each_element() -> None:
    first, second = record(scope="/facts"), record(content="one\ntwo")
    assert repr(Hits([Hit(first, 0.98765), Hit(second, 0.5)])) == (
        "<Hits: 2\n  0.9877  /facts  'the sky is blue'\n  0.5000  /  'one two'>"
    )
    assert repr(Records([first])) == "<Records: 1\n  2026-04-28 12:00  /facts  'the sky is blue'>"


def test_repr_of_a_record_shortens_its_content_and_counts_its_dims() -> None:
    shown = repr(record(content="x" * 10_000, embedding=pack([1.0] * 1536), categories=("a",)))
    assert shown.startswith("Record(id='1', content='xxxx")
    assert "embedding=<1536 dims>" in shown
    assert "categories=('a',)" in shown
    assert len(shown) < 600


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (timedelta(seconds=59), "now"),
        (timedelta(minutes=1), "1 min"),
        (timedelta(hours=23, minutes=59), "23 h"),
        (timedelta(days=364), "364 d"),
        (timedelta(days=800), "2 y"),
        (timedelta(seconds=-30), "now"),
        (timedelta(days=-1), "ahead"),
    ],
)
def test_age_is_said_in_its_largest_unit(ago: timedelta, shown: str) -> None:
    assert _html.age(NOW - ago, NOW) == shown


def test_shortened_text_is_one_line_of_no_more_than_its_length() -> None:
    assert _html.shortened("  a\n\tb  ", 10) == "a b"
    assert _html.shortened("abcdef", 6) == "abcdef"
    assert _html.shortened("abcdefg", 6) == "abcde…"
    assert _html.shortened(" " * 100 + "a", 6) == "…"
    assert _html.shortened("日本語", 3) == "日本語"
