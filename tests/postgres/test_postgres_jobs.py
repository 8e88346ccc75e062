"""Jobs on PostgreSQL: whole ones, committed in groups, none at the cost of another.

caller A                     caller B                       caller C
leads A and B                sleeps                         joins meanwhile, sleeps
BEGIN; A; B                  (B is refused)
ROLLBACK; BEGIN; A; COMMIT
answers A, wakes B and C     alone: BEGIN; B ...            leads the next group
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from helpers import WITHIN, Caller, eventually, run_together, start_python

from tests.postgres.pools import (
    INSERT,
    assert_unharmed,
    groups_held,
    kept,
    plain,
    queue_up,
    row_locked,
    running,
    terminate,
    until_running,
    until_waiting_for_a_lock,
)
from walpool import errors
from walpool.postgres import PostgresPool, _running, _writer
from walpool.postgres._line import LEADERS


def outcomes(pool: PostgresPool, url: str, calls: list[Callable[[], object]]) -> list[Any]:
    """Queue the calls up behind groups that are held, let these go, and return what each returned or raised."""
    with groups_held(url, pool):
        callers = queue_up(pool, calls)
    return [caller.outcome() for caller in callers]


def test_jobs_that_wait_together_are_committed_together(pg: PostgresPool, postgres_url: str) -> None:
    pg.pop_stats()
    outcomes(pg, postgres_url, [partial(pg.execute, INSERT, (str(n),)) for n in range(40)])
    stats = pg.pop_stats()
    assert len(kept(pg)) == 40
    assert stats["groups"] <= 2 * LEADERS + 4
    assert len({xmin for (xmin,) in pg.fetch("SELECT xmin::text FROM t")}) <= LEADERS + 4


def test_failed_job_does_not_undo_its_neighbours(pg: PostgresPool, postgres_url: str) -> None:
    pg.script("INSERT INTO t (a) VALUES ('taken'); CREATE TABLE d (a text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    pg.execute("INSERT INTO d VALUES ('taken')")
    failing: list[Callable[[], object]] = [
        partial(pg.execute, INSERT, ("taken",)),
        partial(pg.execute, "INSERT INTO t (a, n) VALUES ('f', ?)", ("no number",)),
        partial(pg.executemany, INSERT, [("g",), ("taken",)]),
        partial(pg.batch, [(INSERT, ("h",)), "SELECT 1/0"]),
        partial(pg.execute, "INSERT INTO d VALUES ('taken')"),  # refused at COMMIT
        partial(pg.execute, "SELECT nonsense"),
        partial(pg.script, "INSERT INTO t (a) VALUES ('i'); SELECT 1/0"),
        partial(pg.execute, "INSERT INTO t (a) VALUES ('j') RETURNING 'infinity'::timestamp"),
    ]
    good = [partial(pg.execute, INSERT, (f"good{n}",)) for n in range(len(failing) + 1)]
    calls: list[Callable[[], object]] = [call for pair in zip(good, failing, strict=False) for call in pair]
    ended = outcomes(pg, postgres_url, [*calls, good[-1]])
    assert [getattr(each, "rowcount", None) for each in ended[::2]] == [1] * len(good)
    assert [type(each) for each in ended[1::2]] == [
        errors.IntegrityError,
        errors.DataError,
        errors.IntegrityError,
        errors.DataError,
        errors.IntegrityError,
        errors.ProgrammingError,
        errors.DataError,
        errors.DataError,
    ]
    assert {each.outcome for each in ended[1::2]} == {"not_applied"}
    assert kept(pg) == [*sorted(f"good{n}" for n in range(len(good))), "taken"]
    assert pg.fetchval("SELECT count(*) FROM d") == 1


def test_neighbours_of_failing_jobs_are_all_applied_under_load(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("taken",))

    def work(index: int) -> list[str]:
        done = []
        for n in range(40):
            if (index + n) % 2:
                with pytest.raises(errors.IntegrityError):
                    pg.batch([(INSERT, (f"undone {index}/{n}",)), (INSERT, ("taken",))])
            else:
                pg.execute(INSERT, (f"{index}/{n}",))
                done.append(f"{index}/{n}")
        return done

    done = [value for each in run_together(16, work) for value in each]
    assert kept(pg) == sorted([*done, "taken"])
    assert_unharmed(pg)


def test_exception_that_nobody_foresaw_in_a_job_is_told_to_all_and_leaves_the_line_led(
    pg: PostgresPool, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strange(Exception):
        pass

    def running(connection: Any, jobs: Any, settings: Any) -> Any:
        if any(b"strange" in statement.sql for job in jobs for statement in job.statements):
            raise Strange
        return (yield from _running.running(connection, jobs, settings))

    with groups_held(postgres_url, pg):
        monkeypatch.setattr(_writer, "running", running)
        callers = queue_up(pg, [partial(pg.execute, f"SELECT {n} AS strange") for n in range(6)])
    told = [caller.outcome() for caller in callers]
    assert all(isinstance(each, (Strange, errors.DatabaseError)) for each in told)
    assert {each.outcome for each in told if isinstance(each, errors.Error)} <= {"unknown"}
    assert pg.execute(INSERT, ("after",), timeout=WITHIN).rowcount == 1
    assert_unharmed(pg)


def test_nobody_is_answered_before_commit_has_returned(
    pg: PostgresPool, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    go_on = threading.Event()
    committing = _running.committing

    def held(connection: Any) -> Any:
        if not go_on.is_set():
            sent.append(connection)
            assert go_on.wait(WITHIN)
        return (yield from committing(connection))

    monkeypatch.setattr(_running, "committing", held)
    callers = []
    for n in range(3):
        callers.append(Caller(partial(pg.execute, INSERT, (str(n),))))
        eventually(lambda: len(sent) == len(callers))  # each leads its own: the groups before it take long
    with plain(postgres_url) as other:
        assert [caller.thread.is_alive() for caller in callers] == [True] * 3
        terminate(other)  # as an operator does
        go_on.set()
        for caller in callers:
            assert caller.error(errors.Error).outcome == "unknown"
        assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert_unharmed(pg)


def test_jobs_of_a_group_run_in_the_order_of_their_keys(pg: PostgresPool, postgres_url: str) -> None:
    pg.script("CREATE TABLE o (n serial, a text)")
    insert = "INSERT INTO o (a) VALUES (?)"
    keys = ["d", "b", None, "c", "a", None]
    pg.pop_stats()
    outcomes(pg, postgres_url, [partial(pg.execute, insert, (str(key),), key=key) for key in keys])
    groups: dict[str, list[str]] = {}
    for xmin, a in pg.fetch("SELECT xmin::text, a FROM o ORDER BY n"):
        groups.setdefault(xmin, []).append(a)
    # None is behind those that have one.
    assert [each for each in groups.values() if each != sorted(each, key=lambda a: (a == "None", a))] == []
    assert sorted(a for each in groups.values() for a in each) == sorted(map(str, keys))
    assert max(map(len, groups.values())) > 1


def test_locked_row_holds_up_the_job_that_wants_it_and_no_other(pg: PostgresPool, postgres_url: str) -> None:
    pg.executemany(INSERT, [("locked",), ("free",)])
    update = "UPDATE t SET n = n + 1 WHERE a = ?"
    with row_locked(postgres_url, "locked"), plain(postgres_url) as other:
        waiting = [Caller(partial(pg.execute, update, ("locked",))) for _ in range(3)]
        until_waiting_for_a_lock(other, 3)
        began = time.monotonic()
        for n in range(20):
            pg.execute(update, ("free",), timeout=5)
            pg.execute(INSERT, (str(n),), timeout=5)
        assert time.monotonic() - began < 3
        assert all(caller.thread.is_alive() for caller in waiting)
    assert [caller.outcome().rowcount for caller in waiting] == [1, 1, 1]
    assert pg.fetch("SELECT a, n FROM t WHERE n > 0 ORDER BY a") == [("free", 20), ("locked", 3)]


def test_job_before_a_locked_row_is_busy_after_busy_timeout(pg: PostgresPool, postgres_url: str) -> None:
    pg.execute(INSERT, ("locked",))
    pg.close()
    with PostgresPool(postgres_url, busy_timeout=0.2) as pool, row_locked(postgres_url, "locked"):
        with pytest.raises(errors.BusyError) as refused:
            pool.execute("UPDATE t SET n = 1")
        assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        with pytest.raises(errors.BusyError), pool.transaction() as tx:
            tx.execute("UPDATE t SET n = 2")
        assert pool.stats()["busy_waits"] == 1
    with PostgresPool(postgres_url) as pool:
        assert pool.fetchval("SELECT n FROM t") == 0


DEADLOCKING = """
    import sys, threading
    from walpool.postgres import PostgresPool
    with PostgresPool(sys.argv[1]) as pool:
        print("open", flush=True)
        sys.stdin.readline()
        for _ in range(int(sys.argv[2])):
            pool.batch([("UPDATE t SET n = n + 1 WHERE a = ?", (a,)) for a in sys.argv[3]])
        print(pool.stats()["jobs_retried"])
