"""The word index in SQLite's terms: FTS5 over the contents of `memory_records`, and the reads that rank by it; no I/O.

    memory_words        the spaces whose words are those of `unicode61`, accents folded
    memory_trigrams     the spaces that are indexed by each three characters

External content: the index holds no text of its own, and finds it by `key`, which a VACUUM keeps. Triggers feed it in
the transaction of the record, whoever writes, and a record that is only touched costs it nothing. The records' conflict
clause is ON CONFLICT DO UPDATE: a REPLACE would delete without the trigger.
https://www.sqlite.org/fts5.html#external_content_tables

Measured with 100,000 contents of 250 characters: the index has 17 MB for 25 MB of text, with the positions that phrases
need (`detail=full`). No `prefix=` index: the words with a beginning of two letters are found in 0.5 ms without one.
`columnsize` stays, since FTS5's own ranking of a raw query reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["CHECK", "CONFIGURED", "OPTIMIZE", "REBUILD", "TABLES", "TABLE_OF", "TRIGGERS", "forget"]

TABLE_OF: Final[Mapping[str, str]] = {"unicode61": "memory_words", "trigram": "memory_trigrams"}
"""By `memory_spaces.words`."""

CONFIGURED: Final[Mapping[str, str]] = {
    "unicode61": "tokenize = 'unicode61 remove_diacritics 2'",
    "trigram": "tokenize = 'trigram remove_diacritics 1'",
}
"""What makes each table tokenize as it does."""


def _tables(tokenizer: str, table: str) -> tuple[str, ...]:
    # A view, so that `rebuild` and the check see the same records as the triggers: those of the spaces with this index.
    return (
        f"""CREATE VIEW {table}_content AS SELECT r.key, r.content FROM memory_records AS r
        WHERE (SELECT words FROM memory_spaces AS s WHERE s.space = r.space) = '{tokenizer}'""",
        f"""CREATE VIRTUAL TABLE {table} USING fts5(
        content, content = '{table}_content', content_rowid = 'key', {CONFIGURED[tokenizer]})""",
    )


def _triggers(tokenizer: str, table: str) -> tuple[str, ...]:
    def is_indexed(row: str, more: str = "") -> str:
        return f"(SELECT words FROM memory_spaces WHERE space = {row}.space{more}) = '{tokenizer}'"

    insert = f"INSERT INTO {table} (rowid, content) VALUES (NEW.key, NEW.content);"
    delete = f"INSERT INTO {table} ({table}, rowid, content) VALUES ('delete', OLD.key, OLD.content);"
    return (
        f"CREATE TRIGGER {table}_saved AFTER INSERT ON memory_records WHEN {is_indexed('NEW')} BEGIN {insert} END",
        f"""CREATE TRIGGER {table}_replaced AFTER UPDATE OF content ON memory_records
        WHEN NEW.content <> OLD.content AND {is_indexed("NEW")} BEGIN {delete} {insert} END""",
        # A space that is being reset was forgotten as a whole (`forget`).
        f"""CREATE TRIGGER {table}_deleted AFTER DELETE ON memory_records
        WHEN {is_indexed("OLD", " AND resetting = 0")} BEGIN {delete} END""",
    )


TABLES: Final = tuple(statement for pair in TABLE_OF.items() for statement in _tables(*pair))
"""The statements that make the tables; after `memory_records` and `memory_spaces`."""

TRIGGERS: Final = tuple(statement for pair in TABLE_OF.items() for statement in _triggers(*pair))
"""The statements that make the triggers; after `REBUILD`, where there are records already."""

REBUILD: Final = {
    tokenizer: f"INSERT INTO {table} ({table}) VALUES ('rebuild')" for tokenizer, table in TABLE_OF.items()
}
"""The statement that makes each index anew, for every space in the file."""

# The rank asks for a comparison with the contents. https://www.sqlite.org/fts5.html#the_integrity_check_command
CHECK: Final = {
    tokenizer: f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)"
    for tokenizer, table in TABLE_OF.items()
}
"""The statement that fails with a CorruptError where an index differs from the contents; it writes nothing."""

OPTIMIZE: Final = {
    tokenizer: f"INSERT INTO {table} ({table}) VALUES ('optimize')" for tokenizer, table in TABLE_OF.items()
}
"""The statement that merges each index into one piece, which reads fastest."""


def forget(tokenizer: str, space: str) -> str:
    """Return the statement that takes a whole space out of its index, before its records are deleted.

    One statement, since FTS5 writes its changes out at the end of each.

    Args:
        tokenizer: of the space.
        space: SQL for the number of the space.
    """
    table = TABLE_OF[tokenizer]
    return f"""INSERT INTO {table} ({table}, rowid, content)
        SELECT 'delete', r.key, r.content FROM memory_records AS r WHERE r.space = {space}"""
