"""Every class of `walpool.errors` comes from a real situation, with its fields; those that cannot say why."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers import (
    COUNT_TO,
    FOREVER,
    Caller,
    eventually,
    locked_by_another_process,
    queue_up,
    run_python,
    writer_held,
)

import walpool
from walpool import errors, schema

SOON = 0.02  # seconds
INSERT = "INSERT INTO t VALUES (?)"

Situation = Callable[[Path], object]


def opened(database: Path, **settings: object) -> walpool.Pool:
    """Return a pool with a table that holds a 1."""
    pool = walpool.Pool(database, **settings)
    pool.script("CREATE TABLE t (a UNIQUE); INSERT INTO t VALUES (1)")
    return pool


def interface_error(database: Path) -> None:
    with opened(database) as pool, pool.transaction() as tx:
        raise Caller(lambda: tx.fetch("SELECT 1")).error(errors.InterfaceError)


def closed_error(database: Path) -> None:
    pool = opened(database)
    pool.close()
    pool.fetch("SELECT 1")


def reentrant_error(database: Path) -> None:
    with opened(database) as pool, pool.read():
        pool.fetch("SELECT 1")


def config_error(database: Path) -> None:
    walpool.Pool(database, readers=0)


def operational_error(database: Path) -> None:
    with opened(database) as pool, pool.transaction() as tx:
        with pytest.raises(errors.IntegrityError):
            tx.execute("INSERT OR ROLLBACK INTO t VALUES (1)")
        tx.execute(INSERT, (2,))


def busy_error(database: Path) -> None:
    with opened(database, busy_timeout=SOON) as pool, locked_by_another_process(database):
        pool.execute(INSERT, (2,))


def checkout_timeout(database: Path) -> None:
    with opened(database, readers=1) as pool, pool.stream("SELECT a FROM t"):
        pool.fetch("SELECT 1", timeout=SOON)


def write_timeout(database: Path) -> None:
    with opened(database) as pool, writer_held(pool):
        pool.execute(INSERT, (2,), timeout=SOON)


def queue_full(database: Path) -> None:
    with opened(database, max_waiting=1) as pool, writer_held(pool):
        queue_up(pool, [partial(pool.execute, "DELETE FROM t WHERE a = 3")])
        pool.execute(INSERT, (2,))


def statement_timeout(database: Path) -> None:
    with opened(database) as pool:
        pool.fetch(COUNT_TO, (FOREVER,), timeout=SOON)


def transaction_timeout(database: Path) -> None:
    with opened(database, transaction_timeout=SOON) as pool, pool.transaction() as tx:
        tx.execute(INSERT, (2,))
        eventually(lambda: pool.stats()["leases_revoked"] == 1)


def storage_error(database: Path) -> None:
    walpool.Pool(database / "in a folder that is not there")


def read_only_error(database: Path) -> None:
    with opened(database) as pool:
        pool.execute(schema.CREATE_RETIRED)
        pool.execute(schema.RETIRE, ("postgresql://host/agents",))
        pool.execute(INSERT, (2,))


def programming_error(database: Path) -> None:
    with opened(database) as pool:
        pool.execute("NONSENSE")


def integrity_error(database: Path) -> None:
    with opened(database) as pool:
        pool.execute(INSERT, (1,))


def data_error(database: Path) -> None:
    with opened(database) as pool:
        pool.execute(INSERT, (2**63,))


def corrupt_error(database: Path) -> None:
    database.write_bytes(b"no database " * 1000)
    walpool.Pool(database)


def not_supported_error(database: Path) -> None:
    with opened(database) as pool:
        schema.migrate(pool, "notes", [["CREATE TABLE notes (id INTEGER)"]])
        schema.migrate(pool, "notes", [])  # an older walpool, which knows no version of them


SITUATIONS: dict[type[errors.Error], Situation] = {
    errors.InterfaceError: interface_error,
    errors.ClosedError: closed_error,
    errors.ReentrantError: reentrant_error,
    errors.ConfigError: config_error,
    errors.OperationalError: operational_error,
    errors.BusyError: busy_error,
    errors.CheckoutTimeout: checkout_timeout,
    errors.WriteTimeout: write_timeout,
    errors.QueueFull: queue_full,
    errors.StatementTimeout: statement_timeout,
    errors.TransactionTimeout: transaction_timeout,
    errors.StorageError: storage_error,
    errors.ReadOnlyError: read_only_error,
    errors.ProgrammingError: programming_error,
    errors.IntegrityError: integrity_error,
    errors.DataError: data_error,
    errors.CorruptError: corrupt_error,
    errors.NotSupportedError: not_supported_error,
}

NOT_PROVOKED: dict[type[errors.Error], str] = {
    errors.Error: "the root: to catch all, never raised itself",
    errors.DatabaseError: "the root of what the database refuses, never raised itself",
    errors.Interrupted: "the signal handler's own exception, KeyboardInterrupt, is raised in its place",
    errors.WriterStopped: "only a panic inside a group brings it about: the engine's own tests do",
}

WITH_SQLITES_CODE: dict[type[errors.Error], str] = {
    errors.IntegrityError: "SQLITE_CONSTRAINT_UNIQUE",
    errors.CorruptError: "SQLITE_NOTADB",
    errors.ProgrammingError: "SQLITE_ERROR",
}


@pytest.mark.parametrize("kind", SITUATIONS, ids=lambda kind: kind.__name__)
def test_each_class_has_its_situation(database: Path, kind: type[errors.Error]) -> None:
    with pytest.raises(kind) as caught:
        SITUATIONS[kind](database)
    error = caught.value
    assert type(error) is kind
    assert (error.outcome, error.retryable) == ("not_applied", kind.retryable)
    assert error.sqlite_errorname == WITH_SQLITES_CODE.get(kind)
    assert (error.sqlite_errorcode is None) == (kind not in WITH_SQLITES_CODE)
    assert str(error)


def test_every_class_is_provoked_or_says_why_not() -> None:
    assert {*SITUATIONS, *NOT_PROVOKED} == {getattr(errors, name) for name in errors.__all__}
    assert not {*SITUATIONS} & {*NOT_PROVOKED}


def test_message_names_the_file(database: Path) -> None:
    with opened(database) as pool, pytest.raises(errors.IntegrityError) as caught:
        pool.execute(INSERT, (1,))
    assert str(caught.value) == f"UNIQUE constraint failed: t.a [{database}]"


# A disk that refuses

FULL_DISK = """
    import resource, sys
    import walpool
    from walpool import errors
    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (a)")
    pool.execute("INSERT INTO t VALUES ('before')")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow past this: the disk is full
    for write in (
        lambda: pool.execute("INSERT INTO t VALUES (zeroblob(1000000))"),
        lambda: pool.run(lambda tx: tx.execute("INSERT INTO t VALUES (zeroblob(1000000))")),
    ):
        try:
            write()
        except errors.StorageError as error:
            print(type(error).__name__, error.outcome, error.retryable)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pool.execute("INSERT INTO t VALUES ('after')")
    print([a for (a,) in pool.fetch("SELECT a FROM t")], pool.check())
    pool.close()
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_full_disk_is_a_storage_error_and_the_pool_goes_on_when_there_is_room(database: Path) -> None:
    output, _ = run_python(FULL_DISK, database)
    assert output.splitlines() == [
        "StorageError not_applied False",
        "StorageError not_applied False",
        "['before', 'after'] []",
    ]


@pytest.fixture
def damaged(database: Path) -> Iterator[walpool.Pool]:
    """Yield a pool on a file one of whose pages is overwritten with nonsense."""
    with opened(database) as pool:
        pool.executemany(INSERT, [(f"{n} " * 100,) for n in range(1000)])
    with database.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xa5" * 4096 * 20)
    with walpool.Pool(database) as pool:
        yield pool


def test_damaged_file_is_a_corrupt_error_and_the_pool_lives_on(damaged: walpool.Pool) -> None:
    with pytest.raises(errors.CorruptError, match="restore a backup") as caught:
        damaged.fetch("SELECT sum(length(a)) FROM t NOT INDEXED")
    assert caught.value.sqlite_errorname == "SQLITE_CORRUPT"
    assert damaged.fetchval("SELECT 1") == 1
