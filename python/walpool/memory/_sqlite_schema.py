"""The tables of the memory store in SQLite: their migrations, and the triggers that keep what is derived; no I/O.

    memory_spaces           one row a collection of a tenant: its dims, its word index, the centroid of its sketches
    memory_scopes           the paths of a space, each with how many records lie right there
    memory_records          one row a record; `key` is what the other tables refer to
    memory_vectors          key -> embedding, NULL where there is none; one row a record
    memory_sketches         the latest state of each record, numbered as it came, so that what searches keep in memory
                            reads only what is new; of a deleted record a tombstone (gone = 1), until it is trimmed
    memory_categories       category -> records      memory_category_counts   how many there are in each scope
    memory_metadata         value of a top-level key, or element of a list there -> records
    memory_words            the words of the contents; memory_trigrams their trigrams (`_sqlite_words`)

The keys of a space adjoin, those of space s from (s - 1) * 2^40 + 1 to s * 2^40: in the word index, which is in order
of key, a space reads its own part alone.

What is derived is made in the transaction of its record by triggers, whoever writes: other programs too. Triggers
rather than foreign keys: they hold whatever `foreign_keys` is set to, and deferrable keys would cost every job a
savepoint.
"""

from __future__ import annotations

from typing import Final

from walpool.memory import _sqlite_values as values
from walpool.memory import _sqlite_words as words
from walpool.memory._sqlite_filters import KEY_BITS

__all__ = ["MIGRATIONS", "category_rows", "fill", "sketch"]

TRIM_AT: Final = 100_000
"""Changes that the oldest tombstone of a space may be behind before some are deleted."""
TRIM_TO: Final = 50_000
"""Changes that the others are behind then: one deletion in 50,000 pays for the work of all."""


def sketch(embedding: str, centroid: str) -> str:
    """Return the SQL of the sketch of an embedding around a centroid."""
    return f"vec_sketch({embedding}, {centroid})"


def category_rows(record: str, source: str = "", condition: str = "true") -> str:
    """Return the SELECT of the rows of `memory_categories` that belong to a record, one that it has twice twice."""
    return (
        f"SELECT {record}.space, c.value, {record}.key FROM {source}json_each({record}.categories) AS c"
        f" WHERE {condition}"
    )


def fill(condition: str = "true") -> dict[str, str]:
    """Return for each derived table the statement that fills it, for the records `r` that meet a condition."""
    return {
        "memory_scopes": f"""UPDATE memory_scopes AS r SET records =
        (SELECT count(*) FROM memory_records AS counted WHERE counted.scope = r.scope) WHERE {condition}""",
        **_inverted("r", "memory_records AS r, ", condition),
        "memory_category_counts": f"""INSERT INTO memory_category_counts (scope, category, records)
        SELECT r.scope, c.category, count(*) FROM memory_categories AS c JOIN memory_records AS r ON r.key = c.key
        WHERE {condition} GROUP BY r.scope, c.category""",
        "memory_sketches": f"""INSERT INTO memory_sketches (space, key, scope, gone, sketch)
        SELECT r.space, r.key, r.scope, 0, {sketch("v.embedding", "s.centroid")} FROM memory_records AS r
        JOIN memory_vectors AS v ON v.key = r.key JOIN memory_spaces AS s ON s.space = r.space
        WHERE {condition} ORDER BY r.key""",
    }


def _inverted(record: str, source: str = "", condition: str = "true") -> dict[str, str]:
    keys, elements = values.rows(record, source, condition)
    # What comes twice is left out by the key of the table: DISTINCT or UNION would cost each record a table in memory.
    metadata = "INSERT INTO memory_metadata (space, name, element, kind, value, key) {} ON CONFLICT DO NOTHING"
    return {
        "memory_categories": f"""INSERT INTO memory_categories (space, category, key)
        {category_rows(record, source, condition)} ON CONFLICT DO NOTHING""",
        "memory_metadata": metadata.format(keys),
        "the elements of lists": metadata.format(elements),
    }


