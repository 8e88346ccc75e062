"""Seeded data: the same rows, documents and vectors for every contender and every run. Knows no contender."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEED = 20_260_601
BODY_CHARS = 1024  # ASCII, so bytes too
LOADER = 9_999  # the worker whose bodies a new database holds

_PADDING = "x" * (BODY_CHARS - 16)


def body(worker: int, number: int) -> str:
    """Return a body of `BODY_CHARS` that differs from every other: an upsert that changes nothing writes no page."""
    return f"{worker:04d}{number:012d}{_PADDING}"


def keys(worker: int, count: int, *, below: int) -> list[int]:
    """Return `count` random keys from 0 to `below` - 1, the same ones for the same worker."""
    return random.Random(SEED + worker).choices(range(below), k=count)


@contextlib.contextmanager
def new_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Create a file in WAL mode and yield a stdlib connection, which is closed before any contender opens the file."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = OFF")  # nobody waits for the data's own loading
        yield conn
        conn.commit()


def write_items(path: Path, rows: int) -> None:
    """Create `items` with keys 0 to `rows` - 1, each at version 0."""
    with new_database(path) as conn:
        conn.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, body TEXT NOT NULL, version INTEGER NOT NULL)")
        conn.executemany("INSERT INTO items VALUES (?, ?, 0)", ((key, body(LOADER, key)) for key in range(rows)))


def read_items(path: Path) -> tuple[int, int, int]:
    """Return how many rows there are, the sum of their versions (upserts applied), and bodies of a wrong length."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        rows, versions, damaged = conn.execute(
            "SELECT count(*), total(version), count(*) FILTER (WHERE length(body) != ?) FROM items", (BODY_CHARS,)
        ).fetchone()
    return rows, int(versions), damaged


PACK_CHUNKS = 16
PACK_ROWS = PACK_CHUNKS + 2  # its own row, and the snapshot's


def write_backups(path: Path, jobs: int) -> None:
    """Create what a backup engine keeps, in words that PostgreSQL knows too, and a snapshot for each job."""
    with new_database(path) as conn:
        conn.execute(
            'CREATE TABLE chunks (content_hash TEXT PRIMARY KEY, pack_id INTEGER NOT NULL, "offset" INTEGER NOT NULL, '
            "length INTEGER NOT NULL)"
        )
        conn.execute("CREATE TABLE packs (id INTEGER PRIMARY KEY, chunks INTEGER NOT NULL, length INTEGER NOT NULL)")
        conn.execute("CREATE TABLE snapshots (id INTEGER PRIMARY KEY, chunks INTEGER NOT NULL, bytes BIGINT NOT NULL)")
        conn.executemany("INSERT INTO snapshots VALUES (?, 0, 0)", ((job,) for job in range(jobs)))


def hash_heads(job: int) -> list[str]:
    """Return 4 096 random beginnings of content hashes, 40 hexadecimal digits each."""
    rng = random.Random(SEED + job)
    return [f"{rng.getrandbits(160):040x}" for _ in range(4_096)]


def pack(
    job: int, number: int, heads: list[str]
) -> tuple[list[tuple[str, int, int, int]], tuple[int, int, int], tuple[int, int, int]]:
    """Return the rows of a job's pack: its chunks, itself, and what it adds to the job's snapshot.

    The hashes are 64 characters, at random places of their index and never twice the same; hashing would cost every
    contender as much of the loop's time as its database does.
    """
    pack_id = job * 10_000_000 + number
    first = number * PACK_CHUNKS
    tail = f"{pack_id:020d}"
    chunks = [
        (f"{heads[(first + i) & 4_095]}{tail}{i:04d}", pack_id, i * 65_536, 65_536 - i) for i in range(PACK_CHUNKS)
    ]
    length = PACK_CHUNKS * 65_536 - 120
    return chunks, (pack_id, PACK_CHUNKS, length), (PACK_CHUNKS, length, job)


