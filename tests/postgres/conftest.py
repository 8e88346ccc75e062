"""A pool on a PostgreSQL database of its own, with a table; nothing of it may be left when it is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from helpers import eventually

from tests.postgres.pools import TABLE, others, plain
from walpool.postgres import PostgresPool


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("walpool")]


@pytest.fixture
def pg(postgres_url: str) -> Iterator[PostgresPool]:
    """Yield a pool of two readers, with an empty table t."""
    with PostgresPool(postgres_url, readers=2) as pool:
        pool.script(TABLE)
        yield pool
    with plain(postgres_url) as connection:
        eventually(lambda: others(connection) == [])  # the server's process ends a moment after the client's end
    eventually(lambda: pool_threads() == [])
