"""The plan: what the target cannot take is found first, what is not copied is said, and nothing is written before."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from migrations import Migrated, fill, rows_of

import walpool
from walpool import cli
from walpool.errors import ConfigError
from walpool.migrating import Column, Plan, Refused
from walpool.postgres.binary import Form
from walpool.settings import Settings

BAD: list[tuple[str, str, Any, str, Any]] = [
    # declared, the value as SQL, what it is replaced by, what is said, a good value beside it
    ("TEXT", "'a' || char(0) || 'b'", "a\N{REPLACEMENT CHARACTER}b", "a NUL in text", "x"),
    ("TEXT", "CAST(x'61ff62' AS TEXT)", "a\N{REPLACEMENT CHARACTER}b", "not valid UTF-8", "x"),
    ("TEXT", "CAST(x'eda080' AS TEXT)", "\N{REPLACEMENT CHARACTER}" * 3, "not valid UTF-8", "x"),
    ("TEXT", "x'6162'", "ab", "BLOB in a column of text", "x"),
    ("INTEGER", "'seven'", None, "TEXT in a column of integers", 1),
    ("INTEGER", "x'00'", None, "BLOB in a column of integers", 1),
    ("", "'12'", 12, "TEXT in a column of integers", 1),
    ("REAL", "'much'", None, "TEXT in a column of numbers", 0.5),
    ("BLOB", "'text'", b"text", "TEXT in a column of bytes", b"x"),
    ("JSON", "'{\"a\": NaN}'", '"{\\"a\\": NaN}"', "no JSON", "{}"),
    ("JSON", "'{\"a\": Infinity}'", '"{\\"a\\": Infinity}"', "no JSON", "[1]"),
]


def bad_file(path: Path, declared: str, bad: str, good: Any) -> None:
    script = f"CREATE TABLE t (id INTEGER PRIMARY KEY, a {declared}); INSERT INTO t VALUES (5, {bad})"
    fill(path, script, ("INSERT INTO t VALUES (?, ?)", [(n, good) for n in (1, 2, 9)]))


@pytest.mark.parametrize(("declared", "bad", "becomes", "said", "good"), BAD)
def test_value_that_postgres_cannot_take_is_found_before_anything_is_written(
    tmp_path: Path, postgres_url: str, migrated: Migrated, declared: str, bad: str, becomes: Any, said: str, good: Any
) -> None:
    bad_file(tmp_path / "a.db", declared, bad, good)
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", postgres_url)
    (fault,) = refused.value.report.plan.faults
    assert (fault.table, fault.column, fault.key) == ("t", "a", "[5]")
    assert said in fault.why
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []

    report = migrated(tmp_path / "a.db", postgres_url, on_bad="replace")
    assert report.is_same
    assert report.tables[0].replaced == 1
    assert rows_of(postgres_url, "t") == [(1, good), (2, good), (5, becomes), (9, good)]


@pytest.mark.parametrize(("declared", "bad", "becomes", "said", "good"), BAD)
def test_bad_row_goes_into_a_file_and_the_others_into_postgres(
    tmp_path: Path, postgres_url: str, migrated: Migrated, declared: str, bad: str, becomes: Any, said: str, good: Any
) -> None:
    bad_file(tmp_path / "a.db", declared, bad, good)
    report = migrated(tmp_path / "a.db", postgres_url, on_bad="skip", bad_path=tmp_path / "bad.jsonl")
    assert report.is_same
    assert (report.tables[0].skipped, report.tables[0].compared) == (1, 3)
    assert rows_of(postgres_url, "t") == [(1, good), (2, good), (9, good)]
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["row"]["id"] == 5
    assert said in json.loads(line)["why"]["a"]
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "bad.jsonl").stat().st_mode) == 0o600
    assert migrated(tmp_path / "a.db", postgres_url, verify=True).is_same


def test_bad_value_in_a_key_is_skipped_with_its_row(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    script = "CREATE TABLE t (k TEXT PRIMARY KEY, n INT); INSERT INTO t VALUES (CAST(x'61ff' AS TEXT), 1)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [("a", 1), ("z", 2), ("m\0m", 3)]))
    report = migrated(tmp_path / "a.db", postgres_url, on_bad="skip")
    assert report.is_same
    assert rows_of(postgres_url, "t") == [("a", 1), ("z", 2)]


def test_bad_row_of_a_table_without_a_key_is_named_by_its_number(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = "CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x'), (CAST(x'ff' AS TEXT)), ('x'), ('y' || char(0))"
    fill(tmp_path / "a.db", script)
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", postgres_url)
    assert [fault.key for fault in refused.value.report.plan.faults] == ["2", "4"]
    assert migrated(tmp_path / "a.db", postgres_url, on_bad="skip").is_same
    assert rows_of(postgres_url, "t") == [("x",), ("x",)]


def test_not_a_number_in_postgres_is_found_before_a_file_is_made(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (id int PRIMARY KEY, a float8); INSERT INTO t VALUES (1, 'NaN'), (2, 'Infinity')")
    with pytest.raises(Refused) as refused:
        migrated(postgres_url, tmp_path / "a.db")
    assert [fault[:3] for fault in refused.value.report.plan.faults] == [("t", "a", "[1]")]
    assert not (tmp_path / "a.db").exists()
    assert migrated(postgres_url, tmp_path / "a.db", on_bad="replace").is_same
    assert rows_of(tmp_path / "a.db", "t") == [(1, None), (2, float("inf"))]
    assert migrated(postgres_url, tmp_path / "b.db", on_bad="skip", bad_path=tmp_path / "bad.jsonl").is_same
    assert rows_of(tmp_path / "b.db", "t") == [(2, float("inf"))]
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row"] == {"id": 1, "a": {"float": "nan"}}


def test_integers_beyond_the_range_of_a_column_that_is_there_are_found(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY, b)", ("INSERT INTO t VALUES (?, ?)", [(2**31, 1)]))
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (a integer PRIMARY KEY, b smallint)")
    with pytest.raises(Refused) as refused:
        migrated(tmp_path / "a.db", postgres_url, force=True)
    assert [fault[1:] for fault in refused.value.report.plan.faults] == [
        ("a", f"[{2**31}]", "an integer beyond the range of integer")
    ]


UNPORTABLE = """
    CREATE TABLE t (
        id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT COLLATE NOCASE, b INT CHECK (b > 0), c AS (b + 1) STORED,
        d TEXT DEFAULT (lower('X'))
    );
    CREATE INDEX some ON t (a) WHERE b > 3;
    CREATE INDEX lowered ON t (lower(a));
    CREATE UNIQUE INDEX folded ON t (a, b);
    CREATE VIEW shown AS SELECT a FROM t;
    CREATE TRIGGER watch AFTER INSERT ON t BEGIN SELECT 1; END;
    CREATE VIRTUAL TABLE words USING fts5(a);
