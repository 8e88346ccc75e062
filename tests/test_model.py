"""The engine against a model: whatever is called, in whatever order, the database holds what tests/model.py says.

`OneProcess` calls everything a pool has. In `KilledProcess` the pool lives in a child, which is killed at any moment:

test                                    child, a thread a job
jobs, one after the other                 run, answered
several at once                           run together
  some are answered
SIGKILL                                   dies in the middle
open the file: the answered jobs are there, and of the others each is there whole or not at all
"""

from __future__ import annotations

import contextvars
import json
import shutil
import signal
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers import run_queued, start_python
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import (
    CHILDREN,
    SCHEMA,
    WORDS,
    Refused,
    State,
    Statement,
    Told,
    adopt,
    delete,
    endings,
    grow,
    insert,
    leave,
    nonsense,
    outcome_of,
    put,
    rename,
    run_in_transaction,
    run_job,
    run_many_in_transaction,
)

import walpool
from tests.torture import Torture
from walpool import errors

MOST_OPEN = 3  # snapshots and streams at once; one reader is left for the others

# Few words and few sizes: what is taken, missing or too small comes up often.
WORD = st.sampled_from("abcdef")
ROW = st.tuples(
    st.one_of(WORD, WORD, WORD, st.sampled_from([None, "raise abort", "raise fail", "raise rollback"])),
    st.sampled_from([1, 2, 3, 1, 2, 3, 0]),
)
POLICY = st.sampled_from(["ABORT", "ABORT", "IGNORE", "REPLACE", "FAIL", "ROLLBACK"])
REFUSED = ["NONSENSE", "COMMIT", "ROLLBACK", "SAVEPOINT walpool", "INSERT INTO nowhere VALUES (1)", "VACUUM"]
STATEMENT = st.one_of(
    st.builds(insert, st.lists(ROW, min_size=1, max_size=3), POLICY, returning=st.booleans()),
    st.builds(insert, st.lists(st.tuples(WORD, st.just(1)), min_size=1, max_size=1)),
    st.builds(put, WORD, st.integers(0, 4)),
    st.builds(grow, WORD, st.integers(-1, 2)),
    st.builds(rename, WORD, WORD),
    st.builds(delete, WORD),
    st.builds(adopt, st.integers(1, 6)),
    st.builds(leave, st.integers(1, 6)),
    st.builds(nonsense, st.sampled_from(REFUSED)),
)
SCHEMA_CHANGES = ["CREATE INDEX IF NOT EXISTS by_size ON word (size)", "DROP INDEX IF EXISTS by_size"]
JOB = st.lists(STATEMENT, min_size=1, max_size=4)
MANY = st.lists(ROW, min_size=1, max_size=4)


class Step:
    """A step of a transaction: a statement, rows of `executemany`, or a savepoint with steps in it."""

    def __init__(self, what: Statement | list[Any], *, is_many: bool = False, is_kept: bool = True) -> None:
        self.what = what
        self.is_many = is_many
        self.is_kept = is_kept

    def __repr__(self) -> str:
        return f"{'many ' * self.is_many}{'undone ' * (not self.is_kept)}{self.what!r}"


STEPS = st.recursive(
    st.lists(st.one_of(st.builds(Step, STATEMENT), st.builds(Step, MANY, is_many=st.just(True))), max_size=4),
    lambda steps: st.lists(
        st.one_of(st.builds(Step, STATEMENT), st.builds(Step, steps, is_kept=st.booleans())), max_size=4
    ),
    max_leaves=3,
)


class Undone(Exception):
    """Raised in a block so that it is rolled back."""


class Gone(Exception):
    """Raised in a block whose transaction SQL has rolled back."""


def told_of(ran: walpool.Result) -> Told:
    return ran.rowcount, ran.lastrowid, ran.rows


def outcome(call: Callable[[], object]) -> object:
    """Return what a call of walpool gives, or the name of the exception that it raises; that write was not applied."""
    try:
        return call()
    except (Undone, Gone) as error:
        return type(error).__name__
    except errors.Error as error:
        return type(error).__name__ if error.outcome == "not_applied" else error.outcome


