"""Statistics and the log: figures with documented names, messages with SQL in them, and never a value of anybody's."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    COUNT_TO,
    FOREVER,
    Caller,
    eventually,
    locked_by_another_process,
    queue_up,
    run_queued,
    writer_held,
)

import walpool
from walpool import _core, errors

INSERT = "INSERT INTO t VALUES (?)"


@pytest.fixture
def table(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table whose figures begin here."""
    pool.script("CREATE TABLE t (a UNIQUE)")
    pool.pop_stats()
    return pool


@pytest.fixture
def talkative(database: Path, caplog: pytest.LogCaptureFixture) -> Iterator[walpool.Pool]:
    """Yield a pool that logs everything it does as slow."""
    caplog.set_level(logging.DEBUG, logger="walpool")
    with walpool.Pool(database, slow_threshold=0) as pool:
        pool.script("CREATE TABLE t (a UNIQUE)")
        yield pool


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "walpool"]


# Figures


def test_keys_are_the_documented_ones_and_figures_are_numbers(table: walpool.Pool) -> None:
    for stats in (table.stats(), table.pop_stats()):
        assert list(stats) == [key for key, _ in _core.stat_keys()]
        assert {type(figure) for figure in stats.values()} <= {int, float}
        assert {key for key, figure in stats.items() if isinstance(figure, float)} == {
            key for key in stats if "_ms_" in key
        }


def test_each_class_of_error_is_counted_under_its_name() -> None:
    counted = {key.removeprefix("errors_") for key, _ in _core.stat_keys() if key.startswith("errors_")}
    assert counted == {*errors.__all__} - {"Error", "DatabaseError"}


def test_jobs_groups_and_reads_are_counted(table: walpool.Pool) -> None:
    table.execute(INSERT, (1,))
    table.executemany(INSERT, [(2,), (3,)])
    with pytest.raises(errors.IntegrityError):
        table.execute(INSERT, (1,))
    table.fetch("SELECT a FROM t")
    table.fetchone("SELECT a FROM t")
    with table.read() as snapshot:
        snapshot.fetch("SELECT 1")
        snapshot.fetch("SELECT 1")
    with table.stream("SELECT 1") as rows:
        list(rows)
    stats = table.stats()
    assert (stats["jobs"], stats["jobs_failed"], stats["groups"]) == (2, 1, 3)
    assert stats["reads"] == 4
    assert (stats["jobs_per_group_p50"], stats["jobs_per_group_p99"]) == (1, 1)
    assert stats["errors_IntegrityError"] == 1
    assert stats["commit_ms_p99"] >= stats["commit_ms_p50"] > 0
    assert stats["group_ms_p99"] >= stats["commit_ms_p50"]
    assert stats["wal_frames"] > 0


def test_leases_are_counted_and_timed(table: walpool.Pool) -> None:
    with table.transaction() as tx:
        tx.execute(INSERT, (1,))
    table.run(lambda tx: None)
    stats = table.stats()
    assert (stats["leases"], stats["leases_revoked"], stats["jobs"]) == (2, 0, 0)
    assert stats["lease_ms_p99"] >= stats["lease_ms_p50"] > 0


def test_replays_are_counted(table: walpool.Pool) -> None:
    with pytest.raises(errors.IntegrityError):
        table.execute("INSERT OR ROLLBACK INTO t VALUES (1), (1)")
    assert table.stats()["group_replays"] == 1


def test_levels_follow_what_waits_and_what_is_out_and_peaks_remember_it(table: walpool.Pool) -> None:
    with writer_held(table), table.stream("SELECT 1"):
        callers = queue_up(table, [partial(table.execute, INSERT, (f"{n:100}",)) for n in range(3)])
        stats = table.stats()
        assert (stats["jobs_waiting"], stats["readers_out"]) == (3, 1)
        assert 300 < stats["bytes_waiting"] < 1000
    for caller in callers:
        caller.outcome()
    stats = table.stats()
    assert (stats["jobs_waiting"], stats["bytes_waiting"], stats["readers_out"]) == (0, 0, 0)
    assert (stats["jobs_waiting_peak"], stats["readers_out_peak"]) == (3, 1)
    assert stats["bytes_waiting_peak"] > 300
    assert stats["job_wait_ms_p99"] > 0


def test_pop_starts_counters_and_peaks_anew_and_keeps_levels(table: walpool.Pool) -> None:
    run_queued(table, [partial(table.execute, INSERT, (n,)) for n in range(4)])
    with table.stream("SELECT 1"):
        popped = table.pop_stats()
        assert (popped["jobs"], popped["readers_out"], popped["jobs_waiting_peak"]) == (4, 1, 4)
        stats = table.stats()
        assert (stats["readers_out"], stats["readers_out_peak"], stats["readers"]) == (1, 1, popped["readers"])
    counters = ["jobs", "groups", "reads", "leases", "jobs_per_group_p50", "commit_ms_p99", "yields_to_wait"]
    assert {key: stats[key] for key in counters} == dict.fromkeys(counters, 0)
    assert (stats["jobs_waiting_peak"], stats["wal_frames"]) == (0, popped["wal_frames"])


