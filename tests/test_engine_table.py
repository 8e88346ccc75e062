"""One engine a file: whatever name leads to it, however often it is asked for, a process has one writer on it."""

from __future__ import annotations

import copy
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import WITHIN, Caller, queue_up, writer_held
from leftovers import open_descriptors

import walpool
from walpool import errors

Opener = Callable[[], walpool.Pool]


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table."""
    pool.script("CREATE TABLE t (a)")
    return pool


def is_same_engine(left: walpool.Pool, right: walpool.Pool) -> bool:
    """Whether a job of one is counted by the other."""
    before = right.stats()["jobs"]
    left.execute("CREATE TABLE IF NOT EXISTS probe (a)")
    return right.stats()["jobs"] == before + 1


# Names of a file


def test_every_name_of_a_file_leads_to_one_engine(
    table: walpool.Pool, database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(database)
    (tmp_path / "linked folder").symlink_to(tmp_path, target_is_directory=True)
    os.link(database, tmp_path / "hard.db")
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("WALPOOL_URL", str(database))
    openers: list[Opener] = [
        lambda: walpool.Pool(str(database)),
        lambda: walpool.Pool(os.path.join("..", database.name)),
        lambda: walpool.Pool(f"{tmp_path}/folder/../{database.name}"),
        lambda: walpool.Pool(tmp_path / "link.db"),
        lambda: walpool.Pool(tmp_path / "linked folder" / database.name),
        lambda: walpool.Pool(tmp_path / "hard.db"),
        lambda: walpool.Pool(f"walpool://{database}"),
        lambda: walpool.Pool(f"sqlite:///{database}"),
        lambda: walpool.get_pool(database),
        lambda: walpool.get_pool(f"walpool://{database}"),
        lambda: walpool.get_pool(),
    ]
    for opener in openers:
        with opener() as other:
            assert is_same_engine(other, table)
            assert (other.path, other is table) == (str(database), False)


def test_name_of_a_file_that_is_not_there_yet_leads_to_the_same_engine_as_its_link(tmp_path: Path) -> None:
    with walpool.Pool(tmp_path / "new.db") as first:
        (tmp_path / "link.db").symlink_to("new.db")
        with walpool.Pool(tmp_path / "link.db") as second:
            assert is_same_engine(first, second)


def test_path_is_the_real_one_whatever_happens_to_the_folder_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with walpool.Pool("test.db") as pool:
        monkeypatch.chdir("/")
        assert pool.path == str(tmp_path / "test.db")
        with copy.copy(pool) as other:
            assert is_same_engine(pool, other)
    assert not Path("/test.db").exists()


def test_opening_one_file_from_many_threads_at_once_makes_one_engine(
    database: Path, threads: Callable[[int, Callable[[int], walpool.Pool]], list[walpool.Pool]]
) -> None:
    pools = threads(16, lambda index: walpool.Pool(database))
    assert all(is_same_engine(pools[0], pool) for pool in pools)
    for pool in pools:
        pool.close()
    assert open_descriptors(database) == []


def test_opening_and_closing_from_many_threads_at_once_never_makes_two_writers(
    database: Path, threads: Callable[[int, Callable[[int], None]], list[None]]
) -> None:
    def come_and_go(index: int) -> None:
        for n in range(10):
            with walpool.Pool(database) as pool:
                pool.script("CREATE TABLE IF NOT EXISTS t (a)")
                pool.execute("INSERT INTO t VALUES (?)", (f"{index}/{n}",))

    threads(8, come_and_go)
    assert open_descriptors(database) == []
    with walpool.Pool(database) as pool:
        assert pool.fetchval("SELECT count(DISTINCT a) FROM t") == 80
        assert pool.stats()["busy_waits"] == 0


def test_two_handles_share_a_writer_and_its_queue(table: walpool.Pool, database: Path) -> None:
    with walpool.Pool(database) as other:
        with writer_held(table):
            waiting = queue_up(other, [lambda: other.execute("INSERT INTO t VALUES (1)")])
            assert table.stats()["jobs_waiting"] == 1
        assert waiting[0].outcome().rowcount == 1
        assert table.fetchval("SELECT a FROM t") == 1


def test_files_of_their_own_have_engines_of_their_own(table: walpool.Pool, tmp_path: Path) -> None:
    with walpool.Pool(tmp_path / "other.db") as other:
        assert not is_same_engine(other, table)


# Settings


def test_settings_that_were_not_given_are_taken_from_the_open_engine(database: Path) -> None:
    with walpool.Pool(database, readers=3, synchronous="normal"), walpool.Pool(database, readers=3) as other:
        assert other.execute("PRAGMA synchronous").rows == [(1,)]  # NORMAL


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"readers": 4}, "readers=4 was given, but the file is open in this process with readers=3"),
        ({"synchronous": "normal"}, 'synchronous="normal" was given'),
        ({"busy_timeout": 1.5}, "busy_timeout=1.5 s was given"),
        ({"foreign_keys": False}, "foreign_keys=off was given"),
        ({"wal_limit": 2**20}, "wal_limit=1 MiB was given"),
    ],
)
def test_explicit_setting_that_differs_is_refused(database: Path, given: dict[str, object], told: str) -> None:
    with walpool.Pool(database, readers=3) as pool:
        for opener in (walpool.Pool, walpool.get_pool):
            with pytest.raises(errors.ConfigError) as caught:
                opener(database, **given)
            assert told in str(caught.value)
        assert pool.fetchval("SELECT 1") == 1
    assert open_descriptors(database) == []
    with walpool.Pool(database, **given) as pool:
        assert pool.fetchval("SELECT 1") == 1


def test_setting_of_the_url_is_compared_too(database: Path) -> None:
    with walpool.Pool(f"walpool://{database}?readers=3"), pytest.raises(errors.ConfigError, match="readers=2"):
        walpool.Pool(f"walpool://{database}?readers=2")


def test_explicit_setting_that_agrees_is_accepted(database: Path) -> None:
    with walpool.Pool(database) as pool, walpool.Pool(database, synchronous="full", foreign_keys=True) as other:
        assert is_same_engine(pool, other)


def test_engine_of_the_last_handle_takes_its_settings_with_it(database: Path) -> None:
    walpool.Pool(database, readers=3).close()
    with walpool.Pool(database, readers=4) as pool:
        assert pool.settings.readers == 4


# Copies and pickles


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_is_a_handle_of_its_own_on_the_same_engine(
    database: Path, duplicate: Callable[[walpool.Pool], walpool.Pool]
) -> None:
    pool = walpool.Pool(database, readers=3, synchronous="normal")
    other = duplicate(pool)
    assert other is not pool
    assert is_same_engine(pool, other)
    assert (other.settings.readers, other.settings.synchronous) == (3, "normal")
    pool.close()
    assert other.fetchval("SELECT 1") == 1
    other.close()
    assert open_descriptors(database) == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_a_closed_pool_opens_the_file_again(database: Path, protocol: int) -> None:
    with walpool.get_pool(f"walpool://{database}?readers=3") as pool:
        pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (7)")
    with pickle.loads(pickle.dumps(pool, protocol)) as other:
        assert other.fetchval("SELECT a FROM t") == 7
        assert other.settings.readers == 3


def test_pickle_opens_the_file_in_another_process(table: walpool.Pool) -> None:
    table.execute("INSERT INTO t VALUES (7)")
    program = """if True:
        import pickle, sys
        with pickle.load(sys.stdin.buffer) as pool:
            print(pool.fetchval("SELECT a FROM t"))
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(table),
        capture_output=True,
        check=True,
        timeout=WITHIN,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == (b"7\n", b"")


