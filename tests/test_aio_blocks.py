"""AsyncPool's blocks: stream, read and transaction, and that whoever holds or waits for one holds no thread.

holder                         others, in tasks of their own
read(), transaction() begin
                               wait for a reader, for the writer: no native thread is spent on it
goes on reading and writing
ends
                               are served in turn
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER
from looping import (
    INSERT,
    Holder,
    async_table,
    held,
    kept,
    on_asyncio,
    on_every_loop,
    outcome,
    queue_up,
    stat,
    until_reading,
)

import walpool
from walpool import errors

SOON = 0.05  # seconds
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n"


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool with an empty table that is not open yet."""
    with async_table(database) as pool:
        yield pool


@pytest.fixture
def scarce(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool of two readers with an empty table."""
    with async_table(database, readers=2) as pool:
        yield pool


async def insert(tx: walpool.AsyncTransaction, *values: Any) -> None:
    for value in values:
        await tx.execute(INSERT, (value,))


# stream


@on_every_loop
async def test_stream_gives_every_row_as_a_block_and_as_a_bare_loop(table: walpool.AsyncPool) -> None:
    for chunk in (1, 7, 1000, 5000):
        async with table.stream(NUMBERS, (1000,), chunk=chunk) as rows:
            assert [n async for (n,) in rows] == list(range(1, 1001))
        assert [n async for (n,) in table.stream(NUMBERS, (1000,), chunk=chunk)] == list(range(1, 1001))
    assert await stat(table, "readers_out") == 0


@on_asyncio
async def test_stream_makes_rows_as_fetch_does(table: walpool.AsyncPool) -> None:
    assert [row async for row in table.stream("SELECT 1 AS a", row=dict)] == [{"a": 1}]
    async with table.stream("SELECT :a AS b", {"a": 2}, row=lambda columns, values: (columns, values)) as rows:
        assert await anext(rows) == (("b",), (2,))
        with pytest.raises(StopAsyncIteration):
            await anext(rows)


@on_asyncio
async def test_stream_of_nothing_ends_at_once(table: walpool.AsyncPool) -> None:
    assert [row async for row in table.stream("SELECT a FROM t")] == []


@on_every_loop
async def test_break_out_of_a_stream_gives_its_reader_back(scarce: walpool.AsyncPool) -> None:
    for _ in range(10):
        async with scarce.stream(NUMBERS, (1000,), chunk=5) as rows:
            async for _row in rows:
                break
        assert await stat(scarce, "readers_out") == 0
    for _ in range(10):  # nothing tells a bare loop's stream that it was left, but that it goes
        async for _row in scarce.stream(NUMBERS, (1000,), chunk=5):
            break
        await until_reading(scarce, 0)


@on_asyncio
async def test_stream_reads_one_snapshot_and_the_pool_may_be_used_meanwhile(table: walpool.AsyncPool) -> None:
    await table.executemany(INSERT, [(n,) for n in range(10)])
    async for (n,) in table.stream("SELECT a FROM t ORDER BY a", chunk=1):
        await table.execute(INSERT, (n + 100,))
        async with table.transaction() as tx:
            await insert(tx, n + 200)
    assert len(await kept(table)) == 30


@on_asyncio
async def test_stream_fails_as_fetch_does(table: walpool.AsyncPool) -> None:
    for sql in ("NONSENSE", "DELETE FROM t", "SELECT ?"):
        with pytest.raises(errors.ProgrammingError):
            async for _ in table.stream(sql):
                pytest.fail("there was a row")
        with pytest.raises(errors.ProgrammingError):
            async with table.stream(sql) as rows:
                await anext(rows)
    for chunk in (0, -1, 2**70):
        with pytest.raises(ValueError, match="chunk must be 1 or more"):
            async with table.stream("SELECT 1", chunk=chunk):
                pytest.fail("the block began")
    assert await stat(table, "readers_out") == 0


# read


@on_every_loop
async def test_snapshot_does_not_see_what_others_commit_meanwhile(table: walpool.AsyncPool) -> None:
    async with held(table.read) as holder:
        snapshot = holder.inside
        await table.execute(INSERT, (1,))
        assert await snapshot.fetch("SELECT a FROM t") == []
        assert await snapshot.fetchone("SELECT a FROM t") is None
        assert await snapshot.fetchval("SELECT count(*) FROM t") == 0
        assert await snapshot.fetchone("SELECT 1 AS a", row=dict) == {"a": 1}
        assert await table.fetchval("SELECT count(*) FROM t") == 1
    with pytest.raises(errors.InterfaceError, match="ended"):
        await snapshot.fetch("SELECT 1")


@on_asyncio
async def test_read_in_a_snapshot_is_interrupted_by_its_own_timeout_and_the_snapshot_lives_on(
    table: walpool.AsyncPool,
) -> None:
    async with table.read() as snapshot:
        with pytest.raises(errors.StatementTimeout):
            await snapshot.fetchval(COUNT_TO, (FOREVER,), timeout=SOON)
        assert await snapshot.fetchval(COUNT_TO, (10,)) == 10


@on_asyncio
async def test_reads_of_several_tasks_in_one_snapshot_are_each_answered(table: walpool.AsyncPool) -> None:
    async with table.read() as snapshot:
        reads = [snapshot.fetchval(COUNT_TO, (n * 1000,)) for n in range(1, 30)]
        assert await asyncio.gather(*reads) == [n * 1000 for n in range(1, 30)]


@on_every_loop
async def test_snapshots_go_on_reading_while_more_tasks_than_threads_wait_for_a_reader(
    scarce: walpool.AsyncPool,
) -> None:
    holders = [await Holder(scarce.read).begun() for _ in range(2)]
    waiting = [asyncio.create_task(scarce.fetchval("SELECT ?", (n,))) for n in range(200)]
    blocks = [Holder(scarce.read) for _ in range(50)]
    for holder in holders:
        for n in (1, 20_000, 300_000):  # at once, after a moment, after a while
            assert await outcome(holder.inside.fetchval(COUNT_TO, (n,))) == n
    assert not any(task.done() for task in waiting)
    for holder in (*holders, *blocks):
        holder.let_go.set()
    await asyncio.gather(*(holder.task for holder in (*holders, *blocks)))
    assert await asyncio.gather(*waiting) == list(range(200))


# transaction


@on_every_loop
async def test_transaction_commits_at_its_end_and_nobody_sees_it_before(table: walpool.AsyncPool) -> None:
    async with held(table.transaction) as holder:
        tx = holder.inside
        await insert(tx, 1)
        done = await tx.executemany(INSERT, [(2,), (3,)])
        assert (done.rowcount, done.lastrowid) == (2, 3)
        assert await tx.fetch("SELECT a FROM t") == [(1,), (2,), (3,)]
        assert await tx.fetchone("SELECT a FROM t WHERE a = :a", {"a": 2}, row=dict) == {"a": 2}
        assert await tx.fetchval("SELECT count(*) FROM t") == 3
        assert await kept(table) == []
    assert await kept(table) == [1, 2, 3]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit, errors.DataError])
@on_every_loop
async def test_exception_rolls_back_and_goes_on(table: walpool.AsyncPool, kind: type[BaseException]) -> None:
    raised = kind("from the block")
    with pytest.raises(kind) as caught:
        async with table.transaction() as tx:
            await insert(tx, 1)
            raise raised
    assert caught.value is raised
    await table.execute(INSERT, (7,))
    assert await kept(table) == [7]


@on_asyncio
async def test_failed_statement_is_undone_and_leaves_the_transaction_open(table: walpool.AsyncPool) -> None:
    async with table.transaction() as tx:
        await insert(tx, 1)
        with pytest.raises(errors.ProgrammingError):
            await tx.execute("COMMIT")
        with pytest.raises(errors.ProgrammingError):
            await tx.executemany(INSERT, [(2,), ()])
        with pytest.raises(errors.StatementTimeout):
            await tx.fetch(COUNT_TO, (FOREVER,), timeout=SOON)
        await insert(tx, 3)
    assert await kept(table) == [1, 3]


@on_every_loop
async def test_savepoint_undoes_itself_alone(table: walpool.AsyncPool) -> None:
    async with table.transaction() as tx:
        await insert(tx, 1)
        async with tx.transaction() as inner:
            assert inner is tx
            await insert(tx, 2)
            with pytest.raises(ZeroDivisionError):
                async with tx.transaction():
                    await insert(tx, 3)
                    raise ZeroDivisionError
            await insert(tx, 4)
        with pytest.raises(ZeroDivisionError):
            async with tx.transaction():
                async with tx.transaction():
                    await insert(tx, 5)
                raise ZeroDivisionError
    assert await kept(table) == [1, 2, 4]


@on_asyncio
async def test_deferred_foreign_key_fails_at_the_end_of_the_block(table: walpool.AsyncPool) -> None:
    await table.script("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    await table.script("CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(errors.IntegrityError) as caught:
        async with table.transaction() as tx:
            await insert(tx, 1)
            await tx.execute("INSERT INTO child VALUES (404)")
    assert caught.value.outcome == "not_applied"
    assert await kept(table) == []


@on_every_loop
async def test_run_gives_what_the_coroutine_returns_and_commits_or_rolls_back(table: walpool.AsyncPool) -> None:
    async def work(tx: walpool.AsyncTransaction) -> object:
        await insert(tx, 1)
        return await tx.fetchval("SELECT count(*) FROM t")

    async def fail(tx: walpool.AsyncTransaction) -> None:
        await insert(tx, 2)
        raise ZeroDivisionError

    assert await table.run(work) == 1
    with pytest.raises(ZeroDivisionError):
        await table.run(fail)
    assert await kept(table) == [1]


@on_asyncio
async def test_tx_is_refused_after_its_end(table: walpool.AsyncPool) -> None:
    async with table.transaction() as tx:
        await insert(tx, 1)
    for use in (lambda: insert(tx, 2), lambda: tx.fetch("SELECT 1"), lambda: tx.executemany(INSERT, [(2,)])):
        with pytest.raises(errors.InterfaceError, match="ended"):
            await use()
    with pytest.raises(errors.InterfaceError, match="ended"):
        async with tx.transaction():
            pytest.fail("the block began")
    assert await kept(table) == [1]


@on_every_loop
async def test_counting_in_transactions_of_many_tasks_loses_nothing(table: walpool.AsyncPool) -> None:
    await table.execute(INSERT, (0,))

    async def count_up() -> None:
        for _ in range(5):
            async with table.transaction() as tx:
                count = await tx.fetchval("SELECT a FROM t")
                await asyncio.sleep(0)
                await tx.execute("UPDATE t SET a = ?", (count + 1,))

    await asyncio.gather(*(count_up() for _ in range(20)))
    assert await kept(table) == [100]


@on_asyncio
async def test_transactions_and_jobs_are_served_in_the_order_in_which_they_came(table: walpool.AsyncPool) -> None:
    async with held(table.transaction):
        tasks = await queue_up(
            table,
            [
                table.run(lambda tx: insert(tx, 1)),
                table.execute(INSERT, (2,)),
                table.run(lambda tx: insert(tx, 3)),
                table.batch([(INSERT, (4,))]),
            ],
        )
    await asyncio.gather(*tasks)
    assert await kept(table) == [1, 2, 3, 4]


@on_every_loop
async def test_transaction_goes_on_while_more_tasks_than_threads_wait_for_everything(
    scarce: walpool.AsyncPool,
) -> None:
    reading = [await Holder(scarce.read).begun() for _ in range(2)]
    writing = await Holder(scarce.transaction).begun()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: scarce.execute(INSERT, (2,)),
        lambda: scarce.run(lambda tx: insert(tx, 3)),
        lambda: scarce.fetchval("SELECT 1"),
        lambda: scarce.checkpoint("full"),
    ]
    waiting = [asyncio.ensure_future(call()) for _ in range(40) for call in calls]
    await asyncio.sleep(0)
    await outcome(insert(writing.inside, 1))
    assert await outcome(writing.inside.fetchval(COUNT_TO, (300_000,))) == 300_000
    assert await outcome(reading[0].inside.fetchval("SELECT count(*) FROM t")) == 0
    for holder in (writing, *reading):
        await holder.end()
    await outcome(asyncio.gather(*waiting))
    assert len(await kept(scarce)) == 81


# Re-entrancy

VERBS: dict[str, Callable[[walpool.AsyncPool], Any]] = {
    "execute": lambda pool: pool.execute(INSERT, (1,)),
    "executemany": lambda pool: pool.executemany(INSERT, [(1,)]),
    "batch": lambda pool: pool.batch([(INSERT, (1,))]),
    "script": lambda pool: pool.script("INSERT INTO t VALUES (1)"),
    "fetch": lambda pool: pool.fetch("SELECT 1"),
    "fetchone": lambda pool: pool.fetchone("SELECT 1"),
    "fetchval": lambda pool: pool.fetchval("SELECT 1"),
    "stream": lambda pool: pool.stream("SELECT 1").__aenter__(),
    "bare stream": lambda pool: anext(aiter(pool.stream("SELECT 1"))),
    "read": lambda pool: pool.read().__aenter__(),
    "transaction": lambda pool: pool.transaction().__aenter__(),
    "run": lambda pool: pool.run(lambda tx: insert(tx, 1)),
    "checkpoint": lambda pool: pool.checkpoint(),
    "backup": lambda pool: pool.backup("never made.db"),
    "check": lambda pool: pool.check(),
    "vacuum": lambda pool: pool.vacuum(),
    "close": lambda pool: pool.close(),
}


@pytest.mark.parametrize("block", ["read", "transaction"])
@on_every_loop
async def test_verbs_of_the_pool_inside_its_own_block_are_refused_at_once(table: walpool.AsyncPool, block: str) -> None:
    async with getattr(table, block)() as inside:
        for verb, call in VERBS.items():
            with pytest.raises(errors.ReentrantError) as caught:
                await call(table)
            assert f"inside {block}() of the same pool would wait for itself" in str(caught.value), verb
        assert await inside.fetchval("SELECT count(*) FROM t") == 0
        assert (await table.stats())["errors_QueueFull"] == 0, "what waits for nobody is not refused"
    assert await table.fetchval("SELECT count(*) FROM t") == 0
    assert not table.closed


@on_asyncio
async def test_task_begun_inside_a_block_is_refused_while_it_lasts_and_others_are_not(table: walpool.AsyncPool) -> None:
    async with table.read():
        with pytest.raises(errors.ReentrantError):
            await asyncio.create_task(table.fetchval("SELECT 1"))
        late = asyncio.Event()

        async def ask_later() -> Any:
            await late.wait()
            return await table.fetchval("SELECT 1")

        task = asyncio.create_task(ask_later())
    late.set()
    assert await task == 1
    async with held(table.transaction), held(table.read):
        assert await table.fetchval("SELECT 1") == 1


@on_asyncio
async def test_every_handle_on_the_file_is_refused_and_other_files_are_not(
    table: walpool.AsyncPool, tmp_path: Path
) -> None:
    plain = await asyncio.to_thread(walpool.Pool, table.path)
    other = walpool.AsyncPool(table.path)
    elsewhere = walpool.AsyncPool(tmp_path / "other.db")
    async with table.transaction() as tx:
        with pytest.raises(errors.ReentrantError):
            await other.fetchval("SELECT 1")
        with pytest.raises(errors.ReentrantError):
            plain.execute(INSERT, (1,))
        assert await elsewhere.fetchval("SELECT 1") == 1
        await insert(tx, 2)
    assert await kept(other) == [2]
    await asyncio.to_thread(plain.close)
    await other.close()
    await elsewhere.close()
