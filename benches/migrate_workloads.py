"""`walpool migrate` of a SQLite file into PostgreSQL: a million rows, and vectors; keys in place while rows are copied.

Owns the tables and how the outcome is checked. Must not know how rows are copied.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benches import postgres_server
from benches.harness import Sample, Scale, Workload
from benches.targets import OURS, AtLeast, AtMost, Target

_SEED: Final = 9
_BATCH: Final = 20_000
_DIMS: Final = 1536


class Migrate:
    """walpool's command, from a file to a server that waits for its disk as servers do."""

    requires = ("psycopg",)
    obstacle = staticmethod(postgres_server.obstacle)


@dataclass(frozen=True)
class Migration:
    """One table goes to PostgreSQL and is compared."""

    name: str
    title: str
    table: str
    full: int
    targets: Sequence[Target]
    synchronous: str = "full"
    most_runs: int = 3

    @property
    def contenders(self) -> Mapping[str, type[Any]]:
        return {OURS: Migrate}

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        from walpool.migrating import Options, migrate

        rows = scale.rows(self.full)
        path = folder / "source.db"
        with closing(sqlite3.connect(path)) as conn:
            conn.execute(_CREATE[self.table])
            for batch in _batches(self.table, rows):
                conn.executemany(f"INSERT INTO {self.table} VALUES ({', '.join('?' * len(batch[0]))})", batch)
            conn.commit()
        server = postgres_server.PostgresServer(folder)
        try:
            report = migrate(str(path), server.url(), Options())
        finally:
            server.close()
        copied = sum(table.copied for table in report.tables)
        wrong = (
            () if report.is_same and copied == rows else (f"{copied} of {rows} rows copied, same: {report.is_same}",)
        )
        spent = report.seconds
        figures = {
            "rows/s": copied / spent["copy"],
            "copy s": spent["copy"],
            "verify s": spent["verify"],
            "plan s": spent["plan"],
            "all s": sum(spent.values()),
        }
        return Sample(figures, wrong=wrong)


_CREATE: Final = {
    "items": """CREATE TABLE items
        (id INTEGER PRIMARY KEY, name TEXT, count INTEGER, share REAL, flag BOOLEAN, data JSON)""",
    "vectors": "CREATE TABLE vectors (id TEXT PRIMARY KEY, embedding BLOB)",
}


def _batches(table: str, rows: int) -> Iterator[list[tuple[Any, ...]]]:
    make = _item if table == "items" else _vector
    rng = random.Random(_SEED)
    for start in range(0, rows, _BATCH):
        yield [make(rng, number) for number in range(start, min(start + _BATCH, rows))]


def _item(rng: random.Random, number: int) -> tuple[Any, ...]:
    data = f'{{"number": {number}}}'
    return number, f"{rng.getrandbits(160):040x}", rng.getrandbits(40), rng.random(), number % 2, data


def _vector(rng: random.Random, number: int) -> tuple[Any, ...]:
    return f"record-{number:08d}", rng.randbytes(4 * _DIMS)


_MILLION: Final = (AtLeast("rows/s", 100_000), AtMost("verify s", 5.0))

MIGRATE_WORKLOADS: list[Workload] = [
    Migration("migrate-million", "1 000 000 rows of six columns to PostgreSQL", "items", 1_000_000, _MILLION),
    Migration(
        "migrate-vectors", "50 000 rows of 1536 dims to PostgreSQL", "vectors", 50_000, (AtMost("copy s", 15.0),)
    ),
]
