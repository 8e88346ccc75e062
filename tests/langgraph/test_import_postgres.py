"""`import_sqlite` into PostgreSQL: tenants, vectors to the bit, and what its types cannot hold."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.sqlite")

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.store.sqlite import SqliteStore

import walpool
from walpool import cli
from walpool.langgraph import WalpoolSaver, WalpoolStore, import_sqlite

pytestmark = pytest.mark.postgres

PUT_VECTOR = "INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES (?, ?, ?, ?)"
NUMBERS = (0.1, -0.0, 1e-45, 3.4028234e38, -1 / 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a database of langgraph-checkpoint-sqlite with one thread and three items, without vectors."""
    path = tmp_path / "source.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint = {**empty_checkpoint(), "channel_values": {"long": "x" * 100}, "channel_versions": {"long": "1"}}
        put = saver.put(config, checkpoint, {"source": "input", "step": 0, "parents": {}}, {"long": "1"})  # type: ignore[typeddict-item]
        saver.put_writes(put, [("notes", ["pending"])], "task")
    with SqliteStore.from_conn_string(str(path)) as store:
        for key in ("one", "two", "three"):
            store.put(("docs", "a"), key, {"text": key})
    return path


def add_vectors(source: Path, *vectors: tuple[str, bytes]) -> None:
    with closing(sqlite3.connect(source)) as connection, connection:
        for statement in SqliteStore(connection).VECTOR_MIGRATIONS:
            connection.execute(statement)
        connection.executemany(PUT_VECTOR, [("docs.a", key, "text", embedding) for key, embedding in vectors])


def test_import_for_a_tenant_is_found_by_that_tenant_alone_and_said_to_be_new_for_another(
    source: Path, postgres_url: str
) -> None:
    for tenant in ("acme", "other"):
        report = import_sqlite(source, postgres_url, tenant=tenant)
        assert (report.added, report.differences) == (5, [])
        assert import_sqlite(source, postgres_url, tenant=tenant).added == 0
    for tenant, checkpoints, items in (("acme", 1, 3), (None, 0, 0)):
        with WalpoolSaver(postgres_url, tenant=tenant) as saver, WalpoolStore(postgres_url, tenant=tenant) as store:
            assert len(list(saver.list(None))) == checkpoints
            assert len(store.search(("docs",))) == items
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT count(*) FROM langgraph_blobs") == 2


def test_tenant_is_refused_for_a_file(source: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "langgraph", str(source), str(database), "--tenant", "acme"]) == 2
    assert "tenant=" in capsys.readouterr().err
    assert not database.exists()


def test_command_imports_into_a_url_with_a_tenant_and_prints_no_password(
    source: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres_url.replace("@", ":geheim@", 1)
    assert cli.main(["import", "langgraph", str(source), url, "--tenant", "acme", "--json"]) == 0
    printed = capsys.readouterr()
    assert '"added": 5' in printed.out
    assert "geheim" not in printed.out + printed.err
    with WalpoolSaver(postgres_url, tenant="acme") as saver:
        assert len(list(saver.list(None))) == 1


def test_items_without_vectors_need_no_table_of_vectors(source: Path, postgres_url: str) -> None:
    import_sqlite(source, postgres_url)
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT to_regclass('langgraph_vectors') IS NULL")


def test_vectors_come_over_to_the_bit_and_one_that_differs_is_said_and_replaced_when_told(
    source: Path, postgres_url: str
) -> None:
    add_vectors(source, ("one", struct.pack("<5f", *NUMBERS)))
    assert import_sqlite(source, postgres_url).differences == []
    assert import_sqlite(source, postgres_url).added == 0
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetchval("SELECT vector_send(embedding) FROM langgraph_vectors")[4:] == struct.pack(">5f", *NUMBERS)
        pool.execute("UPDATE langgraph_vectors SET embedding = '[0.1,0,0,0,0]'")
    assert [each.subject for each in import_sqlite(source, postgres_url).differences] == ["item docs.a 'one'"]
    assert import_sqlite(source, postgres_url, overwrite=True).differences == []


def test_what_postgresql_cannot_hold_is_named_and_the_rest_goes_on(source: Path, postgres_url: str) -> None:
    add_vectors(source, ("two", struct.pack("<17000f", *range(17000))))  # pgvector holds 16 000
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE store SET key = CAST(x'006f' AS TEXT) WHERE key = 'one'")
        columns = "checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value"
        put = f"INSERT INTO writes (thread_id, {columns}) SELECT thread_id || char(0), {columns} FROM writes"
        connection.execute(put)
    report = import_sqlite(source, postgres_url)
    said = {difference.subject: difference.said for difference in report.differences}
    assert set(said) == {"thread 't\\x00'", r"item docs.a '\x00o'", "item docs.a 'two'"}
    assert "16000 dimensions" in said["item docs.a 'two'"]
    assert "NUL" in said[r"item docs.a '\x00o'"]
    assert report.added == 3
    with WalpoolStore(postgres_url) as store:
        assert [item.key for item in store.search(("docs",))] == ["three"]
