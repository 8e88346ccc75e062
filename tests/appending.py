"""Callers that append to lists and read them by every verb of a pool, and write down what came of each call.

Each append moves a clock in the same statement: that is its place in the commit order, which the table `log` keeps.
`main` is another process's callers: a line a round on its input, the calls in a file for each.
"""

from __future__ import annotations

import os
import pickle
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from helpers import run_together
from histories import APPLIED, FAILED, UNKNOWN, Append, Call, Read

import walpool
from walpool import errors

SCHEMA = """
    CREATE TABLE clock (now INTEGER NOT NULL);
    INSERT INTO clock VALUES (0);
    CREATE TABLE list (id INTEGER PRIMARY KEY, elements TEXT NOT NULL, fate TEXT CHECK (fate IS NOT 'check'));
    CREATE TABLE log (place INTEGER PRIMARY KEY, list INTEGER NOT NULL, element INTEGER NOT NULL UNIQUE);
    CREATE TABLE child (list INTEGER REFERENCES list DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER tick BEFORE UPDATE OF elements ON list BEGIN
        UPDATE clock SET now = now + 1;
        INSERT INTO log SELECT now, NEW.id, trim(substr(NEW.elements, length(OLD.elements) + 1)) FROM clock;
    END;
    CREATE TRIGGER fate AFTER UPDATE OF elements ON list BEGIN
        SELECT RAISE(ABORT, 'fate') WHERE NEW.fate = 'abort';
        SELECT RAISE(FAIL, 'fate') WHERE NEW.fate = 'fail';
        SELECT RAISE(ROLLBACK, 'fate') WHERE NEW.fate = 'rollback';
    END;
"""
NOW = "(SELECT now FROM clock)"
APPEND = "UPDATE list SET elements = elements || ?2 || ' ', fate = ?3 WHERE id = ?1"
TELLING = f"{APPEND} RETURNING elements, {NOW}"
ONE = f"SELECT id, elements, {NOW} FROM list WHERE id = ?"
ALL = f"SELECT id, elements, {NOW} FROM list WHERE id BETWEEN ? AND ? ORDER BY id"
FATES = ("abort", "fail", "rollback", "check")

# Statements that fail a job after what stands before them was written.
POISON = (
    "INSERT INTO log SELECT * FROM log",
    "INSERT OR ROLLBACK INTO log SELECT * FROM log",
    "INSERT OR FAIL INTO log SELECT -1, 0, -1 UNION ALL SELECT -2, 0, -1",
    "INSERT INTO child VALUES (-1)",
    "INSERT INTO nowhere VALUES (1)",
    "COMMIT",
)
WITHIN = 60.0  # seconds for a round's slowest caller

Steps = list[Append | Read]


class Undone(Exception):
    """Raised in a block so that it is rolled back."""


def new_lists(pool: walpool.Pool, count: int) -> range:
    """Make `count` empty lists and return their ids."""
    first = pool.fetchval("SELECT coalesce(max(id), 0) + 1 FROM list")
    pool.executemany("INSERT INTO list (id, elements) VALUES (?, '')", [(first + n,) for n in range(count)])
    return range(first, first + count)


def order_of(pool: walpool.Pool, lists: range) -> list[tuple[int, int, int]]:
    """Return the commit order of the appends to these lists, as (place, list, element)."""
    return pool.fetch("SELECT place, list, element FROM log WHERE list BETWEEN ? AND ?", (lists[0], lists[-1]))


def read_of(row: tuple[int, str, int]) -> Read:
    key, elements, now = row
    return Read(key, tuple(map(int, elements.split())), now)


