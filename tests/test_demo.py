"""The demo: `--quick` from end to end, and that it notices when a row is missing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import walpool

EXAMPLES = Path(__file__).parents[1] / "examples"
Parts = Callable[[str], ModuleType]
SURFACES = ("memory save", "memory search", "flow save", "flow load", "kickoff add")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        any(find_spec(package) is None for package in ("crewai", "lancedb", "matplotlib")),
        reason="the demo runs crewai, on LanceDB too, and draws",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a quick run of the demo, which ended well."""
    folder = tmp_path_factory.mktemp("demo") / "results"
    completed = run_demo("--quick", "--json", "--results", folder)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout) == json.loads((folder / "demo.json").read_text())
    assert completed.stderr.splitlines()[-1].startswith("walpool: 8/8 rounds, ")
    return folder


@pytest.fixture
def outcome(results: Path) -> dict[str, Any]:
    """Return what the quick run found."""
    loaded: dict[str, Any] = json.loads((results / "demo.json").read_text())
    return loaded


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Return `parts(name)`: a module of the demo's."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name: import_module(f"demo.{name}")


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "demo.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def audit(storage: Path, results: Path) -> dict[str, dict[str, int]]:
    """Return what the demo counts in a storage folder of walpool's, for what the quick run acknowledged."""
    command = [sys.executable, "-m", "demo.audit", "walpool", str(storage), str(results / "walpool.json")]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    counted: dict[str, dict[str, int]] = json.loads(subprocess.check_output(command, env=environment, text=True))
    return counted


def test_demo_measures_the_same_work_on_both_sides(outcome: dict[str, Any]) -> None:
    default, walpool = outcome["sides"]["default"], outcome["sides"]["walpool"]
    for side in (default, walpool):
        assert (side["rounds"], side["kickoffs"], side["workers"]) == (8, 24, 8)
        assert side["kickoffs_per_second"] > 0
        assert side["operations_per_second"] > 0
        assert side["synchronous"] == "full"
        for surface in SURFACES:
            latency = side["latencies"][surface]
            assert 0 < latency["p50_ms"] <= latency["p99_ms"] <= latency["max_ms"]
    for surface in ("memory save", "flow save", "flow load", "kickoff add"):
        assert default["latencies"][surface]["count"] == walpool["latencies"][surface]["count"]


def test_demo_loses_no_row(outcome: dict[str, Any]) -> None:
    for side in outcome["sides"].values():
        assert side["rows"]["memory"] == {"acknowledged": 36, "lost": 0, "rows": 36}  # 4 a round, the warm-up's too
        assert side["rows"]["flow"] == {"acknowledged": 36, "lost": 0, "rows": 36}
        assert side["rows"]["kickoff"]["lost"] == 0
        assert (side["lock_errors"], side["errors"], side["failed_rounds"]) == (0, {}, {})
    assert outcome["ok"]
    assert outcome["problems"] == []


def test_demo_recalls_after_a_restart(outcome: dict[str, Any]) -> None:
    assert outcome["recall"]["ok"]
    for item in outcome["recall"]["recalled"]:
        assert item["memory"].startswith(item["question"])
        assert item["text"].startswith(item["memory"])
        assert item["times_filed"] == 3


def test_demo_leaves_a_database_and_a_plot(outcome: dict[str, Any]) -> None:
    with closing(sqlite3.connect(outcome["files"]["database"])) as connection:
        assert connection.execute("SELECT count(*) FROM memory_records").fetchone() == (36,)
    assert Path(outcome["files"]["plot"]).read_bytes().startswith(b"\x89PNG")


def test_demo_prints_a_report_of_the_same_figures(outcome: dict[str, Any], parts: Parts) -> None:
    text = parts("report").text(outcome)
    for surface in SURFACES:
        assert surface in text
    assert f"{outcome['sides']['walpool']['kickoffs_per_second']:.1f}" in text
    assert outcome["files"]["database"] in text
    assert "as it was stored" in text


@pytest.mark.parametrize(
    ("surface", "deletion"),
    [
        ("memory", "DELETE FROM memory_records WHERE key = (SELECT max(key) FROM memory_records)"),
        ("flow", "DELETE FROM flow_states"),
        ("kickoff", "DELETE FROM latest_kickoff_task_outputs"),
    ],
    ids=["memory", "flow", "kickoff"],
)
def test_audit_counts_rows_that_are_missing(
    results: Path, tmp_path: Path, parts: Parts, surface: str, deletion: str
) -> None:
    storage = tmp_path / "storage"
    shutil.copytree(results / "walpool", storage)
    with walpool.Pool(storage / "walpool.db") as pool:
        deleted = pool.execute(deletion).rowcount
    rows = audit(storage, results)
    assert 0 < rows[surface]["lost"] <= deleted
    assert all(count["lost"] == 0 for name, count in rows.items() if name != surface)

    outcome = json.loads((results / "demo.json").read_text())
    outcome["sides"]["walpool"]["rows"] = rows
    problems = parts("report").problems(outcome)
    assert any(problem.startswith(f"{surface}: ") for problem in problems)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outcome: outcome["recall"].update(ok=False),
        lambda outcome: outcome["sides"]["walpool"]["errors"].update({"BusyError: held": 1}),
        lambda outcome: outcome["sides"]["walpool"]["failed_rounds"].update({"ValueError: not resumed": 1}),
    ],
    ids=["recall", "storage error", "failed round"],
)
def test_demo_reports_what_went_wrong_on_walpool(
    outcome: dict[str, Any], parts: Parts, spoil: Callable[[dict[str, Any]], None]
) -> None:
    spoil(outcome)
    assert len(parts("report").problems(outcome)) == 1


def test_demo_leaves_a_folder_alone_that_it_did_not_make(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.write_text("irreplaceable")
    completed = run_demo("--quick", "--results", tmp_path)
    assert completed.returncode == 2
    assert "not the demo's" in completed.stderr
    assert kept.read_text() == "irreplaceable"


def test_meter_knows_a_lock_error_by_its_cause(parts: Parts) -> None:
    is_lock_error = parts("meter").is_lock_error
    wrapped = RuntimeError("State persistence failed")
    wrapped.__cause__ = sqlite3.OperationalError("database is locked")
    assert is_lock_error(wrapped)
    assert is_lock_error(OSError("Commit conflict for version 7"))
    assert not is_lock_error(sqlite3.OperationalError("no such table: memories"))
