"""Damaged files, and a pool that is used on each: run in a process of its own, which must not crash.

Prints a line before each attempt and one of JSON after it, so that the parent knows which was the last.
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import walpool

PAGE = 1024
HEADER = 100  # bytes
PAYLOAD = "SECRET"

SCHEMA = f"""
    PRAGMA page_size = {PAGE};
    PRAGMA journal_mode = WAL;
    CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT NOT NULL, filling BLOB);
    CREATE INDEX by_word ON t (word);
    CREATE TABLE pairs (a TEXT, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
    CREATE TABLE gone (a);
"""

USES: dict[str, Callable[[walpool.Pool], object]] = {
    "scan": lambda pool: pool.fetch("SELECT * FROM t"),
    "index": lambda pool: pool.fetch("SELECT id FROM t WHERE word > 'word 3' ORDER BY word"),
    "pairs": lambda pool: pool.fetch("SELECT * FROM pairs"),
    "check": lambda pool: pool.check(),
    "insert": lambda pool: pool.executemany(
        "INSERT INTO t (word, filling) VALUES (?, ?)", [(f"{PAYLOAD} {n}", bytes(700)) for n in range(20)]
    ),
    "update": lambda pool: pool.execute("UPDATE t SET word = word || 'x' WHERE id % 3 = 0"),
    "delete": lambda pool: pool.execute("DELETE FROM t WHERE id % 2 = 0"),
    "transaction": lambda pool: pool.run(lambda tx: tx.execute("INSERT INTO pairs VALUES ('new', 'pair')")),
    "checkpoint": lambda pool: pool.checkpoint("truncate"),
    "vacuum": lambda pool: pool.vacuum(),
    "still": lambda pool: pool.fetchval("SELECT 1"),
}


def make_database(path: Path) -> bytes:
    """Return the bytes of a database with every kind of page: inner, leaf, overflow, and free ones."""
    with sqlite3.connect(path) as conn:
        conn.executescript(SCHEMA)
        rows = [(f"word {n % 7}", bytes(range(256)) * (n % 13)) for n in range(60)]
        conn.executemany("INSERT INTO t (word, filling) VALUES (?, ?)", rows)
        conn.executemany("INSERT INTO pairs VALUES (?, ?)", [(f"a {n}", f"b {n}") for n in range(80)])
        conn.executemany("INSERT INTO gone VALUES (zeroblob(800))", [()] * 40)
        conn.execute("DROP TABLE gone")
    conn.close()
    return path.read_bytes()


def flips(whole: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of which one to four bits are turned: in the header, where pages begin, and anywhere."""
    chance = random.Random("bits")
    for number in range(count):
        damaged = bytearray(whole)
        places = []
        for _ in range(chance.choice([1, 1, 1, 4])):
            page = chance.randrange(len(whole) // PAGE) * PAGE
            place = [chance.randrange(HEADER), page + chance.randrange(16), chance.randrange(len(whole))][number % 3]
            damaged[place] ^= 1 << chance.randrange(8)
            places.append(place)
        yield f"bits in the bytes {places}", bytes(damaged)


def cuts(whole: bytes, step: int) -> Iterator[tuple[str, bytes]]:
    """Yield files that end too soon: at every page, or each `step`-th, just before and after one, and in the header."""
    sizes = [1, 15, 16, 17, 50, 99, HEADER, HEADER + 1, PAGE // 2]
    for end in range(PAGE, len(whole), PAGE * step):
        sizes += [end - 1, end, end + 1, end + 513]
    yield from ((f"cut to {size} bytes", whole[:size]) for size in sizes)


def wal_flips(whole: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield WALs of which some bits are turned."""
    chance = random.Random("WAL")
    for _ in range(count):
        damaged = bytearray(whole)
        place = chance.randrange(chance.choice([32, 32 + 24, len(whole)]))
        damaged[place] ^= 1 << chance.randrange(8)
        yield f"a bit in byte {place} of the WAL", bytes(damaged)


def use(path: Path) -> list[dict[str, object]]:
    """Open a pool and use it in every way, and return the errors."""
    told: list[dict[str, object]] = []

    def do(what: str, work: Callable[[], object]) -> object:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - judged by the test
            told.append(
                {
                    "what": what,
                    "kind": type(error).__name__,
                    "is_walpools": isinstance(error, walpool.Error),
                    "code": getattr(error, "sqlite_errorname", None),
                    "outcome": getattr(error, "outcome", None),
                    "message": str(error),
                }
            )
            return None

    pool = do("open", lambda: walpool.Pool(path, readers=1, busy_timeout=0.2, checkout_timeout=5))
    if isinstance(pool, walpool.Pool):
        for what, work in USES.items():
            do(what, lambda work=work: work(pool))
        do("close", pool.close)
    return told


def main() -> None:
    """Arguments: a folder, the kind of damage, and how much of it."""
    folder, kind, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    whole = make_database(folder / "whole.db")
    path = folder / "test.db"
    wal = Path(f"{path}-wal")
    if kind == "wal":
        damaged_files = wal_flips(make_wal(folder / "whole.db"), size)
    else:
        damaged_files = {"flips": flips, "cuts": cuts}[kind](whole, size)
    for name, damaged in damaged_files:
        for old in folder.glob("test.db*"):
            old.unlink()
        path.write_bytes(whole if kind == "wal" else damaged)
        if kind == "wal":
            wal.write_bytes(damaged)
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        sys.stdout.write(json.dumps(use(path)) + "\n")
        sys.stdout.flush()


def make_wal(path: Path) -> bytes:
    """Return the bytes of a WAL with a few commits."""
    conn = sqlite3.connect(path)
    for n in range(5):
        with conn:
            conn.execute("UPDATE t SET word = 'from the WAL' WHERE id = ?", (n,))
    written = Path(f"{path}-wal").read_bytes()
    conn.close()
    return written


if __name__ == "__main__":
    main()
