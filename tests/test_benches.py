"""The benchmarks at their smallest size: each contender of each workload runs and loses nothing; nothing is timed."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benches import (
    contenders,
    data,
    harness,
    langgraph_contenders,
    langgraph_workloads,
    measure,
    postgres_server,
    report,
    run,
    targets,
)
from benches.results import Result
from benches.targets import Medians
from benches.workloads import WORKLOADS

# crewai's records call datetime.utcnow(), which Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

# Those on memories have a file of their own: their stores are filled once for all of them.
HERE = [workload for workload in WORKLOADS.values() if not workload.name.startswith("memory-")]
ENTRIES = [(workload, contender) for workload in HERE for contender in workload.contenders]


@pytest.fixture(scope="module", autouse=True)
def _one_server() -> Iterator[None]:
    """Give each contender a database of one server in place of a server, which takes a second to make."""
    start = postgres_server.PostgresServer
    started = cache(lambda: start(Path(tempfile.gettempdir())))

    class Database:
        def __init__(self, _near: Path) -> None:
            self._name = f"of_{id(self)}"
            started().create_database(self._name)

        def url(self) -> str:
            return started().url(database=self._name)

        def execute(self, sql: str) -> None:
            started().execute(sql, database=self._name)

        def close(self) -> None:
            started().drop_database(self._name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(postgres_server, "PostgresServer", Database)
        yield
    if started.cache_info().currsize:
        started().close()


@pytest.mark.parametrize(("workload", "contender"), ENTRIES, ids=[f"{w.name}-{name}" for w, name in ENTRIES])
def test_contender_of_a_workload_loses_and_damages_nothing(
    workload: harness.Workload, contender: str, tmp_path: Path
) -> None:
    reason = contenders.missing(workload.contenders[contender])
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path / "run"
    folder.mkdir()

    sample = workload.run(contender, folder, harness.SMALLEST)

    assert sample.wrong == ()
    assert sample.errors == Counter()
    assert next(iter(sample.figures.values())) >= 0
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("bench-")] == []


def test_workloads_have_every_target_that_was_set() -> None:
    judged = {workload.name: len(workload.targets) for workload in HERE if workload.targets}

    assert judged == {
        "upsert-full-16": 3,
        "upsert-full-1": 1,
        "upsert-normal-16": 3,
        "upsert-normal-1": 1,
        "agents-full-16": 2,
        "agents-normal-16": 2,
        "pool-exhaustion": 1,
        "point-read-1": 2,
        "point-read-16": 2,
        "busy-read-1": 1,
        "busy-read-4": 1,
        "busy-write-1": 1,
        "busy-write-4": 1,
        "parallel-aggregate": 1,
        "parallel-search": 1,
        "busy-beside-query": 1,
        "async-upsert-full-16": 2,
        "async-upsert-normal-16": 2,
        "async-point-read-1": 2,
        "async-point-read-16": 2,
        "backup-engine-32": 7,
        "postgres-backup-32": 3,
        "postgres-backup-10": 3,
        "postgres-transaction-16": 3,
        "postgres-transaction-1": 3,
        "crewai-kickoff": 2,
        "crewai-kickoff-add": 2,
        "crewai-flow": 2,
        "crewai-flow-save": 2,
        "crewai-checkpoint": 1,
        "crewai-memory-save-1000": 1,
        "crewai-memory-save-10000": 1,
        "crewai-memory-search-10000": 1,
        "langgraph-4k-1": 1,
        "langgraph-4k-20": 2,
        "langgraph-4k-100": 2,
        "langgraph-32k-1": 1,
        "langgraph-32k-20": 2,
        "langgraph-32k-100": 2,
        "migrate-million": 2,
        "migrate-vectors": 1,
        "postgres-memory-scope": 1,
    }


def test_check_finds_an_upsert_that_was_acknowledged_and_lost(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    data.write_items(path, 32)
    with sqlite3.connect(path) as conn:
        conn.execute(contenders.UPSERT, (1, data.body(0, 0)))
    conn.close()

    assert harness.check_upserts(path, 32, acknowledged=1, failed=0) == ()
    assert harness.check_upserts(path, 32, acknowledged=2, failed=0) == (
        "2 upserts acknowledged and 0 failed, but 1 applied",
    )
    assert harness.check_upserts(path, 33, acknowledged=0, failed=1) == ("32 rows where 33 should be",)


def test_writer_thread_answers_a_failed_row_with_its_error_and_commits_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    data.write_items(path, 32)
    with harness.opened(contenders.WriterThread, path, "full") as writer:
        bodies: list[Any] = [data.body(0, 1), None, data.body(0, 3)]  # a body is NOT NULL
        group = [contenders._Job(row) for row in enumerate(bodies)]
        writer._commit(group)

    assert [type(job.error) for job in group] == [type(None), sqlite3.IntegrityError, type(None)]
    assert data.read_items(path) == (32, 2, 0)


def test_saver_in_python_answers_a_failed_write_alone_and_commits_its_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.checkpoint.base")
    path = tmp_path / "checkpoints.db"
    rows = [("thread", "", checkpoint_id, None, "msgpack", b"", b"{}") for checkpoint_id in ("1", None, "3")]

    async def write() -> list[object]:
        async with langgraph_contenders.WriterThreadSaver().opened(path, "full"):
            writer = langgraph_contenders.GroupWriter(str(path), "full")
            try:
                return [type(error) for error in writer._commit([(langgraph_contenders._PUT, [row]) for row in rows])]
            finally:
                writer.close()

    assert asyncio.run(write()) == [type(None), sqlite3.IntegrityError, type(None)]
    with sqlite3.connect(path) as conn:
        assert conn.execute("SELECT checkpoint_id FROM checkpoints").fetchall() == [("1",), ("3",)]
    conn.close()


def test_langgraph_agent_notices_a_state_that_was_acknowledged_and_lost() -> None:
    memory = pytest.importorskip("langgraph.checkpoint.memory")

    class Forgetful(memory.InMemorySaver):  # type: ignore[misc, name-defined]
        async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            await super().aput_writes(config, writes[:1], task_id, task_path)

    async def losses() -> list[int]:
        agent = langgraph_workloads.Agent(saver := memory.InMemorySaver(), 0, 4_096)
        await agent.step(0)
        await agent.step(1)
        before = await agent.loses()
        await saver.adelete_thread("agent-0000")
        return [before, await agent.loses()]

    assert asyncio.run(losses()) == [0, 1]
    with pytest.raises(LookupError, match="other writes"):
        asyncio.run(langgraph_workloads.Agent(Forgetful(), 0, 4_096).step(0))


class Broken(Exception):
    """What an operation of these tests raises."""


def _every_third(number: int) -> None:
    sum(range(1_000))  # as long as the fastest call into a database
    if number % 3 == 2:
        raise Broken("as planned")


async def _every_third_async(number: int) -> None:
    _every_third(number)
    await asyncio.sleep(0)


def test_timing_counts_each_success_and_each_failure_of_threads() -> None:
    _assert_thirds(measure.run_threads([_every_third] * 4, 0.005), workers=4)


def test_timing_counts_each_success_and_each_failure_of_tasks() -> None:
    _assert_thirds(asyncio.run(measure.run_tasks([_every_third_async] * 4, 0.005)), workers=4)


def _assert_thirds(timing: measure.Timing, workers: int) -> None:
    failed = timing.errors["Broken: as planned"]
    operations = len(timing.latencies_ns) + workers  # and the warm-ups
    assert timing.acknowledged + failed == operations
    assert abs(failed - operations / 3) <= workers
    assert list(timing.latencies_ns) == sorted(timing.latencies_ns)


def test_timing_counts_the_share_of_the_last_operation_that_lies_in_the_window() -> None:
    log = measure._Log(window_s=1.0)
    log.latencies[0], log.latencies[1] = 900, 400

    log.close(finished=2, failures=0, over_ns=300)

    assert (log.acknowledged, log.in_window) == (2, 1.25)


def test_rounds_begin_together_and_count_every_save() -> None:
    inside = threading.Barrier(4)
    timing = measure.run_rounds([lambda _: inside.wait()] * 4, 0.0, least=3)

    assert len(timing.latencies_ns) == 3
    assert timing.acknowledged == 4 * 4  # one round warms up


def test_percentile_is_the_nearest_rank_and_unknown_where_too_few_were_measured() -> None:
    assert [measure.percentile(range(1, 1_001), share) for share in (50.0, 99.0, 99.9, 100.0)] == [500, 990, 999, 1000]
    assert math.isnan(measure.percentile(range(999), 99.9))
    assert math.isnan(measure.percentile(range(99), 99.0))
    assert measure.percentile([7], 50.0) == measure.percentile([7], 100.0) == 7
    assert math.isnan(measure.percentile([], 100.0))


MEDIANS = Medians(
    {
        "walpool": {"ops/s": 300.0, "p99 ms": 2.0, "p99.9 ms": 3.0, "errors": 0.0},
        "slow": {"ops/s": 100.0, "p99 ms": 100.0, "p99.9 ms": 200.0, "errors": 0.0},
        "steady": {"ops/s": 200.0, "p99 ms": 1.0, "p99.9 ms": 20.0, "errors": 0.0},
    },
    fsync_ms=0.05,
)


@pytest.mark.parametrize(
    ("target", "measured", "met"),
    [
        (targets.Faster(1.5, than=("slow", "steady")), 1.5, True),
        (targets.Faster(1.6, than=("slow", "steady")), 1.5, False),
        (targets.Faster(1.6, than=("slow", "absent")), 3.0, True),
        (targets.LowerLatency(50.0, than="slow"), 50.0, True),
        (targets.LowerLatency(1.0, than="steady"), 0.5, False),
        (targets.AtMost("p99 ms", 2.0), 2.0, True),
        (targets.AtMost("p99 ms", lambda fsync_ms: 20 * fsync_ms), 2.0, False),
        (targets.AtLeast("ops/s", 301.0), 300.0, False),
        (targets.AheadOfSteady(50.0), 1.5, True),
        (targets.Published(45_700, "somebody", "ops/s"), 300.0, None),
    ],
)
def test_target_compares_with_the_best_of_its_contenders(
    target: targets.Target, measured: float, met: bool | None
) -> None:
    verdict = target.verdict(MEDIANS)

    assert verdict is not None
    assert (verdict.measured, verdict.met) == (measured, met)


@pytest.mark.parametrize(
    "target",
    [targets.Faster(1.0, than=("absent",)), targets.LowerLatency(1.0, than="absent"), targets.AtMost("absent", 1.0)],
)
def test_target_is_left_open_when_what_it_needs_did_not_run(target: targets.Target) -> None:
    assert target.verdict(MEDIANS) is None


@pytest.fixture
def result() -> Result:
    """Return two runs of two contenders, of which the one that is not ours is faster and once lost a row."""
    result = Result(WORKLOADS["upsert-full-1"])
    for ops, wrong in ((10.0, ()), (30.0, ("1 row lost",))):
        result.add("per-thread", harness.Sample({"ops/s": ops, "max ms": ops}, Counter({"Busy": 2}), wrong))
        result.add("walpool", harness.Sample({"ops/s": ops / 2, "max ms": 1.0}))
    result.skipped["apsw"] = "it is not installed"
    return result


def test_result_takes_medians_and_the_worst_maximum_and_says_who_is_ahead(result: Result) -> None:
    assert result.summary()["per-thread"] == {"ops/s": 20.0, "max ms": 30.0, "errors": 4.0}
    assert result.spread("per-thread") == (10.0, 30.0)
    assert result.ahead() == {"per-thread": 0.5}
    assert result.wrong() == ["per-thread: 1 row lost"]
    assert result.disturbed() is None
    json.dumps(result.as_json(fsync_ms=0.2), allow_nan=False)


def test_result_knows_a_percentile_only_if_most_runs_do(result: Result) -> None:
    for p99 in (5.0, math.nan, 1.0):
        result.add("apsw", harness.Sample({"ops/s": 1.0, "p99 ms": p99, "p99.9 ms": math.nan if p99 > 1 else p99}))

    assert result.summary()["apsw"]["p99 ms"] == 3.0
    assert math.isnan(result.summary()["apsw"]["p99.9 ms"])


def test_result_tells_of_other_processes_at_work(result: Result) -> None:
    for cores in (0.01, 1.5, 0.7):
        result.add("walpool", harness.Sample({"ops/s": 1.0, "max ms": 1.0}), cores)

    assert result.disturbed() == (2, 1.5)
    assert report.noise_lines(result) == ["  noise    other processes were at work in 2 of 3 runs, on up to 1.5 cores"]


@pytest.mark.parametrize(
    "rich", [pytest.param(True, marks=pytest.mark.skipif(not report.RICH, reason="no rich")), False]
)
def test_report_shows_a_missed_target_a_lost_row_and_who_is_faster(
    result: Result, rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RICH", rich)
    printed = io.StringIO()
    with redirect_stdout(printed):
        page = report.Report()
        page.result(result, fsync_ms=0.2)
        page.summary([result], fsync_ms=0.2)

    lines = printed.getvalue().splitlines()
    assert any("MISSED" in line and "ops/s at least 0.95 times per-thread: 0.5" in line for line in lines)
    assert any("WRONG" in line and "1 row lost" in line for line in lines)
    assert any("skipped" in line and "apsw: it is not installed" in line for line in lines)
    assert any("errors" in line and "per-thread: 4 times Busy" in line for line in lines)
    assert any("slower" in line and "walpool has 0.50 of per-thread" in line for line in lines)


def test_run_interleaves_the_contenders_and_skips_one_that_cannot_run(tmp_path: Path) -> None:
    class Absent(contenders.ConnectionPerThread):
        name = "absent"
        requires = ("a_module_that_nobody_has",)

    class Recorded:
        name, title, synchronous, targets = "recorded", "", "full", ()
        contenders = harness.by_name(contenders.OneConnection, Absent, contenders.ConnectionPerThread)
        order: ClassVar[list[str]] = []

        def run(self, contender: str, folder: Path, scale: harness.Scale) -> harness.Sample:
            assert list(folder.iterdir()) == []
            (folder / "left behind").touch()
            self.order.append(contender)
            return harness.Sample({"ops/s": 1.0})

    result = run.measure(Recorded(), tmp_path, harness.SMALLEST, runs=2)

    assert Recorded.order == ["one-connection", "per-thread", "per-thread", "one-connection"]
    assert list(result.skipped) == ["absent"]


def test_command_prints_a_table_and_writes_json_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plots, figures = tmp_path / "plots", tmp_path / "figures.json"

    where = ["--json", str(figures), "--plots", str(plots), "--data", str(tmp_path / "data")]
    status = run.main(["upsert-normal-1", "--smallest", "--contenders", "per-thread", "--runs", "2", *where])

    assert status == 0
    assert "upsert-normal-1: upsert of a changing 1 KB row, 1 thread, synchronous=normal" in capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert len(written["results"][0]["runs"]["per-thread"]) == 2
    assert {"commit", "Python", "SQLite", "file system", "cores", "fdatasync"} <= written["facts"].keys()
    assert sorted(file.name for file in plots.iterdir()) == ["upsert-normal-1.png", "upsert-normal-1.svg"]
    assert list((tmp_path / "data").iterdir()) == []


def test_command_fails_when_a_row_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders.ConnectionPerThread, "upsert", lambda self, key, body: None)

    assert run.main(
        ["upsert-normal-1", "--smallest", "--contenders", "per-thread", "--no-plots", "--data", str(tmp_path)]
    )


def test_command_refuses_a_workload_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["upsert-everything"])
    assert "no such workload: upsert-everything" in capsys.readouterr().err
