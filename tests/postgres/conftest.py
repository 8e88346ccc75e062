"""Pools on a PostgreSQL database of their own, with a table; nothing of it may be left when they are closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from helpers import eventually
from looping import run

from tests.postgres.pools import TABLE, assert_unharmed, others, plain
from walpool.postgres import AsyncPostgresPool, PostgresPool, _driving, _watching, aio


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


@pytest.fixture
def apg(pg: PostgresPool, postgres_url: str) -> Iterator[AsyncPostgresPool]:
    """Yield an asynchronous pool beside `pg`, whose connections it shares."""
    pool = AsyncPostgresPool(postgres_url)
    yield pool
    run(pool.close())
    assert_unharmed(pg)


@pytest.fixture
def other(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield somebody else's connection."""
    with plain(postgres_url) as connection:
        yield connection


@pytest.fixture(params=[True, False], ids=["nested", "single"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loops watch sockets in each of the ways there are."""
    if request.param and not _watching.NESTS:
        pytest.skip("no descriptor stands for many here")
    monkeypatch.setattr(_watching, "NESTS", request.param)


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loops watch no sockets, as on Windows."""
    for module in (_driving, aio):
        monkeypatch.setattr(module, "WATCHES_SOCKETS", False)