"""


def test_what_is_not_carried_over_is_said_in_the_plan(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    fill(tmp_path / "a.db", UNPORTABLE)
    plan = migrated(tmp_path / "a.db", postgres_url, is_dry=True).plan
    (table,) = plan.tables
    for word in ("AUTOINCREMENT", "CHECK", "c is a generated column", "collation", "some", "lowered", "d: its default"):
        assert any(word in note for note in table.notes), word
    assert {"shown", "watch", "words", "words_content", "words_data"} <= {name for name, _ in plan.left_out}
    assert [index.name for index in table.indexes] == ["folded"]
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


SERVER_S_OWN = """
    CREATE TABLE p (a int, b int, PRIMARY KEY (a, b));
    CREATE TABLE q (a int PRIMARY KEY DEFERRABLE);
    CREATE TABLE t (
        id int PRIMARY KEY, a int, b int, c text NOT NULL, d text UNIQUE NULLS NOT DISTINCT,
        CONSTRAINT late UNIQUE (a) DEFERRABLE INITIALLY DEFERRED, CONSTRAINT never UNIQUE NULLS NOT DISTINCT (c),
        CONSTRAINT whole FOREIGN KEY (a, b) REFERENCES p MATCH FULL,
        CONSTRAINT one FOREIGN KEY (id) REFERENCES t MATCH FULL
    );
    CREATE INDEX ordered ON t (a NULLS FIRST, b DESC NULLS LAST, c NULLS FIRST, d);
    CREATE INDEX plain ON t (a, b DESC);
    CREATE RULE silent AS ON DELETE TO t DO INSTEAD NOTHING;
