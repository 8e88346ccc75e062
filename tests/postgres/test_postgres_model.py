"""Random histories of threads against a dict: each sees its own writes at once, a failed job leaves nothing.

Every thread has keys of its own, of which it knows at any time what they hold, and all of them count on shared rows,
whose end it is known: the sum of what was acknowledged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from helpers import run_together
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.postgres.pools import assert_unharmed
from tests.torture import Torture
from walpool import errors
from walpool.postgres import PostgresPool

SHARED = ("p", "q", "r")
THREADS = 4


class Step(NamedTuple):
    """What a thread does: on the key of its own, and on a shared row."""

    verb: str
    key: int
    value: int
    shared: str
    fails: bool


STEPS = st.builds(
    Step,
    st.sampled_from(
        ["execute", "executemany", "batch", "script", "transaction", "nested", "delete", "look", "snapshot"]
    ),
    st.integers(0, 3),
    st.integers(-(2**40), 2**40),
    st.sampled_from(SHARED),
    st.booleans(),
)
HISTORIES = st.lists(st.lists(STEPS, min_size=1, max_size=12), min_size=2, max_size=THREADS)

PUT = "INSERT INTO m VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET n = excluded.n"
COUNT = "UPDATE m SET n = n + ? WHERE a = ?"
FAIL = "INSERT INTO m VALUES ('p', 1)"  # the key is taken


class Mine:
    """One thread's own keys, as it knows them, and what it counted."""

    def __init__(self, pool: PostgresPool, name: int) -> None:
        self._pool = pool
        self._name = name
        self.kept: dict[str, int] = {}
        self.counted = dict.fromkeys(SHARED, 0)

    def do(self, step: Step) -> None:
        key = f"{self._name}/{step.key}"
        if step.verb in ("look", "snapshot"):
            self._look(step)
            return
        if step.verb == "delete":
            deleted = self._pool.execute("DELETE FROM m WHERE a = ?", (key,)).rowcount
            assert deleted == (1 if self.kept.pop(key, None) is not None else 0)
            return
        write: Callable[[str, Step], bool] = getattr(self, f"_{step.verb}")
        if step.fails and step.verb != "nested":
            with pytest.raises(errors.IntegrityError) as refused:
                write(key, step)
            assert refused.value.outcome == "not_applied"
            return
        is_counted = write(key, step)
        self.kept[key] = step.value
        if is_counted:
            self.counted[step.shared] += step.value

    def _look(self, step: Step) -> None:
        query = "SELECT a, n FROM m WHERE a LIKE ? ORDER BY a"
        mine = sorted(self.kept.items())
        if step.verb == "look":
            assert self._pool.fetch(query, (f"{self._name}/%",)) == mine
        else:
            with self._pool.read() as snapshot:
                assert snapshot.fetch(query, (f"{self._name}/%",)) == mine
                before = snapshot.fetch("SELECT a, n FROM m ORDER BY a")
                assert snapshot.fetch("SELECT a, n FROM m ORDER BY a") == before

    def _execute(self, key: str, step: Step) -> bool:
        if step.fails:
            self._pool.execute(FAIL)
        result = self._pool.execute(f"{PUT} RETURNING n", (key, step.value), key=key)
        assert result.rows == [(step.value,)]
        return False

    def _executemany(self, key: str, step: Step) -> bool:
        insert = "INSERT INTO m VALUES (?, ?)" if step.fails else PUT
        rows = [(f"{self._name}/x", 1), ("p", 1)] if step.fails else [(key, 0), (key, step.value)]
        assert self._pool.executemany(insert, rows).rowcount == 2
        return False

    def _batch(self, key: str, step: Step) -> bool:
        more: list[Any] = [FAIL] if step.fails else []
        self._pool.batch([(PUT, (key, step.value)), (COUNT, (step.value, step.shared)), *more], key=step.shared)
        return True

    def _script(self, key: str, step: Step) -> bool:
        put = PUT.replace("?, ?", f"'{key}', {step.value}")
        self._pool.script(f"{put}; UPDATE m SET n = n + {step.value} WHERE a = '{step.shared}'; {FAIL * step.fails}")
        return True

    def _transaction(self, key: str, step: Step) -> bool:
        def work(tx: Any) -> None:
            tx.fetch("SELECT n FROM m WHERE a = ? FOR UPDATE", (step.shared,))
            tx.execute(PUT, (key, step.value))
            tx.execute(COUNT, (step.value, step.shared))
            if step.fails:
                tx.execute(FAIL)

        return self._until_through(work)

    def _nested(self, key: str, step: Step) -> bool:
        def work(tx: Any) -> None:
            tx.execute(PUT, (key, step.value))
            try:
                with tx.transaction():
                    tx.execute(COUNT, (step.value, step.shared))
                    if step.fails:
                        tx.execute(FAIL)
            except errors.IntegrityError:
                pass

        return self._until_through(work) and not step.fails

    def _until_through(self, work: Callable[[Any], None]) -> bool:
        while True:
            try:
                self._pool.run(work)
                return True
            except errors.BusyError:  # beaten five times: it was not applied, so it may be tried again
                continue


@pytest.fixture
def modelled(pg: PostgresPool) -> Iterator[PostgresPool]:
    """Yield a pool with the table of the model."""
    pg.script("CREATE TABLE m (a text PRIMARY KEY, n bigint NOT NULL)")
    yield pg
    assert_unharmed(pg)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_histories_of_threads_end_as_the_model_says(modelled: PostgresPool, torture: Torture) -> None:
    ran = []

    @settings(
        max_examples=torture.size(25, 2000),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not torture.is_full,
    )
    @given(HISTORIES)
    def run(histories: list[list[Step]]) -> None:
        modelled.script("TRUNCATE m")
        modelled.executemany(PUT, [(a, 0) for a in SHARED])
        threads = [Mine(modelled, name) for name in range(len(histories))]

        def work(index: int) -> None:
            for step in histories[index]:
                threads[index].do(step)

        run_together(len(histories), work)
        expected = {key: value for mine in threads for key, value in mine.kept.items()}
        expected |= {a: sum(mine.counted[a] for mine in threads) for a in SHARED}
        assert dict(modelled.fetch("SELECT a, n FROM m")) == expected
        ran.append(sum(map(len, histories)))
        assert threading.active_count() < 50

    run()
    torture.tell("histories of threads on PostgreSQL", tried=sum(ran), unit="calls", lost=0)
    assert modelled.stats()["jobs_failed"] > 0
