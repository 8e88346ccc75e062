"""Rows in bulk: encoded here as the server reads and hashes them, copied in transactions of one connection."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("psycopg", exc_type=ImportError)

import walpool
from walpool.errors import ClosedError, DataError, IntegrityError, ProgrammingError
from walpool.postgres import Bulk, PostgresPool
from walpool.postgres.binary import Form, Unfit, check, digests_form, rows
from walpool.postgres.spelling.numbers import plain_number

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False)
VALUES: dict[Form, st.SearchStrategy[Any]] = {
    Form.SMALLINT: st.integers(-(2**15), 2**15 - 1),
    Form.INTEGER: st.integers(-(2**31), 2**31 - 1),
    Form.BIGINT: st.integers(-(2**63), 2**63 - 1),
    Form.DOUBLE: FLOATS | st.integers(-(2**53), 2**53),
    Form.TEXT: TEXTS,
    Form.BYTEA: st.binary(),
    Form.BOOLEAN: st.sampled_from([0, 1, False, True]),
    Form.NUMERIC: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30),
    Form.JSON: st.sampled_from(["{}", "[1.50, null]", '"é"']),
    Form.JSONB: st.sampled_from(['{"a": 1, "bb": [1.5, null]}', '"é"', "7"]),
    Form.CHAR: TEXTS.map(lambda text: text.rstrip(" ")),
    Form.UUID: st.uuids().map(str),
    Form.REAL: st.floats(width=32, allow_nan=False) | st.integers(-(2**24), 2**24),
    Form.DATE: st.dates().map(str),
    Form.TIMESTAMP: st.datetimes().map(lambda at: spelled(at)),
    Form.TIMESTAMPTZ: st.datetimes().map(lambda at: spelled(at) + "+00"),
}
FORMS = list(VALUES)


FITTING: dict[Form, Any] = {
    Form.TEXT: "",
    Form.JSON: "",
    Form.JSONB: "1",
    Form.CHAR: "",
    Form.BYTEA: b"",
    Form.UUID: str(uuid.UUID(int=7)),
    Form.DATE: "2024-02-29",
    Form.TIMESTAMP: "2024-02-29 23:59:59.5",
    Form.TIMESTAMPTZ: "infinity",
}


def spelled(at: dt.datetime) -> str:
    """Return a time as the server writes it."""
    return str(at).rstrip("0") if at.microsecond else str(at)


def as_read(form: Form, value: Any) -> Any:
    """Return what psycopg makes of a value of a column."""
    if value is None:
        return None
    if form is Form.TIMESTAMPTZ:
        return dt.datetime.fromisoformat(value[:19]).replace(
            microsecond=int(value[20:-3].ljust(6, "0")), tzinfo=dt.timezone.utc
        )
    if form is Form.TIMESTAMP:
        return dt.datetime.fromisoformat(value[:19]).replace(microsecond=int(value[20:].ljust(6, "0")))
    return {Form.UUID: uuid.UUID, Form.DATE: dt.date.fromisoformat}.get(form, lambda same: same)(value)


FULL = st.lists(st.tuples(*VALUES.values()), min_size=1, max_size=8)
ROWS = FULL | st.lists(st.tuples(*(st.none() | VALUES[form] for form in FORMS)), min_size=1, max_size=8)
NAMES = [f"c{number}" for number in range(len(FORMS))]


@pytest.fixture
def bulk(postgres_url: str) -> Iterator[Bulk]:
    with PostgresPool(postgres_url) as pool, Bulk(pool) as opened:
        with opened.transaction():
            listed = ", ".join(f"{name} {form.type}" for name, form in zip(NAMES, FORMS, strict=True))
            opened.execute(f"CREATE TABLE t ({listed})")
        yield opened


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_any_value_is_read_as_it_was_and_hashed_as_the_server_hashes_it(bulk: Bulk, given_rows: list[Any]) -> None:
    hashed = [(name, form) for name, form in zip(NAMES, FORMS, strict=True) if form is not Form.NUMERIC]
    spelled = ", ".join(f"{name} + 0.0::float8" if form is Form.DOUBLE else name for name, form in hashed)
    with bulk.transaction():
        bulk.execute("DELETE FROM t")
        assert bulk.copy_in("t", NAMES, [rows(FORMS, given_rows)]) == len(given_rows)
        found = bulk.fetch(f"SELECT *, trim_scale(c7)::text, sha256(record_send(ROW({spelled}))) FROM t")
    numeric = FORMS.index(Form.NUMERIC)
    unnumbered = [(*row[:numeric], *row[numeric + 1 :]) for row in given_rows]
    digests = list(digests_form([form for _, form in hashed], unnumbered))
    for got, expected, digest in zip(found, given_rows, digests, strict=True):
        read = tuple(as_read(form, value) for form, value in zip(FORMS, expected, strict=True))
        assert got[:numeric] == read[:numeric]
        assert got[numeric + 1 : len(FORMS)] == read[numeric + 1 :]
        number = expected[numeric]
        assert got[numeric] == (None if number is None else Decimal(repr(number)))
        assert got[-2] == (None if number is None else plain_number(number))
        assert got[-1] == hashlib.sha256(digest).digest()


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (Form.SMALLINT, 2**15),
        (Form.INTEGER, -(2**31) - 1),
        (Form.BIGINT, 2**63),
        (Form.BIGINT, 1.0),
        (Form.BIGINT, "1"),
        (Form.DOUBLE, float("nan")),
        (Form.DOUBLE, 2**53 + 1),
        (Form.DOUBLE, "1.5"),
        (Form.TEXT, "a\0"),
        (Form.TEXT, "\ud800"),
        (Form.TEXT, b"bytes"),
        (Form.BYTEA, "text"),
        (Form.BOOLEAN, 2),
        (Form.BOOLEAN, 1.0),
        (Form.NUMERIC, float("inf")),
        (Form.NUMERIC, "one"),
        (Form.JSON, "\0"),
        (Form.JSONB, "\0"),
        (Form.CHAR, "a\0"),
        (Form.UUID, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
        (Form.REAL, 0.1),
        (Form.REAL, 2**24 + 1),
        (Form.DATE, "2023-02-29"),
        (Form.DATE, "2024-W01-1"),
        (Form.TIMESTAMP, "2024-01-01"),
        (Form.TIMESTAMPTZ, "2024-01-01 24:00:00+00"),
        (Form.TIMESTAMPTZ, "2024-01-01 00:00:00.1234567+00"),
    ],
)
def test_value_of_another_form_is_unfit_and_its_column_is_named(form: Form, value: Any) -> None:
    for use in (rows, digests_form, check):
        for other in (None, FITTING.get(form, 1)):
            with pytest.raises(Unfit) as unfit:
                use([Form.TEXT, form], [("x", other), ("y", value)])
            assert unfit.value.column == 1


def test_block_that_raises_undoes_its_rows_and_the_connection_goes_on(bulk: Bulk) -> None:
    encoded = rows([Form.TEXT], [("a",), ("b",)])
    with pytest.raises(KeyError), bulk.transaction():
        bulk.copy_in("t", ["c4"], [encoded])
        raise KeyError
    with bulk.transaction(reads_only=True):
        assert bulk.fetch("SELECT count(*) FROM t") == [(0,)]
    with bulk.transaction(waits_for_disk=False):
        assert bulk.copy_in("t", ["c4"], [encoded, encoded]) == 4
        assert bulk.executemany("UPDATE t SET c2 = ? WHERE c4 = ?", [(1, "a"), (2, "b"), (3, "c")]) == 4


def test_row_that_a_constraint_refuses_is_an_error_without_its_values(bulk: Bulk) -> None:
    with pytest.raises(IntegrityError) as refused, bulk.transaction():
        bulk.execute("CREATE TABLE keyed (a text PRIMARY KEY)")
        bulk.copy_in("keyed", ["a"], [rows([Form.TEXT], [("secret",), ("secret",)])])
    assert "secret" not in str(refused.value)
    with pytest.raises(DataError) as broken, bulk.transaction():
        bulk.copy_in("t", ["c8"], [rows([Form.JSON], [("{secret",)])])
    assert "secret" not in str(broken.value)


def test_reading_transaction_is_one_snapshot_and_writes_nothing(bulk: Bulk, postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.executemany("INSERT INTO t (c2) VALUES (?)", [(n,) for n in range(25)])
        seen = []
        with bulk.transaction(reads_only=True):
            for part in bulk.stream("SELECT c2 FROM t", chunk=10):
                pool.execute("DELETE FROM t")
                seen += [value for (value,) in part]
            assert bulk.fetch_each([("SELECT count(*) FROM t", ()), ("SELECT ?::int", (5,))]) == [[(25,)], [(5,)]]
        assert sorted(seen) == list(range(25))
    with pytest.raises(ProgrammingError), bulk.transaction(reads_only=True):
        bulk.execute("DELETE FROM t")


def test_texts_of_values_do_not_depend_on_the_role_s_settings(bulk: Bulk, postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        for setting in ("DateStyle TO 'German'", "TimeZone TO 'Asia/Tokyo'", "IntervalStyle TO 'postgres'"):
            pool.execute(f"ALTER ROLE CURRENT_USER SET {setting}")
        try:
            other = PostgresPool(f"{postgres_url}&application_name=other")
            with other, Bulk(other) as fresh, fresh.transaction(reads_only=True):
                query = "SELECT '2024-01-02 03:04:05+00'::timestamptz::text, '1 day'::interval::text"
                assert fresh.fetch(query) == [("2024-01-02 03:04:05+00", "P1D")]
        finally:
            for name in ("DateStyle", "TimeZone", "IntervalStyle"):
                pool.execute(f"ALTER ROLE CURRENT_USER RESET {name}")


def test_limits_that_a_role_has_for_its_statements_end_no_copy(bulk: Bulk, postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("ALTER ROLE CURRENT_USER SET statement_timeout TO '1ms'")
        try:
            other = PostgresPool(f"{postgres_url}&application_name=other")
            with other, Bulk(other) as fresh, fresh.transaction():
                assert fresh.fetch("SELECT pg_sleep(0.02) IS NULL") == [(False,)]
        finally:
            pool.execute("ALTER ROLE CURRENT_USER RESET statement_timeout")


def test_closed_connection_is_refused(bulk: Bulk) -> None:
    bulk.close()
    bulk.close()
    with pytest.raises(ClosedError), bulk.transaction():
        pass


SECURED = """
    CREATE TABLE notes (
        tenant text NOT NULL DEFAULT current_setting('walpool.tenant', true), id bigint GENERATED ALWAYS AS IDENTITY,
        "the text" varchar(8) COLLATE "C", PRIMARY KEY (tenant, id)
    );
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
    ALTER TABLE notes FORCE ROW LEVEL SECURITY;
    CREATE POLICY mine ON notes USING (tenant = current_setting('walpool.tenant', true));
