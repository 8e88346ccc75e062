"""Isolation, checked by machine: what many threads and a second process read and wrote has one order, in real time.

this process, 8 threads                 another process, 3 threads
a round: new lists
  jobs, transactions, failing ones        the same, on the same lists
  fetch, read(), stream, backup
all are answered                        all are answered
a last read; the calls of both are one history, which tests/histories.py judges twice:
by what was read alone, and against the order that the database kept
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from appending import ALL, SCHEMA, new_lists, order_of, read_of, run_callers
from helpers import other_process
from histories import FAILED, UNKNOWN, Anomaly, Call, against_order, anomalies, report

import walpool
from tests.torture import Torture

pytestmark = [pytest.mark.torture, pytest.mark.timeout(900)]

OTHER = "import sys; from appending import main; main(sys.argv[1])"
LISTS = 4
CALLERS, CALLS = 8, 40

SETTINGS: dict[str, dict[str, object]] = {
    "as they come": {},
    "everything scarce": {"readers": 2, "max_group": 3, "wal_limit": "64KiB", "statement_cache": 4},
    "not waiting for the disk": {"synchronous": "normal"},
}

Round = Callable[[range, int], list[Call]]


def judged(pool: walpool.Pool, seed: int, run: Round) -> tuple[list[Call], list[Anomaly]]:
    """Run one round on new lists and return its calls, with a last read of everything, and what is wrong with them."""
    lists = new_lists(pool, LISTS)
    calls = run(lists, seed)
    last = tuple(map(read_of, pool.fetch(ALL, (lists[0], lists[-1]))))
    end = max(call.returned for call in calls)
    calls.append(Call("the last read", last, end + 1, end + 2))
    return calls, anomalies(calls) + against_order(calls, order_of(pool, lists))


def assert_isolated(pool: walpool.Pool, torture: Torture, what: str, rounds: int, run: Round) -> None:
    """Run rounds until one of them is not strictly serializable, and tell how many calls were tried."""
    tried: Counter[str] = Counter()
    found: list[Anomaly] = []
    for seed in range(rounds):
        calls, found = judged(pool, seed, run)
        tried += Counter(call.outcome for call in calls)
        if found:
            break
    note = f"{tried[FAILED]:,} failed, as they should"
    torture.tell(f"isolation, {what}", tried=tried.total(), unit="calls", lost=len(found), note=note)
    assert not found, report(found)
    assert tried[UNKNOWN] == 0
    assert pool.check() == []


@pytest.mark.parametrize("what", SETTINGS)
def test_threads_see_one_order_in_real_time(database: Path, torture: Torture, what: str) -> None:
    with walpool.Pool(database, **SETTINGS[what]) as pool:
        pool.script(SCHEMA)

        def run(lists: range, seed: int) -> list[Call]:
            return run_callers(pool, "here", lists, seed, callers=CALLERS, calls=CALLS)

        assert_isolated(pool, torture, what, torture.size(8, 120), run)


@pytest.mark.crash
def test_processes_see_one_order_in_real_time(pool: walpool.Pool, tmp_path: Path, torture: Torture) -> None:
    pool.script(SCHEMA)
    with other_process(OTHER, pool.path) as other:

        def run(lists: range, seed: int) -> list[Call]:
            file = tmp_path / f"{seed}.calls"
            tell(other, f"{lists[0]} {lists[-1]} {seed + 5_000} 3 {CALLS} {file}")
            calls = run_callers(pool, "here", lists, seed, callers=4, calls=CALLS)
            return calls + answered(other, file)

        assert_isolated(pool, torture, "two processes", torture.size(8, 120), run)


def tell(other: Popen[str], line: str) -> None:
    assert other.stdin is not None
    other.stdin.write(line + "\n")
    other.stdin.flush()


def answered(other: Popen[str], file: Path) -> list[Call]:
    """Return the other process's calls, once it has made them all."""
    assert other.stdout is not None
    assert other.stdout.readline() == "done\n", other.stderr and other.stderr.read()
    return pickle.loads(file.read_bytes())
