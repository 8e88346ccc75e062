"""A retired file in migrations: it is compared, repaired from and gone on from as any source, and is a target again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import run_python
from migrations import Migrated, fill, rows_of

import walpool
from walpool import ReadOnlyError, cli, memory
from walpool.migrating import unretire
from walpool.schema import successor

SCRIPT = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)"


@pytest.fixture
def retired(tmp_path: Path, postgres_url: str, migrated: Migrated) -> Path:
    """Return a file that was migrated and retired, with 50 rows."""
    fill(tmp_path / "a.db", SCRIPT, ("INSERT INTO t VALUES (?, ?)", [(n, f"row {n}") for n in range(50)]))
    assert migrated(tmp_path / "a.db", postgres_url, retire=True).is_retired
    return tmp_path / "a.db"


def is_written(path: Path) -> bool:
    with walpool.Pool(path) as pool:
        try:
            pool.execute("UPDATE t SET a = a")
        except ReadOnlyError:
            return False
        return True


@pytest.mark.parametrize("live", [False, True])
def test_retired_source_is_compared_and_repaired_from(
    retired: Path, postgres_url: str, migrated: Migrated, caplog: pytest.LogCaptureFixture, live: bool
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t WHERE id = 7")
    assert not migrated(retired, postgres_url, verify=True).is_same
    repaired = migrated(retired, postgres_url, repair=True, live=live, retire=True)
    assert (repaired.is_same, repaired.repaired, repaired.is_retired) == (True, 1, True)
    assert migrated(retired, postgres_url, verify=True).is_same
    assert caplog.records == []  # nobody who migrates it writes it by mistake
    assert not is_written(retired)


def test_migration_from_a_retired_source_goes_on_after_it_was_killed(
    retired: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP TABLE t; DROP TABLE walpool_migration")
    dying = """
        import os, sys
        from walpool.migrating import Options, migrate
        def shown(done, total, what):
            if what.startswith("verify"):
                os._exit(9)
        try:
            migrate(sys.argv[1], sys.argv[2], Options(), shown)
        finally:
            os._exit(1)
    """
    with pytest.raises(AssertionError):
        run_python(dying, retired, postgres_url)
    assert migrated(retired, postgres_url, resume=True).is_same
    assert rows_of(postgres_url, "t") == rows_of(retired, "t")


def test_way_back_writes_a_retired_file_and_leaves_its_mark(
    retired: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("INSERT INTO t VALUES (100, 'from the server')")
    report = migrated(postgres_url, retired, force=True)
    assert report.is_same
    assert rows_of(retired, "t") == rows_of(postgres_url, "t")
    assert any("walpool unretire" in note for note in report.notes)
    assert not is_written(retired)


def test_cut_over_on_the_way_back_takes_the_mark_off(retired: Path, postgres_url: str, migrated: Migrated) -> None:
    report = migrated(postgres_url, retired, force=True, retire=True)
    assert report.is_same
    assert not report.is_retired
    assert not any("walpool unretire" in note for note in report.notes)
    assert is_written(retired)


def test_cut_over_that_ends_with_a_difference_leaves_the_mark(
    retired: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.Pool(retired, write_retired=True) as pool:
        pool.execute("INSERT INTO t VALUES (200, 'of the file alone')")
    assert not migrated(postgres_url, retired, force=True, retire=True).is_same
    assert not is_written(retired)


def test_memories_of_a_retired_file_are_moved_and_stay_readable(tmp_path: Path, postgres_url: str) -> None:
    source = str(tmp_path / "m.db")
    with memory.open(source) as store:
        store.save([memory.Record(id="1", content="one")])
    assert cli.main(["migrate", source, postgres_url, "--retire"]) == 0
    with memory.open(source) as store, memory.open(postgres_url) as moved:
        assert list(store.iterate()) == list(moved.iterate())
        with pytest.raises(ReadOnlyError):
            store.save([memory.Record(id="2", content="two")])
    with memory.open(postgres_url) as moved:
        moved.save([memory.Record(id="2", content="two")])
    assert cli.main(["migrate", postgres_url, source, "--force", "--retire"]) == 0
    with memory.open(source) as store:
        assert sorted(record.id for record in store.iterate()) == ["1", "2"]
        store.save([memory.Record(id="3", content="three")])


def test_unretire_returns_what_the_mark_named(retired: Path, postgres_url: str) -> None:
    with walpool.Pool(retired) as pool:
        named = successor(pool)
    assert unretire(os.fspath(retired)) == named
    assert unretire(retired) is None
    assert is_written(retired)
