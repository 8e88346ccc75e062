"""The tables of the memory store in PostgreSQL: their migrations; no I/O.

    memory_spaces       one row a collection of a tenant: its dims, its word index, and the number of its latest change
    memory_records      one row a record; `key` is the change with which it was first saved, `change` the latest one
    memory_vectors      key -> scope and embedding, NULL where there is none, and its half; one row a record

The tenant is on every row and first in every key, and no sequence gives a number: a job locks the row of its space and
counts on from there. So the changes of a space are numbered in the order in which they are committed, and what a
snapshot sees is what was changed up to a number: pages need no more than that. It costs the jobs of one collection
their turn; of the jobs that wait at once, group commit makes one turn.

What is derived from a record (`_postgres_words`, `_postgres_marks`) is made by whoever writes it, in the same
statement: no triggers. `check` compares it and `rebuild` makes it anew, as after a copy by other means.

A search reads hundreds of embeddings to return ten records. So the row of one has its direction in half precision, and
its length: enough to tell nearly all that cannot belong to the answer (`_postgres_vectors`), in a third of the page
that the embedding itself would take with what surrounds it. That one lies beside the row, unless both are small
(toast_tuple_target: two rows a page at least); the half never does (MAIN), since its pointer would cost more to follow
than all else of a search. The scope lies there too: most searches ask for nothing else, and need not look for each
embedding by its key (measured: half of such a search). The server makes the half itself, so that whoever writes an
embedding, by COPY for instance, writes it too.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MIGRATIONS", "TABLES"]

TABLES: Final = ("memory_spaces", "memory_records", "memory_vectors")

_OWNED: Final = 'tenant TEXT COLLATE "C" NOT NULL, collection TEXT COLLATE "C" NOT NULL'

_VERSION_1: Final = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    # The constraints refuse what is not this collection's (`_postgres_writes`).
    f"""CREATE TABLE memory_spaces (
        {_OWNED},
        words TEXT NOT NULL CONSTRAINT memory_spaces_words CHECK (words IN ('unicode61', 'trigram')),
        dims INTEGER CONSTRAINT memory_spaces_dims CHECK (dims > 0),
        epoch BIGINT NOT NULL,
        change BIGINT NOT NULL,
        PRIMARY KEY (tenant, collection)
    ) WITH (fillfactor = 50)""",
    f"""CREATE TABLE memory_records (
        {_OWNED},
        id TEXT COLLATE "C" NOT NULL,
        key BIGINT NOT NULL,
        change BIGINT NOT NULL,
        scope TEXT COLLATE "C" NOT NULL,
        content TEXT NOT NULL,
        categories TEXT NOT NULL,
        metadata TEXT NOT NULL,
        importance DOUBLE PRECISION NOT NULL,
        created_at BIGINT NOT NULL,
        accessed_at BIGINT NOT NULL,
        source TEXT COLLATE "C",
        private SMALLINT NOT NULL,
        words TSVECTOR NOT NULL,
        folded TEXT COLLATE "C",
        length INTEGER NOT NULL,
        category_marks UUID[] NOT NULL,
        metadata_marks UUID[] NOT NULL,
        metadata_order JSONB,
        PRIMARY KEY (tenant, collection, id)
    )""",
    f"""CREATE TABLE memory_vectors (
        {_OWNED},
        key BIGINT NOT NULL,
        scope TEXT COLLATE "C" NOT NULL,
        embedding VECTOR,
        PRIMARY KEY (tenant, collection, key)
    ) WITH (toast_tuple_target = 8160)""",
    "CREATE UNIQUE INDEX memory_records_key ON memory_records (tenant, collection, key)",
    "CREATE INDEX memory_records_scope ON memory_records (tenant, collection, scope, created_at, key)",
    "CREATE INDEX memory_vectors_scope ON memory_vectors (tenant, collection, scope)",
    "CREATE INDEX memory_records_created ON memory_records (tenant, collection, created_at, key)",
    "CREATE INDEX memory_records_source ON memory_records (tenant, collection, source) WHERE source IS NOT NULL",
    # The tenant is in every mark, and in a lexeme of every vector: these indexes are by tenant too.
    "CREATE INDEX memory_records_marks ON memory_records USING gin (category_marks, metadata_marks)",
    "CREATE INDEX memory_records_words ON memory_records USING gin (words)",
)

# Of a length that neither overflows half precision nor vanishes there; others are looked at themselves. One statement,
# and so one rewriting of the table, which asks no policy: an UPDATE by an owner under FORCE would find no rows.
_VERSION_2: Final = (
    """ALTER TABLE memory_vectors
        SET (toast_tuple_target = 4080),
        ADD COLUMN half HALFVEC GENERATED ALWAYS AS (CASE WHEN vector_norm(embedding) BETWEEN 1e-12 AND 1e12
            THEN CAST(l2_normalize(embedding) AS HALFVEC) END) STORED,
        ALTER COLUMN half SET STORAGE MAIN,
        ADD COLUMN norm DOUBLE PRECISION GENERATED ALWAYS AS (vector_norm(embedding)) STORED""",
)

MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""The statements of each version; a published one never changes."""
