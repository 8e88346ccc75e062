"""What is derived, on PostgreSQL: `check` sees each kind of damage, `rebuild` mends it; searches use the indexes."""

from __future__ import annotations

import time
from typing import Any

import pytest

import walpool
import walpool.memory
from tests.memory.contract import ids, record
from walpool.memory import Query, pack

DAMAGES = {
    "UPDATE memory_records SET words = '''@x''' WHERE id = 'r1'": "1 records have other words",
    "UPDATE memory_records SET length = 7": "600 records have other words",
    "UPDATE memory_records SET category_marks = '{}' WHERE id = 'r1'": "1 records have other categories",
    "UPDATE memory_records SET metadata_marks = '{}' WHERE id = 'r2'": "1 records have other metadata",
    "UPDATE memory_records SET metadata_order = NULL WHERE id = 'r2'": "1 records have other metadata",
    "DELETE FROM memory_vectors WHERE key = 1": "1 records have no row there",
    "UPDATE memory_vectors SET scope = '/z' WHERE key = 1": "1 records have no row there",
    "INSERT INTO memory_vectors VALUES ('', 'memory', 10000, '/', NULL)": "1 rows belong to no record",
    "UPDATE memory_spaces SET change = 599": "1 records have a number",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_sees_what_differs_and_rebuild_mends_it(postgres_url: str, damage: str) -> None:
    with walpool.memory.open(postgres_url) as store, walpool.get_pool(postgres_url) as pool:
        store.save([record(f"r{n}", [1.0], categories=("c",), metadata={"n": n}) for n in range(600)])
        assert store.check() == []
        pool.execute(damage)
        (found,) = store.check()
        assert DAMAGES[damage] in found
        store.rebuild()
        assert store.check() == []
        assert ids(store.search(text="r1", query=Query(categories=("c",)))) == ["r1"]
        assert store.count(Query(metadata={"n": 2})) == 1


def test_search_in_a_scope_reads_that_scope_alone(postgres_url: str) -> None:
    wanted = pack([1.0] * 256)
    with walpool.memory.open(postgres_url) as store:
        store.save([record(f"r{n}", [n, *[1.0] * 255], scope=f"/{n % 100}") for n in range(3_000)])
        store.compact()
    with walpool.get_pool(postgres_url) as pool:
        before = rows_read(pool)
    with walpool.memory.open(postgres_url) as store:
        for n in range(5):
            assert len(store.search(wanted, Query(scope=f"/{n}"), limit=50)) == 30
    with walpool.get_pool(postgres_url) as pool:
        looked_up = scanned = 0
        deadline = time.monotonic() + 10
        while looked_up < 5 * 30 and time.monotonic() < deadline:  # the server counts when the connection has ended
            scanned, looked_up = (after - one for after, one in zip(rows_read(pool), before, strict=True))
    assert scanned == 0
    assert 5 * 30 <= looked_up <= 5 * 30 * 3


def rows_read(pool: Any) -> tuple[int, int]:
    """Return how many rows of vectors were read one after the other, and how many through an index."""
    sql = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'memory_vectors'"
    scanned, looked_up = pool.fetchone(sql)
    return scanned, looked_up


def test_save_of_many_records_is_whole_and_in_order(postgres_url: str) -> None:
    with walpool.memory.open(postgres_url) as store:
        store.save([record(f"r{n}", [1.0, n] if n % 3 else None) for n in range(2_345)])
        assert store.count() == 2_345
        assert ids(store.search(pack([0.0, 0.0]), limit=3_000)) == [f"r{n}" for n in range(2_345)]
        twice = [record("x", [5.0, 5.0]), record("y"), record("x", scope="/later")]
        store.save(twice)
        kept = store.get("x")
        assert kept is not None
        assert (kept.scope, kept.embedding) == ("/later", pack([5.0, 5.0]))
        assert store.check() == []