class Caller:
    """One thread's calls, one after the other: what to call is drawn from its seed."""

    def __init__(self, pool: walpool.Pool, name: str, lists: range, seed: int) -> None:
        self.pool = pool
        self.name = name
        self.lists = lists
        self.calls: list[Call] = []
        self._draw = random.Random(seed)
        self._next = seed * 10_000
        self._span = (lists[0], lists[-1])

    def run(self, count: int) -> list[Call]:
        """Make `count` calls and return them."""
        verbs = [getattr(self, f"_{verb}") for verb in WEIGHTS]
        for verb in self._draw.choices(verbs, list(WEIGHTS.values()), k=count):
            verb()
        return self.calls

    def _call(self, verb: str, work: Callable[[Steps], None], *, fails: tuple[type[Exception], ...] = ()) -> None:
        """Make one call and write it down. It may fail by `fails`, and must unless that is for want of time."""
        steps: Steps = []
        outcome, surprise = APPLIED, ""
        invoked = time.monotonic_ns()
        try:
            work(steps)
            if fails not in ((), (errors.WriteTimeout,)):
                surprise = "it should have failed"
        except (Undone, errors.Error) as error:
            is_known = isinstance(error, Undone) or error.outcome == "not_applied"
            outcome = FAILED if is_known else UNKNOWN
            surprise = "" if isinstance(error, fails) else repr(error)
        returned = time.monotonic_ns()
        self.calls.append(Call(self.name, tuple(steps), invoked, returned, outcome, verb, surprise))

    def _element(self) -> int:
        self._next += 1
        return self._next

    def _some(self, least: int = 1, most: int = 4) -> list[tuple[int, int]]:
        """Return appends to make, as (list, element); now and then several to one list."""
        return [(self._draw.choice(self.lists), self._element()) for _ in range(self._draw.randint(least, most))]

    # Jobs

    def _execute(self, timeout: float | None = None, fails: tuple[type[Exception], ...] = ()) -> None:
        ((key, element),) = self._some(1, 1)

        def work(steps: Steps) -> None:
            steps.append(Append(key, element))
            done = self.pool.execute(TELLING, (key, element, None), timeout=timeout)
            steps[:] = _told(key, element, done)

        self._call("execute", work, fails=fails)

    def _impatient(self) -> None:
        self._execute(self._draw.choice([0.0, 0.0002, 0.001]), (errors.WriteTimeout,))

    def _batch(self) -> None:
        appends = self._some()

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            done = self.pool.batch([(TELLING, (*each, None)) for each in appends])
            steps[:] = [step for each, ran in zip(appends, done, strict=True) for step in _told(*each, ran)]

        self._call("batch", work)

    def _executemany(self) -> None:
        appends = self._some()

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            self.pool.executemany(APPEND, [(*each, None) for each in appends])

        self._call("executemany", work)

    def _script(self) -> None:
        appends = self._some()

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            self.pool.script(_as_script(appends))

        self._call("script", work)

    # Jobs that fail

    def _doomed_execute(self) -> None:
        ((key, element),) = self._some(1, 1)
        fate = self._draw.choice(FATES)

        def work(steps: Steps) -> None:
            steps.append(Append(key, element))
            self.pool.execute(TELLING, (key, element, fate))

        self._call(f"execute, {fate}", work, fails=(errors.DatabaseError,))

    def _doomed_batch(self) -> None:
        appends, poison = self._some(), self._draw.choice(POISON)

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            self.pool.batch([*((TELLING, (*each, None)) for each in appends), poison])

        self._call(f"batch, {poison}", work, fails=(errors.DatabaseError,))

    def _doomed_executemany(self) -> None:
        appends, fate = self._some(2), self._draw.choice(FATES)

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            self.pool.executemany(APPEND, [*((*each, None) for each in appends[:-1]), (*appends[-1], fate)])

        self._call(f"executemany, {fate}", work, fails=(errors.DatabaseError,))

    def _doomed_script(self) -> None:
        appends, poison = self._some(), self._draw.choice(POISON)

        def work(steps: Steps) -> None:
            steps += [Append(*each) for each in appends]
            self.pool.script(f"{_as_script(appends)}; {poison}")

        self._call(f"script, {poison}", work, fails=(errors.DatabaseError,))

    # Transactions

    def _transaction(self) -> None:
        def work(steps: Steps) -> None:
            with self.pool.transaction() as tx:
                self._read_and_append(tx, steps)

        self._call("transaction", work)

    def _run(self) -> None:
        self._call("run", lambda steps: self.pool.run(lambda tx: self._read_and_append(tx, steps)))

    def _doomed_transaction(self) -> None:
        def work(steps: Steps) -> None:
            with self.pool.transaction() as tx:
                self._read_and_append(tx, steps)
                raise Undone

        self._call("transaction, an exception", work, fails=(Undone,))

    def _rolled_back_transaction(self) -> None:
        """The statement's error is caught, and the block goes on as if it had a transaction."""

        def work(steps: Steps) -> None:
            with self.pool.transaction() as tx:
                self._read_and_append(tx, steps)
                try:
                    tx.execute(TELLING, (self.lists[0], 0, "rollback"))
                except errors.IntegrityError:
                    steps.append(Append(self.lists[0], element := self._element()))
                    tx.execute(APPEND, (self.lists[0], element, None))

        self._call("transaction, rolled back by SQL", work, fails=(errors.DatabaseError,))

    def _read_and_append(self, tx: walpool.Transaction, steps: Steps) -> None:
        for _ in range(self._draw.randint(1, 4)):
            chance = self._draw.random()
            if chance < 0.4:
                steps.append(read_of(tx.fetchone(ONE, (self._draw.choice(self.lists),))))
            elif chance < 0.5:
                self._try_in_vain(tx, steps)
            else:
                self._append_at_a_savepoint(tx, steps, is_kept=chance < 0.85)
            os.sched_yield()

    def _append_at_a_savepoint(self, tx: walpool.Transaction, steps: Steps, *, is_kept: bool) -> None:
        ((key, element),) = self._some(1, 1)
        if is_kept and self._draw.random() < 0.5:
            steps += _told(key, element, tx.execute(TELLING, (key, element, None)))
            return
        try:
            with tx.transaction():
                told = _told(key, element, tx.execute(TELLING, (key, element, None)))
                if not is_kept:
                    raise Undone
            steps += told
        except Undone:
            steps.append(Append(key, element, is_kept=False))

    def _try_in_vain(self, tx: walpool.Transaction, steps: Steps) -> None:
        """Run a statement that fails alone, for one row or for the last of several; what it wrote is undone."""
        appends = self._some()
        steps += [Append(*each, is_kept=False) for each in appends]
        rows = [*((*each, None) for each in appends[:-1]), (*appends[-1], self._draw.choice(["abort", "check"]))]
        try:
            tx.execute(APPEND, rows[0]) if len(rows) == 1 else tx.executemany(APPEND, rows)
        except errors.IntegrityError:
            return
        raise AssertionError("the statement should have failed")

    # Reads

    def _fetch(self) -> None:
        key = self._draw.choice(self.lists)
        self._call("fetch", lambda steps: steps.append(read_of(self.pool.fetchone(ONE, (key,)))))

    def _fetch_all(self) -> None:
        self._call("fetch all", lambda steps: steps.extend(map(read_of, self.pool.fetch(ALL, self._span))))

    def _snapshot(self) -> None:
        def work(steps: Steps) -> None:
            with self.pool.read() as snapshot:
                for key in self._draw.choices(self.lists, k=self._draw.randint(2, 6)):
                    os.sched_yield()
                    steps.append(read_of(snapshot.fetchone(ONE, (key,))))

        self._call("read", work)

    def _stream(self) -> None:
        def work(steps: Steps) -> None:
            with self.pool.stream(ALL, self._span, chunk=1) as rows:
                for row in rows:
                    os.sched_yield()
                    steps.append(read_of(row))

        self._call("stream", work)

    def _left_stream(self) -> None:
        """A stream left after its first row gives a clean reader to the next."""

        def work(steps: Steps) -> None:
            with self.pool.stream(ALL, self._span, chunk=1) as rows:
                steps.append(read_of(next(rows)))

        self._call("stream, left", work)

    def _backup(self) -> None:
        copy = Path(f"{self.pool.path}-{self.name}-{self._element()}.copy")

        def work(steps: Steps) -> None:
            self.pool.backup(copy)
            with closing(sqlite3.connect(copy)) as conn:
                steps += map(read_of, conn.execute(ALL, self._span))

        self._call("backup", work)
        copy.unlink()

    def _checkpoint(self) -> None:
        self.pool.checkpoint(self._draw.choice(["passive", "full", "restart", "truncate"]))

    def _vacuum(self) -> None:
        self.pool.vacuum()


