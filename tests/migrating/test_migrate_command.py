"""`walpool migrate`: what it prints, and its exit codes: 0 same, 1 differs, 2 refused, 3 interrupted."""

from __future__ import annotations

import contextlib
import json
from importlib import import_module
from pathlib import Path

import pytest
from migrations import fill

import walpool
from walpool import cli, memory
from walpool.cli._migrate import _HOMES


@pytest.fixture
def source(tmp_path: Path) -> str:
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); CREATE VIEW v AS SELECT 1"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [(n, f"row {n}") for n in range(10)]))
    return str(tmp_path / "a.db")


def test_same_is_0_and_differs_is_1(source: str, postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", source, postgres_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  t: 10 rows, key id" in lines
    assert "  v: left out: a view: its SQL is SQLite's; write it anew in the target" in lines
    assert "t: 10 copied, 10 compared: same" in lines
    assert lines[-1].endswith(": same")
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t WHERE id = 4")
    assert cli.main(["migrate", source, postgres_url, "--verify"]) == 1
    said = capsys.readouterr()
    assert "  1 missing: [4]" in said.out.splitlines()
    assert said.err.count("\n") == 1
    assert cli.main(["migrate", source, postgres_url, "--repair"]) == 0
    assert cli.main(["migrate", source, postgres_url, "--verify"]) == 0


def test_memories_go_with_the_tables_both_ways(
    source: str, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [memory.Record(id=str(n), content=f"number {n}", embedding=memory.pack([n, 1.0])) for n in range(1, 30)]
    with memory.open(source) as store:
        store.save(records)
    assert cli.main(["migrate", source, postgres_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  memory_records: left out: of the set memory, which is moved as a whole" in lines
    with memory.open(postgres_url) as store:
        assert sorted(record.id for record in store.iterate()) == sorted(record.id for record in records)
    back = str(tmp_path / "back.db")
    assert cli.main(["migrate", postgres_url, back]) == 0
    with memory.open(back) as store, memory.open(source) as first:
        assert list(store.iterate()) == list(first.iterate())


def test_memories_go_whatever_the_environment_says_of_pools(
    source: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory.open(source) as store:
        store.save([memory.Record(id="1", content="one")])
    for name, value in {"FOREIGN_KEYS": "on", "WRITE_RETIRED": "off", "TRANSACTION_TIMEOUT": "7s"}.items():
        monkeypatch.setenv(f"WALPOOL_{name}", value)
    assert cli.main(["migrate", source, postgres_url]) == 0
    with memory.open(postgres_url) as moved:
        assert [record.content for record in moved.iterate()] == ["one"]


def test_json_is_one_document_with_the_plan_and_what_came_of_it(
    source: str, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["migrate", source, postgres_url, "--json", "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert (dry["dry_run"], dry["same"], dry["plan"]["tables"][0]["name"]) == (True, None, "t")
    assert cli.main(["migrate", source, postgres_url, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["same"], done["tables"][0]["copied"]) == (True, 10)
    assert {"plan", "copy", "verify"} <= set(done["seconds"])


def test_refused_is_2_and_says_why(
    source: str, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with walpool.Pool(source) as pool:
        pool.execute("INSERT INTO t VALUES (77, 'a' || char(0))")
    assert cli.main(["migrate", source, postgres_url]) == 2
    assert "  bad: t.a, key [77]: a NUL in text" in capsys.readouterr().out.splitlines()
    assert cli.main(["migrate", source, postgres_url, "--dry-run"]) == 2
    assert cli.main(["migrate", source, str(tmp_path / "b.db")]) == 2
    assert cli.main(["migrate", source, postgres_url, "--on-bad", "perhaps"]) == 2
    assert cli.main(["migrate", source, postgres_url, "--on-bad", "skip-to-file"]) == 2
    assert cli.main(["migrate", source, postgres_url, "--verify"]) == 2
    bad = str(tmp_path / "bad.jsonl")
    assert cli.main(["migrate", source, postgres_url, "--on-bad", "skip-to-file", bad]) == 0
    assert "t: 10 copied, 1 skipped, 10 compared: same" in capsys.readouterr().out.splitlines()
    assert cli.main(["migrate", source, postgres_url]) == 2


def test_server_that_goes_away_is_3(source: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    from walpool.postgres import Bulk

    copy_in = Bulk.copy_in

    def cut_off(bulk: Bulk, *given: object) -> int:
        with contextlib.suppress(psycopg.OperationalError):
            bulk._connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return copy_in(bulk, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Bulk, "copy_in", cut_off)
    assert cli.main(["migrate", source, postgres_url]) == 3
    monkeypatch.undo()
    assert cli.main(["migrate", source, postgres_url, "--resume"]) == 0


def test_password_stands_in_nothing_that_is_printed_or_stored(
    source: str, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres_url.replace("walpool@", "walpool:sesame@", 1)
    assert cli.main(["migrate", source, url, "--json", "--retire"]) == 0
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err
    with walpool.get_pool(postgres_url) as pool:
        assert "sesame" not in str(pool.fetch("SELECT * FROM walpool_migration"))
    with walpool.Pool(source) as pool:
        assert "sesame" not in str(pool.fetch("SELECT * FROM walpool_retired"))


@pytest.mark.parametrize("home", sorted(set(_HOMES.values())))
def test_every_set_that_goes_part_by_part_is_known_to_the_command(home: str) -> None:
    pytest.importorskip({"openai_agents": "agents"}.get(home.split(".")[1], home.split(".")[1]))
    assert set(import_module(home).SETS) == {name for name, known in _HOMES.items() if known == home}
