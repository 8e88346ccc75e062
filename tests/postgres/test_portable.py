"""What only SQLite takes is refused or explained, what would change the session is refused, and nothing else is.

Each claim about PostgreSQL is put to a server too, where one can run: what is refused as SQLite's own is an error
there, what passes is none, the server's own messages lead to the hints, and what the hints say runs on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import walpool
from benches.postgres_server import Databases
from tests.postgres.plugin import new_database
from walpool.errors import ProgrammingError
from walpool.postgres._portable import _REFUSED, _SYNTAX, _UNKNOWN, hint
from walpool.postgres._translate import parse, translate

SQLITE_ONLY = [
    ("INSERT OR IGNORE INTO t VALUES (1)", "ON CONFLICT DO NOTHING"),
    ("insert /* or */ or -- x\n ignore into t values (?)", "ON CONFLICT DO NOTHING"),
    ("EXPLAIN INSERT OR IGNORE INTO t VALUES (1)", "ON CONFLICT DO NOTHING"),
    ("WITH x AS (SELECT 1) INSERT OR IGNORE INTO t SELECT * FROM x", "ON CONFLICT DO NOTHING"),
    ("UPDATE OR IGNORE t SET a = 1", "ON CONFLICT DO NOTHING"),
    ("INSERT OR REPLACE INTO t VALUES (1)", r"ON CONFLICT \(key\) DO UPDATE SET col = excluded.col"),
    ("REPLACE INTO t VALUES (1)", r"ON CONFLICT \(key\) DO UPDATE"),
    ("UPDATE OR ROLLBACK t SET a = 1", "leave them out"),
    ("INSERT OR FAIL INTO t VALUES (1)", "leave them out"),
    ("INSERT OR ABORT INTO t VALUES (1)", "leave them out"),
    ("CREATE TABLE x (a INT UNIQUE ON CONFLICT REPLACE)", "write it in the INSERT"),
    ("PRAGMA user_version", "settings of the pool"),
    ("ATTACH 'x' AS y", "open another pool"),
    ("DETACH y", "open another pool"),
    ("EXPLAIN QUERY PLAN SELECT 1", "write EXPLAIN,"),
    ("CREATE VIRTUAL TABLE x USING fts5(a)", "to_tsvector"),
    ("CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM t; END", "EXECUTE FUNCTION"),
    ("CREATE TABLE x (id INTEGER PRIMARY KEY AUTOINCREMENT)", "IDENTITY"),
    ("CREATE TABLE x (id INTEGER PRIMARY KEY DESC AUTOINCREMENT, b TEXT)", "IDENTITY"),
    ("CREATE TABLE x (a TEXT PRIMARY KEY) WITHOUT ROWID", "WITHOUT ROWID is SQLite's own: leave it out"),
    ("CREATE TABLE IF NOT EXISTS s.x (a TEXT, b TEXT DEFAULT ('a')) STRICT", "STRICT is SQLite's own: leave it out"),
    ("CREATE TABLE x (a TEXT PRIMARY KEY) STRICT, WITHOUT ROWID", "leave it out"),
    ("CREATE TABLE x (a TEXT PRIMARY KEY) WITHOUT ROWID, STRICT", "leave it out"),
    ("SELECT a FROM t LIMIT 5, 10", "LIMIT count OFFSET offset"),
    ("SELECT a FROM t LIMIT ?, ?", "LIMIT count OFFSET offset"),
    ("SELECT (SELECT a FROM t LIMIT :a, :b), 1", "LIMIT count OFFSET offset"),
    ("SELECT a FROM t WHERE a IS ?", "IS NOT DISTINCT FROM"),
    ("SELECT a FROM t WHERE a IS NOT ?1", "IS DISTINCT FROM"),
    ("SELECT a FROM t WHERE a IS 1", "IS NOT DISTINCT FROM"),
    ("COMMENT ON TABLE t IS ?", "take no parameter: write the text in quotes"),
    ("COMMENT ON COLUMN t.a IS :a", "take no parameter"),
    ("SECURITY LABEL ON TABLE t IS ?", "take no parameter"),
    ("SELECT a FROM t WHERE b GLOB ?", "write LIKE"),
    ("SELECT a FROM t WHERE b MATCH :a", "write LIKE"),
    ("SELECT a FROM t WHERE b NOT REGEXP ?", "write LIKE"),
    ("SELECT a FROM t WHERE d ? 'key'", r"are written \?\?"),
    ("SELECT a FROM t WHERE d ?| array['a', 'b']", r"are written \?\?"),
    ("SELECT 1; REPLACE INTO t VALUES (1)", "ON CONFLICT"),
]
TRANSACTIONS = [
    "BEGIN", "begin immediate", "COMMIT", "END", "ROLLBACK", "ROLLBACK TO a", "ABORT", "SAVEPOINT a", "RELEASE a",
    "START TRANSACTION", "PREPARE TRANSACTION 'a'", "COMMIT PREPARED 'a'", "/* x */ ; Commit", "SELECT 1; COMMIT",
    "SELECT 1 AS case; END; COMMIT", "CREATE FUNCTION f(begin int) RETURNS int RETURN 1; COMMIT", "SELECT ')'; COMMIT",
]  # fmt: skip
SESSIONS = [
    ("SET search_path = x", "SET LOCAL"),
    ("SET SESSION a.b TO 1", "SET LOCAL"),
    ("SET ROLE x", "SET LOCAL"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET LOCAL"),
    ("SET TRANSACTION READ WRITE", r"fetch\(\) or read\(\)"),
    ("SET LOCAL transaction_read_only = off", r"fetch\(\) or read\(\)"),
    ("SELECT set_config('a.b', ?, false)", r"set_config\(..., true\)"),
    ("SELECT pg_catalog.set_config('a.b', 'x', is_local => false)", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', ?, ?)", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', 'x', 'f')", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', 'x', 1 = 2)", r"set_config\(..., true\)"),
    ("SELECT set_config(lower('a.b'), 'y', false)", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', coalesce(upper('y'), 'x'), NOT true)", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', 'x', true), set_config('a.b', 'x', :a), true)", r"set_config\(..., true\)"),
    ("SELECT set_config('a.b', 'x', is_local := false)", r"set_config\(..., true\)"),
    ("RESET ALL", "SET LOCAL"),
    ("DISCARD ALL", "SET LOCAL"),
    ("LOAD 'x'", "SET LOCAL"),
    ("PREPARE x AS SELECT 1", "give its SQL"),
    ("DEALLOCATE ALL", "give its SQL"),
    ("DECLARE x CURSOR WITH HOLD FOR SELECT 1", "stream"),
    ("LISTEN x", "connection of your own"),
    ("UNLISTEN *", "connection of your own"),
    ("CREATE TEMP TABLE x (a INT)", "ordinary table or a WITH clause"),
    ("CREATE LOCAL TEMPORARY TABLE x (a INT)", "ordinary table"),
    ("CREATE OR REPLACE TEMP VIEW x AS SELECT 1", "ordinary table"),
    ("CREATE TEMP TABLE x (a INT) ON COMMIT PRESERVE ROWS", "ordinary table"),
    ("SELECT pg_advisory_lock(1)", "pg_advisory_xact_lock"),
    ("SELECT pg_catalog.pg_try_advisory_lock_shared(1, 2)", "pg_advisory_xact_lock"),
    ("SELECT pg_advisory_unlock_all()", "pg_advisory_xact_lock"),
]

# What a rule might take for something else: all of it is PostgreSQL. In this order, on the tables below.
SETTING = """
    CREATE TABLE t (a INT PRIMARY KEY, b TEXT, d JSONB, n INT[]);
    CREATE TABLE u (ignore BOOL, insert BOOL, "limit" INT, hex TEXT, key INT, without INT, match TEXT, glob TEXT);
    ALTER TABLE u ADD COLUMN begin INT;
    CREATE FUNCTION instr(a text, b text) RETURNS int RETURN strpos(a, b);
    CREATE SCHEMA mine;
    CREATE FUNCTION mine.pg_advisory_lock(a int) RETURNS int RETURN a;
    CREATE FUNCTION mine.limit(a int) RETURNS int RETURN a;
    CREATE COLLATION nocase FROM "C";
    CREATE OPERATOR == (leftarg = int, rightarg = int, function = int4eq);
