"""AsyncPool's verbs: each gives and raises what Pool's does, and shares the file's one engine with it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER, locked_by_another_process
from looping import INSERT, async_table, held, kept, on_asyncio, on_every_loop, outcome, run, stat

import walpool
from walpool import errors

SCHEMA = """
    CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
    CREATE TABLE child (word REFERENCES word DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO word VALUES (1, 'taken');
"""
ADD = "INSERT INTO word (text) VALUES (?)"

Call = Callable[[Any], Any]  # of a Pool, which answers, or of an AsyncPool, which is to be awaited


def make(columns: tuple[str, ...], values: tuple[Any, ...]) -> object:
    return columns, values


def fail(columns: tuple[str, ...], values: tuple[Any, ...]) -> object:
    raise LookupError("no such shape")


# What is asked of both pools, in this order.
CALLS: dict[str, Call] = {
    "script": lambda pool: pool.script(SCHEMA),
    "execute": lambda pool: pool.execute(ADD, ("a",)),
    "execute with names": lambda pool: pool.execute("INSERT INTO word VALUES (:id, :text)", {"id": 7, "text": "b"}),
    "execute that returns rows": lambda pool: pool.execute(ADD + " RETURNING id, upper(text) AS big", ("c",)),
    "execute that changes many": lambda pool: pool.execute("UPDATE word SET text = text || '!' WHERE id > 1"),
    "execute that inserts nothing": lambda pool: pool.execute("INSERT OR IGNORE INTO word VALUES (1, 'taken')"),
    "executemany": lambda pool: pool.executemany(ADD, [("d",), ("e",)]),
    "executemany of a generator": lambda pool: pool.executemany(ADD, ((text,) for text in "fg")),
    "executemany of nothing": lambda pool: pool.executemany(ADD, []),
    "batch": lambda pool: pool.batch([(ADD, ("h",)), "UPDATE word SET text = 'i' WHERE id = 7"]),
    "batch of nothing": lambda pool: pool.batch([]),
    "fetch": lambda pool: pool.fetch("SELECT * FROM word ORDER BY id"),
    "fetch of dicts": lambda pool: pool.fetch("SELECT id, text FROM word ORDER BY id", row=dict),
    "fetch of what is made": lambda pool: pool.fetch("SELECT id FROM word WHERE id < ?", (3,), row=make),
    "fetch of nothing": lambda pool: pool.fetch("SELECT * FROM word WHERE id < 0"),
    "fetchone": lambda pool: pool.fetchone("SELECT * FROM word WHERE id = :id", {"id": 1}),
    "fetchone of a dict": lambda pool: pool.fetchone("SELECT * FROM word WHERE id = 1", row=dict),
    "fetchone of nothing": lambda pool: pool.fetchone("SELECT * FROM word WHERE id < 0"),
    "fetchval": lambda pool: pool.fetchval("SELECT count(*) FROM word"),
    "fetchval of nothing": lambda pool: pool.fetchval("SELECT id FROM word WHERE id < 0"),
    "fetchval of a long query": lambda pool: pool.fetchval(COUNT_TO, (200_000,)),
    "checkpoint": lambda pool: pool.checkpoint("truncate"),
    "check": lambda pool: pool.check(),
    "vacuum": lambda pool: pool.vacuum(),
    "a unique value that is taken": lambda pool: pool.execute(ADD, ("taken",)),
    "a deferred foreign key": lambda pool: pool.execute("INSERT INTO child VALUES (404)"),
    "a row of executemany that fails": lambda pool: pool.executemany(ADD, [("x",), ("taken",)]),
    "a statement of a batch that fails": lambda pool: pool.batch([(ADD, ("x",)), (ADD, ("taken",))]),
    "a script that fails": lambda pool: pool.script("DELETE FROM word; NONSENSE"),
    "bad SQL": lambda pool: pool.execute("NONSENSE"),
    "bad SQL in a read": lambda pool: pool.fetch("NONSENSE"),
    "no such table": lambda pool: pool.fetchval("SELECT * FROM nowhere"),
    "a read that writes": lambda pool: pool.fetch("DELETE FROM word"),
    "too few parameters": lambda pool: pool.fetch("SELECT ?, ?", (1,)),
    "too many parameters": lambda pool: pool.execute(ADD, ("x", 2)),
    "a name that is missing": lambda pool: pool.fetchone("SELECT :a", {"b": 1}),
    "a value of no kind": lambda pool: pool.execute(ADD, (datetime.now(timezone.utc),)),
    "an integer over 64 bits": lambda pool: pool.fetchval("SELECT ?", (2**63,)),
    "parameters of no kind": lambda pool: pool.fetchval("SELECT ?", 7),
    "SQL of no kind": lambda pool: pool.execute(7),
    "rows of no kind": lambda pool: pool.executemany(ADD, 7),
    "a row of no kind": lambda pool: pool.fetch("SELECT 1", row="dict"),
    "a row callable that raises": lambda pool: pool.fetch("SELECT 1", row=fail),
    "a long read whose row callable raises": lambda pool: pool.fetch(COUNT_TO, (200_000,), row=fail),
    "a timeout below zero": lambda pool: pool.fetch("SELECT 1", timeout=-1),
    "a timeout below zero of a write": lambda pool: pool.execute(ADD, ("x",), timeout=-1),
    "a read that runs past its timeout": lambda pool: pool.fetch(COUNT_TO, (FOREVER,), timeout=0.05),
    "a checkpoint of no kind": lambda pool: pool.checkpoint("nonsense"),
    "what is there at the end": lambda pool: pool.fetch("SELECT * FROM word ORDER BY id"),
}


def told(answer: object) -> object:
    """Return what an answer holds, to be compared; of an error all that a caller can branch on, and its text."""
    if isinstance(answer, walpool.Result):
        return answer.rowcount, answer.lastrowid, answer.rows, answer.columns
    if isinstance(answer, list):
        return [told(part) for part in answer]
    if isinstance(answer, errors.Error):
        text = str(answer).replace("async.db", "plain.db")
        return type(answer), text, answer.outcome, answer.retryable, answer.sqlite_errorname
    return (type(answer), str(answer)) if isinstance(answer, Exception) else answer


def answer(call: Call, pool: walpool.Pool) -> object:
    try:
        return told(call(pool))
    except Exception as error:  # noqa: BLE001 - compared below
        return told(error)


async def async_answer(call: Call, pool: walpool.AsyncPool) -> object:
    try:
        return told(await call(pool))
    except Exception as error:  # noqa: BLE001 - compared below
        return told(error)


@pytest.fixture
def table(database: Path) -> Iterator[walpool.AsyncPool]:
    """Yield a pool with an empty table that is not open yet."""
    with async_table(database) as pool:
        yield pool


# The same as Pool's


@on_every_loop
async def test_every_call_gives_or_raises_what_the_pool_of_threads_does(tmp_path: Path) -> None:
    async with walpool.AsyncPool(tmp_path / "async.db") as pool:
        mirrored = {name: await async_answer(call, pool) for name, call in CALLS.items()}

    def plainly() -> dict[str, object]:
        with walpool.Pool(tmp_path / "plain.db") as plain:
            return {name: answer(call, plain) for name, call in CALLS.items()}

    expected = await asyncio.to_thread(plainly)
    assert mirrored == expected


@on_asyncio
async def test_calls_fail_in_the_await_and_not_before(table: walpool.AsyncPool) -> None:
    for call in (table.execute("NONSENSE"), table.fetch("SELECT ?"), table.executemany(INSERT, 7)):  # type: ignore[arg-type]
        with pytest.raises((errors.ProgrammingError, TypeError)):
            await asyncio.create_task(call)


VALUES = [
    None, True, 0, -(2**63), 2**63 - 1, 1.5, float("inf"), "", "größe 🐘 \0", b"", bytes(range(256)),
    bytearray(b"abc"), memoryview(b"abc"),
]  # fmt: skip


@on_every_loop
async def test_values_go_in_and_out_as_they_are(table: walpool.AsyncPool) -> None:
    for value in VALUES:
        expected = bytes(value) if isinstance(value, bytearray | memoryview) else value
        assert await table.fetchval("SELECT ?", (value,)) == expected
        inserted = await table.execute(INSERT + " RETURNING a", (value,))
        assert inserted.rows == [(expected,)]
        async with table.transaction() as tx:
            assert await tx.fetchval("SELECT ?", (value,)) == expected
    assert len(await kept(table)) == len(VALUES)


@on_asyncio
async def test_parameters_are_taken_when_the_call_is_made(table: walpool.AsyncPool) -> None:
    buffer, rows = bytearray(b"before"), [(1,), (2,)]
    async with held(table.transaction):
        tasks = [
            asyncio.create_task(table.execute(INSERT, (buffer,))),
            asyncio.create_task(table.executemany(INSERT, rows)),
        ]
        while await stat(table, "jobs_waiting") < 2:
            await asyncio.sleep(0)
        buffer[:] = b"after!"
        rows.append((3,))
    await asyncio.gather(*tasks)
    assert await kept(table) == [b"before", 1, 2]


@on_every_loop
async def test_many_calls_at_once_are_each_given_their_own_answer(table: walpool.AsyncPool) -> None:
    writes = [table.execute(INSERT + " RETURNING a", (n,)) for n in range(300)]
    reads = [table.fetchval("SELECT ?", (n,)) for n in range(300)]
    long_reads = [table.fetchval(COUNT_TO, (20_000 + n,)) for n in range(30)]
    assert [done.rows for done in await asyncio.gather(*writes)] == [[(n,)] for n in range(300)]
    assert await asyncio.gather(*reads) == list(range(300))
    assert await asyncio.gather(*long_reads) == list(range(20_000, 20_030))
    assert sorted(await kept(table)) == list(range(300))


@on_asyncio
async def test_writes_of_many_tasks_are_committed_in_groups(table: walpool.AsyncPool) -> None:
    await table.open()
    await table.pop_stats()
    async with held(table.transaction):
        tasks = [asyncio.create_task(table.execute(INSERT, (n,))) for n in range(100)]
        while await stat(table, "jobs_waiting") < 100:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    stats = await table.stats()
    assert (stats["jobs"], stats["leases"]) == (100, 1)
    assert stats["groups"] <= 10
    assert await kept(table) == list(range(100)), "in the order in which they came"


@on_asyncio
async def test_failed_call_harms_none_of_those_that_wait_with_it(table: walpool.AsyncPool) -> None:
    await table.script("CREATE UNIQUE INDEX one ON t (a)")
    calls = [table.execute("INSERT OR ROLLBACK INTO t VALUES (?)", (n // 2,)) for n in range(60)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(found, errors.IntegrityError) for found in answers) == 30
    assert sorted(await kept(table)) == list(range(30))


@on_asyncio
async def test_backup_is_a_database_with_everything_in_it(table: walpool.AsyncPool, tmp_path: Path) -> None:
    await table.executemany(INSERT, [(n,) for n in range(100)])
    await table.backup(tmp_path / "copy.db")
    with pytest.raises(errors.StorageError):
        await table.backup(str(tmp_path / "copy.db"))
    async with walpool.AsyncPool(tmp_path / "copy.db") as copy:
        assert await kept(copy) == list(range(100))
        assert await copy.check() == []


@on_asyncio
async def test_stats_are_those_of_the_engine_and_are_popped(table: walpool.AsyncPool) -> None:
    await table.execute(INSERT, (1,))
    assert await kept(table) == [1]
    popped = await table.pop_stats()
    assert (popped["jobs"], popped["reads"]) == (1, 1)
    assert (await table.stats())["jobs"] == 0


# One engine a file


@on_every_loop
async def test_both_kinds_of_pool_see_at_once_what_the_other_was_told(table: walpool.AsyncPool) -> None:
    plain = await asyncio.to_thread(walpool.Pool, table.path)
    for n in range(200):
        if n % 2:
            await table.execute(INSERT, (n,))
            assert await asyncio.to_thread(plain.fetchval, "SELECT max(a) FROM t") == n
        else:
            await asyncio.to_thread(plain.execute, INSERT, (n,))
            assert await table.fetchval("SELECT max(a) FROM t") == n
    assert (await table.stats())["jobs"] == 200
    assert await asyncio.to_thread(plain.stats) == await table.stats()
    await asyncio.to_thread(plain.close)
    assert await table.fetchval("SELECT count(*) FROM t") == 200, "the other handle was not the last"


@on_asyncio
async def test_writer_is_one_for_both_kinds_of_pool(table: walpool.AsyncPool) -> None:
    plain = await asyncio.to_thread(walpool.Pool, table.path)
    async with held(table.transaction) as holder:
        await holder.inside.execute(INSERT, (1,))
        with pytest.raises(errors.WriteTimeout):
            await asyncio.to_thread(plain.execute, INSERT, (2,), timeout=0.01)
    await asyncio.to_thread(plain.close)
    assert await kept(table) == [1]


@on_asyncio
async def test_settings_are_compared_with_those_of_the_open_engine(database: Path) -> None:
    plain = await asyncio.to_thread(walpool.Pool, database, readers=3)
    other = walpool.AsyncPool(database, readers=4)
    with pytest.raises(errors.ConfigError, match="readers"):
        await other.open()
    with pytest.raises(errors.ConfigError, match="readers"):
        await other.fetch("SELECT 1")
    same = walpool.AsyncPool(database, readers=3)
    assert await same.fetchval("SELECT 1") == 1
    await other.close()
    await same.close()
    await asyncio.to_thread(plain.close)


# Opening


def test_constructor_needs_no_loop_and_opens_nothing(database: Path) -> None:
    pool = walpool.AsyncPool(database, readers=3)
    assert not database.exists()
    assert (pool.path, pool.settings.readers, pool.closed) == (str(database.resolve()), 3, False)


@pytest.mark.parametrize("settings", [{"readers": 0}, {"no_such_setting": 1}, {"synchronous": "off"}])
def test_constructor_refuses_bad_settings(database: Path, settings: dict[str, object]) -> None:
    for opening in (walpool.AsyncPool, walpool.get_async_pool):
        with pytest.raises(errors.ConfigError):
            opening(database, **settings)


def test_get_async_pool_takes_what_get_pool_takes(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    with pytest.raises(errors.ConfigError, match="WALPOOL_URL"):
        walpool.get_async_pool()
    with pytest.raises(errors.ConfigError, match="get_async_pool"):
        walpool.AsyncPool("postgresql://localhost/x")
    assert walpool.get_async_pool(f"sqlite://{database}?readers=3").settings.readers == 3
    monkeypatch.setenv("WALPOOL_URL", str(database))
    assert walpool.get_async_pool().path == str(database.resolve())


@on_every_loop
async def test_first_call_opens_the_pool(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    await pool.script("CREATE TABLE t (a)")
    assert await pool.execute(INSERT, (1,)) is not None
    await pool.close()
    for use in (walpool.AsyncPool.read, walpool.AsyncPool.transaction):
        pool = walpool.AsyncPool(database)
        async with use(pool) as block:
            assert await block.fetchval("SELECT a FROM t") == 1
        await pool.close()
    pool = walpool.AsyncPool(database)
    assert [row async for row in pool.stream("SELECT a FROM t")] == [(1,)]
    await pool.close()


@on_asyncio
async def test_open_may_be_awaited_more_than_once_and_by_many(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    await asyncio.gather(*(pool.open() for _ in range(20)))
    await pool.open()
    async with pool as entered:
        assert entered is pool
    plain = await asyncio.to_thread(walpool.Pool, database, readers=3)  # refused, were a handle still open
    await asyncio.to_thread(plain.close)


@on_asyncio
async def test_many_first_calls_open_one_pool(database: Path) -> None:
    pool = walpool.AsyncPool(database)
    assert await asyncio.gather(*(pool.fetchval("SELECT ?", (n,)) for n in range(100))) == list(range(100))
    await pool.close()
    plain = await asyncio.to_thread(walpool.Pool, database, readers=3)
    await asyncio.to_thread(plain.close)


@on_asyncio
async def test_path_that_cannot_be_opened_fails_in_the_await_and_may_be_tried_again(tmp_path: Path) -> None:
    pool = walpool.AsyncPool(tmp_path / "folder" / "test.db")
    with pytest.raises(errors.StorageError):
        await pool.open()
    with pytest.raises(errors.StorageError):
        await pool.fetch("SELECT 1")
    with pytest.raises(errors.StorageError):
        async with pool.read():
            pytest.fail("the block began")
    (tmp_path / "folder").mkdir()
    assert await pool.fetchval("SELECT 1") == 1
    await pool.close()


@on_asyncio
async def test_file_that_is_no_database_fails_in_the_await(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(errors.CorruptError):
        async with walpool.AsyncPool(tmp_path / "text"):
            pytest.fail("the block began")


@on_asyncio
async def test_opening_a_file_that_another_process_keeps_locked_is_busy(database: Path) -> None:
    with locked_by_another_process(database, "EXCLUSIVE"):
        pool = walpool.AsyncPool(database, busy_timeout=0.05)
        with pytest.raises(errors.BusyError):
            await outcome(pool.open())
    await pool.open()
    await pool.close()


@on_asyncio
async def test_memory_is_a_private_file_of_the_pool() -> None:
    async with walpool.AsyncPool(":memory:") as pool, walpool.AsyncPool(":memory:") as other:
        await pool.script("CREATE TABLE t (a)")
        assert await pool.fetchval("SELECT count(*) FROM t") == 0
        with pytest.raises(errors.ProgrammingError):
            await other.fetch("SELECT * FROM t")
        path = Path(pool.path)
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the folder is the process's own")
def test_pool_opens_the_file_that_its_path_named_when_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = walpool.AsyncPool("test.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(pool.script("CREATE TABLE t (a)"))
    run(pool.close())
    assert (tmp_path / "test.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
