"""Values that a column of PostgreSQL's cannot take: found first by table, column and key, and replaced or left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from migrations import Migrated, fill

import walpool
from walpool.migrating import Refused
from walpool.postgres import Bulk, PostgresPool

BAD: list[tuple[str, str, str, str | None]] = [
    # the type, the value as SQL, what is said, what it is replaced by
    ("jsonb", "'{\"a\": NaN}'", "no JSON", '"{\\"a\\": NaN}"'),
    ("jsonb", "'{\"a\": '", "no JSON", '"{\\"a\\": "'),
    ("jsonb", "'[\"\\u0000\"]'", "a NUL (\\u0000)", '["\N{REPLACEMENT CHARACTER}"]'),
    ("jsonb", "'[\"\\ud83d\"]'", "surrogate", '["\N{REPLACEMENT CHARACTER}"]'),
    ("jsonb", "'[1e200000]'", "beyond the range of numeric", '"[1e200000]"'),
    ("jsonb", "printf('%.*c', 401, '[') || printf('%.*c', 401, ']')", "nested", f'"{"[" * 401}{"]" * 401}"'),
    ("jsonb", "7", "INTEGER in a column of text", "7"),
    ("json", "'nul'", "no JSON", '"nul"'),
    ("varchar(3)", "'abcd'", "more than 3 characters", "abc"),
    ("varchar(3)", "'abc  '", "more than 3 characters", "abc"),
    ("varchar(3)", "'a' || char(0)", "a NUL", "a\N{REPLACEMENT CHARACTER}"),
    (
        "varchar(3)",
        "CAST(x'61eda080' AS TEXT)",
        "not valid UTF-8",
        "a\ufffd\ufffd",
    ),
    ("varchar(3)", "x'6162'", "BLOB in a column of text", "ab"),
    ("char(2)", "'abc'", "more than 2 characters", "ab"),
    ("numeric(6,2)", "1.005", "digits beyond the scale", "1.01"),
    ("numeric(6,2)", "'0.001'", "digits beyond the scale", "0.00"),
    ("numeric(6,2)", "10000", "beyond the range of numeric(6,2)", None),
    ("numeric(6,2)", "'Infinity'", "an infinity", None),
    ("numeric(6,2)", "9e999", "an infinity", None),
    ("numeric(6,2)", "'ten'", "no number", None),
    ("numeric(2,4)", "'0.0100'", "beyond the range", None),
    ("numeric(3,-2)", "12345", "beyond the scale", "12300"),
    ("numeric", "x'31'", "BLOB in a column of numbers", None),
    ("numeric", "'1e131072'", "beyond the range of numeric", None),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1'", "no UUID", None),
    ("uuid", "x'a0eebc999c0b4ef8bb6d6bb9bd380a11'", "BLOB in a column of UUIDs", None),
    ("smallint", "40000", "beyond the range of smallint", None),
    ("real", "0.1", "real cannot hold", "0.1"),
    ("real", "1e300", "real cannot hold", None),
    ("real", "'x'", "TEXT in a column of numbers", None),
    ("date", "'2023-02-29'", "no calendar", None),
    ("date", "'2024-02-29 12:00:00'", "no date", "2024-02-29"),
    ("date", "19000", "INTEGER in a column of dates", None),
    ("timestamp", "'2024-02-29 23:59:59+02'", "offset", "2024-02-29 21:59:59"),
    ("timestamp", "'2024-02-29'", "no time", "2024-02-29 00:00:00"),
    ("timestamp", "'2024-02-29 23:59:59.1234567'", "more than 6 digits", "2024-02-29 23:59:59.123456"),
    ("timestamp(3)", "'2024-02-29 23:59:59.9999Z'", "more than 3 digits", "2024-02-29 23:59:59.999"),
    ("timestamptz", "'2024-02-29 23:59:60+00'", "no time", None),
    ("timestamptz", "'2024-02-30 23:59:00+00'", "no calendar", None),
    ("timestamptz", "'0001-01-01 00:00:00+01'", "beyond the years", None),
    ("timestamptz", "'2024-02-29 00:00:00+16'", "16 hours", None),
    ("timestamptz", "1709200000", "INTEGER in a column of times", None),
    ("boolean", "2", "other than 0 and 1", None),
    ("interval", "'1 day'", "no interval", None),
    ("interval", "'P'", "no interval", None),
    ("interval", "'P1.5D'", "no interval", None),
    ("interval", "'PT1.1234567S'", "more than 6 digits", "PT1.123456S"),
    ("interval(0)", "'PT1.5S'", "more than 0 digits", "PT1S"),
    ("interval", "'P200000000Y'", "beyond its range", None),
    ("interval", "86400", "INTEGER in a column of intervals", None),
    ("time", "'25:00'", "no time of a day", None),
    ("time", "'12:00+02'", "offset", "12:00:00"),
    ("time(2)", "'12:00:00.123'", "more than 2 digits", "12:00:00.12"),
    ("timetz", "'24:00:01+00'", "behind the end of a day", None),
    ("timetz", "'12:00:00.1234567+02'", "more than 6 digits", "12:00:00.123456+02"),
    ("timetz", "'12:00+16'", "16 hours", None),
    ("inet", "'10.0.0'", "no address", None),
    ("inet", "'10.0.0.1/33'", "no address", None),
    ("inet", "'fe80::1%eth0'", "no address", None),
    ("cidr", "'10.0.0.1/8'", "bits behind its mask", None),
    ("macaddr", "'08:00:2b:01:02'", "no address of 6 bytes", None),
    ("macaddr8", "'08:00:2b:01:02:03'", "no address of 8 bytes", None),
    ("bit(3)", "'10'", "another number of bits than 3", None),
    ("bit(3)", "'1x0'", "not made of 0 and 1", None),
    ("varbit(3)", "'1010'", "more than 3 bits", None),
    ("oid", "-1", "beyond the range of oid", None),
    ("oid", "4294967296", "beyond the range of oid", None),
    ("name", "printf('%064d', 0)", "a name of more than 63 bytes", "0" * 63),
    ("mood", "'bad'", "no label", None),
    ("mood", "'Good'", "no label", None),
    ("mood", "1", "INTEGER in a column of labels", None),
    ("int[]", "'[1,'", "no JSON by the standard", None),
    ("int[]", "'[NaN]'", "no JSON by the standard", None),
    ("int[]", "'{1,2}'", "no JSON by the standard", None),
    ("int[]", "'{\"a\": 1}'", "JSON that is no list", None),
    ("int[]", "'1'", "JSON that is no list", None),
    ("int[]", "7", "INTEGER in a column of arrays", None),
    ("int[]", "'[[1,2],[3]]'", "lists differ in length", None),
    ("int[]", "'[1,[2]]'", "elements beside lists", None),
    ("int[]", "'[[],[]]'", "lists without elements", None),
    ("int[]", "'[[[[[[[1]]]]]]]'", "more than 6 dimensions", None),
    ("int[]", "printf('%.*c', 20000, '[')", "no JSON by the standard", None),
    ("int[]", "'[\"1\"]'", "no number in an array of numbers", "{1}"),
    ("int[]", "'[1.5,2]'", "no integer in an array", "{NULL,2}"),
    ("int[]", "'[true]'", "no number in an array of numbers", "{1}"),
    ("int[]", "'[3000000000]'", "beyond the range of integer", "{NULL}"),
    ("int[]", "'[0:1]=[7,8]'", "subscripts do not begin at 1", "{7,8}"),
    ("boolean[]", "'[1]'", "neither true nor false", "{NULL}"),
    ("text[]", "'[1]'", "no string in an array of strings", "{1}"),
    ("text[]", "'[\"[0:1]=x\", 5]'", "no string in an array of strings", "{[0:1]=x,5}"),
    ("text[]", "'[\"\\u0000\"]'", "in an array, a NUL in text", "{�}"),
    ("text[]", "'[\"\\ud800\"]'", "half of a surrogate pair", None),
    ("varchar(2)[]", '\'["abc","a"]\'', "in an array, text of more than 2 characters", "{ab,a}"),
    ("real[]", "'[0.5,0.1]'", "real cannot hold", "{0.5,0.1}"),
    ("float8[]", "'[1e999]'", "beyond the range of double precision", "{NULL}"),
    ("float8[]", "'[9007199254740993]'", "an integer that a double cannot hold", "{9.007199254740992e+15}"),
    ("numeric(4,1)[]", "'[\"1.25\"]'", "beyond the scale", "{1.3}"),
    ("numeric[]", "'[{}]'", "no number in an array", "{NULL}"),
    ("bytea[]", "'[\"00ff\"]'", "no string as \\x00ff", '{"\\\\x30306666"}'),
    ("date[]", "'[\"2023-02-29\"]'", "in an array, a date that no calendar has", "{NULL}"),
    ("mood[]", '\'["good","bad"]\'', "in an array, TEXT that is no label", "{good,NULL}"),
    ("interval[]", "'[\"1 day\"]'", "in an array, TEXT that is no interval", "{NULL}"),
]


def found(url: str) -> list[tuple[str | None]]:
    """Return the texts of the column, in the order of keys."""
    with PostgresPool(url) as pool, Bulk(pool) as bulk, bulk.transaction(reads_only=True):
        return bulk.fetch("SELECT a::text FROM t ORDER BY id")


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, *_ in BAD))
def test_value_that_a_column_cannot_take_is_found_first_and_replaced_or_left_out(
    tmp_path: Path, postgres_url: str, migrated: Migrated, kind: str
) -> None:
    bad = [(value, said, becomes) for each, value, said, becomes in BAD if each == kind]
    values = ", ".join(f"({number}, {value})" for number, (value, _, _) in enumerate(bad, 5))
    fill(tmp_path / "a.db", f"CREATE TABLE t (id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES (1, NULL), {values}")
    with walpool.get_pool(postgres_url) as pool:
        pool.script(f"CREATE TYPE mood AS ENUM ('good', 'b''ad'); CREATE TABLE t (id int PRIMARY KEY, a {kind})")
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", postgres_url, force=True)
    faults = refused.value.report.plan.faults
    assert [fault[:3] for fault in faults] == [("t", "a", f"[{number}]") for number, _ in enumerate(bad, 5)]
    for fault, (_, said, _) in zip(faults, bad, strict=True):
        assert said in fault.why
    assert found(postgres_url) == []

    report = migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="replace")
    assert (report.is_same, report.tables[0].replaced) == (True, len(bad))
    assert found(postgres_url) == [(None,), *((becomes,) for _, _, becomes in bad)]

    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t")
    skipped = tmp_path / "bad.jsonl"
    report = migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="skip", bad_path=skipped)
    assert (report.is_same, report.tables[0].skipped, report.tables[0].copied) == (True, len(bad), 1)
    assert [json.loads(line)["why"]["a"] for line in skipped.read_text().splitlines()] == [f.why for f in faults]
    assert found(postgres_url) == [(None,)]
