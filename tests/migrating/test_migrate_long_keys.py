"""Keys that are too long for an index of PostgreSQL's: found by the plan, left out, or cut and yet told apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from migrations import Migrated, fill, rows_of

import walpool
from walpool.migrating import Refused

RANDOM = random.Random(7)
LONG = [RANDOM.randbytes(1800).hex() for _ in range(4)]  # hardly to be compressed
LONG[3] = LONG[0][:-1] + "x"
EVEN = "compressible " * 400


def bad(migrated: Migrated, source: Path, url: str, **options: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(Refused) as refused:
        migrated(source, url, **options)
    with walpool.get_pool(url) as pool:
        assert (
            pool.fetchval("SELECT count(*) FROM pg_class WHERE relname IN ('walpool_probe', 'walpool_migration')") == 0
        )
    return [(fault.table, fault.column, fault.why) for fault in refused.value.report.plan.faults]


@pytest.mark.parametrize("without", ["", "WITHOUT ROWID"])
def test_primary_key_that_is_too_long_is_found_first_and_one_that_can_be_compressed_is_not(
    tmp_path: Path, postgres_url: str, migrated: Migrated, without: str
) -> None:
    rows = [("short", 1), (EVEN, 2), *((key, 3) for key in LONG)]
    script = f"CREATE TABLE t (k TEXT PRIMARY KEY, n INT) {without}"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", rows))
    faults = bad(migrated, tmp_path / "a.db", postgres_url)
    assert faults == [("t", "k", "a key of 3600 bytes, too long for an index on k")] * 4

    path = tmp_path / "bad.jsonl"
    report = migrated(tmp_path / "a.db", postgres_url, on_bad="skip", bad_path=path)
    assert (report.is_same, report.tables[0].skipped, len(path.read_text().splitlines())) == (True, 4, 4)
    assert rows_of(postgres_url, "t") == sorted(rows[:2], key=repr)


def test_key_that_is_cut_still_differs_from_others_and_is_compared_and_repaired(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = "CREATE TABLE t (k TEXT PRIMARY KEY, n INT)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [(key, 3) for key in LONG]))
    report = migrated(tmp_path / "a.db", postgres_url, on_bad="replace")
    assert (report.is_same, report.tables[0].replaced) == (True, 4)
    with walpool.get_pool(postgres_url) as pool:
        found = [key for (key,) in pool.fetch("SELECT k FROM t")]
        assert sorted(key[:2484] for key in found) == sorted(key[:2484] for key in LONG)
        assert len(set(found)) == 4
        pool.execute("UPDATE t SET n = 4 WHERE k LIKE ? || '%'", (LONG[1][:100],))
        pool.execute("DELETE FROM t WHERE k LIKE ? || '%'", (LONG[2][:100],))
    (table,) = migrated(tmp_path / "a.db", postgres_url, verify=True).tables
    assert (table.changed, table.missing, table.extra) == ([[LONG[1]]], [[LONG[2]]], [])
    assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same


def test_keys_of_other_indexes_and_of_several_columns_and_of_tables_that_are_there_are_found(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = """
        CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT, y BLOB); CREATE UNIQUE INDEX xy ON a (x, y);
        CREATE TABLE b (x TEXT); CREATE INDEX bx ON b (x DESC);
        CREATE TABLE c (id INTEGER PRIMARY KEY, x TEXT);
    """
    half, rest = LONG[0][:1400], bytes.fromhex(LONG[1])
    fill(
        tmp_path / "a.db",
        script,
        ("INSERT INTO a VALUES (?, ?, ?)", [(1, half, b""), (2, half, rest), (3, None, rest), (4, None, rest)]),
        ("INSERT INTO b VALUES (?)", [(LONG[0],), ("x",), (LONG[0],)]),
        ("INSERT INTO c VALUES (?, ?)", [(1, LONG[0]), (2, "x")]),
    )
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE c (id bigint PRIMARY KEY, x varchar(9999)); CREATE INDEX ON c (x, id)")
    assert bad(migrated, tmp_path / "a.db", postgres_url, force=True) == [
        ("a", "y", "a key of 3200 bytes, too long for an index on x, y"),
        ("b", "x", "a key of 3600 bytes, too long for an index on x"),
        ("b", "x", "a key of 3600 bytes, too long for an index on x"),
        ("c", "x", "a key of 3616 bytes, too long for an index on x, id"),
    ]
    report = migrated(tmp_path / "a.db", postgres_url, force=True, on_bad="replace")
    assert report.is_same
    assert [table.replaced for table in report.tables] == [1, 2, 1]
    assert [(id_, len(x or ""), len(y)) for id_, x, y in rows_of(postgres_url, "a")] == [
        (1, 1400, 0),
        (2, 1250, 1250),
        (3, 0, 1800),
        (4, 0, 1800),
    ]
