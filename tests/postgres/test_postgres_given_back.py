"""Values of types that nobody told the pool of: texts and lists where they are that, refused where they are not."""

from __future__ import annotations

from typing import Any

import pytest
from looping import on_every_loop

from walpool import errors
from walpool.postgres import AsyncPostgresPool, PostgresPool

MOOD = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE e (m mood, many mood[]); INSERT INTO e VALUES ('ok', '{}')"
WANTED = "cast it to text in the SQL"


def test_enum_is_its_label_and_goes_back_as_it_came(pg: PostgresPool) -> None:
    pg.script(MOOD)
    assert pg.fetch("SELECT m, many, ARRAY['sad', NULL]::mood[] FROM e") == [("ok", [], ["sad", None])]
    assert pg.execute("UPDATE e SET m = ? RETURNING m", (pg.fetchval("SELECT m FROM e"),)).rows == [("ok",)]
    with pg.transaction() as tx:
        assert tx.execute("UPDATE e SET m = 'sad' RETURNING m").rows == [("sad",)]
        assert tx.fetchval("SELECT m FROM e") == "sad"
    with pg.stream("SELECT m FROM e") as rows:
        assert list(rows) == [("sad",)]


@on_every_loop
async def test_enum_is_its_label_for_tasks_too(apg: AsyncPostgresPool) -> None:
    await apg.script(MOOD)
    assert await apg.fetchval("SELECT m FROM e") == "ok"
    assert (await apg.execute("UPDATE e SET m = 'sad' RETURNING m, many")).rows == [("sad", [])]
    async with apg.transaction() as tx:
        assert await tx.fetchval("SELECT array_agg(m) FROM e") == ["sad"]


def test_type_that_is_made_anew_is_asked_for_anew(pg: PostgresPool) -> None:
    for n in range(3):
        pg.script(f"DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('m{n}')")
        assert pg.fetchval(f"SELECT 'm{n}'::mood") == f"m{n}"


@pytest.mark.parametrize(("value", "expected"), [("'a'::name", "a"), ("'x'::bpchar", "x"), ("pg_sleep(0)", "")])
def test_texts_are_str(pg: PostgresPool, value: str, expected: Any) -> None:
    assert pg.fetchval(f"SELECT {value}") == expected


@pytest.mark.parametrize(
    "value",
    [
        "'1.5'::money",
        "'int'::regtype",
        "pg_typeof(1)",
        "'(1,2)'::point",
        "B'101'",
        "'a & b'::tsquery",
        "'{1.5}'::money[]",
    ],
)
def test_value_without_a_counterpart_is_refused_with_what_to_write(pg: PostgresPool, value: str) -> None:
    for _ in range(3):
        with pytest.raises(errors.DataError, match=WANTED):
            pg.fetch(f"SELECT {value}")
        with pytest.raises(errors.DataError, match=WANTED), pg.transaction() as tx:
            tx.fetch(f"SELECT {value}")
    assert isinstance(pg.fetchval(f"SELECT ({value})::text"), str)
