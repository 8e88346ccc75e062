"""When foreign keys are looked at: in the target as in the source."""

from __future__ import annotations

from pathlib import Path

import pytest
from migrations import Migrated, fill

import walpool
from walpool.errors import IntegrityError
from walpool.migrating._sqlite_text import deferred

LATE = "DEFERRABLE INITIALLY DEFERRED"
DEFERRED = f"""
    CREATE TABLE p (id INTEGER PRIMARY KEY);
    CREATE TABLE late (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id) {LATE});
    CREATE TABLE soon (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id));
"""


def test_deferred_foreign_key_is_deferred_in_postgres_and_in_a_file_again(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", DEFERRED, ("INSERT INTO p VALUES (?)", [(1,)]))
    assert migrated(tmp_path / "a.db", postgres_url).is_same
    assert migrated(postgres_url, tmp_path / "b.db").is_same
    for place in (postgres_url, str(tmp_path / "b.db")):
        with walpool.get_pool(place) as pool:
            pool.batch([("INSERT INTO late VALUES (5, 7)", ()), ("INSERT INTO p VALUES (7)", ())])
            with pytest.raises(IntegrityError):
                pool.execute("INSERT INTO late VALUES (6, 8)")
            with pytest.raises(IntegrityError):
                pool.batch([("INSERT INTO soon VALUES (5, 9)", ()), ("INSERT INTO p VALUES (9)", ())])


def test_each_of_a_table_s_foreign_keys_keeps_its_own_time(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    script = f"""
        CREATE TABLE p (id INTEGER PRIMARY KEY, q INTEGER UNIQUE);
        CREATE TABLE c (
            a INTEGER PRIMARY KEY REFERENCES p (id), [references] INT REFERENCES p (q) CHECK (a > 0) {LATE},
            d INT REFERENCES p NOT {LATE}, e INT REFERENCES p NOT NULL DEFERRABLE, -- REFERENCES p {LATE}
            FOREIGN KEY (d) REFERENCES p (q), FOREIGN KEY (e) REFERENCES p (q) {LATE.lower()}
        );
    """
    fill(tmp_path / "a.db", script)
    (child, _) = migrated(tmp_path / "a.db", postgres_url).plan.tables
    late = {(each.columns, each.parent_columns) for each in child.foreign if each.is_deferred}
    assert len(child.foreign) == 6
    assert late == {(("references",), ("q",)), (("e",), ("q",))}
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND condeferred") == [(2,)]


@pytest.mark.parametrize(
    ("clauses", "expected"),
    [
        ("a REFERENCES p", [False]),
        (f"a REFERENCES p {LATE}", [True]),
        ("a REFERENCES p DEFERRABLE INITIALLY IMMEDIATE", [False]),
        (f"a REFERENCES p NOT {LATE}", [False]),
        (f"a REFERENCES p NOT NULL {LATE}", [True]),
        (f'a REFERENCES p CONSTRAINT "{LATE}" NULL, b REFERENCES p {LATE}', [False, True]),
        (f"a {LATE} REFERENCES p /* {LATE} */", [False]),
        (f"a REFERENCES p {LATE} DEFERRABLE", [False]),
        (f"a TEXT {LATE}", []),
    ],
)
def test_when_a_foreign_key_is_looked_at_is_read_as_sqlite_reads_it(clauses: str, expected: list[bool]) -> None:
    ddl = f"CREATE TABLE c ({clauses})"
    assert deferred(ddl) == expected
    with walpool.Pool(":memory:") as pool:  # whatever it is by the text, it is so to SQLite
        pool.script(f"CREATE TABLE p (id INTEGER PRIMARY KEY); {ddl}")
        for place, is_late in enumerate(expected):
            column = "ab"[place]
            jobs = [(f"INSERT INTO c ({column}) VALUES (1)", ()), ("INSERT INTO p VALUES (1)", ())]
            if is_late:
                pool.batch(jobs)
            else:
                with pytest.raises(IntegrityError):
                    pool.batch(jobs)
            pool.script("DELETE FROM c; DELETE FROM p")


def test_foreign_key_to_a_table_without_a_primary_key_is_said(
    tmp_path: Path, postgres_url: str, migrated: Migrated
) -> None:
    fill(tmp_path / "a.db", "CREATE TABLE p (id INT); CREATE TABLE c (id INTEGER PRIMARY KEY, p INT REFERENCES p)")
    (child, _) = migrated(tmp_path / "a.db", postgres_url, is_dry=True).plan.tables
    assert "the foreign key (p) is not carried over: p has no such primary key" in child.notes
