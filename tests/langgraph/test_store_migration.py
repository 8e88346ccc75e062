"""A file of version 1 of the LangGraph store's tables, made by the SQL that made it, and what version 2 makes of it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

pytest.importorskip("langgraph.store.base")

from langgraph.store.base import PutOp
from stores import INDEX, KINDS, LETTERS, letters, opened_store

import walpool
import walpool.memory
from walpool import errors, schema
from walpool.langgraph import WalpoolStore
from walpool.langgraph._store_schema import MIGRATIONS
from walpool.memory import pack
from walpool.memory._sqlite_schema import MIGRATIONS as MEMORY_MIGRATIONS

# As it was; the store's own list begins with the same statements.
VERSION_1: Final = (
    """CREATE TABLE langgraph_items (
            id INTEGER PRIMARY KEY,
            namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            ttl INTEGER,
            expires_at INTEGER,
            value TEXT NOT NULL,
            UNIQUE (namespace, key)
        ) STRICT""",
    "CREATE INDEX langgraph_items_expires ON langgraph_items (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE TABLE langgraph_vectors (id INTEGER PRIMARY KEY, path TEXT NOT NULL, embedding BLOB NOT NULL) STRICT",
    "CREATE TABLE langgraph_sketches (id INTEGER PRIMARY KEY, dims INTEGER NOT NULL, sketch BLOB NOT NULL) STRICT",
    """CREATE TRIGGER langgraph_items_deleted AFTER DELETE ON langgraph_items BEGIN
            DELETE FROM langgraph_vectors WHERE id BETWEEN OLD.id << 16 AND (OLD.id << 16) + 65535;
        END""",
    """CREATE TRIGGER langgraph_items_replaced AFTER UPDATE OF value ON langgraph_items BEGIN
            DELETE FROM langgraph_vectors WHERE id BETWEEN OLD.id << 16 AND (OLD.id << 16) + 65535;
        END""",
    """CREATE TRIGGER langgraph_vectors_put AFTER INSERT ON langgraph_vectors BEGIN
            INSERT INTO langgraph_sketches (id, dims, sketch)
            VALUES (NEW.id, length(NEW.embedding) / 4, vec_sketch(NEW.embedding));
        END""",
    """CREATE TRIGGER langgraph_vectors_deleted AFTER DELETE ON langgraph_vectors BEGIN
            DELETE FROM langgraph_sketches WHERE id = OLD.id;
        END""",
)


class Old(NamedTuple):
    """An item of an old file."""

    namespace: str
    key: str
    value: dict[str, Any]
    vectors: Sequence[Sequence[float]] = ()
    ttl: int | None = None


ITEMS: Final = [
    Old("users.ada", "one", {"text": "ab"}, [letters("ab")]),
    Old("users.ada", "many", {"text": ["a", "b", "abc"]}, [letters("a"), letters("b"), letters("abc")]),
    Old("users.ada", "plain", {"n": 1}),
    Old("users.bob", "one", {"text": "é"}, [letters("dde")], ttl=10**15),
    Old("users", "zero", {"text": ""}, [letters("")]),
    Old("users-b", "other model", {"text": "a"}, [[1.0, 2.0]]),
    *(Old(f"many.{n % 7}", str(n), {"text": "a" * n + "b"}, [letters("a" * n + "b")]) for n in range(100)),
]


def old_file(database: Path, items: Sequence[Old] = ITEMS) -> None:
    """Make a file of version 1."""
    sketched, *others = [sql for sql in VERSION_1 if "vec_sketch" in sql]
    assert others == []
    with walpool.Pool(database) as pool:
        schema.migrate(pool, "langgraph_store", [[sql for sql in VERSION_1 if sql != sketched]])
        statements: list[tuple[str, tuple[Any, ...]]] = []
        for number, item in enumerate(items, 1):
            expires_at = None if item.ttl is None else number + item.ttl
            row = (number, item.namespace, item.key, number, number, item.ttl, expires_at, json.dumps(item.value))
            statements.append(("INSERT INTO langgraph_items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row))
            for place, vector in enumerate(item.vectors):
                at = (number << 16) + place
                statements.append(("INSERT INTO langgraph_vectors VALUES (?, 'text', ?)", (at, pack(vector))))
                # The trigger that made it is added afterwards: the function that it calls is gone.
                sketch = (at, len(vector), b"of the old kind")
                statements.append(("INSERT INTO langgraph_sketches VALUES (?, ?, ?)", sketch))
        pool.batch(statements)
        pool.execute(sketched)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def expected(query: str, prefix: str = "") -> dict[tuple[str, str], float | None]:
    """Return the score of each item at and below a namespace."""
    wanted = [item for item in ITEMS if f"{item.namespace}.".startswith(prefix)]
    scores = {}
    for item in wanted:
        cosines = [cosine(vector, letters(query)) for vector in item.vectors if len(vector) == len(LETTERS)]
        scores[item.namespace, item.key] = pytest.approx(max(cosines), abs=1e-6) if cosines else None
    return scores


def check(store: Any) -> None:
    """Hold a store on an old file to what was in it."""
    for query in ("a", "abc", "de", "zzz"):
        for prefix in ((), ("users",), ("many",), ("many", "3")):
            found = store.search(prefix, query=query, limit=1000)
            path = "".join(f"{label}." for label in prefix)
            assert {(".".join(item.namespace), item.key): item.score for item in found} == expected(query, path)
            scores = [item.score for item in found if item.score is not None]
            assert scores == sorted(scores, reverse=True)
    for number, item in enumerate(ITEMS, 1):
        stored = store.get(tuple(item.namespace.split(".")), item.key, refresh_ttl=False)
        assert (stored.value, stored.created_at.microsecond) == (item.value, number)


def test_published_migration_is_unchanged() -> None:
    assert MIGRATIONS[0] == VERSION_1


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_version_1_loses_nothing(kind: str, database: Path) -> None:
    old_file(database)
    with opened_store(kind, database, index=INDEX) as store:
        check(store)
        store.put(("users", "ada"), "one", {"text": "c"})
        store.put(("users", "ada"), "plain", {"text": "cc"})
        store.delete(("users", "bob"), "one")
        found = store.search(("users",), query="c", limit=3)
        assert [item.key for item in found] == ["one", "plain", "many"]
        assert store.search(("users", "bob"), query="c") == []
    with walpool.Pool(database) as pool:
        derived = "SELECT space, key FROM langgraph_sketches WHERE gone = 0 ORDER BY key"
        assert pool.fetch(derived) == pool.fetch("SELECT length(embedding) / 4, id FROM langgraph_vectors ORDER BY id")


def test_nothing_of_version_1_is_left(database: Path) -> None:
    old_file(database)
    with WalpoolStore(database), walpool.Pool(database) as pool, walpool.Pool(":memory:") as other:
        schema.migrate(other, "langgraph_store", MIGRATIONS)
        tables = "SELECT type, name, sql FROM sqlite_schema WHERE name LIKE '%langgraph%' ORDER BY 1, 2"
        assert pool.fetch(tables) == other.fetch(tables)
        assert pool.check() == []
        assert pool.fetch("SELECT namespace FROM langgraph_scopes WHERE namespace NOT LIKE 'many%' ORDER BY 1") == [
            ("users",),
            ("users-b",),
            ("users.ada",),
            ("users.bob",),
        ]


def test_empty_file_of_version_1_becomes_one_of_version_2(database: Path) -> None:
    old_file(database, [])
    with WalpoolStore(database, index=INDEX) as store:
        assert store.search((), query="a") == []
        store.put(("n",), "k", {"text": "a"})
        assert [item.score for item in store.search((), query="a")] == [1.0]


@pytest.mark.parametrize("first", ["memory", "langgraph"])
def test_old_tables_of_two_kinds_in_one_file_do_not_stand_in_each_others_way(database: Path, first: str) -> None:
    # Triggers of either call a function that is gone, while the other's tables are changed.
    old_file(database)
    with walpool.Pool(database) as pool:
        schema.migrate(pool, "memory", MEMORY_MIGRATIONS[:1])
    if first == "memory":
        walpool.memory.open(database).close()
    with WalpoolStore(database, index=INDEX) as store, walpool.memory.open(database) as memory:
        check(store)
        assert memory.check() == []


def test_migration_that_fails_changes_nothing(database: Path) -> None:
    old_file(database)
    with walpool.Pool(database) as pool:
        everything = "SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2"
        pool.execute("CREATE TABLE langgraph_scopes (mine INTEGER)")
        before = pool.fetch(everything)
        with pytest.raises(errors.ProgrammingError, match="langgraph_scopes"):
            WalpoolStore(database)
        assert pool.fetch(everything) == before
        assert schema.version(pool, "langgraph_store") == 1
        assert pool.fetchval("SELECT DISTINCT sketch FROM langgraph_sketches") == b"of the old kind"
        pool.execute("DROP TABLE langgraph_scopes")
    with WalpoolStore(database, index=INDEX) as store:
        check(store)


WIDE: Final = 3000  # items of 2 KiB each, whose sketches take a while

# With a cache of 64 KiB a transaction writes into the WAL long before it commits.
KILLED = """
import os, signal, sys, threading
from walpool.langgraph import WalpoolStore
wal, least = sys.argv[1] + "-wal", int(sys.argv[2])
opening = threading.Thread(target=WalpoolStore, args=(sys.argv[1],), kwargs={"cache_size": "64KiB"}, daemon=True)
opening.start()
while opening.is_alive():
    if os.path.exists(wal) and os.path.getsize(wal) > least:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_process_that_is_killed_while_it_migrates_leaves_one_version_or_the_other(database: Path) -> None:
    wide = [Old("wide", str(n), {"n": n}, [[float(n == at) for at in range(512)]]) for n in range(WIDE)]
    old_file(database, [*ITEMS, *wide])
    versions = set()
    for least in (0, 100_000, 400_000):
        command = [sys.executable, "-c", KILLED, str(database), str(least)]
        assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
        with walpool.Pool(database) as pool:
            assert pool.check() == []
            versions.add(version := schema.version(pool, "langgraph_store"))
            sketched = {1: "sketch = CAST('of the old kind' AS BLOB)", 2: "length(sketch) > 24 AND gone = 0"}[version]
            found = pool.fetchval(f"SELECT count(*) FROM langgraph_sketches WHERE {sketched}")
            assert found == pool.fetchval("SELECT count(*) FROM langgraph_vectors")
    assert 1 in versions
    with WalpoolStore(database, index=INDEX) as store:
        store.batch([PutOp(("wide",), str(n), None) for n in range(WIDE)])
        check(store)
