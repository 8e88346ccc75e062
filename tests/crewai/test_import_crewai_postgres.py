"""`import_crewai` into PostgreSQL: tenants, what its types cannot hold, passwords, and the command."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.state.provider.json_provider import JsonProvider

import walpool
from walpool import cli
from walpool.crewai import WalpoolFlowPersistence, import_crewai
from walpool.errors import ConfigError

pytestmark = pytest.mark.postgres

STATES = 12
PUT_STATE = "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json) VALUES (?, ?, '1', ?)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with states of two flows and with checkpoints, as CrewAI's own classes write them."""
    folder = tmp_path / "source"
    folder.mkdir()
    flows = SQLiteFlowPersistence(str(folder / "flow_states.db"))
    for step in range(STATES):
        flows.save_state(f"flow-{step % 2}", f"step {step}", {"n": step})
    for number in range(2):
        JsonProvider().checkpoint(json.dumps({"n": number}), str(folder / ".checkpoints"))
    return folder


def fetch(url: str, sql: str) -> list[Any]:
    with walpool.get_pool(url) as pool:
        return pool.fetch(sql)


@contextmanager
def changed(path: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection to a source, to be changed as no class of CrewAI's would."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def test_import_for_a_tenant_is_found_by_that_tenant_alone_and_said_to_be_new_for_another(
    source: Path, postgres_url: str
) -> None:
    for tenant in ("acme", "other"):
        report = import_crewai(source, postgres_url, tenant=tenant)
        assert (report.added, report.is_verified) == (STATES + 2, True)
        assert import_crewai(source, postgres_url, tenant=tenant).added == 0
    found = fetch(postgres_url, "SELECT tenant, count(*) FROM flow_states GROUP BY tenant ORDER BY tenant")
    assert found == [("acme", STATES), ("other", STATES)]
    for tenant, state in (("acme", {"n": STATES - 1}), (None, None)):
        with closing(WalpoolFlowPersistence(postgres_url, settings={"tenant": tenant})) as flows:
            assert flows.load_state("flow-1") == state


def test_tenant_is_refused_for_a_file_before_it_is_made(source: Path, database: Path) -> None:
    with pytest.raises(ConfigError, match="tenant= is for a server"):
        import_crewai(source, database, tenant="acme")
    assert not database.exists()


def test_dry_run_on_a_server_says_what_would_be_added_and_makes_no_table(source: Path, postgres_url: str) -> None:
    report = import_crewai(source, postgres_url, dry_run=True)
    assert (report.added, report.is_verified) == (STATES + 2, True)
    assert fetch(postgres_url, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(crew|flow)'") == []


def test_what_postgresql_cannot_hold_is_named_and_the_rest_goes_on(source: Path, postgres_url: str) -> None:
    with changed(source / "flow_states.db") as connection:
        connection.execute(PUT_STATE, ("flow-0", "a NUL", "\0"))
        connection.execute(PUT_STATE, ("flow-0", "bytes", b"{}"))
        connection.execute(PUT_STATE, ("flow\0", "m", "{}"))
        connection.execute(PUT_STATE, ("flow-0", "fine", "{}"))
    report = import_crewai(source, postgres_url)
    part = next(part for part in report.parts if part.table == "flow states")
    assert [difference.said for difference in part.differences] == [
        "a text of it holds a NUL, which PostgreSQL cannot",
        "a text of it holds a NUL, which PostgreSQL cannot",
        "column 4 of it is of another type than PostgreSQL's",
    ]
    assert part.added == STATES + 1
    assert part.read == part.stored


def test_command_imports_into_a_url_with_a_tenant_and_prints_no_password(
    source: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres_url.replace("@", ":geheim@", 1)
    command = ["import", "crewai", str(source), "--into", url, "--tenant", "acme"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert f"flow states: {STATES} found, {STATES} added; {STATES} read back" in printed.out
    assert "added to postgresql://" in printed.out
    with changed(source / "flow_states.db") as connection:
        connection.execute(PUT_STATE, ("flow-0", "a NUL", "\0"))
    assert cli.main([*command, "--json"]) == 1
    differing = capsys.readouterr()
    assert json.loads(differing.out)["verified"] is False
    assert "geheim" not in printed.out + printed.err + differing.out + differing.err
    assert cli.main(["import", "crewai", str(source), "--into", str(source / "t.db"), "--tenant", "acme"]) == 2
    assert "tenant= is for a server" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from walpool.crewai import import_crewai
import walpool.copying._report as report
import walpool.postgres.pool as postgres

jobs, batch = 0, postgres.PostgresPool.batch
def counted(pool, *args, **kwargs):
    global jobs
    jobs += 1
    if jobs == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(pool, *args, **kwargs)
postgres.PostgresPool.batch = counted
report._JOB_BYTES = 60  # many small jobs
import_crewai(sys.argv[1], sys.argv[2])
"""


@pytest.mark.crash
@pytest.mark.parametrize("job", [3, 6, 9])  # the first ones make the tables
def test_import_that_was_killed_and_run_again_stores_each_state_once_and_in_order(
    source: Path, postgres_url: str, job: int
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(source), postgres_url, str(job)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert import_crewai(source, postgres_url).is_verified
    found = fetch(postgres_url, "SELECT state_json FROM flow_states ORDER BY flow_uuid, id, tie")
    steps = [json.loads(state)["n"] for (state,) in found]
    assert steps == [*range(0, STATES, 2), *range(1, STATES, 2)]
