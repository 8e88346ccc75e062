"""The SQLite that is compiled in: free of known bugs that lose data, with the options that the design rests on."""

from __future__ import annotations

import pytest

import walpool
from walpool import _core


@pytest.fixture
def options(pool: walpool.Pool) -> set[str]:
    """Return SQLite's compile options."""
    return {option for (option,) in pool.fetch("PRAGMA compile_options")}


def test_sqlite_has_the_wal_reset_fix(pool: walpool.Pool) -> None:
    # https://www.sqlite.org/wal.html#walresetbug
    version = tuple(map(int, pool.fetchval("SELECT sqlite_version()").split(".")))
    assert version >= (3, 51, 3)
    assert version != (3, 52, 0)
    assert pool.fetchval("SELECT sqlite_version()") == walpool.sqlite_version == _core.sqlite_version


@pytest.mark.parametrize(
    "option",
    [
        "THREADSAFE=2",  # no mutex in a connection: the engine sees to it that one thread at a time uses it
        "DEFAULT_MEMSTATUS=0",  # no global counter that every allocation locks
        "OMIT_SHARED_CACHE",
        "STMTJRNL_SPILL=131071",  # a savepoint of a usual job writes no temporary file
        "DQS=0",  # a double-quoted word is a name, never silently a text
        "DEFAULT_WAL_SYNCHRONOUS=2",
        "ENABLE_FTS5",
    ],
)
def test_option_is_on(options: set[str], option: str) -> None:
    assert option in options


@pytest.mark.parametrize(
    "option",
    [
        "ENABLE_MEMORY_MANAGEMENT",  # would put the page caches of all connections under one lock
        "ENABLE_API_ARMOR",
        "OMIT_PROGRESS_CALLBACK",  # the GIL, timeouts and Ctrl-C depend on it
        "OMIT_AUTHORIZATION",
        "OMIT_WAL",
    ],
)
def test_option_is_off(options: set[str], option: str) -> None:
    assert not any(found.split("=")[0] == option for found in options)


@pytest.mark.parametrize(
    ("pragma", "reader", "writer"),
    [
        ("foreign_keys", 1, 1),
        ("cache_size", -16 * 1024, -16 * 1024),
        ("query_only", 1, 0),
        ("busy_timeout", 0, 0),  # waiting is done where the caller and its clock are known
        ("recursive_triggers", 0, 0),
        ("trusted_schema", 0, 0),
    ],
)
def test_connections_are_told_their_pragmas(pool: walpool.Pool, pragma: str, reader: int, writer: int) -> None:
    assert pool.fetchval(f"PRAGMA {pragma}") == reader
    assert pool.execute(f"PRAGMA {pragma}").rows == [(writer,)]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_writer_is_told_its_synchronous(synchronous: str, level: int) -> None:
    with walpool.Pool(":memory:", synchronous=synchronous) as pool:
        assert pool.execute("PRAGMA synchronous").rows == [(level,)]
        assert pool.execute("PRAGMA journal_mode").rows == [("wal",)]


def test_settings_reach_the_connections() -> None:
    with walpool.Pool(":memory:", foreign_keys=False, cache_size=2**20) as pool:
        for pragma, value in (("foreign_keys", 0), ("cache_size", -1024)):
            assert pool.fetchval(f"PRAGMA {pragma}") == value
            assert pool.execute(f"PRAGMA {pragma}").rows == [(value,)]


def test_double_quotes_never_make_a_text(pool: walpool.Pool) -> None:
    with pytest.raises(walpool.errors.ProgrammingError, match="no such column"):
        pool.fetch('SELECT "no such column"')
