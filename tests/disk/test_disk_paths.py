"""Paths at which there is no usable database: each is told at open, by its class, and works once it is mended."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import run_python
from leftovers import open_descriptors

import walpool
from walpool import errors

NOBODY = 65534  # root passes every check of permissions


def make_rows(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1)")


def rows(database: Path) -> list[tuple[object, ...]]:
    with walpool.Pool(database) as pool:
        pool.execute("INSERT INTO t VALUES (2)")
        return pool.fetch("SELECT a FROM t ORDER BY a")


def folder_in_the_way(database: Path) -> None:
    database.mkdir()


def no_folder(database: Path) -> Path:
    return database.parent / "missing" / "test.db"


def file_for_a_folder(database: Path) -> Path:
    database.write_bytes(b"")
    return database / "test.db"


def link_to_itself(database: Path) -> None:
    database.symlink_to(database)


def name_too_long(database: Path) -> Path:
    return database.parent / ("x" * 300)


def fifo(database: Path) -> None:
    os.mkfifo(database)


def device(_: Path) -> Path:
    return Path("/dev/full")


@pytest.mark.parametrize(
    "make",
    [folder_in_the_way, no_folder, file_for_a_folder, link_to_itself, name_too_long, fifo, device],
    ids=lambda make: make.__name__,
)
def test_path_that_is_no_file_is_a_storage_error(database: Path, make: Callable[[Path], Path | None]) -> None:
    path = make(database) or database
    before = sorted(database.parent.iterdir())
    with pytest.raises(errors.StorageError) as caught:
        walpool.Pool(path)
    assert caught.value.outcome == "not_applied"
    assert str(path) in str(caught.value)
    if make is not link_to_itself:
        assert open_descriptors(path) == []
    assert sorted(database.parent.iterdir()) == before


def test_link_to_a_file_that_is_not_there_yet_makes_it(database: Path) -> None:
    link = database.with_name("link.db")
    link.symlink_to(database.name)
    make_rows(link)
    assert rows(database) == [(1,), (2,)]


@pytest.mark.parametrize("content", [b"a text", b"a longer text" * 1_000], ids=["short", "long"])
def test_file_that_is_no_database_is_corrupt_and_left_alone(database: Path, content: bytes) -> None:
    database.write_bytes(content)
    with pytest.raises(errors.CorruptError) as caught:
        walpool.Pool(database)
    assert caught.value.sqlite_errorname == "SQLITE_NOTADB"
    assert database.read_bytes() == content
    assert sorted(path.name for path in database.parent.iterdir()) == [database.name]


def test_empty_file_is_a_new_database_and_keeps_its_permissions(database: Path) -> None:
    database.write_bytes(b"")
    database.chmod(0o640)
    make_rows(database)
    assert rows(database) == [(1,), (2,)]
    assert stat.S_IMODE(database.stat().st_mode) == 0o640


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_folder_where_a_file_of_sqlite_must_be_is_a_storage_error_until_it_is_gone(database: Path, suffix: str) -> None:
    make_rows(database)
    in_the_way = Path(f"{database}{suffix}")
    in_the_way.mkdir()
    with pytest.raises(errors.StorageError) as caught:
        walpool.Pool(database)
    assert caught.value.sqlite_errorname is not None
    assert open_descriptors(database) == []
    in_the_way.rmdir()
    assert rows(database) == [(1,), (2,)]


# Permissions

OPENING = """
    import os, sys
    import walpool
    from walpool import errors
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    try:
        pool = walpool.Pool(sys.argv[1])
    except errors.Error as error:
        print("refused:", type(error).__name__, error.outcome, error.sqlite_errorname)
        sys.exit()
    with pool:
        pool.execute("INSERT INTO t VALUES (2)")
        print(pool.fetch("SELECT a FROM t"))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that anybody may reach, which is not so of pytest's own; it belongs to the user who opens."""
    folder = Path(tempfile.mkdtemp())
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def opened_by_nobody(database: Path) -> str:
    return run_python(OPENING, database, NOBODY)[0].strip()


def make_for_nobody(database: Path) -> None:
    with sqlite3.connect(database) as conn:
        conn.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    conn.close()
    if os.getuid() == 0:
        os.chown(database, NOBODY, NOBODY)


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="permissions are those of POSIX")
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "name"),
    [
        (0o555, 0o644, "SQLITE_READONLY_DIRECTORY"),  # no WAL can be made
        (0o755, 0o444, "SQLITE_READONLY"),
        (0o755, 0o000, "SQLITE_CANTOPEN"),
        (0o555, None, "None"),  # no file can be made
    ],
    ids=["read-only folder", "read-only file", "file that may not be read", "no file in a read-only folder"],
)
def test_what_may_not_be_written_is_refused_at_open_and_works_when_it_may(
    open_folder: Path, folder_mode: int, file_mode: int | None, name: str
) -> None:
    database = open_folder / "test.db"
    if file_mode is not None:
        make_for_nobody(database)
        database.chmod(file_mode)
    open_folder.chmod(folder_mode)
    assert opened_by_nobody(database) == f"refused: StorageError not_applied {name}"
    open_folder.chmod(0o755)
    if file_mode is not None:
        database.chmod(0o644)
        assert opened_by_nobody(database) == "[(1,), (2,)]"


def test_wal_that_may_only_be_read_is_refused_at_open(open_folder: Path) -> None:
    # Left by a user who crashed, it is all that stands between the next one and the newest commits.
    database = open_folder / "test.db"
    make_for_nobody(database)
    keeper = sqlite3.connect(database)
    keeper.execute("INSERT INTO t VALUES (1)")
    keeper.commit()
    wal = Path(f"{database}-wal")
    left = wal.read_bytes()
    keeper.close()
    wal.write_bytes(left)
    wal.chmod(0o444)
    assert opened_by_nobody(database) == "refused: StorageError not_applied SQLITE_READONLY"
    wal.chmod(0o666)
    assert opened_by_nobody(database).startswith("[(1,)")
