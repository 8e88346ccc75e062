"""What the tests against the model share: statements drawn at random, walpool's answers in the model's shape, a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from model import CHILDREN, WORDS, Told, adopt, delete, grow, insert, leave, nonsense, put, rename

import walpool
from tests.torture import Torture
from walpool import errors

# Few words and few sizes: what is taken, missing or too small comes up often.
WORD = st.sampled_from("abcdefgh")
GOOD_ROW = st.tuples(WORD, st.integers(1, 3))
BAD_ROW = st.one_of(
    st.tuples(st.sampled_from(["raise rollback", "raise fail", "raise abort", None]), st.just(1)),
    st.tuples(WORD, st.just(0)),
)
POLICY = st.sampled_from(["ABORT", "IGNORE", "REPLACE", "FAIL", "ROLLBACK"])
REFUSED = ["NONSENSE", "COMMIT", "ROLLBACK", "SAVEPOINT walpool", "INSERT INTO nowhere VALUES (1)", "VACUUM"]
GOOD_STATEMENT = st.one_of(
    st.builds(insert, st.lists(GOOD_ROW, min_size=1, max_size=3), POLICY, returning=st.booleans()),
    st.builds(put, WORD, st.integers(1, 4)),
    st.builds(grow, WORD, st.integers(-1, 2)),
    st.builds(rename, WORD, WORD),
    st.builds(delete, WORD),
    st.builds(adopt, st.integers(1, 6)),
    st.builds(leave, st.integers(1, 6)),
)
BAD_STATEMENT = st.one_of(
    st.builds(lambda good, bad, policy: insert([*good, bad], policy), st.lists(GOOD_ROW, max_size=2), BAD_ROW, POLICY),
    st.builds(put, WORD, st.just(0)),
    st.builds(nonsense, st.sampled_from(REFUSED)),
)
STATEMENT = st.one_of(GOOD_STATEMENT, GOOD_STATEMENT, BAD_STATEMENT)
JOB = st.lists(STATEMENT, min_size=1, max_size=3)
MANY = st.lists(st.one_of(GOOD_ROW, GOOD_ROW, GOOD_ROW, BAD_ROW), min_size=1, max_size=4)


def told_of(ran: walpool.Result) -> Told:
    return ran.rowcount, ran.lastrowid, ran.rows


def outcome(call: Callable[[], object], *own: type[Exception]) -> object:
    """Return what a call gives, or the name of walpool's exception, or of one of the test's own, that it raises.

    A failed write that may have been applied is a failure of another name.
    """
    try:
        return call()
    except own as error:
        return type(error).__name__
    except errors.Error as error:
        return type(error).__name__ if error.outcome == "not_applied" else error.outcome


def rows_by_sqlite(path: str | Path) -> tuple[list[Any], list[Any]]:
    """Return all rows as the standard library's SQLite reads them; no pool may have the file open."""
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return conn.execute(WORDS).fetchall(), conn.execute(CHILDREN).fetchall()


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
