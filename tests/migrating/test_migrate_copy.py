"""A database that was migrated holds what its source holds: every table, type, name and key, there and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from migrations import Migrated, fill, rows_of

import walpool
from walpool.migrating import migrate

NAMES = ["parents", "children", "log", "empty", 'select "odd" from']


def test_file_goes_to_postgres_and_back_with_every_row_as_it_was(
    everything: Path, postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    there = migrated(everything, postgres_url)
    back = migrated(postgres_url, tmp_path / "back.db")
    assert there.is_same
    assert back.is_same
    for name in NAMES:
        got = rows_of(tmp_path / "back.db", name)
        if name == "parents":  # numeric comes back as text, as the plan says
            got = sorted(((*row[:3], float(row[3])) for row in got), key=repr)
            assert got == sorted(((*row[:3], float(row[3])) for row in rows_of(everything, name)), key=repr)
        else:
            assert got == rows_of(everything, name)
    assert [(table.name, table.copied, table.compared) for table in there.tables] == [
        ("children", 2500, 2500),
        ("empty", 0, 0),
        ("log", 3, 3),
        ("parents", 3, 3),
        ('select "odd" from', 2, 2),
    ]


def test_tables_have_their_types_keys_indexes_and_defaults_in_postgres(
    everything: Path, postgres_url: str, migrated: Migrated
) -> None:
    migrated(everything, postgres_url)
    with walpool.get_pool(postgres_url) as pool:
        types = pool.fetch(
            "SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns "
            "WHERE table_name IN ('parents', 'children') ORDER BY table_name, ordinal_position"
        )
        definitions = [row[0] for row in pool.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'children'")]
        pool.execute("INSERT INTO log (level) VALUES (DEFAULT)")
        made = pool.fetch("SELECT said, level, length(at) FROM log WHERE level = 3")
        with pytest.raises(walpool.errors.IntegrityError):
            pool.execute("INSERT INTO children (tenant, number, parent) VALUES ('x', 1, 99)")
        with pytest.raises(walpool.errors.IntegrityError):
            pool.execute("INSERT INTO parents (id, name) VALUES (1, 'least')")
        pool.execute("DELETE FROM parents WHERE id = 7")
        assert pool.fetchval("SELECT count(*) FROM children") == 0
    assert types == [
        ("children", "tenant", "text", "C"),
        ("children", "number", "bigint", None),
        ("children", "parent", "bigint", None),
        ("children", "body", "bytea", None),
        ("children", "score", "double precision", None),
        ("children", "data", "json", None),
        ("parents", "id", "bigint", None),
        ("parents", "name", "text", "C"),
        ("parents", "flag", "boolean", None),
        ("parents", "price", "numeric", None),
    ]
    assert sum("(score DESC, parent)" in definition for definition in definitions) == 1
    assert sum("UNIQUE" in definition and "(tenant, number)" in definition for definition in definitions) == 1
    assert made == [("nothing", 3, 19)]


def test_numbers_of_an_integer_primary_key_go_on_in_postgres(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(
        tmp_path / "a.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)",
        ("INSERT INTO t VALUES (?, ?)", [(41, "a")]),
    )
    migrated(tmp_path / "a.db", postgres_url)
    with walpool.get_pool(postgres_url) as pool:
        assert pool.execute("INSERT INTO t (a) VALUES ('b') RETURNING id").rows == [(42,)]


def test_text_key_in_an_order_of_its_own_is_compared_by_hash(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    rows = [(f"{chr(65 + n % 26)}{chr(97 + n % 25)}{n}", n) for n in range(300)]
    script = "CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY, n INT)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", rows))
    report = migrated(tmp_path / "a.db", postgres_url)
    assert report.is_same
    assert not report.plan.tables[0].is_ordered
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("UPDATE t SET n = n + 1 WHERE k = 'Aa0'")
        pool.execute("DELETE FROM t WHERE k = 'Bb1'")
    found = migrated(tmp_path / "a.db", postgres_url, verify=True).tables[0]
    assert (found.changed, found.missing, found.extra) == ([["Aa0"]], [["Bb1"]], [])
    assert 1 <= len(found.buckets) <= 2


def test_table_without_a_key_keeps_rows_that_are_there_twice(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    rows = [(1, "a"), (1, "a"), (2, None), (None, None)] * 50
    fill(tmp_path / "a.db", "CREATE TABLE t (rowid INTEGER, b TEXT)", ("INSERT INTO t VALUES (?, ?)", rows))
    assert migrated(tmp_path / "a.db", postgres_url).is_same
    assert rows_of(postgres_url, "t") == sorted(rows, key=repr)
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)")
    assert not migrated(tmp_path / "a.db", postgres_url, verify=True).is_same
    assert migrated(tmp_path / "a.db", postgres_url, repair=True).is_same
    assert migrated(postgres_url, tmp_path / "back.db").is_same
    assert rows_of(tmp_path / "back.db", "t") == sorted(rows, key=repr)


def test_primary_key_that_holds_nulls_becomes_a_unique_index(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = "CREATE TABLE t (a TEXT PRIMARY KEY, b INT)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", [(None, 1), (None, 2), ("x", 3)]))
    report = migrated(tmp_path / "a.db", postgres_url)
    assert report.is_same
    assert any("NULL" in note for note in report.plan.tables[0].notes)
    with walpool.get_pool(postgres_url) as pool, pytest.raises(walpool.errors.IntegrityError):
        pool.execute("INSERT INTO t VALUES ('x', 4)")


def test_blobs_of_1536_dims_come_over_in_pages_of_a_few_mebibytes(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    rows = [(n, n.to_bytes(2, "big") * 3072) for n in range(3000)]
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, embedding BLOB)"
    fill(tmp_path / "a.db", script, ("INSERT INTO t VALUES (?, ?)", rows))
    report = migrated(tmp_path / "a.db", postgres_url)
    assert report.is_same
    assert report.plan.tables[0].page < 3000
    assert rows_of(postgres_url, "t") == sorted(rows, key=repr)


TYPES_OF_POSTGRES = """
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
    CREATE TABLE t (
        id uuid PRIMARY KEY, small smallint, whole positive, money numeric(12, 4), single real, at timestamptz,
        day date, span interval, words text[], doc jsonb, feeling mood, raw bytea, yes boolean, net inet, padded char(5)
    );
    INSERT INTO t VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', -3, 4, 12.5000, 0.1, '2024-02-29 23:59:59.123456+02',
        '2024-02-29', '1 day 2 hours', '{a,"b,c",NULL}', '{"b": 1, "a": 2}', 'bad', '\\x00ff', true, '10.0.0.1/8',
        'ab');
    INSERT INTO t (id) SELECT gen_random_uuid() FROM generate_series(1, 300);
    CREATE TABLE at (at timestamptz PRIMARY KEY, n numeric UNIQUE NOT NULL);
    INSERT INTO at SELECT to_timestamp(n * 1e5), n FROM generate_series(1, 300) AS n;
    CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text NOT NULL DEFAULT 'x');
    INSERT INTO numbered (a) VALUES ('one'), ('two');
    CREATE TABLE part (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
    INSERT INTO part VALUES (1, 1), (2, 2);
    CREATE VIEW v AS SELECT 1;
"""


def test_types_that_sqlite_lacks_become_their_text(postgres_url: str, tmp_path: Path, migrated: Migrated) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script(TYPES_OF_POSTGRES)
    report = migrated(postgres_url, tmp_path / "a.db")
    assert report.is_same
    with walpool.Pool(tmp_path / "a.db") as pool:
        row = pool.fetchone("SELECT * FROM t WHERE small IS NOT NULL")
        assert pool.execute("INSERT INTO numbered (a) VALUES ('three')").lastrowid == 3
        assert pool.fetchval("SELECT count(*) FROM part") == 2
    assert row == (
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", -3, 4, "12.5000", pytest.approx(0.1), "2024-02-29 21:59:59.123456+00",
        "2024-02-29", "P1DT2H", '["a","b,c",null]', '{"a": 2, "b": 1}', "bad", b"\x00\xff", 1, "10.0.0.1/8", "ab",
    )  # fmt: skip
    notes = {note for table in report.plan.tables for note in table.notes}
    assert "money: numeric(12,4) becomes its text" in notes
    assert dict(report.plan.left_out) == {
        "part_1": "a partition: its rows go with the table that it is a part of",
        "v": "a view: make it anew in the target",
    }


def test_rows_of_a_server_come_in_the_order_of_their_keys_and_not_of_the_keys_texts(
    postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE t (id numeric PRIMARY KEY); INSERT INTO t VALUES (9), (10), (100)")
    assert migrated(postgres_url, tmp_path / "a.db").is_same
    assert rows_of(tmp_path / "a.db", "t") == [("10",), ("100",), ("9",)]


def test_rows_that_changed_in_postgres_are_repaired_in_the_file(
    postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script(TYPES_OF_POSTGRES)
        assert migrated(postgres_url, tmp_path / "a.db").is_same
        pool.execute("UPDATE at SET n = n + 1000 WHERE n <= 3")
        pool.execute("DELETE FROM t WHERE small IS NULL")
        pool.execute("INSERT INTO numbered (a) VALUES ('three')")
    before = migrated(postgres_url, tmp_path / "a.db", verify=True)
    counts = {table.name: (len(table.missing), len(table.changed), len(table.extra)) for table in before.tables}
    assert counts == {"at": (0, 3, 0), "numbered": (1, 0, 0), "part": (0, 0, 0), "t": (0, 0, 300)}
    after = migrated(postgres_url, tmp_path / "a.db", repair=True)
    assert after.is_same
    assert after.repaired == 304


INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INTEGER": INTEGERS,
    "REAL": FLOATS,
    "TEXT": TEXTS,
    "BLOB": st.binary(max_size=8),
    "BOOLEAN": st.sampled_from([0, 1]),
}
# SQLite's identifiers are one where they differ in the case of ASCII letters only.
IDENTIFIERS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Lu"]), min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]], int, list[tuple[Any, ...]]]:
    """Return a table's name, its columns, how many of them are its key, and its rows."""
    name = draw(IDENTIFIERS.filter(lambda name: not name.startswith("sqlite_")))
    names = draw(st.lists(IDENTIFIERS, min_size=1, max_size=4, unique=True))
    columns = [(column, draw(st.sampled_from(sorted(VALUES)))) for column in names]
    width = draw(st.integers(0, len(columns)))
    parts = [VALUES[kind] if at < width else st.none() | VALUES[kind] for at, (_, kind) in enumerate(columns)]
    rows = draw(st.lists(st.tuples(*parts), max_size=12, unique_by=(lambda row: row[:width]) if width else None))
    return name, columns, width, rows


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables())
def test_any_table_comes_back_as_it_was(
    drawn: tuple[str, list[tuple[str, str]], int, list[tuple[Any, ...]]],
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name, columns, width, rows = drawn
    folder = tmp_path_factory.mktemp("any")
    key = f", PRIMARY KEY ({', '.join(quoted(column) for column, _ in columns[:width])})" if width else ""
    listed = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns)
    marks = ", ".join("?" * len(columns))
    fill(
        folder / "a.db",
        f"CREATE TABLE {quoted(name)} ({listed}{key})",
        (f"INSERT INTO {quoted(name)} VALUES ({marks})", rows),
    )
    with walpool.get_pool(postgres_url) as pool:
        pool.script("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert migrate(str(folder / "a.db"), postgres_url).is_same
    assert migrate(postgres_url, str(folder / "b.db")).is_same
    assert [tuple(map(exact, row)) for row in rows_of(folder / "b.db", name)] == [
        tuple(map(exact, row)) for row in rows_of(folder / "a.db", name)
    ]


def exact(value: Any) -> Any:
    return value.hex() if isinstance(value, float) and not math.isinf(value) else value


def test_table_of_a_server_that_looks_like_crewais_of_a_file_is_ones_own(
    postgres_url: str, tmp_path: Path, migrated: Migrated
) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE checkpoints (id TEXT, created_at TEXT, parent_id TEXT, branch TEXT, data TEXT)")
        pool.execute("INSERT INTO checkpoints VALUES ('a', 'b', NULL, 'c', 'd')")
    assert migrated(postgres_url, tmp_path / "a.db").is_same
    assert rows_of(tmp_path / "a.db", "checkpoints") == [("a", "b", None, "c", "d")]
