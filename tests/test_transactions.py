"""Transactions: a lease of the writer from BEGIN to COMMIT, its savepoints, and how it is taken back.

holder                         engine
transaction() begins
                               transaction_timeout passes: rolled back, the writer goes to the next
tx.execute -> TransactionTimeout
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers import COUNT_TO, FOREVER, WITHIN, Caller, eventually, queue_up, run_queued, writer_held

import walpool
from walpool import errors

SHORT = 0.1  # seconds: a transaction_timeout that a test can wait for


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table, and a parent and a child whose key is deferred."""
    pool.script(
        """
        CREATE TABLE t (a INTEGER PRIMARY KEY, b UNIQUE);
        CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
        """
    )
    return pool


@pytest.fixture
def impatient(database: Path) -> Iterator[walpool.Pool]:
    """Yield a pool whose transactions may last for a moment only."""
    with walpool.Pool(database, transaction_timeout=SHORT) as pool:
        pool.script("CREATE TABLE t (a)")
        yield pool


def kept(pool: walpool.Pool) -> list[int]:
    return [a for (a,) in pool.fetch("SELECT a FROM t ORDER BY a")]


def insert(tx: walpool.Transaction, a: int) -> None:
    tx.execute("INSERT INTO t (a) VALUES (?)", (a,))


# Commit and rollback


def test_block_that_ends_commits_and_nobody_sees_it_before(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        tx.executemany("INSERT INTO t (a) VALUES (?)", [(2,), (3,)])
        assert Caller(lambda: kept(table)).outcome() == []
    assert kept(table) == [1, 2, 3]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, errors.DataError])
def test_exception_rolls_back_and_goes_on(table: walpool.Pool, kind: type[BaseException]) -> None:
    raised = kind("from the block")

    def block() -> None:
        with table.transaction() as tx:
            insert(tx, 1)
            raise raised

    with pytest.raises(kind) as caught:
        block()
    assert caught.value is raised
    assert kept(table) == []
    table.execute("INSERT INTO t (a) VALUES (7)")
    assert kept(table) == [7]


def test_return_and_break_out_of_the_block_commit(table: walpool.Pool) -> None:
    def leave_early() -> int:
        with table.transaction() as tx:
            insert(tx, 1)
            return 5

    for _ in range(3):
        with table.transaction() as tx:
            insert(tx, 2)
            break
    assert leave_early() == 5
    assert kept(table) == [1, 2]


