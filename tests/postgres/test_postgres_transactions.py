"""Transactions and snapshots on PostgreSQL: held by one caller each, side by side, for so long and no longer.

tx of A                      tx of B                        a job
BEGIN; reads x               BEGIN; reads x
                             writes x; COMMIT
writes x: BusyError                                         goes on meanwhile
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from helpers import WITHIN, Caller, eventually, run_together

from tests.postgres.pools import INSERT, assert_unharmed, kept, others, plain, row_locked
from walpool import errors
from walpool.postgres import PostgresPool, Transaction

SOON = 0.3  # seconds


def test_transaction_is_committed_at_the_end_and_rolled_back_by_an_exception(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        tx.execute(INSERT, ("x",))
        assert tx.fetchval("SELECT count(*) FROM t") == 1
    with pytest.raises(ZeroDivisionError), pg.transaction() as tx:
        tx.execute(INSERT, ("y",))
        raise ZeroDivisionError
    assert kept(pg) == ["x"]
    assert_unharmed(pg)


def test_failed_statement_is_undone_and_leaves_the_transaction_open(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        tx.execute(INSERT, ("x",))
        with pytest.raises(errors.IntegrityError):
            tx.execute("INSERT INTO t (a) VALUES ('y'), ('x')")
        with pytest.raises(errors.IntegrityError, match="in row 2 of executemany"):
            tx.executemany(INSERT, [("z",), ("x",)])
        with pytest.raises(errors.DataError):
            tx.fetch("SELECT 1 / 0")
        with pytest.raises(errors.ProgrammingError):
            tx.fetch("SELEC")
        tx.execute(INSERT, ("w",))
    assert kept(pg) == ["w", "x"]


def test_nested_transactions_are_kept_or_undone_by_themselves(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        tx.execute(INSERT, ("1",))
        with suppress(ZeroDivisionError), tx.transaction():
            tx.execute(INSERT, ("2 undone",))
            with tx.transaction() as inner:
                inner.execute(INSERT, ("3 undone",))
            raise ZeroDivisionError
        with tx.transaction():
            tx.execute(INSERT, ("4",))
            with suppress(errors.IntegrityError), tx.transaction():
                tx.execute(INSERT, ("5 undone",))
                tx.execute(INSERT, ("4",))
            tx.execute(INSERT, ("6",))
    assert kept(pg) == ["1", "4", "6"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT a", "RELEASE walpool_mark_1", "END"])
def test_transaction_is_ended_by_its_block_alone(pg: PostgresPool, end: str) -> None:
    with pg.transaction() as tx:
        tx.execute(INSERT, ("x",))
        with tx.transaction(), pytest.raises(errors.ProgrammingError):
            tx.execute(end)
        assert tx.fetchval("SELECT count(*) FROM t") == 1
    assert kept(pg) == ["x"]


def test_statement_of_a_transaction_ends_at_its_timeout_and_the_next_has_none(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        tx.execute(INSERT, ("x",))
        with pytest.raises(errors.StatementTimeout) as refused:
            tx.execute("INSERT INTO t (a) SELECT 'y' FROM pg_sleep(30)", timeout=0.1)
        assert refused.value.outcome == "not_applied"
        with pytest.raises(errors.StatementTimeout):
            tx.fetch("SELECT pg_sleep(30)", timeout=0.1)
        tx.fetch("SELECT pg_sleep(0.2)")
    assert kept(pg) == ["x"]


def test_read_ends_at_its_timeout(pg: PostgresPool) -> None:
    began = time.monotonic()
    with pytest.raises(errors.StatementTimeout):
        pg.fetch("SELECT pg_sleep(30)", timeout=0.2)
    assert time.monotonic() - began < 5
    assert pg.fetchval("SELECT 1", timeout=5) == 1


def late(pool: PostgresPool, hold: Callable[[Transaction], object]) -> None:
    with pool.transaction() as tx:
        tx.execute(INSERT, (f"lost of {threading.get_ident()}",))
        hold(tx)


def test_transaction_that_lies_idle_for_too_long_is_rolled_back(postgres_url: str, pg: PostgresPool) -> None:
    pg.close()
    with PostgresPool(postgres_url, transaction_timeout=SOON) as pool, plain(postgres_url) as other:

        def until_it_is_ended(tx: Transaction) -> None:
            eventually(lambda: others(other, "state LIKE 'idle in transaction%'") == [])

        with pytest.raises(errors.TransactionTimeout) as refused:
            late(pool, until_it_is_ended)
        assert refused.value.outcome == "not_applied"

        def use_it_then(tx: Transaction) -> None:
            until_it_is_ended(tx)
            tx.execute(INSERT, ("lost too",))

        with pytest.raises(errors.TransactionTimeout) as refused:
            late(pool, use_it_then)
        assert refused.value.outcome == "not_applied"
        with pool.read() as snapshot:
            snapshot.fetch("SELECT 1")
            eventually(lambda: others(other, "state LIKE 'idle in transaction%'") == [])
            with pytest.raises(errors.TransactionTimeout):
                snapshot.fetch("SELECT 1")
        assert kept(pool) == []
        assert_unharmed(pool)


def test_transaction_that_is_busy_for_too_long_is_rolled_back(postgres_url: str, pg: PostgresPool) -> None:
    pg.close()
    with PostgresPool(postgres_url, transaction_timeout=SOON) as pool:
        began = time.monotonic()
        with pytest.raises(errors.TransactionTimeout):
            late(pool, lambda tx: tx.fetch("SELECT pg_sleep(30)"))
        assert time.monotonic() - began < 10
        with pytest.raises(errors.TransactionTimeout):
            late(pool, lambda tx: [tx.fetch("SELECT pg_sleep(0.01)") for _ in range(1000)])
        assert kept(pool) == []


def test_permit_of_a_transaction_whose_time_is_up_goes_to_who_waits(postgres_url: str, pg: PostgresPool) -> None:
    pg.close()
    with PostgresPool(postgres_url, readers=2, transaction_timeout=1) as pool:  # time enough to open sixteen
        let_go = threading.Event()
        holders = [Caller(partial(late, pool, lambda tx: let_go.wait(WITHIN))) for _ in range(16)]
        eventually(lambda: pool.stats()["leases_out"] == 16)
        with pool.transaction(timeout=WITHIN) as tx:
            tx.execute(INSERT, ("x",))
        assert pool.stats()["leases_revoked"] > 0
        let_go.set()
        ended = [holder.outcome() for holder in holders]
        late_ones = [each for each in ended if isinstance(each, errors.TransactionTimeout)]
        assert late_ones  # the others were not late yet when they were let go
        assert {each.outcome for each in late_ones} == {"not_applied"}
        # Where the server ended it in the midst of its COMMIT that is not known.
        rest = [each for each in ended if each is not None and each not in late_ones]
        assert {each.outcome for each in rest} <= {"unknown"}
        assert 1 + ended.count(None) <= len(kept(pool)) <= 1 + ended.count(None) + len(rest)
        assert_unharmed(pool)


def test_wait_for_a_transaction_or_a_reader_ends_at_its_timeout(postgres_url: str, pg: PostgresPool) -> None:
    pg.close()
    with PostgresPool(postgres_url, readers=2, checkout_timeout=0.1) as pool:
        let_go = threading.Event()
        holders = [Caller(partial(_hold, pool.transaction, let_go)) for _ in range(16)]
        holders += [Caller(partial(_hold, pool.read, let_go)) for _ in range(2)]
        eventually(lambda: (pool.stats()["leases_out"], pool.stats()["readers_out"]) == (16, 2))
        calls: list[tuple[type[errors.Error], Callable[[], object]]] = [
            (errors.WriteTimeout, partial(_hold, partial(pool.transaction, timeout=0.1), None)),
            (errors.CheckoutTimeout, partial(pool.fetch, "SELECT 1")),
            (errors.CheckoutTimeout, partial(pool.fetch, "SELECT 1", timeout=0.05)),
            (errors.CheckoutTimeout, partial(_hold, pool.read, None)),
        ]
        for kind, call in calls:
            with pytest.raises(kind) as refused:
                call()
            assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        pool.execute(INSERT, ("x",), timeout=5)  # jobs have connections of their own
        let_go.set()
        for holder in holders:
            holder.outcome()
        assert_unharmed(pool)


def _hold(block: Callable[[], Any], let_go: threading.Event | None) -> None:
    with block():
        if let_go is not None:
            assert let_go.wait(WITHIN)


def test_row_that_somebody_changed_meanwhile_is_busy_and_retryable(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))
    with pytest.raises(errors.BusyError) as refused, pg.transaction() as tx:
        tx.fetch("SELECT n FROM t")
        assert Caller(lambda: pg.execute("UPDATE t SET n = 5")).outcome().rowcount == 1
        assert tx.fetchval("SELECT n FROM t") == 0  # one snapshot
        tx.execute("UPDATE t SET n = n + 1")
    assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
    assert pg.fetchval("SELECT n FROM t") == 5


def test_run_calls_again_until_nobody_is_in_the_way(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))
    calls: list[int] = []

    def add(tx: Transaction) -> int:
        calls.append(tx.fetchval("SELECT n FROM t"))
        if len(calls) < 3:
            Caller(lambda: pg.execute("UPDATE t SET n = n + 10")).outcome()
        tx.execute("UPDATE t SET n = ?", (calls[-1] + 1,))
        return len(calls)

    assert pg.run(add) == 3
    assert (calls, pg.fetchval("SELECT n FROM t")) == ([0, 10, 20], 21)


def test_run_gives_up_after_some_calls_and_at_once_for_other_errors(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))
    calls: list[int] = []

    def always_beaten(tx: Transaction) -> None:
        calls.append(tx.fetchval("SELECT n FROM t"))
        Caller(lambda: pg.execute("UPDATE t SET n = n + 10")).outcome()
        tx.execute("UPDATE t SET n = 0")

    with pytest.raises(errors.BusyError):
        pg.run(always_beaten)
    assert len(calls) == 5

    def broken(tx: Transaction) -> None:
        calls.append(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pg.run(broken)
    assert len(calls) == 6
    assert_unharmed(pg)


def test_counter_that_threads_raise_in_transactions_loses_nothing(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))

    def raise_it(index: int) -> None:
        for _ in range(5):
            with suppress(errors.BusyError):  # not applied: another round
                pg.run(lambda tx: tx.execute("UPDATE t SET n = ?", (tx.fetchval("SELECT n FROM t FOR UPDATE") + 1,)))
                done.append(index)

    done: list[int] = []
    run_together(6, raise_it)
    assert pg.fetchval("SELECT n FROM t") == len(done) > 5


def test_transaction_of_one_thread_is_refused_to_another(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        Caller(lambda: tx.execute(INSERT, ("x",))).error(errors.InterfaceError)
        Caller(lambda: tx.fetch("SELECT 1")).error(errors.InterfaceError)
    with pg.read() as snapshot:
        Caller(lambda: snapshot.fetch("SELECT 1")).error(errors.InterfaceError)
    assert kept(pg) == []


def test_transaction_after_its_block_is_refused(pg: PostgresPool) -> None:
    with pg.transaction() as tx:
        pass
    with pg.read() as snapshot:
        pass
    with pg.stream("SELECT 1") as rows:
        pass
    for call in (lambda: tx.execute("SELECT 1"), lambda: snapshot.fetch("SELECT 1"), lambda: list(rows)):
        with pytest.raises(errors.ClosedError):
            call()


@pytest.mark.parametrize("block", ["transaction", "read"])
def test_pools_own_verbs_inside_a_block_are_refused(pg: PostgresPool, block: str) -> None:
    verbs: list[Callable[[], object]] = [
        lambda: pg.execute(INSERT, ("x",)),
        lambda: pg.executemany(INSERT, [("x",)]),
        lambda: pg.batch(["SELECT 1"]),
        lambda: pg.script("SELECT 1"),
        lambda: pg.fetch("SELECT 1"),
        lambda: pg.run(lambda tx: None),
        lambda: _hold(pg.transaction, None),
        lambda: _hold(pg.read, None),
        pg.close,
    ]
    with getattr(pg, block)():
        for verb in verbs:
            with pytest.raises(errors.ReentrantError):
                verb()
    assert_unharmed(pg)


def test_transaction_sees_what_was_there_at_its_first_statement(pg: PostgresPool) -> None:
    count = "SELECT count(*) FROM t"
    with pg.transaction() as tx:
        Caller(lambda: pg.execute(INSERT, ("x",))).outcome()
        assert tx.fetchval(count) == 1
        Caller(lambda: pg.execute(INSERT, ("y",))).outcome()
        assert tx.fetchval(count) == 1
    with pg.read() as snapshot:
        Caller(lambda: pg.execute(INSERT, ("z",))).outcome()
        assert snapshot.fetchval(count) == 2  # a snapshot is there from the beginning of its block


def test_transaction_goes_on_where_its_first_statement_failed(pg: PostgresPool) -> None:
    firsts: list[tuple[type[errors.Error], Callable[[Transaction], object]]] = [
        (errors.ProgrammingError, lambda tx: tx.fetch("SELEC")),
        (errors.DataError, lambda tx: tx.execute("SELECT 1 / 0")),
        (errors.StatementTimeout, lambda tx: tx.fetch("SELECT pg_sleep(30)", timeout=0.1)),
    ]
    for n, (kind, first) in enumerate(firsts):
        with pg.transaction() as tx:
            with pytest.raises(kind):
                first(tx)
            tx.execute(INSERT, (str(n),))
    assert kept(pg) == ["0", "1", "2"]
    assert_unharmed(pg)


def test_server_is_given_what_is_left_of_the_time_for_a_transaction(postgres_url: str, pg: PostgresPool) -> None:
    pg.close()
    with PostgresPool(postgres_url, transaction_timeout=20) as pool, pool.transaction() as tx:
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 0.1)
        left = tx.fetchval("SELECT setting::bigint FROM pg_settings WHERE name = 'transaction_timeout'")  # in ms
        assert 10_000 < left < 19_910


def test_snapshot_sees_what_was_there_at_its_first_read(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))
    with pg.read() as snapshot:
        assert snapshot.fetchval("SELECT count(*) FROM t") == 1
        Caller(lambda: pg.execute(INSERT, ("y",))).outcome()
        assert snapshot.fetch("SELECT a FROM t") == [("x",)]
        assert snapshot.fetchone("SELECT a FROM t", row=dict) == {"a": "x"}
    assert kept(pg) == ["x", "y"]


def test_stream_reads_one_snapshot_piece_by_piece(pg: PostgresPool) -> None:
    pg.execute("INSERT INTO t (a, n) SELECT i::text, i FROM generate_series(1, 1000) AS i")
    with pg.stream("SELECT n FROM t WHERE n > :low ORDER BY n", {"low": 10}, chunk=7, row=dict) as rows:
        assert next(rows) == {"n": 11}
        pg.execute("DELETE FROM t")  # a stream forbids nothing
        assert [row["n"] for row in rows] == list(range(12, 1001))
        assert list(rows) == []
    for chunk in (1, 989, 990, 991, 5000):
        with pg.stream("SELECT generate_series(1, 990)", chunk=chunk) as rows:
            assert sum(1 for _ in rows) == 990
    assert_unharmed(pg)


def test_stream_that_is_left_early_gives_its_reader_back(pg: PostgresPool) -> None:
    for _ in range(5):
        with pg.stream("SELECT generate_series(1, 1000000)", chunk=10) as rows:
            next(rows)
        with pytest.raises(ZeroDivisionError), pg.stream("SELECT generate_series(1, 1000000)", chunk=10) as rows:
            raise ZeroDivisionError
    with (
        pytest.raises(errors.DataError),
        pg.stream("SELECT 1 / (10 - i) FROM generate_series(1, 20) AS i", chunk=5) as rows,
    ):
        list(rows)
    for chunk in (0, -1, 2**63):
        with pytest.raises(ValueError, match="chunk"), pg.stream("SELECT 1", chunk=chunk):
            pass
    assert_unharmed(pg)


def test_blocks_that_nobody_ended_give_their_connections_back_when_collected(pg: PostgresPool) -> None:
    def leave_open(block: Any) -> None:
        """Enter it on a thread that ends then."""
        block.__enter__()
        figures.append((pg.stats()["readers_out"], pg.stats()["leases_out"]))

    figures: list[object] = []
    for begin in (pg.read, partial(pg.stream, "SELECT 1"), pg.transaction):
        assert Caller(partial(leave_open, begin())).outcome() is None
        gc.collect()
        assert_unharmed(pg)
    assert figures == [(1, 0), (1, 0), (0, 1)]


def test_close_waits_for_what_others_hold(pg: PostgresPool, postgres_url: str) -> None:
    inside, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with pg.transaction() as tx:
            inside.set()
            assert let_go.wait(WITHIN)
            tx.execute(INSERT, ("x",))

    holder = Caller(hold)
    assert inside.wait(WITHIN)
    closing = Caller(pg.close)
    eventually(lambda: pg.closed)
    assert closing.thread.is_alive()
    let_go.set()
    assert (holder.outcome(), closing.outcome()) == (None, None)
    with plain(postgres_url) as other:
        assert other.execute("SELECT a FROM t").fetchall() == [("x",)]
        eventually(lambda: others(other) == [])


def test_transactions_go_on_side_by_side(pg: PostgresPool, postgres_url: str) -> None:
    pg.executemany(INSERT, [("x",), ("locked",)])
    barrier = threading.Barrier(16)

    def hold(index: int) -> None:
        with pg.transaction() as tx:
            tx.execute(INSERT, (str(index),))
            barrier.wait(WITHIN)  # all of them at once
            tx.execute("UPDATE t SET n = ? WHERE a = ?", (index, str(index)))

    with row_locked(postgres_url, "locked"):
        run_together(16, hold)
    assert pg.fetchval("SELECT sum(n) FROM t") == sum(range(16))
