"""Rows of one INSERT that go to the server as one statement: which do, and that nobody can tell but by the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walpool import errors
from walpool.postgres import PostgresPool, _jobs
from walpool.postgres._translate import translate

NUMBERED = """
CREATE TABLE numbered (a text PRIMARY KEY, n bigint);
CREATE TABLE seen (statements bigint);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO seen VALUES (1); RETURN NULL; END';
CREATE TRIGGER see AFTER INSERT ON numbered EXECUTE FUNCTION see();
"""
SKIPPING = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
    IF NEW.n < 0 THEN RETURN NULL; END IF; RETURN NEW; END';
CREATE TRIGGER skip BEFORE INSERT ON numbered FOR EACH ROW EXECUTE FUNCTION skip();
"""
INSERT = "INSERT INTO numbered (a, n) VALUES (?, ?)"
NAMED = "INSERT INTO numbered (a, n) VALUES (:a, CAST(:n AS bigint))"


@pytest.fixture
def numbered(pg: PostgresPool) -> PostgresPool:
    """Return a pool with a table that counts the statements which insert into it."""
    pg.script(NUMBERED)
    return pg


def statements(pool: PostgresPool) -> int:
    count = pool.fetchval("SELECT count(*) FROM seen")
    pool.execute("DELETE FROM seen")
    return int(count)


@pytest.mark.parametrize(
    ("sql", "three"),
    [
        ("INSERT INTO t (a) VALUES (?)", "INSERT INTO t (a) VALUES ($1), ($2)"),
        ("insert into t values (:a, :b, :a) ;", "insert into t values ($1, $2, $1), ($3, $4, $3)"),
        ("INSERT INTO t VALUES (?::json, -1)", "INSERT INTO t VALUES ($1::json, -1), ($2::json, -1)"),
        ("INSERT INTO t VALUES ('$1', ?) -- one", "INSERT INTO t VALUES ('$1', $1), ('$1', $2)"),
        ('INSERT INTO "values" VALUES (?)', 'INSERT INTO "values" VALUES ($1), ($2)'),
        ("INSERT INTO t AS x VALUES (?, DEFAULT)", "INSERT INTO t AS x VALUES ($1, DEFAULT), ($2, DEFAULT)"),
    ],
)
def test_rows_of_parameters_and_constants_are_folded(sql: str, three: str) -> None:
    translated = translate(sql)
    assert translated.fold is not None
    row = list(range(translated.count))
    texts = [(text.decode(), list(values), size) for text, values, size in translated.fold.folded([row] * 3)]
    assert texts[0] == (three, row * 2, 2)
    assert [size for _, _, size in texts] == [2, 1]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (a) VALUES (?) ON CONFLICT DO NOTHING",
        "INSERT INTO t (a) VALUES (?) ON CONFLICT (a) DO UPDATE SET a = excluded.a",
        "INSERT INTO t (a) VALUES (?) RETURNING a",
        "INSERT INTO t (a) VALUES (?), (?)",
        "INSERT INTO t (a) VALUES (nextval('x') + ?)",
        "INSERT INTO t (a) VALUES ((SELECT ?))",
        "INSERT INTO t (a) VALUES ('constant')",
        "INSERT INTO t (a) SELECT * FROM (VALUES (?)) AS v",
        "INSERT INTO t DEFAULT VALUES",
        "WITH x AS (SELECT 1) INSERT INTO t (a) VALUES (?)",
        "INSERT INTO t (a) SELECT ? UNION VALUES (?)",
        "INSERT INTO t (a) TABLE s UNION ALL VALUES (?)",
        "INSERT INTO t (a) WITH x AS (SELECT 1) VALUES (?)",
        "INSERT INTO t (a[?]) VALUES (?)",
        "UPDATE t SET a = ?",
        "VALUES (?)",
    ],
)
def test_other_statements_are_not_folded(sql: str) -> None:
    assert translate(sql).fold is None


