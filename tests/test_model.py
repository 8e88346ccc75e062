"""A pool against a model: whatever is called, in whatever order, the database holds what tests/model.py says.

Most calls are made from one thread, while snapshots and streams stay open. Jobs that queue up behind a held writer come
from threads of their own, in a known order:

holder                  job 1, 2, 3 ...
transaction() begins
                        queue up, one after the other
transaction() ends
                        one leads: a group, in which some fail
"""

from __future__ import annotations

import contextvars
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers import run_queued
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from model import (
    CHILDREN,
    SCHEMA,
    WORDS,
    Refused,
    State,
    Statement,
    Told,
    insert,
    outcome_of,
    run_in_transaction,
    run_job,
    run_many_in_transaction,
)
from modelling import BAD_STATEMENT, JOB, MANY, POLICY, STATEMENT, outcome, rows_by_sqlite, run, told_of

import walpool
from tests.torture import Torture

SCHEMA_CHANGES = ["CREATE INDEX IF NOT EXISTS by_size ON word (size)", "DROP INDEX IF EXISTS by_size"]
ONE_BAD = st.lists(BAD_STATEMENT, min_size=1, max_size=1)
MOST_OPEN = 3  # snapshots and streams at once; one reader is left for the others


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


class Held:
    """A snapshot or a stream that stays open for some steps, in a context of its own: the pool is used meanwhile."""

    def __init__(self, block: AbstractContextManager[Any], state: State, steps: int) -> None:
        self.steps = steps
        self._rows, self._children = state.rows()
        self._block = block
        self._context = contextvars.copy_context()
        self._opened = self._context.run(block.__enter__)

    def read_on(self) -> None:
        """A snapshot still holds what it held; a stream goes on where it was."""
        self.steps -= 1
        if isinstance(self._opened, walpool.Snapshot):
            assert (self._opened.fetch(WORDS), self._opened.fetch(CHILDREN)) == (self._rows, self._children)
        else:
            assert list(islice(self._opened, 2)) == self._rows[:2]
            self._rows = self._rows[2:]

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
        self.held: list[Held] = []

    @initialize(synchronous=st.sampled_from(["full", "normal"]), max_group=st.sampled_from([512, 512, 3, 1]))
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
            self._close_held()
            if hasattr(self, "pool"):
                assert self.pool.check() == []
                self.pool.close()
                assert rows_by_sqlite(self.path) == self.state.rows()
        finally:
            shutil.rmtree(self.folder)

    def _close_held(self) -> None:
        while self.held:
            self.held.pop().close()

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
        for held in list(self.held):
            held.read_on()
            if held.steps == 0:
                self.held.remove(held)
                held.close()  # and the next to read gets its reader
        if hasattr(self, "pool"):
            words, children = self.state.rows()
            assert (self.pool.fetch(WORDS), self.pool.fetch(CHILDREN)) == (words, children)
            assert self.pool.fetchone(WORDS) == (words[0] if words else None)
            assert self.pool.fetchval("SELECT count(*) FROM child") == len(children)

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

    @rule(jobs=st.lists(st.one_of(JOB, ONE_BAD), min_size=2, max_size=6))
    def several_jobs_queue_up(self, jobs: list[list[Statement]]) -> None:
        """They run in the order in which they came, in a group or two; nobody notices a neighbour that spoils it."""
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

        assert outcome(block, Undone, Gone) == expected
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

    # What stays open while others write

    @rule(steps=st.integers(1, 5))
    def open_snapshot(self, steps: int) -> None:
        self._hold(self.pool.read(), steps)

    @rule(steps=st.integers(1, 5), chunk=st.integers(1, 3))
    def open_stream(self, steps: int, chunk: int) -> None:
        self._hold(self.pool.stream(WORDS, chunk=chunk), steps)

    def _hold(self, block: AbstractContextManager[Any], steps: int) -> None:
        if len(self.held) == MOST_OPEN:
            self.held.pop(0).close()
        self.held.append(Held(block, self.state, steps))

    # What is done to the file

    @rule(
        how=st.sampled_from(["passive", "full", "restart", "truncate", "vacuum", "backup", "reopen", *SCHEMA_CHANGES])
    )
    def keep_house(self, how: str) -> None:
        if how in SCHEMA_CHANGES:
            self.pool.script(how)
        elif how == "vacuum":
            self.pool.vacuum()
        elif how == "backup":
            self._backup()
        elif how == "reopen":
            self._reopen()
        else:
            _, in_wal, in_file = self.pool.checkpoint(how)
            assert 0 <= in_file <= in_wal

    def _backup(self) -> None:
        copy = self.folder / "copy.db"
        self.pool.backup(copy)
        assert rows_by_sqlite(copy) == self.state.rows()
        with walpool.Pool(copy) as pool:
            pool.execute("DELETE FROM child")
        copy.unlink()

    def _reopen(self) -> None:
        self._close_held()
        self.pool.close()
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


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_database_holds_what_the_model_holds(torture: Torture) -> None:
    OneProcess.tried.clear()
    try:
        run(OneProcess, torture, short=50, full=1500, steps=30)
    finally:
        note = f"{OneProcess.tried['jobs']:,} jobs, {OneProcess.tried['transactions']:,} transactions"
        torture.tell("a pool against a model", tried=OneProcess.tried["checks"], unit="comparisons", lost=0, note=note)