def rows_by_sqlite(path: str | Path) -> tuple[list[Any], list[Any]]:
    """Return all rows as the standard library's SQLite reads them; no pool may have the file open."""
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return conn.execute(WORDS).fetchall(), conn.execute(CHILDREN).fetchall()


class Held:
    """A snapshot or a stream that stays open, in a context of its own, so that the pool's verbs do not refuse."""

    def __init__(self, block: AbstractContextManager[Any], state: State) -> None:
        self.state = state
        self.given = 0  # rows that a stream has given
        self._block = block
        self._context = contextvars.copy_context()
        self.opened = self._context.run(block.__enter__)

    def close(self) -> None:
        self._context.run(self._block.__exit__, None, None, None)


class OneProcess(RuleBasedStateMachine):
    """Everything that a pool has, called from one thread, or from several whose order is known."""

    tried: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "test.db"
        self.state = State()
        self.snapshots: list[Held] = []
        self.streams: list[Held] = []

    @initialize(synchronous=st.sampled_from(["full", "normal"]), max_group=st.sampled_from([1, 2, 512]))
    def open(self, synchronous: str, max_group: int) -> None:
        self.settings = {
            "synchronous": synchronous,
            "max_group": max_group,
            "readers": MOST_OPEN + 1,
            "slow_threshold": 60,
        }
        self.pool = walpool.Pool(self.path, **self.settings)
        self.pool.script(SCHEMA)

    def teardown(self) -> None:
        try:
            self._close_all()
            if hasattr(self, "pool"):
                assert self.pool.check() == []
                self.pool.close()
                assert rows_by_sqlite(self.path) == self.state.rows()
        finally:
            shutil.rmtree(self.folder)

    def _close_all(self) -> None:
        for held in self.snapshots + self.streams:
            held.close()
        self.snapshots, self.streams = [], []

    def _run(self, job: list[Statement], call: Callable[[], list[Told]]) -> None:
        """Make a call and compare it with the model's job: what it tells, or the class of its error."""
        self.tried["jobs"] += 1
        assert outcome(call) == outcome_of(partial(run_job, self.state, job))

    def _run_silent(self, job: list[Statement], call: Callable[[], object]) -> None:
        """Do so with a call that does not tell what each statement did."""
        self.tried["jobs"] += 1
        expected = outcome_of(partial(run_job, self.state, job))
        assert outcome(lambda: _nothing(call())) == (expected if isinstance(expected, str) else None)

    @invariant()
    def pool_holds_what_the_model_holds(self) -> None:
        self.tried["checks"] += 1
        if hasattr(self, "pool"):
            assert (self.pool.fetch(WORDS), self.pool.fetch(CHILDREN)) == self.state.rows()

    # Jobs

    @rule(statement=STATEMENT)
    def execute(self, statement: Statement) -> None:
        self._run([statement], lambda: [told_of(self.pool.execute(statement.sql, statement.params))])

    @rule(job=JOB)
    def batch(self, job: list[Statement]) -> None:
        self._run(job, partial(_batch, self.pool, job))

    @rule(rows=MANY, policy=POLICY)
    def executemany(self, rows: list[tuple[Any, int]], policy: str) -> None:
        job = [insert([row], policy) for row in rows]
        self._run_silent(job, lambda: self.pool.executemany(job[0].sql, rows))

    @rule(job=JOB)
    def script(self, job: list[Statement]) -> None:
        self._run_silent(job, lambda: self.pool.script(";\n".join(each.literal() for each in job)))

    @rule(jobs=st.lists(JOB, min_size=2, max_size=5))
    def several_jobs_queue_up(self, jobs: list[list[Statement]]) -> None:
        """They run in the order in which they came, in one group or two."""
        self.tried["jobs"] += len(jobs)
        calls = [partial(outcome, partial(_batch, self.pool, job)) for job in jobs]
        got = run_queued(self.pool, calls)
        assert got == [outcome_of(partial(run_job, self.state, job)) for job in jobs]

    @rule(is_there=st.booleans())
    def index(self, is_there: bool) -> None:
        """The schema changes under statements and snapshots that stay."""
        self.pool.script(
            "CREATE INDEX IF NOT EXISTS by_size ON word (size)" if is_there else "DROP INDEX IF EXISTS by_size"
        )

    # Transactions

    @rule(steps=STEPS, is_told=st.booleans())
    def transaction(self, steps: list[Step], is_told: bool) -> None:
        self._transaction(steps, is_kept=True, is_told=is_told)

    @rule(steps=STEPS, is_told=st.booleans())
    def transaction_in_vain(self, steps: list[Step], is_told: bool) -> None:
        self._transaction(steps, is_kept=False, is_told=is_told)

    def _transaction(self, steps: list[Step], *, is_kept: bool, is_told: bool) -> None:
        """If SQL ends it early, the block is told and raises (`is_told`), or ends as if nothing were."""
        self.tried["transactions"] += 1
        state = self.state.copy()
        expected: str | None = "Undone"

        def block() -> None:
            nonlocal expected
            with self.pool.transaction() as tx:
                try:
                    self._play(tx, steps, state)
                except Gone:
                    expected = "Gone" if is_told else "OperationalError"
                    if is_told:
                        raise
                else:
                    if not is_kept:
                        raise Undone
                    expected = "IntegrityError" if state.has_orphans() else None

        assert outcome(block) == expected
        if expected is None:
            self.state = state

    def _play(self, tx: walpool.Transaction, steps: list[Step], state: State) -> None:
        for step in steps:
            if isinstance(step.what, Statement):
                sql, params = step.what.sql, step.what.params
                run = partial(run_in_transaction, state, step.what)
                _compare(tx, run, lambda sql=sql, params=params: told_of(tx.execute(sql, params)))
            elif step.is_many:
                rows = [insert([row]) for row in step.what]
                run = partial(run_many_in_transaction, state, rows)
                _compare(tx, run, lambda rows=rows: _nothing(tx.executemany(rows[0].sql, [r.params for r in rows])))
            else:
                self._play_savepoint(tx, step, state)
            assert (tx.fetch(WORDS), tx.fetch(CHILDREN)) == state.rows()

    def _play_savepoint(self, tx: walpool.Transaction, step: Step, state: State) -> None:
        before = state.copy()
        try:
            with tx.transaction():
                self._play(tx, step.what, state)
                if not step.is_kept:
                    raise Undone
        except Undone:
            state.take(before)

    # Reads

    @rule(text=WORD)
    def read(self, text: str) -> None:
        words, children = self.state.rows()
        of_text = [row for row in words if row[1] == text]
        where = "SELECT id, text, size FROM word WHERE text = ?"
        assert self.pool.fetch(where, (text,)) == of_text
        assert self.pool.fetchone(where, (text,)) == (of_text[0] if of_text else None)
        assert self.pool.fetchval("SELECT count(*) FROM child") == len(children)
        with pytest.raises(errors.ProgrammingError):
            self.pool.fetch("DELETE FROM word")

    @precondition(lambda self: len(self.snapshots + self.streams) < MOST_OPEN)
    @rule()
    def open_snapshot(self) -> None:
        self.snapshots.append(Held(self.pool.read(), self.state.copy()))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data(), is_last=st.booleans())
    def read_snapshot(self, data: st.DataObject, is_last: bool) -> None:
        held = data.draw(st.sampled_from(self.snapshots))
        assert (held.opened.fetch(WORDS), held.opened.fetch(CHILDREN)) == held.state.rows()
        if is_last:
            self.snapshots.remove(held)
            held.close()

    @precondition(lambda self: len(self.snapshots + self.streams) < MOST_OPEN)
    @rule(chunk=st.integers(1, 3))
    def open_stream(self, chunk: int) -> None:
        self.streams.append(Held(self.pool.stream(WORDS, chunk=chunk), self.state.copy()))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), count=st.integers(0, 4), is_last=st.booleans())
    def read_stream(self, data: st.DataObject, count: int, is_last: bool) -> None:
        held = data.draw(st.sampled_from(self.streams))
        expected = held.state.rows()[0][held.given : held.given + count]
        assert [row for row, _ in zip(held.opened, range(count), strict=False)][: len(expected)] == expected
        held.given += count
        if is_last:
            self.streams.remove(held)
            held.close()

    # What is done to the file

    @rule(how=st.sampled_from(["passive", "full", "restart", "truncate", "vacuum", *SCHEMA_CHANGES]))
    def keep_house(self, how: str) -> None:
        if how in SCHEMA_CHANGES:
            self.pool.script(how)
        elif how == "vacuum":
            self.pool.vacuum()
        else:
            _, in_wal, in_file = self.pool.checkpoint(how)
            assert 0 <= in_file <= in_wal

    @rule()
    def backup(self) -> None:
        copy = self.folder / "copy.db"
        self.pool.backup(copy)
        assert rows_by_sqlite(copy) == self.state.rows()
        with walpool.Pool(copy) as pool:
            pool.execute("DELETE FROM child")
        copy.unlink()

    @rule(by_sqlite=st.booleans())
    def close_and_open_again(self, by_sqlite: bool) -> None:
        self._close_all()
        self.pool.close()
        if by_sqlite:
            assert rows_by_sqlite(self.path) == self.state.rows()
        self.pool = walpool.Pool(self.path, **self.settings)


