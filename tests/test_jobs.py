"""Jobs: what each verb does and gives back, that each is all or nothing, and that no neighbour notices a failed one.

holder                 16 callers
transaction() begins
                       queue up, one after the other
transaction() ends
                       the first leads: runs all in one group, the failing job among them
                       COMMIT returns, all are answered
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import run_queued

import walpool
from walpool import errors

SCHEMA = """
    CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, size INTEGER CHECK (size > 0));
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER no_rollback BEFORE INSERT ON word WHEN NEW.text = 'raise rollback'
        BEGIN SELECT RAISE(ROLLBACK, 'raised'); END;
    CREATE TRIGGER no_abort BEFORE INSERT ON word WHEN NEW.text = 'raise abort'
        BEGIN SELECT RAISE(ABORT, 'raised'); END;
    CREATE TRIGGER no_fail BEFORE INSERT ON word WHEN NEW.text = 'raise fail'
        BEGIN SELECT RAISE(FAIL, 'raised'); END;
    INSERT INTO word (id, text, size) VALUES (1000, 'taken', 1);
"""
INSERT = "INSERT INTO word (text, size) VALUES (?, 1)"

Job = Callable[[walpool.Pool], object]

# What may go wrong with a job, each with the class of its error. They write 'poison' before they fail, where they can.
POISON: dict[str, tuple[type[errors.Error], Job]] = {
    "a unique value that is taken": (
        errors.IntegrityError,
        lambda pool: pool.execute(INSERT, ("taken",)),
    ),
    "a check": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO word (text, size) VALUES ('poison', 1), ('poison 2', 0)"),
    ),
    "a value that is missing": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'), (NULL)"),
    ),
    "OR ROLLBACK": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT OR ROLLBACK INTO word (text) VALUES ('poison'), ('taken')"),
    ),
    "OR FAIL, which keeps the rows before": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT OR FAIL INTO word (text) VALUES ('poison'), ('taken')"),
    ),
    "RAISE(ROLLBACK) in a trigger": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'), ('raise rollback')"),
    ),
    "RAISE(ABORT) in a trigger": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'), ('raise abort')"),
    ),
    "RAISE(FAIL) in a trigger": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'), ('raise fail')"),
    ),
    "a deferred foreign key": (
        errors.IntegrityError,
        lambda pool: pool.execute("INSERT INTO child VALUES (404)"),
    ),
    "a deferred foreign key in a batch": (
        errors.IntegrityError,
        lambda pool: pool.batch([(INSERT, ("poison",)), "INSERT INTO child VALUES (404)"]),
    ),
    "a foreign key that is violated by a delete": (
        errors.IntegrityError,
        lambda pool: pool.script("INSERT INTO parent VALUES (7); INSERT INTO child VALUES (7); DELETE FROM parent"),
    ),
    "the second statement of a batch": (
        errors.IntegrityError,
        lambda pool: pool.batch([(INSERT, ("poison",)), (INSERT, ("taken",))]),
    ),
    "OR ROLLBACK in a batch": (
        errors.IntegrityError,
        lambda pool: pool.batch([(INSERT, ("poison",)), "INSERT OR ROLLBACK INTO word (text) VALUES ('taken')"]),
    ),
    "the last row of executemany": (
        errors.IntegrityError,
        lambda pool: pool.executemany(INSERT, [("poison",), ("poison 2",), ("taken",)]),
    ),
    "OR ROLLBACK in executemany": (
        errors.IntegrityError,
        lambda pool: pool.executemany("INSERT OR ROLLBACK INTO word (text) VALUES (?)", [("poison",), ("taken",)]),
    ),
    "the second statement of a script": (
        errors.IntegrityError,
        lambda pool: pool.script("INSERT INTO word (text) VALUES ('poison'); INSERT INTO word (text) VALUES ('taken')"),
    ),
    "a script's syntax, late": (
        errors.ProgrammingError,
        lambda pool: pool.script("INSERT INTO word (text) VALUES ('poison'); NONSENSE"),
    ),
    "syntax": (errors.ProgrammingError, lambda pool: pool.execute("INSERT INTO")),
    "no such table": (errors.ProgrammingError, lambda pool: pool.execute("INSERT INTO nowhere VALUES (1)")),
    "too few parameters": (errors.ProgrammingError, lambda pool: pool.execute(INSERT, ())),
    "too many parameters": (errors.ProgrammingError, lambda pool: pool.execute(INSERT, ("poison", 2))),
    "too few parameters in a later row": (
        errors.ProgrammingError,
        lambda pool: pool.executemany(INSERT, [("poison",), ()]),
    ),
    "COMMIT": (errors.ProgrammingError, lambda pool: pool.execute("COMMIT")),
    "ROLLBACK": (errors.ProgrammingError, lambda pool: pool.execute("ROLLBACK")),
    "SAVEPOINT": (errors.ProgrammingError, lambda pool: pool.execute("SAVEPOINT walpool_job")),
    "RELEASE of walpool's own savepoint": (
        errors.ProgrammingError,
        lambda pool: pool.batch([(INSERT, ("poison",)), "RELEASE walpool_job"]),
    ),
    "walpool's own ROLLBACK, letter for letter": (
        errors.ProgrammingError,
        lambda pool: pool.batch([(INSERT, ("poison",)), "/* walpool */ ROLLBACK"]),
    ),
    "COMMIT inside a script": (
        errors.ProgrammingError,
        lambda pool: pool.script("INSERT INTO word (text) VALUES ('poison'); COMMIT; BEGIN"),
    ),
    "ATTACH": (errors.ProgrammingError, lambda pool: pool.execute("ATTACH ':memory:' AS other")),
    "a TEMP table": (errors.ProgrammingError, lambda pool: pool.execute("CREATE TEMP TABLE here (a)")),
    "a PRAGMA that weakens the guarantees": (
        errors.ProgrammingError,
        lambda pool: pool.batch([(INSERT, ("poison",)), "PRAGMA defer_foreign_keys = on"]),
    ),
    "VACUUM": (errors.ProgrammingError, lambda pool: pool.execute("VACUUM")),
    "two statements where one is asked for": (
        errors.ProgrammingError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'); DELETE FROM word"),
    ),
    "a blob that is too big for SQLite": (
        errors.DataError,
        lambda pool: pool.execute("INSERT INTO word (text) VALUES ('poison'), (zeroblob(2000000000))"),
    ),
}


@pytest.fixture
def words(pool: walpool.Pool) -> Iterator[walpool.Pool]:
    """Yield a pool with the tables of SCHEMA."""
    pool.script(SCHEMA)
    yield pool
    assert pool.check() == []


def texts(pool: walpool.Pool) -> list[str]:
    return [text for (text,) in pool.fetch("SELECT text FROM word ORDER BY id")]


# What the verbs do


def test_execute_tells_rows_changed_and_the_rowid_of_its_insert(words: walpool.Pool) -> None:
    inserted = words.execute("INSERT INTO word (id, text) VALUES (7, 'a')")
    updated = words.execute("UPDATE word SET size = 2")
    created = words.execute("CREATE TABLE other (a)")
    assert (inserted.rowcount, inserted.lastrowid, inserted.rows, inserted.columns) == (1, 7, [], ())
    assert (updated.rowcount, updated.lastrowid) == (2, None)
    assert (created.rowcount, created.lastrowid) == (-1, None)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT OR IGNORE INTO word (text) VALUES ('taken')",
        "INSERT INTO word (text) VALUES ('taken') ON CONFLICT DO NOTHING",
        "INSERT INTO word (text) VALUES ('taken') ON CONFLICT (text) DO UPDATE SET size = 3",
        "DELETE FROM word WHERE text = 'nowhere'",
    ],
)
def test_lastrowid_is_none_where_nothing_was_inserted(words: walpool.Pool, sql: str) -> None:
    words.execute(INSERT, ("a neighbour's row",))
    assert words.execute(sql).lastrowid is None


def test_rowcount_leaves_out_what_triggers_did(words: walpool.Pool) -> None:
    words.script(
        "CREATE TABLE log (a); CREATE TRIGGER t AFTER INSERT ON parent BEGIN INSERT INTO log VALUES (1), (2); END"
    )
    done = words.execute("INSERT INTO parent VALUES (1), (2)")
    assert (done.rowcount, done.lastrowid) == (2, 2)
    assert words.fetchval("SELECT count(*) FROM log") == 4


def test_returning_gives_rows_and_their_columns(words: walpool.Pool) -> None:
    done = words.execute("INSERT INTO word (id, text) VALUES (1, 'a'), (2, 'b') RETURNING id, upper(text) AS big")
    assert (done.rows, done.columns, done.rowcount, done.lastrowid) == ([(1, "A"), (2, "B")], ("id", "big"), 2, 2)


def test_returning_row_that_no_longer_holds_is_not_given_when_a_neighbour_broke_the_group(words: walpool.Pool) -> None:
    # The first run of the reader of counts sees the poisoned rows; only what the replay saw may be told.
    def count() -> Any:
        return words.execute("UPDATE word SET size = (SELECT count(*) FROM word) WHERE id = 1000 RETURNING size")

    counted, poisoned, counted_again = run_queued(
        words,
        [count, lambda: words.execute("INSERT OR ROLLBACK INTO word (text) VALUES ('poison'), ('taken')"), count],
    )
    assert isinstance(poisoned, errors.IntegrityError)
    assert counted.rows == counted_again.rows == [(1,)]


def test_executemany_adds_up_its_rows(words: walpool.Pool) -> None:
    done = words.executemany("INSERT INTO word (id, text) VALUES (?, ?)", [(1, "a"), (2, "b"), (5, "c")])
    assert (done.rowcount, done.lastrowid, done.rows) == (3, 5, [])
    assert texts(words) == ["a", "b", "c", "taken"]


def test_executemany_takes_a_generator_of_mappings(words: walpool.Pool) -> None:
    words.executemany("INSERT INTO word (text) VALUES (:text)", ({"text": f"w{n}"} for n in range(3)))
    assert texts(words) == ["taken", "w0", "w1", "w2"]


def test_executemany_without_rows_does_nothing(words: walpool.Pool) -> None:
    words.executemany(INSERT, [])
    assert texts(words) == ["taken"]


def test_executemany_runs_nothing_when_its_rows_raise(words: walpool.Pool) -> None:
    def rows() -> Iterator[tuple[str]]:
        yield ("a",)
        raise KeyError("out of rows")

    with pytest.raises(KeyError, match="out of rows"):
        words.executemany(INSERT, rows())
    assert texts(words) == ["taken"]


def test_executemany_names_the_row_that_failed(words: walpool.Pool) -> None:
    with pytest.raises(errors.IntegrityError, match="row 3"):
        words.executemany(INSERT, [("a",), ("b",), ("taken",)])
    with pytest.raises(errors.ProgrammingError, match="row 2"):
        words.executemany(INSERT, [("a",), (object(),)])  # type: ignore[list-item]


def test_executemany_refuses_statements_that_return_rows(words: walpool.Pool) -> None:
    with pytest.raises(errors.ProgrammingError, match="rows"):
        words.executemany(INSERT + " RETURNING id", [("a",), ("b",)])
    assert texts(words) == ["taken"]


def test_batch_gives_one_result_a_statement(words: walpool.Pool) -> None:
    first, second, third = words.batch(
        [
            ("INSERT INTO word (id, text) VALUES (?, ?)", (1, "a")),
            "UPDATE word SET size = 9 WHERE id = 1",
            ("DELETE FROM word WHERE id = :id RETURNING size", {"id": 1}),
        ]
    )
    assert (first.rowcount, first.lastrowid) == (1, 1)
    assert (second.rowcount, third.rowcount) == (1, 1)
    assert (third.rows, third.columns) == ([(9,)], ("size",))


def test_batch_without_statements_gives_no_results(words: walpool.Pool) -> None:
    assert words.batch([]) == []


def test_batch_names_the_statement_that_failed(words: walpool.Pool) -> None:
    with pytest.raises(errors.IntegrityError, match="statement 2"):
        words.batch([(INSERT, ("a",)), (INSERT, ("taken",))])
    assert texts(words) == ["taken"]


def test_batch_may_break_a_deferred_key_and_mend_it(words: walpool.Pool) -> None:
    words.batch(["INSERT INTO child VALUES (7)", "INSERT INTO parent VALUES (7)"])
    assert words.fetchval("SELECT parent FROM child") == 7


def test_script_runs_triggers_comments_and_a_missing_last_semicolon(words: walpool.Pool) -> None:
    words.script(
        """
        -- the first; with a semicolon
        CREATE TRIGGER more AFTER INSERT ON parent BEGIN
            INSERT INTO word (text) VALUES ('one'); INSERT INTO word (text) VALUES ('two;');
        END;
        /* and */ INSERT INTO parent VALUES (1);;
        INSERT INTO word (text) VALUES ('three')
        """
    )
    assert texts(words) == ["taken", "one", "two;", "three"]


def test_script_of_nothing_does_nothing(words: walpool.Pool) -> None:
    words.script("")
    words.script("-- nothing\n;;")


def test_execute_of_nothing_is_refused(words: walpool.Pool) -> None:
    for sql in ("", "  \n", "-- nothing", "/* nothing */ ;"):
        with pytest.raises(errors.ProgrammingError, match="no statement"):
            words.execute(sql)


def test_a_job_reads_what_was_acknowledged_before(words: walpool.Pool) -> None:
    for n in range(50):
        words.execute(INSERT, (f"w{n}",))
        assert words.fetchval("SELECT count(*) FROM word") == n + 2


# What failed jobs leave behind


@pytest.mark.parametrize(("kind", "poison"), POISON.values(), ids=POISON)
def test_failed_job_leaves_nothing_of_itself(words: walpool.Pool, kind: type[errors.Error], poison: Job) -> None:
    with pytest.raises(kind) as caught:
        poison(words)
    assert type(caught.value) is kind
    assert (caught.value.outcome, caught.value.retryable) == ("not_applied", False)
    assert texts(words) == ["taken"]
    assert words.fetchval("SELECT (SELECT count(*) FROM parent) + (SELECT count(*) FROM child)") == 0
    words.execute(INSERT, ("the next",))
    assert texts(words) == ["taken", "the next"]


@pytest.mark.parametrize(("kind", "poison"), POISON.values(), ids=POISON)
def test_failed_job_does_not_undo_its_neighbours(words: walpool.Pool, kind: type[errors.Error], poison: Job) -> None:
    def good(n: int) -> Callable[[], object]:
        # The four kinds of job by turns, so that neighbours with and without a savepoint are replayed.
        verbs: list[Callable[[], object]] = [
            lambda: words.execute(INSERT + " RETURNING text", (f"w{n}",)).rows,
            lambda: words.executemany(INSERT, [(f"w{n}",), (f"w{n} more",)]).rowcount,
            lambda: [done.rowcount for done in words.batch([(INSERT, (f"w{n}",)), (INSERT, (f"w{n} more",))])],
            lambda: words.script(f"INSERT INTO word (text) VALUES ('w{n}'), ('w{n} more')"),
        ]
        return verbs[n % 4]

    jobs = [good(n) for n in range(15)]
    jobs.insert(7, lambda: poison(words))
    outcomes = run_queued(words, jobs)

    assert type(outcomes.pop(7)) is kind
    assert outcomes == [[[(f"w{n}",)], 2, [1, 1], None][n % 4] for n in range(15)]
    expected = {"taken", *(f"w{n}" for n in range(15)), *(f"w{n} more" for n in range(15) if n % 4)}
    assert set(texts(words)) == expected


def test_sixteen_callers_with_every_second_job_poisoned_keep_what_was_good(words: walpool.Pool) -> None:
    poisons = [poison for _, poison in POISON.values()]
    for start in range(0, len(poisons), 8):
        jobs: list[Callable[[], object]] = []
        for n, poison in enumerate(poisons[start : start + 8], start):
            jobs += [partial(words.execute, INSERT, (f"w{n}",)), partial(poison, words)]
        outcomes = run_queued(words, jobs)
        assert [done.rowcount for done in outcomes[::2]] == [1] * (len(jobs) // 2)
        assert all(isinstance(outcome, errors.Error) for outcome in outcomes[1::2])
    assert texts(words) == ["taken", *(f"w{n}" for n in range(len(poisons)))]


def test_neighbour_that_stood_on_a_failed_job_gets_its_own_error(words: walpool.Pool) -> None:
    # In the first run the second job succeeds on the first one's row; in the replay that row is not there.
    first, second, third = run_queued(
        words,
        [
            lambda: words.execute("INSERT INTO parent VALUES (1)").rowcount,
            lambda: words.execute("INSERT OR FAIL INTO parent VALUES (2), (1)"),
            lambda: words.execute("INSERT INTO child VALUES (2)"),
        ],
    )
    assert first == 1
    assert isinstance(second, errors.IntegrityError)
    assert isinstance(third, errors.IntegrityError)
    assert words.fetch("SELECT id FROM parent") == [(1,)]


# Groups


def test_queued_jobs_share_one_commit(words: walpool.Pool) -> None:
    words.pop_stats()
    run_queued(words, [partial(words.execute, INSERT, (f"w{n}",)) for n in range(16)])
    stats = words.stats()
    assert stats["jobs"] == 16
    assert stats["groups"] < 16
    assert stats["jobs_per_group_p99"] > 1


def test_queued_jobs_run_in_the_order_in_which_they_came(words: walpool.Pool) -> None:
    run_queued(words, [partial(words.execute, INSERT, (f"w{n}",)) for n in range(16)])
    assert texts(words) == ["taken", *(f"w{n}" for n in range(16))]


def test_group_takes_no_more_jobs_than_max_group(database: Path) -> None:
    with walpool.Pool(database, max_group=3) as pool:
        pool.script(SCHEMA)
        pool.pop_stats()
        run_queued(pool, [partial(pool.execute, INSERT, (f"w{n}",)) for n in range(10)])
        stats = pool.stats()
        assert stats["jobs_per_group_p99"] <= 3
        assert stats["groups"] >= 4


def test_writers_from_many_threads_lose_nothing(
    words: walpool.Pool, threads: Callable[[int, Callable[[int], object]], list[object]]
) -> None:
    def write(index: int) -> None:
        for n in range(20):
            words.execute(INSERT, (f"{index}/{n}",))

    threads(16, write)
    assert set(texts(words)) == {"taken", *(f"{index}/{n}" for index in range(16) for n in range(20))}
    stats = words.stats()
    assert stats["jobs_failed"] == stats["jobs_waiting"] == stats["busy_waits"] == 0


@pytest.mark.parametrize("pages", [20, 60, 300, 2000])
def test_job_of_several_statements_changes_any_number_of_pages(pool: walpool.Pool, pages: int) -> None:
    # What the savepoint would undo goes from memory to a file at some size, in one piece: SQLite writes 128 KiB in one.
    pool.execute("CREATE TABLE body (id INTEGER PRIMARY KEY, text BLOB)")
    pool.executemany("INSERT INTO body VALUES (?, zeroblob(3000))", [(i,) for i in range(pages)])
    pool.batch([("UPDATE body SET text = randomblob(3000) WHERE id < ?", (pages * n // 4,)) for n in range(1, 5)])
    assert pool.fetchval("SELECT count(*) FROM body WHERE text <> zeroblob(3000)") == pages
    assert pool.check() == []
