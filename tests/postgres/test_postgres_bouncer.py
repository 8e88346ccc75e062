"""The pool behind PgBouncer in transaction mode: no state of a session, so that others' sessions do not matter."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from helpers import Caller, eventually, run_together
from looping import run

from tests.postgres.pools import INSERT, TABLE, assert_unharmed, kept
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgres.pgbouncer import PgBouncer


@pytest.fixture
def bounced(pgbouncer_url: str) -> Iterator[PostgresPool]:
    """Yield a pool behind PgBouncer, with an empty table."""
    with PostgresPool(pgbouncer_url, readers=4, synchronous="normal") as pool:
        pool.script(TABLE)
        yield pool


def test_verbs_work_behind_pgbouncer(bounced: PostgresPool) -> None:
    bounced.execute(INSERT, ("x",))
    assert bounced.executemany("INSERT INTO t (a, n) VALUES (?, ?)", [(str(n), n) for n in range(500)]).rowcount == 500
    assert [each.rowcount for each in bounced.batch([(INSERT, ("y",)), "UPDATE t SET n = 9 WHERE a = 'y'"])] == [1, 1]
    with pytest.raises(errors.IntegrityError, match="in row 2 of executemany"):
        bounced.executemany(INSERT, [("z",), ("x",)])
    with bounced.transaction() as tx:
        tx.execute(INSERT, ("w",))
        with suppress(errors.IntegrityError), tx.transaction():
            tx.execute(INSERT, ("w",))
        assert tx.fetchval("SELECT count(*) FROM t WHERE a = 'w'") == 1
    with bounced.read() as snapshot:
        assert snapshot.fetchval("SELECT count(*) FROM t") == 503
    with bounced.stream("SELECT a FROM t", chunk=50) as rows:
        assert sum(1 for _ in rows) == 503
    with pytest.raises(errors.StatementTimeout):
        bounced.fetch("SELECT pg_sleep(30)", timeout=0.1)
    assert bounced.fetchval("SELECT 1") == 1
    assert_unharmed(bounced)


def test_what_a_transaction_sets_meets_nobody_elses(bounced: PostgresPool, pgbouncer_url: str) -> None:
    seen = """SELECT coalesce(current_setting('walpool.tenant', true), ''), current_setting('synchronous_commit'),
              current_setting('lock_timeout'), current_setting('statement_timeout')"""
    asked = PostgresPool(pgbouncer_url, tenant="acme")
    with asked as acme:
        for _ in range(8):
            assert acme.fetchone(seen)[0] == "acme"
            assert acme.execute(seen).rows[0][:2] == ("acme", "off")
            with acme.transaction() as tx:
                assert tx.fetchone(seen, timeout=5)[:2] == ("acme", "off")
            assert bounced.fetchone(seen) == ("", "on", "0", "0")
            assert bounced.execute(seen).rows[0][0] == ""


def test_many_threads_share_few_servers(bounced: PostgresPool) -> None:
    def work(index: int) -> None:
        for n in range(10):
            bounced.execute(INSERT, (f"{index}/{n}",))
            assert bounced.fetchval("SELECT a FROM t WHERE a = ?", (f"{index}/{n}",)) == f"{index}/{n}"
            with bounced.transaction() as tx:
                tx.execute("UPDATE t SET n = n + 1 WHERE a = ?", (f"{index}/{n}",))

    run_together(12, work)
    assert bounced.fetchone("SELECT count(*), sum(n) FROM t") == (120, 120)
    assert_unharmed(bounced)


def test_tasks_and_cancelled_reads_work_behind_pgbouncer(bounced: PostgresPool, pgbouncer_url: str) -> None:
    async def main() -> None:
        async with AsyncPostgresPool(pgbouncer_url) as pool:
            await asyncio.gather(*(pool.execute(INSERT, (str(n),)) for n in range(50)))
            assert len([row async for row in pool.stream("SELECT a FROM t", chunk=7)]) == 50
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(pool.fetch("SELECT pg_sleep(60)"), 0.1)
            assert await pool.fetchval("SELECT count(*) FROM t") == 50

    run(main())
    assert_unharmed(bounced)


def test_pgbouncer_that_restarts_under_load_is_found_again(bounced: PostgresPool, pgbouncer: PgBouncer) -> None:
    told: dict[str, str] = {}
    is_over: list[int] = []

    def write(name: int) -> None:
        for n in itertools.count():
            try:
                bounced.execute(INSERT, (f"{name}/{n}",))
                told[f"{name}/{n}"] = "acknowledged"
            except errors.OperationalError as error:
                told[f"{name}/{n}"] = error.outcome
            if is_over:
                return

    callers = [Caller(partial(write, name)) for name in range(3)]
    for _ in range(2):
        before = len(told)
        eventually(lambda: list(told.values())[before:].count("acknowledged") > 20)  # noqa: B023
        pgbouncer.restart()
    is_over.append(1)
    for caller in callers:
        assert caller.outcome() is None
    found = set(kept(bounced))
    assert {value for value, each in told.items() if each == "acknowledged"} <= found
    assert not {value for value, each in told.items() if each == "not_applied"} & found
    assert_unharmed(bounced)
