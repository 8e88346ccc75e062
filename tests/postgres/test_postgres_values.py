"""Values on their way to PostgreSQL and back: as on SQLite where both can, and refused rather than changed."""

from __future__ import annotations

import datetime as dt
import enum
import math
import re
import uuid
from decimal import Decimal
from typing import Any

import pytest

from walpool import errors
from walpool.postgres import PostgresPool

COLUMNS = "b boolean, i integer, l bigint, s smallint, f double precision, t text, y bytea, j jsonb, k json, u numeric"


@pytest.fixture
def typed(pg: PostgresPool) -> PostgresPool:
    """Return a pool with a table of many types."""
    pg.script(f"CREATE TABLE v (id bigint PRIMARY KEY, {COLUMNS})")
    return pg


def through(pool: PostgresPool, column: str, value: object) -> Any:
    """Return a value as it comes back from a column, by each way in and each way out, which must agree."""
    insert = f"INSERT INTO v (id, {column}) VALUES (?, ?) RETURNING {column}"
    (returned,) = pool.execute(insert, (1, value)).rows[0]
    pool.executemany(insert, [(2, value), (3, None), (4, value)])
    pool.batch([(insert, (5, value)), (insert, (6, None)), (insert, (7, value))])
    with pool.transaction() as tx:
        tx.execute(insert, (8, value))
        tx.executemany(insert, [(9, None), (10, value)])
        (inside,) = tx.fetch(f"SELECT {column} FROM v WHERE id = 10")[0]
    query = f"SELECT {column} FROM v WHERE id NOT IN (3, 6, 9) ORDER BY id"
    found = [each for (each,) in pool.fetch(query)]
    with pool.stream(query, chunk=2) as rows:
        assert [each for (each,) in rows] == found
    assert pool.fetchval(f"SELECT count(*) FROM v WHERE {column} IS NULL") == 3
    assert [(type(each), each) for each in (*found, inside)] == [(type(returned), returned)] * 8
    return returned


@pytest.mark.parametrize(
    ("column", "given", "found"),
    [
        ("b", True, True),
        ("b", False, False),
        ("i", True, 1),
        ("i", False, 0),
        ("i", 2**31 - 1, 2**31 - 1),
        ("s", -(2**15), -(2**15)),
        ("l", 2**63 - 1, 2**63 - 1),
        ("l", -(2**63), -(2**63)),
        ("l", True, 1),
        ("f", 0.1, 0.1),
        ("f", -0.0, -0.0),
        ("f", math.inf, math.inf),
        ("f", 5e-324, 5e-324),
        ("f", 2**53, float(2**53)),
        ("t", "", ""),
        ("t", "a'b\\\"%s?:x$1\n\u2028\U0001f600", "a'b\\\"%s?:x$1\n\u2028\U0001f600"),
        ("y", b"", b""),
        ("y", bytes(range(256)), bytes(range(256))),
        ("y", bytearray(b"\0\xff"), b"\0\xff"),
        ("y", memoryview(b"0123456789")[::3], b"0369"),
        ("j", '{"b": [1, 2.50], "a": null}', '{"a": null, "b": [1, 2.50]}'),
        ("k", '{"b": 1,  "a": 2}', '{"b": 1,  "a": 2}'),
        ("u", 5, Decimal(5)),
        ("u", True, Decimal(1)),
        ("t", None, None),
    ],
)
def test_value_comes_back_from_its_column(typed: PostgresPool, column: str, given: object, found: object) -> None:
    if given is None:
        assert typed.execute("INSERT INTO v (id, t) VALUES (1, ?) RETURNING t", (None,)).rows == [(None,)]
        return
    returned = through(typed, column, given)
    assert (type(returned), returned) == (type(found), found)
    assert repr(returned) == repr(found)  # minus zero is not zero


class Colour(str, enum.Enum):
    RED = "red"

    def __str__(self) -> str:
        return "not the value"


class Level(enum.IntEnum):
    HIGH = 3


class Odd(int):
    def __int__(self) -> int:
        return 2**70


def test_member_of_an_enumeration_is_its_value(typed: PostgresPool) -> None:
    assert through(typed, "t", Colour.RED) == "red"
    typed.execute("DELETE FROM v")
    assert through(typed, "i", Level.HIGH) == 3
    assert typed.execute("SELECT ?", (Odd(4),)).rows == [(4,)]


def test_rows_of_one_statement_may_differ_in_their_types(typed: PostgresPool) -> None:
    values = [True, None, "5", 6, False, None, 7, "8"]
    typed.executemany("INSERT INTO v (id, i) VALUES (?, ?)", list(enumerate(values)))
    assert [i for (i,) in typed.fetch("SELECT i FROM v ORDER BY id")] == [1, None, 5, 6, 0, None, 7, 8]
    typed.execute("DELETE FROM v")
    values = [b"a", None, "bc", b"d"]
    typed.executemany("INSERT INTO v (id, y) VALUES (?, ?)", list(enumerate(values)))
    assert [y for (y,) in typed.fetch("SELECT y FROM v ORDER BY id")] == [b"a", None, b"bc", b"d"]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, math.nan, "a\0b", "\ud800", "x\udfff"])