# :memory:


def test_memory_is_private_to_each_pool_and_its_copies_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with walpool.Pool(":memory:") as first, walpool.Pool(":memory:") as second, copy.copy(first) as third:
        first.script("CREATE TABLE t (a)")
        for other in (second, third):
            with pytest.raises(errors.ProgrammingError, match="no such table"):
                other.fetch("SELECT * FROM t")
        assert len({pool.path for pool in (first, second, third)}) == 3
        assert first.execute("PRAGMA journal_mode").rows == [("wal",)]
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_memory_keeps_every_guarantee(threads: Callable[[int, Callable[[int], object]], list[object]]) -> None:
    with walpool.Pool(":memory:") as pool:
        pool.script("CREATE TABLE t (a)")
        with pool.read() as snapshot:
            threads(8, lambda index: pool.execute("INSERT INTO t VALUES (?)", (index,)))
            assert snapshot.fetchval("SELECT count(*) FROM t") == 0
        assert pool.fetchval("SELECT count(*) FROM t") == 8


# What cannot be opened


@pytest.mark.parametrize("url", ["postgresql://user:secret@host/db", "postgres://host/db"])
def test_a_server_is_refused_by_name_and_without_its_password(url: str) -> None:
    with pytest.raises(errors.ConfigError, match="get_pool") as refused:
        walpool.Pool(url)
    assert "secret" not in repr(refused.value)


