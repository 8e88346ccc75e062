"""Tables that PostgreSQL has already, with columns of types that SQLite lacks: filled, compared, or refused."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from migrations import Migrated, fill

import walpool
from walpool.migrating import Column, Refused
from walpool.migrating._catalog import columns_of
from walpool.migrating._existing import _fitted
from walpool.migrating._postgres_sql import spelled
from walpool.postgres import Bulk, PostgresPool
from walpool.postgres.binary import Form
from walpool.postgres.spelling.spelling import Bad

GOOD: list[tuple[str, list[Any], list[str]]] = [
    # the type, what the file has, what the server has as its text
    (
        "jsonb",
        ['{"bb": 1, "a":[1.50,1e2] ,"a":2}', '"\\u00e9\\n"', "-0", '{"z":0,"é":{"y":-0.10}}'],
        ['{"a": 2, "bb": 1}', '"é\\n"', "0", '{"z": 0, "é": {"y": -0.10}}'],
    ),
    ("varchar(3)", ["abc", "äöü", "", "a  "], ["abc", "äöü", "", "a  "]),
    ("varchar", ["abc" * 100], ["abc" * 100]),
    ("char(4)", ["ab", "ab  ", "", "äöüß", "x       "], ["ab", "ab", "", "äöüß", "x"]),
    ("numeric(6,2)", [1, -1.5, "12.50", "9999.99", "1e2", 0.1, "NaN"], None),
    ("numeric(3,-2)", [12300, -99900, "0"], ["12300", "-99900", "0"]),
    ("numeric", [2**63 - 1, 1e300, "1.50", "-0.0", "Infinity", "12345678901234567890.12345678901234567890"], None),
    ("uuid", ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a12"], None),
    ("smallint", [-(2**15), 2**15 - 1], ["-32768", "32767"]),
    ("real", [0.5, -3, 1.0000000150474662e30, float("inf")], ["0.5", "-3", "1e+30", "Infinity"]),
    ("date", ["2024-02-29", "0001-01-01", "infinity"], ["2024-02-29", "0001-01-01", "infinity"]),
    (
        "timestamp",
        ["2024-02-29 23:59:59.123456", "2024-02-29T23:59", "2024-02-29 00:00:00.500", "-infinity"],
        ["2024-02-29 23:59:59.123456", "2024-02-29 23:59:00", "2024-02-29 00:00:00.5", "-infinity"],
    ),
    ("timestamp(0)", ["2024-02-29 23:59:59", "2024-02-29 23:59:59.000"], ["2024-02-29 23:59:59"] * 2),
    (
        "timestamptz",
        ["2024-02-29 23:59:59.1+00", "2024-02-29T23:59:59Z", "2024-03-01 01:30+02:30", "2024-02-29 12:00:00"],
        ["2024-02-29 23:59:59.1+00", "2024-02-29 23:59:59+00", "2024-02-29 23:00:00+00", "2024-02-29 12:00:00+00"],
    ),
    ("boolean", [0, 1], ["false", "true"]),
]


def there(url: str, kind: str, key: str = "bigint") -> None:
    with walpool.get_pool(url) as pool:
        pool.script(f"DROP TABLE IF EXISTS t; CREATE TABLE t (id {key} PRIMARY KEY, a {kind})")


def texts(url: str) -> list[tuple[Any, ...]]:
    with PostgresPool(url) as pool, Bulk(pool) as bulk, bulk.transaction(reads_only=True):
        return bulk.fetch("SELECT id::text, a::text FROM t ORDER BY t.id")


@pytest.mark.parametrize(("kind", "values", "expected"), GOOD, ids=[kind for kind, _, _ in GOOD])
def test_values_fill_a_column_that_is_there_and_go_back_and_fill_it_again(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str, values: list[Any], expected: list[str] | None
) -> None:
    rows = [*enumerate(values), (len(values), None)]
    # Without a declared type, SQLite keeps each value as it is.
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a)", ("INSERT INTO t VALUES (?, ?)", rows))
    there(postgres_url, kind)
    report = migrated(tmp_path / "a.db", postgres_url, force=True)
    assert report.is_same
    assert report.tables[0].copied == len(rows)
    found = [text for _, text in texts(postgres_url)]
    if expected is not None:
        assert found == [*expected, None]
    assert migrated(tmp_path / "a.db", postgres_url, verify=True).is_same

    back = tmp_path / "back.db"
    assert migrated(postgres_url, back).is_same
    there(postgres_url, kind)
    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP TABLE walpool_migration")
    assert migrated(back, postgres_url, force=True).is_same
    assert [text for _, text in texts(postgres_url)] == found


def test_one_value_in_two_spellings_is_the_same_to_the_comparison_and_another_value_is_not(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    columns = {"j": ('{"b":1.5,"a":[]}', "jsonb"), "n": ("1.50", "numeric(9,3)"), "c": ("x ", "char(5)")}
    listed = ", ".join(columns)
    fill(tmp_path / "a.db", f"CREATE TABLE t (id INTEGER PRIMARY KEY, {listed})")
    with walpool.Pool(tmp_path / "a.db") as pool:
        pool.execute("INSERT INTO t VALUES (1, ?, ?, ?)", [value for value, _ in columns.values()])
    with walpool.get_pool(postgres_url) as pool:
        kinds = ", ".join(f"{name} {kind}" for name, (_, kind) in columns.items())
        pool.script(f"""CREATE TABLE t (id bigint PRIMARY KEY, {kinds});
            INSERT INTO t VALUES (1, '{{"a": [], "b": 1.5}}', 1.5, 'x')""")
    report = migrated(tmp_path / "a.db", postgres_url, force=True)
    assert (report.is_same, report.repaired) == (True, 0)
    for name, other in (("j", '{"a": [], "b": 2}'), ("n", "1.501"), ("c", " x")):
        with walpool.get_pool(postgres_url) as pool:
            pool.execute(f"UPDATE t SET {name} = '{other}'")
        assert migrated(tmp_path / "a.db", postgres_url, verify=True).tables[0].changed == [[1]]
        assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same


def test_value_that_must_be_there_is_replaced_by_the_nothing_of_its_type(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    kinds = {
        "j": ("jsonb", "null"),
        "u": ("uuid", "00000000-0000-0000-0000-000000000000"),
        "d": ("date", "1970-01-01"),
        "s": ("timestamp", "1970-01-01 00:00:00"),
        "z": ("timestamptz", "1970-01-01 00:00:00+00"),
        "c": ("char(3)", ""),
        "r": ("real", "0"),
        "t": ("time", "00:00:00"),
        "tz": ("timetz", "00:00:00+00"),
        "v": ("interval", "PT0S"),
        "i": ("inet", "0.0.0.0/32"),
        "m": ("macaddr", "00:00:00:00:00:00"),
        "b": ("bit(3)", "000"),
        "vb": ("varbit", ""),
        "o": ("oid", "0"),
        "n": ("name", ""),
        "a": ("int[]", "{}"),
        "e": ("mood", "good"),
    }
    script = f"CREATE TABLE t (id INTEGER PRIMARY KEY, {', '.join(kinds)}); INSERT INTO t (id) VALUES (1)"
    fill(tmp_path / "a.db", script)
    with walpool.get_pool(postgres_url) as pool:
        listed = ", ".join(f"{name} {kind} NOT NULL" for name, (kind, _) in kinds.items())
        pool.script(f"CREATE TYPE mood AS ENUM ('good'); CREATE TABLE t (id bigint PRIMARY KEY, {listed})")
    report = migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="replace")
    assert (report.is_same, report.plan.faulty, report.tables[0].replaced) == (True, len(kinds), 1)
    with PostgresPool(postgres_url) as opened, Bulk(opened) as bulk, bulk.transaction(reads_only=True):
        shown = ", ".join(f"{name}::text" for name in kinds)
        assert bulk.fetch(f"SELECT {shown} FROM t") == [tuple(nothing for _, nothing in kinds.values())]


KEYS: list[tuple[str, list[Any], str]] = [
    # the type of the key, keys in the file, one that the server alone has
    ("uuid", [f"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD38{n:04X}" for n in range(400)], "'" + "f" * 32 + "'"),
    ("numeric(9,2)", [f"{n}.50" for n in range(2500)], "7777"),
    ("char(6)", [f"k{n} "[:6] for n in range(400)], "'other'"),
    ("timestamptz", [f"2024-01-01T{n // 60:02}:{n % 60:02}:00+01:00" for n in range(400)], "'2030-01-01'"),
    ("varchar(8)", [f"{chr(65 + n % 26)}{chr(97 + n % 25)}{n}" for n in range(400)], "'other'"),
    ("real", [n / 2 for n in range(400)], "7777"),
]


@pytest.mark.parametrize(("kind", "keys", "other"), KEYS, ids=[kind for kind, _, _ in KEYS])
def test_rows_are_told_apart_by_keys_that_the_file_spells_in_its_own_way(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str, keys: list[Any], other: str
) -> None:
    declared = "REAL" if kind == "real" else "TEXT"
    script = f"CREATE TABLE t (id {declared} PRIMARY KEY, a TEXT)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [(key, "x") for key in keys]))
    there(postgres_url, "text", key=kind)
    assert migrated(tmp_path / "a.db", postgres_url, force=True).is_same
    with walpool.get_pool(postgres_url) as pool, walpool.Pool(tmp_path / "a.db") as file:
        file.execute("UPDATE t SET a = 'changed' WHERE id = ?", (keys[3],))
        pool.execute(f"DELETE FROM t WHERE id = CAST(? AS {kind})", (keys[5],))
        pool.execute(f"INSERT INTO t VALUES ({other}, 'extra')")
    (table,) = migrated(tmp_path / "a.db", postgres_url, verify=True).tables
    assert (table.changed, table.missing, len(table.extra)) == ([[keys[3]]], [[keys[5]]], 1)
    report = migrated(tmp_path / "a.db", postgres_url, repair=True)
    assert (report.is_same, report.repaired) == (True, 3)


def test_keys_that_are_one_to_the_server_are_refused_by_name(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    keys = [str(uuid.UUID(int=n)) for n in (10, 11, 12)]
    rows = [(key, 1) for key in [*keys, keys[0].upper(), "none"]]
    fill(tmp_path / "a.db", "CREATE TABLE t (id TEXT PRIMARY KEY, a INT)", ("INSERT INTO t VALUES (?, ?)", rows))
    there(postgres_url, "int", key="uuid")
    with pytest.raises(Refused, match="2 keys are only several spellings") as refused:
        migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="skip")
    assert keys[0].upper() in str(refused.value)
    assert keys[1] not in str(refused.value)


def test_column_that_must_be_filled_and_that_the_source_lacks_is_refused(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (id bigint PRIMARY KEY, a text NOT NULL, b text NOT NULL DEFAULT 'x')")
    with pytest.raises(Refused, match=r"t\.a: the source has no such column"):
        migrated(tmp_path / "a.db", postgres_url, force=True)


KINDS_BACK = [
    ("integer", "INTEGER", None),
    ("integer", "VARCHAR(9)", "makes texts of numbers"),
    ("integer", "DOUBLE", "makes numbers with a point of integers"),
    ("boolean", "BOOLEAN", None),
    ("double precision", "INTEGER", None),
    ("double precision", "CHAR", "makes texts of numbers"),
    ("numeric(9,2)", "DECIMAL(9,2)", "makes numbers of texts"),
    ("numeric(9,2)", "TEXT", None),
    ("jsonb", "JSON", "makes numbers of texts"),
    ("varchar(9)", "NUMERIC", "makes numbers of texts"),
    ("char(9)", "", None),
    ("uuid", "UUID", None),
    ("timestamptz", "DATETIME", None),
    ("date", "DATE", None),
]
OF_KIND = {"uuid": str(uuid.UUID(int=7)), "timestamptz": "2024-02-29 12:00:00", "date": "2024-02-29", "boolean": "true"}


@pytest.mark.parametrize(("kind", "declared", "said"), KINDS_BACK)
def test_table_that_is_there_in_a_file_is_filled_where_its_columns_keep_what_they_get(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str, declared: str, said: str | None
) -> None:
    fill(tmp_path / "a.db", f"CREATE TABLE t (id INTEGER PRIMARY KEY, a {declared})")
    there(postgres_url, kind)
    with walpool.get_pool(postgres_url) as pool:
        pool.execute(f"INSERT INTO t VALUES (1, NULL), (2, '{OF_KIND.get(kind, '7')}')")
    if said is None:
        assert migrated(postgres_url, tmp_path / "a.db", force=True).is_same
    else:
        with pytest.raises(Refused, match=rf"t\.a: a column that is declared .* {said}"):
            migrated(postgres_url, tmp_path / "a.db", force=True)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)
NUMBERS = st.from_regex(r"[+-]?[0-9]{1,25}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
MEMBERS = r'\{("a{0,3}"\s?:\s?[0-9]{1,3}(\.[0-9]+)?([eE]-?[0-9])?,){0,4}"b":"(\\u[0-9a-f]{4})?"\}'
WRITTEN = {
    "jsonb": st.one_of(
        JSONS.map(lambda value: json.dumps(value, indent=1)),
        JSONS.map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))),
        NUMBERS,
        st.from_regex(MEMBERS, fullmatch=True),
    ),
    "numeric": NUMBERS,
    "numeric(12,4)": NUMBERS,
    "numeric(5,-2)": NUMBERS,
    "numeric(3,6)": st.decimals(-1, 1, allow_nan=False, places=7).map(lambda value: format(value, "f")),
    "char(5)": st.text(max_size=7),
    "varchar(5)": st.text(max_size=7),
    "uuid": st.uuids().map(str) | st.uuids().map(lambda value: value.hex.upper()),
    "timestamp": st.datetimes().map(str),
    "timestamp(2)": st.datetimes().map(str),
    "timestamptz": st.datetimes(timezones=st.timezones()).map(lambda value: value.isoformat()),
    "date": st.dates().map(str),
}


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_server_gives_back_is_reckoned_as_the_server_does(
    kind: str, data: st.DataObject, postgres_url: str
) -> None:
    written = data.draw(st.lists(WRITTEN[kind], min_size=1, max_size=20))
    with PostgresPool(postgres_url) as pool, Bulk(pool) as bulk, bulk.transaction():
        bulk.execute(f"CREATE TEMP TABLE x (a {kind}) ON COMMIT DROP")
        ((oid,),) = bulk.fetch("SELECT to_regclass('x')::oid::bigint")
        (given,) = columns_of(bulk, oid)
        column = _fitted(Column("a", Form.TEXT, "TEXT", "TEXT"), given, is_bytewise=True)
        assert column is not None
        taken = {}
        for text in written:
            with suppress(Bad):
                taken[text] = column.spelling.read(text, column.limits)
        query = f"SELECT {spelled(column)} FROM (SELECT CAST(CAST(? AS text) AS {kind}) AS a) AS v"
        found = [found for ((found,),) in bulk.fetch_each([(query, (text,)) for text in taken])]
        assert found == [*taken.values()]
