"""Memories on plain SQLite: with the extension sqlite-vec, and as people write it by hand, with blobs and NumPy.

Both have the same table of records, an FTS5 index kept by triggers, WAL, and a connection for each thread.
"""

from __future__ import annotations

import importlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from benches.contenders import BUSY_TIMEOUT_S, CACHE_KIB, STATEMENT_CACHE, Row, connect
from benches.memory_contenders import PARENT, Store
from benches.memory_data import ALL, NARROW, Item, Selection

FUSED = 50  # hits of each side that a hybrid search fuses
RRF_K = 60

_TABLES = (
    """CREATE TABLE records (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL, scope TEXT NOT NULL,
        categories TEXT NOT NULL, metadata TEXT NOT NULL, tier TEXT NOT NULL, importance REAL NOT NULL,
        created_at TEXT NOT NULL, accessed_at TEXT NOT NULL)""",
    "CREATE INDEX records_by_scope ON records (scope)",
    "CREATE INDEX records_by_tier ON records (tier)",
    "CREATE VIRTUAL TABLE words USING fts5 (content, content = 'records', content_rowid = 'number')",
    """CREATE TRIGGER records_words AFTER INSERT ON records
        BEGIN INSERT INTO words (rowid, content) VALUES (new.number, new.content); END""",
)
_INSERT = """INSERT INTO records
    (id, content, scope, categories, metadata, tier, importance, created_at, accessed_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_COLUMNS = "records.number, id, records.content, scope, categories, metadata, importance, created_at, accessed_at"
_WORDS = f"""SELECT {_COLUMNS}, rank FROM words JOIN records ON number = words.rowid
    WHERE words MATCH ? ORDER BY rank LIMIT ?"""
_SCOPES = "SELECT scope, count(*) FROM records WHERE scope > ? || '/' AND scope < ? || '0' GROUP BY scope"
_CATEGORIES = "SELECT value, count(*) FROM records, json_each(categories) GROUP BY value ORDER BY value"


class OnSqlite(Store):
    """What both have in common; the classes below say where a vector lies and how it is searched."""

    insert_vector: ClassVar[str]

    def vectors_table(self, dims: int) -> str:
        """Return the statement that makes the table of vectors."""
        raise NotImplementedError

    @contextmanager
    def opened(self, folder: Path, synchronous: str, cache_kib: int | None = None) -> Iterator[Any]:
        self._where = (str(folder / "memory.db"), synchronous, CACHE_KIB if cache_kib is None else cache_kib)
        self._local = threading.local()
        self._connections: list[Any] = []
        try:
            yield self
        finally:
            for conn in self._connections:
                conn.close()

    @classmethod
    def connect(cls, path: str, synchronous: str) -> Any:
        """Open a connection."""
        return connect(path, synchronous)

    @property
    def _conn(self) -> Any:
        conn = getattr(self._local, "conn", None)
        if conn is None:
            path, synchronous, cache_kib = self._where
            conn = self._local.conn = self.connect(path, synchronous)
            conn.execute(f"PRAGMA cache_size = -{cache_kib}")
            self._connections.append(conn)
        return conn

    def load(self, items: Sequence[Item]) -> None:
        """Store records in the one transaction that `settle` commits."""
        execute = self._conn.execute
        if not self._conn.in_transaction:
            execute("PRAGMA journal_mode = WAL").fetchall()
            for statement in (*_TABLES, self.vectors_table(len(items[0].vector))):
                execute(statement)
            execute("BEGIN IMMEDIATE")
        for item in items:
            self._insert(item, self.pack(item.vector))

    def settle(self) -> None:
        self._conn.execute("COMMIT")
        self._conn.execute("PRAGMA optimize").fetchall()
        self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def pack(self, vector: Any) -> Any:
        return vector.astype("<f4").tobytes()

    def save(self, item: Item, packed: Any) -> None:
        execute = self._conn.execute
        execute("BEGIN IMMEDIATE")
        try:
            self._insert(item, packed)
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise

    def _insert(self, item: Item, packed: Any) -> None:
        categories, metadata, made = json.dumps(item.categories), json.dumps(item.metadata), item.created_at.isoformat()
        row = (item.id, item.content, item.scope, categories, metadata, item.tier, item.importance, made, made)
        self._conn.execute(_INSERT, row)
        self._conn.execute(self.insert_vector, self._vector_row(item, packed))

    def _vector_row(self, item: Item, packed: Any) -> Row:
        return (packed,)

    def numbers(self, answer: Any) -> list[int]:
        return [int(row[1].removeprefix("record-")) for row in answer]

    def words(self, text: str, limit: int) -> Any:
        return self._conn.execute(_WORDS, (" ".join(f'"{word}"' for word in text.split()), limit)).fetchall()

    def hybrid(self, text: str, question: Any, limit: int) -> Any:
        any_word = " OR ".join(f'"{word}"' for word in text.split())
        sides = (
            self._conn.execute(_WORDS, (any_word, FUSED)).fetchall(),
            self.search(question, ALL, FUSED),
        )
        scores: Counter[int] = Counter()
        for side in sides:
            scores.update({row[0]: 1 / (RRF_K + rank) for rank, row in enumerate(side, 1)})
        rows = {row[0]: row for side in sides for row in side}
        return [rows[number] for number, _ in scores.most_common(limit)]

    def contents(self, answer: Any) -> list[str]:
        return [row[2] for row in answer]

    def count(self) -> int:
        return int(self._conn.execute("SELECT count(*) FROM records").fetchall()[0][0])

    def scopes(self) -> Any:
        children: Counter[str] = Counter()
        for scope, records in self._conn.execute(_SCOPES, (PARENT, PARENT)).fetchall():
            children["/".join(scope.split("/")[: PARENT.count("/") + 2])] += records
        return children

    def categories(self) -> dict[str, int]:
        return dict(self._conn.execute(_CATEGORIES).fetchall())


class SqliteVec(OnSqlite):
    """sqlite-vec: a `vec0` table whose metadata columns are what searches filter by."""

    name = "sqlite-vec"
    requires = ("sqlite_vec", "numpy")
    insert_vector = "INSERT INTO vectors VALUES (last_insert_rowid(), ?, ?, ?)"

    def vectors_table(self, dims: int) -> str:
        return (
            "CREATE VIRTUAL TABLE vectors USING vec0 "
            f"(number INTEGER PRIMARY KEY, embedding float[{dims}] distance_metric=cosine, scope TEXT, tier TEXT)"
        )

    @classmethod
    def obstacle(cls) -> str | None:
        if hasattr(sqlite3.Connection, "enable_load_extension"):
            return None
        try:
            importlib.import_module("apsw")
        except ImportError:
            return "this Python's sqlite3 loads no extensions, and apsw is not installed"
        return None

    @classmethod
    def connect(cls, path: str, synchronous: str) -> Any:
        """Open a connection of sqlite3, or of apsw where Python's sqlite3 is built without extensions."""
        import sqlite_vec  # type: ignore[import-untyped]

        if hasattr(sqlite3.Connection, "enable_load_extension"):
            conn = connect(path, synchronous)
            conn.enable_load_extension(True)
            conn.load_extension(sqlite_vec.loadable_path())
            return conn
        return _connect_apsw(path, synchronous, sqlite_vec.loadable_path())

    def _vector_row(self, item: Item, packed: Any) -> Row:
        return packed, item.scope, item.tier

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        condition, params = self._condition(selection)
        sql = f"""WITH nearest AS (SELECT number, distance FROM vectors WHERE embedding MATCH ? AND k = ? {condition})
            SELECT {_COLUMNS}, distance FROM nearest JOIN records USING (number) ORDER BY distance"""
        return self._conn.execute(sql, (question, limit, *params)).fetchall()

    @staticmethod
    def _condition(selection: Selection) -> tuple[str, Row]:
        if selection.tier is not None:
            return "AND tier = ?", (selection.tier,)
        if selection.scope is None:
            return "", ()
        if selection.scope == NARROW.scope:  # nothing lies below it, and it is faster than a range
            return "AND scope = ?", (selection.scope,)
        return "AND scope > ? AND scope < ?", (f"{selection.scope}/", f"{selection.scope}0")


