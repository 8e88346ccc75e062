"""No re-entrancy: inside `read()` and `transaction()` the pool's own verbs would wait for themselves: refused."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from helpers import Caller

import walpool
from walpool import errors

Block = Callable[[walpool.Pool], AbstractContextManager[Any]]


def stream(pool: walpool.Pool) -> None:
    with pool.stream("SELECT 1") as rows:
        list(rows)


def read(pool: walpool.Pool) -> None:
    with pool.read():
        pytest.fail("the block began")


def transaction(pool: walpool.Pool) -> None:
    with pool.transaction():
        pytest.fail("the block began")


VERBS: dict[str, Callable[[walpool.Pool], object]] = {
    "execute": lambda pool: pool.execute("INSERT INTO t VALUES (1)"),
    "executemany": lambda pool: pool.executemany("INSERT INTO t VALUES (?)", [(1,)]),
    "batch": lambda pool: pool.batch(["INSERT INTO t VALUES (1)"]),
    "script": lambda pool: pool.script("INSERT INTO t VALUES (1)"),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "fetchone": lambda pool: pool.fetchone("SELECT 1"),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
    "stream": stream,
    "read": read,
    "transaction": transaction,
    "run": lambda pool: pool.run(lambda tx: None),
    "checkpoint": lambda pool: pool.checkpoint(),
    "backup": lambda pool: pool.backup("never made.db"),
    "check": lambda pool: pool.check(),
    "vacuum": lambda pool: pool.vacuum(),
    "close": lambda pool: pool.close(),
}
BLOCKS: dict[str, Block] = {"read": lambda pool: pool.read(), "transaction": lambda pool: pool.transaction()}


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table."""
    pool.script("CREATE TABLE t (a)")
    return pool


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("block", BLOCKS)
def test_verb_of_the_pool_inside_its_own_block_is_refused_at_once(table: walpool.Pool, block: str, verb: str) -> None:
    with BLOCKS[block](table) as inside:
        with pytest.raises(errors.ReentrantError) as caught:
            VERBS[verb](table)
        assert inside.fetchval("SELECT count(*) FROM t") == 0  # the block goes on
    use = {"read": "use the snapshot in hand", "transaction": "use the tx in hand"}[block]
    advice = "end the block first" if verb == "close" else use
    expected = f"{verb}() inside {block}() of the same pool would wait for itself; {advice}"
    assert str(caught.value).startswith(expected)
    assert caught.value.outcome == "not_applied"
    assert table.fetchval("SELECT count(*) FROM t") == 0


def test_verbs_that_wait_for_nobody_are_not_refused(table: walpool.Pool) -> None:
    with table.transaction():
        assert table.stats()["leases"] == 1
        assert table.pop_stats()["leases"] == 1
        assert not table.closed


@pytest.mark.parametrize("block", BLOCKS)
def test_block_that_has_ended_refuses_nothing(table: walpool.Pool, block: str) -> None:
    with BLOCKS[block](table):
        pass
    with pytest.raises(ZeroDivisionError), BLOCKS[block](table):
        raise ZeroDivisionError
    assert table.execute("INSERT INTO t VALUES (1)").rowcount == 1


def test_stream_refuses_nothing(table: walpool.Pool) -> None:
    with table.stream("SELECT 1 UNION SELECT 2", chunk=1) as rows:
        for (n,) in rows:
            table.execute("INSERT INTO t VALUES (?)", (n,))
            with table.transaction() as tx:
                tx.execute("INSERT INTO t VALUES (?)", (n,))
    assert table.fetchval("SELECT count(*) FROM t") == 4


# Whose block it is


def test_other_threads_are_not_refused(table: walpool.Pool) -> None:
    with table.transaction():
        assert Caller(lambda: table.fetchval("SELECT 1")).outcome() == 1
    with table.read():
        assert Caller(lambda: table.execute("INSERT INTO t VALUES (1)")).outcome().rowcount == 1


