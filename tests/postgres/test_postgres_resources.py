"""What a PostgreSQL pool takes of the process and of the server: bounded, shared, and all given back."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest
from helpers import Caller, eventually, run_together
from looping import run

from tests.postgres.pools import INSERT, TABLE, assert_unharmed, kept, others, plain
from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool
from walpool.postgres._engine import ENGINES, TRANSACTIONS
from walpool.postgres._line import LEADERS

if TYPE_CHECKING:
    from tests.torture import Torture


def test_connections_are_as_few_as_the_docs_say_however_many_threads_call(pg: PostgresPool, postgres_url: str) -> None:
    def work(index: int) -> None:
        for n in range(3):
            pg.execute(INSERT, (f"{index}/{n}",))
            pg.fetch("SELECT a FROM t LIMIT 3")
            with pg.transaction() as tx:
                tx.execute("UPDATE t SET n = 1 WHERE a = ?", (f"{index}/{n}",))

    most, is_over = [], threading.Event()

    def watch() -> None:
        with plain(postgres_url) as other:
            while not is_over.is_set():
                most.append(len(others(other)))

    watcher = Caller(watch)
    run_together(200, work, timeout=50)
    is_over.set()
    watcher.outcome()
    assert LEADERS < max(most) <= 2 + LEADERS + TRANSACTIONS
    assert pg.fetchone("SELECT count(*), sum(n) FROM t") == (600, 600)
    assert_unharmed(pg)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.torture
def test_nothing_grows_however_often_it_is_opened_and_closed(postgres_url: str, torture: Torture) -> None:
    before = {*ENGINES._engines}  # of pools that other tests left

    def cycle(n: int) -> None:
        with PostgresPool(postgres_url, readers=2) as pool:
            pool.execute("SELECT 1")
            pool.fetch("SELECT 1")
            with pool.transaction() as tx:
                tx.fetch("SELECT 1")

    async def async_cycle() -> None:
        async with AsyncPostgresPool(postgres_url, readers=2) as pool:
            await asyncio.gather(pool.execute("SELECT 1"), pool.fetch("SELECT 1"))

    for n in range(3):
        cycle(n)
        run(async_cycle())
    gc.collect()
    threads, opened, memory = threading.active_count(), descriptors(), psutil.Process().memory_info().rss
    cycles = torture.size(60, 500)
    for n in range(cycles):
        cycle(n)
        if n % 5 == 0:
            run(async_cycle())
    gc.collect()
    eventually(lambda: threading.active_count() == threads)
    assert descriptors() == opened
    assert psutil.Process().memory_info().rss - memory < 30_000_000
    assert {*ENGINES._engines} <= before
    with plain(postgres_url) as other:
        eventually(lambda: others(other) == [])


def test_close_leaves_no_connection_and_is_safe_twice_and_at_once(postgres_url: str) -> None:
    kept_open = PostgresPool(postgres_url, readers=2)
    pool = PostgresPool(postgres_url, readers=2)
    run_together(8, lambda index: pool.close())
    assert kept_open.fetchval("SELECT 1") == 1  # no handle but its own was taken off
    pool.close()
    assert kept_open.fetchval("SELECT 1") == 1
    kept_open.close()
    kept_open.close()
    assert (pool.closed, kept_open.closed) == (True, True)
    with plain(postgres_url) as other:
        eventually(lambda: others(other) == [])


def test_every_verb_of_a_closed_pool_says_that_it_is_closed(postgres_url: str) -> None:
    pool = PostgresPool(postgres_url)
    pool.close()
    calls: list[Callable[[], object]] = [
        partial(pool.execute, "SELECT 1"),
        partial(pool.executemany, INSERT, [("x",)]),
        partial(pool.batch, ["SELECT 1"]),
        partial(pool.script, "SELECT 1"),
        partial(pool.fetch, "SELECT 1"),
        partial(pool.fetchone, "SELECT 1"),
        partial(pool.fetchval, "SELECT 1"),
        partial(pool.run, lambda tx: None),
        lambda: pool.read().__enter__(),
        lambda: pool.transaction().__enter__(),
        lambda: pool.stream("SELECT 1").__enter__(),
    ]
    for call in calls:
        with pytest.raises(errors.ClosedError):
            call()
    assert "closed" in repr(pool)


def test_pools_on_one_url_share_their_connections(pg: PostgresPool, postgres_url: str) -> None:
    with PostgresPool(postgres_url) as second, PostgresPool(postgres_url, readers=2) as third:
        second.execute(INSERT, ("x",))
        third.execute(INSERT, ("y",))
        assert pg.stats()["jobs"] == third.stats()["jobs"]
        for name, value in (("readers", 3), ("synchronous", "normal"), ("write_timeout", 1)):
            with pytest.raises(errors.ConfigError, match=name):
                PostgresPool(postgres_url, **{name: value})  # type: ignore[arg-type]
    assert kept(pg) == ["x", "y"]  # the others' ends closed nothing of it


def test_setting_that_is_refused_takes_no_handle(pg: PostgresPool, postgres_url: str) -> None:
    for _ in range(3):
        with pytest.raises(errors.ConfigError):
            PostgresPool(postgres_url, readers=7)
    pg.close()
    with plain(postgres_url) as other:
        eventually(lambda: others(other) == [])


def test_pool_that_could_not_be_opened_takes_no_engine() -> None:
    before = {*ENGINES._engines}
    for _ in range(3):
        with pytest.raises(errors.OperationalError):
            PostgresPool("postgresql://ann@127.0.0.1:1/x")
    pool = AsyncPostgresPool("postgresql://ann@127.0.0.1:1/x")
    with pytest.raises(errors.OperationalError):
        run(pool.open())
    assert {*ENGINES._engines} <= before


def test_copies_and_pickles_are_handles_of_their_own(pg: PostgresPool, postgres_url: str) -> None:
    for make in (copy.copy, lambda pool: pickle.loads(pickle.dumps(pool))):
        with make(pg) as other:
            assert other is not pg
            assert (other.path, other.settings.readers) == (pg.path, 2)
            assert other.fetchval("SELECT 1") == 1
    assert pg.fetchval("SELECT 1") == 1
    mirrored = AsyncPostgresPool(postgres_url, tenant="acme")
    for each in (copy.copy(mirrored), pickle.loads(pickle.dumps(mirrored))):
        assert run(each.fetchval("SELECT current_setting('walpool.tenant')")) == "acme"
        run(each.close())


def test_pool_that_nobody_closed_warns(postgres_url: str) -> None:
    pool = PostgresPool(postgres_url)
    with pytest.warns(ResourceWarning, match="unclosed"):
        pool.__del__()
    pool.close()


def test_normal_is_synchronous_commit_off_in_every_transaction(postgres_url: str) -> None:
    seen = "SELECT current_setting('synchronous_commit')"
    with PostgresPool(postgres_url, synchronous="normal") as pool:
        pool.script(TABLE)
        assert pool.execute(seen).rows == [("off",)]
        with pool.transaction() as tx:
            assert tx.fetchval(seen) == "off"
        pool.script(f"INSERT INTO t (a) {seen}")
        assert kept(pool) == ["off"]
    with PostgresPool(postgres_url) as pool:
        assert pool.execute(seen).rows == [("on",)]
