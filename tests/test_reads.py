"""Reads: rows and their shapes, parameters, snapshots, streams, and that a reader cannot write.

reader                         writer
read() begins: the snapshot
                               COMMIT, acknowledged
fetch: not seen
read() ends
fetch: seen
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from helpers import COUNT_TO, FOREVER, Caller, eventually

import walpool
from walpool import errors


@pytest.fixture
def numbers(pool: walpool.Pool) -> walpool.Pool:
    """Return a pool with a table of the numbers 1 to 1000 and their names."""
    pool.script("CREATE TABLE number (n INTEGER PRIMARY KEY, name TEXT)")
    pool.executemany("INSERT INTO number VALUES (?, ?)", [(n, f"number {n}") for n in range(1, 1001)])
    return pool


# Rows


def test_fetch_gives_every_row_in_order(numbers: walpool.Pool) -> None:
    rows = numbers.fetch("SELECT n, name FROM number ORDER BY n")
    assert rows == [(n, f"number {n}") for n in range(1, 1001)]
    assert {type(row) for row in rows} == {tuple}


def test_fetch_without_rows_gives_an_empty_list(numbers: walpool.Pool) -> None:
    assert numbers.fetch("SELECT n FROM number WHERE n < 0") == []
    assert numbers.fetch("SELECT n FROM number WHERE n < 0", row=dict) == []


def test_fetchone_gives_the_first_row_or_none(numbers: walpool.Pool) -> None:
    assert numbers.fetchone("SELECT n, name FROM number ORDER BY n DESC") == (1000, "number 1000")
    assert numbers.fetchone("SELECT n FROM number WHERE n < 0") is None
    assert numbers.fetchone("SELECT NULL") == (None,)


def test_fetchone_does_not_read_the_rest(numbers: walpool.Pool) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    assert numbers.fetchone(endless) == (1,)
    assert numbers.fetchval(endless) == 1


def test_fetchval_gives_the_first_column_or_none(numbers: walpool.Pool) -> None:
    assert numbers.fetchval("SELECT n, name FROM number WHERE n = 7") == 7
    assert numbers.fetchval("SELECT n FROM number WHERE n < 0") is None
    assert numbers.fetchval("SELECT NULL") is None


def test_row_dict_is_keyed_by_column(numbers: walpool.Pool) -> None:
    sql = "SELECT n AS number, upper(name) AS 'BIG name' FROM number WHERE n < 3"
    expected = [{"number": 1, "BIG name": "NUMBER 1"}, {"number": 2, "BIG name": "NUMBER 2"}]
    assert numbers.fetch(sql, row=dict) == expected
    assert numbers.fetchone(sql, row=dict) == expected[0]


def test_row_callable_gets_columns_and_values(numbers: walpool.Pool) -> None:
    def make(columns: tuple[str, ...], values: tuple[Any, ...]) -> str:
        return f"{columns}={values}"

    assert numbers.fetch("SELECT n, 1.5 AS half FROM number WHERE n < 3", row=make) == [
        "('n', 'half')=(1, 1.5)",
        "('n', 'half')=(2, 1.5)",
    ]
    assert numbers.fetchone("SELECT 1 AS a", row=make) == "('a',)=(1,)"


def test_row_callable_may_use_the_pool(numbers: walpool.Pool) -> None:
    def name_of(columns: tuple[str, ...], values: tuple[Any, ...]) -> Any:
        return numbers.fetchval("SELECT name FROM number WHERE n = ?", values)

    assert numbers.fetch("SELECT n FROM number WHERE n < 3", row=name_of) == ["number 1", "number 2"]


def test_error_of_a_row_callable_reaches_the_caller_and_leaves_the_reader_clean(numbers: walpool.Pool) -> None:
    def fail(columns: tuple[str, ...], values: tuple[Any, ...]) -> Any:
        raise LookupError("no such shape")

    with pytest.raises(LookupError, match="no such shape"):
        numbers.fetch("SELECT n FROM number", row=fail)
    assert numbers.stats()["readers_out"] == 0
    assert numbers.fetchval("SELECT count(*) FROM number") == 1000


def test_row_of_another_kind_is_refused(numbers: walpool.Pool) -> None:
    with pytest.raises(errors.ProgrammingError, match="tuple, dict or a callable"):
        numbers.fetch("SELECT 1", row="dict")  # type: ignore[arg-type]
    with (
        pytest.raises(errors.ProgrammingError, match="tuple, dict or a callable"),
        numbers.stream("SELECT 1", row=7),  # type: ignore[arg-type]
    ):
        pass


# Parameters


@pytest.mark.parametrize(
    ("sql", "params", "row"),
    [
        ("SELECT ?, ?", (1, 2), (1, 2)),
        ("SELECT ?, ?", [1, 2], (1, 2)),
        ("SELECT ?, ?", range(1, 3), (1, 2)),
        ("SELECT ?2, ?1, ?2", (1, 2), (2, 1, 2)),
        ("SELECT ?3", (1, 2, 3), (3,)),
        ("SELECT :a, @b, $c", {"a": 1, "b": 2, "c": 3}, (1, 2, 3)),
        ("SELECT :a, :a", {"a": 1}, (1, 1)),
        ("SELECT :a", {"a": 1, "not used": 2}, (1,)),
        ("SELECT :größe", MappingProxyType({"größe": 1}), (1,)),
        ("SELECT 1", {}, (1,)),
        ("SELECT 1", (), (1,)),
    ],
)
def test_parameters_by_position_number_and_name(
    pool: walpool.Pool, sql: str, params: Any, row: tuple[int, ...]
) -> None:
    assert pool.fetchone(sql, params) == row
    with pool.read() as snapshot:
        assert snapshot.fetchone(sql, params) == row
    with pool.stream(sql, params) as rows:
        assert list(rows) == [row]
    with pool.transaction() as tx:
        assert tx.fetchone(sql, params) == row
    assert pool.execute(sql, params).rows == [row]


@pytest.mark.parametrize(
    ("sql", "params", "told"),
    [
        ("SELECT ?, ?", (1,), "takes 2 parameters, but 1 were given"),
        ("SELECT ?", (1, 2), "takes 1 parameters, but 2 were given"),
        ("SELECT 1", (1,), "takes 0 parameters, but 1 were given"),
        ("SELECT ?3", (1,), "takes 3 parameters, but 1 were given"),
        ("SELECT :a, :b", {"a": 1}, "no value was given for parameter :b"),
        ("SELECT :a", {":a": 1}, "no value was given for parameter :a"),
        ("SELECT :a", {}, "no value was given for parameter :a"),
        ("SELECT :a", (1,), "names its parameter :a; give a mapping"),
        ("SELECT ?", {"a": 1}, "parameter 1 has no name; give a sequence"),
        ("SELECT ?1", {"1": 1}, "parameter 1 has no name; give a sequence"),
        ("SELECT :a, ?", {"a": 1}, "parameter 2 has no name; give a sequence"),
        ("SELECT ?", "a", "not str; a single one is given as"),
        ("SELECT ?", b"a", "not bytes; a single one is given as"),
        ("SELECT ?", 1, "not int; a single one is given as"),
        ("SELECT ?", None, "not NoneType"),
        ("SELECT ?", {1}, "not set"),
        ("SELECT ?", iter([1]), "not list_iterator"),
        ("SELECT :a", {1: 1}, "names of parameters are str, not int"),
    ],
)
def test_parameters_that_do_not_fit_are_told_what_is_wrong(
    pool: walpool.Pool, sql: str, params: Any, told: str
) -> None:
    def ask_transaction() -> None:
        with pool.transaction() as tx:
            tx.fetch(sql, params)

    for ask in (lambda: pool.fetch(sql, params), lambda: pool.execute(sql, params), ask_transaction):
        with pytest.raises(errors.ProgrammingError) as caught:
            ask()
        assert told in str(caught.value)


# A reader cannot write


WRITES = [
    "INSERT INTO number VALUES (0, 'zero')",
    "UPDATE number SET name = ''",
    "DELETE FROM number RETURNING n",
    "WITH old AS (SELECT 1) DELETE FROM number",
    "CREATE TABLE other (a)",
    "DROP TABLE number",
    "PRAGMA user_version = 7",
    "ANALYZE",
]


@pytest.mark.parametrize("sql", WRITES)
def test_write_on_a_reader_is_refused_and_told_where_to_go(numbers: walpool.Pool, sql: str) -> None:
    def ask_snapshot() -> None:
        with numbers.read() as snapshot:
            snapshot.fetch(sql)

    def ask_stream() -> None:
        with numbers.stream(sql) as rows:
            list(rows)

    asked: list[Callable[[], object]] = [
        lambda: numbers.fetch(sql),
        lambda: numbers.fetchone(sql),
        lambda: numbers.fetchval(sql),
        ask_snapshot,
        ask_stream,
    ]
    for ask in asked:
        with pytest.raises(errors.ProgrammingError, match="writes, and this is a read: use execute"):
            ask()
    assert numbers.fetchone("SELECT count(*), max(name) FROM number") == (1000, "number 999")
    assert numbers.fetchval("PRAGMA user_version") == 0


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "ATTACH ':memory:' AS other",
        "PRAGMA query_only = off",
        "/* walpool */ BEGIN",
        "/* walpool */ ROLLBACK",
    ],
)
def test_reader_takes_no_transaction_verbs_and_no_settings(numbers: walpool.Pool, sql: str) -> None:
    with numbers.read() as snapshot:
        with pytest.raises(errors.ProgrammingError):
            snapshot.fetch(sql)
        assert snapshot.fetchval("SELECT count(*) FROM number") == 1000
    with pytest.raises(errors.ProgrammingError):
        numbers.fetch(sql)


def test_writes_of_a_function_in_a_read_are_refused(numbers: walpool.Pool) -> None:
    with pytest.raises(errors.ProgrammingError):
        numbers.fetch("SELECT load_extension('nowhere.so')")


# Snapshots


def test_reader_keeps_its_snapshot_while_the_writer_commits(numbers: walpool.Pool) -> None:
    with numbers.read() as snapshot:
        Caller(lambda: numbers.execute("DELETE FROM number WHERE n > 10")).outcome()
        assert snapshot.fetchval("SELECT count(*) FROM number") == 1000
        assert snapshot.fetchone("SELECT max(n) FROM number", row=dict) == {"max(n)": 1000}
        assert len(snapshot.fetch("SELECT n FROM number")) == 1000
    assert numbers.fetchval("SELECT count(*) FROM number") == 10


def test_snapshot_is_taken_when_the_block_begins_not_at_its_first_read(numbers: walpool.Pool) -> None:
    with numbers.read() as snapshot:
        Caller(lambda: numbers.execute("DELETE FROM number")).outcome()
        assert snapshot.fetchval("SELECT count(*) FROM number") == 1000


def test_reader_checked_in_after_a_snapshot_sees_what_came_since(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool:
        pool.script("CREATE TABLE t (a)")
        for n in range(20):
            with pool.read() as snapshot:
                assert snapshot.fetchval("SELECT count(*) FROM t") == n
            pool.execute("INSERT INTO t VALUES (1)")
            assert pool.fetchval("SELECT count(*) FROM t") == n + 1


def test_snapshot_ends_with_its_block(numbers: walpool.Pool) -> None:
    with numbers.read() as snapshot:
        pass
    with pytest.raises(errors.InterfaceError, match="ended"):
        snapshot.fetch("SELECT 1")
    assert numbers.stats()["readers_out"] == 0


def test_failed_statement_does_not_end_a_snapshot(numbers: walpool.Pool) -> None:
    with numbers.read() as snapshot:
        with pytest.raises(errors.ProgrammingError, match="nowhere"):
            snapshot.fetch("SELECT * FROM nowhere")
        Caller(lambda: numbers.execute("DELETE FROM number")).outcome()
        assert snapshot.fetchval("SELECT count(*) FROM number") == 1000


def test_snapshot_in_use_by_another_thread_is_refused(numbers: walpool.Pool) -> None:
    with numbers.read() as snapshot:
        busy = Caller(lambda: snapshot.fetch(COUNT_TO, (FOREVER,), timeout=0.5))

        def is_refused() -> bool:
            try:
                snapshot.fetchval("SELECT 1")
            except errors.InterfaceError as error:
                return "in use by another thread" in str(error)
            return False

        eventually(is_refused)
        busy.error(errors.StatementTimeout)
        assert snapshot.fetchval("SELECT count(*) FROM number") == 1000


def test_reads_never_wait_for_the_writer(numbers: walpool.Pool) -> None:
    with numbers.transaction() as tx:
        tx.execute("DELETE FROM number")
        assert Caller(lambda: numbers.fetchval("SELECT count(*) FROM number", timeout=10.0)).outcome() == 1000


def test_readers_run_side_by_side(database: Path, threads: Callable[[int, Callable[[int], int]], list[int]]) -> None:
    with walpool.Pool(database, readers=4) as pool:
        together = threading.Barrier(4)

        def read(index: int) -> int:
            with pool.read() as snapshot:
                together.wait(10)  # all four hold a snapshot now
                return int(snapshot.fetchval("SELECT ?", (index,)))

        assert threads(4, read) == [0, 1, 2, 3]
        assert pool.stats()["readers_out_peak"] == 4


def test_schema_made_after_the_readers_were_opened_is_seen(database: Path) -> None:
    with walpool.Pool(database, readers=1) as pool:
        for n in range(5):
            pool.script(f"CREATE TABLE t{n} (a); INSERT INTO t{n} VALUES ({n})")
            assert pool.fetchval(f"SELECT a FROM t{n}") == n


# Streams


@pytest.mark.parametrize("chunk", [1, 3, 500, 999, 1000, 1001])
def test_stream_gives_every_row_once(numbers: walpool.Pool, chunk: int) -> None:
    with numbers.stream("SELECT n FROM number ORDER BY n", chunk=chunk) as rows:
        assert [n for (n,) in rows] == list(range(1, 1001))
        assert list(rows) == []
    assert numbers.stats()["readers_out"] == 0


def test_stream_takes_parameters_and_row_shapes(numbers: walpool.Pool) -> None:
    with numbers.stream("SELECT n FROM number WHERE n > :least", {"least": 998}, row=dict) as rows:
        assert next(rows) == {"n": 999}
        assert next(rows) == {"n": 1000}
        assert next(rows, None) is None


def test_stream_reads_one_snapshot_while_the_pool_is_written_to(numbers: walpool.Pool) -> None:
    with numbers.stream("SELECT n FROM number ORDER BY n", chunk=10) as rows:
        for seen, (n,) in enumerate(rows, 1):
            assert n == seen
            if n % 100 == 0:
                numbers.execute("DELETE FROM number WHERE n > ?", (n,))
        assert n == 1000
    assert numbers.fetchval("SELECT count(*) FROM number") == 100


def test_stream_left_in_the_middle_gives_its_reader_back(numbers: walpool.Pool) -> None:
    with numbers.stream("SELECT n FROM number", chunk=10) as rows:
        assert next(rows) == (1,)
        assert numbers.stats()["readers_out"] == 1
    assert numbers.stats()["readers_out"] == 0
    assert next(rows) == (2,)  # one of those that had been read ahead
    with pytest.raises(errors.InterfaceError, match="ended"):
        list(rows)


def test_stream_over_an_endless_query_reads_no_further_than_asked(pool: walpool.Pool) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    with pool.stream(endless, chunk=100) as rows:
        assert [next(rows) for _ in range(250)] == [(n,) for n in range(1, 251)]


def test_stream_tells_bad_sql_before_its_block_begins(numbers: walpool.Pool) -> None:
    for sql, params in [("SELECT nonsense FROM number", ()), ("SELECT ?", (1, 2))]:
        with pytest.raises(errors.ProgrammingError), numbers.stream(sql, params):
            pytest.fail("the block began")
    assert numbers.stats()["readers_out"] == 0


def test_stream_passes_an_error_in_the_middle_on(numbers: walpool.Pool) -> None:
    with numbers.stream(
        "SELECT abs(CASE n WHEN 30 THEN -9223372036854775808 ELSE n END) FROM number", chunk=10
    ) as rows:
        seen = [next(rows) for _ in range(20)]
        with pytest.raises(errors.ProgrammingError, match="integer overflow"):
            list(rows)
    assert len(seen) == 20
    assert numbers.stats()["readers_out"] == 0


def test_stream_refuses_a_chunk_below_one(numbers: walpool.Pool) -> None:
    with pytest.raises(ValueError, match="chunk must be 1 or more"), numbers.stream("SELECT 1", chunk=0):
        pass


def test_stream_inside_a_generator_ends_with_the_generator(numbers: walpool.Pool) -> None:
    def names() -> Generator[str, None, None]:
        with numbers.stream("SELECT name FROM number ORDER BY n", chunk=5) as rows:
            for (name,) in rows:
                yield name

    generator = names()
    assert next(generator) == "number 1"
    assert numbers.stats()["readers_out"] == 1
    generator.close()
    assert numbers.stats()["readers_out"] == 0
