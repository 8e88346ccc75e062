"""The examples, run small from end to end; and that the backup engine notices when a row is missing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
JOBS, PACKS, CHUNKS = 4, 20, 16

needs_a_server = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("fastapi", "httpx", "uvicorn")),
    reason="the backup engine is served by uvicorn and asked through httpx",
)


@needs_a_server
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_backup_engine_keeps_every_row_and_answers_its_health_check_throughout(
    tmp_path: Path, backend: str, request: pytest.FixtureRequest
) -> None:
    command = [sys.executable, str(EXAMPLES / "backup_engine.py"), "--jobs", str(JOBS), "--packs", str(PACKS), "--json"]
    if backend == "postgres":
        command += ["--database", request.getfixturevalue("postgres_url")]
    completed = subprocess.run(
        [*command, "--upload-ms", "0", "--data", str(tmp_path)], capture_output=True, text=True, timeout=50, check=False
    )

    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.splitlines()[-1].startswith(f"{JOBS * PACKS}/{JOBS * PACKS} packs, ")
    outcome = json.loads(completed.stdout)
    assert outcome["problems"] == []
    assert [(job["state"], job["packs_done"]) for job in outcome["jobs"]] == [("done", PACKS)] * JOBS
    assert (outcome["rows_acknowledged"], outcome["rows_missing"]) == (JOBS * PACKS * (CHUNKS + 2), 0)
    assert outcome["health"]["asked"] > 0
    assert outcome["health"]["unanswered"] == 0
    assert list(tmp_path.iterdir()) == []


def notes(*arguments: str, folder: Path) -> str:
    """Run the notes assistant in a folder and return what it printed."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "memory.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_notes_assistant_finds_what_it_kept_and_forgets_what_it_is_told(tmp_path: Path) -> None:
    key = "The key hangs behind the door"
    assert notes("keep", key, "--scope", "/home", folder=tmp_path) == notes(
        "keep", key, "--scope", "home/", folder=tmp_path
    )
    notes("keep", "The invoice was paid twice", "--scope", "/work", folder=tmp_path)
    found = notes("ask", "where are the keys hanging?", folder=tmp_path).splitlines()
    assert key in found[0]
    assert len(notes("ask", "key", "--scope", "/home", folder=tmp_path).splitlines()) == 1
    assert notes("forget", "--scope", "/home", "--days", "1", folder=tmp_path) == "0 forgotten\n"
    assert notes("forget", "--scope", "/home", "--days", "0", folder=tmp_path) == "1 forgotten\n"
    assert notes("ask", "key", "--scope", "/home", folder=tmp_path) == "  nothing\n"


def test_notes_assistant_shows_itself_and_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = notes(folder=tmp_path).splitlines()
    assert lines[0] == "/home: 3, /work: 2"
    answers = ("The spare key hangs", "Water the tomatoes", "Ann prefers short")
    assert [answer in line for answer, line in zip(answers, lines[2::2], strict=True)] == [True] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path, list[dict[str, Any]]]:
    """Return the example's report, and a database as one job of two packs leaves it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    app, report = import_module("backup_engine.app"), import_module("backup_engine.report")
    path = tmp_path / "backups.db"
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.executescript(app.SCHEMA)
        conn.execute(app.NEW_SNAPSHOT, ("s0", "backup-0"))
        for number in range(2):
            for statement in app.pack("s0", number):
                conn.execute(*statement)
    return report, path, [{"snapshot": "s0", "packs_done": 2, "state": "done", "error": None}]


@needs_a_server
@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("DELETE FROM chunks WHERE rowid = 3", 1),
        ("DELETE FROM packs WHERE id LIKE '%1'", 17),
        ("UPDATE snapshots SET packs = 1", 1),
        ("UPDATE snapshots SET name = name", 0),
    ],
    ids=["chunk", "pack", "snapshot", "none"],
)
def test_backup_engine_counts_rows_that_are_missing(
    stored: tuple[Any, Path, list[dict[str, Any]]], change: str, missing: int
) -> None:
    report, path, jobs = stored
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(change)

    counted = report.count(str(path), jobs)

    assert counted == {"rows_acknowledged": 36, "rows_missing": missing}
    outcome = {"jobs": jobs, "health": {"asked": 1, "unanswered": 0}, **counted}
    assert len(report.problems(outcome)) == (1 if missing else 0)
    assert len(report.problems(outcome | {"health": {"asked": 2, "unanswered": 1}})) == (2 if missing else 1)