def _compare(tx: walpool.Transaction, run: Callable[[], object], call: Callable[[], object]) -> None:
    """Run a step on the model and in the transaction, and leave the block if that has ended the transaction."""
    try:
        expected, has_ended = run(), False
    except Refused as refusal:
        expected, has_ended = refusal.kind, refusal.ends
    assert outcome(call) == expected
    if has_ended:
        assert outcome(lambda: tx.fetchval("SELECT 1")) == "OperationalError"
        raise Gone


def _batch(pool: walpool.Pool, job: list[Statement]) -> list[Told]:
    return [told_of(ran) for ran in pool.batch([(each.sql, each.params) for each in job])]


def _nothing(_: object) -> None:
    """Drop what a call gives where the model tells nothing."""


# A process that is killed

# Does what each line says on a thread of its own, and answers with a line.
CHILD = """
    import json, sys, threading
    import walpool

    pool = walpool.Pool(sys.argv[1])
    printing = threading.Lock()

    def say(*what):
        with printing:
            print(json.dumps(what), flush=True)

    def told(ran):
        return ran.rowcount, ran.lastrowid, ran.rows

    def batch(number, statements):
        return [told(ran) for ran in pool.batch([tuple(each) for each in statements])]

    def transaction(number, statements):
        with pool.transaction() as tx:
            return [told(tx.execute(*each)) for each in statements]

    def hold(number, statements):
        with pool.transaction() as tx:
            for each in statements:
                tx.execute(*each)
            say(number, "held")
            threading.Event().wait()

    def answer(number, verb, statements):
        try:
            say(number, globals()[verb](number, statements))
        except walpool.errors.Error as error:
            say(number, type(error).__name__)

    say(None, "ready")
    for line in sys.stdin:
        threading.Thread(target=answer, args=json.loads(line), daemon=True).start()
"""
VERB = st.sampled_from(["batch", "transaction"])

