"""Killed or interrupted at any step, a migration goes on and ends with two databases that are equal."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import start_python
from migrations import Migrated, rows_of

import walpool
from benches.postgres_server import PostgresServer
from tests.torture import Torture
from walpool.errors import OperationalError
from walpool.migrating import Table
from walpool.postgres import Bulk

TABLES = ["children", "log", "parents", 'select "odd" from']

# Runs a migration that ends itself at the step of that number: before or after each statement, COPY and COMMIT.
ENDS_ITSELF = """
    import os, signal, sys

    from walpool import cli
    from walpool.migrating._sqlite import SqliteSide
    from walpool.migrating.plan import Table
    from walpool.postgres import Bulk

    Table.page = property(lambda table: 400)
    end, left = getattr(signal, sys.argv[1]), int(sys.argv[2])

    def step():
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), end)

    def stepping(owner, name):
        method = getattr(owner, name)
        def stepped(*args, **named):
            step()
            result = method(*args, **named)
            step()
            return result
        setattr(owner, name, stepped)

    for owner, names in ((Bulk, ("execute", "executemany", "copy_in", "_commit")), (SqliteSide, ("execute", "_write"))):
        for name in names:
            stepping(owner, name)
    sys.exit(cli.main(["migrate", *sys.argv[3:]]))
"""


def ended(source: str | Path, target: str | Path, by: str, step: int, *options: str) -> tuple[int, str]:
    """Return exit code and errors of a migration that ended itself at that step, or came to its end before."""
    process = start_python(ENDS_ITSELF, by, step, source, target, *options)
    try:
        _, errors = process.communicate(timeout=40)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.crash
@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("direction", ["to_postgres", "to_sqlite"])
def test_migration_killed_at_any_step_goes_on_to_equal_databases(
    everything: Path, postgres_url: str, tmp_path: Path, migrated: Migrated, torture: Torture, direction: str
) -> None:
    source: str | Path = everything
    target: str | Path = postgres_url
    if direction == "to_sqlite":
        assert migrated(everything, postgres_url).is_same
        source, target = postgres_url, tmp_path / "back.db"
    kills = 0
    step, stride = 3, torture.size(25, 3)
    while True:
        code, errors = ended(source, target, "SIGKILL", step, "--resume")
        if code != -signal.SIGKILL:
            break
        kills += 1
        step += stride
    torture.tell(f"migration {direction}", tried=kills, unit="kills", lost=code, note="then resumed")
    assert (code, errors) == (0, "")
    assert kills >= 2
    for name in TABLES:
        if not (name == "parents" and direction == "to_postgres"):  # its numbers are numeric there
            assert [len(row) for row in rows_of(target, name)] == [len(row) for row in rows_of(source, name)]
    if direction == "to_postgres":
        assert rows_of(target, "children") == rows_of(source, "children")
    assert migrated(source, target, verify=True).is_same


def test_interrupted_migration_exits_with_3_and_goes_on(everything: Path, postgres_url: str) -> None:
    code, errors = ended(everything, postgres_url, "SIGINT", 45)
    assert code == 3
    assert errors.splitlines()[-1] == "walpool: error: interrupted; walpool migrate with --resume goes on from here"
    refused, errors = ended(everything, postgres_url, "SIGINT", 10**6)
    assert refused == 2
    assert "--resume" in errors
    assert ended(everything, postgres_url, "SIGINT", 10**6, "--resume") == (0, "")
    assert rows_of(everything, "children") == rows_of(postgres_url, "children")


def test_batches_that_were_committed_are_not_copied_again(
    everything: Path, postgres_url: str, migrated: Migrated
) -> None:
    ended(everything, postgres_url, "SIGKILL", 45)
    with walpool.get_pool(postgres_url) as pool:
        before = pool.fetchval("SELECT count(*) FROM children")
        pool.execute("UPDATE children SET score = -1 WHERE number = (SELECT min(number) FROM children)")
    assert 0 < before < 2500
    report = migrated(everything, postgres_url, resume=True)
    assert len(report.tables[0].changed) == 1
    assert report.tables[0].copied == 2500


def test_server_that_crashes_loses_no_row_of_a_migration_that_goes_on(
    everything: Path,
    own_postgres_server: PostgresServer,
    own_postgres_url: str,
    migrated: Migrated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # batches are committed without waiting for the disk, so the server may have lost the last ones
    copied = 0

    def crash_at_the_third(bulk: Bulk, *given: Any) -> int:
        nonlocal copied
        copied += 1
        if copied == 3:
            own_postgres_server.stop("immediate")
        return copy_in(bulk, *given)

    copy_in = Bulk.copy_in
    monkeypatch.setattr(Table, "page", property(lambda table: 400))
    monkeypatch.setattr(Bulk, "copy_in", crash_at_the_third)
    try:
        with pytest.raises(OperationalError):
            migrated(everything, own_postgres_url)
    finally:
        own_postgres_server.start()
    assert migrated(everything, own_postgres_url, resume=True).is_same
    assert rows_of(everything, "children") == rows_of(own_postgres_url, "children")


def test_migration_from_another_source_is_not_gone_on_with(
    everything: Path, postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    migrated(everything, postgres_url)
    other = tmp_path / "other.db"
    other.write_bytes(everything.read_bytes())
    with pytest.raises(walpool.errors.ConfigError, match="not from"):
        migrated(other, postgres_url, resume=True)
