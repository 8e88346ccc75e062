"""CHECKs, indexes on expressions and on a part of a table: made where they mean the same, else said."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from migrations import Migrated, fill

import walpool
from walpool.errors import IntegrityError
from walpool.migrating import Column
from walpool.migrating._conditions import checks_of, index_of
from walpool.postgres.binary import Form

SCRIPT = """
    CREATE TABLE t (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL CONSTRAINT short CHECK (length(name) BETWEEN 1 AND 9),
        state TEXT CHECK (state IN ('new', 'it''s', 'done')), n INT, x REAL, "odd ""one"" x" TEXT,
        flag BOOLEAN CHECK (flag IN (0, 1)),
        CHECK (n IS NULL OR (n >= -5 AND NOT n == 0)), CHECK (x > 0.25 OR x < -0.25), CHECK (name LIKE 'a%'),
        CHECK ("odd ""one"" x" <> '')
    );
    CREATE UNIQUE INDEX named ON t (lower(name), state DESC) WHERE state = 'new' AND n IS NOT NULL;
    CREATE INDEX trimmed ON t (trim("odd ""one"" x") DESC, n);
    CREATE INDEX dated ON t (n) WHERE n > strftime('%s', '2024-01-01');
"""


def test_conditions_hold_in_postgres_as_they_did_in_the_file(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    row = "INSERT INTO t (id, name, state, n, x, flag) VALUES "
    fill(tmp_path / "a.db", SCRIPT + f"; {row} (1, 'abc', 'new', 3, 0.5, 1), (2, 'ABD', 'it''s', -5, NULL, 0)")
    report = migrated(tmp_path / "a.db", postgres_url)
    assert (report.is_same, report.notes) == (True, [])
    said = report.plan.tables[0].notes
    assert "1 of its CHECKs are not carried over: add them by hand" in said
    assert [note for note in said if "the index dated" in note]
    with walpool.get_pool(postgres_url) as pool:
        for bad in (
            "(9, '', 'new', 1, 1, 1)",
            "(9, '1234567890', 'new', 1, 1, 1)",
            "(9, 'a', 'other', 1, 1, 1)",
            "(9, 'a', 'new', -6, 1, 1)",
            "(9, 'a', 'new', 0, 1, 1)",
            "(9, 'a', 'new', 1, 0.25, 1)",
            "(9, 'AbC', 'new', 1, 1, 1)",
        ):
            with pytest.raises(IntegrityError):
                pool.execute(row + bad.replace(", 1)", ", TRUE)"))
        pool.execute(row + "(9, 'AbC', 'done', 1, 1, TRUE), (10, 'AbC', 'new', NULL, 1, NULL)")
        made = dict(pool.fetch("SELECT indexname, indexdef FROM pg_indexes"))
    assert "lower(name), state DESC) WHERE" in made["named"]
    assert "DESC, n)" in made["trimmed"]
    assert "dated" not in made


def test_check_that_rows_do_not_meet_is_said(tmp_path: Path, postgres_url: str, migrated: Migrated) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, n INT CHECK (n > 0))")
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute("INSERT INTO t VALUES (1, -1)")
    other.close()
    report = migrated(tmp_path / "a.db", postgres_url)
    assert report.is_same
    assert any('the CHECK ("n" > (0)) holds for what is written from now on' in note for note in report.notes)


COLUMNS = [
    Column("i", Form.BIGINT, "BIGINT", "INTEGER"),
    Column("j", Form.BIGINT, "BIGINT", ""),
    Column("x", Form.DOUBLE, "DOUBLE PRECISION", "REAL"),
    Column("s", Form.TEXT, "TEXT", "TEXT"),
    Column("u", Form.TEXT, "TEXT", "VARCHAR(9)"),
    Column("d", Form.TEXT, "TEXT", "DATE"),
    Column("b", Form.BYTEA, "BYTEA", "BLOB"),
    Column("f", Form.BOOLEAN, "BOOLEAN", "BOOLEAN"),
]


@pytest.mark.parametrize(
    "condition",
    [
        "i",
        "i = '5'",
        "s = 5",
        "s > i",
        "i < x",
        "d > '2020'",
        "s LIKE 'a%'",
        "s GLOB 'a*'",
        "i + 1 > 0",
        "i / 2 = 1",
        's = "word"',
        "i IS 5",
        "i IS NOT j",
        "i IN (SELECT 1)",
        "i IN (1, NULL)",
        "i = NULL",
        "b = x'00'",
        "typeof(i) = 'integer'",
        "lower(i) = 'a'",
        "s = 'a' COLLATE NOCASE",
        "i = 1 = 1",
        "i > 1e3",
        "i > 0x10",
        "x > 0.1234567890123456",
        "missing > 1",
        "CASE WHEN i > 1 THEN 1 ELSE 0 END",
        "json_valid(s)",
        "f",
        "i > 1 /* or so */",
        "coalesce(i, 1) > 0",
        "s || 'a' = 'ba'",
        "'a' < 'B'",
        "lower('Ä') = s",
    ],
)
def test_condition_that_may_mean_something_else_is_not_carried_over(condition: str) -> None:
    assert checks_of(f"CREATE TABLE t (i INTEGER, CHECK ({condition}))", COLUMNS) == ([], 1)
    made = f"CREATE INDEX n ON t (i) WHERE {condition}"
    assert index_of(made, "n", "CREATE TABLE t (i INTEGER)", COLUMNS, is_unique=False) is None


def test_nothing_is_carried_over_from_a_table_with_a_collation_of_its_own() -> None:
    ddl = "CREATE TABLE t (i INTEGER CHECK (i > 0), s TEXT COLLATE NOCASE, CHECK (s <> 'x'))"
    assert checks_of(ddl, COLUMNS) == ([], 2)
    assert index_of("CREATE INDEX n ON t (i) WHERE i > 0", "n", ddl, COLUMNS, is_unique=False) is None


INTEGERS = st.sampled_from(["i", "j", "f", '"I"', "-1", "0", "2", "(3)", "length(s)", "LENGTH(trim(u))"])
REALS = st.sampled_from(["x", "X", "0.5", "-2", "0"])
TEXTS = st.sampled_from(["s", "u", "'a'", "'B '", "''", "'ä'", "'2'", "lower(s)", "Upper(u)", "(ltrim(s))", "rtrim(u)"])


def compared(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["=", "==", "<>", "!=", "<", "<=", ">", ">="])
    no = st.sampled_from(["", "NOT "])
    return st.one_of(
        st.tuples(values, signs, values).map(" ".join),
        st.builds("{} {}BETWEEN {} AND {}".format, values, no, values, values),
        st.builds("{} {}IN ({}, {})".format, values, no, values, values),
        st.builds("{} IS {}NULL".format, values, no),
    )


CONDITIONS = st.recursive(
    compared(INTEGERS) | compared(REALS) | compared(TEXTS),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "or"]), inner).map(" ".join),
        st.builds("NOT {}".format, inner),
        st.builds("({})".format, inner),
    ),
    max_leaves=5,
)
ROWS: list[tuple[Any, ...]] = [
    (None, None, None, None, None, None, None, None),
    (0, 2, 0.5, "a", "B ", "2", b"", 0),
    (-1, 3, -2.0, "ä", "", "", b"x", 1),
    (2, 0, 0.0, " A", "2", "", b"x", 1),
    (3, 2**62, 1e300, "Ab", "Ä ", "", b"x", None),
]


@pytest.fixture(scope="module")
def both(own_postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.postgres.plugin import new_database

    path = tmp_path_factory.mktemp("both") / "a.db"
    listed = ", ".join(f"{column.name} {column.sqlite}" for column in COLUMNS)
    with new_database(own_postgres_server) as url, walpool.Pool(path) as file, walpool.get_pool(url) as server:
        file.script(f"CREATE TABLE t ({listed})")
        file.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(COLUMNS))})", ROWS)
        listed = ", ".join(
            f"{column.name} {column.postgres}" + (' COLLATE "C"' if column.form is Form.TEXT else "")
            for column in COLUMNS
        )
        server.script(f"CREATE TABLE t (number int, {listed})")
        for number, (*row, flag) in enumerate(ROWS, 1):
            given_row = (number, *row, None if flag is None else bool(flag))
            server.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(given_row))})", given_row)
        yield file, server


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=CONDITIONS)
def test_condition_that_is_carried_over_holds_for_the_same_rows(condition: str, both: Any) -> None:
    file, server = both
    made, others = checks_of(f"CREATE TABLE t (i INTEGER, CHECK ({condition}))", COLUMNS)
    assert others + len(made) == 1
    for each in made:
        ours = file.fetch(f"SELECT rowid, CASE WHEN {condition} THEN 1 WHEN NOT ({condition}) THEN 0 END FROM t")
        theirs = server.fetch(f"SELECT number, CASE WHEN {each} THEN 1 WHEN NOT ({each}) THEN 0 END FROM t ORDER BY 1")
        assert ours == theirs
