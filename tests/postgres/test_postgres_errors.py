"""What the server refuses: its class, whether it may be tried again, and no value of a parameter in its message."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.postgres.pools import INSERT
from walpool import errors
from walpool.postgres import PostgresPool, _writer

SECRET = "Hunter2Said"
SCHEMA = """
    CREATE TYPE mood AS ENUM ('calm');
    CREATE DOMAIN short AS text CHECK (length(VALUE) < 5);
    CREATE TABLE c (
        a text UNIQUE CHECK (a <> 'Hunter2Said!'), b text NOT NULL DEFAULT '', p text REFERENCES c (a), i int, d date,
        v varchar(3), m mood, s short, j jsonb, l bool, u uuid, n numeric(3, 1), x bytea, ts timestamptz, q int[]
    );
    INSERT INTO c (a) VALUES ('Hunter2Said');
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.b = 'raise' THEN RAISE EXCEPTION 'no %', NEW.a; END IF;
        IF NEW.b = 'check' THEN RAISE EXCEPTION 'no "%"', NEW.a USING ERRCODE = 'check_violation', HINT = NEW.a; END IF;
        IF NEW.b = 'own' THEN RAISE EXCEPTION 'no %', NEW.a USING ERRCODE = 'WP001', HINT = NEW.a; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuses BEFORE INSERT ON c FOR EACH ROW EXECUTE FUNCTION refuse();