def test_get_pool_without_a_name_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    with pytest.raises(errors.ConfigError, match="WALPOOL_URL"):
        walpool.get_pool()


def test_path_that_cannot_be_a_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "no such folder" / "test.db", tmp_path / "file" / "test.db"):
        with pytest.raises(errors.StorageError) as caught:
            walpool.Pool(path)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "no such folder").exists()


def test_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear all, " * 1000)
    with pytest.raises(errors.CorruptError, match="not an SQLite database"):
        walpool.Pool(path)
    assert path.read_text() == "Dear all, " * 1000
    assert open_descriptors(path) == []
    assert [found.name for found in tmp_path.iterdir()] == ["letter.txt"]


def test_failed_opening_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    path.write_text("no database yet" * 1000)
    with pytest.raises(errors.CorruptError):
        walpool.Pool(path)
    path.write_bytes(b"")
    with walpool.Pool(path) as pool:
        assert pool.fetchval("SELECT 1") == 1


def test_file_that_was_replaced_gets_an_engine_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    with walpool.Pool(path) as old:
        old.script("CREATE TABLE t (a); INSERT INTO t VALUES ('old')")
        old.checkpoint("truncate")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").rename(tmp_path / f"moved.db{suffix}")
        with walpool.Pool(path) as new:
            new.script("CREATE TABLE t (a); INSERT INTO t VALUES ('new')")
            with pytest.raises(errors.StorageError, match="removed or replaced"):
                old.execute("INSERT INTO t VALUES ('nowhere')")
            assert new.fetchval("SELECT a FROM t") == "new"
    with walpool.Pool(path) as new, walpool.Pool(tmp_path / "moved.db") as moved:
        assert (moved.fetchval("SELECT a FROM t"), new.fetchval("SELECT a FROM t")) == ("old", "new")


# Permissions


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_files_that_walpool_makes_have_file_mode(database: Path, mode: int) -> None:
    umask = os.umask(0o022)
    try:
        with walpool.Pool(database, file_mode=mode) as pool:
            pool.script("CREATE TABLE t (a)")
            made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    finally:
        os.umask(umask)
    assert made == dict.fromkeys(["test.db", "test.db-wal", "test.db-shm"], mode)


def test_files_are_private_unless_told_otherwise(pool: walpool.Pool, database: Path) -> None:
    pool.script("CREATE TABLE t (a)")
    for path in database.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_file_that_was_there_keeps_its_permissions(database: Path) -> None:
    database.touch()
    database.chmod(0o664)
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a)")
        for path in database.parent.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o664, path


# Opening while closing


def test_opening_waits_for_a_close_that_waits_for_a_reader(database: Path) -> None:
    first = walpool.Pool(database)
    first.script("CREATE TABLE t (a)")
    begun, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with first.read():
            begun.set()
            assert let_go.wait(WITHIN)

    holder = Caller(hold)
    assert begun.wait(WITHIN)
    closing = Caller(first.close)
    opening = Caller(lambda: walpool.Pool(database))
    let_go.set()
    assert (holder.outcome(), closing.outcome()) == (None, None)
    with opening.outcome() as second:
        assert second.execute("INSERT INTO t VALUES (1)").rowcount == 1
