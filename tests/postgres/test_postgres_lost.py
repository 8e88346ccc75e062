"""Connections that are lost: what was acknowledged is there, what is `not_applied` is absent, `unknown` is either.

job                                  the way to the server
BEGIN; INSERT                        cut here: nothing was applied, and the job is run again
COMMIT                               cut before the server has it, or before its answer is back: `unknown`
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
from helpers import WITHIN, Caller, eventually

from tests.postgres.pools import INSERT, TABLE, Proxy, assert_unharmed, groups_held, kept, plain, queue_up, terminate
from walpool import errors
from walpool.postgres import PostgresPool, Transaction
from walpool.postgres._connections import Loan

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer
    from tests.torture import Torture


def test_connections_that_died_idle_cost_nobody_an_error(pg: PostgresPool, postgres_url: str) -> None:
    calls: list[Callable[[], object]] = [
        partial(pg.execute, INSERT, ("1",)),
        partial(pg.executemany, INSERT, [("2",), ("3",)]),
        partial(pg.script, "INSERT INTO t (a) VALUES ('4')"),
        partial(pg.fetch, "SELECT a FROM t"),
        partial(pg.run, lambda tx: tx.execute(INSERT, ("5",))),
        partial(_snapshot, pg),
        partial(_stream, pg),
    ]
    with plain(postgres_url) as other:
        for call in calls:
            call_all = [Caller(partial(pg.fetch, "SELECT pg_sleep(0.05)")) for _ in range(2)]  # both readers
            for caller in call_all:
                caller.outcome()
            pg.fetch("SELECT 1")
            with pg.transaction():
                pass
            assert terminate(other) >= 2
            call()
    assert kept(pg) == ["1", "2", "3", "4", "5"]
    assert_unharmed(pg)


def test_job_that_ends_its_own_connection_takes_no_neighbour_with_it(pg: PostgresPool, postgres_url: str) -> None:
    jobs = [(INSERT, ("a",)), ("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9)", ()), (INSERT, ("b",))]
    with groups_held(postgres_url, pg):
        callers = queue_up(pg, [partial(pg.execute, sql, values) for sql, values in jobs])
    assert callers[0].outcome().rowcount == callers[2].outcome().rowcount == 1
    assert callers[1].error(errors.OperationalError).outcome == "not_applied"
    assert kept(pg) == ["a", "b"]


def test_connection_that_is_opened_too_late_for_its_loan_is_not_lost(pg: PostgresPool) -> None:
    readers = pg._engine._readers
    readers.clear()
    steps = readers.lending(5, pg._engine._no_reader)
    opening = next(steps)
    take = Loan.take

    def take_late(self: Loan, connection: object) -> None:
        steps.close()  # whoever waited for it is stopped just now
        take(self, connection)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loan, "take", take_late)
        opening.wait()
    assert (readers.out, len(readers._idle)) == (0, 1)


def _snapshot(pool: PostgresPool) -> None:
    with pool.read() as snapshot:
        assert snapshot.fetchval("SELECT 1") == 1


def _stream(pool: PostgresPool) -> None:
    with pool.stream("SELECT 1") as rows:
        assert list(rows) == [(1,)]


def test_transaction_whose_connection_is_lost_is_not_applied(pg: PostgresPool, postgres_url: str) -> None:
    with plain(postgres_url) as other:
        with pytest.raises(errors.OperationalError) as refused, pg.transaction() as tx:
            tx.execute(INSERT, ("lost",))
            terminate(other)
            tx.execute(INSERT, ("lost too",))
        assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        with pytest.raises(errors.Error) as refused, pg.transaction() as tx:
            tx.execute(INSERT, ("lost",))
            terminate(other)
        assert refused.value.outcome in ("not_applied", "unknown")  # the loss was seen before COMMIT was sent, or then
        with pytest.raises(ZeroDivisionError), pg.transaction() as tx:
            terminate(other)
            raise ZeroDivisionError
        with pytest.raises(errors.InterfaceError), pg.transaction() as tx:
            terminate(other)
            with pytest.raises(errors.OperationalError):
                tx.execute(INSERT, ("lost",))
        with pytest.raises(errors.OperationalError), pg.read() as snapshot:
            terminate(other)
            snapshot.fetch("SELECT 1")
    assert kept(pg) == []
    assert_unharmed(pg)


class Load:
    """Threads that write, each value once, and remember what they were told; and some that read."""

    def __init__(self, pool: PostgresPool, writers: int = 8, readers: int = 2) -> None:
        self.told: dict[str, str] = {}  # acknowledged, not_applied or unknown, by value
        self.strange: list[BaseException] = []
        self.read_failures = 0
        self.is_over = threading.Event()
        self._pool = pool
        self._callers = [Caller(partial(self._write, str(n))) for n in range(writers)]
        self._callers += [Caller(self._read) for _ in range(readers)]

    def _write(self, name: str) -> None:
        pool, drawn = self._pool, random.Random(name)
        ways: list[Callable[[str], object]] = [
            lambda value: pool.execute(INSERT, (value,)),
            lambda value: pool.executemany("INSERT INTO t (a) VALUES (?)", [(value,), (value + "'",)]),
            lambda value: pool.batch([(INSERT, (value,)), (INSERT, (value + "'",))]),
            lambda value: pool.script(f"INSERT INTO t (a) VALUES ('{value}')"),
            lambda value: pool.run(lambda tx: _twice(tx, value)),
        ]
        for n in itertools.count():
            value = f"{name}/{n}"
            try:
                drawn.choice(ways)(value)
                self.told[value] = "acknowledged"
            except errors.Error as error:
                self.told[value] = error.outcome
                if not isinstance(error, errors.OperationalError) and error.outcome != "unknown":
                    self.strange.append(error)
            if self.is_over.is_set():
                return

    def _read(self) -> None:
        while not self.is_over.is_set():
            try:
                with self._pool.read() as snapshot:
                    first = snapshot.fetchval("SELECT count(*) FROM t")
                    assert snapshot.fetchval("SELECT count(*) FROM t") == first
                self._pool.fetch("SELECT a FROM t LIMIT 10")
                with self._pool.stream("SELECT a FROM t LIMIT 100", chunk=40) as rows:
                    list(rows)
            except errors.OperationalError:
                self.read_failures += 1

    def stop(self, pool: PostgresPool) -> tuple[int, list[str]]:
        """Return how many writes were acknowledged, and what is in the table against what its writer was told."""
        self.is_over.set()
        for caller in self._callers:
            assert caller.outcome() is None
        assert self.strange == []
        found = {value for value in kept(pool) if not value.endswith("'")}
        acknowledged = {value for value, told in self.told.items() if told == "acknowledged"}
        absent = {value for value, told in self.told.items() if told == "not_applied"}
        wrong = [f"lost {value}" for value in acknowledged - found] + [f"there: {value}" for value in absent & found]
        pairs = {value.rstrip("'") for value in kept(pool) if value.endswith("'")}
        return len(acknowledged), wrong + [f"half: {value}" for value in pairs - found]


def _twice(tx: Transaction, value: str) -> None:
    tx.execute(INSERT, (value,))
    tx.execute(INSERT, (value + "'",))


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_every_connection_ended_again_and_again_under_load_loses_nothing(
    pg: PostgresPool, postgres_url: str, torture: Torture
) -> None:
    rounds = torture.size(60, 6000)
    load = Load(pg)
    ended = 0
    with plain(postgres_url) as other:
        for _ in range(rounds):
            ended += terminate(other)
            load.is_over.wait(random.random() / 20)
    acknowledged, wrong = load.stop(pg)
    torture.tell("every connection of a PostgreSQL pool ended", tried=ended, unit="connections", lost=len(wrong))
    assert wrong == []
    assert ended > rounds
    assert acknowledged > rounds / 4
    assert_unharmed(pg)


def says_commit(data: bytes) -> bool:
    return b"COMMIT\0" in data and b"BEGIN" not in data


@pytest.mark.parametrize("where", ["before", "after"])
def test_connection_cut_at_commit_is_unknown_and_the_truth_is_either(postgres_url: str, where: str) -> None:
    with Proxy(postgres_url) as proxy, PostgresPool(proxy.url, readers=2) as pool:
        pool.script(TABLE)
        cuts = iter([where] * 3)
        proxy.look = lambda data: next(cuts, None) if says_commit(data) else None
        calls: list[Callable[[], object]] = [
            partial(pool.execute, INSERT, ("x",)),
            partial(pool.script, "INSERT INTO t (a) VALUES ('y')"),
            partial(_in_transaction, pool, "z"),
        ]
        for call in calls:
            with pytest.raises(errors.OperationalError) as refused:
                call()
            assert (refused.value.outcome, refused.value.retryable) == ("unknown", False)
            assert "later read" in str(refused.value)
        assert proxy.cuts == 3
        with plain(postgres_url) as other:
            expected = 0 if where == "before" else 3
            eventually(lambda: other.execute("SELECT count(*) FROM t").fetchone() == (expected,))
        assert_unharmed(pool)


def _in_transaction(pool: PostgresPool, value: str) -> None:
    with pool.transaction() as tx:
        tx.execute(INSERT, (value,))


@pytest.mark.parametrize("where", ["before", "after"])
def test_connection_cut_before_commit_is_renewed_and_the_job_applied_once(postgres_url: str, where: str) -> None:
    with Proxy(postgres_url) as proxy, PostgresPool(proxy.url, readers=2) as pool:
        pool.script(TABLE)
        cuts = iter([where])
        proxy.look = lambda data: next(cuts, None) if b"BEGIN" in data or b"SELECT a" in data else None
        assert pool.execute(INSERT, ("x",)).rowcount == 1
        assert proxy.cuts == 1
        cuts = iter([where] * 2)  # the new one too
        with pytest.raises(errors.OperationalError) as refused:
            pool.execute(INSERT, ("y",))
        assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        cuts = iter([where])
        assert pool.fetch("SELECT a FROM t") == [("x",)]
        cuts = iter([where])
        with pool.transaction() as tx:
            tx.execute(INSERT, ("z",))
        cuts = iter([where] * 2)
        with pytest.raises(errors.OperationalError) as refused, pool.transaction():
            pass
        assert refused.value.outcome == "not_applied"
        cuts = iter([where] * 2)
        with pytest.raises(errors.OperationalError):
            pool.fetch("SELECT a FROM t")
        assert kept(pool) == ["x", "z"]
        assert_unharmed(pool)


def test_transaction_cut_in_the_midst_is_not_applied(postgres_url: str) -> None:
    with Proxy(postgres_url) as proxy, PostgresPool(proxy.url, readers=2) as pool:
        pool.script(TABLE)
        proxy.look = lambda data: "before" if b"walpool_mark_1" in data else None
        with pytest.raises(errors.OperationalError) as refused, pool.transaction() as tx:
            tx.execute(INSERT, ("x",))
            with tx.transaction():
                pass
        assert refused.value.outcome == "not_applied"
        assert kept(pool) == []
        assert_unharmed(pool)


UNREACHABLE = [
    "postgresql://ann:Hunter2@127.0.0.1:1/agents",
    "postgresql://ann:Hunter2@/agents?host=/nowhere",
    "postgresql://ann@127.0.0.1:1/agents?password=Hunter2",
    "postgresql://ann:Hunter2@127.0.0.1:1,127.0.0.1:2/agents",
]


@pytest.mark.parametrize("url", UNREACHABLE)
def test_server_that_cannot_be_reached_is_told_at_once_and_without_the_password(url: str) -> None:
    began = time.monotonic()
    with pytest.raises(errors.OperationalError) as refused:
        PostgresPool(url)
    assert time.monotonic() - began < 5
    assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
    assert "Hunter2" not in repr(refused.value)
    assert "connecting to postgresql://ann@" in str(refused.value)


def test_server_that_says_nothing_is_given_up_at_the_timeout() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(errors.OperationalError):
            PostgresPool(f"postgresql://ann@127.0.0.1:{silent.getsockname()[1]}/x", write_timeout=1)
        assert time.monotonic() - began < 5


def test_database_or_user_that_is_not_there_is_named(postgres_url: str) -> None:
    with pytest.raises(errors.Error, match="no_such_database"):
        PostgresPool(postgres_url.replace("/walpool_test", "/no_such_database"))


def test_limit_of_connections_that_others_use_up_harms_nobody(
    own_postgres_server: PostgresServer, own_postgres_url: str
) -> None:
    with PostgresPool(own_postgres_url, readers=2) as pool:
        pool.script(TABLE)
        own_postgres_server.execute("ALTER ROLE walpool CONNECTION LIMIT 3")
        try:
            with psycopg.connect(own_postgres_url), psycopg.connect(own_postgres_url):
                assert pool.fetch("SELECT 1") == [(1,)]  # a reader's, in place of the one that the script had
                pool.execute(INSERT, ("x",))  # and the other way round
        finally:
            own_postgres_server.execute("ALTER ROLE walpool CONNECTION LIMIT -1")
        assert kept(pool) == ["x"]
        assert_unharmed(pool)


def test_waiting_for_a_connection_ends_when_the_pool_is_closed(pg: PostgresPool) -> None:
    let_go = threading.Event()

    def hold() -> None:
        with pg.read():
            assert let_go.wait(WITHIN)

    holders = [Caller(hold), Caller(hold)]
    eventually(lambda: pg.stats()["readers_out"] == 2)
    waiting = Caller(partial(pg.fetch, "SELECT 1"))
    eventually(lambda: pg.stats()["reads_waiting"] == 1)
    closing = Caller(pg.close)
    waiting.error(errors.ClosedError)
    let_go.set()
    for caller in (*holders, closing):
        assert caller.outcome() is None
