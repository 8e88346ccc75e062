"""A server with row-level security, and a role that is under it: rows of one tenant go there, and come back alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from migrations import Migrated, fill, rows_of

import walpool
from tests.postgres.secured import ROLES, Secured
from walpool import cli, memory
from walpool.errors import ConfigError
from walpool.interchange import export_memory

# A table of the user's own, with a policy of its own, in which each tenant counts from 1.
NOTES = f"""
    CREATE TABLE notes (
        tenant text NOT NULL DEFAULT current_setting('walpool.tenant'), id bigint GENERATED ALWAYS AS IDENTITY,
        body varchar(20), data jsonb, PRIMARY KEY (tenant, id)
    );
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
    CREATE POLICY notes_tenant ON notes USING (tenant = current_setting('walpool.tenant', true));
    GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {ROLES["app"]};
    CREATE TABLE walpool_migration (name text COLLATE "C" PRIMARY KEY, state text NOT NULL, document text NOT NULL);
    GRANT SELECT, INSERT, UPDATE, DELETE ON walpool_migration TO {ROLES["app"]};
    INSERT INTO notes (tenant, body) VALUES ('other', 'not mine');
"""


@pytest.fixture
def secured(secured: Secured) -> Secured:
    secured.server.execute(NOTES, database=secured.name)
    return secured


@pytest.fixture
def source(tmp_path: Path) -> Path:
    script = "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT, data TEXT)"
    rows = [(n, f"note {n}", json.dumps({"n": n})) for n in range(1, 301)]
    fill(tmp_path / "a.db", script, ("INSERT INTO notes VALUES (?, ?, ?)", rows))
    return tmp_path / "a.db"


def test_rows_become_those_of_the_tenant_and_come_back_alone(
    secured: Secured, source: Path, tmp_path: Path, migrated: Migrated
) -> None:
    report = migrated(source, secured.app, force=True, tenant="acme")
    assert report.is_same
    assert any("row-level security" in note for note in report.plan.notes)
    with walpool.get_pool(secured.superuser) as pool:
        assert pool.fetch("SELECT tenant, count(*) FROM notes GROUP BY 1 ORDER BY 1") == [("acme", 300), ("other", 1)]
        pool.execute("UPDATE notes SET body = 'changed' WHERE tenant = 'acme' AND id = 7")
        pool.execute("DELETE FROM notes WHERE tenant = 'acme' AND id = 8")
        pool.execute("INSERT INTO notes (tenant, id, body) OVERRIDING SYSTEM VALUE VALUES ('acme', 999, 'extra')")
    (table,) = migrated(source, secured.app, verify=True, tenant="acme").tables
    assert (table.changed, table.missing, table.extra) == ([[7]], [[8]], [[999]])
    report = migrated(source, secured.app, repair=True, tenant="acme")
    assert (report.is_same, report.repaired) == (True, 3)
    with walpool.get_pool(secured.superuser) as pool:
        assert pool.fetchval("SELECT body FROM notes WHERE tenant = 'other'") == "not mine"

    report = migrated(secured.app, tmp_path / "back.db", tables=["notes"], tenant="acme")
    assert report.is_same
    assert [row[1:] for row in rows_of(tmp_path / "back.db", "notes")] == [
        (id_, body, data) for id_, body, data in rows_of(source, "notes")
    ]


def test_row_without_a_tenant_is_refused_by_the_policy_and_nothing_is_written(
    secured: Secured, source: Path, migrated: Migrated
) -> None:
    with pytest.raises(walpool.errors.Error):
        migrated(source, secured.app, force=True)
    with walpool.get_pool(secured.superuser) as pool:
        assert pool.fetchval("SELECT count(*) FROM notes") == 1


def test_memories_go_under_row_level_security_and_come_back(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, back = str(tmp_path / "a.db"), str(tmp_path / "back.db")
    records = [memory.Record(id=str(n), content=f"number {n}", embedding=memory.pack([n, 1.0])) for n in range(1, 30)]
    for tenant in ("acme", "other"):
        with memory.open(source, tenant=tenant) as store:
            store.save(records if tenant == "acme" else records[:3])
    assert cli.main(["migrate", source, secured.app, "--force"]) == 0
    with memory.open(secured.app, tenant="acme", tenancy="rls") as store, memory.open(source, tenant="acme") as first:
        assert list(store.iterate()) == list(first.iterate())
    with memory.open(secured.app, tenant="other", tenancy="rls") as store:
        assert store.count() == 3

    assert cli.main(["migrate", secured.app, back, "--tenant", "acme"]) == 0
    with memory.open(back, tenant="acme") as store, memory.open(source, tenant="acme") as first:
        assert list(store.iterate()) == list(first.iterate())
    assert [(each.tenant, each.records) for each in memory.collections(back)] == [("acme", 29)]
    capsys.readouterr()
    assert cli.main(["export", secured.app, "--to", str(tmp_path / "m.jsonl")]) == 2
    assert "say whose" in capsys.readouterr().err
    assert export_memory(secured.app, tmp_path / "m.jsonl", tenants=["acme", "other"]).records == 32
    with pytest.raises(ConfigError, match="say whose"):
        export_memory(secured.app, tmp_path / "n.jsonl")


def test_memories_of_no_tenant_have_no_place_under_row_level_security(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tmp_path / "a.db")
    with memory.open(source) as store:
        store.save([memory.Record(id="1", content="one")])
    assert cli.main(["migrate", source, secured.app, "--force"]) == 2
    assert "these are no tenant's: 1 of memory" in capsys.readouterr().err
