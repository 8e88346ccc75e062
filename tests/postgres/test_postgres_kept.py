"""Statements that stay prepared in a session: what is kept, how many, and that no change of the schema is ever felt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from benches.postgres_server import Databases
from tests.postgres.plugin import new_database
from tests.postgres.pools import INSERT, TABLE, plain
from walpool import errors
from walpool.postgres import PostgresPool
from walpool.postgres._kept import MOST_TEXT, Kept, Statement

INT, TEXT = 20, 0
SQL = b"SELECT $1"


def asked(kept: Kept, sql: bytes = SQL, types: tuple[int, ...] = (INT,)) -> Any:
    found = kept.find((sql, types))
    return None if found is None else (found.name, found.is_new)


def test_statement_is_kept_from_the_second_time_on() -> None:
    kept = Kept(2)
    assert asked(kept) is None
    assert asked(kept) == (b"walpool_kept_1", True)
    assert asked(kept) == (b"walpool_kept_1", False)
    assert kept.take_gone() == []


def test_the_one_not_used_for_longest_goes() -> None:
    kept = Kept(2)
    for sql in (b"a", b"a", b"b", b"b", b"a", b"c"):
        asked(kept, sql)
    assert kept.take_gone() == [b"walpool_kept_2"]
    assert kept.take_gone() == []
    assert asked(kept, b"a") == (b"walpool_kept_1", False)


def test_with_other_types_it_is_another_statement() -> None:
    kept = Kept(2)
    assert asked(kept, types=(TEXT,)) is None
    assert asked(kept) is None
    assert asked(kept) == (b"walpool_kept_1", True)
    assert asked(kept, types=(TEXT,)) == (b"walpool_kept_2", True)
    assert asked(kept) == (b"walpool_kept_1", False)


@pytest.mark.parametrize(
    "sql", [b"SELECT 'now'::date", b"SELECT DATE 'Tomorrow'", b"INSERT INTO t VALUES ('today 7:00')"]
)
def test_what_depends_on_the_moment_is_not_kept(sql: bytes) -> None:
    kept = Kept(2)
    assert [asked(kept, sql) for _ in range(3)] == [None] * 3
    assert [asked(kept, b"SELECT now()") for _ in range(2)] == [None, (b"walpool_kept_1", True)]


def test_what_was_barred_is_not_kept_again() -> None:
    kept = Kept(2)
    asked(kept), asked(kept)
    kept.bar((SQL, (INT,)))
    assert kept.take_gone() == [b"walpool_kept_1"]
    assert [asked(kept) for _ in range(3)] == [None] * 3


def test_what_is_long_or_forgotten_is_not_kept() -> None:
    kept = Kept(2)
    assert {asked(kept, b"x" * (MOST_TEXT + 1)) for _ in range(3)} == {None}
    assert {asked(Kept(0)) for _ in range(3)} == {None}
    asked(kept), asked(kept)
    kept.forget([(SQL, (INT,)), (b"another", ())])
    assert kept.take_gone() == [b"walpool_kept_1"]
    assert asked(kept) is None
    assert kept.find((SQL, (INT,))) == Statement(b"walpool_kept_2", is_new=True)


# On a server.

MINE = "SELECT statement FROM pg_prepared_statements"
DROP_ALL = "DO 'BEGIN EXECUTE ''DEALLOCATE ALL''; END'"


@pytest.fixture
def one(postgres_url: str) -> Iterator[PostgresPool]:
    """Yield a pool with one reader, on an empty table t; its sessions keep four statements each."""
    with PostgresPool(postgres_url, readers=1, statement_cache=4) as pool:
        pool.script(TABLE)
        yield pool


def test_session_keeps_so_many(one: PostgresPool) -> None:
    for n in range(9):
        for _ in range(3):
            assert one.fetchval(f"SELECT {n} + ?", (1,)) == n + 1
    kept = [sql for (sql,) in one.fetch(MINE)]
    assert "SELECT 8 + $1" in kept
    assert len(kept) <= 4


def test_nothing_is_kept_where_a_pooler_stands_between(pgbouncer_url: str) -> None:
    with PostgresPool(pgbouncer_url, readers=1) as pool:
        assert pool.is_pooled
        for _ in range(3):
            pool.execute("SELECT ?", (1,))
            assert pool.fetch(MINE) == []


def test_nothing_is_kept_where_the_setting_says_so(postgres_url: str) -> None:
    with PostgresPool(postgres_url, readers=1, statement_cache=0) as pool:
        assert [pool.fetch(MINE) for _ in range(4)] == [[]] * 4


def test_what_fails_leaves_the_session_in_step(one: PostgresPool) -> None:
    for n in range(6):
        one.execute(INSERT, (str(n),))
        with pytest.raises(errors.IntegrityError):
            one.batch([(INSERT, (f"new {n}",)), (INSERT, (str(n),)), ("UPDATE t SET n = ? WHERE a = ?", (n, str(n)))])
        with pytest.raises(errors.ProgrammingError):
            one.fetch("SELECT nothing FROM t")
        one.batch([("UPDATE t SET n = ? WHERE a = ?", (n, str(n))), (INSERT, (f"also {n}",))])
    assert one.fetchone("SELECT count(*), sum(n) FROM t") == (12, 15)


@pytest.mark.parametrize(
    ("sql", "params", "change", "expected"),
    [
        ("SELECT * FROM t WHERE a = ?", ("x",), "ALTER TABLE t ADD COLUMN b int DEFAULT 7", ("x", 1, 7)),
        ("SELECT n FROM t", (), "ALTER TABLE t ALTER COLUMN n DROP DEFAULT, ALTER COLUMN n TYPE text", ("1",)),
        ("SELECT n FROM t WHERE a = ?", ("x",), "DROP TABLE t; CREATE TABLE t AS SELECT text 'x' AS a, 2 AS n", (2,)),
        ("UPDATE t SET a = a RETURNING *", (), "ALTER TABLE t ADD COLUMN b int DEFAULT 7", ("x", 1, 7)),
        (
            "UPDATE t SET n = ? RETURNING n",
            (True,),
            "ALTER TABLE t ALTER n DROP DEFAULT, ALTER n TYPE bool USING n > 0",
            (True,),
        ),
    ],
)
def test_nobody_feels_that_the_schema_changes(
    one: PostgresPool, postgres_url: str, sql: str, params: tuple[Any, ...], change: str, expected: tuple[Any, ...]
) -> None:
    one.execute("INSERT INTO t (a, n) VALUES (?, ?)", ("x", 1))
    ask = one.fetch if sql.startswith("SELECT") else lambda *given: one.execute(*given).rows
    for _ in range(7):  # after five the server plans it once for all
        ask(sql, params)
    with plain(postgres_url) as owner:
        owner.execute(change)
    assert [ask(sql, params) for _ in range(4)] == [[expected]] * 4


@pytest.mark.parametrize("cache", [0, 4])
def test_nobody_feels_that_a_batch_changes_the_schema_for_itself(postgres_url: str, cache: int) -> None:
    clear, widen = ("DELETE FROM t WHERE a = ? RETURNING *", ("x",)), "ALTER TABLE t ADD COLUMN b{} int"
    with PostgresPool(postgres_url, statement_cache=cache) as pool:
        pool.script(TABLE)
        for n in range(4):
            found = pool.batch([clear, ("SELECT 1", ()), clear, widen.format(n), clear])
            assert [len(result.columns) for result in found] == [2 + n, 1, 2 + n, 0, 3 + n]


ALTERED = [
    ("date", "timestamp", "2024-01-01 10:30", "timestamp '2024-01-01 10:30'"),
    ("bigint", "text", "007", "'007'"),
    ("timestamp", "timestamptz", "2024-01-01 10:30+05", "timestamptz '2024-01-01 05:30Z'"),
    ("real", "float8", "0.1", "0.1"),
    ("bool", "text", "yes", "'yes'"),
    ("char(9)", "text", "a  ", "'a  '"),
    ("varchar(9)", "date", "2024-01-01", "date '2024-01-01'"),
    ("text", "jsonb", '{"b": 1, "a": 2}', """'{"a": 2, "b": 1}'"""),
]


@pytest.mark.parametrize(("before", "after", "given", "expected"), ALTERED)
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_text_is_read_as_the_column_that_is_there_now(
    one: PostgresPool, postgres_url: str, where: str, before: str, after: str, given: str, expected: str
) -> None:
    one.script(f"CREATE TABLE c (x {before})")
    change = f"ALTER TABLE c ALTER x TYPE {after} USING NULL"
    for _ in range(6):
        one.execute("INSERT INTO c (x) VALUES (?)", (None,))
        with suppress(errors.Error):
            one.execute("INSERT INTO c (x) VALUES (?)", (given,))
    with plain(postgres_url) as owner:
        if where == "outside":
            owner.execute(change)
            one.execute("INSERT INTO c (x) VALUES (?)", (given,))
        else:
            one.batch([("INSERT INTO c (x) VALUES (?)", (None,)), change, ("INSERT INTO c (x) VALUES (?)", (given,))])
    assert one.fetchval(f"SELECT count(*) FROM c WHERE x = {expected}") == 1


@pytest.mark.parametrize(
    ("sql", "is_kept"),
    [
        ("SELECT * FROM t WHERE a = ?", True),
        ("SELECT * FROM t WHERE n = ?", False),
        ("SELECT * FROM t WHERE n = ?::bigint AND ?1 = '1'", False),
        ("SELECT * FROM t WHERE n = ?::bigint", True),
        ("SELECT * FROM t WHERE n = CAST(? AS bigint)", True),
        ("SELECT ?::bigint AS n FROM t WHERE n = ?1", False),
    ],
)
def test_statement_that_leaves_the_type_of_a_text_to_a_column_is_not_kept(
    one: PostgresPool, sql: str, is_kept: bool
) -> None:
    for _ in range(4):
        one.fetch(sql, ("1",))
    assert (sql.replace("?1", "$1").replace("?", "$1") in [kept for (kept,) in one.fetch(MINE)]) == is_kept


def test_null_has_no_type_of_an_earlier_call(one: PostgresPool) -> None:
    for _ in range(3):
        with pytest.raises(errors.ProgrammingError):
            one.fetch("SELECT a FROM t WHERE a = ?", (1,))
        assert one.fetch("SELECT a FROM t WHERE a = ?", (None,)) == []
        assert one.fetchval("SELECT greatest(?, 10, 9)", (11,)) == 11
        assert one.fetchval("SELECT greatest(?, '10', '9')", (11,)) == 11
        assert one.fetchval("SELECT greatest(?, '10', '9')", (None,)) == "9"
    one.executemany("INSERT INTO t (a) SELECT coalesce(?, '007')", [(5,), (None,)])
    assert one.fetch("SELECT a FROM t ORDER BY a") == [("007",), ("5",)]


def test_literal_of_the_moment_is_that_of_each_call(one: PostgresPool) -> None:
    at = [one.execute("INSERT INTO t (a, n) VALUES ('now'::timestamptz::text, ?) RETURNING a", (n,)) for n in range(6)]
    assert len({result.rows[0][0] for result in at}) == 6


def test_temporary_table_takes_the_rows_that_follow_it(one: PostgresPool) -> None:
    for n in range(4):
        for m in range(3):
            one.execute(INSERT, (f"{n} {m}",))
        one.batch(["CREATE TEMP TABLE t (a text) ON COMMIT DROP", (INSERT, ("of the temporary one",))])
    assert one.fetchval("SELECT count(*) FROM t") == 12


def test_transaction_survives_that_all_statements_are_dropped_in_it(one: PostgresPool) -> None:
    for n in range(2):
        with one.transaction() as tx:
            for m in range(3):
                tx.execute(INSERT, (f"{n} {m}",))
            tx.execute(DROP_ALL)
            tx.execute(INSERT, (f"{n} last",))
    assert one.fetchval("SELECT count(*) FROM t") == 8


def test_statements_that_somebody_dropped_are_prepared_again(one: PostgresPool) -> None:
    for n in range(12):
        one.execute(INSERT, (str(n),))
        assert one.fetchval("SELECT count(*) FROM t") == n + 1
        if n % 3 == 2:
            one.execute(DROP_ALL)
    assert one.stats()["jobs_failed"] == 0


STEPS = st.sampled_from(
    [
        ("INSERT INTO t (a, n) VALUES (?, ?)", ("x", 1)),
        ("INSERT INTO t (a, n) VALUES (?, ?)", ("y", None)),
        ("INSERT INTO t (a, n) VALUES (?, ?)", ("z", "word")),
        ("INSERT INTO t (a, n) VALUES (?, ?)", (None, True)),
        ("DELETE FROM t WHERE a = ? RETURNING *", ("x",)),
        ("DELETE FROM t WHERE n > ? RETURNING n", (0,)),
        ("UPDATE t SET n = ? RETURNING a, n", (3,)),
        ("ALTER TABLE t ADD COLUMN b int DEFAULT 7", ()),
        ("ALTER TABLE t DROP COLUMN b", ()),
        ("ALTER TABLE t ALTER COLUMN n TYPE text", ()),
        ("ALTER TABLE t ALTER COLUMN n TYPE bigint USING 4", ()),
    ]
)


@pytest.fixture(scope="module")
def two(postgres_server: Databases) -> Iterator[list[PostgresPool]]:
    """Yield pools of two databases: one that keeps three statements, one that keeps none."""
    with (
        new_database(postgres_server) as first,
        new_database(postgres_server) as second,
        PostgresPool(first, readers=1, statement_cache=3) as keeps,
        PostgresPool(second, readers=1, statement_cache=0) as keeps_none,
    ):
        yield [keeps, keeps_none]


@given(st.lists(st.lists(STEPS, min_size=1, max_size=3) | st.just([(DROP_ALL, ())]), max_size=25))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_changes_no_answer(two: list[PostgresPool], jobs: list[list[tuple[str, Any]]]) -> None:
    for pool in two:
        pool.script("DROP TABLE IF EXISTS t; CREATE TABLE t (a text PRIMARY KEY, n bigint)")
    for job in jobs:
        assert outcome(two[0], job) == outcome(two[1], job)


def outcome(pool: PostgresPool, statements: list[tuple[str, Any]]) -> Any:
    """Return what a job came to, and what the table then is."""
    try:
        came = [(result.rowcount, sorted(result.rows, key=repr)) for result in pool.batch(statements)]
    except errors.Error as error:
        came = [type(error), str(error).partition(" [")[0]]
    return came, sorted(pool.fetch("SELECT * FROM t"), key=repr)


def test_reader_of_its_own_refuses_writes_by_itself(one: PostgresPool, postgres_url: str) -> None:
    """No BEGIN goes before a plain read there, which is what kept it from writing."""
    for sql in ("INSERT INTO t (a) VALUES ('x') RETURNING a", "SELECT * FROM t FOR UPDATE", "CREATE TABLE u (a int)"):
        for _ in range(3):
            with pytest.raises(errors.ProgrammingError, match="read-only transaction"):
                one.fetch(sql)
    assert one.fetchval("SHOW transaction_read_only") == "on"
    assert one.fetchval("SHOW transaction_read_only", timeout=5) == "on"
    assert one.execute("SHOW transaction_read_only").rows == [("off",)]
    with one.transaction() as tx:
        assert tx.fetchval("SHOW transaction_read_only") == "off"
