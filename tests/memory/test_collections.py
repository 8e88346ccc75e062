"""`collections()`: which collections a file has, without making any; and that other SQLites can read what is stored."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import walpool
from walpool import memory
from walpool.errors import ConfigError, NotSupportedError, StorageError
from walpool.memory import Collection, Record, pack


def test_collections_come_in_order_with_what_they_hold(database: Path) -> None:
    with memory.open(database, tenant="b") as store:
        store.save([Record(id="1", content="x")])
    with memory.open(database, tenant="a", collection="z", words="trigram") as store:
        store.save(
            [Record(id=str(number), content="x", scope=f"/{number}", embedding=pack([1, 2])) for number in (1, 2)]
        )
    with memory.open(database, tenant="a", collection="y") as store:
        store.save([Record(id="1", content="x")])
        store.reset()
    assert memory.collections(database) == [
        Collection("a", "y", "unicode61", None, 0),
        Collection("a", "z", "trigram", 2, 2),
        Collection("b", "memory", "unicode61", None, 1),
    ]
    assert memory.collections(f"walpool://{database}?readers=2")[1].words == "trigram"


def test_collections_of_a_store_that_saved_nothing_are_none(database: Path) -> None:
    memory.open(database, tenant="a").close()
    assert memory.collections(database) == []


def test_collections_makes_neither_a_file_nor_tables(database: Path) -> None:
    with pytest.raises(StorageError, match="there is no file"):
        memory.collections(database)
    assert list(database.parent.iterdir()) == []
    with walpool.Pool(database) as pool:
        assert memory.collections(database) == []
        assert pool.fetch("SELECT name FROM sqlite_schema") == []


def test_collections_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    with pytest.raises(ConfigError):
        memory.collections()


def test_collections_of_a_server_are_found_in_the_same_way(postgres_url: str) -> None:
    assert memory.collections(postgres_url) == []
    with memory.open(postgres_url, tenant="b", words="trigram") as store:
        store.save([Record(id="1", content="x", embedding=pack([1, 2]))])
    with memory.open(postgres_url, tenant="a") as store:
        store.save([Record(id="1", content="x")])
    assert memory.collections(postgres_url) == [
        Collection("a", "memory", "unicode61", None, 1),
        Collection("b", "memory", "trigram", 2, 1),
    ]
    with walpool.get_pool(postgres_url) as pool:
        pool.execute("UPDATE walpool_schema SET version = 99 WHERE name = 'memory'")
    with pytest.raises(NotSupportedError, match="upgrade walpool"):
        memory.collections(postgres_url)


@pytest.mark.parametrize(("version", "said"), [(1, "upgrade"), (99, "upgrade walpool")])
def test_collections_refuses_tables_of_another_version(version: int, said: str, database: Path) -> None:
    memory.open(database).close()
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE walpool_schema SET version = ? WHERE name = 'memory'", (version,))
        with pytest.raises(NotSupportedError, match=said):
            memory.collections(database)
        assert pool.fetchval("SELECT version FROM walpool_schema WHERE name = 'memory'") == version


def test_older_sqlites_read_the_tables(database: Path) -> None:
    # An SQLite that cannot parse one trigger of a file reads nothing of it: Python 3.11's own is often 3.40.
    with memory.open(database) as store:
        store.save([Record(id="1", content="x", metadata={"a": [1]}, categories=("c",), embedding=pack([1, 2]))])
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("SELECT id, content FROM memory_records").fetchall() == [("1", "x")]
        triggers = [sql for (sql,) in conn.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
    assert triggers
    assert not any(newer in sql for sql in triggers for newer in ("->", "IS DISTINCT", "RETURNING"))