"""

Refusal = tuple[str, str, type[errors.Error]]
INTEGRITY, DATA, PROGRAMMING = errors.IntegrityError, errors.DataError, errors.ProgrammingError
REFUSALS: list[Refusal] = [
    # SQL with one parameter, what goes behind the secret in it, and the class.
    ("INSERT INTO c (a) VALUES (?)", "", INTEGRITY),
    ("INSERT INTO c (a) VALUES (?)", "!", INTEGRITY),
    ("INSERT INTO c (p) VALUES (?)", "?", INTEGRITY),
    ("INSERT INTO c (a, b) VALUES (?, NULL)", "?", INTEGRITY),
    ("INSERT INTO c (a, b) VALUES (?, 'raise')", "?", INTEGRITY),
    ("INSERT INTO c (a, b) VALUES (?, 'check')", "?", INTEGRITY),
    ("INSERT INTO c (a, b) VALUES (?, 'own')", "?", errors.DatabaseError),
    ("INSERT INTO c (i) VALUES (?)", "", DATA),
    ("INSERT INTO c (d) VALUES (?)", "", DATA),
    ("INSERT INTO c (d) VALUES ((?)::text::date)", "", DATA),
    ("INSERT INTO c (ts) VALUES (?)", ' "quoted" 2020', DATA),
    ("INSERT INTO c (v) VALUES (?)", "", DATA),
    ("INSERT INTO c (m) VALUES (?)", "", DATA),
    ("INSERT INTO c (s) VALUES (?)", "", INTEGRITY),
    ("INSERT INTO c (j) VALUES (?)", "", DATA),
    ("INSERT INTO c (j) VALUES (?)", '": {', DATA),
    ("INSERT INTO c (l) VALUES (?)", "", DATA),
    ("INSERT INTO c (u) VALUES (?)", "", DATA),
    ("INSERT INTO c (n) VALUES (?)", "", DATA),
    ("INSERT INTO c (x) VALUES (?)", "\\", DATA),
    ("INSERT INTO c (q) VALUES (?)", "", DATA),
    ("INSERT INTO c (q) VALUES (?)", "{", DATA),
    ("SELECT to_tsquery(?)", " & (", PROGRAMMING),
    ("SELECT (?)::regclass", "", PROGRAMMING),
    ("SELECT (?)::regtype", "", PROGRAMMING),
    ("SELECT (?)::regproc", "", PROGRAMMING),
    ("SELECT (?)::regrole", "", PROGRAMMING),
    ("SELECT (?)::regconfig", "", PROGRAMMING),
    ("SELECT (?)::regnamespace", "", PROGRAMMING),
    ("SELECT (?)::jsonpath", " $", PROGRAMMING),
    ("SELECT jsonb_path_query('{}', (?)::text::jsonpath)", "(", PROGRAMMING),
    ("SELECT nextval(?)", "", PROGRAMMING),
    ("SELECT current_setting(?)", "", PROGRAMMING),
    ("SELECT date_trunc(?, now())", "", DATA),
    ("SELECT encode('', ?)", "", DATA),
    ("SELECT decode(?, 'hex')", "", DATA),
    ("SELECT 'x' ~ ?", "(", DATA),
    ("SELECT to_timestamp(?, 'YYYY')", "", DATA),
    ("SELECT to_number(?, '9')", "", DATA),
    ("SELECT (?)::interval", "", DATA),
    ("SELECT (?)::inet", "", DATA),
    ("SELECT (?)::xid", "", DATA),
    ("SELECT (?)::int4range", "", DATA),
    ("SELECT has_table_privilege(?, 'select')", "", PROGRAMMING),
    ("SELECT has_table_privilege('c', ?)", "", DATA),
    ("SELECT jsonb_set('[1]', ARRAY[?], '2')", "", DATA),
    ("SELECT convert_from(''::bytea, ?)", "", DATA),
    ("SELECT set_config(?, '', true)", " x", PROGRAMMING),
    ("SELECT pg_size_bytes(?)", "", DATA),
    ("SELECT make_date(length(?), 0, 0)", "", DATA),
]


@pytest.fixture
def constrained(pg: PostgresPool) -> PostgresPool:
    """Return a pool with a table that refuses much."""
    pg.script(SCHEMA)
    return pg


WAYS: dict[str, Callable[[PostgresPool, str, tuple[object, ...]], object]] = {
    "execute": lambda pool, sql, row: pool.execute(sql, row),
    "executemany": lambda pool, sql, row: pool.executemany(sql, [row]),
    "batch": lambda pool, sql, row: pool.batch([(sql, row)]),
    "tx": lambda pool, sql, row: _in_a_transaction(pool, sql, row),
}


def _in_a_transaction(pool: PostgresPool, sql: str, row: tuple[object, ...]) -> None:
    with pool.transaction() as tx:
        try:
            tx.execute(sql, row)
        except errors.Error:
            assert tx.fetchval("SELECT 1") == 1  # it is still open
            raise


def failure(call: Callable[[], object]) -> BaseException:
    """Return what a call raises."""
    try:
        return AssertionError(f"it returned {call()!r}")
    except errors.Error as error:
        return error


def all_of(error: BaseException) -> str:
    """Return all that an error may say, to its last note and cause."""
    told = [repr(error), str(error), str(vars(error)), str(getattr(error, "__notes__", "")), repr(pickle.dumps(error))]
    more = [
        each for each in (error.__cause__, error.__context__) if each is not None and not error.__suppress_context__
    ]
    return " ".join([*told, *map(all_of, more)])


def test_refusal_has_its_class_and_holds_no_value(constrained: PostgresPool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    for sql, more, kind in REFUSALS:
        ways = dict(WAYS)
        if sql.startswith("SELECT"):
            del ways["executemany"]
            if "nextval" not in sql:
                ways["fetch"] = lambda pool, sql, row: pool.fetch(sql, row)
        for name, way in ways.items():
            error = failure(lambda: way(constrained, sql, (SECRET + more,)))  # noqa: B023
            assert isinstance(error, errors.Error), (name, sql, error)
            assert type(error) is kind, (name, sql, error)
            assert (error.outcome, error.retryable) == ("not_applied", False), (name, sql)
            assert SECRET.lower() not in all_of(error).lower(), (name, sql)
    assert SECRET.lower() not in caplog.text.lower()
    assert constrained.fetch("SELECT a FROM c") == [(SECRET,)]


def test_number_that_does_not_fit_is_not_quoted(constrained: PostgresPool) -> None:
    for sql in ("SELECT (?)::int", "SELECT (?)::text::smallint", "SELECT (?)::bigint"):
        with pytest.raises(errors.DataError) as refused:
            constrained.execute(sql, ("123456789012345678901",))
        assert "123456789" not in str(refused.value)


def test_what_the_sql_says_wrong_is_quoted(pg: PostgresPool) -> None:
    for sql, quoted in (
        ("SELECT nothing FROM t", 'column "nothing" does not exist'),
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELEC 1", 'at or near "SELEC"'),
        ("DROP TABLE nowhere", 'table "nowhere" does not exist'),
        ("CREATE TABLE t (a int)", 'relation "t" already exists'),
    ):
        with pytest.raises(errors.ProgrammingError, match=quoted):
            pg.execute(sql)


def test_constraint_is_named(pg: PostgresPool) -> None:
    pg.execute(INSERT, ("x",))
    with pytest.raises(errors.IntegrityError, match="t_pkey"):
        pg.execute(INSERT, ("x",))


OTHERS: list[tuple[str, type[errors.Error], bool]] = [
    ("40001", errors.BusyError, True),
    ("40P01", errors.BusyError, True),
    ("55P03", errors.BusyError, True),
    ("57014", errors.StatementTimeout, False),
    ("53100", errors.StorageError, False),
    ("53300", errors.OperationalError, True),
    ("58030", errors.StorageError, False),
    ("XX001", errors.CorruptError, False),
    ("XX000", errors.OperationalError, False),
    ("0A000", errors.NotSupportedError, False),
    ("42501", errors.ProgrammingError, False),
    ("54000", errors.NotSupportedError, False),
    ("44000", errors.IntegrityError, False),
    ("ZZ999", errors.DatabaseError, False),
]


def test_sqlstate_has_its_class(pg: PostgresPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_writer, "BACKOFF", 0.0)  # conflicts are tried again
    pg.script(
        """CREATE FUNCTION refuse(state text) RETURNS void LANGUAGE plpgsql
           AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = state; END $$"""
    )
    for state, kind, is_retryable in OTHERS:
        calls: list[Callable[[], Any]] = [
            partial(pg.execute, "SELECT refuse(?)", (state,)),
            partial(pg.fetch, "SELECT refuse(?)", (state,)),
        ]
        for call in calls:
            with pytest.raises(errors.Error) as refused:
                call()
            assert type(refused.value) is kind, state
            assert (refused.value.outcome, refused.value.retryable) == ("not_applied", is_retryable), state