def read_backups(path: Path) -> tuple[int, int, int, int]:
    """Count packs, chunks, chunks as the snapshots have counted them, and packs without all of their chunks."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        packs, chunks, counted = conn.execute(
            "SELECT (SELECT count(*) FROM packs), (SELECT count(*) FROM chunks), (SELECT total(chunks) FROM snapshots)"
        ).fetchone()
        (whole,) = conn.execute(
            "SELECT count(*) FROM packs JOIN (SELECT pack_id, count(*) AS found FROM chunks GROUP BY pack_id) "
            "ON pack_id = id AND found = chunks"
        ).fetchone()
    return packs, chunks, int(counted), packs - whole


def write_facts(path: Path, rows: int) -> None:
    """Create `facts` for the aggregate: a bucket of 0 to 99, a value of 0.0 to 1.0, and a note of 100 characters."""
    rng = random.Random(SEED)
    with new_database(path) as conn:
        conn.execute("CREATE TABLE facts (id INTEGER PRIMARY KEY, bucket INTEGER, value REAL, note TEXT)")
        conn.executemany(
            "INSERT INTO facts VALUES (?, ?, ?, ?)",
            ((i, rng.randrange(100), rng.random(), f"{i:0100d}") for i in range(rows)),
        )


def vocabulary(words: int = 2_000) -> list[str]:
    """Return made-up words; a word's place is its rank, the first ones are the frequent ones."""
    syllables = ["ba", "ke", "di", "no", "ru", "sa", "te", "li", "mo", "vu", "pa", "ge", "fi"]
    return ["".join(parts) for parts in itertools.islice(itertools.product(syllables, repeat=3), words)]


def write_documents(path: Path, rows: int) -> None:
    """Create the FTS5 table `docs`: 30 words a document, their frequency falling with the square root of their rank."""
    rng = random.Random(SEED)
    words = vocabulary()
    weights = list(itertools.accumulate(1 / math.sqrt(rank) for rank in range(1, len(words) + 1)))
    with new_database(path) as conn:
        conn.execute("CREATE VIRTUAL TABLE docs USING fts5 (text)")
        conn.executemany(
            "INSERT INTO docs (rowid, text) VALUES (?, ?)",
            ((i, " ".join(rng.choices(words, cum_weights=weights, k=30))) for i in range(1, rows + 1)),
        )
        conn.execute("INSERT INTO docs (docs) VALUES ('optimize')")


def embeddings(rows: int, dims: int, *, seed: int = SEED) -> Any:
    """Return unit vectors in 64 loose clusters as a float32 NumPy array of shape (rows, dims)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(SEED).standard_normal((64, dims))
    vectors = centres[rng.integers(0, len(centres), rows)] + rng.standard_normal((rows, dims))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(vectors: Any, query: Iterable[float], limit: int) -> Any:
    """Return the exact cosines of all `vectors` with `query`, and the indices of the best `limit`, best first."""
    import numpy as np

    cosines = vectors.astype(np.float64) @ np.asarray(query, dtype=np.float64)
    return cosines, np.argsort(-cosines, kind="stable")[:limit]


def state(worker: int, number: int) -> dict[str, Any]:
    """Return an agent's state of about 1 KB as JSON, another one for each number."""
    return {
        "id": f"agent-{worker:04d}",
        "number": number,
        "goal": "compare three ways to keep what an agent learns between two runs of a crew",
        "history": [
            {"role": "assistant", "content": f"step {step} of {number}: " + "noted " * 18} for step in range(6)
        ],
    }


def checkpoint(worker: int, number: int, size_bytes: int = 100_000) -> str:
    """Return the JSON text of a run's state of about `size_bytes`, made of many small values as CrewAI's own are."""
    head = f'{{"worker": {worker}, "number": {number}, "events": ['
    return head + ", ".join([_EVENT] * (size_bytes // len(_EVENT))) + "]}"


_EVENT = json.dumps(
    {
        "type": "task_completed",
        "timestamp": "2026-06-01T12:00:00.000000",
        "agent_role": "researcher",
        "usage": {"prompt_tokens": 1821, "completion_tokens": 311, "cached": False, "cost": 0.0123},
        "output": "the three stores differ in what a caller may believe once a call has returned, " * 3,
    }
)
