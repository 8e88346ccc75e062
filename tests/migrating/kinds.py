"""Types of PostgreSQL's that tests fill, each with texts of values that the server takes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

DECLARED = """
    CREATE TYPE mood AS ENUM ('good', 'b"a''d,', 'so {so}', '');
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN short AS varchar(3);
    CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 3);
    CREATE DOMAIN cheerful AS mood CHECK (VALUE <> '');
    CREATE DOMAIN pair AS numeric(6,2)[] CHECK (cardinality(VALUE) = 2);
"""
LABELS = ["good", "b\"a'd,", "so {so}", ""]

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
).map(json.dumps)
HOURS = st.integers(-15, 15).map(lambda hour: f"{hour:+03}")
SECONDS = st.times().map(str)
BITS = st.text("01", max_size=20)


def interval(months: int, days: int, microseconds: int) -> str:
    return f"{months} mon {days} days {microseconds} us"


KINDS: dict[str, st.SearchStrategy[str]] = {
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "oid": st.integers(0, 2**32 - 1).map(str),
    "real": st.floats(allow_nan=False, width=32).map(repr),
    "double precision": st.floats(allow_nan=False).map(repr),
    "numeric": st.decimals(allow_infinity=False, allow_nan=False).map(lambda value: f"{value:f}")
    | st.sampled_from(["NaN", "Infinity"]),
    "numeric(6,2)": st.decimals(-9999, 9999, places=2, allow_nan=False).map(str) | st.just("NaN"),
    "numeric(3,-2)": st.integers(-999, 999).map(lambda value: f"{value}00"),
    "boolean": st.sampled_from(["true", "false"]),
    "text": TEXTS,
    "varchar(5)": TEXTS.map(lambda text: text[:5]),
    "char(4)": TEXTS.map(lambda text: text[:4]),
    "name": TEXTS,
    "bytea": st.binary(max_size=8).map(lambda value: f"\\x{value.hex()}"),
    "json": JSONS,
    "jsonb": JSONS.filter(lambda text: "\\u0000" not in text),
    "uuid": st.uuids().map(str),
    "date": st.dates().map(str) | st.just("infinity"),
    "time": SECONDS | st.just("24:00"),
    "time(2)": SECONDS,
    "timetz": st.tuples(SECONDS, HOURS).map("".join),
    "timestamp": st.datetimes().map(str) | st.just("-infinity"),
    "timestamp(1)": st.datetimes().map(str),
    "timestamptz": st.datetimes().map(lambda at: f"{at}+00") | st.just("infinity"),
    "interval": st.builds(
        interval, st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**62), 2**62)
    ),
    "interval(2)": st.builds(interval, st.integers(-40, 40), st.integers(-40, 40), st.integers(-(10**12), 10**12)),
    "inet": st.ip_addresses().map(str) | st.ip_addresses(network="::ffff:0:0/96").map(str),
    "cidr": st.ip_addresses().map(str) | st.integers(0, 255).map(lambda part: f"10.{part}.0.0/16"),
    "macaddr": st.binary(min_size=6, max_size=6).map(lambda value: value.hex(":")),
    "macaddr8": st.binary(min_size=8, max_size=8).map(lambda value: value.hex(":")),
    "bit(3)": st.text("01", min_size=3, max_size=3),
    "bit varying": BITS,
    "bit varying(9)": BITS.map(lambda text: text[:9]),
    "mood": st.sampled_from(LABELS),
    "positive": st.integers(1, 2**31 - 1).map(str),
    "short": TEXTS.map(lambda text: text[:3]),
    "shorter": TEXTS.map(lambda text: text[:2]),
    "cheerful": st.sampled_from(LABELS[:-1]),
    "pair": st.lists(st.integers(-999, 999), min_size=2, max_size=2).map(lambda two: f"{{{two[0]},{two[1]}.5}}"),
}
"""By the type: texts of values."""

ARRAY = "pair"
"""The one of them that is an array itself."""


def quoted(text: str | None) -> str:
    """Return a text as an element in the text of an array."""
    return "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def nested(lists: Any) -> str:
    return f"{{{','.join(map(nested, lists))}}}" if isinstance(lists, list) else quoted(lists)


def arrays_of(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return texts of arrays of one or two dimensions, and of none."""
    element = st.none() | elements
    flat = st.lists(element, max_size=4)
    deep = st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(element, min_size=width, max_size=width), min_size=1, max_size=2)
    )
    return (flat | deep).map(nested)
