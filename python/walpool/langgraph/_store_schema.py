"""The tables of the LangGraph store in SQLite: their migrations, and the triggers that keep what is derived; no I/O.

    langgraph_items      one row an item; the wide `value` comes last, so that the others are read without it
    langgraph_vectors    the embeddings of an item: 65 536 ids for each, from `item << 16` on
    langgraph_spaces     one row for the vectors of each dims, which are searched by themselves; `space` is the dims
    langgraph_scopes     the namespaces in which there are vectors, each with a number
    langgraph_sketches   the latest state of each vector, numbered as it came, so that what searches keep in memory
                         reads only what is new; of a deleted vector a tombstone (gone = 1), until it is trimmed

Vectors, spaces and sketches are what `vec_nearest` reads. An item's vectors lie side by side, and are found without
an index.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MIGRATIONS"]

_VERSION_1: Final = (
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
    # Triggers rather than foreign keys: they hold whatever `foreign_keys` is set to. A value that is put again has
    # no vector until new ones are put in the same transaction: none of them speaks of a value that is gone.
    """CREATE TRIGGER langgraph_items_deleted AFTER DELETE ON langgraph_items BEGIN
            DELETE FROM langgraph_vectors WHERE id BETWEEN OLD.id << 16 AND (OLD.id << 16) + 65535;
        END""",
    """CREATE TRIGGER langgraph_items_replaced AFTER UPDATE OF value ON langgraph_items BEGIN
            DELETE FROM langgraph_vectors WHERE id BETWEEN OLD.id << 16 AND (OLD.id << 16) + 65535;
        END""",
    # These two are of an older kind of sketch, and the functions that made and read it are gone.
    """CREATE TRIGGER langgraph_vectors_put AFTER INSERT ON langgraph_vectors BEGIN
            INSERT INTO langgraph_sketches (id, dims, sketch)
            VALUES (NEW.id, length(NEW.embedding) / 4, vec_sketch(NEW.embedding));
        END""",
    """CREATE TRIGGER langgraph_vectors_deleted AFTER DELETE ON langgraph_vectors BEGIN
            DELETE FROM langgraph_sketches WHERE id = OLD.id;
        END""",
)

_TABLES: Final = (
    """CREATE TABLE langgraph_spaces (
        space INTEGER PRIMARY KEY,
        dims INTEGER NOT NULL,
        centroid BLOB,
        epoch INTEGER NOT NULL DEFAULT 0,
        trimmed INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE TABLE langgraph_scopes (scope INTEGER PRIMARY KEY, namespace TEXT NOT NULL UNIQUE) STRICT",
    # AUTOINCREMENT: a number that was given never comes again, whatever is deleted. The key is not alone in its index,
    # since a vector of other dims may come under it: then the space that it was in keeps its tombstone.
    """CREATE TABLE langgraph_sketches (
        change INTEGER PRIMARY KEY AUTOINCREMENT,
        space INTEGER NOT NULL,
        key INTEGER NOT NULL,
        scope INTEGER NOT NULL,
        gone INTEGER NOT NULL,
        sketch BLOB CHECK (gone = 1 OR sketch IS NOT NULL),
        UNIQUE (key, space)
    ) STRICT""",
)

_FILL: Final = (
    """INSERT INTO langgraph_spaces (space, dims)
        SELECT DISTINCT length(embedding) / 4, length(embedding) / 4 FROM langgraph_vectors""",
    """INSERT INTO langgraph_scopes (namespace) SELECT DISTINCT i.namespace FROM langgraph_items AS i WHERE EXISTS (
        SELECT 1 FROM langgraph_vectors AS v WHERE v.id BETWEEN i.id << 16 AND (i.id << 16) + 65535)""",
    """INSERT INTO langgraph_sketches (space, key, scope, gone, sketch)
        SELECT length(v.embedding) / 4, v.id, c.scope, 0, vec_sketch(v.embedding, NULL) FROM langgraph_vectors AS v
        CROSS JOIN langgraph_items AS i ON i.id = v.id >> 16
        CROSS JOIN langgraph_scopes AS c ON c.namespace = i.namespace ORDER BY v.id""",
)

_INDEXES: Final = (
    "CREATE INDEX langgraph_sketches_space ON langgraph_sketches (space)",
    "CREATE INDEX langgraph_sketches_gone ON langgraph_sketches (space, change) WHERE gone = 1",
)

