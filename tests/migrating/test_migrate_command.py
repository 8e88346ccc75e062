"""`walpool migrate`: what it prints, and its exit codes: 0 same, 1 differs, 2 refused, 3 interrupted."""

from __future__ import annotations

import contextlib
import json
from importlib import import_module
from pathlib import Path

import pytest
from migrations import fill

import walpool
from benches.postgres_server import PostgresServer
from walpool import cli, memory
from walpool.cli._migrate import _HOMES
from walpool.errors import StorageError


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


# Where nothing was written.


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--resume"], ["--verify"], ["--repair"]])
def test_target_that_cannot_be_reached_is_2_since_nothing_was_written(
    source: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["migrate", source, "postgresql://ann:sesame@127.0.0.1:1/x", *options]) == 2
    said = capsys.readouterr().err
    assert said.endswith("[connecting to postgresql://ann@127.0.0.1:1/x]; nothing was written\n")
    assert "sesame" not in said


def test_source_that_is_no_database_is_2(tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert cli.main(["migrate", str(tmp_path / "a.txt"), postgres_url]) == 2
    assert capsys.readouterr().err.endswith("; nothing was written\n")


def test_two_of_one_backend_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate", str(tmp_path / "a.db"), "posgresql//host/x"]) == 2
    assert f"{tmp_path}/a.db and posgresql//host/x: both are SQLite files" in capsys.readouterr().err


def test_file_for_bad_rows_is_tried_before_anything_is_written(
    source: str, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere" / "bad.jsonl")
    assert cli.main(["migrate", source, postgres_url, "--on-bad", "skip-to-file", nowhere]) == 2
    assert f"No such file or directory [{nowhere}]" in capsys.readouterr().err
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    somewhere = tmp_path / "bad.jsonl"
    assert cli.main(["migrate", source, postgres_url, "--on-bad", "skip-to-file", str(somewhere)]) == 0
    assert not somewhere.exists()  # there were no bad rows
    assert cli.main(["migrate", source, postgres_url, "--resume", "--on-bad", "skip-to-file", nowhere]) == 2


def test_database_that_does_not_hold_every_text_is_refused(
    source: str, own_postgres_server: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server, name = own_postgres_server, "walpool_latin"
    server.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        assert cli.main(["migrate", source, server.url(database=name), "--dry-run"]) == 2
        assert "encoded in LATIN1: make the database with ENCODING 'UTF8'" in capsys.readouterr().err
    finally:
        server.drop_database(name)


def test_failure_in_the_midst_says_how_to_go_on(
    source: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from walpool.postgres import Bulk

    def refuse(*given: object) -> int:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Bulk, "copy_in", refuse)
    assert cli.main(["migrate", source, postgres_url]) == 3
    going_on = (
        "walpool: error: the disk is full; once that is mended, walpool migrate with --resume goes on from here\n"
    )
    assert capsys.readouterr().err == going_on
    monkeypatch.undo()
    assert cli.main(["migrate", source, postgres_url, "--resume"]) == 0
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t WHERE id = 4")
    monkeypatch.setattr(Bulk, "copy_in", refuse)
    assert cli.main(["migrate", source, postgres_url, "--repair"]) == 3
    assert capsys.readouterr().err == going_on.replace("--resume", "--repair")


def test_rows_of_earlier_runs_are_not_counted_into_the_speed(
    source: str, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["migrate", source, postgres_url]) == 0
    assert "10 rows copied in" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["migrate", source, postgres_url, "--resume"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("0 rows copied in")
    assert ", 10 before;" in last
    assert "rows/s" not in last


# Memories.


def test_memories_are_told_in_the_plan_and_so_are_those_that_stay(
    source: str, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tenant, count in (("", 1), ("ann", 2)):
        with memory.open(source, tenant=tenant) as store:
            store.save([memory.Record(id=str(n), content="x") for n in range(count)])
    assert cli.main(["migrate", source, postgres_url, "--tenant", "ann"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  memories: 2 of ann/memory as walpool export and walpool import take them" in lines
    assert "  memories of other tenants stay, each goes by itself (--tenant): 1 of memory" in lines
    assert "set memory: moved and compared: same" in lines
    assert [line for line in lines if "trigger" in line or "virtual" in line] == []


def test_memories_are_refused_first_where_the_server_lacks_pgvector(
    source: str, own_postgres_server: PostgresServer, own_postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with memory.open(source) as store:
        store.save([memory.Record(id="1", content="one")])
    name = own_postgres_url.rpartition("?")[0].rpartition("/")[2]
    own_postgres_server.execute(f"ALTER DATABASE {name} SET extension_control_path = '{own_postgres_server.host}'")
    assert cli.main(["migrate", source, own_postgres_url, "--dry-run"]) == 2
    assert "memory stores need the extension pgvector" in capsys.readouterr().err
    assert cli.main(["migrate", source, own_postgres_url, "--tables", "t"]) == 0
