"""Two databases that differ: the buckets, then the rows are named, and only those are copied; sources that are live."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers import Caller, start_python
from migrations import Migrated, fill, rows_of

import walpool
from walpool import doctor
from walpool.schema import successor

SCRIPT = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, n INTEGER UNIQUE)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    fill(tmp_path / "a.db", SCRIPT, ("INSERT INTO t VALUES (?, ?, ?)", [(n, f"row {n}", n) for n in range(5000)]))
    return tmp_path / "a.db"


def test_rows_that_differ_are_named_and_repaired(source: Path, postgres_url: str, migrated: Migrated) -> None:
    assert migrated(source, postgres_url).is_same
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("UPDATE t SET a = 'changed' WHERE id IN (3, 4999)")
        pool.execute("DELETE FROM t WHERE id BETWEEN 1000 AND 1009")
        pool.execute("INSERT INTO t VALUES (-1, 'extra', -1), (70000, 'extra', 70000)")
    found = migrated(source, postgres_url, verify=True)
    (table,) = found.tables
    assert not found.is_same
    assert table.buckets == [f"range {n} of 6" for n in (0, 1, 4, 5)]
    assert table.changed == [[3], [4999]]
    assert table.missing == [[n] for n in range(1000, 1010)]
    assert table.extra == [[-1], [70000]]

    repaired = migrated(source, postgres_url, repair=True)
    assert (repaired.is_same, repaired.repaired) == (True, 14)
    assert rows_of(postgres_url, "t") == rows_of(source, "t")


def test_unique_value_that_moved_to_another_row_is_repaired(
    source: Path, postgres_url: str, migrated: Migrated
) -> None:
    migrated(source, postgres_url)
    with walpool.Pool(source) as pool:
        pool.execute("DELETE FROM t WHERE id = 8")
        pool.execute("INSERT INTO t VALUES (9000, 'moved', 8)")
    assert migrated(source, postgres_url, repair=True).is_same


def test_changed_parent_keeps_its_children_through_a_repair(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = """CREATE TABLE p (id INTEGER PRIMARY KEY, a);
        CREATE TABLE c (id INTEGER PRIMARY KEY, p INT REFERENCES p ON DELETE CASCADE)"""
    jobs = ("INSERT INTO p VALUES (?, ?)", [(1, "a"), (2, "b")]), ("INSERT INTO c VALUES (?, ?)", [(1, 1), (2, 1)])
    fill(tmp_path / "a.db", script, *jobs)
    migrated(tmp_path / "a.db", postgres_url)
    with walpool.Pool(tmp_path / "a.db") as pool:
        pool.execute("UPDATE p SET a = 'new' WHERE id = 1")
        pool.execute("INSERT INTO p VALUES (3, 'c')")
        pool.execute("INSERT INTO c VALUES (9, 3)")
    assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same
    assert rows_of(postgres_url, "c") == [(1, 1), (2, 1), (9, 3)]


def test_table_that_is_there_gets_what_it_lacks_and_keeps_what_it_has(
    source: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (id bigint PRIMARY KEY, a varchar, n bigint); INSERT INTO t VALUES (3, 'mine', 3)")
        pool.execute("INSERT INTO t VALUES (-5, 'mine', -5)")
    report = migrated(source, postgres_url, force=True)
    (table,) = report.tables
    assert not report.is_same
    assert (table.missing, table.changed, table.extra) == ([], [[3]], [[-5]])
    assert report.repaired == 4999
    assert migrated(source, postgres_url, repair=True).is_same


# Writes until its file is retired, which its pool finds out by itself.
WRITER = """
    import sys, walpool
    with walpool.Pool(sys.argv[1], synchronous="normal") as pool:
        number = 10_000
        while True:
            number += 1
            jobs = [
                ("INSERT INTO t VALUES (?, 'live', ?)", (number, number)),
                ("UPDATE t SET a = a || '.' WHERE id = ?", (number % 5000,)),
                ("DELETE FROM t WHERE id = ?", (number - 20,)),
            ]
            try:
                pool.batch(jobs)
            except walpool.ReadOnlyError as error:
                assert error.outcome == "not_applied"
                break
            if number == 10_100:
                print("writing", flush=True)
    print(number)
"""


def test_source_that_is_written_to_is_equal_in_the_end_and_marked_as_retired(
    source: Path, postgres_url: str, migrated: Migrated
) -> None:
    #   writer            migration
    #   writes            plan, copy, compare, repair
    #   waits             compares, repairs, marks the source
    #   finds the mark
    writer = start_python(WRITER, source)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        report = migrated(source, postgres_url, live=True, retire=True)
        output, errors = writer.communicate(timeout=20)
    finally:
        writer.kill()
    assert (writer.returncode, errors) == (0, "")
    assert int(output) > 10_100
    assert report.is_same
    assert report.is_retired
    assert report.repaired > 0
    assert rows_of(source, "t") == rows_of(postgres_url, "t")


def test_server_that_is_written_to_is_equal_in_the_end(
    source: Path, postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    assert migrated(source, postgres_url).is_same
    stop, begun = threading.Event(), threading.Event()

    def write() -> int:
        number = 10_000
        with walpool.get_pool(postgres_url) as pool:
            while not stop.is_set():
                number += 1
                pool.execute("INSERT INTO t VALUES (?, 'live', ?)", (number, number))
                begun.set()
        return number

    writer = Caller(write)
    try:
        assert begun.wait(20)
        report = migrated(postgres_url, tmp_path / "back.db", live=True, retire=True)
    finally:
        stop.set()
    assert writer.outcome() > 10_001
    assert report.is_same
    assert any("not marked" in note for note in report.notes)
    back = rows_of(tmp_path / "back.db", "t")
    last = max(row[0] for row in back)
    assert back == [row for row in rows_of(postgres_url, "t") if row[0] <= last]


def test_retired_mark_names_the_successor_without_its_password(
    source: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.Pool(source) as pool:
        assert successor(pool) is None
    before = rows_of(source, "t")
    report = migrated(source, postgres_url, retire=True)
    assert report.is_retired
    with walpool.Pool(source) as pool:
        assert successor(pool) == report.plan.target
    (finding,) = [finding for finding in doctor.examine(str(source)) if finding.subject == "retired"]
    assert (finding.verdict, report.plan.target in finding.said) == ("warning", True)
    assert rows_of(source, "t") == before
