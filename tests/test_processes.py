"""Many processes on one file: nothing is lost, nobody starves, and no lock error reaches anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from helpers import WITHIN, other_process

import walpool
from tests.torture import Torture

pytestmark = [pytest.mark.torture, pytest.mark.crash]

TABLE = "CREATE TABLE t (who, n, data, PRIMARY KEY (who, n)) WITHOUT ROWID"

# Writes on several threads for a while, reading each fourth row back, and says what it was told.
WRITING = """
    import json, sys, threading, time
    import walpool

    path, me, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    seconds, pause = map(float, sys.argv[4:])
    took, errors = [[] for _ in range(threads)], []

    def work(thread):
        who, n = f"{me}/{thread}", 0
        while (began := time.monotonic()) < end:
            pool.execute("INSERT INTO t VALUES (?, ?, ?)", (who, n, "x" * 200))
            took[thread].append(time.monotonic() - began)
            if n % 4 == 0:
                assert pool.fetchval("SELECT max(n) FROM t WHERE who = ?", (who,)) == n
            n += 1
            if pause:
                time.sleep(pause)

    def tell_errors(thread):
        try:
            work(thread)
        except BaseException as error:
            errors.append(repr(error))

    with walpool.Pool(path) as pool:
        pool.fetch("SELECT 1 FROM t")
        print("ready", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + seconds
        running = [threading.Thread(target=tell_errors, args=(thread,)) for thread in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    waits = sorted(wait for waits in took for wait in waits)
    p99 = waits[len(waits) * 99 // 100] if waits else 0.0
    told = {f"{me}/{thread}": len(waits) for thread, waits in enumerate(took)}
    print(json.dumps({"told": told, "p99_ms": p99 * 1000, "errors": errors}))
"""

# Each round is a process of its own, forked before anything was opened: opens the file, writes, closes it or is killed.
COMING_AND_GOING = """
    import os, signal, sys
    import walpool

    path, me, rounds, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "kills"

    def visit(n):
        with walpool.Pool(path, readers=2) as pool:
            pool.execute("INSERT INTO t (who, n) VALUES (?, ?)", (me, n))
            assert pool.fetchval("SELECT max(n) FROM t WHERE who = ?", (me,)) == n
            if kills and n % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(rounds):
        child = os.fork()
        if child == 0:
            try:
                visit(n)
            except BaseException as error:
                print(f"round {n}: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (-signal.SIGKILL if kills and n % 3 == 0 else 0), f"round {n} ended with {status}"
"""


@pytest.fixture
def path(database: Path) -> Iterator[Path]:
    """Yield the path of a file that nobody has open, with an empty table; in the end it is whole and left tidy."""
    with walpool.Pool(database) as pool:
        pool.script(TABLE)
    yield database
    with walpool.Pool(database) as pool:
        assert pool.check() == []
    assert not Path(f"{database}-wal").exists()


def found_in(path: Path) -> dict[str, tuple[int, int]]:
    """Return for each writer how many rows are there, and the number of the last one."""
    with walpool.Pool(path) as pool:
        return {
            who: (count, last) for who, count, last in pool.fetch("SELECT who, count(*), max(n) FROM t GROUP BY who")
        }


def lost_of(told: dict[str, int], found: dict[str, tuple[int, int]]) -> int:
    return sum(max(0, count - found.get(who, (0, 0))[0]) for who, count in told.items())


def start_together(processes: Sequence[Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def write_in_processes(path: Path, seconds: float, kinds: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Run a process for each (threads, pause between writes), all at once, and return what each says of itself."""
    with ExitStack() as running:
        processes = [
            running.enter_context(other_process(WRITING, path, f"p{number}", threads, seconds, pause))
            for number, (threads, pause) in enumerate(kinds)
        ]
        start_together(processes)
        outputs = [process.communicate(timeout=seconds + 2 * WITHIN) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [errors for _, errors in outputs]
    return [json.loads(output) for output, _ in outputs]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [2, 8])
def test_processes_that_write_without_a_pause_share_the_file_and_lose_nothing(
    path: Path, torture: Torture, processes: int
) -> None:
    reports = write_in_processes(path, torture.size(1.5, 30.0), [(4, 0.0)] * processes)
    told = {who: count for report in reports for who, count in report["told"].items()}
    found = found_in(path)
    shares = [sum(report["told"].values()) for report in reports]
    p99s = [report["p99_ms"] for report in reports]
    torture.tell(
        f"writes of {processes} processes with 4 threads each",
        tried=sum(shares),
        unit="writes",
        lost=lost_of(told, found),
        note=f"p99 {min(p99s):.1f} to {max(p99s):.1f} ms, {min(shares):,} to {max(shares):,} writes a process",
    )
    assert [report["errors"] for report in reports] == [[]] * processes
    assert found == {who: (count, count - 1) for who, count in told.items()}
    assert min(told.values()) > 0
    assert min(shares) > sum(shares) / processes / 10
    if torture.is_full:
        assert max(p99s) <= 5 * min(p99s)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [1, 16])
def test_process_that_writes_now_and_then_is_not_starved_by_a_hot_one(
    path: Path, torture: Torture, threads: int
) -> None:
    hot, seldom = reports = write_in_processes(path, torture.size(1.0, 20.0), [(threads, 0.0), (1, 0.01)])
    told = {who: count for report in reports for who, count in report["told"].items()}
    found = found_in(path)
    torture.tell(
        f"writes of a process that writes every 10 ms beside a hot one with {threads} threads",
        tried=sum(seldom["told"].values()),
        unit="writes",
        lost=lost_of(told, found),
        note=f"p99 {seldom['p99_ms']:.1f} ms, the hot one's {hot['p99_ms']:.1f} ms",
    )
    assert [report["errors"] for report in reports] == [[], []]
    assert found == {who: (count, count - 1) for who, count in told.items()}
    assert min(told.values()) > 5
    if torture.is_full:
        assert seldom["p99_ms"] <= 10 * hot["p99_ms"]  # 195 times it, where a lone hot writer never left the lock


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["closes", "kills"])
def test_processes_that_come_and_go_all_the_time_meet_no_error(path: Path, torture: Torture, how: str) -> None:
    """The last to close checkpoints and deletes the WAL, and the first after a kill recovers it, while others open."""
    processes, rounds = torture.size((4, 12), (8, 200))
    with ExitStack() as running:
        visitors = [
            running.enter_context(other_process(COMING_AND_GOING, path, f"p{number}", rounds, how))
            for number in range(processes)
        ]
        start_together(visitors)
        outputs = [visitor.communicate(timeout=240) for visitor in visitors]
    found = found_in(path)
    torture.tell(
        "openings of a file that is closed all the time" if how == "closes" else "openings after closes and kills",
        tried=processes * rounds,
        unit="openings",
        lost=lost_of({f"p{number}": rounds for number in range(processes)}, found),
    )
    assert [errors for _, errors in outputs] == [""] * processes
    assert found == {f"p{number}": (rounds, rounds - 1) for number in range(processes)}