"""


def test_what_a_file_has_no_word_for_is_said_in_the_plan(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script(SERVER_S_OWN)
    parent, late, table = migrated(postgres_url, tmp_path / "a.db").plan.tables
    assert parent.notes == ()
    assert late.notes == ("the constraint q_pkey is no longer DEFERRABLE: SQLite looks at it with each row",)
    there = "which has its NULLs there on SQLite, and at the other end if it goes back"
    several = "is no longer NULLS NOT DISTINCT: SQLite lets several rows have the same values where one is NULL"
    assert set(table.notes) == {
        "the constraint late is no longer DEFERRABLE: SQLite looks at it with each row",
        "the foreign key whole loses MATCH FULL: one NULL in it, and it refers to nothing",
        "the rule silent is not carried over",
        f"the index t_d_key {several}",
        f"the index ordered: a NULLS FIRST becomes a, {there}",
        f"the index ordered: b DESC NULLS LAST becomes b DESC, {there}",
    }


def test_sets_of_walpool_are_left_to_what_knows_them(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    from walpool import memory

    with memory.open(str(tmp_path / "a.db")) as store:
        store.save([memory.Record(id="1", content="one")])
    with walpool.Pool(tmp_path / "a.db") as pool:
        pool.script("CREATE TABLE mine (id INTEGER PRIMARY KEY)")
    report = migrated(tmp_path / "a.db", postgres_url)
    assert [table.name for table in report.tables] == ["mine"]
    assert "not copied" in dict(report.plan.left_out)["memory_records"]
    assert any("walpool export" in note for note in report.plan.notes)

    seen: list[tuple[str, str]] = []

    def move(source: str, target: str, /) -> list[str]:
        seen.append((source, target))
        return ["one record differs"]

    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    moved = migrated(tmp_path / "a.db", postgres_url, movers={"memory": move})
    assert [(Settings.load(file).path, url) for file, url in seen] == [(str(tmp_path / "a.db"), postgres_url)]
    assert moved.tables[-1].buckets == ["one record differs"]
    assert not moved.is_same


def test_what_the_program_s_own_sql_has_to_follow_is_told(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, done BOOLEAN); CREATE INDEX open_ones ON t (id) WHERE done = 0"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [(1, True), (2, None)]))
    told = "done: becomes boolean: write TRUE and FALSE for 1 and 0 in SQL, and give a bool as the parameter"
    assert told in migrated(tmp_path / "a.db", postgres_url).plan.tables[0].notes
    (back,) = migrated(postgres_url, tmp_path / "b.db").plan.tables
    assert [note for note in back.notes if note.startswith("the index open_ones is on a part or expressions")]


def test_memories_that_pgvector_does_not_hold_are_refused_first(
    tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from walpool import memory

    source = str(tmp_path / "a.db")
    with memory.open(source, tenant="ann", collection="long") as store:
        store.save([memory.Record(id="1", content="one", embedding=memory.pack([0.5] * 16_001))])
    with memory.open(source, tenant="bob") as store:
        store.save([memory.Record(id="1", content="one", embedding=memory.pack([0.5] * 16_000))])
    assert cli.main(["migrate", source, postgres_url]) == 2
    assert "up to 16000 dims, and these are longer: 1 of ann/long" in capsys.readouterr().err
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    assert cli.main(["migrate", source, postgres_url, "--tenant", "bob"]) == 0


def test_target_that_is_not_empty_is_refused(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (a INTEGER PRIMARY KEY)", ("INSERT INTO t VALUES (?)", [(1,)]))
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE other (a int)")
    with pytest.raises(Refused, match=r"not empty \(other\)"):
        migrated(tmp_path / "a.db", postgres_url)
    assert migrated(tmp_path / "a.db", postgres_url, force=True).is_same
    fill(tmp_path / "b.db", "CREATE TABLE other (a)")
    with pytest.raises(Refused, match="not empty"):
        migrated(postgres_url, tmp_path / "b.db")


def test_two_of_one_backend_are_refused_and_so_is_a_source_that_is_not_there(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    with pytest.raises(ConfigError, match="both are SQLite files"):
        migrated(tmp_path / "a.db", tmp_path / "b.db")
    with pytest.raises(ConfigError, match="both are PostgreSQL"):
        migrated(postgres_url, postgres_url)
    with pytest.raises(ConfigError, match="there is no file"):
        migrated(tmp_path / "a.db", postgres_url)
    assert list(tmp_path.iterdir()) == []


def test_names_that_the_target_cannot_tell_apart_or_hold_are_refused(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", f"CREATE TABLE {'n' * 64} (a)")
    with pytest.raises(Refused, match="63 bytes"):
        migrated(tmp_path / "a.db", postgres_url)
    fill(tmp_path / "c.db", "CREATE TABLE t (xmin)")
    with pytest.raises(Refused, match="keeps that name"):
        migrated(tmp_path / "c.db", postgres_url)
    fill(tmp_path / "d.db", f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(1700))})")
    with pytest.raises(Refused, match="cannot be made"):
        migrated(tmp_path / "d.db", postgres_url)
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
        pool.script('CREATE TABLE t (a int, "A" int)')
    with pytest.raises(Refused, match="one name to SQLite"):
        migrated(postgres_url, tmp_path / "b.db")


def test_foreign_key_to_rows_that_are_not_there_is_said(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    script = "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (id INTEGER PRIMARY KEY, p INT REFERENCES p)"
    fill(tmp_path / "a.db", script, ("INSERT INTO c VALUES (?, ?)", [(1, 99)]))
    report = migrated(tmp_path / "a.db", postgres_url)
    assert report.is_same
    assert any("not for all that is there" in note for note in report.notes)
    with walpool.get_pool(postgres_url) as pool, pytest.raises(walpool.errors.IntegrityError):
        pool.execute("INSERT INTO c VALUES (2, 98)")


def test_plan_comes_back_from_its_json() -> None:
    from walpool.migrating import Barred, Element, Fault, ForeignKey, Index, LongKeys, Table

    column = Column("a", Form.NUMERIC, "NUMERIC(9,2)", "DECIMAL", default="1", sorts_alike=False, limits=(9, 2))
    array = Column("b", Form.ARRAY, "d[]", "TEXT", element=Element(Form.ENUM, ("x", "y"), 7), domain="d", behind="e")
    index, foreign = (
        Index("i", ("a",), True, (True,), ("(a)",), "a > 1"),
        ForeignKey(("a",), "p", ("b",), is_deferred=True),
    )
    long, barred = (LongKeys(("a",), (-1, 2)),), (Barred("b", "d", (-3, 4)),)
    table = Table("t", (column, array), ("a",), ("a",), (index,), (foreign,), ("a > 0",), long=long, barred=barred)
    plan = Plan("s", "t", "to_postgres", [table], [("x", "why")], ["note"], [Fault("t", "a", "[1]", "bad")], 1, ["no"])
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
