"""Corners where a promise is easily broken: odd texts, changed schemas, passed deadlines, interrupts at odd moments."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time

import pytest
from helpers import (
    COUNT_TO,
    FOREVER,
    Caller,
    eventually,
    queue_up,
    run_python,
    writer_held,
)
from test_interrupts import EPILOGUE, PRELUDE

import walpool
from walpool import errors

INSERT = "INSERT INTO t VALUES (?)"


@pytest.fixture
def table(pool):
    pool.script("CREATE TABLE t (a)")
    return pool


def test_sql_with_a_nul_character_is_refused(table):
    table.executemany(INSERT, [(1,), (2,)])
    with pytest.raises(errors.ProgrammingError):
        table.execute("DELETE FROM t\0WHERE a = 1")
    assert table.fetchval("SELECT count(*) FROM t") == 2


def test_script_with_a_nul_character_is_refused(table):
    with pytest.raises(errors.ProgrammingError):
        table.script("INSERT INTO t VALUES (1)\0; INSERT INTO t VALUES (2)")
    assert table.fetchval("SELECT count(*) FROM t") == 0


def test_column_that_was_added_is_in_the_next_row(table):
    table.execute(INSERT, (1,))
    assert table.fetch("SELECT * FROM t") == [(1,)]
    table.execute("ALTER TABLE t ADD COLUMN b DEFAULT 7")
    assert table.fetch("SELECT * FROM t", row=dict) == [{"a": 1, "b": 7}]


def test_column_that_was_dropped_is_not_in_the_next_row(table):
    table.script("ALTER TABLE t ADD COLUMN b")
    table.execute("INSERT INTO t VALUES (1, 2)")
    assert table.fetch("SELECT * FROM t") == [(1, 2)]
    table.execute("ALTER TABLE t DROP COLUMN b")
    assert table.fetch("SELECT * FROM t", row=dict) == [{"a": 1}]


def test_returning_gives_the_columns_of_the_schema_as_it_is(table):
    sql = "INSERT INTO t (a) VALUES (1) RETURNING *"
    assert table.execute(sql).columns == ("a",)
    table.execute("ALTER TABLE t ADD COLUMN b DEFAULT 7")
    done = table.execute(sql)
    assert (done.rows, done.columns) == ([(1, 7)], ("a", "b"))


def test_batch_of_a_wrong_shape_is_a_programming_error(table):
    for bad in ([("SELECT 1",)], [("SELECT 1", (), 3)], [[1, 2]], [(1, ())]):
        with pytest.raises(errors.ProgrammingError):
            table.batch(bad)


def test_lastrowid_of_each_statement_of_a_batch_is_its_own(table):
    first, second, third = table.batch([(INSERT, (1,)), "UPDATE t SET a = 2", "DELETE FROM t"])
    assert (first.lastrowid, second.lastrowid, third.lastrowid) == (1, None, None)


def test_rowcount_of_executemany_without_rows_is_nought(table):
    assert table.executemany(INSERT, []).rowcount == 0


@pytest.mark.parametrize("timeout", [1e10, 1e18, 1e19, float("inf")])
def test_timeout_of_any_length_is_accepted_or_refused_and_never_a_panic(table, timeout):
    with contextlib.suppress(errors.ProgrammingError):
        assert table.fetchval("SELECT 1", timeout=timeout) == 1


@pytest.mark.parametrize("again", range(5))
@pytest.mark.parametrize("sql", [f"INSERT INTO t {COUNT_TO}", COUNT_TO], ids=["a write", "a read"])
def test_statement_that_runs_past_the_deadline_is_stopped_and_the_block_says_so(database, sql, again):
    with walpool.Pool(database, transaction_timeout=0.1) as impatient:
        impatient.script("CREATE TABLE t (a)")

        def work(tx):
            tx.execute(INSERT, (1,))
            with pytest.raises(errors.TransactionTimeout, match="ran past transaction_timeout"):
                tx.execute(sql, (FOREVER,))

        with pytest.raises(errors.TransactionTimeout):
            impatient.run(work)
        impatient.execute("INSERT INTO t VALUES (7)")
        assert impatient.fetch("SELECT a FROM t") == [(7,)]


def test_idle_transaction_that_was_taken_back_does_not_blame_a_statement(database):
    with walpool.Pool(database, transaction_timeout=0.05) as pool:

        def work(tx):
            eventually(lambda: pool.stats()["leases_revoked"] == 1)
            tx.fetch("SELECT 1")

        with pytest.raises(errors.TransactionTimeout, match="open for longer"):
            pool.run(work)


def test_idle_transaction_is_taken_back_while_a_checkpoint_waits_for_its_turn(database):
    with walpool.Pool(database, transaction_timeout=0.5, write_timeout=5) as pool:
        pool.script("CREATE TABLE t (a)")
        with pool.stream("SELECT 1"):
            pool.executemany(INSERT, [("x" * 4000,) for _ in range(4500)])

            def overstay():
                with pool.transaction():
                    pool_done.wait(10)

            pool_done = threading.Event()
            holder = Caller(overstay)
            eventually(lambda: pool.stats()["leases"] == 1)
            assert pool.execute(INSERT, (1,)).rowcount == 1
            pool_done.set()
            holder.error(errors.TransactionTimeout)


def test_stale_limits_of_earlier_calls_stop_nobody(database):
    with walpool.Pool(database, readers=1, transaction_timeout=0.05, synchronous="normal") as pool:
        pool.script("CREATE TABLE t (a); CREATE INDEX i ON t (a)")
        pool.run(lambda tx: tx.executemany(INSERT, [(n,) for n in range(5000)]))
        pool.fetch("SELECT 1", timeout=0.01)
        passed = time.monotonic() + 0.1
        eventually(lambda: time.monotonic() > passed)
        pool.vacuum()
        for _ in range(1000):
            with pool.read():
                pass


def test_jobs_waiting_is_nought_when_nobody_waits(table):
    with writer_held(table):
        callers = queue_up(table, [lambda: table.run(lambda tx: None)])
    callers[0].outcome()
    assert table.stats()["jobs_waiting"] == 0


def test_wal_past_its_limit_is_logged(database, caplog):
    def is_told():
        pool.stats()
        return any("past wal_limit" in r.getMessage() for r in caplog.records)

    with walpool.Pool(database, wal_limit=2**16) as pool:
        pool.script("CREATE TABLE t (a)")
        with pool.stream("SELECT count(*) FROM t"):
            for _ in range(50):
                pool.execute(INSERT, (bytes(8000),))
            eventually(is_told, within=5)


def test_slow_stream_is_logged(database, caplog):
    with walpool.Pool(database, slow_threshold=0) as pool:
        with pool.stream("SELECT 1 /* streamed */") as rows:
            list(rows)
        pool.stats()
    assert any("streamed" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT * FROM f WHERE f MATCH ?", "diary:x"),
        ("SELECT * FROM f WHERE f MATCH ?", "AND diary ("),
        ("SELECT json_extract('{}', ?)", "diary"),
    ],
)
def test_message_of_sqlite_with_a_value_in_it_is_not_passed_on(table, sql, value):
    table.script("CREATE VIRTUAL TABLE f USING fts5(a)")
    with pytest.raises(errors.Error) as caught:
        table.fetch(sql, (value,))
    assert "diary" not in str(caught.value)


def test_backup_has_file_mode(table, tmp_path):
    umask = os.umask(0o022)
    try:
        table.backup(tmp_path / "copy.db")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


def test_opening_a_locked_file_hears_an_interrupt(database, tmp_path):
    program = (
        PRELUDE
        + """
path = sys.argv[1] + ".other"
with locked_by_another_process(path, "EXCLUSIVE"):
    interrupt_when()
    began = time.monotonic()
    call("opening", lambda: walpool.Pool(path, busy_timeout=10))
    told["in time"] = time.monotonic() - began < 5
"""
        + EPILOGUE
    )
    out, _ = run_python(program, database)
    assert '"in time": true' in out, out


def test_interrupt_of_the_leader_carries_the_outcome(database):
    program = (
        PRELUDE
        + """
interrupt_when()
call("leading", lambda: pool.execute("INSERT INTO t " + COUNT_TO, (2_000_000,)))
"""
        + EPILOGUE
    )
    out, _ = run_python(program, database)
    assert '"outcome": "applied"' in out or '"outcome": "unknown"' in out, out


def test_close_inside_its_own_stream_does_not_wait_for_itself(database):
    pool = walpool.Pool(database, transaction_timeout=3)
    began = time.monotonic()
    with pytest.raises(errors.ReentrantError), pool.stream("SELECT 1"):
        pool.close()
    assert time.monotonic() - began < 1
    pool.close()
