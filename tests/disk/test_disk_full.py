"""A full disk: writers are told, nothing acknowledged is lost, reads go on, and so does the pool when there is room.

The disk is a small file system in memory, which root may mount; a limit on the size of files does for everybody.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers import run_python
from leftovers import open_descriptors

import walpool
from tests.torture import Torture
from walpool import errors

DISK = 2 << 20  # bytes
WRITERS = 4
TABLE = "CREATE TABLE t (job, part, filling)"
INSERT = "INSERT INTO t VALUES (?, ?, zeroblob(?))"


class Disk:
    """A small file system, and a file that takes what room there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.filling = folder / "filling"

    def fill(self, *, but: int = 0) -> None:
        """Leave no room, or so many bytes."""
        with self.filling.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue  # no room for this much; there may be some for less
            file.truncate(max(0, file.tell() - but))

    def make_room(self) -> None:
        self.filling.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Yield a disk of 2 MiB; skip where it may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "walpool-test", str(folder)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"no file system may be mounted: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def database(disk: Disk) -> Path:
    return disk.folder / "test.db"


def write(pool: walpool.Pool, job: int, size: int) -> None:
    pool.batch([(INSERT, (job, part, size)) for part in range(2)])


def fill_by_writing(pool: walpool.Pool, jobs: Iterator[int], size: int = 30_000) -> tuple[set[int], errors.Error]:
    """Write until the disk is full; return what was acknowledged, and the error."""
    written = set()
    for job in jobs:
        try:
            write(pool, job, size)
        except errors.Error as error:
            return written, error
        written.add(job)
    raise AssertionError("the disk was never full")


def whole_jobs(database: Path) -> set[int]:
    """Return the jobs in the file as another SQLite sees it; each must be whole, and the file sound."""
    conn = sqlite3.connect(database)
    try:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("SELECT job, count(*) FROM t GROUP BY job").fetchall()
    finally:
        conn.close()
    assert all(parts == 2 for _, parts in rows)
    return {job for job, _ in rows}


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_full_disk_loses_nothing_and_the_pool_goes_on_when_there_is_room(
    disk: Disk, pool: walpool.Pool, torture: Torture, threads: Callable[..., list[object]]
) -> None:
    # Writers meet the full disk together, in groups and alone; between two rounds rows go and room comes.
    chance = random.Random("a full disk")
    pool.script(TABLE)
    acknowledged: set[int] = set()
    refused: set[int] = set()
    told = 0

    def writer(start: int, index: int) -> tuple[set[int], errors.Error]:
        jobs = iter(range(start + index, start + 1_000_000, WRITERS))
        return fill_by_writing(pool, jobs, size=chance.choice([100, 3_000, 30_000]))

    for round_number in range(torture.size(4, 150)):
        disk.fill(but=chance.randrange(300_000))
        for written, error in threads(WRITERS, partial(writer, round_number * 10_000_000)):
            assert type(error) is errors.StorageError, repr(error)
            assert error.outcome in ("not_applied", "unknown")
            acknowledged |= written
            told += 1
        seen = {job for (job,) in pool.fetch("SELECT DISTINCT job FROM t")}  # on the full disk
        assert acknowledged <= seen
        disk.make_room()
        write(pool, -round_number - 1, 10)
        pool.execute("DELETE FROM t WHERE job >= 0")
        pool.checkpoint("truncate")
        refused |= seen - acknowledged
        acknowledged = {-number - 1 for number in range(round_number + 1)}
    missing = acknowledged - {job for (job,) in pool.fetch("SELECT DISTINCT job FROM t")}
    torture.tell("a full disk", tried=told, unit="refused writes", lost=len(missing))
    assert missing == set()
    assert refused == set()  # nothing that was refused was seen either
    assert pool.check() == []