_NAMESPACE: Final = "(SELECT namespace FROM langgraph_items WHERE id = NEW.id >> 16)"

# A state is an upsert that takes the number of the row that it did not insert: an INSERT OR REPLACE would not do, since
# in a trigger the conflict clause of the outer statement counts. https://www.sqlite.org/lang_createtrigger.html
# The database makes the sketch, whoever writes the vector: one of another vector would hide its item from searches.
_SKETCHED: Final = f"""
            INSERT INTO langgraph_spaces (space, dims)
                VALUES (length(NEW.embedding) / 4, length(NEW.embedding) / 4) ON CONFLICT (space) DO NOTHING;
            INSERT INTO langgraph_scopes (namespace)
                SELECT namespace FROM langgraph_items WHERE id = NEW.id >> 16 ON CONFLICT (namespace) DO NOTHING;
            INSERT INTO langgraph_sketches (space, key, scope, gone, sketch)
                SELECT s.space, NEW.id, c.scope, 0, vec_sketch(NEW.embedding, s.centroid)
                FROM langgraph_spaces AS s CROSS JOIN langgraph_scopes AS c ON c.namespace = {_NAMESPACE}
                WHERE s.space = length(NEW.embedding) / 4
                ON CONFLICT (key, space) DO UPDATE SET change = excluded.change, scope = excluded.scope, gone = 0,
                sketch = excluded.sketch;"""
_GONE: Final = """
            INSERT INTO langgraph_sketches (space, key, scope, gone) VALUES (length(OLD.embedding) / 4, OLD.id, 0, 1)
                ON CONFLICT (key, space) DO UPDATE SET change = excluded.change, gone = 1, sketch = NULL;"""
_TRIGGERS: Final = (
    """CREATE TRIGGER langgraph_items_deleted AFTER DELETE ON langgraph_items BEGIN
            DELETE FROM langgraph_vectors WHERE id BETWEEN OLD.id << 16 AND (OLD.id << 16) + 65535;
            DELETE FROM langgraph_scopes WHERE namespace = OLD.namespace
                AND NOT EXISTS (SELECT 1 FROM langgraph_items WHERE namespace = OLD.namespace);
        END""",
    f"CREATE TRIGGER langgraph_vectors_put AFTER INSERT ON langgraph_vectors BEGIN{_SKETCHED}\n        END",
    f"CREATE TRIGGER langgraph_vectors_replaced AFTER UPDATE ON langgraph_vectors BEGIN{_SKETCHED}\n        END",
    f"""CREATE TRIGGER langgraph_vectors_left AFTER UPDATE ON langgraph_vectors
            WHEN length(NEW.embedding) <> length(OLD.embedding) BEGIN{_GONE}
        END""",
    f"CREATE TRIGGER langgraph_vectors_deleted AFTER DELETE ON langgraph_vectors BEGIN{_GONE}\n        END",
    # Once the oldest tombstone of a space is 100,000 changes behind, those go that are 50,000 behind: one deletion in
    # 50,000 pays for the work of all.
    """CREATE TRIGGER langgraph_sketches_trimmed AFTER UPDATE OF gone ON langgraph_sketches WHEN NEW.gone = 1
            AND (SELECT min(change) FROM langgraph_sketches WHERE space = NEW.space AND gone = 1) < NEW.change - 100000
            BEGIN
            UPDATE langgraph_spaces SET trimmed = NEW.change - 50000 WHERE space = NEW.space;
            DELETE FROM langgraph_sketches WHERE space = NEW.space AND gone = 1 AND change <= NEW.change - 50000;
        END""",
)

# The vectors stay, which are most of a file. From here on they are replaced in their places, by whoever puts the value
# (`_store_sql.put_vectors`): deleting them first wrote twice as many pages. What is derived from them is filled before
# its triggers are made, and the indexes after the rows.
_VERSION_2: Final = (
    "DROP TRIGGER langgraph_items_deleted",
    "DROP TRIGGER langgraph_items_replaced",
    "DROP TRIGGER langgraph_vectors_put",
    "DROP TRIGGER langgraph_vectors_deleted",
    "DROP TABLE langgraph_sketches",
    *_TABLES,
    *_FILL,
    *_INDEXES,
    *_TRIGGERS,
)

MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""The statements of each version; a published one never changes."""