"""
NOTES = ['"id"', '"the text"']


def test_rows_go_through_a_temporary_table_where_row_level_security_holds(postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:  # its owner is under the policies too: they are forced
        pool.script(SECURED)
    for tenant in ("a", "b"):
        with PostgresPool(postgres_url, tenant=tenant) as pool, Bulk(pool) as bulk:
            with bulk.transaction():
                assert bulk.copy_in("notes", NOTES, [rows([Form.BIGINT, Form.TEXT], [(1, tenant), (2, None)])]) == 2
                assert bulk.copy_in("notes", NOTES, [rows([Form.BIGINT, Form.TEXT], [(3, "three")])]) == 1
            with bulk.transaction(reads_only=True):
                found = bulk.fetch("SELECT * FROM notes ORDER BY id")
                assert found == [(tenant, 1, tenant), (tenant, 2, None), (tenant, 3, "three")]
                assert bulk.fetch("SELECT count(*) FROM pg_class WHERE relname = 'walpool_staging'") == [(0,)]


def test_row_that_a_policy_refuses_undoes_the_transaction(postgres_url: str) -> None:
    with PostgresPool(postgres_url, tenant="a") as pool, Bulk(pool) as bulk:
        pool.script(SECURED)
        given_rows = [rows([Form.TEXT, Form.BIGINT], [("a", 1), ("b", 2)])]
        with pytest.raises(ProgrammingError, match="row-level security"), bulk.transaction():
            bulk.copy_in("notes", ["tenant", "id"], given_rows)
        assert pool.fetchval("SELECT count(*) FROM notes") == 0


def test_rows_go_through_a_temporary_table_behind_pgbouncer(pgbouncer_url: str) -> None:
    with PostgresPool(pgbouncer_url, tenant="a") as pool, Bulk(pool) as bulk, Bulk(pool) as other:
        pool.script(SECURED)
        for number, each in enumerate([bulk, other] * 3):
            with each.transaction():
                assert each.copy_in("notes", ['"id"'], [rows([Form.BIGINT], [(number,)])]) == 1
        assert pool.fetchval("SELECT count(*) FROM notes") == 6
        assert pool.fetchval("SELECT count(*) FROM pg_class WHERE relname = 'walpool_staging'") == 0