def _connect_apsw(path: str, synchronous: str, extension: str) -> Any:
    import apsw

    conn = apsw.Connection(path, statementcachesize=STATEMENT_CACHE)
    conn.set_busy_timeout(int(BUSY_TIMEOUT_S * 1_000))
    conn.execute(f"PRAGMA synchronous = {synchronous}")
    conn.enable_load_extension(True)
    conn.load_extension(extension)
    return conn


class BlobsAndNumpy(OnSqlite):
    """What is often written by hand: blobs in a table, read for each search and compared by NumPy."""

    name = "blobs-numpy"
    requires = ("numpy",)
    insert_vector = "INSERT INTO vectors VALUES (last_insert_rowid(), ?)"

    def vectors_table(self, dims: int) -> str:
        return "CREATE TABLE vectors (number INTEGER PRIMARY KEY, embedding BLOB NOT NULL)"

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        import numpy as np

        condition, params = self._condition(selection)
        sql = f"SELECT number, embedding FROM vectors JOIN records USING (number) {condition}"
        rows = self._conn.execute(sql if condition else "SELECT number, embedding FROM vectors", params).fetchall()
        vectors = np.frombuffer(b"".join([row[1] for row in rows]), dtype="<f4").reshape(len(rows), -1)
        scores = vectors @ np.frombuffer(question, dtype="<f4")
        best = np.argsort(-scores)[:limit]
        found = [rows[i][0] for i in best]
        marks = ", ".join("?" * len(found))
        of = {
            row[0]: row
            for row in self._conn.execute(f"SELECT {_COLUMNS} FROM records WHERE number IN ({marks})", found)
        }
        return [of[number] for number in found]

    @staticmethod
    def _condition(selection: Selection) -> tuple[str, Row]:
        if selection.tier is not None:
            return "WHERE tier = ?", (selection.tier,)
        if selection.scope is None:
            return "", ()
        scope = selection.scope
        return "WHERE scope = ? OR scope > ? AND scope < ?", (scope, f"{scope}/", f"{scope}0")
