"""A server without what the memory store needs is told so in words, before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
from looping import on_asyncio

import walpool
import walpool.memory
from benches.postgres_server import PostgresServer
from tests.memory.contract import record
from walpool.errors import NotSupportedError
from walpool.memory.postgres import lacking


def hide_pgvector(server: PostgresServer, url: str, *, is_absent: bool) -> None:
    """Have a database find no extension; or those alone that came with the server, where pgvector is a superuser's."""
    path = server.host if is_absent else "$system"  # a folder that has no extensions in it
    database = url.rpartition("?")[0].rpartition("/")[2]
    server.execute(f"ALTER DATABASE {database} SET extension_control_path = '{path}'")


@pytest.fixture(params=["none", "a superuser's"])
def bare_url(own_postgres_server: PostgresServer, own_postgres_url: str, request: Any) -> str:
    hide_pgvector(own_postgres_server, own_postgres_url, is_absent=request.param == "none")
    return own_postgres_url


def assert_said(error: BaseException) -> None:
    told = str(error)
    assert "which this server lacks" in told or "have a superuser run CREATE EXTENSION vector" in told
    assert "[postgresql://" in told


def test_store_says_what_is_missing_and_makes_nothing(bare_url: str) -> None:
    with pytest.raises(NotSupportedError, match="memory stores need") as caught:
        walpool.memory.open(bare_url)
    assert_said(caught.value)
    with walpool.get_pool(bare_url) as pool:
        assert lacking(pool) is not None  # type: ignore[arg-type]
        assert pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


@on_asyncio
async def test_async_store_says_what_is_missing(own_postgres_server: PostgresServer, own_postgres_url: str) -> None:
    hide_pgvector(own_postgres_server, own_postgres_url, is_absent=False)
    with pytest.raises(NotSupportedError) as caught:
        async with walpool.memory.open_async(own_postgres_url):
            pass
    assert_said(caught.value)


def test_nothing_is_missing_where_the_extension_can_be_made_or_the_tables_are_there(
    own_postgres_server: PostgresServer, own_postgres_url: str
) -> None:
    with walpool.get_pool(own_postgres_url) as pool:
        assert lacking(pool) is None  # type: ignore[arg-type]
    with walpool.memory.open(own_postgres_url) as store:
        store.save([record("1")])
    hide_pgvector(own_postgres_server, own_postgres_url, is_absent=True)
    with walpool.get_pool(own_postgres_url) as pool:
        assert lacking(pool) is None  # type: ignore[arg-type]
    with walpool.memory.open(own_postgres_url) as store:
        assert store.count() == 1


def test_pgvector_of_old_is_told_by_its_version(own_postgres_url: str) -> None:
    from walpool.memory._postgres_needs import missing

    assert missing().decode([("0.6.2", "0.8.5", True)]) == (
        "memory stores need the extension pgvector, 0.7 or newer, and this server has 0.6.2"
    )
    assert missing().decode([(None, "0.8.5", True)]) is None
    assert missing().decode([("0.10.0", None, None)]) is None
