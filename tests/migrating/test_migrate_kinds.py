"""Types that SQLite has nothing like: what each becomes in a file, what fills it again, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from migrations import Migrated, fill

import walpool
from walpool import cli

TYPES = """
    CREATE TYPE mood AS ENUM ('good', 'b''ad', '');
    CREATE TYPE row_of AS (a int, b text);
    CREATE DOMAIN pair AS int[];
"""

THERE: list[tuple[str, list[str], list[Any]]] = [
    # the type, values as the server takes them, what a file has
    (
        "interval",
        ["1 year 2 months -3 days 04:05:06.5", "0", "-0.000001 s"],
        ["P1Y2M-3DT4H5M6.5S", "PT0S", "PT-0.000001S"],
    ),
    ("interval day to second", ["1 day 2:00"], ["P1DT2H"]),
    ("time", ["24:00", "01:02:03.400"], ["24:00:00", "01:02:03.4"]),
    ("timetz", ["12:00:00-03:30"], ["12:00:00-03:30"]),
    ("inet", ["10.0.0.1", "2001:db8::1/64"], ["10.0.0.1/32", "2001:db8::1/64"]),
    ("cidr", ["10/8"], ["10.0.0.0/8"]),
    ("macaddr", ["08002B010203"], ["08:00:2b:01:02:03"]),
    ("bit(3)", ["101"], ["101"]),
    ("varbit", ["", "10"], ["", "10"]),
    ("oid", ["4294967295"], [2**32 - 1]),
    ("name", ["x"], ["x"]),
    ('"char"', ["x"], ["x"]),
    ("money", ["12.5"], ["$12.50"]),
    ("int4range", ["[1,3]"], ["[1,4)"]),
    ("tstzrange", ["[2024-01-01 01:00+01,)"], ['["2024-01-01 00:00:00+00",)']),
    ("point", ["(1.5,2)"], ["(1.5,2)"]),
    ("tsvector", ["b a"], ["'a' 'b'"]),
    ("row_of", ["(1,a b)"], ['(1,"a b")']),
    ("mood", ["b'ad", ""], ["b'ad", ""]),
    ("int[]", ["{1,NULL}", "{}", "{{1,2},{3,4}}"], ["[1,null]", "[]", "[[1,2],[3,4]]"]),
    ("float8[]", ["{1e20,NaN,-0,0.1}"], ['[1e+20,"NaN",-0,0.1]']),
    ("real[]", ["{0.1}"], ["[0.10000000149011612]"]),
    ("numeric[]", ["{1.50,NaN}"], ['["1.50","NaN"]']),
    ("boolean[]", ["{t,f}"], ["[true,false]"]),
    ("text[]", ['{"a\\"b","é\\\\",""}'], ['["a\\"b","é\\\\",""]']),
    ("bytea[]", ['{"\\\\x00ff"}'], ['["\\\\x00ff"]']),
    ("json[]", ['{"[1, 2]"}'], ['["[1, 2]"]']),
    ("timestamptz[]", ["{2024-02-29 01:00+01}"], ['["2024-02-29 00:00:00+00"]']),
    ("interval[]", ["{1 day}"], ['["P1D"]']),
    ("mood[]", ['{good,""}'], ['["good",""]']),
    ("point[]", ['{"(1,2)"}'], ['["(1,2)"]']),
    ("pair[]", ['{"{1,2}"}'], ['["{1,2}"]']),
]


def made(url: str, kind: str, values: list[str]) -> None:
    with walpool.get_pool(url) as pool:
        pool.script(f"{TYPES}; CREATE TABLE t (id int PRIMARY KEY, a {kind})")
        pool.executemany(f"INSERT INTO t VALUES (?, CAST(CAST(? AS text) AS {kind}))", list(enumerate(values)))


@pytest.mark.parametrize(("kind", "values", "expected"), THERE, ids=[kind for kind, _, _ in THERE])
def test_value_of_a_server_becomes_what_the_page_says(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str, values: list[str], expected: list[Any]
) -> None:
    made(postgres_url, kind, values)
    assert migrated(postgres_url, tmp_path / "a.db").is_same
    with walpool.Pool(tmp_path / "a.db") as pool:
        assert pool.fetch("SELECT a FROM t ORDER BY id") == [(value,) for value in expected]


UNFILLED = [
    '"char"', "money", "int4range", "tstzmultirange", "point", "polygon", "tsvector", "tsquery", "xml", "row_of",
    "interval day to second", "regclass", "pg_lsn", "jsonpath", "point[]", "pair[]", "xml[]", "int2vector",
]  # fmt: skip


def test_page_names_the_types_that_are_not_filled() -> None:
    page = (Path(__file__).parents[2] / "docs" / "moving.md").read_text(encoding="utf-8")
    table = page[page.index("| not filled |") : page.index("### Arrays")]
    ours = {"row_of": "composite types", "pair[]": "domains that are arrays"}
    assert [kind for kind in UNFILLED if ours.get(kind, f"`{kind.removesuffix('[]')}`") not in table] == []


@pytest.mark.parametrize("kind", UNFILLED)
def test_column_of_a_type_that_is_not_filled_is_refused_by_name_with_what_to_do(
    tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
    made(postgres_url, kind, [])
    assert cli.main(["migrate", str(tmp_path / "a.db"), postgres_url, "--force"]) == 2
    said = capsys.readouterr().err
    assert f"t.a: a column of type {kind} cannot be filled: make it text" in said
    assert f'(ALTER TABLE "t" ALTER COLUMN "a" TYPE {kind} USING "a"::{kind})' in said


@pytest.mark.parametrize("kind", ["int4range", "tstzmultirange", "point", "tsvector", "row_of", "money", "pg_lsn"])
def test_column_that_was_filled_as_text_takes_its_type_afterwards_as_the_refusal_says(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str
) -> None:
    values = {
        "int4range": "[1,4)", "tstzmultirange": '{["2024-01-01 00:00:00+00",)}', "point": "(1,2)", "tsvector": "'a':1",
        "row_of": '(1,"a b")', "money": "$12.50", "pg_lsn": "1/16",
    }  # fmt: skip
    made(postgres_url, kind, [values[kind]])
    assert migrated(postgres_url, tmp_path / "a.db").is_same
    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, a text)")
    assert migrated(tmp_path / "a.db", postgres_url, force=True).is_same
    with walpool.get_pool(postgres_url) as pool:
        pool.script(f'ALTER TABLE "t" ALTER COLUMN "a" TYPE {kind} USING "a"::{kind}')
        assert pool.fetch("SELECT a::text FROM t") == [(values[kind],)]
