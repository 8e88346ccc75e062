"""Numbered migrations of walpool's own tables: bringing a file up to date, refusing a file that is newer.

A set of tables has a name ("memory", "crewai"); its version is the number of migrations that were applied, and stands
in the table `walpool_schema` of the same database. Knows no set of tables: their SQL is handed in, as the backend of
the pool takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from walpool.errors import Error, IntegrityError, NotSupportedError, ProgrammingError
from walpool.types import Params

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.pool import Pool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

__all__ = [
    "CREATE_RETIRED",
    "IS_RETIRED",
    "RETIRE",
    "SUCCESSOR",
    "TENANT",
    "TENANT_COLUMN",
    "UNRETIRE",
    "Migration",
    "migrate",
    "migrate_async",
    "successor",
    "version",
    "version_async",
]

TENANT: Final = "coalesce(current_setting('walpool.tenant', true), '')"
"""On PostgreSQL, as SQL: whose rows a statement is about, which is what its pool was opened with."""

TENANT_COLUMN: Final = f'tenant TEXT COLLATE "C" NOT NULL DEFAULT {TENANT}'
"""The first column of a table on PostgreSQL, and of its key: rows of a tenant lie together, and may be told apart."""

Migration: TypeAlias = Sequence[str]
"""The statements, without parameters, that lead from one version to the next."""

CREATE_RETIRED = """CREATE TABLE IF NOT EXISTS walpool_retired
    (successor TEXT PRIMARY KEY, retired_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"""
"""The table of the mark of a SQLite file that has gone over to a server. The engine looks for a row in it, and opens
such a file to read only: `src/connection/retired.rs` has these names too."""

RETIRE = "INSERT INTO walpool_retired (successor) VALUES (?) ON CONFLICT DO NOTHING"
"""Sets the mark; the parameter is the server's URL, without its password."""

UNRETIRE = "DROP TABLE IF EXISTS walpool_retired"
"""Takes the mark off, whoever the successors are."""

IS_RETIRED = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'walpool_retired'"
"""Whether there may be a mark: whether its table is there."""

SUCCESSOR = "SELECT successor FROM walpool_retired ORDER BY retired_at DESC LIMIT 1"
"""The URL that the mark names, where the table is there; no row if there is no mark."""

_CREATE = {
    "sqlite": "CREATE TABLE IF NOT EXISTS walpool_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
    "postgres": "CREATE TABLE IF NOT EXISTS walpool_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL)",
}
_EXISTS = {
    "sqlite": "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'walpool_schema'",
    "postgres": "SELECT 1 WHERE to_regclass('walpool_schema') IS NOT NULL",
}
# The row of the set, made and locked: of processes that start at once one migrates, and the others wait for it. A row
# rather than an advisory lock, which not all who speak PostgreSQL's protocol have. On SQLite the one writer is lock
# enough.
_LOCK = """INSERT INTO walpool_schema (name, version) VALUES (?, 0)
    ON CONFLICT (name) DO UPDATE SET version = walpool_schema.version"""
_VERSION = "SELECT version FROM walpool_schema WHERE name = ?"
# Fails, by a NULL, where another process has migrated between the look at the version and the job.
_STILL = """INSERT INTO walpool_schema (name, version)
    SELECT CAST(?1 AS TEXT), NULL WHERE coalesce((SELECT version FROM walpool_schema WHERE name = ?1), 0) <> ?2"""
_SET_VERSION = """INSERT INTO walpool_schema (name, version) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET version = excluded.version"""


_MAY_CREATE = "SELECT has_schema_privilege(current_schema(), 'CREATE')"  # NULL where there is no schema to create in


def successor(pool: Pool) -> str | None:
    """Return the URL that a file was retired in favour of, by `walpool migrate --retire`; None if it was not."""
    if pool.fetchval(IS_RETIRED) is None:
        return None
    found = pool.fetchval(SUCCESSOR)
    return None if found is None else str(found)


def version(pool: Pool | PostgresPool, name: str) -> int:
    """Return how many migrations of the tables called `name` the database has seen; 0 if it has none of them."""
    if pool.fetchval(_EXISTS[pool.backend]) is None:
        return 0
    return int(pool.fetchval(_VERSION, (name,)) or 0)


def migrate(pool: Pool | PostgresPool, name: str, migrations: Sequence[Migration]) -> None:
    """Bring the tables called `name` up to date; where they are, only look.

    The migrations that are missing run in one job with the new version: a file is never left half-way, and of two
    processes that start at once one waits and then finds nothing to do. A job rather than a transaction, which would be
    taken back after `transaction_timeout`, and so no large file could ever be brought up to date.

    Args:
        pool: the database; anything else in the file is left alone.
        name: which set of tables.
        migrations: all of them, oldest first; a published one never changes.

    Raises:
        NotSupportedError: the file was written by a newer walpool; upgrade walpool, or use another file.
        ProgrammingError: the role of a server may make no tables.
        WriteTimeout: another transaction held the writer for too long (retryable).
    """
    found = version(pool, name)
    races = 0
    while job := _job(pool.backend, pool.path, name, found, migrations):
        try:
            pool.batch(job)
        except (IntegrityError, ProgrammingError) as error:
            before, found = found, version(pool, name)
            if found == before and (races := races + 1) > _races(pool.backend):
                if pool.backend == "postgres" and pool.fetchval(_MAY_CREATE) is False:
                    raise _not_allowed(name, error) from None
                raise
        else:
            return


async def version_async(pool: AsyncPool | AsyncPostgresPool, name: str) -> int:
    """Return what `version` returns, from an `AsyncPool`."""
    if await pool.fetchval(_EXISTS[pool.backend]) is None:
        return 0
    return int(await pool.fetchval(_VERSION, (name,)) or 0)


async def migrate_async(pool: AsyncPool | AsyncPostgresPool, name: str, migrations: Sequence[Migration]) -> None:
    """Do what `migrate` does, through an `AsyncPool`."""
    found = await version_async(pool, name)
    races = 0
    while job := _job(pool.backend, pool.path, name, found, migrations):
        try:
            await pool.batch(job)
        except (IntegrityError, ProgrammingError) as error:
            before, found = found, await version_async(pool, name)
            if found == before and (races := races + 1) > _races(pool.backend):
                if pool.backend == "postgres" and await pool.fetchval(_MAY_CREATE) is False:
                    raise _not_allowed(name, error) from None
                raise
        else:
            return


def _not_allowed(name: str, error: Error) -> ProgrammingError:
    """Return the error for a role that finds the tables missing, or old, and may not make them."""
    advice = f"have a role that may make the {name!r} tables open them once, and GRANT this one their use"
    return ProgrammingError(f"{advice}, and that of walpool_schema: {error}")


def _races(backend: str) -> int:
    """Return how often a job that failed is tried again although no other process has migrated in between.

    PostgreSQL's CREATE TABLE IF NOT EXISTS fails where another session makes the same table at that moment.
    """
    return 3 if backend == "postgres" else 0


def _job(backend: str, path: str, name: str, found: int, migrations: Sequence[Migration]) -> list[tuple[str, Params]]:
    """Return the job that leads from version `found` to the newest; empty if it is that."""
    if found > len(migrations):
        raise NotSupportedError(
            f"the {name!r} tables of {path} have version {found}, and this walpool knows versions up to "
            f"{len(migrations)}: upgrade walpool, or use another file"
        )
    if found == len(migrations):
        return []
    statements: list[tuple[str, Params]] = [(sql, ()) for migration in migrations[found:] for sql in migration]
    lock: list[tuple[str, Params]] = [(_LOCK, (name,))] if backend == "postgres" else []
    return [
        (_CREATE[backend], ()),
        *lock,
        (_STILL, (name, found)),
        *statements,
        (_SET_VERSION, (name, len(migrations))),
    ]