"""
LEGAL = [
    "INSERT INTO t VALUES (1, 'INSERT OR IGNORE INTO t', '{\"a\": 1}', '{1,2}') ON CONFLICT DO NOTHING",
    "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
    "SELECT insert OR ignore FROM u",
    "SELECT hex, instr(b, 'x'), glob, match FROM t, u",
    "SELECT u.limit, key autoincrement, without rowid, a strict FROM t, u",
    "SELECT a AS limit, b AS glob, 1 AS is, 2 AS begin FROM t",
    "SELECT a glob, a match FROM t",
    'SELECT a "IS", b FROM t WHERE b IS NULL AND a IS NOT NULL AND true IS NOT TRUE AND a IS DISTINCT FROM 1',
    "SELECT '{}' IS JSON, 'a' IS NORMALIZED, 'a' IS NFC NORMALIZED",
    "SELECT n[1], n[1:2], ARRAY[1, 2], ARRAY[[1], [2]], ARRAY[a] FROM t",
    "SELECT a FROM t WHERE d ?? 'key' OR d ??| array['a'] OR d ??& array['a'] OR d @?? '$.a'",
    "SELECT a FROM t WHERE b COLLATE nocase = 'x'",
    "SELECT 1 == 1",
    "SELECT a FROM t LIMIT 5 OFFSET 10",
    "SELECT (SELECT a FROM t LIMIT 5), 1",
    "SELECT mine.limit(1), 2",
    "SELECT mine.pg_advisory_lock(1), pg_advisory_xact_lock(1), set_config('a.b', 'x', true)",
    "SELECT set_config(lower('A.b'), coalesce(upper('y'), 'x'), TRUE)",
    "COMMENT ON TABLE t IS 'of tests'",
    "COMMENT ON TABLE t IS NULL",
    "SELECT $$ BEGIN; COMMIT; PRAGMA x $$, 'LISTEN', \"begin\" FROM (SELECT 1 AS begin) x",
    "CREATE TABLE x1 (a BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, b INT GENERATED ALWAYS AS (1) STORED)",
    "CREATE TABLE x2 AS SELECT abs(1) strict",
    "CREATE TABLE x3 (a) AS SELECT abs(a) strict FROM t",
    "CREATE TABLE x4 (pragma INT, temp INT, begin INT, release INT, attach INT)",
    "CREATE TEMP TABLE x5 (a INT) ON COMMIT DROP",
    "CREATE FUNCTION f1(a int) RETURNS int LANGUAGE sql STRICT RETURN $1 + 1",
    "CREATE FUNCTION f2() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END AS end; SELECT 2; END",
    "CREATE FUNCTION f3() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; RETURN NEW; END $$",
    "CREATE TRIGGER begin BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f3()",
    "CREATE TRIGGER a BEFORE UPDATE OF begin ON u FOR EACH ROW EXECUTE FUNCTION f3()",
    "CREATE RULE r AS ON DELETE TO x1 DO ALSO (SELECT 1; SELECT 2)",
    "DO $$ BEGIN PERFORM 1; END $$",
    "UPDATE t SET b = 'x' WHERE a = 1",
    "DELETE FROM t USING u WHERE ignore",
    "SET LOCAL statement_timeout = 1000",
    "SET CONSTRAINTS ALL DEFERRED",
    "NOTIFY x",
    "DECLARE c CURSOR FOR SELECT 1",
    "LOCK TABLE t",
    "EXPLAIN SELECT 1",
    "VALUES (1)",
    "TABLE t",
]

# What only the server can refuse, and what is said then.
HINTED = [
    ("SELECT ifnull(a, 1) FROM t", "coalesce(a, b)"),
    ("SELECT IIF(true, 1, 2)", "CASE WHEN"),
    ("SELECT max(a, 1) FROM t", "CASE WHEN"),
    ("SELECT total(a) FROM t", "coalesce(sum(x), 0)"),
    ("SELECT group_concat(b, ',') FROM t", "string_agg"),
    ("SELECT json_extract(d, '$.a') FROM t", "->>"),
    ("SELECT * FROM json_each(CAST('{}' AS TEXT))", "CAST(x AS JSON)"),
    ("SELECT strftime('%Y', 'now')", "CURRENT_TIMESTAMP"),
    ("SELECT datetime('now')", "CURRENT_TIMESTAMP"),
    ("SELECT unixepoch()", "CURRENT_TIMESTAMP"),
    ("SELECT julianday('now')", "CURRENT_TIMESTAMP"),
    ("SELECT last_insert_rowid()", "RETURNING"),
    ("SELECT changes()", "rowcount"),
    ("SELECT total_changes()", "rowcount"),
    ("SELECT instr(1, 2)", "LIKE"),
    ("SELECT printf('%d', 1)", "format("),
    ("SELECT hex('a')", "encode("),
    ("SELECT randomblob(1)", "in Python"),
    ("SELECT typeof(1)", "pg_typeof"),
    ("SELECT round(CAST(1 AS DOUBLE PRECISION), 2)", "round(CAST(x AS NUMERIC), n)"),
    ("SELECT rowid FROM t", "own key"),
    ("SELECT b FROM t ORDER BY b COLLATE nocasé", None),
    ("SELECT t._rowid_ FROM t", "own key"),
    ("SELECT oid FROM t", "own key"),
    ("CREATE TABLE y (a BLOB)", "BYTEA"),
    ("CREATE TABLE y (a DOUBLE)", "DOUBLE PRECISION"),
    ("CREATE TABLE y (a DATETIME)", "BIGINT or TIMESTAMP"),
    ("SELECT name FROM sqlite_master", "information_schema"),
    ("SELECT 'a' == 'b'", "write ="),
    ("SELECT `a` FROM t", '"name" for `name`'),
    ("SELECT [a] FROM t", '"name" for [name]'),
    ("SELECT a FROM [t]", '"name" for [name]'),
    ("SELECT $a", ":name for $name"),
    ("SELECT $1", "?1 for $1"),
    ("SELECT a FROM t WHERE b GLOB 'a*'", "LIKE"),
    ("SELECT a FROM t WHERE b MATCH 'a'", "LIKE"),
    ("SELECT a FROM t WHERE b IS 'a'", "IS NOT DISTINCT FROM"),
    ("SELECT a FROM t WHERE b IS NOT b", "IS DISTINCT FROM"),
    ("SELECT a FROM t LIMIT 1 + 1, 2", "OFFSET"),
    ("SELECT a FROM t INDEXED BY i", "INDEXED BY"),
    ("INSERT INTO t (a) VALUES (1) ON CONFLICT DO UPDATE SET b = 'a'", "name the key"),
    ("SELECT a FROM t WHERE ? IS NULL", "CAST(? AS TEXT)"),
    ("DECLARE walpool_rows NO SCROLL CURSOR FOR DELETE FROM t", "the statement writes"),
    ("DECLARE walpool_rows NO SCROLL CURSOR FOR EXPLAIN SELECT 1", "use fetch()"),
    ("SELECT a FROM u, t WHERE ignore = 1", "TRUE and FALSE for 1 and 0"),
    ("SELECT a FROM t, u WHERE 0 <> ignore", "TRUE and FALSE"),
    ("SELECT a FROM t WHERE a", "n <> 0 where a number n is the condition"),
    ("INSERT INTO u (ignore) VALUES (1)", "give a bool as the parameter"),
    ("INSERT INTO t (a) VALUES (1 < 2)", "CASE WHEN flag THEN 1 ELSE 0 END"),
    ("SELECT sum(ignore) FROM u", "count(*) FILTER (WHERE flag)"),
    ("SELECT a FROM t WHERE b = 1", "give a str where a text is compared"),
    ("SELECT a FROM t, u WHERE b < a", "CAST(x AS TEXT)"),
    ("SELECT substr(b, CAST(1 AS BIGINT), ?) FROM t", "CAST(? AS INTEGER)"),
    ("SELECT d -> CAST(? AS BIGINT) FROM t", "CAST(? AS INTEGER)"),
    ("SELECT current_date + CAST(? AS BIGINT)", "CAST(? AS INTEGER)"),
    ("SELECT CAST(? AS BIGINT) + current_date", "CAST(? AS INTEGER)"),
    ("SELECT substr(b, CAST(1 AS BIGINT)) FROM t", None),
    ("INSERT INTO t (d) VALUES (CAST(? AS BIGINT))", None),
    ("COMMENT ON TABLE missing IS 'x'", None),
    ("INSERT INTO t (d) VALUES (1)", None),
    ("SELECT nothing(CAST(1 AS DOUBLE PRECISION))", None),
    ("SELECT nothing FROM t", None),
    ("SELECT hex FROM t", None),
    ("SELECT a AS limit FROM t, u WHERE", None),
    ("SELECT a AS is FROM t WHERE", None),
    ("SELEC 1", None),
]


@pytest.mark.parametrize(("sql", "expected"), SQLITE_ONLY, ids=lambda value: value[:60])
def test_sql_of_sqlite_alone_is_refused_with_what_to_write(sql: str, expected: str) -> None:
    with pytest.raises(ProgrammingError, match=expected):
        translate(sql)


@pytest.mark.parametrize("sql", TRANSACTIONS)
def test_transactions_are_left_to_the_pool(sql: str) -> None:
    with pytest.raises(ProgrammingError, match=r"^walpool begins and ends transactions itself: use batch"):
        translate(sql)


@pytest.mark.parametrize("sql", ["BEGIN", "COMMIT", "SAVEPOINT a", "CREATE TEMP TABLE x (a INT)"])
def test_refusals_are_in_the_words_of_the_engine(sql: str) -> None:
    with walpool.Pool(":memory:") as pool, pytest.raises(ProgrammingError) as on_engine:
        pool.execute(sql)
    with pytest.raises(ProgrammingError) as caught:
        translate(sql)
    assert str(on_engine.value).startswith(str(caught.value))


@pytest.mark.parametrize(("sql", "expected"), SESSIONS, ids=lambda value: value[:60])
def test_what_would_change_the_session_is_refused(sql: str, expected: str) -> None:
    with pytest.raises(ProgrammingError, match=expected):
        translate(sql)


@pytest.mark.parametrize("sql", LEGAL, ids=lambda value: value[:60])
def test_sql_that_postgresql_takes_passes(sql: str) -> None:
    assert parse(sql).is_single


@given(
    sql=st.sampled_from([*(sql for sql, _ in [*SQLITE_ONLY, *SESSIONS]), *TRANSACTIONS]), tag=st.sampled_from(["", "b"])
)
def test_what_is_refused_may_stand_in_strings_names_and_comments(sql: str, tag: str) -> None:
    in_quotes = sql.replace("'", "''")
    in_comment = sql.replace("/*", "").replace("*/", "")
    parse(f"SELECT '{in_quotes}', E'{in_quotes}', \"{sql}\" /* {in_comment} */, ${tag}${sql}${tag}$")


def test_every_rule_has_its_case() -> None:
    said = []
    for sql in [*(sql for sql, _ in [*SQLITE_ONLY, *SESSIONS]), *TRANSACTIONS]:
        with pytest.raises(ProgrammingError) as caught:
            translate(sql)
        said.append(str(caught.value))
    assert {rule.text for rule in _REFUSED} == set(said)


@pytest.fixture(scope="module")
def server(postgres_server: Databases) -> Iterator[Any]:
    import psycopg

    with new_database(postgres_server) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SETTING)
        yield connection


def answer(server: Any, sql: str) -> Any:
    """Return what the server says to a statement, its error or None, and undo it."""
    import psycopg

    translated = parse(sql)
    try:
        with server.transaction(force_rollback=True):
            psycopg.RawCursor(server).execute(translated.sql, [None] * translated.count)
    except psycopg.Error as error:
        return error
    return None


@pytest.mark.postgres
@pytest.mark.parametrize("sql", LEGAL, ids=lambda value: value[:60])
def test_server_takes_what_passes(server: Any, sql: str) -> None:
    import psycopg

    try:
        with server.transaction():  # not undone: later ones need the tables
            psycopg.RawCursor(server).execute(parse(sql).sql)
    except psycopg.Error as error:
        pytest.fail(str(error))


@pytest.mark.postgres
@pytest.mark.parametrize("sql", [sql for sql, _ in SQLITE_ONLY], ids=lambda value: value[:60])
def test_server_takes_nothing_of_sqlites_own(server: Any, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walpool.postgres._translate.refuse", lambda shapes: None)
    error = answer(server, sql)
    assert error is not None
    assert error.sqlstate == "42601"


@pytest.mark.postgres
@pytest.mark.parametrize(("sql", "expected"), HINTED, ids=str)
def test_refusal_of_the_server_is_explained(server: Any, sql: str, expected: str | None) -> None:
    error = answer(server, sql)
    assert error is not None
    said = hint(sql, error.diag.message_primary)
    assert said is None if expected is None else said is not None and expected in said


def test_hints_need_the_name_in_the_statement() -> None:
    message = "function ifnull(integer, integer) does not exist"
    assert hint("SELECT f()", message) is None
    assert hint("SELECT 'ifnull(a)'", message) is None
    assert hint("SELECT ifnull(1, 2)", "Funktion ifnull(integer, integer) existiert nicht") is not None


@given(sql=st.text(), message=st.text())
def test_hint_never_fails(sql: str, message: str) -> None:
    hint(sql, message)


PORTABLE = [
    "INSERT INTO t (a, b) VALUES (1, 'x') ON CONFLICT DO NOTHING",
    "INSERT INTO t (a, b) VALUES (1, 'y') ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING a",
    "SELECT a FROM t WHERE a IS NOT DISTINCT FROM 1 AND b IS DISTINCT FROM 'z' LIMIT 1 OFFSET 0",
    "SELECT coalesce(NULL, 1), coalesce(sum(a), 0), string_agg(b, ','), CASE WHEN 1 < 2 THEN 2 ELSE 1 END FROM t",
    "SELECT format('%s', b), b LIKE '%' || 'y' || '%', lower(b) = lower('Y') FROM t",
    "SELECT round(CAST(1.25 AS NUMERIC), 1), CURRENT_TIMESTAMP IS NULL",
    'CREATE TABLE p (a BYTEA, b DOUBLE PRECISION, c SMALLINT, d BIGINT, e TIMESTAMP, "f" TEXT)',
    "SELECT CAST('{\"key\": 1}' AS JSON) ->> 'key'",
    "EXPLAIN SELECT 1",
    "SELECT CAST(?1 AS TEXT) IS NULL",
    "SELECT a <> 0, (a <> 0) = TRUE, CASE WHEN a <> 0 THEN 1 ELSE 0 END, CAST(a AS TEXT) = b FROM t",
    "SELECT count(*) FILTER (WHERE a <> 0) FROM t",
    "SELECT substr(b, CAST(? AS INTEGER)) FROM t",
]


@pytest.mark.postgres
@pytest.mark.parametrize("sql", PORTABLE, ids=lambda value: value[:60])
def test_what_refusals_and_hints_say_runs_on_both(server: Any, sql: str) -> None:
    error = answer(server, sql)
    assert error is None
    with walpool.Pool(":memory:") as pool:
        pool.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        pool.execute(sql, [None] * parse(sql).wanted)


@pytest.mark.postgres
def test_server_sees_the_values_where_they_belong(server: Any) -> None:
    import psycopg

    sql = (
        "SELECT ?4, ?2::text, '? \\', E'? \\' ?', $a$ ? $a$, 'a'\n '?' /* /* ? */ ' */, E'a' -- ?'\n 'b\\'?' -- ?\n"
        ',?4||?2, N\'?\', U&\'\\003F\', B\'1\', a."?""", b$$.c, ?2::int[]::text FROM (SELECT 1 AS "?""") a, '
        "(SELECT 2 AS c) b$$ WHERE ?2<>?4AND 1=1"
    )
    translated = translate(sql)
    cursor = psycopg.RawCursor(server)
    cursor.execute(translated.sql, translated.arrange([None, "{1}", None, "four"]))
    assert cursor.fetchone() == (
        "four", "{1}", "? \\", "? ' ?", " ? ", "a?", "ab'?", "four{1}", "?", "?", "1", 1, 2, "{1}",
    )  # fmt: skip


def test_tables_of_hints_name_each_thing_once() -> None:
    assert all(name == name.lower() for name in _UNKNOWN)
    assert len({rule.pattern for rule in _SYNTAX}) == len(_SYNTAX)
