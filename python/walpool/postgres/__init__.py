"""PostgreSQL behind the verbs of `walpool.Pool`: what `walpool.get_pool` opens for a `postgresql://` URL.

    with walpool.get_pool("postgresql://app@db.example/agents") as pool:
        pool.execute("INSERT INTO notes (id, text) VALUES (?, ?)", (1, "hello"))

Needs psycopg 3: `pip install 'walpool[postgres]'`.
"""

from __future__ import annotations

from walpool.postgres._results import Result
from walpool.postgres.aio import AsyncPostgresPool
from walpool.postgres.bulk import Bulk
from walpool.postgres.held import AsyncSnapshot, AsyncStream, AsyncTransaction
from walpool.postgres.pool import PostgresPool, Snapshot, Stream, Transaction

__all__ = [
    "AsyncPostgresPool",
    "AsyncSnapshot",
    "AsyncStream",
    "AsyncTransaction",
    "Bulk",
    "PostgresPool",
    "Result",
    "Snapshot",
    "Stream",
    "Transaction",
]
