"""A killed process against a model: what was answered is there, and a job that was not is there whole or not at all.

test                                    child, a thread a job
jobs, one after the other                 run, answered
several at once                           run together
  some are answered
SIGKILL                                   dies in the middle
open the file: it holds what some order of the jobs gives, up to some point behind all that were answered
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import start_python
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from model import CHILDREN, SCHEMA, WORDS, Refused, State, Statement, endings, outcome_of, run_job
from modelling import JOB, rows_by_sqlite, run

import walpool
from tests.torture import Torture

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


@pytest.mark.torture
@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_killed_process_leaves_what_the_model_holds(torture: Torture) -> None:
    KilledProcess.tried.clear()
    tried = KilledProcess.tried
    try:
        # A kill does not fall twice on the same instruction: a shorter example that fails again is not looked for.
        run(KilledProcess, torture, short=5, full=100, steps=8, phases=(Phase.generate,))
    finally:
        note = f"{tried['jobs']:,} jobs"
        torture.tell(
            "a killed process against a model", tried=tried["kills"], unit="kills", lost=tried["lost"], note=note
        )