def test_another_handle_on_the_same_file_is_refused(table: walpool.Pool, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(table.path)
    with walpool.get_pool(table.path) as handle, walpool.Pool(link) as linked, table.read():
        for other in (handle, linked):
            with pytest.raises(errors.ReentrantError):
                other.execute("INSERT INTO t VALUES (1)")


def test_hard_link_is_the_same_file(table: walpool.Pool, tmp_path: Path) -> None:
    os.link(table.path, tmp_path / "hard.db")
    with walpool.Pool(tmp_path / "hard.db") as other, table.read(), pytest.raises(errors.ReentrantError):
        other.execute("INSERT INTO t VALUES (1)")


def test_pool_on_another_file_is_not_refused(table: walpool.Pool, tmp_path: Path) -> None:
    with walpool.Pool(tmp_path / "other.db") as other, table.transaction() as tx:
        other.script("CREATE TABLE t (a)")
        with other.transaction() as inner:
            inner.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(errors.ReentrantError):
                table.fetch("SELECT 1")
            with pytest.raises(errors.ReentrantError):
                other.fetch("SELECT 1")
        assert other.fetchval("SELECT count(*) FROM t") == 1
        assert tx.fetchval("SELECT count(*) FROM t") == 0


# Contexts


def test_copy_of_the_context_is_refused_while_the_block_lasts(table: walpool.Pool) -> None:
    with table.read():
        context = contextvars.copy_context()
        with pytest.raises(errors.ReentrantError):
            context.run(table.fetch, "SELECT 1")
    assert context.run(table.fetchval, "SELECT 1") == 1


def test_context_from_before_the_block_is_not_refused(table: walpool.Pool) -> None:
    context = contextvars.copy_context()
    with table.read():
        assert context.run(table.fetchval, "SELECT 1") == 1


ON_A_LOOP = pytest.mark.filterwarnings("ignore:Pool:RuntimeWarning")  # these call a synchronous pool on purpose


@ON_A_LOOP
def test_child_task_is_refused_while_the_block_lasts(table: walpool.Pool) -> None:
    async def ask(begun: asyncio.Event, ended: asyncio.Event) -> Any:
        with pytest.raises(errors.ReentrantError):
            table.fetchval("SELECT 1")
        begun.set()
        await ended.wait()
        return table.fetchval("SELECT 1")

    async def main() -> Any:
        begun, ended = asyncio.Event(), asyncio.Event()
        with table.read():
            child = asyncio.create_task(ask(begun, ended))
            await begun.wait()
        ended.set()
        return await child

    assert asyncio.run(main()) == 1


@ON_A_LOOP
def test_sibling_task_is_not_refused(table: walpool.Pool) -> None:
    async def hold(begun: asyncio.Event, done: asyncio.Event) -> None:
        with table.read():
            begun.set()
            await done.wait()

    async def main() -> Any:
        begun, done = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(begun, done))
        await begun.wait()
        seen = table.fetchval("SELECT 1")
        done.set()
        await holder
        return seen

    assert asyncio.run(main()) == 1


def hold_a_snapshot(pool: walpool.Pool) -> Generator[None, None, None]:
    with pool.read():
        yield


def test_generators_may_end_in_another_order_than_they_began(table: walpool.Pool, tmp_path: Path) -> None:
    with walpool.Pool(tmp_path / "other.db") as other:
        first, second = hold_a_snapshot(table), hold_a_snapshot(other)
        next(first)
        next(second)
        first.close()
        assert table.fetchval("SELECT 1") == 1
        with pytest.raises(errors.ReentrantError):
            other.fetch("SELECT 1")
        second.close()
        assert (table.fetchval("SELECT 1"), other.fetchval("SELECT 1")) == (1, 1)


def test_block_may_end_in_another_context_than_it_began_in(table: walpool.Pool) -> None:
    began_in = contextvars.copy_context()
    generator = hold_a_snapshot(table)
    began_in.run(next, generator)
    generator.close()
    assert table.fetchval("SELECT 1") == 1
    assert began_in.run(table.fetchval, "SELECT 1") == 1
