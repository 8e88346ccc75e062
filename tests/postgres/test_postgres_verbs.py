"""The verbs of the PostgreSQL pool: what each returns, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.postgres.pools import INSERT, kept, plain
from walpool import errors
from walpool.postgres import PostgresPool


def test_execute_returns_what_the_statement_wrote(pg: PostgresPool) -> None:
    result = pg.execute(INSERT, ("x",))
    assert (result.rowcount, result.lastrowid, result.columns, result.rows) == (1, None, (), [])
    assert pg.execute("UPDATE t SET n = 1 WHERE a = :a", {"a": "nobody"}).rowcount == 0
    assert pg.execute("DELETE FROM t").rowcount == 1


def test_execute_returns_the_rows_of_returning_with_their_names(pg: PostgresPool) -> None:
    result = pg.execute("INSERT INTO t (a, n) VALUES (?1, ?2), (?1 || '!', ?2) RETURNING n AS number, a", ("x", 7))
    assert (result.rowcount, result.columns, result.rows) == (2, ("number", "a"), [(7, "x"), (7, "x!")])


def test_statement_that_counts_no_rows_has_the_rowcount_of_sqlite(pg: PostgresPool) -> None:
    assert pg.execute("CREATE TABLE u (a int)").rowcount == -1
    assert pg.execute("DROP TABLE u").rowcount == -1


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (a) VALUES (?) RETURNING a",
        "WITH u AS (SELECT 1) DELETE FROM t WHERE a = ? RETURNING n",
        "SELECT ?",
        "with u as (insert into t (a) values (?)) SELECT 1",
        "VALUES (?)",
    ],
)
def test_executemany_takes_no_statement_that_returns_rows(pg: PostgresPool, sql: str) -> None:
    with pytest.raises(errors.ProgrammingError, match=r"takes no statement that returns rows: give it to batch\(\)"):
        pg.executemany(sql, [("x",)])
    with pg.transaction() as tx, pytest.raises(errors.ProgrammingError):
        tx.executemany(sql, [("x",)])
    assert kept(pg) == []


def test_executemany_of_what_only_looks_like_a_query_goes_on(pg: PostgresPool) -> None:
    pg.executemany("WITH u AS (INSERT INTO t (a) VALUES (?) RETURNING a) DELETE FROM t WHERE a = 'none'", [("x",)])
    pg.executemany('INSERT INTO t (a) SELECT ? AS "returning"', [("y",)])
    assert kept(pg) == ["x", "y"]


def test_executemany_returns_the_sum_and_no_rows(pg: PostgresPool) -> None:
    result = pg.executemany(INSERT, [("x",), ("y",), ("z",)])
    assert (result.rowcount, result.columns, result.rows) == (3, (), [])
    assert pg.executemany("UPDATE t SET n = n + 1 WHERE a <> :a", ({"a": a} for a in "xyz")).rowcount == 6
    assert pg.executemany(INSERT, []).rowcount == 0


def test_executemany_of_which_one_row_is_refused_writes_none(pg: PostgresPool) -> None:
    with pytest.raises(errors.IntegrityError, match="in row 3 of executemany") as refused:
        pg.executemany(INSERT, [("x",), ("y",), ("x",), ("z",)])
    assert refused.value.outcome == "not_applied"
    assert kept(pg) == []


def test_executemany_refuses_a_row_before_any_is_sent(pg: PostgresPool) -> None:
    with pytest.raises(errors.ProgrammingError, match="in row 2 of executemany"):
        pg.executemany(INSERT, [("x",), ("y", "z")])
    with pytest.raises(errors.ProgrammingError, match="in row 2 of executemany"):
        pg.executemany(INSERT, [("x",), (object(),)])
    assert kept(pg) == []


def test_batch_returns_a_result_for_each_statement(pg: PostgresPool) -> None:
    statements: list[Any] = [(INSERT, ("x",)), (INSERT, ("y",)), "UPDATE t SET n = 5", ("SELECT a, n FROM t", ())]
    results = pg.batch(statements)
    assert [result.rowcount for result in results] == [1, 1, 2, 2]
    assert sorted(results[3].rows) == [("x", 5), ("y", 5)]
    assert pg.batch([]) == []


def test_batch_of_which_one_statement_is_refused_writes_none(pg: PostgresPool) -> None:
    with pytest.raises(errors.IntegrityError, match="in statement 3 of the batch") as refused:
        pg.batch([(INSERT, ("x",)), (INSERT, ("y",)), (INSERT, ("x",)), "DELETE FROM t"])
    assert refused.value.outcome == "not_applied"
    assert kept(pg) == []


def test_script_runs_all_of_its_statements_or_none(pg: PostgresPool) -> None:
    pg.script("CREATE TABLE u (a int); INSERT INTO u VALUES (1); -- ;\nINSERT INTO t (a) VALUES ('a;b')")
    assert (pg.fetchval("SELECT a FROM u"), kept(pg)) == (1, ["a;b"])
    with pytest.raises(errors.DataError) as refused:
        pg.script("INSERT INTO t (a) VALUES ('half'); SELECT 1/0; INSERT INTO t (a) VALUES ('rest')")
    assert refused.value.outcome == "not_applied"
    assert kept(pg) == ["a;b"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "END"])
def test_script_does_not_end_the_transaction_that_it_runs_in(pg: PostgresPool, end: str) -> None:
    with pytest.raises(errors.ProgrammingError):
        pg.script(f"INSERT INTO t (a) VALUES ('half'); {end}; INSERT INTO t (a) VALUES ('rest')")
    assert kept(pg) == []


def test_fetch_gives_rows_as_they_are_wanted(pg: PostgresPool) -> None:
    pg.executemany("INSERT INTO t (a, n) VALUES (?, ?)", [("x", 1), ("y", 2)])
    query = "SELECT a, n FROM t ORDER BY a"
    assert pg.fetch(query) == pg.fetch(query, row=tuple) == [("x", 1), ("y", 2)]
    assert pg.fetch(query, row=dict) == [{"a": "x", "n": 1}, {"a": "y", "n": 2}]
    assert pg.fetch(query, row=lambda names, values: (names, values[1])) == [(("a", "n"), 1), (("a", "n"), 2)]
    assert pg.fetchone(query, row=dict) == {"a": "x", "n": 1}
    assert pg.fetchval("SELECT n FROM t WHERE a = :a", {"a": "y"}) == 2


def test_fetchone_and_fetchval_give_none_where_there_is_no_row(pg: PostgresPool) -> None:
    assert pg.fetchone("SELECT a FROM t") is None
    assert pg.fetchval("SELECT a FROM t") is None


@pytest.mark.parametrize(
    "write",
    [
        INSERT.replace("?", "'x'"),
        "CREATE TABLE u (a int)",
        "WITH w AS (INSERT INTO t (a) VALUES ('x') RETURNING a) SELECT a FROM w",
        "SELECT nextval('s')",
        "SELECT a FROM t FOR UPDATE",
    ],
)
def test_reads_cannot_write(pg: PostgresPool, write: str) -> None:
    pg.script("CREATE SEQUENCE s; INSERT INTO t (a) VALUES ('y')")
    with pytest.raises(errors.ProgrammingError):
        pg.fetch(write)
    with pg.read() as snapshot, pytest.raises(errors.ProgrammingError):
        snapshot.fetch(write)
    with pytest.raises((errors.ProgrammingError, errors.NotSupportedError)), pg.stream(write) as rows:
        list(rows)
    assert kept(pg) == ["y"]


def test_read_that_was_refused_leaves_its_snapshot_open(pg: PostgresPool) -> None:
    with pg.read() as snapshot:
        with pytest.raises(errors.DataError):
            snapshot.fetch("SELECT 1 / 0")
        assert snapshot.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("verb", ["execute", "executemany", "fetch", "fetchone", "fetchval"])
def test_verb_takes_one_statement(pg: PostgresPool, verb: str) -> None:
    more = [[()]] if verb == "executemany" else []
    with pytest.raises(errors.ProgrammingError, match="more than one statement"):
        getattr(pg, verb)("SELECT 1; SELECT 2", *more)


@pytest.mark.parametrize("sql", ["COPY t FROM STDIN", " copy (SELECT 1)\nTO  stdout", "/**/ COPY t TO/**/STDOUT"])
@pytest.mark.parametrize("verb", ["execute", "script", "fetch"])
def test_copy_through_the_client_is_refused_and_costs_nobody_else_anything(
    pg: PostgresPool, verb: str, sql: str
) -> None:
    with pytest.raises(errors.NotSupportedError, match="executemany") as refused:
        getattr(pg, verb)(sql)
    assert refused.value.outcome == "not_applied"
    assert pg.stats()["connections_lost"] == 0
    assert pg.execute(INSERT, ("after",)).rowcount == 1


@pytest.mark.parametrize("verb", ["checkpoint", "check", "vacuum"])
def test_what_is_the_servers_business_names_what_to_use(pg: PostgresPool, verb: str) -> None:
    with pytest.raises(errors.NotSupportedError, match="server"):
        getattr(pg, verb)()
    with pytest.raises(errors.NotSupportedError, match="pg_dump"):
        pg.backup("x")


WRONG: list[Callable[[PostgresPool], object]] = [
    lambda pool: pool.execute(INSERT, ()),
    lambda pool: pool.execute(INSERT, ("x", "y")),
    lambda pool: pool.execute(INSERT, "x"),
    lambda pool: pool.execute(INSERT, {"a": "x"}),
    lambda pool: pool.execute("INSERT INTO t (a) VALUES (:a)", ("x",)),
    lambda pool: pool.execute("INSERT INTO t (a) VALUES (:a)", {"b": "x"}),
    lambda pool: pool.execute(""),
    lambda pool: pool.execute("-- nothing"),
    lambda pool: pool.execute("SELECT '\ud800'"),
    lambda pool: pool.script("SELECT '\ud800'"),
    lambda pool: pool.fetch("SELECT '\ud800'"),
    lambda pool: pool.execute("SELECT '\0'"),
    lambda pool: pool.execute(INSERT, ("x",), key=5),  # type: ignore[arg-type]
    lambda pool: pool.script("INSERT INTO t (a) VALUES (?)"),
]


@pytest.mark.parametrize("call", WRONG)
def test_what_cannot_be_sent_is_refused_before_it_stands_in_line(
    pg: PostgresPool, call: Callable[[PostgresPool], object]
) -> None:
    before = pg.stats()
    with pytest.raises(errors.ProgrammingError) as refused:
        call(pg)
    after = pg.stats()
    assert refused.value.outcome == "not_applied"
    assert [after[name] - before[name] for name in ("groups", "jobs_failed", "jobs_withdrawn")] == [0, 0, 0]


def test_acknowledged_write_is_seen_by_everybody_at_once(pg: PostgresPool, postgres_url: str) -> None:
    with plain(postgres_url) as connection:
        for n in range(20):
            pg.execute(INSERT, (str(n),))
            assert pg.fetchval("SELECT count(*) FROM t") == n + 1
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (n + 1,)


def test_tenant_is_set_for_every_statement_of_its_pool_and_for_no_other(pg: PostgresPool, postgres_url: str) -> None:
    seen = "SELECT coalesce(current_setting('walpool.tenant', true), '')"
    with PostgresPool(postgres_url, tenant="acme") as acme:
        assert acme.fetchval(seen) == "acme"
        assert acme.execute(f"INSERT INTO t (a) {seen} RETURNING a").rows == [("acme",)]
        acme.script(f"INSERT INTO t (a) {seen.replace('SELECT ', 'SELECT 2 || ')}")
        with acme.read() as snapshot:
            assert snapshot.fetchval(seen) == "acme"
        with acme.stream(seen) as rows:
            assert list(rows) == [("acme",)]
        with acme.transaction() as tx:
            assert tx.fetchval(seen) == "acme"
        for _ in range(4):  # on each of the connections that they share
            assert pg.fetchval(seen) == ""
            assert pg.execute(seen).rows == [("",)]
    assert kept(pg) == ["2acme", "acme"]


@pytest.mark.parametrize("tenant", [5, "a\0b", "a\nb", "\ud800"])
def test_tenant_that_the_server_could_not_take_is_refused_at_once(postgres_url: str, tenant: Any) -> None:
    with pytest.raises(errors.ConfigError, match="tenant"):
        PostgresPool(postgres_url, tenant=tenant)