def test_withdrawn_jobs_and_timeouts_are_counted(table: walpool.Pool) -> None:
    with writer_held(table), pytest.raises(errors.WriteTimeout):
        table.execute(INSERT, (1,), timeout=0)
    stats = table.stats()
    assert (stats["jobs_withdrawn"], stats["errors_WriteTimeout"], stats["jobs"]) == (1, 1, 0)


def test_waits_for_another_process_are_counted_and_timed(table: walpool.Pool) -> None:
    with locked_by_another_process(Path(table.path)), pytest.raises(errors.WriteTimeout, match="another process"):
        table.execute(INSERT, (1,), timeout=0.02)
    stats = table.stats()
    assert stats["busy_waits"] == 1
    assert stats["busy_wait_ms_p50"] > 0


def test_checkpoints_come_by_themselves_and_are_counted(table: walpool.Pool) -> None:
    for n in range(5):  # more than 4 000 frames
        table.execute(INSERT, (bytes(4_200_000) + bytes([n]),))
    eventually(lambda: table.stats()["checkpoints"] >= 1)
    assert table.stats()["checkpoint_ms_p99"] > 0
    was_busy, frames, moved = table.checkpoint()
    assert (was_busy, frames) == (False, moved)
    assert table.checkpoint("truncate") == (False, 0, 0)
    assert Path(f"{table.path}-wal").stat().st_size == 0


def test_checkpoint_is_held_up_by_a_reader_and_says_so(table: walpool.Pool) -> None:
    table.execute(INSERT, (0,))
    with table.stream("SELECT a FROM t"):
        for n in range(1, 6):
            table.execute(INSERT, (bytes(4_200_000) + bytes([n]),))
        eventually(lambda: table.stats()["checkpoints_incomplete"] >= 1)
        _, frames, moved = table.checkpoint("passive")
        assert moved < frames
    eventually(lambda: table.stats()["checkpoints"] >= 1)  # tried again once the reader has gone


@pytest.mark.parametrize("mode", ["", "PASSIVE", "wal"])
def test_checkpoint_mode_that_does_not_exist_is_refused(table: walpool.Pool, mode: str) -> None:
    with pytest.raises(errors.ProgrammingError, match="passive, full, restart or truncate"):
        table.checkpoint(mode)


# The log


