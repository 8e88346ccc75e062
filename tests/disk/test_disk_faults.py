"""Every system call on the database, its WAL and its index fails in turn: nothing acknowledged is lost.

    story                     disk                       afterwards, read by another SQLite
    open, jobs, a lease,      call N on one file fails,  each job that was acknowledged is there, whole;
    checkpoints, reads, ...   once or from then on       none is that was told `not_applied`

Either the process ends at the first error that anybody is told, as if it were killed, and what stands in the WAL is
what the next one finds; or the disk works again, and so must the same pool.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.torture import Torture

HERE = Path(__file__).parent
PARTS = 2
EVERY_FILE = "database,wal,shm,journal,copy,folder"

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or shutil.which("cc") is None, reason="compiles a layer that goes before glibc"
)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile faults.c, and return the library."""
    library = tmp_path_factory.mktemp("layer") / "libfaults.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


def attempts(layer: Path, folder: Path, story: str, files: str, extent: str) -> Iterator[dict[str, Any]]:
    """Run faults.py under the layer, and yield what came of each attempt."""
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    command = [sys.executable, HERE / "faults.py", layer, folder, story, files, extent]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(layer)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    assert process.returncode == 0


def lost(attempt: dict[str, Any]) -> list[int]:
    """Return the jobs that were acknowledged and are not in the file."""
    rows = attempt["rows"]
    return [job for told in attempt["told"] if not told["kind"] for job in told["jobs"] if rows.get(str(job)) != PARTS]


def faults_in(attempt: dict[str, Any]) -> list[str]:
    """Return what should not have come of an attempt."""
    found = [f"problem in the file: {problem}" for problem in attempt["problems"]]
    if not attempt["ended_well"]:
        found.append("the process died or hung")
    found += [f"job {job} is half there" for job, rows in attempt["rows"].items() if rows != PARTS]
    found += [f"job {job} was acknowledged and is lost" for job in lost(attempt)]
    for told in attempt["told"]:
        found += wrongly_told(told, attempt)
    return found


def wrongly_told(told: dict[str, Any], attempt: dict[str, Any]) -> Iterator[str]:
    if told["missing"]:
        yield f"a read did not see the acknowledged jobs {told['missing']}"
    if not told["kind"]:
        return
    error = "{what}: {kind} {code} {outcome}: {message}".format(**told)
    if told["after"]:
        yield f"the disk worked again, but {error}"
    elif attempt["is_unnoticed"]:
        yield f"nobody should have noticed, but {error}"
    elif not is_right_class(told, attempt["call"]):
        yield f"another class was expected: {error}"
    if told["outcome"] not in ("not_applied", "unknown"):
        yield f"no such outcome of a failure: {error}"
    if told["outcome"] == "not_applied" and any(str(job) in attempt["rows"] for job in told["jobs"]):
        yield f"told not applied, and is in the file: {error}"


def outcomes_in(attempt: dict[str, Any]) -> Iterator[str]:
    """Yield what each error said of its write, and of those that did not know, what became of it."""
    for told in attempt["told"]:
        if told["kind"] and told["outcome"] == "unknown":
            is_there = any(str(job) in attempt["rows"] for job in told["jobs"])
            yield "unknown (it was applied)" if is_there else "unknown (it was not)"
        elif told["kind"]:
            yield told["outcome"]


def is_right_class(told: dict[str, Any], call: str) -> bool:
    if call == "lock":
        return told["kind"] in (
            "StorageError",
            "BusyError",
        )  # SQLite takes any lock that it does not get for a busy one
    if call == "read" and told["kind"] == "CorruptError":
        return told["code"] == "SQLITE_CORRUPT"  # so SQLite names a read that failed with EIO, and the message says so
    if call == "read" and told["code"] == "SQLITE_ERROR":
        return "no such table" in told["message"]  # an old schema, where SQLite could not read that there is a new one
    return told["kind"] == "StorageError"


@pytest.mark.torture
@pytest.mark.crash
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    ("story", "files"), [("everyday", EVERY_FILE), ("upkeep", EVERY_FILE), ("birth", EVERY_FILE), ("growth", "shm")]
)
def test_call_that_fails_loses_nothing_and_is_told_with_its_outcome(
    layer: Path, folder: Path, torture: Torture, story: str, files: str
) -> None:
    extent = torture.size("last" if story == "growth" else "one", "all")
    tried, losses, wrong = 0, 0, []
    outcomes: Counter[str] = Counter()
    for attempt in attempts(layer, folder, story, files, extent):
        tried += 1
        losses += len(lost(attempt))
        outcomes.update(outcomes_in(attempt))
        wrong += [f"{attempt['fault']}, dies {attempt['dies']}: {fault}" for fault in faults_in(attempt)]
    note = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    torture.tell(f"a disk that fails ({story})", tried=tried, unit="system calls", lost=losses, note=note)
    assert not wrong, "\n".join(wrong[:20])
    assert tried > 10
    assert outcomes["not_applied"] > 5