def test_transaction_reads_its_own_writes(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        assert tx.fetch("SELECT a FROM t") == [(1,)]
        assert tx.fetchone("SELECT a, b FROM t", row=dict) == {"a": 1, "b": None}
        assert tx.fetchval("SELECT count(*) FROM t WHERE a = :a", {"a": 1}) == 1


def test_transaction_tells_what_each_statement_did(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        first = tx.execute("INSERT INTO t (b) VALUES (?) RETURNING a, b", ("x",))
        second = tx.execute("UPDATE t SET b = 'y'")
        many = tx.executemany("INSERT INTO t (a) VALUES (?)", [(10,), (11,)])
        assert (first.rows, first.columns, first.rowcount, first.lastrowid) == ([(1, "x")], ("a", "b"), 1, 1)
        assert (second.rowcount, second.lastrowid) == (1, None)
        assert (many.rowcount, many.lastrowid) == (2, 11)


def test_transaction_that_did_nothing_commits(table: walpool.Pool) -> None:
    with table.transaction():
        pass
    assert kept(table) == []


def test_failed_statement_is_undone_and_leaves_the_transaction_open(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        with pytest.raises(errors.IntegrityError) as caught:
            tx.execute("INSERT INTO t (a) VALUES (2), (1)")
        assert caught.value.outcome == "not_applied"
        with pytest.raises(errors.ProgrammingError):
            tx.execute("NONSENSE")
        insert(tx, 3)
    assert kept(table) == [1, 3]


def test_failed_executemany_is_undone_as_a_whole(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        with pytest.raises(errors.IntegrityError, match="row 3"):
            tx.executemany("INSERT INTO t (a) VALUES (?)", [(5,), (6,), (1,)])
        with pytest.raises(errors.IntegrityError, match="row 2"):
            tx.executemany("INSERT OR FAIL INTO t (a) VALUES (?)", [(5,), (1,)])
    assert kept(table) == [1]


@pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE walpool_job", "/* walpool */ COMMIT"])
def test_transaction_verbs_in_sql_are_refused(table: walpool.Pool, sql: str) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        with pytest.raises(errors.ProgrammingError, match="walpool begins and ends transactions itself"):
            tx.execute(sql)
        insert(tx, 2)
    assert kept(table) == [1, 2]


def test_fetch_in_a_transaction_refuses_to_write(table: walpool.Pool) -> None:
    with table.transaction() as tx, pytest.raises(errors.ProgrammingError, match="this is a read"):
        tx.fetch("DELETE FROM t")


@pytest.mark.parametrize(
    "sql",
    ["INSERT OR ROLLBACK INTO t (a) VALUES (2), (1)", "INSERT INTO trap VALUES (1)"],
    ids=["OR ROLLBACK", "RAISE(ROLLBACK)"],
)
def test_statement_that_rolls_back_ends_the_transaction_and_the_commit_says_so(table: walpool.Pool, sql: str) -> None:
    table.script(
        "CREATE TABLE trap (a); CREATE TRIGGER spring BEFORE INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END"
    )

    def block() -> None:
        with table.transaction() as tx:
            insert(tx, 1)
            with pytest.raises(errors.IntegrityError):
                tx.execute(sql)
            with pytest.raises(errors.OperationalError, match="nothing of it is applied"):
                insert(tx, 3)

    with pytest.raises(errors.OperationalError, match="nothing of it is applied") as caught:
        block()
    assert caught.value.outcome == "not_applied"
    assert kept(table) == []
    table.execute("INSERT INTO t (a) VALUES (7)")
    assert kept(table) == [7]


def test_deferred_foreign_key_fails_at_commit_and_nothing_is_written(table: walpool.Pool) -> None:
    def block() -> None:
        with table.transaction() as tx:
            insert(tx, 1)
            tx.execute("INSERT INTO child VALUES (404)")

    with pytest.raises(errors.IntegrityError) as caught:
        block()
    assert (caught.value.outcome, caught.value.sqlite_errorname) == ("not_applied", "SQLITE_CONSTRAINT_FOREIGNKEY")
    assert kept(table) == []
    assert table.fetchval("SELECT count(*) FROM child") == 0
    table.execute("INSERT INTO t (a) VALUES (7)")
    assert kept(table) == [7]


def test_deferred_foreign_key_may_be_mended_before_commit(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        tx.execute("INSERT INTO child VALUES (5)")
        tx.execute("INSERT INTO parent VALUES (5)")
    assert table.fetchval("SELECT count(*) FROM child") == 1


def test_schema_may_be_changed_and_rolled_back(table: walpool.Pool) -> None:
    def block() -> None:
        with table.transaction() as tx:
            tx.execute("CREATE TABLE other (a)")
            tx.execute("INSERT INTO other VALUES (1)")
            assert tx.fetchval("SELECT a FROM other") == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    with pytest.raises(errors.ProgrammingError, match="no such table: other"):
        table.fetch("SELECT a FROM other")


# Savepoints


def undone(tx: walpool.Transaction, *values: int) -> None:
    """Insert each value, the later ones in a savepoint inside, and fail."""
    with tx.transaction():
        insert(tx, values[0])
        for a in values[1:]:
            with tx.transaction():
                insert(tx, a)
        raise ZeroDivisionError


def test_savepoint_keeps_what_it_did(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        with tx.transaction() as inner:
            assert inner is tx
            insert(inner, 2)
        insert(tx, 3)
    assert kept(table) == [1, 2, 3]


def test_savepoint_undoes_itself_alone(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        with pytest.raises(ZeroDivisionError):
            undone(tx, 2)
        insert(tx, 3)
    assert kept(table) == [1, 3]


def test_savepoints_nest(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        with tx.transaction():
            insert(tx, 1)
            with pytest.raises(ZeroDivisionError):
                undone(tx, 2, 3)
            insert(tx, 4)
        with pytest.raises(ZeroDivisionError):
            undone(tx, 5, 6)
        insert(tx, 7)
    assert kept(table) == [1, 4, 7]


def test_savepoint_that_sqlite_rolled_back_lets_the_blocks_own_error_through(table: walpool.Pool) -> None:
    def block() -> None:
        with table.transaction() as tx:
            insert(tx, 1)
            with tx.transaction():
                tx.execute("INSERT OR ROLLBACK INTO t (a) VALUES (1)")

    with pytest.raises(errors.IntegrityError, match="UNIQUE") as caught:
        block()
    assert isinstance(caught.value.__context__, errors.OperationalError)
    assert kept(table) == []


# The writer goes from one to the next


def test_transactions_and_jobs_are_served_in_the_order_in_which_they_came(table: walpool.Pool) -> None:
    insert_name = "INSERT INTO t (b) VALUES (?)"  # the rows tell the order: a caller goes on when others do too

    def lease(name: str) -> None:
        with table.transaction() as tx:
            tx.execute(insert_name, (name,))

    def job(name: str) -> None:
        table.execute(insert_name, (name,))

    with writer_held(table):
        callers = queue_up(table, [lambda: lease("1"), lambda: job("2"), lambda: lease("3"), lambda: lease("4")])
    assert [caller.outcome() for caller in callers] == [None] * 4
    assert table.fetch("SELECT b FROM t ORDER BY rowid") == [("1",), ("2",), ("3",), ("4",)]


def test_transaction_begins_only_after_the_group_before_it_is_committed(table: walpool.Pool) -> None:
    def lease() -> list[int]:
        with table.transaction() as tx:
            return [tx.fetchval("SELECT count(*) FROM t"), Caller(lambda: len(kept(table))).outcome()]

    insert_one = "INSERT INTO t (b) VALUES (NULL)"
    jobs = [partial(table.execute, insert_one) for _ in range(3)]
    assert run_queued(table, [jobs[0], jobs[1], lease, jobs[2]])[2] == [2, 2]


def test_counting_in_transactions_from_many_threads_loses_nothing(
    table: walpool.Pool, threads: Callable[[int, Callable[[int], object]], list[object]]
) -> None:
    table.execute("INSERT INTO t (a, b) VALUES (1, 0)")

    def count_up(index: int) -> None:
        for _ in range(10):
            with table.transaction() as tx:
                count = tx.fetchval("SELECT b FROM t")
                tx.execute("UPDATE t SET b = ?", (count + 1,))

    threads(8, count_up)
    assert table.fetchval("SELECT b FROM t") == 80
    assert table.stats()["leases"] == 80


# run


def test_run_gives_what_the_function_returns_and_commits(table: walpool.Pool) -> None:
    def work(tx: walpool.Transaction) -> tuple[int, int | None]:
        insert(tx, 1)
        return threading.get_ident(), tx.fetchval("SELECT a FROM t")

    assert table.run(work) == (threading.get_ident(), 1)
    assert kept(table) == [1]


def test_run_rolls_back_when_the_function_raises(table: walpool.Pool) -> None:
    def work(tx: walpool.Transaction) -> None:
        insert(tx, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        table.run(work)
    assert kept(table) == []


# Misuse


def test_tx_is_refused_in_another_thread(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
        for use in (lambda: insert(tx, 2), lambda: tx.fetch("SELECT 1"), lambda: tx.fetchval("SELECT 1")):
            error = Caller(use).error(errors.InterfaceError)
            assert "belongs to the thread that began it" in str(error)
        insert(tx, 3)
    assert kept(table) == [1, 3]


def test_tx_is_refused_after_its_end(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        insert(tx, 1)
    with pytest.raises(errors.InterfaceError, match="ended"):
        insert(tx, 2)
    with pytest.raises(errors.InterfaceError, match="ended"):
        tx.fetch("SELECT 1")
    with pytest.raises(errors.InterfaceError, match="ended"), tx.transaction():
        pytest.fail("the block began")
    assert kept(table) == [1]


def test_generator_that_is_dropped_rolls_back_and_frees_the_writer(table: walpool.Pool) -> None:
    def rows() -> Generator[int, None, None]:
        with table.transaction() as tx:
            insert(tx, 1)
            yield 1

    generator = rows()
    assert next(generator) == 1
    del generator
    table.execute("INSERT INTO t (a) VALUES (7)", timeout=WITHIN)
    assert kept(table) == [7]


def test_generator_that_is_dropped_in_another_thread_frees_the_writer(table: walpool.Pool) -> None:
    def rows() -> Generator[int, None, None]:
        with table.transaction() as tx:
            insert(tx, 1)
            yield 1

    held = [rows()]

    def begin() -> None:
        assert next(held[0]) == 1

    assert Caller(begin).outcome() is None
    held.clear()
    table.execute("INSERT INTO t (a) VALUES (7)", timeout=WITHIN)
    assert kept(table) == [7]


def test_thread_that_ends_with_a_transaction_open_frees_the_writer(table: walpool.Pool) -> None:
    def begin_and_forget() -> None:
        block = table.transaction()
        insert(block.__enter__(), 1)

    assert Caller(begin_and_forget).outcome() is None
    table.execute("INSERT INTO t (a) VALUES (7)", timeout=WITHIN)
    assert kept(table) == [7]


# The deadline


def overstay(pool: walpool.Pool, then: Callable[[walpool.Transaction], object]) -> None:
    """Hold a transaction past its deadline, and go on inside the block."""
    revoked = pool.stats()["leases_revoked"]
    with pool.transaction() as tx:
        insert(tx, 1)
        eventually(lambda: pool.stats()["leases_revoked"] > revoked)
        then(tx)


def test_idle_transaction_is_taken_back_and_the_writer_goes_to_the_next(impatient: walpool.Pool) -> None:
    def block() -> None:
        with impatient.transaction() as tx:
            insert(tx, 1)
            job = Caller(lambda: impatient.execute("INSERT INTO t VALUES (7)"))
            assert job.outcome().rowcount == 1  # although this block has not ended

    with pytest.raises(errors.TransactionTimeout, match="open for longer than") as caught:
        block()
    assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    assert kept(impatient) == [7]
    assert impatient.stats()["leases_revoked"] == 1


def test_transaction_that_was_taken_back_is_of_no_use(impatient: walpool.Pool) -> None:
    def use(tx: walpool.Transaction) -> None:
        with pytest.raises(errors.TransactionTimeout):
            insert(tx, 2)
        with pytest.raises(errors.TransactionTimeout):
            tx.fetch("SELECT 1")
        with pytest.raises(errors.TransactionTimeout), tx.transaction():
            pytest.fail("the block began")

    with pytest.raises(errors.TransactionTimeout) as caught:
        overstay(impatient, use)
    assert caught.value.outcome == "not_applied"
    assert kept(impatient) == []


def test_exception_in_a_block_that_was_taken_back_is_the_one_to_tell(impatient: walpool.Pool) -> None:
    with pytest.raises(ZeroDivisionError):
        overstay(impatient, lambda tx: 1 // 0)
    assert kept(impatient) == []


def test_snapshot_is_taken_back_after_transaction_timeout(impatient: walpool.Pool) -> None:
    with impatient.read() as snapshot:
        eventually(lambda: impatient.stats()["leases_revoked"] == 1)
        assert impatient.stats()["readers_out"] == 0
        with pytest.raises(errors.TransactionTimeout, match="held for longer than"):
            snapshot.fetch("SELECT 1")
    with impatient.stream("SELECT 1 UNION SELECT 2", chunk=1) as rows:
        assert next(rows) == (1,)
        eventually(lambda: impatient.stats()["leases_revoked"] == 2)
        with pytest.raises(errors.TransactionTimeout, match="held for longer than"):
            next(rows)


def test_query_in_a_snapshot_is_stopped_at_the_deadline(impatient: walpool.Pool) -> None:
    with impatient.read() as snapshot, pytest.raises(errors.TransactionTimeout, match="ran past"):
        snapshot.fetch(COUNT_TO, (FOREVER,))
    assert impatient.fetchval("SELECT 1") == 1


def test_short_transactions_are_never_taken_back(impatient: walpool.Pool) -> None:
    for n in range(50):
        with impatient.transaction() as tx:
            insert(tx, n)
    assert impatient.stats()["leases_revoked"] == 0
    assert len(kept(impatient)) == 50