# How often each verb is called, against the others.
WEIGHTS = {
    "execute": 20,
    "impatient": 3,
    "batch": 12,
    "executemany": 5,
    "script": 3,
    "doomed_execute": 5,
    "doomed_batch": 5,
    "doomed_executemany": 2,
    "doomed_script": 2,
    "transaction": 8,
    "run": 4,
    "doomed_transaction": 3,
    "rolled_back_transaction": 2,
    "fetch": 12,
    "fetch_all": 12,
    "snapshot": 14,
    "stream": 8,
    "left_stream": 3,
    "backup": 0.3,
    "checkpoint": 2,
    "vacuum": 0.2,
}


def _told(key: int, element: int, ran: walpool.Result) -> Steps:
    """Return an append, and the list as its RETURNING gave it."""
    ((elements, place),) = ran.rows
    return [Append(key, element, place=place), read_of((key, elements, place))]


def _as_script(appends: Sequence[tuple[int, int]]) -> str:
    return ";\n".join(
        f"UPDATE list SET elements = elements || '{element} ' WHERE id = {key}" for key, element in appends
    )


def run_callers(pool: walpool.Pool, who: str, lists: range, seed: int, *, callers: int, calls: int) -> list[Call]:
    """Let `callers` threads make `calls` calls each, at once, and return all of them."""
    started = [Caller(pool, f"{who} {n}", lists, seed * 100 + n + 1) for n in range(callers)]
    # Threads change over a hundred times as often as usual: blocks are left and entered in the middle.
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    try:
        done = run_together(callers, lambda n: started[n].run(calls), timeout=WITHIN)
    finally:
        sys.setswitchinterval(usual)
    return [call for each in done for call in each]


def main(path: str) -> None:
    """Be another process's callers: `first last seed callers calls file` on each line of the input is a round."""
    with walpool.Pool(path) as pool:
        print("ready", flush=True)  # noqa: T201
        for line in sys.stdin:
            *numbers, file = line.split(maxsplit=5)
            first, last, seed, callers, calls = map(int, numbers)
            done = run_callers(pool, "other", range(first, last + 1), seed, callers=callers, calls=calls)
            Path(file.strip()).write_bytes(pickle.dumps(done))
            print("done", flush=True)  # noqa: T201
