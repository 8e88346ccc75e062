"""Triggers of tables that the target has already: they fire while rows are copied, and the plan says so."""

from __future__ import annotations

from pathlib import Path

from migrations import Migrated, fill, rows_of

import walpool

SERVER = """
    CREATE TABLE t (id bigint PRIMARY KEY, a text);
    CREATE TABLE log (id bigint);
    CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO log VALUES (1); RETURN NULL; END $$;
    CREATE TRIGGER by_row AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION logged();
    CREATE TRIGGER by_statement AFTER INSERT ON t EXECUTE FUNCTION logged();
    CREATE TRIGGER changed AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION logged();
    CREATE TRIGGER emptied AFTER TRUNCATE ON t EXECUTE FUNCTION logged();
    CREATE TRIGGER off AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION logged();
    ALTER TABLE t DISABLE TRIGGER off;
"""
FILE = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT);
    CREATE TABLE log (id INTEGER);
    CREATE TRIGGER [by update] AFTER INSERT ON T BEGIN UPDATE t SET a = a; INSERT INTO log VALUES (1); END;
    CREATE TRIGGER "insert" AFTER UPDATE ON t BEGIN INSERT INTO log VALUES (1); END;
    CREATE TRIGGER other AFTER INSERT ON log BEGIN SELECT 1; END;
"""


def test_triggers_of_a_table_of_a_server_are_named_and_fire(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    with walpool.get_pool(postgres_url) as pool:
        pool.script(SERVER)
    report = migrated(tmp_path / "a.db", postgres_url, force=True)
    assert [note for note in report.plan.tables[0].notes if "trigger" in note] == [
        "its trigger by_row fires for each row that is copied",
        "its trigger by_statement fires for each batch of rows that is copied",
        "its trigger changed fires for what --repair changes or deletes",
    ]
    assert rows_of(postgres_url, "log") == [(1,)] * 3


def test_triggers_of_a_table_of_a_file_are_named_and_fire(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (id bigint PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'x')")
    fill(tmp_path / "a.db", FILE)
    report = migrated(postgres_url, tmp_path / "a.db", force=True)
    assert [note for note in report.plan.tables[0].notes if "trigger" in note] == [
        "its trigger by update fires for each row that is copied",
        "its trigger insert fires for what --repair changes or deletes",
    ]
    assert rows_of(tmp_path / "a.db", "log") == [(1,)] * 2
