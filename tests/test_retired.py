"""A file that `walpool migrate --retire` has marked is read on and not written, unless its pool is told otherwise."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import other_process, run_python

import walpool
from walpool import ReadOnlyError, cli, doctor, memory, schema

SUCCESSOR = "postgresql://app@db.example/agents"
INSERT = "INSERT INTO t VALUES (2)"

# As `walpool migrate --retire` does, in a process of its own.
RETIRING = """
    import sys, walpool
    from walpool import schema
    with walpool.Pool(sys.argv[1]) as pool, pool.transaction() as tx:
        tx.execute(schema.CREATE_RETIRED)
        tx.execute(schema.RETIRE, (sys.argv[2],))
"""

WRITES: dict[str, Callable[[walpool.Pool], object]] = {
    "execute": lambda pool: pool.execute(INSERT),
    "execute of what writes nothing": lambda pool: pool.execute("SELECT 1"),
    "executemany": lambda pool: pool.executemany("INSERT INTO t VALUES (?)", [(2,), (3,)]),
    "batch": lambda pool: pool.batch([INSERT, "DELETE FROM t"]),
    "script": lambda pool: pool.script("CREATE TABLE other (id); DROP TABLE t"),
    "run": lambda pool: pool.run(lambda tx: tx.execute(INSERT)),
    "vacuum": lambda pool: pool.vacuum(),
}


def retire(database: Path) -> None:
    run_python(RETIRING, database, SUCCESSOR)


@pytest.fixture
def retired(database: Path) -> Path:
    """Return a file with a 1 in it that is retired."""
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (id); INSERT INTO t VALUES (1)")
    retire(database)
    return database


def rows(database: Path) -> list[object]:
    with walpool.Pool(database) as pool:
        return [row[0] for row in pool.fetch("SELECT id FROM t ORDER BY id")]


@pytest.mark.parametrize("verb", WRITES)
def test_write_to_a_retired_file_is_refused_with_where_to_write_and_how_to_override(retired: Path, verb: str) -> None:
    with walpool.Pool(retired) as pool:
        with pytest.raises(ReadOnlyError) as caught:
            WRITES[verb](pool)
        assert pool.stats()["errors_ReadOnlyError"] == 1
    said = str(caught.value)
    for part in ("retired by walpool migrate at 20", SUCCESSOR, "nothing was written", str(retired)):
        assert part in said
    for way_out in ("write_retired=True", "WALPOOL_WRITE_RETIRED=1", "walpool unretire"):
        assert way_out in said
    assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    assert rows(retired) == [1]


def test_every_read_of_a_retired_file_works(retired: Path, tmp_path: Path) -> None:
    with walpool.Pool(retired) as pool:
        assert pool.fetch("SELECT id FROM t") == [(1,)]
        assert pool.fetchval("SELECT count(*) FROM t") == 1
        with pool.stream("SELECT id FROM t") as stream, pool.read() as snapshot:
            assert snapshot.fetchone("SELECT id FROM t") == next(stream) == (1,)
        assert pool.check() == []
        assert pool.checkpoint("truncate") == (False, 0, 0)
        pool.backup(tmp_path / "copy.db")
    with walpool.Pool(tmp_path / "copy.db") as pool, pytest.raises(ReadOnlyError):
        pool.execute(INSERT)  # a copy of what is retired


def test_async_pool_reads_a_retired_file_and_does_not_write_it(retired: Path) -> None:
    async def main() -> None:
        async with walpool.AsyncPool(retired) as pool:
            writes = pool.execute(INSERT), pool.executemany("INSERT INTO t VALUES (?)", [(2,)]), pool.batch([INSERT])
            answers = await asyncio.gather(*writes, pool.script(INSERT), pool.vacuum(), return_exceptions=True)
            assert [type(answer) for answer in answers] == [ReadOnlyError] * 5
            with pytest.raises(ReadOnlyError):
                async with pool.transaction():
                    raise AssertionError("a transaction began")
            async with pool.read() as snapshot:
                assert await snapshot.fetch("SELECT id FROM t") == [(1,)]

    asyncio.run(main())


def test_opening_a_retired_file_warns_once_and_an_ordinary_one_not_at_all(
    retired: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "walpool"):
        with walpool.Pool(tmp_path / "other.db") as pool:
            pool.fetch("SELECT 1")
        assert caplog.records == []
        with walpool.Pool(retired) as pool, walpool.Pool(retired) as other:
            pool.fetch("SELECT 1")
            other.fetch("SELECT 1")
            pool.fetch("SELECT 1")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert SUCCESSOR in record.getMessage()
    assert str(retired) in record.getMessage()


def test_pool_that_has_the_file_open_stops_writing_when_another_process_retires_it(database: Path) -> None:
    #   this pool           another process
    #   writes
    #                       marks the file
    #   is refused, reads
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (id); INSERT INTO t VALUES (1)")
        retire(database)
        with pytest.raises(ReadOnlyError) as caught:
            pool.execute(INSERT)
        assert caught.value.outcome == "not_applied"
        assert pool.fetchval("SELECT count(*) FROM t") == 1
        with pytest.raises(ReadOnlyError), pool.transaction():
            raise AssertionError("a transaction began")


def test_other_commits_of_other_processes_keep_nobody_from_writing(database: Path) -> None:
    inserting = "import sys, walpool; walpool.Pool(sys.argv[1]).execute('INSERT INTO t VALUES (9)')"
    with walpool.Pool(database) as pool:
        pool.execute("CREATE TABLE t (id)")
        for _ in range(2):
            run_python(inserting, database)
            pool.execute(INSERT)
    assert rows(database) == [2, 2, 9, 9]


def test_process_that_waits_for_the_lock_while_the_file_is_retired_writes_nothing(database: Path) -> None:
    #   this process            another one
    #   BEGIN IMMEDIATE
    #                           execute: waits for the lock
    #   marks the file, COMMIT
    #                           is refused
    writing = """
        import sys, walpool
        pool = walpool.Pool(sys.argv[1])
        print("opened", flush=True)
        sys.stdin.readline()
        print("begins", flush=True)
        try:
            pool.execute("INSERT INTO t VALUES (2)")
        except walpool.ReadOnlyError as error:
            print(error.outcome)
    """
    with walpool.Pool(database, write_retired=True) as pool:
        pool.execute("CREATE TABLE t (id)")
        with other_process(writing, database) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with pool.transaction() as tx:
                process.stdin.write("go\n")
                process.stdin.flush()
                assert process.stdout.readline() == "begins\n"
                tx.execute(schema.CREATE_RETIRED)
                tx.execute(schema.RETIRE, (SUCCESSOR,))
            assert process.communicate(timeout=20)[0] == "not_applied\n"
        assert pool.fetchval("SELECT count(*) FROM t") == 0


@pytest.mark.parametrize("told", [{"write_retired": True}, {"write_retired": "on"}])
def test_write_retired_opens_a_retired_file_to_write_and_warns_of_nothing(
    retired: Path, told: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with walpool.Pool(retired, **told) as pool:
        pool.execute(INSERT)
    assert caplog.records == []
    assert rows(retired) == [1, 2]


def test_write_retired_may_stand_in_the_url_and_in_the_environment(
    retired: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with walpool.get_pool(f"walpool://{retired}?write_retired=1") as pool:
        pool.execute(INSERT)
    monkeypatch.setenv("WALPOOL_WRITE_RETIRED", "1")
    with walpool.Pool(retired) as pool:
        pool.execute(INSERT)
    monkeypatch.setenv("WALPOOL_WRITE_RETIRED", "0")
    with walpool.Pool(retired) as pool, pytest.raises(ReadOnlyError):
        pool.execute(INSERT)


def test_file_that_is_open_to_read_only_is_not_joined_to_write(retired: Path) -> None:
    with walpool.Pool(retired), pytest.raises(walpool.ConfigError, match="write_retired"):
        walpool.Pool(retired, write_retired=True)


def test_pool_of_a_forked_child_obeys_the_mark_too(retired: Path) -> None:
    forking = """
        import os, sys, walpool
        pool = walpool.Pool(sys.argv[1])
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        try:
            pool.execute("INSERT INTO t VALUES (2)")
        except walpool.ReadOnlyError:
            os._exit(0 if pool.fetchval("SELECT count(*) FROM t") == 1 else 2)
        os._exit(1)
    """
    run_python(forking, retired)


def test_memory_store_in_a_retired_file_is_searched_and_saves_nothing(database: Path) -> None:
    record = memory.Record(id="1", content="the sky is blue", embedding=memory.pack([1, 0]))
    with memory.open(database) as store:
        store.save([record])
    retire(database)
    with memory.open(database) as store:
        (hit,) = store.search(memory.pack([1, 0]))
        assert hit.record.id == "1"
        assert store.get("1") is not None
        with pytest.raises(ReadOnlyError):
            store.save([record])
        with pytest.raises(ReadOnlyError):
            store.delete(memory.Query(scope="/"))
    assert cli.main(["memory", "list", str(database)]) == 0
    assert cli.main(["memory", "delete", str(database), "--id", "1", "--yes"]) == 1


def test_doctor_says_what_a_mark_does(retired: Path) -> None:
    (finding,) = [finding for finding in doctor.examine(str(retired)) if finding.subject == "retired"]
    assert finding.verdict == "warning"
    for said in (SUCCESSOR, "read only", "walpool unretire"):
        assert said in finding.said


def test_unretire_lets_a_file_be_written_again(retired: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    assert cli.main(["unretire", str(retired)]) == 0
    assert SUCCESSOR in capsys.readouterr().out
    with walpool.Pool(retired) as pool:
        assert schema.successor(pool) is None
        pool.execute(INSERT)
    assert cli.main(["unretire", str(retired), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"successor": None}
    assert rows(retired) == [1, 2]


@pytest.mark.parametrize("target", ["there is no such file.db", "postgresql://host/agents"])
def test_unretire_refuses_what_is_no_file_and_makes_none(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["unretire", target]) == 2
    assert capsys.readouterr().err.startswith("walpool: error: ")
    assert list(tmp_path.iterdir()) == []


def test_command_that_writes_a_retired_file_fails_in_one_line(retired: Path, tmp_path: Path) -> None:
    with memory.open(tmp_path / "full.db") as store:
        store.save([memory.Record(id="1", content="one")])
    assert cli.main(["export", str(tmp_path / "full.db"), "--to", str(tmp_path / "m.jsonl")]) == 0
    command = [sys.executable, "-m", "walpool", "import", str(tmp_path / "m.jsonl"), str(retired)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "retired by walpool migrate" in done.stderr
    assert "Traceback" not in done.stderr