def test_slow_job_is_logged_with_its_sql(talkative: walpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    talkative.execute("INSERT INTO t\n    VALUES (?)", (7,))
    assert any("slow job" in text and "INSERT INTO t VALUES (?)" in text for text in messages(caplog))
    assert all(str(talkative.path) in text for text in messages(caplog))
    assert talkative.stats()["slow"] >= 2


def test_slow_read_is_logged_with_its_sql(talkative: walpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    talkative.fetch("SELECT a FROM t WHERE a = ?", (7,))
    with talkative.read() as snapshot:
        snapshot.fetch("SELECT a FROM t WHERE a > ?", (7,))
    texts = [text for text in messages(caplog) if "slow read" in text]
    assert len(texts) == 2
    assert "SELECT a FROM t WHERE a = ?" in texts[0]
    assert "SELECT a FROM t WHERE a > ?" in texts[1]


def test_slow_lease_is_logged_with_its_time(talkative: walpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    with talkative.transaction() as tx:
        tx.execute(INSERT, (7,))
    texts = [text for text in messages(caplog) if "slow lease" in text]
    assert len(texts) == 1
    assert "INSERT INTO t VALUES (?)" in texts[0]


def test_what_is_not_slow_is_not_logged(table: walpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    table.execute(INSERT, (1,))
    table.fetch("SELECT a FROM t")
    table.run(lambda tx: tx.execute(INSERT, (2,)))
    assert messages(caplog) == []
    assert table.stats()["slow"] == 0


def test_long_sql_is_cut_in_the_log(talkative: walpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    talkative.fetch("SELECT " + " + ".join(["1"] * 1000))
    assert max(map(len, messages(caplog))) < 500


def test_transaction_that_is_taken_back_is_logged(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    def overstay() -> None:
        with pool.transaction():
            eventually(lambda: pool.stats()["leases_revoked"] == 1)

    with walpool.Pool(database, transaction_timeout=0.05) as pool:
        with pytest.raises(errors.TransactionTimeout):
            overstay()
        pool.stats()
    assert any("rolled back" in text and "transaction_timeout" in text for text in messages(caplog))


def test_wal_past_its_limit_is_logged_with_the_reader_that_pins_it(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def is_told() -> bool:
        pool.stats()  # the engine's own threads cannot log: their messages come with the next call
        return any("past wal_limit" in text for text in messages(caplog))

    with walpool.Pool(database, wal_limit=2**16) as pool:
        pool.script("CREATE TABLE t (a)")
        with pool.stream("SELECT count(*) FROM t /* who pins it */"):
            for _ in range(50):
                pool.execute(INSERT, (bytes(8000),))
            eventually(is_told)
    told = next(text for text in messages(caplog) if "past wal_limit" in text)
    assert "a reader has pinned it" in told
    assert "who pins it" in told


# Secrets

SECRET = "Ada's diary"
SECRETS = [SECRET, SECRET.encode(), 4242424242424242, 42424.5]
RANDOM_FIELDS = {"created", "msecs", "relativeCreated", "thread", "process"}  # may hold any digits
TRACES = [SECRET, "diary", "4242", str(SECRET.encode())]


def failures(pool: walpool.Pool, secret: Any) -> list[Callable[[], object]]:
    """Return calls that fail, each with a value in its hands."""

    def rolled_back(tx: walpool.Transaction) -> None:
        tx.execute(INSERT, (secret,))
        tx.execute("INSERT OR ROLLBACK INTO t VALUES (?), (?)", (secret, secret))

    def stopped(tx: walpool.Transaction) -> None:
        tx.fetch(f"{COUNT_TO} WHERE ? != 0", (FOREVER, secret), timeout=0.02)

    return [
        lambda: pool.batch([(INSERT, (secret,)), (INSERT, (secret,))]),
        lambda: pool.executemany(INSERT, [(secret,), (secret,)]),
        lambda: pool.execute("INSERT INTO short VALUES (?)", (secret,)),
        lambda: pool.execute("INSERT INTO exact VALUES (?)", ([secret],)),  # type: ignore[arg-type]
        lambda: pool.execute("INSERT INTO exact VALUES (CAST(? AS BLOB))", (secret,)),
        lambda: pool.execute("INSERT INTO child VALUES (?)", (secret,)),
        lambda: pool.execute("INSERT INTO t VALUES (:a, :b)", {"a": secret}),
        lambda: pool.execute(INSERT, (secret, secret)),
        lambda: pool.execute(INSERT, (f"{secret!r}\ud800",)),
        lambda: pool.execute(INSERT, (int("4242" * 10),)),
        lambda: pool.execute(INSERT, ({"diary": secret},)),  # type: ignore[arg-type]
        lambda: pool.execute(INSERT, secret),
        lambda: pool.executemany(INSERT, [({secret},)]),  # type: ignore[list-item]
        lambda: pool.execute("SELECT json(?)", (f"{{{secret!r}",)),
        lambda: pool.fetch("SELECT vec_cosine(?, x'00')", (str(secret).encode(),)),
        lambda: pool.fetch(f"{COUNT_TO} WHERE ? != 0", (FOREVER, secret), timeout=0.02),
        lambda: pool.run(rolled_back),
        lambda: pool.run(stopped),
    ]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: type(secret).__name__)
def test_no_value_stands_in_a_log_message_or_an_error(
    talkative: walpool.Pool, caplog: pytest.LogCaptureFixture, secret: Any
) -> None:
    talkative.script(
        """
        CREATE TABLE short (a CHECK (length(a) < 2));
        CREATE TABLE exact (a INTEGER) STRICT;
        CREATE TABLE parent (a PRIMARY KEY);
        CREATE TABLE child (a REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
        """
    )
    talkative.fetch("SELECT ?", (secret,))
    with talkative.stream("SELECT ?", (secret,)) as rows:
        list(rows)
    told = []
    for fail in failures(talkative, secret):
        with pytest.raises(errors.Error) as caught:
            fail()
        error = caught.value
        told += [str(error), repr(error), repr(vars(error)), *traceback.format_exception_only(type(error), error)]
    with writer_held(talkative):
        told.append(str(Caller(lambda: talkative.execute(INSERT, (secret,), timeout=0.01)).error(errors.WriteTimeout)))
    talkative.stats()
    assert len(messages(caplog)) > 10
    for record in caplog.records:
        fields = {name: value for name, value in vars(record).items() if name not in RANDOM_FIELDS}
        told.append(f"{record.getMessage()} {fields}")
    assert [text for text in told for trace in TRACES if trace in text] == []


def test_checkout_timeout_tells_the_holders_sql_and_not_its_values(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool, pool.stream("SELECT ? AS held", (SECRET,)):
        with pytest.raises(errors.CheckoutTimeout) as caught:
            pool.fetch("SELECT 1", timeout=0.01)
        assert "SELECT ? AS held" in str(caught.value)
        assert "diary" not in str(caught.value)