@pytest.mark.parametrize("verb", ["execute", "executemany", "batch", "fetch", "transaction"])
def test_value_that_would_not_come_back_is_refused_by_position(typed: PostgresPool, verb: str, value: object) -> None:
    sql, row = "SELECT ?, ?", (1, value)
    with pytest.raises(errors.DataError, match="parameter 2") as refused:
        if verb == "execute":
            typed.execute(sql, row)
        elif verb == "executemany":
            typed.executemany(sql, [row])
        elif verb == "batch":
            typed.batch([(sql, row)])
        elif verb == "fetch":
            typed.fetch(sql, row)
        else:
            with typed.transaction() as tx:
                tx.execute(sql, row)
    assert refused.value.outcome == "not_applied"


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (dt.datetime(2020, 1, 1), "give .isoformat(), or microseconds as an int"),  # noqa: DTZ001
        (dt.date(2020, 1, 1), "give .isoformat()"),
        (Decimal(1), "give str(value)"),
        (uuid.UUID(int=1), "give str(value)"),
        ([1], "give json.dumps(value)"),
        ({"a": 1}, "give json.dumps(value)"),
        (object(), "give None, bool, int, float, str or bytes"),
        (1j, "give None, bool, int, float, str or bytes"),
    ],
)
def test_type_that_sqlite_would_not_take_is_refused_by_name_with_the_conversion(
    typed: PostgresPool, value: object, advice: str
) -> None:
    told = re.escape(f"{type(value).__name__}, which walpool does not convert; {advice}")
    for ask in (typed.execute, typed.fetch):
        with pytest.raises(errors.ProgrammingError, match=f"parameter 2 is a {told}"):
            ask("SELECT ?, ?", (1, value))
        with pytest.raises(errors.ProgrammingError, match=f"parameter 2 is a {told}"):
            ask("SELECT ?2, ?1", (1, value))  # the caller's second, though it is sent first
        with pytest.raises(errors.ProgrammingError, match=f"parameter :where is a {told}"):
            ask("SELECT :a, :where", {"a": 1, "where": value})


@pytest.mark.parametrize("sql", ["SELECT %s", "SELECT %(a)s", "SELECT $1"])
def test_parameter_that_another_driver_would_take_is_told_how_to_be_written(pg: PostgresPool, sql: str) -> None:
    with pytest.raises(errors.ProgrammingError, match=r"they are written \?, \?1 and :name"):
        pg.fetch(sql, (1,))
    assert pg.fetch("SELECT 5 % 3, 'a' LIKE '%s'") == [(2, False)]


def test_argument_of_another_type_is_named(pg: PostgresPool) -> None:
    for sql in (b"SELECT 1", None, 1):
        for ask in (pg.fetch, pg.execute, pg.script):
            with pytest.raises(TypeError, match=f"the SQL is a str, not {type(sql).__name__}"):
                ask(sql)  # type: ignore[arg-type]
    with pytest.raises(errors.ProgrammingError, match="row must be tuple, dict or a callable"):
        pg.fetch("SELECT 1", row="dict")  # type: ignore[call-overload]


def test_servers_own_types_come_as_psycopg_gives_them(pg: PostgresPool) -> None:
    query = """SELECT 1.50::numeric, '2020-02-03 04:05:06.000007+00'::timestamptz, '2020-02-03'::date,
               '{1,NULL}'::int[], '00000000-0000-0000-0000-000000000001'::uuid, '1 day'::interval,
               'x'::char(3), 'e'::"char", 1::oid"""
    expected = (
        Decimal("1.50"),
        dt.datetime(2020, 2, 3, 4, 5, 6, 7, tzinfo=dt.timezone.utc),
        dt.date(2020, 2, 3),
        [1, None],
        uuid.UUID(int=1),
        dt.timedelta(days=1),
        "x  ",
        "e",
        1,
    )
    assert pg.fetchone(query) == expected
    assert pg.execute(query).rows == [expected]


NO_COUNTERPART = ["'infinity'::timestamptz", "'4000-01-01 BC'::date", "'294276-01-01'::timestamp"]


@pytest.mark.parametrize("value", NO_COUNTERPART)
def test_value_without_a_counterpart_in_python_is_a_data_error_that_does_not_quote_it(
    pg: PostgresPool, value: str
) -> None:
    with pytest.raises(errors.DataError, match="cast it to text") as refused:
        pg.fetch(f"SELECT {value}")
    assert "infinity" not in str(refused.value)
    with pytest.raises(errors.DataError):
        pg.execute(f"INSERT INTO t (a) VALUES ('x') RETURNING {value}")
    assert pg.fetch("SELECT a FROM t") == []  # the error says that it was not applied


def test_value_without_a_counterpart_in_a_transaction_leaves_nothing_of_its_statement(pg: PostgresPool) -> None:
    with pytest.raises(errors.DataError), pg.transaction() as tx:
        tx.execute("INSERT INTO t (a) VALUES ('x') RETURNING 'infinity'::timestamptz")
    assert pg.fetch("SELECT a FROM t") == []
    with pg.transaction() as tx:
        tx.execute("INSERT INTO t (a) VALUES ('y')")
        with pytest.raises(errors.DataError):
            tx.fetch("SELECT 'infinity'::timestamptz")
    assert pg.fetch("SELECT a FROM t") == [("y",)]


def test_large_values_and_many_rows_go_both_ways(pg: PostgresPool) -> None:
    text, rows = "é" * 2_000_000, 3000
    pg.executemany("INSERT INTO t (a, n) VALUES (?, ?)", [(f"{n}", n) for n in range(rows)])
    pg.batch([("INSERT INTO t (a, n) VALUES (md5(?), ?)", (text + str(n), -n - 1)) for n in range(4)])
    assert pg.fetchval("SELECT ?", (text,)) == text
    assert pg.fetchval("SELECT count(*) FROM t") == rows + 4
    assert pg.fetch("SELECT repeat(?, 3), n FROM t WHERE n < 0 ORDER BY n LIMIT 1", (text,)) == [(3 * text, -4)]
