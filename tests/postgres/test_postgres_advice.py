"""What a server refuses is told with what to do: on reads and writes, in jobs, transactions, snapshots and streams."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from looping import run

from benches.postgres_server import PostgresServer
from tests.postgres.plugin import new_database
from tests.postgres.pools import TABLE
from walpool import errors, get_pool
from walpool.postgres import AsyncPostgresPool, PostgresPool

WRITE = "INSERT INTO t (a) VALUES ('x')"
IS_A_READ = r"the statement writes, and this is a read: use execute\(\), batch\(\) or transaction\(\)"


def in_a_snapshot(pool: PostgresPool, sql: str) -> object:
    with pool.read() as snapshot:
        return snapshot.fetch(sql)


def in_a_transaction(pool: PostgresPool, sql: str) -> object:
    with pool.transaction() as tx:
        return tx.fetch(sql)


def in_a_stream(pool: PostgresPool, sql: str) -> object:
    with pool.stream(sql) as rows:
        return list(rows)


READS: list[Callable[[PostgresPool, str], object]] = [PostgresPool.fetch, in_a_snapshot, in_a_stream]


@pytest.mark.parametrize("read", READS)
def test_write_in_a_read_says_where_to_write(pg: PostgresPool, read: Callable[[PostgresPool, str], object]) -> None:
    with pytest.raises(errors.ProgrammingError, match=IS_A_READ) as caught:
        read(pg, WRITE)
    assert type(caught.value) is errors.ProgrammingError


@pytest.mark.parametrize("ask", [*READS, PostgresPool.execute, in_a_transaction])
def test_form_that_works_on_both_is_named_wherever_it_was_asked(pg: PostgresPool, ask: Callable[..., object]) -> None:
    with pytest.raises(errors.ProgrammingError, match=r"write coalesce\(a, b\)"):
        ask(pg, "SELECT ifnull(n, 0) FROM t")


def test_parameter_of_no_known_type_is_told_how_to_have_one(pg: PostgresPool) -> None:
    sql = "SELECT a FROM t WHERE ? IS NULL"
    with pytest.raises(errors.ProgrammingError, match=r"CAST\(\? AS TEXT\)"):
        pg.fetch(sql, (None,))


def test_what_takes_no_transaction_is_for_another_connection(pg: PostgresPool) -> None:
    for sql in ("VACUUM", "CREATE INDEX CONCURRENTLY i ON t (n)", "CREATE DATABASE x"):
        with pytest.raises(errors.ProgrammingError, match=r"run it by psql, or on a connection of your own"):
            pg.execute(sql)


def test_limit_of_less_than_nothing_is_told_to_be_left_out(pg: PostgresPool) -> None:
    with pytest.raises(errors.DataError, match="leave LIMIT out"):
        pg.fetch("SELECT a FROM t LIMIT ?", (-1,))


# A server that takes no writes.


@pytest.fixture
def standby(own_postgres_server: PostgresServer) -> Iterator[str]:
    """Yield the URL of a database with a table t, in which nothing may be written, as on a standby."""
    with new_database(own_postgres_server) as url:
        with get_pool(url) as pool:
            pool.script(TABLE)
        name = url.rpartition("?")[0].rpartition("/")[2]
        own_postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        yield url


def test_server_that_takes_no_writes_is_read_only_and_not_the_callers_fault(standby: str) -> None:
    def transact(pool: PostgresPool) -> object:
        return pool.run(lambda tx: tx.execute(WRITE))

    writes: list[Callable[[PostgresPool], Any]] = [
        lambda pool: pool.execute(WRITE),
        lambda pool: pool.executemany("INSERT INTO t (a) VALUES (?)", [("x",), ("y",)]),
        lambda pool: pool.batch([WRITE]),
        lambda pool: pool.script("CREATE TABLE u (a int)"),
        transact,
    ]
    with get_pool(standby) as pool:
        for write in writes:
            with pytest.raises(errors.ReadOnlyError, match="the server is a standby, or default_trans") as caught:
                write(pool)
            assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
        with pytest.raises(errors.ProgrammingError, match=IS_A_READ):
            pool.fetch(WRITE)
        assert pool.fetch("SELECT * FROM t") == []


def test_task_on_a_server_that_takes_no_writes_hears_the_same(standby: str) -> None:
    async def main() -> None:
        async with AsyncPostgresPool(standby) as pool:
            with pytest.raises(errors.ReadOnlyError):
                await pool.execute(WRITE)
            with pytest.raises(errors.ProgrammingError, match=IS_A_READ):
                await pool.fetch(WRITE)

    run(main())


# Names are told, values are not.


def test_table_of_a_policy_and_extension_are_named(own_postgres_server: PostgresServer, postgres_url: str) -> None:
    role = f"guest_{secrets.token_hex(4)}"
    own_postgres_server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with get_pool(postgres_url) as pool:
            pool.script(f"{TABLE}; GRANT ALL ON t TO {role}; ALTER TABLE t ENABLE ROW LEVEL SECURITY")
            pool.script("CREATE POLICY p ON t USING (true) WITH CHECK (a = 'mine')")
        with get_pool(postgres_url.replace("walpool@", f"{role}@", 1)) as guest:
            with pytest.raises(errors.ProgrammingError, match='row-level security policy for table "t"'):
                guest.execute("INSERT INTO t (a) VALUES (?)", ("theirs",))
            with pytest.raises(errors.ProgrammingError, match=r'create extension "vector" \(Must have CREATE'):
                guest.execute("CREATE EXTENSION vector")
        with get_pool(postgres_url) as pool:
            pool.script("DROP TABLE t")
    finally:
        own_postgres_server.execute(f"DROP ROLE {role}")


def test_text_that_a_database_does_not_hold_is_not_told_by_its_bytes(own_postgres_server: PostgresServer) -> None:
    server, name = own_postgres_server, "walpool_latin_1"
    server.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with get_pool(server.url(database=name)) as pool, pytest.raises(errors.DataError) as caught:
            pool.execute("SELECT CAST(? AS TEXT)", ("日本",))
        assert "make it with ENCODING 'UTF8'" in str(caught.value)
        assert "0xe6" not in str(caught.value)
    finally:
        server.drop_database(name)
