"""What every type of PostgreSQL's has to bear: out into a file, and back into the same table, with nothing changed.

The invariant: a table of any of these types, with any rows, goes into a file and comes back, both times compared as the
same; and the server then has the texts that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import ARRAY, DECLARED, KINDS, arrays_of

import walpool
from walpool.migrating import Options, Table, migrate
from walpool.postgres import Bulk, PostgresPool

KEYS = sorted(set(KINDS) - {"json", "jsonb"})  # json has no order, and of jsonb 1.0 and 1.00 are one key
MOST_COLUMNS = 4

Drawn = tuple[list[str], list[tuple[Any, ...]]]


@st.composite
def tables(draw: st.DrawFn) -> Drawn:
    """Return the types of a table's columns, the first of which is its key, and its rows as texts."""
    key = draw(st.sampled_from(KEYS))
    others = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=MOST_COLUMNS, unique=True))
    columns = [(key, KINDS[key])]
    for kind in others:
        is_array = draw(st.booleans()) and kind != ARRAY
        columns.append((f"{kind}[]", arrays_of(KINDS[kind])) if is_array else (kind, KINDS[kind]))
    values = [st.none() | each for _, each in columns[1:]]
    rows = draw(st.lists(st.tuples(KINDS[key], *values), max_size=8))
    return [kind for kind, _ in columns], rows


def texts(url: str, kinds: list[str]) -> list[tuple[Any, ...]]:
    """Return the rows of the table as the server writes them."""
    shown = ", ".join(f"c{n}::text" for n in range(len(kinds)))
    with PostgresPool(url) as pool, Bulk(pool) as bulk, bulk.transaction(reads_only=True):
        return sorted(bulk.fetch(f"SELECT {shown} FROM t"), key=repr)


@pytest.fixture
def filled(postgres_url: str) -> Callable[[Drawn], None]:
    """Return what fills a new table of a server."""
    with walpool.get_pool(postgres_url) as pool:
        pool.script(DECLARED)

    def fill(drawn: Drawn) -> None:
        kinds, rows = drawn
        listed = ", ".join(f"c{n} {kind}{' PRIMARY KEY' if n == 0 else ''}" for n, kind in enumerate(kinds))
        marks = ", ".join(f"CAST(CAST(? AS text) AS {kind})" for kind in kinds)
        with walpool.get_pool(postgres_url) as pool:
            pool.script(f"DROP TABLE IF EXISTS t, walpool_migration; CREATE TABLE t ({listed})")
            pool.executemany(f"INSERT INTO t VALUES ({marks}) ON CONFLICT DO NOTHING", rows)

    return fill


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read three rows at a time, so that each table goes on behind a key."""
    monkeypatch.setattr(Table, "page", property(lambda _: 3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables())
def test_any_table_of_a_server_goes_into_a_file_and_comes_back_as_it_was(
    drawn: Drawn,
    filled: Callable[[Drawn], None],
    postgres_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    filled(drawn)
    before = texts(postgres_url, drawn[0])
    file = str(tmp_path_factory.mktemp("there") / "a.db")
    assert migrate(postgres_url, file).is_same
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("DELETE FROM t")
    back = migrate(file, postgres_url, Options(force=True))
    assert (back.is_same, back.plan.faults, back.repaired) == (True, [], 0)
    assert texts(postgres_url, drawn[0]) == before
    assert migrate(postgres_url, file, Options(verify=True)).is_same
