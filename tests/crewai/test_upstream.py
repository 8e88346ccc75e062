"""CrewAI's own tests of memory, flow persistence, kickoff outputs and checkpoints, run on walpool.

They are fetched with the source of the installed version when these tests run, into `.cache/` of the checkout, and run
by a pytest of their own with `upstream_plugin`, which puts walpool under the names that they use. What cannot hold for
another store than CrewAI's is named in `DESELECTED`, each with its reason; everything else passes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
CACHE = CHECKOUT / ".cache"

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

# `pip download` of a source asks its build backend for metadata that nobody needs here, and would first install that
# backend. This one stands in its place and answers at once.
BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name, version = "crewai", os.environ["CREWAI_VERSION"]
    home = pathlib.Path(directory) / f"{name}-{version}.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return home.name
"""

pytestmark = [pytest.mark.upstream, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return CrewAI's source with its tests, the version that is installed."""
    wanted = version("crewai")
    found = CACHE / f"crewai-{wanted}"
    if not found.exists():
        folder = tmp_path_factory.mktemp("source")
        _download(wanted, folder)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:  # a Python 3.10 without its last updates
                archive.extractall(folder)
        CACHE.mkdir(exist_ok=True)
        (folder / f"crewai-{wanted}").rename(found)
    return found


def _download(wanted: str, folder: Path) -> None:
    backend = folder / "backend" / "hatchling"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(BACKEND)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "crewai", "--no-build-isolation", "--dest", str(folder), f"crewai=={wanted}"]
    environment = {**os.environ, "PYTHONPATH": str(backend.parent), "CREWAI_VERSION": wanted}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the source of crewai {wanted} cannot be fetched here: {done.stderr.strip()[-300:]}")


def run(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a pytest with our plugin in CrewAI's source."""
    command = [sys.executable, "-m", "pytest", "-p", "upstream_plugin", "-c", os.devnull, "--rootdir", str(source)]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=590, check=False
    )


@pytest.fixture(scope="session")
def outcomes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """Run them all; return, for each file, how many tests passed, failed and were skipped."""
    report = tmp_path_factory.mktemp("report") / "junit.xml"
    deselected = [argument for name in DESELECTED for argument in ("--deselect", name)]
    done = run(source, "-q", "--tb=short", "--timeout=120", f"--junit-xml={report}", *deselected, *FILES)
    if done.returncode not in (0, 1):
        pytest.fail(f"CrewAI's tests did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Counter[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        file = next(name for name in _modules(source) if str(case.get("classname")).startswith(name))
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found.setdefault(_modules(source)[file], Counter())[kinds.pop() if kinds else "passed"] += 1
    if done.returncode == 1:
        print(done.stdout[-20_000:])  # noqa: T201 - shown with the tests that fail because of it
    return found


def _modules(source: Path) -> dict[str, str]:
    """Return the test files by the dotted names that a report gives them."""
    listed = [source / name for name in FILES]
    files = [found for entry in listed for found in ([entry] if entry.is_file() else sorted(entry.rglob("test_*.py")))]
    paths = [file.relative_to(source) for file in files]
    # The longest first: test_flow_persistence is the beginning of test_flow_persistence_factory.
    return {".".join(path.with_suffix("").parts): path.as_posix() for path in sorted(paths, reverse=True)}


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
    # What is skipped needs another store, or is skipped by CrewAI itself.
    assert {file for file, found in outcomes.items() if found["skipped"]} <= {
        "tests/memory/test_concurrent_storage.py",
        "tests/memory/test_qdrant_edge_storage.py",
    }


def test_what_is_left_out_is_still_there(source: Path) -> None:
    done = run(source, "--collect-only", "-q", *sorted({name.partition("::")[0] for name in DESELECTED}))
    collected = {re.sub(r"\[.*", "", line) for line in done.stdout.splitlines()}
    assert set(DESELECTED) <= collected
    assert all(reason for reason in DESELECTED.values())
