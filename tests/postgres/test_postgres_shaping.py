"""Statements that shape what others mean - settings, temporary tables, DDL - reach no job of anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from looping import on_every_loop

from tests.postgres.pools import plain
from walpool.postgres import AsyncPostgresPool, PostgresPool
from walpool.postgres._jobs import batch, single
from walpool.postgres._translate import translate

INSERT = "INSERT INTO t (x) VALUES (?)"
FILL = "INSERT INTO s (x) VALUES (?)"
WHO = "SELECT current_setting('app.who', true), current_setting('synchronous_commit')"


@pytest.mark.parametrize(
    "sql",
    [
        "SET LOCAL app.who = 'a'",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT set_config('app.who', 'a', true)",
        "WITH x AS (SELECT pg_catalog.set_config('app.who', 'a', true)) INSERT INTO t SELECT * FROM x",
        "CREATE TEMP TABLE t (x int) ON COMMIT DROP",
        "SELECT 1 AS x INTO TEMP t",
        "ALTER TABLE t ADD COLUMN y int",
        "DO 'BEGIN END'",
        "CALL p()",
        "LOCK TABLE t",
    ],
)
def test_job_that_may_shape_others_is_apart(sql: str) -> None:
    assert translate(sql).is_shaping
    assert single(sql, ()).is_apart
    assert batch([(INSERT, (1,)), sql]).is_apart


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "(SELECT 1) UNION SELECT 2",
        "VALUES (1)",
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
        "INSERT INTO t (x) SELECT 'SET_CONFIG INTO'",
        "UPDATE t SET x = 1",
        "DELETE FROM t",
        "MERGE INTO t USING u ON t.x = u.x WHEN MATCHED THEN DELETE",
    ],
)
def test_job_that_changes_rows_alone_is_not(sql: str) -> None:
    assert not translate(sql).is_shaping


@on_every_loop
@pytest.mark.parametrize(
    "shaping",
    [
        ["SET LOCAL app.who = 'alice'", "SET LOCAL synchronous_commit = off"],
        ["SELECT set_config('app.who', 'alice', true), set_config('synchronous_commit', 'off', true)"],
    ],
)
async def test_setting_of_a_job_ends_with_it(apg: AsyncPostgresPool, shaping: Sequence[str]) -> None:
    jobs = [apg.batch([*shaping, WHO] if n % 4 == 1 else [WHO]) for n in range(24)]
    seen = [results[-1].rows[0] for results in await asyncio.gather(*jobs)]
    assert seen[1::4] == [("alice", "off")] * 6
    assert {row for n, row in enumerate(seen) if n % 4 != 1} <= {("", "on"), (None, "on")}


@on_every_loop
async def test_temporary_table_of_a_job_takes_no_rows_of_others(apg: AsyncPostgresPool) -> None:
    await apg.script("CREATE TABLE s (x int)")
    for _ in range(3):
        jobs: list[Any] = [apg.execute(FILL, (n,)) for n in range(10)]
        jobs.insert(3, apg.batch(["CREATE TEMP TABLE s (x int) ON COMMIT DROP", (FILL, (-1,))]))
        await asyncio.gather(*jobs)
    assert await apg.fetchone("SELECT count(*), min(x) FROM s") == (30, 0)


@on_every_loop
async def test_search_path_of_a_job_is_its_own(apg: AsyncPostgresPool) -> None:
    await apg.script("CREATE SCHEMA a; CREATE TABLE s (x int); CREATE TABLE a.s (x int)")
    path = "SELECT set_config('search_path', 'a', true)"
    await asyncio.gather(*(apg.batch([path, (FILL, (n,))] if n % 2 else [(FILL, (n,))]) for n in range(20)))
    assert await apg.fetchone("SELECT (SELECT sum(x) FROM s), (SELECT sum(x) FROM a.s)") == (90, 100)


def test_limit_of_one_statement_leaves_that_of_the_transaction(postgres_url: str) -> None:
    with PostgresPool(postgres_url) as pool, pool.transaction() as tx:
        tx.execute("SET LOCAL statement_timeout = '3s'")
        assert tx.fetchval("SELECT current_setting('statement_timeout')", timeout=5) == "5s"
        assert tx.fetchval("SELECT current_setting('statement_timeout')") == "3s"


def test_limit_of_the_role_holds_again_behind_that_of_a_statement(postgres_url: str) -> None:
    with plain(postgres_url) as owner:
        owner.execute("ALTER ROLE CURRENT_USER IN DATABASE " + owner.info.dbname + " SET statement_timeout = '7s'")
    with PostgresPool(postgres_url) as pool, pool.transaction() as tx:
        assert tx.fetchval("SELECT current_setting('statement_timeout')", timeout=5) == "5s"
        assert tx.fetchval("SELECT current_setting('statement_timeout')") == "7s"
