"""Arrays: JSON in a file, with or without spaces; subscripts that JSON has no place for; arrays and others as keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from migrations import Migrated, fill, rows_of

import walpool
from walpool.errors import DataError
from walpool.migrating import Refused, Table


def there(url: str, script: str) -> None:
    with walpool.get_pool(url) as pool:
        pool.script(f"DROP TABLE IF EXISTS t, walpool_migration; {script}")


def test_array_in_another_spelling_is_the_same_to_the_comparison_and_another_array_is_not(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    rows = [(1, "[ 1,\n null ]", '[1.50,"2"]', '["\\u00e9", "a"]', "[[true],\t[false]]", '["P0Y1D"]', "[1e1, -0.0]")]
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, i, n, s, b, v, f)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", rows))
    kinds = "i int[], n numeric[], s varchar(2)[], b boolean[], v interval[], f float8[]"
    there(
        postgres_url,
        f"""CREATE TABLE t (id bigint PRIMARY KEY, {kinds});
        INSERT INTO t VALUES (1, '{{1,NULL}}', '{{1.50,2}}', '{{é,a}}', '{{{{t}},{{f}}}}', '{{1 day}}', '{{10,-0}}')""",
    )
    report = migrated(tmp_path / "a.db", postgres_url, force=True)
    assert (report.is_same, report.repaired) == (True, 0)
    for name, other in (("i", "{1,0}"), ("n", "{1.5,2}"), ("s", "{a,é}"), ("b", "{t,f}"), ("f", "{10,0}"), ("i", "{}")):
        with walpool.get_pool(postgres_url) as pool:
            pool.execute(f"UPDATE t SET {name} = '{other}'")
        assert migrated(tmp_path / "a.db", postgres_url, verify=True).tables[0].changed == [[1]]
        assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT s, b FROM t") == [(["é", "a"], [[True], [False]])]


ODD = """CREATE TABLE t (id int PRIMARY KEY, a int[], b text[] NOT NULL);
    INSERT INTO t VALUES (1, '{1,2}', '{}'), (2, '[0:1]={3,4}', '{}'), (3, NULL, '[-5:-5][2:3]={{x,NULL}}'),
        (4, NULL, '{y}')"""


def test_array_whose_subscripts_do_not_begin_at_1_is_found_first_and_replaced_or_left_out(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    there(postgres_url, ODD)
    with pytest.raises(Refused) as refused:
        migrated(postgres_url, tmp_path / "a.db")
    why = "an array whose subscripts do not begin at 1"
    assert refused.value.report.plan.faults == [("t", "a", "[2]", why), ("t", "b", "[3]", why)]
    assert not (tmp_path / "a.db").exists()

    report = migrated(postgres_url, tmp_path / "a.db", on_bad="replace")
    assert (report.is_same, report.tables[0].replaced) == (True, 2)
    expected = [(1, "[1,2]", "[]"), (2, "[3,4]", "[]"), (3, None, '[["x",null]]'), (4, None, '["y"]')]
    assert rows_of(tmp_path / "a.db", "t") == expected
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("UPDATE t SET a = '[7:7]={7}' WHERE id = 4")
    assert migrated(postgres_url, tmp_path / "a.db", verify=True).tables[0].changed == [[4]]
    assert migrated(postgres_url, tmp_path / "a.db", repair=True).is_same
    assert rows_of(tmp_path / "a.db", "t")[-1] == (4, "[7]", '["y"]')

    skipped = tmp_path / "bad.jsonl"
    report = migrated(postgres_url, tmp_path / "b.db", on_bad="skip", bad_path=skipped)
    assert (report.is_same, report.tables[0].skipped) == (True, 3)
    assert rows_of(tmp_path / "b.db", "t") == [expected[0]]
    lines = [json.loads(line)["row"] for line in skipped.read_text().splitlines()]
    assert lines[0] == {"id": 2, "a": "[0:1]=[3,4]", "b": "[]"}
    assert lines[1]["b"] == '[-5:-5][2:3]=[["x",null]]'


def test_odd_subscripts_that_come_after_the_plan_are_not_lost_in_silence(
    tmp_path: Path, postgres_url: str, migrated: Migrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walpool.migrating._postgres import PostgresSide

    there(postgres_url, ODD)
    monkeypatch.setattr(PostgresSide, "has_odd", lambda *_: False)  # as if they had not been there
    with pytest.raises(DataError, match=r"t\.a: an array whose subscripts do not begin at 1"):
        migrated(postgres_url, tmp_path / "a.db")


def test_odd_subscripts_that_the_target_has_differ_from_the_array_of_the_file(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, '[1,2]')"
    fill(tmp_path / "a.db", script)
    there(postgres_url, "CREATE TABLE t (id bigint PRIMARY KEY, a int[]); INSERT INTO t VALUES (1, '[0:1]={1,2}')")
    assert migrated(tmp_path / "a.db", postgres_url, force=True).tables[0].changed == [[1]]
    assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same


KEYS: list[tuple[str, list[str], list[Any], str]] = [
    # the type of the key, keys in the order of the server, as the file has them, one that the server alone has
    ("int[]", ["{}", "{1}", "{1,NULL}", "{2}", "{10}"], ["[]", "[1]", "[1,null]", "[2]", "[10]"], "[0:0]={5}"),
    ("text[]", ['{","}', '{"\\\\"}', "{a}", "{b,a}"], ['[","]', '["\\\\"]', '["a"]', '["b","a"]'], '{{a},{"}"}}'),
    ("numeric", ["-1", "9", "10", "100.50"], ["-1", "9", "10", "100.50"], "7"),
    ("interval", ["-1 day", "9 days", "1 mon 1 day"], ["P-1D", "P9D", "P1M1D"], "1 hour"),
    ("inet", ["10.0.0.9", "10.0.0.10", "::1"], ["10.0.0.9/32", "10.0.0.10/32", "::1/128"], "10.0.0.11"),
    ("mood", ["good", "bad", "awful"], ["good", "bad", "awful"], "new"),
    ("mine", ["good", "bad", "awful"], ["good", "bad", "awful"], "new"),
    ("timetz", ["12:00+02", "11:00+00"], ["12:00:00+02", "11:00:00+00"], "10:00-05"),
    ("bit(2)", ["00", "01", "11"], ["00", "01", "11"], "10"),
    ("oid", ["9", "10"], [9, 10], "11"),
    ("int4range", ["empty", "[9,10)", "[10,11)"], ["empty", "[9,10)", "[10,11)"], "[1,2)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "keys", "spelled", "other"), KEYS, ids=[kind for kind, *_ in KEYS])
def test_rows_are_told_apart_by_keys_of_any_type_in_pages_of_any_size(
    tmp_path: Path,
    postgres_url: str,
    migrated: Migrated,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    keys: list[str],
    spelled: list[Any],
    other: str,
) -> None:
    monkeypatch.setattr(Table, "page", property(lambda _: 2))
    there(postgres_url, f"""CREATE TYPE mood AS ENUM ('good', 'bad', 'awful', 'new'); CREATE DOMAIN mine AS mood;
        CREATE TABLE t (id {kind} PRIMARY KEY, a text)""")  # fmt: skip
    with walpool.get_pool(postgres_url) as pool:
        pool.executemany(f"INSERT INTO t VALUES (CAST(CAST(? AS text) AS {kind}), 'x')", [(key,) for key in keys])
        assert migrated(postgres_url, tmp_path / "a.db").is_same
        pool.execute(f"UPDATE t SET a = 'changed' WHERE id::text = CAST(CAST(? AS text) AS {kind})::text", (keys[0],))
        assert migrated(postgres_url, tmp_path / "a.db", verify=True).tables[0].changed == [[spelled[0]]]
        assert migrated(postgres_url, tmp_path / "a.db", repair=True).is_same
        pool.execute("DELETE FROM t")
    assert sorted(key for key, _ in rows_of(tmp_path / "a.db", "t")) == sorted(spelled)
    if kind == "int4range":  # which is not filled
        return
    assert migrated(tmp_path / "a.db", postgres_url, force=True).is_same
    with walpool.Pool(tmp_path / "a.db") as file:
        file.execute("UPDATE t SET a = 'again' WHERE id = ?", (spelled[0],))
    with walpool.get_pool(postgres_url) as pool:
        pool.execute(f"DELETE FROM t WHERE id::text = CAST(CAST(? AS text) AS {kind})::text", (keys[1],))
        pool.execute(f"INSERT INTO t VALUES (CAST(CAST(? AS text) AS {kind}), 'extra')", (other,))
    (table,) = migrated(tmp_path / "a.db", postgres_url, verify=True).tables
    assert (table.changed, table.missing, len(table.extra)) == ([[spelled[0]]], [[spelled[1]]], 1)
    report = migrated(tmp_path / "a.db", postgres_url, repair=True)
    assert (report.is_same, report.repaired) == (True, 3)


@pytest.mark.parametrize(
    ("kind", "twins", "others"),
    [
        ("interval", ["P1M", "P30D", "PT720H"], ["P1D", "P29D"]),
        ("numeric[]", ['["1.0"]', '["1.00"]', "[1]"], ['["1.01"]']),
        ("float8[]", ["[0.0]", "[-0]"], ["[0,0]"]),
        ("interval[]", ['["P1M"]', '["P30D"]'], ["[null]", "[]"]),
        ("macaddr", ["08:00:2b:01:02:03", "08-00-2B-01-02-03"], ["08:00:2b:01:02:04"]),
        ("numeric", ["1.5", "1.50"], ["1.51"]),
    ],
)
def test_keys_that_are_one_to_the_server_are_refused_by_name(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str, twins: list[str], others: list[str]
) -> None:
    fill(
        tmp_path / "a.db",
        "CREATE TABLE t (id TEXT PRIMARY KEY)",
        ("INSERT INTO t VALUES (?)", [(key,) for key in [*others, *twins]]),
    )
    there(postgres_url, f"CREATE TABLE t (id {kind} PRIMARY KEY)")
    with pytest.raises(Refused, match=f"{len(twins)} keys are only several spellings"):
        migrated(tmp_path / "a.db", postgres_url, force=True)
    with walpool.Pool(tmp_path / "a.db") as file:
        file.executemany("DELETE FROM t WHERE id = ?", [(key,) for key in twins[1:]])
    assert migrated(tmp_path / "a.db", postgres_url, force=True).is_same


def test_array_that_is_too_long_for_an_index_is_found_first(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    long = json.dumps([n * n * n for n in range(1000)])
    rows = [(1, "[1]"), (2, long), (3, None)]
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)", ("INSERT INTO t VALUES (?, ?)", rows))
    there(postgres_url, "CREATE TABLE t (id bigint PRIMARY KEY, a int[]); CREATE INDEX ON t (a)")
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", postgres_url, force=True)
    (fault,) = refused.value.report.plan.faults
    assert fault[:3] == ("t", "a", "[2]")
    assert "too long for an index on a" in fault.why
    assert migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="replace").is_same
    assert rows_of(postgres_url, "t") == [(1, [1]), (2, None), (3, None)]