_VERSION_1: Final = (
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

_TABLES: Final = (
    """CREATE TABLE memory_spaces (
        space INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        collection TEXT NOT NULL,
        words TEXT NOT NULL,
        dims INTEGER,
        centroid BLOB,
        epoch INTEGER NOT NULL DEFAULT 0,
        trimmed INTEGER NOT NULL DEFAULT 0,
        resetting INTEGER NOT NULL DEFAULT 0,
        UNIQUE (tenant, collection)
    ) STRICT""",
    """CREATE TABLE memory_scopes (
        scope INTEGER PRIMARY KEY,
        space INTEGER NOT NULL,
        path TEXT NOT NULL,
        records INTEGER NOT NULL DEFAULT 0,
        UNIQUE (space, path)
    ) STRICT""",
    f"""CREATE TABLE memory_records (
        key INTEGER PRIMARY KEY CHECK (key > (space - 1 << {KEY_BITS}) AND key <= space << {KEY_BITS}),
        space INTEGER NOT NULL,
        id TEXT NOT NULL,
        scope INTEGER NOT NULL,
        content TEXT NOT NULL,
        categories TEXT NOT NULL DEFAULT '[]',
        metadata TEXT NOT NULL DEFAULT '{{}}',
        importance REAL NOT NULL,
        created_at INTEGER NOT NULL,
        accessed_at INTEGER NOT NULL,
        source TEXT,
        private INTEGER NOT NULL,
        UNIQUE (space, id)
    ) STRICT""",
    """CREATE TABLE memory_categories (
        space INTEGER NOT NULL,
        category TEXT NOT NULL,
        key INTEGER NOT NULL,
        PRIMARY KEY (space, category, key)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE memory_category_counts (
        scope INTEGER NOT NULL,
        category TEXT NOT NULL,
        records INTEGER NOT NULL,
        PRIMARY KEY (scope, category)
    ) STRICT, WITHOUT ROWID""",
    # No index by key: what a record has here follows from its metadata, so its rows are found without one.
    """CREATE TABLE memory_metadata (
        space INTEGER NOT NULL,
        name TEXT NOT NULL,
        element INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        value ANY NOT NULL,
        key INTEGER NOT NULL,
        PRIMARY KEY (space, name, element, kind, value, key)
    ) STRICT, WITHOUT ROWID""",
    # AUTOINCREMENT: a number that was given never comes again, whatever is deleted.
    """CREATE TABLE memory_sketches (
        change INTEGER PRIMARY KEY AUTOINCREMENT,
        space INTEGER NOT NULL,
        key INTEGER NOT NULL UNIQUE,
        scope INTEGER NOT NULL,
        gone INTEGER NOT NULL,
        sketch BLOB
    ) STRICT""",
)

_INDEXES: Final = (
    "CREATE INDEX memory_records_scope ON memory_records (scope, created_at)",
    "CREATE INDEX memory_records_created ON memory_records (space, created_at, key, scope)",
    "CREATE INDEX memory_records_source ON memory_records (space, source) WHERE source IS NOT NULL",
    "CREATE INDEX memory_sketches_space ON memory_sketches (space)",
    "CREATE INDEX memory_sketches_gone ON memory_sketches (space, change) WHERE gone = 1",
)

_COPY: Final = (
    """INSERT INTO memory_spaces (tenant, collection, words, dims)
        SELECT '', 'memory', 'unicode61', (SELECT dims FROM memory_space)
        WHERE EXISTS (SELECT 1 FROM memory_records_1) OR EXISTS (SELECT 1 FROM memory_space)""",
    """INSERT INTO memory_scopes (space, path)
        SELECT DISTINCT (SELECT space FROM memory_spaces), scope FROM memory_records_1""",
    """INSERT INTO memory_records (key, space, id, scope, content, categories, metadata, importance, created_at,
            accessed_at, source, private)
        SELECT r.key, s.space, r.id, s.scope, r.content, (SELECT json_group_array(c.category ORDER BY c.position)
            FROM memory_categories_1 AS c WHERE c.key = r.key), r.metadata, r.importance, r.created_at, r.accessed_at,
            r.source, r.private
        FROM memory_records_1 AS r JOIN memory_scopes AS s ON s.path = r.scope""",
    "INSERT INTO memory_vectors (key) SELECT key FROM memory_records WHERE true ON CONFLICT DO NOTHING",
)

_COUNT_CATEGORIES: Final = """INSERT INTO memory_category_counts (scope, category, records)
            SELECT DISTINCT NEW.scope, value, 1 FROM json_each(NEW.categories) WHERE true
            ON CONFLICT (scope, category) DO UPDATE SET records = records + 1;"""
_UNCOUNT_CATEGORIES: Final = """UPDATE memory_category_counts SET records = records - 1
            WHERE scope = OLD.scope AND category IN (SELECT value FROM json_each(OLD.categories));"""
_DROP_CATEGORIES: Final = f"""DELETE FROM memory_categories
            WHERE (space, category, key) IN ({category_rows("OLD")});"""
_DROP_METADATA: Final = "".join(
    f"""
            DELETE FROM memory_metadata WHERE (space, name, element, kind, value, key) IN ({rows});"""
    for rows in values.rows("OLD")
)
_NEW: Final = _inverted("NEW")

# A state is an upsert that takes the number of the row that it did not insert: an INSERT OR REPLACE would not do, since
# in a trigger the conflict clause of the outer statement counts. https://www.sqlite.org/lang_createtrigger.html
# The first embedding fixes the dims: here rather than in Python, since two processes may both be first. The database
# makes the sketch, whoever writes the vector: one of another vector would hide its record from searches.
_VECTOR: Final = f"""
            UPDATE memory_spaces SET dims = length(NEW.embedding) / 4 WHERE dims IS NULL AND NEW.embedding IS NOT NULL
                AND space = (SELECT space FROM memory_records WHERE key = NEW.key);
            SELECT RAISE(ABORT, 'another length than the dims of this store') FROM memory_records AS r
                JOIN memory_spaces AS s ON s.space = r.space
                WHERE r.key = NEW.key AND s.dims * 4 <> length(NEW.embedding);
            INSERT INTO memory_sketches (space, key, scope, gone, sketch)
                SELECT r.space, r.key, r.scope, 0, {sketch("NEW.embedding", "s.centroid")} FROM memory_records AS r
                JOIN memory_spaces AS s ON s.space = r.space WHERE r.key = NEW.key
                ON CONFLICT (key) DO UPDATE SET change = excluded.change, space = excluded.space,
                scope = excluded.scope, gone = 0, sketch = excluded.sketch;
            SELECT RAISE(ABORT, 'an embedding with a number that is none') FROM memory_sketches
                WHERE key = NEW.key AND sketch IS NULL AND NEW.embedding IS NOT NULL;"""
_NOT_RESETTING: Final = "(SELECT resetting FROM memory_spaces WHERE space = OLD.space) = 0"

_TRIGGERS: Final = (
    """CREATE TRIGGER memory_spaces_words BEFORE UPDATE OF words ON memory_spaces WHEN NEW.words <> OLD.words BEGIN
            SELECT RAISE(ABORT, 'another word index than that of this store');
        END""",
    """CREATE TRIGGER memory_records_saved AFTER INSERT ON memory_records BEGIN
            UPDATE memory_scopes SET records = records + 1 WHERE scope = NEW.scope;
        END""",
    f"""CREATE TRIGGER memory_records_saved_categories AFTER INSERT ON memory_records WHEN NEW.categories <> '[]' BEGIN
            {_NEW["memory_categories"]};
            {_COUNT_CATEGORIES}
        END""",
    f"""CREATE TRIGGER memory_records_saved_metadata AFTER INSERT ON memory_records WHEN NEW.metadata <> '{{}}' BEGIN
            {_NEW["memory_metadata"]};
            {_NEW["the elements of lists"]};
        END""",
    # `touch` sets a column that is not among these, and costs none of it.
    """CREATE TRIGGER memory_records_replaced AFTER UPDATE OF id, scope, content, categories, metadata, importance,
            created_at, source, private ON memory_records BEGIN
            INSERT INTO memory_sketches (space, key, scope, gone) VALUES (NEW.space, NEW.key, NEW.scope, 0)
                ON CONFLICT (key) DO UPDATE SET change = excluded.change, scope = excluded.scope, gone = 0;
        END""",
    """CREATE TRIGGER memory_records_moved AFTER UPDATE OF scope ON memory_records WHEN NEW.scope <> OLD.scope BEGIN
            UPDATE memory_scopes SET records = records - 1 WHERE scope = OLD.scope;
            UPDATE memory_scopes SET records = records + 1 WHERE scope = NEW.scope;
        END""",
    f"""CREATE TRIGGER memory_records_refiled AFTER UPDATE OF scope, categories ON memory_records
            WHEN NEW.scope <> OLD.scope OR NEW.categories <> OLD.categories BEGIN
            {_UNCOUNT_CATEGORIES}
            {_DROP_CATEGORIES}
            {_NEW["memory_categories"]};
            {_COUNT_CATEGORIES}
        END""",
    f"""CREATE TRIGGER memory_records_remarked AFTER UPDATE OF metadata ON memory_records
            WHEN NEW.metadata <> OLD.metadata BEGIN
            {_DROP_METADATA}
            {_NEW["memory_metadata"]};
            {_NEW["the elements of lists"]};
        END""",
    f"""CREATE TRIGGER memory_records_deleted AFTER DELETE ON memory_records WHEN {_NOT_RESETTING} BEGIN
            UPDATE memory_scopes SET records = records - 1 WHERE scope = OLD.scope;
            DELETE FROM memory_vectors WHERE key = OLD.key;
            INSERT INTO memory_sketches (space, key, scope, gone) VALUES (OLD.space, OLD.key, OLD.scope, 1)
                ON CONFLICT (key) DO UPDATE SET change = excluded.change, gone = 1, sketch = NULL;
        END""",
    f"""CREATE TRIGGER memory_records_deleted_categories AFTER DELETE ON memory_records
            WHEN OLD.categories <> '[]' AND {_NOT_RESETTING} BEGIN
            {_UNCOUNT_CATEGORIES}
            {_DROP_CATEGORIES}
        END""",
    f"""CREATE TRIGGER memory_records_deleted_metadata AFTER DELETE ON memory_records
            WHEN OLD.metadata <> '{{}}' AND {_NOT_RESETTING} BEGIN
            {_DROP_METADATA}
        END""",
    f"CREATE TRIGGER memory_vectors_saved AFTER INSERT ON memory_vectors BEGIN{_VECTOR}\n        END",
    f"CREATE TRIGGER memory_vectors_replaced AFTER UPDATE OF embedding ON memory_vectors BEGIN{_VECTOR}\n        END",
    f"""CREATE TRIGGER memory_sketches_trimmed AFTER UPDATE OF gone ON memory_sketches WHEN NEW.gone = 1
            AND (SELECT min(change) FROM memory_sketches WHERE space = NEW.space AND gone = 1) < NEW.change - {TRIM_AT}
            BEGIN
            UPDATE memory_spaces SET trimmed = NEW.change - {TRIM_TO} WHERE space = NEW.space;
            DELETE FROM memory_sketches WHERE space = NEW.space AND gone = 1 AND change <= NEW.change - {TRIM_TO};
        END""",
)

# The keys stay, and with them the embeddings, which are most of a file. What is derived is filled before its triggers
# are made, and the indexes after the rows.
_VERSION_2: Final = (
    "DROP TRIGGER memory_records_deleted",
    "DROP TRIGGER memory_vectors_dims",
    "DROP TRIGGER memory_vectors_put",
    "DROP TRIGGER memory_vectors_replaced",
    "DROP INDEX memory_records_scope",
    "DROP INDEX memory_records_created",
    "DROP INDEX memory_categories_name",
    "DROP TABLE memory_sketches",
    "ALTER TABLE memory_records RENAME TO memory_records_1",
    "ALTER TABLE memory_categories RENAME TO memory_categories_1",
    *_TABLES,
    *_COPY,
    "DROP TABLE memory_records_1",
    "DROP TABLE memory_categories_1",
    "DROP TABLE memory_space",
    *_INDEXES,
    *words.TABLES,
    *fill().values(),
    *words.REBUILD.values(),
    *_TRIGGERS,
    *words.TRIGGERS,
)

MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""The statements of each version; a published one never changes."""
