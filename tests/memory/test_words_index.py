"""The word index follows the records by itself, on a pool's writer, and pooled readers read it."""

from __future__ import annotations

import threading

import pytest

import walpool
from walpool.errors import CorruptError, Error
from walpool.memory import _sqlite_words as words

# What the triggers read of the store's tables.
RECORDS = (
    "CREATE TABLE memory_spaces (space INTEGER PRIMARY KEY, words TEXT NOT NULL, resetting INTEGER NOT NULL DEFAULT 0)",
    """CREATE TABLE memory_records (key INTEGER PRIMARY KEY, space INTEGER NOT NULL, id TEXT NOT NULL,
        content TEXT NOT NULL, accessed_at INTEGER NOT NULL DEFAULT 0, UNIQUE (space, id)) STRICT""",
    "INSERT INTO memory_spaces (space, words) VALUES (1, 'unicode61'), (2, 'trigram')",
)
SAVE = """INSERT INTO memory_records (space, id, content) VALUES (?, ?, ?)
    ON CONFLICT (space, id) DO UPDATE SET content = excluded.content"""


@pytest.fixture
def indexed(pool: walpool.Pool) -> walpool.Pool:
    pool.script(";".join((*RECORDS, *words.TABLES)))
    for trigger in words.TRIGGERS:
        pool.execute(trigger)
    return pool


def found(pool: walpool.Pool, query: str, table: str = "memory_words") -> list[str]:
    rows = pool.fetch(
        f"""SELECT r.id FROM {table} AS w CROSS JOIN memory_records AS r ON r.key = w.rowid
        WHERE {table} MATCH ? ORDER BY r.key""",
        (query,),
    )
    return [row[0] for row in rows]


def check(pool: walpool.Pool) -> None:
    for statement in words.CHECK.values():
        pool.execute(statement)


def test_index_follows_the_records(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "first words"))
    indexed.execute(SAVE, (1, "b", "other words"))
    assert found(indexed, "words") == ["a", "b"]
    indexed.execute(SAVE, (1, "a", "replaced"))
    assert (found(indexed, "words"), found(indexed, "first"), found(indexed, "replaced")) == (["b"], [], ["a"])
    indexed.execute("DELETE FROM memory_records WHERE id = 'b'")
    assert found(indexed, "words") == []
    check(indexed)


def test_touched_record_costs_the_index_nothing(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "words"))
    before = indexed.fetch("SELECT id, block FROM memory_words_data ORDER BY id")
    indexed.execute("UPDATE memory_records SET accessed_at = 7")
    indexed.execute(SAVE, (1, "a", "words"))
    assert indexed.fetch("SELECT id, block FROM memory_words_data ORDER BY id") == before


def test_each_space_has_the_index_it_asked_for(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "überall"))
    indexed.execute(SAVE, (2, "b", "überall"))
    assert (found(indexed, "UBERALL"), found(indexed, "eral")) == (["a"], [])
    assert (found(indexed, "eral", "memory_trigrams"), found(indexed, "uber", "memory_trigrams")) == (["b"], ["b"])
    check(indexed)


def test_failed_job_leaves_the_index_as_it_was(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "words"))
    with pytest.raises(Error):
        indexed.batch([(SAVE, (1, "b", "words")), (SAVE, (1, "a", "changed")), ("INSERT INTO nowhere VALUES (1)", ())])
    assert found(indexed, "words") == ["a"]
    check(indexed)


def test_vacuum_keeps_the_index_in_step(indexed: walpool.Pool) -> None:
    for number in range(20):
        indexed.execute(SAVE, (1, str(number), f"words {number}"))
    indexed.execute("DELETE FROM memory_records WHERE key % 2 = 0")
    indexed.vacuum()
    assert found(indexed, "words") == [str(number) for number in range(0, 20, 2)]
    check(indexed)


def test_check_finds_what_differs_and_rebuild_mends_it(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "words"))
    indexed.execute("DROP TRIGGER memory_words_replaced")
    indexed.execute("UPDATE memory_records SET content = 'changed'")
    with pytest.raises(CorruptError):
        check(indexed)
    for statement in words.REBUILD.values():
        indexed.execute(statement)
    check(indexed)
    assert found(indexed, "changed") == ["a"]


def test_optimize_keeps_the_answers(indexed: walpool.Pool) -> None:
    for number in range(50):
        indexed.execute(SAVE, (1, str(number), f"words {number}"))
    for statement in words.OPTIMIZE.values():
        indexed.execute(statement)
    assert len(found(indexed, "words")) == 50
    check(indexed)


def test_space_that_is_reset_is_forgotten_alone(indexed: walpool.Pool) -> None:
    indexed.execute("INSERT INTO memory_spaces (space, words) VALUES (3, 'unicode61')")
    for number in range(10):
        indexed.execute(SAVE, (1, str(number), "words"))
        indexed.execute(SAVE, (3, str(number), "words too"))
    indexed.batch(
        [
            ("UPDATE memory_spaces SET resetting = 1 WHERE space = 1", ()),
            (words.forget("unicode61", "1"), ()),
            ("DELETE FROM memory_records WHERE space = 1", ()),
            ("UPDATE memory_spaces SET resetting = 0 WHERE space = 1", ()),
        ]
    )
    assert len(found(indexed, "words")) == 10
    check(indexed)


def test_content_with_a_nul_is_indexed_to_its_end(indexed: walpool.Pool) -> None:
    indexed.execute(SAVE, (1, "a", "before\0behind"))
    indexed.execute(SAVE, (2, "b", "before\0behind"))
    assert found(indexed, "before") == ["a"]
    check(indexed)
    indexed.execute(SAVE, (1, "a", "before\0changed"))
    indexed.execute("DELETE FROM memory_records")
    check(indexed)
    assert (found(indexed, "before"), found(indexed, "behind")) == ([], [])


def test_index_cannot_be_written_past_its_table(indexed: walpool.Pool) -> None:
    with pytest.raises(Error):
        indexed.execute("DELETE FROM memory_words_data")


def test_reader_finds_words_in_the_snapshot_of_its_time(indexed: walpool.Pool) -> None:
    #     reader              another thread
    #     finds "a"
    #                         saves "b"
    #     finds "a" alone
    query = "SELECT rowid, snippet(memory_words, 0, '[', ']', '', 5) FROM memory_words WHERE memory_words MATCH 'words'"
    indexed.execute(SAVE, (1, "a", "words"))
    with indexed.read() as snapshot:
        assert snapshot.fetch(query) == [(1, "[words]")]
        other = threading.Thread(target=indexed.execute, args=(SAVE, (1, "b", "more words")))
        other.start()
        other.join()
        assert snapshot.fetch(query) == [(1, "[words]")]
    assert indexed.fetch(query) == [(1, "[words]"), (2, "more [words]")]
