"""Values: what goes in comes back the same; what SQLite cannot keep is refused, with its place and the way out."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import walpool
from walpool import errors

INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.none() | INTEGERS | FLOATS | TEXTS | st.binary()

# A column without a type keeps each value as it was given. https://www.sqlite.org/datatype3.html
TABLE = "CREATE TABLE kept (a)"

Ask = Callable[[walpool.Pool, str, Any], object]


@pytest.fixture
def kept(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with an empty table that keeps any value."""
    pool.script(TABLE)
    return pool


def same(left: object, right: object) -> bool:
    """Whether two values are equal in type and sign too: 1 is not 1.0, and -0.0 is not 0.0."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return type(left) is type(right) and left == right


@given(value=VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_value_comes_back_as_it_went_in(pool: walpool.Pool, value: object) -> None:
    assert same(pool.fetchval("SELECT ?", (value,)), value)  # type: ignore[arg-type]
    assert same(pool.fetchval("SELECT :v", {"v": value}), value)  # type: ignore[dict-item]


@given(rows=st.lists(st.tuples(VALUES, VALUES), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_rows_come_back_as_they_were_stored(pool: walpool.Pool, rows: list[tuple[Any, Any]]) -> None:
    pool.script("DROP TABLE IF EXISTS pair; CREATE TABLE pair (id INTEGER PRIMARY KEY, a, b)")
    pool.executemany("INSERT INTO pair (a, b) VALUES (?, ?)", rows)
    read = pool.fetch("SELECT a, b FROM pair ORDER BY id")
    assert len(read) == len(rows)
    assert all(
        same(left, right) for row, back in zip(rows, read, strict=True) for left, right in zip(row, back, strict=True)
    )


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 2**63 - 1, -(2**63)),
        *(0.0, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf),
        *("", "\0", "a\0b", "\N{GRINNING FACE}", "ä\u0308\u200d", "x" * 1_000_000),
        *(b"", b"\0\xff", None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_edge_of_each_type_comes_back_from_a_job_and_a_read(kept: walpool.Pool, value: object) -> None:
    done = kept.execute("INSERT INTO kept VALUES (?) RETURNING a", (value,))  # type: ignore[arg-type]
    assert same(done.rows[0][0], value)
    assert same(kept.fetchval("SELECT a FROM kept"), value)
    with kept.stream("SELECT a FROM kept") as rows:
        assert same(next(rows)[0], value)


@pytest.mark.parametrize(("value", "stored"), [(True, 1), (False, 0)])
def test_bool_is_stored_as_an_integer(kept: walpool.Pool, value: bool, stored: int) -> None:
    kept.execute("INSERT INTO kept VALUES (?)", (value,))
    assert same(kept.fetchval("SELECT a FROM kept"), stored)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(bytearray(b"ab\0c"))[1:], b"b\0c"),
        (memoryview(array.array("i", [1])), array.array("i", [1]).tobytes()),
        (memoryview(array.array("f", [0.5, 2.0])), array.array("f", [0.5, 2.0]).tobytes()),
    ],
    ids=["bytearray", "view", "view-with-gaps", "part-of-a-bytearray", "view-of-ints", "view-of-floats"],
)
def test_bytes_like_is_stored_as_a_blob(kept: walpool.Pool, value: memoryview, stored: bytes) -> None:
    kept.execute("INSERT INTO kept VALUES (?)", (value,))
    assert same(kept.fetchval("SELECT a FROM kept"), stored)


def test_released_memoryview_is_refused(pool: walpool.Pool) -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(ValueError, match="released"):
        pool.fetchval("SELECT ?", (view,))


def test_subclasses_of_the_types_are_stored_as_what_they_are(pool: walpool.Pool) -> None:
    class Colour(enum.IntEnum):
        RED = 3

    class Name(str):
        __slots__ = ()

    assert pool.fetchone("SELECT ?, ?, ?", (Colour.RED, Name("n"), np.float64(0.5))) == (3, "n", 0.5)


def test_changing_a_bytearray_after_the_call_changes_nothing(kept: walpool.Pool) -> None:
    value = bytearray(b"before")
    kept.execute("INSERT INTO kept VALUES (?)", (value,))
    value[:] = b"after!"
    assert kept.fetchval("SELECT a FROM kept") == b"before"


def test_blob_of_many_megabytes_comes_back(kept: walpool.Pool) -> None:
    blob = bytes(range(256)) * (12 * 4096)  # 12 MiB: more than a group holds
    kept.execute("INSERT INTO kept VALUES (?)", (blob,))
    assert kept.fetchval("SELECT a FROM kept") == blob
    assert kept.fetchval("SELECT length(a) FROM kept") == len(blob)


def test_value_past_sqlites_own_limit_is_a_data_error(kept: walpool.Pool) -> None:
    for ask in (kept.fetch, kept.execute):
        with pytest.raises(errors.DataError, match="larger than SQLite allows") as caught:
            ask("SELECT zeroblob(1000000001)")
        assert caught.value.sqlite_errorname == "SQLITE_TOOBIG"
    assert kept.fetchval("SELECT length(zeroblob(1000000))") == 1_000_000


# What is refused

UNSUPPORTED = [
    (dt.datetime(2026, 1, 2, 3, 4, 5), "datetime", "isoformat"),  # noqa: DTZ001 - what it says does not matter
    (dt.date(2026, 1, 2), "date", "isoformat"),
    (dt.time(1, 2), "time", "isoformat"),
    (decimal.Decimal("1.5"), "Decimal", "str(value)"),
    (uuid.UUID(int=7), "UUID", "str(value)"),
    (pathlib.PurePosixPath("a"), "PurePosixPath", ""),
    ([1, 2], "list", "json.dumps"),
    ({"a": 1}, "dict", "json.dumps"),
    ((1,), "tuple", "json.dumps"),
    ({1}, "set", "json.dumps"),
    (np.int64(1), "int64", ".item()"),
    (np.int32(1), "int32", ".item()"),
    (np.uint8(1), "uint8", ".item()"),
    (np.float32(1), "float32", ".item()"),
    (np.bool_(True), "bool", ".item()"),
    (np.zeros(3, dtype=np.float32), "ndarray", ".tobytes()"),
    (array.array("b", b"abc"), "array", ""),
    (1j, "complex", "give None, bool, int, float, str or bytes"),
    (fractions.Fraction(1, 3), "Fraction", ""),
    (object(), "object", "give None, bool, int, float, str or bytes"),
    (int, "type", ""),
]

BAD_DATA = [
    (2**63, "does not fit in 64 bits; give a str or bytes"),
    (-(2**63) - 1, "does not fit in 64 bits"),
    (10**100, "does not fit in 64 bits"),
    (math.nan, "is NaN, which SQLite would store as NULL; give None"),
    (float("-nan"), "is NaN"),
    (np.float64("nan"), "is NaN"),
    ("\ud800", "lone surrogates"),
    ("ok\udfff", "lone surrogates"),
]


def transaction_execute(pool: walpool.Pool, sql: str, params: Any) -> object:
    with pool.transaction() as tx:
        return tx.execute(sql, params)


ASKS: dict[str, Ask] = {
    "execute": lambda pool, sql, params: pool.execute(sql, params),
    "fetch": lambda pool, sql, params: pool.fetch(sql, params),
    "batch": lambda pool, sql, params: pool.batch([(sql, params)]),
    "executemany": lambda pool, sql, params: pool.executemany(sql, [params]),
    "transaction": transaction_execute,
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize(("value", "type_name", "advice"), UNSUPPORTED, ids=lambda v: v if isinstance(v, str) else "")
def test_type_that_sqlite_lacks_is_refused_with_its_place_and_the_conversion(
    pool: walpool.Pool, ask: Ask, value: object, type_name: str, advice: str
) -> None:
    with pytest.raises(errors.ProgrammingError) as caught:
        ask(pool, "SELECT ?, ?", (1, value))
    assert f"parameter 2 is a {type_name}, which SQLite cannot store" in str(caught.value)
    assert advice in str(caught.value)
    with pytest.raises(errors.ProgrammingError, match=f"parameter :where is a {type_name}"):
        ask(pool, "SELECT :a, :where", {"a": 1, "where": value})


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize(("value", "told"), BAD_DATA, ids=ascii)
def test_value_out_of_range_is_refused_with_its_place(pool: walpool.Pool, ask: Ask, value: object, told: str) -> None:
    with pytest.raises(errors.DataError) as caught:
        ask(pool, "SELECT ?, ?", (1, value))
    assert "parameter 2 is" in str(caught.value)
    assert told in str(caught.value)
    with pytest.raises(errors.DataError, match="parameter :where is"):
        ask(pool, "SELECT :a, :where", {"a": 1, "where": value})


def test_refused_value_leaves_nothing_written_and_nothing_queued(kept: walpool.Pool) -> None:
    with pytest.raises(errors.DataError, match="row 2"):
        kept.executemany("INSERT INTO kept VALUES (?)", [(1,), (2**63,)])
    assert kept.fetch("SELECT a FROM kept") == []
    assert kept.stats()["jobs_waiting"] == 0


# What others wrote


@pytest.mark.parametrize("ending", [b"", b" and more"])
def test_text_that_is_no_utf8_is_a_data_error_and_may_be_read_as_a_blob(kept: walpool.Pool, ending: bytes) -> None:
    broken = b"caf\xe9" + ending
    kept.execute("INSERT INTO kept VALUES (CAST(? AS TEXT))", (broken,))

    def ask_stream() -> None:
        with kept.stream("SELECT 1, a FROM kept") as rows:
            list(rows)

    for ask in (
        lambda: kept.fetch("SELECT 1, a FROM kept"),
        lambda: kept.execute("SELECT a FROM kept").rows,
        ask_stream,
    ):
        with pytest.raises(errors.DataError, match="CAST"):
            ask()
    assert kept.fetchval("SELECT CAST(a AS BLOB) FROM kept") == broken
    assert kept.stats()["readers_out"] == 0


def test_column_that_is_not_asked_for_may_hold_anything(kept: walpool.Pool) -> None:
    kept.execute("INSERT INTO kept VALUES (CAST(x'ff' AS TEXT))")
    assert kept.fetchval("SELECT typeof(a) FROM kept") == "text"


def test_strict_column_refuses_another_type_as_a_constraint(pool: walpool.Pool) -> None:
    pool.script("CREATE TABLE exact (a INTEGER) STRICT")
    with pytest.raises(errors.IntegrityError) as caught:
        pool.execute("INSERT INTO exact VALUES ('text')")
    assert caught.value.sqlite_errorname == "SQLITE_CONSTRAINT_DATATYPE"
