"""Row-level security under the memory store: a forgotten filter shows nothing of another tenant; who may not open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from helpers import run_together
from looping import on_asyncio

import walpool
import walpool.memory
from tests.memory.contract import ids, record
from tests.postgres.secured import ROLES, Secured
from walpool.errors import ConfigError, DatabaseError
from walpool.memory import Query, pack
from walpool.memory.postgres import init_sql

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer


def opened(url: str, tenant: str, **named: Any) -> walpool.memory.MemoryStore:
    return walpool.memory.open(url, tenant=tenant, tenancy="rls", **named)


def test_tenants_work_beside_each_other(secured: Secured) -> None:
    with opened(secured.app, "a") as ours, opened(secured.app, "b") as theirs:
        ours.save([record("1", [1.0], scope="/x", categories=("c",), metadata={"k": 1})])
        theirs.save([record("1", [1.0, 2.0]), record("2")])
        assert (ours.count(), theirs.count(), ours.dims(), theirs.dims()) == (1, 2, 1, 2)
        assert ids(ours.search(pack([1.0]), Query(scope="/x", metadata={"k": 1}))) == ["1"]
        assert ids(ours.search(text="about")) == ["1"]
        assert ours.update("1", content="new") is True
        assert ours.touch(["1", "2"]) == 1
        ours.rebuild()
        ours.compact()
        assert (ours.check(), theirs.check()) == ([], [])
        assert ours.delete(Query()) == 1
        theirs.reset()
        assert theirs.count() == 0


def test_forgotten_filter_shows_nothing_of_another_tenant(secured: Secured) -> None:
    with opened(secured.app, "a") as ours, opened(secured.app, "b") as theirs:
        ours.save([record("1", [1.0])])
        theirs.save([record("2", [1.0]), record("3", [1.0])])
    tables = ("memory_spaces", "memory_records", "memory_vectors")
    with walpool.get_pool(secured.app, tenant="a") as pool:
        assert [pool.fetch(f"SELECT DISTINCT tenant FROM {table}") for table in tables] == [[("a",)]] * 3
        assert pool.execute("UPDATE memory_records SET content = 'mine'").rowcount == 1
        assert pool.execute("DELETE FROM memory_vectors").rowcount == 1
        with pytest.raises(DatabaseError):
            pool.execute("UPDATE memory_records SET tenant = 'b'")
        with pytest.raises(DatabaseError):
            pool.execute("INSERT INTO memory_vectors (tenant, collection, key, embedding) VALUES ('b', 'm', 1, '[1]')")
    with walpool.get_pool(secured.app) as nobody:
        assert [nobody.fetchval(f"SELECT count(*) FROM {table}") for table in tables] == [0, 0, 0]
    with walpool.get_pool(secured.app, tenant="") as nobody:
        assert nobody.fetchval("SELECT count(*) FROM memory_records") == 0
    with walpool.get_pool(secured.superuser) as above:
        assert above.fetch("SELECT id, content FROM memory_records ORDER BY id") == [
            ("1", "mine"), ("2", "about 2"), ("3", "about 3"),
        ]  # fmt: skip


def test_reader_reads_and_writes_nothing(secured: Secured) -> None:
    with opened(secured.app, "a") as ours:
        ours.save([record("1", [1.0])])
    with opened(secured.reader, "a") as store:
        assert store.count() == 1
        with pytest.raises(DatabaseError):
            store.save([record("2")])


def test_role_above_the_policies_is_refused(secured: Secured) -> None:
    server, name = secured.server, secured.name
    with pytest.raises(ConfigError, match="superuser"):
        opened(secured.superuser, "a")
    server.execute(f'ALTER ROLE "{ROLES["app"]}" BYPASSRLS', database=name)
    try:
        with pytest.raises(ConfigError, match="BYPASSRLS"):
            opened(secured.app, "a")
    finally:
        server.execute(f'ALTER ROLE "{ROLES["app"]}" NOBYPASSRLS', database=name)
    server.execute(f'GRANT "{ROLES["owner"]}" TO "{ROLES["app"]}"', database=name)
    try:
        with pytest.raises(ConfigError, match="owns"):
            opened(secured.app, "a")
    finally:
        server.execute(f'REVOKE "{ROLES["owner"]}" FROM "{ROLES["app"]}"', database=name)
    opened(secured.app, "a").close()


def test_tables_without_forced_policies_are_refused(secured: Secured) -> None:
    secured.server.execute("ALTER TABLE memory_vectors NO FORCE ROW LEVEL SECURITY", database=secured.name)
    with pytest.raises(ConfigError, match="forced"):
        opened(secured.app, "a")


def test_database_without_the_tables_is_refused(postgres_url: str) -> None:
    with pytest.raises(ConfigError, match="pg-init"):
        opened(postgres_url, "a")


def test_security_needs_a_tenant_and_a_server(postgres_url: str, database: Any) -> None:
    with pytest.raises(ConfigError, match="needs a tenant"):
        opened(postgres_url, "")
    with pytest.raises(ConfigError, match="tenancy= and index= are for PostgreSQL; a file has neither"):
        opened(database, "a")
    with pytest.raises(ConfigError, match="file"):
        walpool.memory.open(database, index="hnsw")
    with pytest.raises(ConfigError, match="hnsw"):
        walpool.memory.open(postgres_url, index="ivf")  # type: ignore[arg-type]


def test_store_that_the_policies_would_show_nothing_is_refused(secured: Secured) -> None:
    with opened(secured.app, "a") as ours:
        ours.save([record("1")])
    for tenant in ("", "a"):
        with pytest.raises(ConfigError, match=r"open with tenant= and tenancy='rls' \[postgresql://memory_app@"):
            walpool.memory.open(secured.app, tenant=tenant)
    with walpool.memory.open(secured.superuser, tenant="a") as above:
        assert ids(above.list()) == ["1"]
    # A role may have a tenant of its own, set by its owner.
    secured.server.execute(f"ALTER ROLE {ROLES['app']} IN DATABASE {secured.name} SET walpool.tenant = 'a'")
    with walpool.memory.open(secured.app, tenant="a") as ours:
        assert ids(ours.list()) == ["1"]
    with pytest.raises(ConfigError, match="tenancy='rls'"):
        walpool.memory.open(secured.app, tenant="b")


@on_asyncio
async def test_async_store_that_the_policies_would_show_nothing_is_refused(own_postgres_server: PostgresServer) -> None:
    name = "memory_tenants_hidden"
    own_postgres_server.create_database(name)
    try:
        own_postgres_server.execute(init_sql(**ROLES), database=name)
        app = own_postgres_server.url(database=name, user=ROLES["app"])
        async with walpool.memory.open_async(app, tenant="a", tenancy="rls") as store:
            await store.save([record("1")])
        with pytest.raises(ConfigError, match="tenancy='rls'"):
            async with walpool.memory.open_async(app, tenant="a"):
                pass
    finally:
        own_postgres_server.drop_database(name)


@pytest.mark.parametrize("tenant", [None, "b"])
def test_pool_that_names_another_tenant_than_its_store_is_refused(secured: Secured, tenant: str | None) -> None:
    from walpool.memory import AsyncPostgresMemoryStore, PostgresMemoryStore
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    with (
        PostgresPool(secured.app, tenant=tenant) as pool,
        pytest.raises(ConfigError, match="names another tenant") as told,
    ):
        PostgresMemoryStore(pool, tenant="a", tenancy="rls")
    assert "'b'" not in str(told.value)
    with pytest.raises(ConfigError, match="names another tenant"):
        AsyncPostgresMemoryStore(AsyncPostgresPool(secured.app, tenant=tenant), tenant="a", tenancy="rls")


def test_script_may_run_again(secured: Secured) -> None:
    with opened(secured.app, "a") as ours:
        ours.save([record("1", [1.0])])
        version = len(walpool.memory.postgres.MIGRATIONS)
        secured.server.execute(init_sql(**ROLES, version=version, hnsw_dims=3), database=secured.name)
        assert ours.count() == 1


@on_asyncio
async def test_async_store_holds_to_it_too(own_postgres_server: PostgresServer) -> None:
    url = own_postgres_server.url(user="postgres")
    store = walpool.memory.open_async(url, tenant="a", tenancy="rls")
    with pytest.raises(ConfigError, match="pg-init"):
        await store.count()
    await store.close()


def test_tenants_keep_apart_behind_pgbouncer_where_their_transactions_share_connections(
    pgbouncer_url: str, own_postgres_server: PostgresServer
) -> None:
    roles = {**ROLES, "app": "walpool"}  # whom the pooler lets in
    own_postgres_server.execute(init_sql(**roles), database=urlsplit(pgbouncer_url).path[1:])
    with opened(pgbouncer_url, "a") as ours, opened(pgbouncer_url, "b") as theirs:

        def work(number: int) -> None:
            mine = (ours, theirs)[number % 2]
            for n in range(10):
                mine.save([record(f"{number}/{n}", [1.0])])
                assert {each.id.partition("/")[0] for each in mine.list()} <= set("0246" if mine is ours else "1357")

        run_together(8, work)
        assert (ours.count(), theirs.count()) == (40, 40)
    with walpool.get_pool(pgbouncer_url) as pool:
        assert pool.fetchval("SELECT count(*) FROM memory_records") == 0  # whoever names no tenant sees none
