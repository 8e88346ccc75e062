"""A file of version 1 of the memory's tables, made by the SQL that made it, and what version 2 makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

import walpool
import walpool.memory
from walpool import schema
from walpool.memory import Contains, Query, Range, pack
from walpool.memory._sqlite_schema import MIGRATIONS

# As walpool 0.1 published it; the store's own list begins with the same statements.
VERSION_1: Final = (
    """CREATE TABLE memory_records (
            key INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            scope TEXT NOT NULL,
            content TEXT NOT NULL,
            metadata TEXT NOT NULL,
            importance REAL NOT NULL,
            created_at INTEGER NOT NULL,
            accessed_at INTEGER NOT NULL,
            source TEXT,
            private INTEGER NOT NULL
        ) STRICT""",
    "CREATE INDEX memory_records_scope ON memory_records (scope, created_at)",
    "CREATE INDEX memory_records_created ON memory_records (created_at)",
    "CREATE TABLE memory_vectors (key INTEGER PRIMARY KEY, embedding BLOB) STRICT",
    "CREATE TABLE memory_sketches (key INTEGER PRIMARY KEY, sketch BLOB) STRICT",
    """CREATE TABLE memory_categories (
            key INTEGER NOT NULL,
            position INTEGER NOT NULL,
            category TEXT NOT NULL,
            PRIMARY KEY (key, position)
        ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX memory_categories_name ON memory_categories (category, key)",
    "CREATE TABLE memory_space (id INTEGER PRIMARY KEY CHECK (id = 1), dims INTEGER NOT NULL) STRICT",
    """CREATE TRIGGER memory_records_deleted AFTER DELETE ON memory_records BEGIN
            DELETE FROM memory_vectors WHERE key = OLD.key;
            DELETE FROM memory_sketches WHERE key = OLD.key;
            DELETE FROM memory_categories WHERE key = OLD.key;
        END""",
    """CREATE TRIGGER memory_vectors_dims BEFORE INSERT ON memory_vectors WHEN NEW.embedding IS NOT NULL BEGIN
            INSERT INTO memory_space (id, dims) VALUES (1, length(NEW.embedding) / 4) ON CONFLICT (id) DO NOTHING;
            SELECT RAISE(ABORT, 'another length than the dims of this store')
            FROM memory_space WHERE dims * 4 <> length(NEW.embedding);
        END""",
    """CREATE TRIGGER memory_vectors_put AFTER INSERT ON memory_vectors BEGIN
            INSERT INTO memory_sketches (key, sketch) VALUES (NEW.key, vec_sketch(NEW.embedding));
        END""",
    """CREATE TRIGGER memory_vectors_replaced AFTER UPDATE OF embedding ON memory_vectors BEGIN
            UPDATE memory_sketches SET sketch = vec_sketch(NEW.embedding) WHERE key = NEW.key;
        END""",
)
RECORD: Final = """INSERT INTO memory_records
    (key, id, scope, content, metadata, importance, created_at, accessed_at, source, private)
    VALUES (?, ?, ?, ?, ?, 0.5, ?, ?, ?, ?)"""
# The triggers of version 1 call `vec_sketch` with one argument, as it was then: the rows are written without them.
ROWS: Final[list[dict[str, Any]]] = [
    {
        "id": "a",
        "scope": "/",
        "content": "the sky is blue",
        "categories": ("x", "y", "x"),
        "metadata": {"n": 1, "t": ["é", 2.0]},
    },
    {"id": "b", "scope": "/a", "content": "", "categories": (), "metadata": {}, "embedding": [1.0, 2.0]},
    {
        "id": "c",
        "scope": "/a/b",
        "content": "é \U0001f600",
        "categories": ("y",),
        "metadata": {"n": 1.5, "deep": {"k": [None]}},
        "embedding": [-1.0, 0.5],
        "source": "user",
        "private": True,
    },
]


def old_file(database: Path, rows: list[dict[str, Any]] = ROWS, dims: int | None = 2) -> None:
    with walpool.Pool(database) as pool:
        schema.migrate(pool, "memory", [[sql for sql in VERSION_1 if "TRIGGER" not in sql]])
        for key, row in enumerate(rows, 7):
            metadata = json.dumps(row["metadata"])
            values = (
                key,
                row["id"],
                row["scope"],
                row["content"],
                metadata,
                key,
                -key,
                row.get("source"),
                row.get("private", 0),
            )
            embedding = pack(row["embedding"]) if "embedding" in row else None
            pool.batch(
                [
                    (RECORD, values),
                    ("INSERT INTO memory_vectors VALUES (?, ?)", (key, embedding)),
                    ("INSERT INTO memory_sketches VALUES (?, NULL)", (key,)),
                    *(
                        ("INSERT INTO memory_categories VALUES (?, ?, ?)", (key, n, c))
                        for n, c in enumerate(row["categories"])
                    ),
                ]
            )
        if dims is not None:
            pool.execute("INSERT INTO memory_space VALUES (1, ?)", (dims,))
        for sql in VERSION_1:
            if "TRIGGER" in sql:
                pool.execute(sql)


def test_published_migration_is_unchanged() -> None:
    assert MIGRATIONS[0] == VERSION_1


def test_file_of_version_1_loses_nothing(database: Path) -> None:
    old_file(database)
    with walpool.memory.open(database) as store:
        assert store.check() == []
        assert store.dims() == 2
        assert [item.id for item in store.list()] == ["c", "b", "a"]
        for key, row in enumerate(ROWS, 7):
            found = store.get(row["id"])
            assert found is not None
            assert (found.scope, found.content, found.categories) == (row["scope"], row["content"], row["categories"])
            assert found.metadata == row["metadata"]
            assert found.embedding == (pack(row["embedding"]) if "embedding" in row else None)
            assert (found.source, found.private) == (row.get("source"), row.get("private", False))
            assert (found.created_at.microsecond, found.accessed_at.microsecond) == (key, 1_000_000 - key)
        assert store.scopes(deep=True) == {"/a": 2, "/a/b": 1}
        assert store.categories() == {"x": 1, "y": 2}
        assert store.count(Query(metadata={"n": Range(at_least=1, below=1.5)})) == 1
        assert store.count(Query(metadata={"t": Contains(2)})) == store.count(Query(metadata={"t": Contains("é")})) == 1
        assert store.count(Query(metadata={"deep": {"k": [None]}})) == 1
        assert [hit.record.id for hit in store.search(pack([1.0, 2.0]))] == ["b", "a", "c"]
        store.save([walpool.memory.Record(id="d", content="new", embedding=pack([1.0, 2.0]))])
        assert store.check() == []


@pytest.mark.parametrize("dims", [None, 3])
def test_empty_file_of_version_1_keeps_its_dims_alone(database: Path, dims: int | None) -> None:
    old_file(database, [], dims)
    with walpool.memory.open(database) as store:
        assert (store.dims(), store.count(), store.check()) == (dims, 0, [])


def test_tables_of_version_1_are_gone_afterwards(database: Path) -> None:
    old_file(database)
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        names = {row[0] for row in pool.fetch("SELECT name FROM sqlite_schema WHERE name LIKE 'memory%'")}
        assert not {name for name in names if name.endswith("_1")}
        assert "memory_space" not in names
        assert pool.check() == store.check() == []