"""


def test_deadlocks_between_processes_are_tried_again_until_both_are_through(
    pg: PostgresPool, postgres_url: str
) -> None:
    pg.executemany(INSERT, [("x",), ("y",)])
    pg.script(
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END';
           CREATE TRIGGER slows AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION slow()"""
    )
    rounds = 4
    processes = [start_python(DEADLOCKING, postgres_url, rounds, order) for order in ("xy", "yx")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", process.communicate()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, problem = process.communicate(timeout=40)
        assert (process.returncode, output.isspace()) == (0, False), problem
    assert pg.fetch("SELECT a, n FROM t ORDER BY a") == [("x", 2 * rounds), ("y", 2 * rounds)]


def test_job_that_is_the_victim_of_a_deadlock_is_run_again(pg: PostgresPool, postgres_url: str) -> None:
    """The job waits for y until the server looks for deadlocks, after a second; by then somebody waits for its x."""
    pg.executemany(INSERT, [("x",), ("y",)])
    with row_locked(postgres_url, "y") as somebody, plain(postgres_url) as other:
        job = Caller(partial(pg.batch, [("UPDATE t SET n = n + 1 WHERE a = ?", (a,)) for a in "xy"]))
        eventually(lambda: pg.stats()["jobs_alone"] == 1)
        until_waiting_for_a_lock(other)
        somebody.execute("UPDATE t SET n = n + 10 WHERE a = 'x'")
        somebody.execute("COMMIT")
        assert [each.rowcount for each in job.outcome()] == [1, 1]
    assert pg.stats()["jobs_retried"] >= 1
    assert pg.fetch("SELECT a, n FROM t ORDER BY a") == [("x", 11), ("y", 1)]


def test_serialization_failure_of_a_job_is_tried_again(pg: PostgresPool) -> None:
    pg.script(
        """CREATE SEQUENCE tries;
           CREATE FUNCTION flaky() RETURNS int LANGUAGE plpgsql AS $$
           BEGIN
               IF nextval('tries') < 5 THEN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END IF;
               INSERT INTO t (a) VALUES ('x');
               RETURN 1;
           END $$"""
    )
    assert pg.execute("SELECT flaky()").rows == [(1,)]
    assert kept(pg) == ["x"]
    assert pg.stats()["jobs_retried"] >= 3


def test_deferred_constraint_is_told_to_the_job_that_breaks_it(pg: PostgresPool) -> None:
    pg.script("CREATE TABLE d (a text REFERENCES t (a) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(errors.IntegrityError) as refused:
        pg.execute("INSERT INTO d VALUES ('nobody')")
    assert (refused.value.outcome, refused.value.retryable) == ("not_applied", False)
    pg.batch(["INSERT INTO d VALUES ('x')", "INSERT INTO t (a) VALUES ('x')"])
    with pytest.raises(errors.IntegrityError) as refused, pg.transaction() as tx:
        tx.execute("INSERT INTO d VALUES ('nobody')")
    assert refused.value.outcome == "not_applied"
    assert pg.fetch("SELECT a FROM d") == [("x",)]


def test_job_whose_turn_does_not_come_in_time_never_runs(pg: PostgresPool, postgres_url: str) -> None:
    with groups_held(postgres_url, pg):
        with pytest.raises(errors.WriteTimeout) as refused:
            pg.execute(INSERT, ("late",), timeout=0.1)
        assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
        with pytest.raises(errors.WriteTimeout):
            pg.execute(INSERT, ("late",), timeout=0)
        assert pg.stats()["jobs_waiting"] == 0
    assert kept(pg) == []
    assert pg.stats()["jobs_withdrawn"] == 2


def test_full_line_refuses_and_too_many_bytes_hold_back(pg: PostgresPool, postgres_url: str) -> None:
    pg.close()
    with PostgresPool(postgres_url, max_waiting=3, max_waiting_bytes=5000) as pool:
        with groups_held(postgres_url, pool):
            callers = queue_up(pool, [partial(pool.execute, INSERT, ("1" + 2000 * "x",))])
            with pytest.raises(errors.WriteTimeout):  # held back, not in line
                pool.execute(INSERT, ("2" + 4000 * "x",), timeout=0.1)
            assert pool.stats()["jobs_waiting"] == 1
            held_back = Caller(partial(pool.execute, INSERT, ("3" + 4000 * "x",)))
            callers += queue_up(pool, [partial(pool.execute, INSERT, (str(n),)) for n in (4, 5)])
            with pytest.raises(errors.QueueFull) as refused:
                pool.execute(INSERT, ("6",))
            assert (refused.value.outcome, refused.value.retryable) == ("not_applied", True)
            assert held_back.thread.is_alive()
        for caller in (*callers, held_back):
            assert caller.outcome().rowcount == 1
        assert sorted(a[0] for a in kept(pool)) == ["1", "3", "4", "5"]
        assert pool.stats()["bytes_waiting"] == 0


def test_scripts_are_committed_by_themselves_in_their_turn(pg: PostgresPool, postgres_url: str) -> None:
    calls: list[Callable[[], object]] = []
    for n in range(6):
        calls.append(partial(pg.execute, INSERT, (f"job{n}",)))
        calls.append(partial(pg.script, f"INSERT INTO t (a) VALUES ('script{n}'); SELECT 1"))
    ended = outcomes(pg, postgres_url, calls)
    assert [each for each in ended if isinstance(each, BaseException)] == []
    assert len(kept(pg)) == 12
    of_scripts = [xmin for (xmin,) in pg.fetch("SELECT xmin::text FROM t WHERE a LIKE 'script%'")]
    of_jobs = {xmin for (xmin,) in pg.fetch("SELECT xmin::text FROM t WHERE a LIKE 'job%'")}
    assert len(set(of_scripts)) == 6
    assert of_jobs.isdisjoint(of_scripts)


def test_close_answers_every_waiting_job(pg: PostgresPool, postgres_url: str) -> None:
    with groups_held(postgres_url, pg):
        callers = queue_up(pg, [partial(pg.execute, INSERT, (str(n),)) for n in range(20)])
        closing = Caller(pg.close)
        eventually(lambda: pg.closed)
    assert closing.outcome() is None
    assert [caller.outcome().rowcount for caller in callers] == [1] * 20
    with pytest.raises(errors.ClosedError):
        pg.execute(INSERT, ("x",))
    with PostgresPool(postgres_url) as pool:
        assert len(kept(pool)) == 20


def test_long_job_holds_nobody_up(pg: PostgresPool, postgres_url: str) -> None:
    with plain(postgres_url) as other:
        slow = Caller(partial(pg.execute, "SELECT pg_sleep(30)"))
        until_running(other, "pg_sleep")
        for n in range(10):
            pg.execute(INSERT, (str(n),), timeout=5)
        assert slow.thread.is_alive()
        for pid in running(other, "pg_sleep(30)"):
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))
    assert slow.error(errors.StatementTimeout).outcome == "not_applied"