def test_rows_go_in_pieces_of_a_power_of_two_within_the_protocols_limit() -> None:
    narrow, wide = (
        translate("INSERT INTO t VALUES (?)").fold,
        translate(f"INSERT INTO t VALUES ({', '.join('?' * 5_000)})").fold,
    )
    assert narrow is not None
    assert wide is not None
    assert [size for _, _, size in narrow.folded([[1]] * 203)] == [64, 64, 64, 8, 2, 1]
    assert [size for _, _, size in wide.folded([[1] * 5_000] * 21)] == [8, 8, 4, 1]


def test_arms_of_a_query_and_numbered_elements_are_stored_as_by_single_statements(pg: PostgresPool) -> None:
    pg.script("CREATE TABLE arms (n bigint); CREATE TABLE elements (n bigint[])")
    pg.executemany("INSERT INTO arms (n) SELECT ?::bigint UNION VALUES (?::bigint)", [(1, 2), (3, 4)])
    assert pg.fetch("SELECT n FROM arms ORDER BY n") == [(1,), (2,), (3,), (4,)]
    pg.executemany("INSERT INTO elements (n[?]) VALUES (?)", [(1, 2), (3, 4)])
    assert pg.fetch("SELECT n::text FROM elements ORDER BY 1") == [("[3:3]={4}",), ("{2}",)]


def test_statement_that_is_refused_beside_folded_rows_is_named_at_once(numbered: PostgresPool) -> None:
    numbered.script("CREATE SEQUENCE tries")  # what it gives is not taken back when a transaction is rolled back
    with pytest.raises(errors.DataError, match="in statement 4 of the batch"):
        numbered.batch([(INSERT, ("a", 1)), (INSERT, ("b", 2)), "SELECT nextval('tries')", "SELECT 1 / 0"])
    assert numbered.fetchval("SELECT last_value FROM tries") == 1


def test_rows_of_a_very_large_job_go_one_by_one() -> None:
    class Asked(list[int]):
        def ask(self, sql: bytes, rows: list[object]) -> None:
            self.append(len(rows))

    job = _jobs.many("INSERT INTO t VALUES (?)", [(n,) for n in range(4)])
    small, large = Asked(), Asked()
    assert job.ask(small, folded=True) == [4]  # type: ignore[arg-type]
    assert dataclasses.replace(job, size=2**28).ask(large, folded=True) == [1] * 4  # type: ignore[arg-type]
    assert (small, large) == ([1], [4])


def test_batch_and_executemany_answer_as_if_each_row_had_gone_by_itself(numbered: PostgresPool) -> None:
    done = numbered.batch(
        [*((INSERT, (f"a{n}", n)) for n in range(16)), (INSERT.replace("VALUES", "values"), ("b", 1))]
    )
    assert [each.rowcount for each in done] == [1] * 17
    assert statements(numbered) == 2
    assert (
        numbered.executemany(
            NAMED.replace("CAST(:n AS bigint)", ":n"), [{"a": f"c{n}", "n": n} for n in range(100)]
        ).rowcount
        == 100
    )
    assert statements(numbered) == 3  # 64, 32 and 4
    assert numbered.fetchval("SELECT count(*) FROM numbered") == 117


def test_refused_row_is_named_and_its_neighbours_jobs_are_not_harmed(numbered: PostgresPool) -> None:
    rows = [(f"a{n}", n) for n in range(20)]
    with pytest.raises(errors.IntegrityError, match="in row 8 of executemany") as refused:
        numbered.executemany(INSERT, [*rows[:7], ("a3", 0), *rows[7:]])
    assert refused.value.outcome == "not_applied"
    with pytest.raises(errors.IntegrityError, match="in statement 3 of the batch"):
        numbered.batch([(INSERT, ("x", 1)), (INSERT, ("y", 1)), (INSERT, ("x", 1))])
    assert numbered.fetchval("SELECT count(*) FROM numbered") == 0


