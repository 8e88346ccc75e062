"""How a notebook shows stores, records and hits: tables of HTML, bounded in size, in which nothing stored is markup.

Pure: takes plain values and returns text. Knows no store and no record, only what it shows of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from itertools import islice
from typing import Final, Protocol

__all__ = ["age", "hits", "records", "shortened", "store"]

MAX_ROWS: Final = 50  # records or hits: about 20 KB of HTML
MAX_SCOPES: Final = 200
MAX_CATEGORIES: Final = 5  # of one record
LONGEST: Final = {"content": 160, "scope": 80, "category": 30}  # characters shown

_UNITS: Final = ((31_557_600, "y"), (86_400, "d"), (3_600, "h"), (60, "min"))  # seconds; a year of 365.25 days


class _Record(Protocol):
    @property
    def content(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def categories(self) -> tuple[str, ...]: ...
    @property
    def created_at(self) -> datetime: ...


class _Hit(Protocol):
    @property
    def record(self) -> _Record: ...
    @property
    def score(self) -> float: ...
    @property
    def snippet(self) -> str | None: ...


def records(shown: Sequence[_Record], *, more: bool, now: datetime | None = None) -> str:
    """Return a table of records: content, scope, categories and age.

    Args:
        shown: the records, in their order.
        more: whether a page follows them.
        now: what ages count from.
    """
    now = now or datetime.now(timezone.utc)
    rows = ([*_cells(record, record.content), age(record.created_at, now)] for record in shown)
    return _table(("content", "scope", "categories", "age"), rows, "records", len(shown), more)


def hits(shown: Sequence[_Hit], *, more: bool, now: datetime | None = None) -> str:
    """Return a table of hits: score, content (where words were looked for, their surroundings), and as `records`."""
    now = now or datetime.now(timezone.utc)
    rows = (
        [f"{hit.score:.4f}", *_cells(hit.record, hit.snippet or hit.record.content), age(hit.record.created_at, now)]
        for hit in shown
    )
    return _table(("score", "content", "scope", "categories", "age"), rows, "hits", len(shown), more)


def store(name: str, scopes: Mapping[str, int], records: int) -> str:
    """Return a store's name and a table of its scopes, those below others set in, each with its number of records.

    Args:
        name: what the store is called.
        scopes: paths in the order of the tree, each with how many records lie there and below.
        records: how many records there are in all.
    """
    body = "".join(
        f'<tr><td style="text-align:left;padding-left:{min(path.count("/"), 12) + 0.5}em">{_text(path, "scope")}</td>'
        f"<td>{number:,}</td></tr>"
        for path, number in islice(scopes.items(), MAX_SCOPES)
    )
    said = f"<p>{_counted(records, 'records')}{_rest(len(scopes), MAX_SCOPES, 'scopes', more=False)}</p>"
    head = "<tr><th>scope</th><th>records</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>" if scopes else ""
    return f"<div><strong>{_text(name, 'content')}</strong>{table}{said}</div>"


def shortened(text: str, longest: int) -> str:
    """Return a text as one line of at most `longest` characters; what no screen can show is replaced."""
    # A slice first: a text may be megabytes long, and of its white space only one in a row counts.
    line = " ".join(text[: 4 * longest].split())
    line = "".join(char if char.isprintable() else "�" for char in line)
    return line if len(line) <= longest and len(text) <= 4 * longest else line[: longest - 1] + "…"


def age(time: datetime, now: datetime) -> str:
    """Return how long ago a time is, in its largest unit: `3 d`, `5 h`; `now` below a minute, `ahead` of now."""
    seconds = (now - time).total_seconds()
    if seconds < -60:
        return "ahead"
    return next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), "now")


def _cells(record: _Record, content: str) -> list[str]:
    categories = [shortened(category, LONGEST["category"]) for category in record.categories[:MAX_CATEGORIES]]
    if len(record.categories) > MAX_CATEGORIES:
        categories.append("…")
    return [shortened(content, LONGEST["content"]), shortened(record.scope, LONGEST["scope"]), ", ".join(categories)]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], what: str, total: int, more: bool) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in islice(rows, MAX_ROWS)
    )
    said = f"<p>{_counted(total, what)}{_rest(total, MAX_ROWS, what, more=more)}</p>"
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}</div>"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what if number != 1 else what[:-1]}"


def _rest(total: int, most: int, what: str, *, more: bool) -> str:
    left_out = f", of {_counted(total, what)} {total - most:,} not shown" if total > most else ""
    return left_out + (", and a page behind them (next)" if more else "")


def _text(text: str, kind: str) -> str:
    return escape(shortened(text, LONGEST[kind]))
