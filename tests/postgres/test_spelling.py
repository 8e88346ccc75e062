"""What is known of types without a server, held against one: how it writes their values, and reads them in binary."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("psycopg", exc_type=ImportError)

from walpool.postgres import Bulk, PostgresPool
from walpool.postgres.binary import Form, rows
from walpool.postgres.spelling import arrays, numbers
from walpool.postgres.spelling.spelling import Bad

FLOATS = st.floats(allow_nan=True) | st.integers(-(2**80), 2**80).map(float)
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bulk(postgres_url: str) -> Iterator[Bulk]:
    with PostgresPool(postgres_url) as pool, Bulk(pool) as opened:
        yield opened


def asked(bulk: Bulk, query: str, values: list[Any]) -> list[Any]:
    """Return what the server answers for each of the values."""
    with bulk.transaction(reads_only=True):
        return [answer for ((answer,),) in bulk.fetch_each([(query, (value,)) for value in values])]


@EXAMPLES
@given(values=st.lists(FLOATS, max_size=40))
@example(values=[2.380742462852301e16, -2.380742462852301e16, 2.0**80, 9.5367431640625e22, 5e-324, 1e15, 1e16, -0.0])
def test_numbers_of_an_array_are_written_as_the_server_writes_them(bulk: Bulk, values: list[float]) -> None:
    spelling = arrays.of(numbers.DOUBLE)
    literal = "{" + ",".join(map(repr, values)) + "}"
    (found,) = asked(bulk, "SELECT array_to_json(CAST(? AS double precision[]))::text", [literal])
    assert spelling.read(found, ()) == found


WRITTEN: dict[str, tuple[Form, st.SearchStrategy[str]]] = {
    "inet": (Form.INET, st.ip_addresses(v=6).map(str) | st.ip_addresses(v=4).map(str)),
    "interval": (
        Form.INTERVAL,
        st.from_regex(
            r"P(-?[0-9]{1,3}Y)?(-?[0-9]{1,3}M)?(-?[0-9]{1,3}W)?(-?[0-9]{1,9}D)?"
            r"(T(-?[0-9]{1,9}H)?(-?[0-9]{1,3}M)?(-?[0-9]{1,3}(\.[0-9]{1,6})?S)?)?",
            fullmatch=True,
        ),
    ),
    "time": (Form.TIME, st.from_regex(r"[0-2][0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?", fullmatch=True)),
    "timetz": (
        Form.TIMETZ,
        st.from_regex(
            r"[0-2][0-9]:[0-5][0-9](:[0-5][0-9])?([+-][01][0-9](:?[0-5][0-9](:[0-5][0-9])?)?|Z)", fullmatch=True
        ),
    ),
    "macaddr": (Form.MACADDR, st.from_regex(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", fullmatch=True)),
    "macaddr8": (Form.MACADDR8, st.from_regex(r"([0-9a-fA-F]{2}:){7}[0-9a-fA-F]{2}|[0-9A-F]{16}", fullmatch=True)),
    "bit varying": (Form.VARBIT, st.text("01", max_size=20)),
    "name": (Form.NAME, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=70)),
}
WORDS = st.integers(0, 2**16 - 1) | st.just(0) | st.just(0)
WRITTEN["cidr"] = (
    Form.CIDR,
    st.lists(WORDS, min_size=8, max_size=8).map(lambda words: ":".join(f"{word:x}" for word in words)),
)


@pytest.mark.parametrize("kind", WRITTEN)
@EXAMPLES
@given(data=st.data())
def test_what_is_read_is_what_the_server_reads_and_is_sent_as_that(kind: str, data: st.DataObject, bulk: Bulk) -> None:
    form, strategy = WRITTEN[kind]
    taken = {}
    for text in data.draw(st.lists(strategy, max_size=20)):
        with suppress(Bad):
            taken[text] = form.spelling.read(text, ())
    assert asked(bulk, f"SELECT CAST(CAST(? AS text) AS {kind})::text", [*taken]) == [*taken.values()]
    with bulk.transaction():
        bulk.execute(f"CREATE TEMP TABLE x (n int, a {kind}) ON COMMIT DROP")
        sent = list(enumerate(taken.values()))
        bulk.copy_in("pg_temp.x", ["n", "a"], [rows([Form.INTEGER, form], [*sent, (len(sent), None)])])
        assert bulk.fetch("SELECT a::text FROM x ORDER BY n") == [*((text,) for text in taken.values()), (None,)]


def packed(*given: float) -> bytes:
    return struct.pack(f">HH{len(given)}f", len(given), 0, *given)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (packed(0.5, float("nan")), "a NaN or an infinity"),
        (packed(float("inf"), float("-inf")), "a NaN or an infinity"),
        (packed(), "no embedding"),
        (packed(0.5)[:-1], "no embedding"),
        (packed(0.5)[2:], "no embedding"),
        (struct.pack("<ff", 1.0, 2.0), "no embedding"),
        ("[1]", "TEXT in a column of embeddings"),
        (packed(*[3.0] * 16_001), "16001 dims"),
    ],
)
def test_what_is_no_vector_of_pgvectors_is_refused(value: Any, said: str) -> None:
    with pytest.raises(Bad, match=said):
        Form.VECTOR.spelling.read(value, ())


def test_vector_is_read_as_it_is() -> None:
    for value in (packed(0.5), packed(*[3.4e38] * 16_000), packed(-0.0)):
        assert Form.VECTOR.spelling.read(value, ()) is value