Said = tuple[int | None, object]  # whose answer it is, and what the call gave, or the name of its exception


class KilledProcess(RuleBasedStateMachine):
    """A pool in a child that is killed: what was answered is there; what was not is there whole or not at all."""

    tried: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "test.db"
        self.state = State()
        with walpool.Pool(self.path) as pool:
            pool.script(SCHEMA)
        self._start()

    def teardown(self) -> None:
        try:
            if not self.is_dead:  # a step that failed may have left it so
                self._kill()
                assert rows_by_sqlite(self.path) == self.state.rows()
        finally:
            shutil.rmtree(self.folder)

    def _start(self) -> None:
        self.child = start_python(CHILD, self.path)
        self.is_dead = False
        assert self._hear() == (None, "ready")

    def _send(self, number: int, verb: str, job: list[Statement]) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps([number, verb, [[each.sql, each.params] for each in job]]) + "\n")
        self.child.stdin.flush()

    def _hear(self) -> Said:
        assert self.child.stdout is not None
        return said_in(self.child.stdout.readline())

    def _kill(self) -> list[Said]:
        """Kill the child and return what it had said that was not heard yet."""
        self.tried["kills"] += 1
        self.child.send_signal(signal.SIGKILL)
        self.is_dead = True
        with self.child:  # closes the pipes
            assert self.child.stdout is not None
            assert self.child.stderr is not None
            said, complaints = self.child.stdout.read(), self.child.stderr.read()
        assert complaints == ""
        return [said_in(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]

    def _look_and_start(self, possible: list[State], *, by_sqlite: bool) -> None:
        """Open the file that the child left, find it in a state that is possible, and start another child."""
        if by_sqlite:
            found = rows_by_sqlite(self.path)
        else:
            with walpool.Pool(self.path) as pool:
                assert pool.check() == []
                found = pool.fetch(WORDS), pool.fetch(CHILDREN)
        self.tried["lost"] += not any(state.rows() == found for state in possible)
        assert found in [state.rows() for state in possible]
        self.state = next(state for state in possible if state.rows() == found)
        self._start()

    @rule(verb=VERB, job=JOB)
    def job(self, verb: str, job: list[Statement]) -> None:
        self.tried["jobs"] += 1
        self._send(0, verb, job)
        assert self._hear() == (0, outcome_of(partial(run_job, self.state, job)))

    @rule(by_sqlite=st.booleans())
    def kill_it_when_idle(self, by_sqlite: bool) -> None:
        assert self._kill() == []
        self._look_and_start([self.state], by_sqlite=by_sqlite)

    @rule(jobs=st.lists(st.tuples(VERB, JOB), min_size=1, max_size=3), heard=st.integers(0, 2), by_sqlite=st.booleans())
    def kill_it_in_the_middle(self, jobs: list[tuple[str, list[Statement]]], heard: int, by_sqlite: bool) -> None:
        self.tried["jobs"] += len(jobs)
        for number, (verb, job) in enumerate(jobs):
            self._send(number, verb, job)
        said = [self._hear() for _ in range(min(heard, len(jobs)))]
        said += self._kill()
        possible = list(endings(self.state, [job for _, job in jobs], dict(said)))
        assert possible, "no order of the jobs gives these answers"
        self._look_and_start(possible, by_sqlite=by_sqlite)

    @rule(job=JOB, behind=JOB, by_sqlite=st.booleans())
    def kill_it_in_a_transaction(self, job: list[Statement], behind: list[Statement], by_sqlite: bool) -> None:
        """Nothing of it is there, nor of the job that waits behind it."""
        try:
            run_job(self.state.copy(), job)
        except Refused:
            return  # it would not be held
        self._send(0, "hold", job)
        assert self._hear() == (0, "held")
        self._send(1, "batch", behind)
        assert self._kill() == []
        self._look_and_start([self.state], by_sqlite=by_sqlite)


def said_in(line: str) -> Said:
    """Return whose answer a line is, and the outcome in the model's shape."""
    number, said = json.loads(line)
    if isinstance(said, str):
        return number, said
    return number, [(rowcount, lastrowid, [tuple(row) for row in rows]) for rowcount, lastrowid, rows in said]


# The runs


def run(
    machine: type[RuleBasedStateMachine],
    torture: Torture,
    *,
    short: int,
    full: int,
    steps: int,
    phases: tuple[Phase, ...] = tuple(Phase),
) -> None:
    """Run the machine: the same few examples in every run, many that nobody has seen with --torture."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=torture.size(short, full),
            stateful_step_count=steps,
            derandomize=not torture.is_full,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=phases,
        ),
    )


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_database_holds_what_the_model_holds(torture: Torture) -> None:
    OneProcess.tried.clear()
    try:
        run(OneProcess, torture, short=40, full=3000, steps=30)
    finally:
        note = f"{OneProcess.tried['jobs']:,} jobs, {OneProcess.tried['transactions']:,} transactions"
        torture.tell("a pool against a model", tried=OneProcess.tried["checks"], unit="comparisons", lost=0, note=note)


@pytest.mark.torture
@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_process_leaves_what_the_model_holds(torture: Torture) -> None:
    KilledProcess.tried.clear()
    tried = KilledProcess.tried
    try:
        # A kill does not fall twice on the same instruction: a shorter example that fails again is not looked for.
        run(KilledProcess, torture, short=10, full=300, steps=8, phases=(Phase.generate,))
    finally:
        note = f"{tried['jobs']:,} jobs"
        torture.tell(
            "a killed process against a model", tried=tried["kills"], unit="kills", lost=tried["lost"], note=note
        )
