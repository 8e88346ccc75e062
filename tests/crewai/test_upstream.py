"""CrewAI's own tests of memory, flow persistence, kickoff outputs and checkpoints, run on walpool.

They are fetched with the source of the installed version when these tests run, into `.cache/` of the checkout, and run
by a pytest of their own with `upstream_plugin`, which puts walpool under the names that they use. What cannot hold for
another store than CrewAI's is named in `DESELECTED`, each with its reason; everything else passes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sdists

PLUGIN = Path(__file__).parent / "upstream_plugin.py"

FILES = [
    "tests/memory",
    "tests/storage",
    "tests/test_async_human_feedback.py",
    "tests/test_checkpoint.py",
    "tests/test_flow_persistence.py",
    "tests/test_flow_persistence_factory.py",
    "tests/test_sqlite_connection_lifecycle.py",
]

COUNTS_CONNECTIONS = (
    "replaces sqlite3.connect to count or break the connections that CrewAI's store opens for each call; walpool opens "
    "none, and tests/crewai holds what the test is after: failed writes are undone, files are closed"
)

DESELECTED = {
    "tests/memory/test_lancedb_filter_escaping.py"
    "::test_percent_underscore_and_backslash_in_scope_names_match_literally": (
        "asserts LanceDB's string prefix: that the scope '/share\\' finds '/share\\docs'; scopes are paths in walpool"
    ),
    "tests/storage/test_kickoff_task_outputs_storage.py::test_every_connection_is_closed_after_use": COUNTS_CONNECTIONS,
    "tests/storage/test_kickoff_task_outputs_storage.py"
    "::test_failed_write_rolls_back_and_closes_connection": COUNTS_CONNECTIONS,
    "tests/test_sqlite_connection_lifecycle.py::test_flow_persistence_closes_every_connection": COUNTS_CONNECTIONS,
    "tests/test_sqlite_connection_lifecycle.py"
    "::test_flow_persistence_failed_write_rolls_back_and_closes": COUNTS_CONNECTIONS,
    "tests/test_sqlite_connection_lifecycle.py::test_sqlite_provider_closes_every_connection": COUNTS_CONNECTIONS,
}

ANOTHER_STORE = "tests/memory/test_qdrant_edge_storage.py"  # CrewAI's class for Qdrant, which walpool leaves alone

# Of FILES, those about flows, kickoffs and checkpoints; the least number that pass on PostgreSQL.
ON_A_SERVER = {
    "tests/test_async_human_feedback.py": 30,
    "tests/test_checkpoint.py": 60,
    "tests/test_flow_persistence.py": 15,
    "tests/test_flow_persistence_factory.py": 3,
}

pytestmark = [pytest.mark.upstream, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def source() -> Path:
    """Return CrewAI's source with its tests, the version that is installed."""
    return sdists.source_of("crewai")


@pytest.fixture(scope="session")
def outcomes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """Run them all; return, for each file, how many tests passed, failed and were skipped."""
    report = tmp_path_factory.mktemp("report") / "junit.xml"
    return sdists.outcomes(source, PLUGIN, report, FILES, DESELECTED, f"--ignore={source / ANOTHER_STORE}")


@pytest.mark.parametrize(
    ("file", "at_least"),
    [
        ("tests/memory/test_dimension_mismatch.py", 11),
        ("tests/memory/test_lancedb_filter_escaping.py", 25),
        ("tests/memory/test_lancedb_update.py", 3),
        ("tests/memory/test_memory_root_scope.py", 50),
        ("tests/memory/test_storage_factory.py", 4),
        ("tests/memory/test_unified_memory.py", 55),
        ("tests/storage/test_kickoff_task_outputs_storage.py", 1),
        ("tests/test_async_human_feedback.py", 30),
        ("tests/test_checkpoint.py", 60),
        ("tests/test_flow_persistence.py", 15),
        ("tests/test_flow_persistence_factory.py", 3),
        ("tests/test_sqlite_connection_lifecycle.py", 5),
    ],
)
def test_crewais_own_tests_pass_on_walpool(outcomes: dict[str, Counter[str]], file: str, at_least: int) -> None:
    found = outcomes[file]
    assert found["failure"] == found["error"] == 0
    assert found["skipped"] == 0
    assert found["passed"] >= at_least


def test_nothing_else_was_run_or_failed(outcomes: dict[str, Counter[str]]) -> None:
    total = sum(outcomes.values(), Counter())
    assert total["failure"] == total["error"] == 0
    # Skipped by CrewAI itself.
    assert {file for file, found in outcomes.items() if found["skipped"]} <= {"tests/memory/test_concurrent_storage.py"}


def test_what_is_left_out_is_still_there(source: Path) -> None:
    assert set(DESELECTED) <= sdists.functions(source, (name.partition("::")[0] for name in DESELECTED))
    assert all(reason for reason in DESELECTED.values())


@pytest.mark.postgres
def test_crewais_own_tests_of_flows_and_checkpoints_pass_on_a_server(
    source: Path, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORES_IN", postgres_url)
    found = sdists.outcomes(source, PLUGIN, tmp_path / "junit.xml", list(ON_A_SERVER), DESELECTED)
    for file, passed in ON_A_SERVER.items():
        assert found[file]["failure"] == found[file]["error"] == found[file]["skipped"] == 0
        assert found[file]["passed"] >= passed
