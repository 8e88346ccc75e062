"""The WAL stays small beside hot writers; who keeps it from shrinking is named, and once he is gone it is cut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import COUNT_TO, WITHIN, Caller, eventually, other_process

import walpool
from tests.torture import Torture
from walpool import errors

pytestmark = pytest.mark.torture

MIB = 2**20
LIMIT = MIB
ROW = 8_000  # bytes
PAGE = 4_096
WRITE = "INSERT INTO t VALUES (?, ?) ON CONFLICT DO UPDATE SET data = excluded.data"
PINNING = "SELECT count(*) AS pinned FROM t"

# Reads, and stays in its snapshot until a line comes; then does what is asked of it, and waits for another line.
STRANGER = """
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
    conn.execute("BEGIN")
    conn.execute("SELECT count(*) FROM t").fetchall()
    print("reading", flush=True)
    sys.stdin.readline()
    conn.execute("COMMIT")
    for sql in sys.argv[2:]:
        conn.execute(sql).fetchall()
    print("done", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def opened(database: Path) -> Iterator[Callable[..., walpool.Pool]]:
    """Yield a function that opens a pool with a small `wal_limit`; in the end the file is found whole, and closed."""
    pools = []

    def open_pool(**settings: object) -> walpool.Pool:
        pool = walpool.Pool(database, wal_limit=LIMIT, **settings)
        pools.append(pool)
        pool.script("CREATE TABLE t (id INTEGER PRIMARY KEY, data)")
        return pool

    yield open_pool
    for pool in pools:
        assert pool.check() == []
        pool.close()


class HotWriters:
    """Threads that write rows of 8 kB over and over, and look at the WAL after each."""

    def __init__(self, pool: walpool.Pool, threads: int) -> None:
        self.pool = pool
        self.writes = [0] * threads
        self.largest = 0
        self.errors: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        try:
            while not self._is_over.is_set():
                n = self.writes[number]
                self.pool.execute(WRITE, (100 * number + n % 100, n.to_bytes(8, "big") * (ROW // 8)))
                self.writes[number] = n + 1
                self.largest = max(self.largest, wal_bytes(self.pool))
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread in `end`
            self.errors.append(error)

    def written(self) -> int:
        """Return the bytes that were written so far, at the least."""
        return sum(self.writes) * ROW

    def go_on_for(self, size: int) -> None:
        """Return when so many more bytes have been written, by each of the threads something."""
        until, before = self.written() + size, list(self.writes)
        eventually(lambda: (self.written() >= until and all(map(int.__lt__, before, self.writes))) or self.errors != [])

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * WITHIN)
        assert self.errors == []


@contextmanager
def hot_writers(pool: walpool.Pool, threads: int = 2) -> Iterator[HotWriters]:
    running = HotWriters(pool, threads)
    try:
        yield running
    finally:
        running.end()


def wal_bytes(pool: walpool.Pool) -> int:
    return Path(f"{pool.path}-wal").stat().st_size


def is_small(pool: walpool.Pool) -> bool:
    return wal_bytes(pool) <= LIMIT


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if "past wal_limit" in (text := record.getMessage())]


def is_seldom(warnings: list[str]) -> bool:
    """Whether the WAL was warned of once, and each further time when it had doubled, as far as the rounded MiB tell."""
    sizes = [int(text.split("the WAL has ")[1].split()[0]) for text in warnings]
    return sizes != [] and all(later >= 2 * earlier - 1 for earlier, later in pairwise(sizes))


def pinned_for(warning: str) -> float:
    return float(warning.split("pinned it for ")[1].split(maxsplit=1)[0])


@contextmanager
def reading_all_the_time(threads: int, read: Callable[[int], object]) -> Iterator[list[int]]:
    """Call `read(thread)` over and over on some threads, and yield how often each has."""
    is_over, reads = threading.Event(), [0] * threads

    def read_on(number: int) -> None:
        while not is_over.is_set():
            read(number)
            reads[number] += 1

    readers = [Caller(partial(read_on, number)) for number in range(threads)]
    try:
        yield reads
    finally:
        is_over.set()
        assert [reader.outcome() for reader in readers] == [None] * threads


@contextmanager
def held_snapshot(pool: walpool.Pool) -> Iterator[None]:
    with pool.read() as snapshot:
        count = snapshot.fetchval(PINNING)
        yield
        assert snapshot.fetchval(PINNING) == count


@contextmanager
def held_stream(pool: walpool.Pool) -> Iterator[None]:
    """Hold a stream in the middle of its rows."""
    pool.executemany(WRITE, [(1_000 + n, b"") for n in range(10)])
    with pool.stream("SELECT id AS pinned FROM t WHERE id >= 1000", chunk=2) as rows:
        assert next(iter(rows)) == (1_000,)
        yield
        assert len(list(rows)) in (8, 9)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("hold", [held_snapshot, held_stream])
def test_reader_that_stays_is_named_once_for_each_doubling_and_the_wal_is_cut_after_it(
    opened: Callable[..., walpool.Pool],
    caplog: pytest.LogCaptureFixture,
    torture: Torture,
    hold: Callable[[walpool.Pool], Iterator[None]],
) -> None:
    """
    reader                  writers                     keeper
    snapshot, SELECT
                            COMMIT, past wal_limit
                                                        incomplete; tries again, ever later; warns, names the reader
                            COMMIT, twice as much       warns once more
    ends it
                            COMMIT                      complete: the WAL is cut
    """
    pool = opened(transaction_timeout=120, synchronous="normal")
    with hot_writers(pool) as writers:
        with hold(pool):  # type: ignore[attr-defined]
            eventually(lambda: len(warnings_of(caplog)) > 0)
            for _ in range(torture.size(2, 40)):
                writers.go_on_for(8 * MIB)
            largest, told, stats = wal_bytes(pool), warnings_of(caplog), pool.stats()
        eventually(lambda: is_small(pool))
        writers.go_on_for(4 * LIMIT)
    eventually(lambda: is_small(pool))
    torture.tell(
        f"growth of the WAL under a {hold.__name__.removeprefix('held_')} that stays",
        tried=largest // MIB,
        unit="MiB",
        lost=0,
        note=f"{len(told)} warnings; checkpoints took {stats['checkpoint_ms_p99']:.0f} ms at p99 meanwhile",
    )
    assert largest > 16 * MIB
    assert all("a reader has pinned it" in text and "AS pinned FROM t" in text for text in told)
    assert is_seldom(told)
    assert stats["checkpoints_incomplete"] >= 3  # it was tried again and again, and the writers went on
    assert stats["jobs_failed"] == 0


def test_reader_is_taken_back_after_transaction_timeout_and_the_wal_is_cut(
    opened: Callable[..., walpool.Pool],
) -> None:
    pool = opened(transaction_timeout=1.0, synchronous="normal")
    with hot_writers(pool) as writers:
        with pool.read() as snapshot:
            snapshot.fetch(PINNING)
            eventually(lambda: not is_small(pool))
            eventually(lambda: pool.stats()["leases_revoked"] == 1)
            eventually(lambda: is_small(pool))
            with pytest.raises(errors.TransactionTimeout):
                snapshot.fetch(PINNING)
        writers.go_on_for(4 * LIMIT)
    eventually(lambda: is_small(pool))


@pytest.mark.crash
@pytest.mark.timeout(180)
def test_other_process_that_pins_the_wal_is_told_apart_from_short_reads_of_this_one(
    opened: Callable[..., walpool.Pool], caplog: pytest.LogCaptureFixture, torture: Torture
) -> None:
    pool = opened(synchronous="normal")
    size = torture.size(16, 200) * MIB
    with hot_writers(pool) as writers, other_process(STRANGER, pool.path) as stranger:
        with reading_all_the_time(2, lambda _: pool.fetch(COUNT_TO, (100_000,))):  # some milliseconds each
            eventually(lambda: wal_bytes(pool) > size and len(warnings_of(caplog)) > 0, within=100)
            largest, told = wal_bytes(pool), warnings_of(caplog)
        stranger.communicate("end\n\n", timeout=WITHIN)
        eventually(lambda: is_small(pool))
        writers.go_on_for(4 * LIMIT)
    eventually(lambda: is_small(pool))
    torture.tell(
        "growth of the WAL under a snapshot of another process",
        tried=largest // MIB,
        unit="MiB",
        lost=0,
        note=f"{len(told)} warnings",
    )
    assert is_seldom(told)
    # A read of milliseconds that takes a tenth of a second on a busy machine pins the WAL too, and may be named.
    assert all("another process pins it" in text or pinned_for(text) >= 0.1 for text in told)


@pytest.mark.timeout(180)
def test_wal_is_bounded_under_four_hot_writers_and_four_short_readers(
    opened: Callable[..., walpool.Pool], caplog: pytest.LogCaptureFixture, torture: Torture
) -> None:
    pool = opened(readers=4, synchronous="normal")
    point_read = partial(pool.fetchone, "SELECT id FROM t WHERE id = ?")
    with hot_writers(pool, 4) as writers:
        with reading_all_the_time(4, lambda number: point_read((number,))) as reads:
            for _ in range(torture.size(1, 60)):
                writers.go_on_for(12 * MIB)
        written, largest = writers.written(), writers.largest
    eventually(lambda: is_small(pool))
    torture.tell(
        "writes beside short reads without a gap",
        tried=written // MIB,
        unit="MiB",
        lost=0,
        note=f"the WAL grew to {largest / MIB:.1f} MiB at most, its limit is {LIMIT // MIB}; {sum(reads):,} reads",
    )
    assert largest < written / 2
    assert min(reads) > 0
    assert warnings_of(caplog) == []


BURSTS: dict[str, Callable[[walpool.Pool, list[tuple[int, bytes]]], object]] = {
    "executemany": lambda pool, rows: pool.executemany(WRITE, rows),
    "batch": lambda pool, rows: pool.batch([(WRITE, row) for row in rows]),
    "transaction": lambda pool, rows: pool.run(lambda tx: tx.executemany(WRITE, rows)),
}


@pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)
def test_file_is_cut_after_a_burst_with_nobody_writing_afterwards(
    opened: Callable[..., walpool.Pool], burst: Callable[[walpool.Pool, list[tuple[int, bytes]]], object]
) -> None:
    pool = opened()
    for _ in range(3):
        burst(pool, [(n, bytes(ROW)) for n in range(500)])
        assert pool.pop_stats()["wal_frames_peak"] * PAGE > 3 * LIMIT
        eventually(lambda: is_small(pool))


@pytest.mark.crash
def test_file_that_another_process_left_large_is_cut_when_our_writer_begins_the_wal_anew(
    opened: Callable[..., walpool.Pool],
) -> None:
    """
    stranger                        this process
    snapshot
                                    burst: the WAL grows past its limit
    ends it, checkpoints, writes    (the WAL begins anew, in a file that stays large)
                                    checkpoint: complete, and short
                                    COMMIT: begins it anew, and cuts the file to journal_size_limit
    """
    pool = opened()
    acts = ["PRAGMA wal_checkpoint(PASSIVE)", "DELETE FROM t WHERE id = 0"]
    with other_process(STRANGER, pool.path, *acts) as stranger:
        pool.executemany(WRITE, [(n, bytes(ROW)) for n in range(500)])
        eventually(lambda: pool.stats()["checkpoints_incomplete"] >= 4)  # the next try is some 100 ms away
        assert not is_small(pool)
        checkpoints = pool.stats()["checkpoints"]
        stranger.communicate("end\n\n", timeout=WITHIN)
    eventually(lambda: pool.stats()["checkpoints"] > checkpoints)
    pool.execute(WRITE, (0, b""))
    assert is_small(pool)