def test_rows_that_a_trigger_skips_are_counted_one_by_one(numbered: PostgresPool) -> None:
    numbered.script(SKIPPING)
    done = numbered.batch([(INSERT, (f"a{n}", n - 2)) for n in range(5)])
    assert [each.rowcount for each in done] == [0, 0, 1, 1, 1]
    assert numbered.executemany(INSERT, [(f"b{n}", n - 2) for n in range(5)]).rowcount == 3
    assert numbered.fetchval("SELECT count(*) FROM numbered") == 6


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.sampled_from(["7", "-3"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(VALUES, min_size=2, max_size=40))
def test_what_is_stored_is_what_single_statements_store(numbered: PostgresPool, rows: list[object]) -> None:
    numbered.script("DELETE FROM numbered")
    single, folded = (
        [(f"s{n:03}", value) for n, value in enumerate(rows)],
        [(f"f{n:03}", value) for n, value in enumerate(rows)],
    )
    for row in single:
        numbered.execute(INSERT, row)
    numbered.batch([(INSERT, row) for row in folded])
    stored = [n for (n,) in numbered.fetch("SELECT n FROM numbered ORDER BY a")]
    assert stored[: len(rows)] == stored[len(rows) :]


ALIKE: dict[str, tuple[str, str, list[tuple[object, ...]]]] = {
    "partitions": (
        (
            "CREATE TABLE x (a int, b text) PARTITION BY LIST (a); CREATE TABLE x1 PARTITION OF x FOR VALUES IN (1);"
            "CREATE TABLE x2 PARTITION OF x DEFAULT"
        ),
        "INSERT INTO x VALUES (?, ?)",
        [(1, "one"), (2, 7), (None, None)],
    ),
    "INSTEAD OF": (
        (
            "CREATE TABLE base (a int); CREATE VIEW x AS SELECT a FROM base; CREATE FUNCTION put() RETURNS trigger"
            " LANGUAGE plpgsql AS 'BEGIN IF NEW.a > 1 THEN RETURN NULL; END IF;"
            " INSERT INTO base VALUES (NEW.a); RETURN NEW; END';"
            "CREATE TRIGGER put INSTEAD OF INSERT ON x FOR EACH ROW EXECUTE FUNCTION put()"
        ),
        "INSERT INTO x (a) VALUES (?)",
        [(1,), (2,), (0,), (3,)],
    ),
    "view": (
        (
            "CREATE TABLE base (a int, b int DEFAULT 5); CREATE VIEW x AS SELECT a, b FROM base WHERE a > 0"
            " WITH CHECK OPTION; ALTER VIEW x ALTER b SET DEFAULT 6"
        ),
        "INSERT INTO x VALUES (?, DEFAULT)",
        [(1,), (2,)],
    ),
    "rule also": (
        (
            "CREATE TABLE x (a int, b int DEFAULT 9); CREATE TABLE seen (a int);"
            "CREATE RULE r AS ON INSERT TO x DO ALSO INSERT INTO seen VALUES (NEW.a + NEW.b)"
        ),
        "INSERT INTO x (a, b) VALUES (?, DEFAULT)",
        [(1,), (2,), (3,)],
    ),
    "rule instead": (
        (
            "CREATE TABLE x (a int); CREATE TABLE seen (a int);"
            "CREATE RULE r AS ON INSERT TO x WHERE NEW.a > 1 DO INSTEAD INSERT INTO seen VALUES (NEW.a)"
        ),
        "INSERT INTO x (a) VALUES (?)",
        [(1,), (2,), (3,)],
    ),
    "rule nothing": (
        "CREATE TABLE x (a int); CREATE RULE r AS ON INSERT TO x DO INSTEAD NOTHING",
        "INSERT INTO x (a) VALUES (?)",
        [(1,), (2,)],
    ),
    "identity": (
        "CREATE TABLE x (a int GENERATED ALWAYS AS IDENTITY, b int, c int GENERATED ALWAYS AS (b * 2) STORED)",
        "INSERT INTO x (a, b, c) VALUES (DEFAULT, ?, DEFAULT)",
        [(1,), (2,), (3,)],
    ),
    "overriding": (
        "CREATE TABLE x (a int GENERATED ALWAYS AS IDENTITY, b int)",
        "INSERT INTO x AS y (a, b) OVERRIDING SYSTEM VALUE VALUES (?, ?)",
        [(5, 1), (6, 2)],
    ),
    "domains and arrays": (
        "CREATE DOMAIN small AS int CHECK (VALUE < 9); CREATE TABLE x (a small, b bigint[], c small[])",
        "INSERT INTO x VALUES (?, ?::bigint[], ?)",
        [(1, "{1,2}", "{3}"), (None, None, None), (8, "{}", "{8,NULL}")],
    ),
    "an element": ("CREATE TABLE x (a int[])", "INSERT INTO x (a[1], a[3]) VALUES (?, ?)", [(1, 2), (3, 4)]),
    "fields": (
        "CREATE TYPE pair AS (u int, v text); CREATE TABLE x (p pair, q pair)",
        "INSERT INTO x (p.u, p.v, q) VALUES (?, ?, ?::pair)",
        [(1, "a", "(2,b)"), (None, "c", None), ("3", None, "(,)")],
    ),
    "types": (
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE x (a mood, b jsonb, c numeric, d bytea, e timestamptz)",
        "INSERT INTO x VALUES (?, ?::jsonb, ?, ?, ?)",
        [
            ("sad", "[1]", 1, b"x", "2026-01-01"),
            (None, None, 1.5, None, None),
            ("glad", "{}", "7.25", b"", "2026-02-03"),
        ],
    ),
    "mixed": (
        "CREATE TABLE x (a text, b double precision, c boolean)",
        "INSERT INTO x VALUES (?, ?, ?)",
        [(1, 1, True), ("x", 1.5, False), (None, None, None), (2.5, "3", "yes"), (True, -1, 0)],
    ),
    "names and comments": (
        'CREATE TABLE x ("values (?)" text, größe text, c text)',
        "INSERT /* /* $1 */ ? */ INTO x (\"values (?)\", größe, c) -- VALUES (?)\n VALUES (?, E'it\\'s $1 ?', $$(?)$$)",
        [("a",), ("b",), ("c",)],
    ),
    "refused": ("CREATE TABLE x (a int CHECK (a < 3))", "INSERT INTO x VALUES (?)", [(1,), (2,), (3,), (4,)]),
    "not a number": ("CREATE TABLE x (a int)", "INSERT INTO x VALUES (?)", [(1,), ("x",)]),
}


@pytest.mark.parametrize("case", ALIKE)
def test_folded_rows_do_what_single_statements_do(pg: PostgresPool, case: str) -> None:
    schema, sql, rows = ALIKE[case]
    assert translate(sql).fold is not None or "[" in sql

    def one_by_one() -> list[int]:
        with pg.transaction() as tx:
            return [tx.execute(sql, row).rowcount for row in rows]

    def came_to(call: Callable[[], list[int]]) -> tuple[list[int] | str, list[list[object]]]:
        pg.script(f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {schema}")
        counts: list[int] | str
        try:
            counts = call()
        except errors.Error as error:
            counts = type(error).__name__
        tables = [
            name
            for (name,) in pg.fetch(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
            )
        ]
        return counts, [pg.fetch(f"SELECT x::text FROM {name} AS x ORDER BY 1") for name in tables]

    counts, stored = came_to(one_by_one)
    assert came_to(lambda: [each.rowcount for each in pg.batch([(sql, row) for row in rows])]) == (counts, stored)
    total = counts if isinstance(counts, str) else [sum(counts)]
    assert came_to(lambda: [pg.executemany(sql, rows).rowcount]) == (total, stored)


def test_unknown_column_beside_a_parameter_is_not_told_to_be_one(pg: PostgresPool) -> None:
    with pytest.raises(errors.ProgrammingError) as refused:
        pg.execute("INSERT INTO t (nonesuch) VALUES (?)", (1,))
    assert "?1" not in str(refused.value)
    assert "nonesuch" in str(refused.value)


def test_deferred_constraint_is_told_at_the_commit_of_folded_rows(numbered: PostgresPool, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("ALTER TABLE numbered ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(errors.IntegrityError) as refused:
        numbered.batch([(INSERT, (f"a{n}", n % 3)) for n in range(4)])
    assert refused.value.outcome == "not_applied"
    assert numbered.fetchval("SELECT count(*) FROM numbered") == 0