def test_refused_write_is_not_applied_after_the_file_is_opened_again(disk: Disk, database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script(TABLE)
        disk.fill(but=100_000)
        written, error = fill_by_writing(pool, iter(range(1_000)))
        assert (type(error), error.outcome) == (errors.StorageError, "not_applied")
        assert error.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")
        assert "free space on the disk" in str(error)
    assert open_descriptors(database) == []
    assert Path(f"{database}-wal").stat().st_size  # no room to move it into the file, so it stays
    disk.make_room()
    assert whole_jobs(database) == written


def test_transaction_on_a_full_disk_is_rolled_back_and_the_writer_given_back(disk: Disk, pool: walpool.Pool) -> None:
    pool.script(TABLE)
    disk.fill()

    def too_much(tx: walpool.Transaction) -> None:
        for part in range(2):
            tx.execute(INSERT, (1, part, 300_000))

    with pytest.raises(errors.StorageError) as caught:
        pool.run(too_much)
    assert caught.value.outcome == "not_applied"
    assert pool.fetch("SELECT * FROM t") == []
    disk.make_room()
    pool.run(too_much)
    assert pool.fetchval("SELECT count(*) FROM t") == 2


def test_checkpoint_on_a_full_disk_fails_and_leaves_all_in_the_wal(disk: Disk, pool: walpool.Pool) -> None:
    pool.script(TABLE)
    for job in range(5):
        write(pool, job, 30_000)
    disk.fill()
    with pytest.raises(errors.StorageError) as caught:
        pool.checkpoint("truncate")
    assert caught.value.sqlite_errorname == "SQLITE_FULL"
    assert pool.fetchval("SELECT count(*) FROM t") == 10
    disk.make_room()
    pool.checkpoint("truncate")
    assert Path(f"{pool.path}-wal").stat().st_size == 0
    assert pool.check() == []


def test_file_on_a_full_disk_cannot_be_opened_until_there_is_room(disk: Disk, database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.script(TABLE)
        write(pool, 1, 10)
    disk.fill()
    with pytest.raises(errors.StorageError):
        walpool.Pool(database)
    with pytest.raises(errors.StorageError):
        walpool.Pool(disk.folder / "new.db")
    assert open_descriptors(database) == []
    disk.make_room()
    for path, rows in ((database, 2), (disk.folder / "new.db", 0)):
        with walpool.Pool(path) as pool:
            pool.script("CREATE TABLE IF NOT EXISTS t (job, part, filling)")
            assert pool.fetchval("SELECT count(*) FROM t") == rows


def test_backup_to_a_full_disk_fails_and_leaves_nothing_behind(disk: Disk, tmp_path: Path) -> None:
    with walpool.Pool(tmp_path / "source.db") as pool:
        pool.script(TABLE)
        write(pool, 1, DISK)
        with pytest.raises(errors.StorageError):
            pool.backup(disk.folder / "copy.db")
        assert list(disk.folder.iterdir()) == []
        pool.execute("UPDATE t SET filling = NULL")
        pool.vacuum()
        pool.backup(disk.folder / "copy.db")
    assert whole_jobs(disk.folder / "copy.db") == {1}


def test_vacuum_on_a_full_disk_fails_and_changes_nothing(disk: Disk, pool: walpool.Pool) -> None:
    pool.script(TABLE)
    for job in range(10):
        write(pool, job, 30_000)
    pool.checkpoint("truncate")
    disk.fill()
    with pytest.raises(errors.StorageError):
        pool.vacuum()
    assert pool.fetchval("SELECT count(*) FROM t") == 20
    disk.make_room()
    pool.vacuum()
    assert pool.check() == []


LIMITED = """
    import json, resource, sys, threading
    import walpool
    from walpool import errors

    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (job, part, filling)")
    acknowledged, told = [], []

    def write(job):
        pool.batch([("INSERT INTO t VALUES (?, ?, zeroblob(3000))", (job, part)) for part in range(2)])

    def writer(index):
        for job in range(index, index + 100_000, 4):
            try:
                write(job)
            except errors.StorageError as error:
                told.append(error.outcome)
                return
            acknowledged.append(job)

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (300_000, 600_000, 900_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        threads = [threading.Thread(target=writer, args=(limit * 1_000 + index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    write(-1)
    print(json.dumps([sorted({*acknowledged, -1}), told]))
"""


def test_files_that_may_not_grow_are_a_full_disk_too(tmp_path: Path) -> None:
    # The process has a limit on the size of its files; Python ignores the signal that comes with it.

    acknowledged, told = json.loads(run_python(LIMITED, tmp_path / "test.db")[0])
    assert len(told) == 12
    assert set(told) <= {"not_applied", "unknown"}
    assert sorted(whole_jobs(tmp_path / "test.db")) == acknowledged
