"""Domains and enums: they go as what they are made of, and what their conditions refuse is found first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from migrations import Migrated, fill, rows_of

import walpool
from walpool import cli
from walpool.errors import DataError, IntegrityError
from walpool.migrating import Refused, _judging, migration

TYPES = """
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN small AS positive NOT NULL CHECK (VALUE < 100);
    CREATE DOMAIN code AS varchar(3) CONSTRAINT no_x CHECK (VALUE <> 'x');
    CREATE DOMAIN there AS text CHECK (VALUE IS NOT NULL);
    CREATE DOMAIN two AS numeric(4,1)[] CHECK (cardinality(VALUE) = 2);
    CREATE DOMAIN bytes AS bytea CHECK (length(VALUE) > 1);
    CREATE TYPE mood AS ENUM ('good', 'it''s "bad"');
    CREATE DOMAIN mine AS mood CHECK (VALUE <> 'good');
"""


@pytest.fixture
def server(postgres_url: str) -> str:
    """Return the URL of a database with these types."""
    with walpool.get_pool(postgres_url) as pool:
        pool.script(TYPES)
    return postgres_url


def table(url: str, kind: str, key: str = "bigint") -> None:
    with walpool.get_pool(url) as pool:
        pool.script(f"DROP TABLE IF EXISTS t, walpool_migration; CREATE TABLE t (id {key} PRIMARY KEY, a {kind})")


def test_domains_of_a_server_go_as_what_they_are_made_of_and_their_constraints_are_told(
    tmp_path: Path, server: str, migrated: Migrated
) -> None:
    with walpool.get_pool(server) as pool:
        pool.script("""
            CREATE TABLE t (id positive PRIMARY KEY, s small DEFAULT 7, c code DEFAULT 'abc', n two, cs code[], m mine);
            INSERT INTO t VALUES (1, 5, 'a', '{1,2.5}', '{a,NULL}', 'it''s "bad"')""")
    report = migrated(server, tmp_path / "a.db")
    assert report.is_same
    assert rows_of(tmp_path / "a.db", "t") == [(1, 5, "a", '["1.0","2.5"]', '["a",null]', 'it\'s "bad"')]
    notes = report.plan.tables[0].notes
    assert (
        "s: the constraint small_check CHECK (((VALUE)::integer < 100)) of small is not carried over: add it by hand"
        in notes
    )
    assert (
        "s: the constraint positive_check CHECK ((VALUE > 0)) of positive is not carried over: add it by hand" in notes
    )
    assert "s: the NOT NULL of small is not carried over: add it by hand" in notes
    assert any(note.startswith("cs: the constraint no_x CHECK") for note in notes)
    with walpool.Pool(tmp_path / "a.db") as pool:
        declared = pool.fetch("SELECT name, type, dflt_value FROM pragma_table_info('t')")
        assert pool.execute("INSERT INTO t (c) VALUES ('new') RETURNING id, s").rows == [(2, 7)]
    assert declared == [
        ("id", "INTEGER", None), ("s", "INTEGER", "7"), ("c", "TEXT", "'abc'"), ("n", "TEXT", None),
        ("cs", "TEXT", None), ("m", "TEXT", None),
    ]  # fmt: skip


REFUSED: list[tuple[str, list[Any], list[Any], str, Any]] = [
    # the type, values that it takes, values that it refuses, by whose name, what they are replaced by
    ("positive", [1, 2**31 - 1], [0, -5], "positive", None),
    ("code", ["abc", ""], ["x"], "code", None),
    ("two", ['["1.0","2.0"]'], ["[]", '["1.0"]'], "two", None),
    ("bytes", [b"\0\xff"], [b"", b"\\"], "bytes", None),
    ("mine", ['it\'s "bad"'], ["good"], "mine", None),
    ("positive[]", ["[1,null]", "[]"], ["[1,0]"], "positive", None),
    ("small[]", ["[1]"], ["[1,null]", "[200]"], "small, positive", None),
]


@pytest.mark.parametrize(("kind", "good", "bad", "name", "becomes"), REFUSED, ids=[kind for kind, *_ in REFUSED])
def test_what_a_domain_refuses_is_found_first_and_replaced_or_left_out(
    tmp_path: Path, server: str, migrated: Migrated, kind: str, good: list[Any], bad: list[Any], name: str, becomes: Any
) -> None:
    rows = [*enumerate([*good, None]), *enumerate(bad, 100)]
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)", ("INSERT INTO t VALUES (?, ?)", rows))
    table(server, kind)
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", server, force=True)
    why = f"a value that the domain {name} refuses"
    assert refused.value.report.plan.faults == [("t", "a", f"[{100 + n}]", why) for n, _ in enumerate(bad)]
    assert rows_of(server, "t") == []

    report = migrated(tmp_path / "a.db", server, force=True, on_bad="replace")
    assert (report.is_same, report.tables[0].replaced, report.tables[0].copied) == (True, len(bad), len(rows))
    with walpool.get_pool(server) as pool:
        assert pool.fetch("SELECT a FROM t WHERE id >= 100") == [(becomes,)] * len(bad)
    assert migrated(tmp_path / "a.db", server, verify=True).is_same

    table(server, kind)
    skipped = tmp_path / "bad.jsonl"
    report = migrated(tmp_path / "a.db", server, force=True, on_bad="skip", bad_path=skipped)
    assert (report.is_same, report.tables[0].skipped, report.tables[0].copied) == (True, len(bad), len(good) + 1)
    assert [json.loads(line)["why"] for line in skipped.read_text().splitlines()] == [{"a": why}] * len(bad)
    with walpool.get_pool(server) as pool:
        pool.execute("DELETE FROM t WHERE id = 0")
    assert migrated(tmp_path / "a.db", server, verify=True).tables[0].missing == [[0]]
    assert migrated(tmp_path / "a.db", server, repair=True).is_same


def test_null_that_a_domain_refuses_is_found_first(tmp_path: Path, server: str, migrated: Migrated) -> None:
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, 'x'), (2, NULL)"
    fill(tmp_path / "a.db", script)
    for kind, said in (("there", "the domain there refuses"), ("small", "NULL in a column that must not hold one")):
        table(server, kind)
        with pytest.raises(Refused) as refused:
            migrated(tmp_path / "a.db", server, force=True)
        assert said in next(fault.why for fault in refused.value.report.plan.faults if fault.key == "[2]")


def test_bad_value_that_nothing_may_stand_for_is_refused_first(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, 5), (2, 500)")
    table(server, "small")  # takes neither NULL nor 0
    arguments = ["migrate", str(tmp_path / "a.db"), server, "--force", "--on-bad"]
    assert cli.main([*arguments, "replace"]) == 2
    said = "t.a: the domain small, positive refuses what bad values are replaced with, too"
    assert said in capsys.readouterr().err
    assert rows_of(server, "t") == []
    assert cli.main([*arguments, "skip-to-file", str(tmp_path / "bad.jsonl")]) == 0
    assert rows_of(server, "t") == [(1, 5)]


def test_key_that_a_domain_refuses_is_left_out_with_its_row(tmp_path: Path, server: str, migrated: Migrated) -> None:
    rows = [(n, "x") for n in range(-3, 300)]
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)", ("INSERT INTO t VALUES (?, ?)", rows))
    table(server, "text", key="positive")
    report = migrated(tmp_path / "a.db", server, force=True, on_bad="skip")
    assert (report.is_same, report.tables[0].skipped) == (True, 4)
    with walpool.get_pool(server) as pool:
        pool.execute("UPDATE t SET a = 'changed' WHERE id = 7")
        pool.execute("DELETE FROM t WHERE id = 8")
    found = migrated(tmp_path / "a.db", server, verify=True).tables[0]
    assert (found.changed, found.missing, found.extra) == ([[7]], [[8]], [])
    assert migrated(tmp_path / "a.db", server, repair=True).is_same


def test_long_key_that_a_domain_refuses_is_that_domains(tmp_path: Path, server: str, migrated: Migrated) -> None:
    rows = [(1, "y" * 20), (2, "x" * 4000), (3, None)]
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)", ("INSERT INTO t VALUES (?, ?)", rows))
    with walpool.get_pool(server) as pool:
        pool.script("""CREATE DOMAIN no_x AS text CHECK (VALUE NOT LIKE '%x%');
            CREATE TABLE t (id bigint PRIMARY KEY, a no_x); CREATE INDEX ON t (a)""")
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", server, force=True)
    faults = refused.value.report.plan.faults
    assert [fault[2:] for fault in faults] == [("[2]", "a value that the domain no_x refuses")]


def test_more_refused_values_than_a_plan_names_are_an_obstacle(
    tmp_path: Path, server: str, migrated: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_judging, "_MOST", 2)
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, 0), (2, -1), (3, -2)")
    table(server, "positive")
    with pytest.raises(Refused, match=r"t\.a: the domain positive refuses more than 2 values"):
        migrated(tmp_path / "a.db", server, force=True, on_bad="skip")


def test_value_that_came_after_the_plan_is_named_when_the_domain_refuses_it(
    tmp_path: Path, server: str, migrated: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "find_barred", lambda *_: None)  # as if they had not been there
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, 5), (2, -5)")
    table(server, "positive")
    with pytest.raises(
        DataError, match=r"t\.a, key \[2\]: a value that the domain positive refuses came into the source"
    ):
        migrated(tmp_path / "a.db", server, force=True)
    assert rows_of(server, "t") == []


def test_enum_of_a_server_becomes_text_with_a_check_which_goes_back(
    tmp_path: Path, server: str, migrated: Migrated, postgres_url: str
) -> None:
    with walpool.get_pool(server) as pool:
        pool.script("""CREATE TYPE nothing AS ENUM ();
            CREATE TABLE t (id int PRIMARY KEY, "M" mood, n nothing, ms mood[],
                g mine GENERATED ALWAYS AS ('it''s "bad"') STORED);
            INSERT INTO t VALUES (1, 'good', NULL, '{good}'), (2, NULL, NULL, NULL)""")
    report = migrated(server, tmp_path / "a.db")
    assert report.is_same
    assert "M: mood becomes its text, with a CHECK that it is a label" in report.plan.tables[0].notes
    with walpool.Pool(tmp_path / "a.db") as pool:
        pool.execute("INSERT INTO t (id, \"M\") VALUES (3, 'it''s \"bad\"')")
        with pytest.raises(IntegrityError, match="CHECK"):
            pool.execute("UPDATE t SET \"M\" = 'Good'")
    with walpool.get_pool(server) as pool:
        pool.script("DROP TABLE t")
    assert migrated(tmp_path / "a.db", server, force=True).is_same
    with walpool.get_pool(server) as pool, pytest.raises(IntegrityError):
        pool.execute("UPDATE t SET \"M\" = 'Good'")
