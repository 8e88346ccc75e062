"""What `walpool doctor` and `walpool check` find: whether this machine, and a database on it, are in order.

Looks through the pool's own verbs. Must not know how findings are printed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import walpool
from walpool import schema
from walpool.errors import ConfigError, CorruptError, NotSupportedError, StorageError
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.memory import Collection
    from walpool.postgres.probe import Server

__all__ = ["Finding", "check", "examine"]

_PRIVATE = 0o077  # what others may do with a file
_INDEX = "fts5"  # so SQLite names a damaged word index, which can be made anew


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    verdict: Literal["ok", "warning", "bad"]
    said: str
    """What was found, and what to do if it is not well."""


def examine(path_or_url: str | None = None) -> Iterator[Finding]:
    """Yield what there is to say of this machine, and of a database if one is given.

    A file is opened as any pool opens it, and checked as a whole: that reads every page. A server is asked what it is
    and offers.

    Args:
        path_or_url: an existing database.

    Raises:
        ConfigError: no SQLite file is named.
        StorageError: there is no such file, or it cannot be opened.
    """
    yield Finding("SQLite", "ok", f"{walpool.sqlite_version}, which has the fix of the WAL-reset bug")
    with walpool.Pool(":memory:") as pool:
        yield _locks(pool)
    if path_or_url is None:
        return
    if Settings.load(path_or_url).path is None:
        yield from _server(path_or_url)
        return
    with walpool.Pool(_existing(path_or_url)) as pool:
        yield from _database(pool)
    yield from check(path_or_url)


def check(path_or_url: str, *, repair: bool = False) -> Iterator[Finding]:
    """Yield what SQLite's integrity check and the checks of its memory stores say of a database.

    Args:
        path_or_url: an existing database.
        repair: make what is derived from the records anew in each memory store where it differs from them. A file that
            is damaged otherwise is left alone.

    Raises:
        As `examine`.
    """
    with walpool.Pool(_existing(path_or_url)) as pool:
        problems = _problems(pool)
    only_words = all(_INDEX in problem.lower() for problem in problems)
    mends_words = repair and only_words and bool(problems)
    if not mends_words:
        yield _integrity(problems, may_help=only_words)
    yield from _memory(path_or_url, repair and only_words, problems)
    if mends_words:
        # Opened anew: FTS5's part of the integrity check goes by what a connection last knew of an index, and one that
        # saw it damaged would find it damaged still.
        with walpool.Pool(path_or_url) as pool:
            yield _integrity(_problems(pool))


def _existing(path_or_url: str) -> str:
    path = Settings.load(path_or_url).path
    if path is None:
        msg = "walpool checks SQLite files: give a path; pg_amcheck checks a PostgreSQL database"
        raise ConfigError(msg)
    if not os.path.exists(path):
        msg = f"there is no file {path}"
        raise StorageError(msg)
    return path_or_url


def _locks(pool: walpool.Pool) -> Finding:
    if pool.stats()["ofd_locks"]:
        return Finding("file locks", "ok", "belong to descriptors: another SQLite library in a process takes none away")
    said = (
        "belong to the process, since this system has no others: in a process that uses walpool nothing else may open "
        "and close the database, not even to read it"
    )
    return Finding("file locks", "warning", said)


def _database(pool: walpool.Pool) -> Iterator[Finding]:
    found = os.stat(pool.path)
    mode = stat.S_IMODE(found.st_mode)
    yield Finding("file", "ok", f"{pool.path}, {_mib(found.st_size)}")
    if mode & _PRIVATE:
        said = f"{mode:04o}: others than its owner may use it; chmod 600 unless they should"
        yield Finding("permissions", "warning", said)
    else:
        yield Finding("permissions", "ok", f"{mode:04o}")
    if (successor := schema.successor(pool)) is not None:
        said = f"in favour of {successor}: pools open it to read only; walpool unretire takes the mark off"
        yield Finding("retired", "warning", said)
    yield _wal(pool)


def _problems(pool: walpool.Pool) -> list[str]:
    try:
        return pool.check()
    except CorruptError as error:
        return [str(error)]


def _integrity(problems: list[str], *, may_help: bool = False) -> Finding:
    if not problems:
        return Finding("integrity", "ok", "SQLite's integrity check finds nothing")
    advice = "restore a backup, or save what sqlite3's .recover finds"
    if may_help:
        advice = f"walpool check --repair mends the word index of a memory store; else {advice}"
    return Finding("integrity", "bad", f"{'; '.join(problems)}: {advice}")


def _memory(path_or_url: str, repair: bool, known: list[str]) -> Iterator[Finding]:
    from walpool import memory  # here: it takes as long to import as all of walpool

    try:
        for each in memory.collections(path_or_url):
            yield _collection(path_or_url, each, repair, known)
    except NotSupportedError as error:  # tables of another version
        yield Finding("memory", "warning", str(error))
    except CorruptError as error:
        yield Finding("memory", "bad", str(error))


def _collection(path_or_url: str, each: Collection, repair: bool, known: list[str]) -> Finding:
    from walpool import memory

    name = f"{each.records:,} records of {each.collection!r}" + (f", tenant {each.tenant!r}" if each.tenant else "")
    with memory.open(path_or_url, tenant=each.tenant, collection=each.collection) as store:
        problems = list(store.check())
        if not (problems or (repair and known)):
            return Finding("memory", "ok", f"{name}, and what is derived from them agrees")
        if repair:
            store.rebuild()
            left = list(store.check())
            if not left:
                return Finding("memory", "ok", f"{name}, mended: {'; '.join([*known, *problems])}")
            problems = left
    return Finding("memory", "bad", f"{name}: {'; '.join(problems)}: walpool check --repair mends it")


def _wal(pool: walpool.Pool) -> Finding:
    _, frames, moved = pool.checkpoint()
    size = os.stat(f"{pool.path}-wal").st_size
    if moved < frames:
        return Finding("WAL", "warning", f"{_mib(size)}: a reader of another process keeps it from being reused")
    if size > pool.settings.wal_limit:
        said = f"{_mib(size)}, past wal_limit; pool.checkpoint('truncate') cuts it when nobody reads"
        return Finding("WAL", "warning", said)
    return Finding("WAL", "ok", f"on, {_mib(size)}, all of it in the file")


def _server(url: str) -> Iterator[Finding]:
    with walpool.get_pool(url) as pool:
        from walpool.postgres import PostgresPool  # here: psycopg is an extra, and is there since the pool is open
        from walpool.postgres.probe import connections, probe

        assert isinstance(pool, PostgresPool), "whoever has no path has a server"
        server = probe(pool)
        yield Finding(
            "server", "ok", f"{server.flavour}: {server.version}; a round trip takes {server.round_trip_ms:.2f} ms"
        )
        yield from _of_server(server)
        yield _room(connections(pool.settings.readers), server)


def _of_server(server: Server) -> Iterator[Finding]:
    if server.flavour not in {"PostgreSQL", "Citus"}:
        yield Finding("flavour", "warning", f"{server.flavour} is not tested with; docs/postgres.md says what is used")
    encoding = server.settings.get("server_encoding", "UTF8")
    if encoding != "UTF8":
        yield Finding("encoding", "bad", f"{encoding}: make the database with ENCODING 'UTF8'")
    yield _durability(server)
    yield _vectors(server)
    if not server.has_words:
        yield Finding("words", "warning", "no full-text search: memory stores find no words")
    yield _role(server)
    yield Finding("TLS", "ok", server.tls or "none; over a socket or on one machine that is no harm")
    if server.is_pooled:
        yield Finding("pooler", "ok", "there is one; walpool keeps no state in a session")


def _durability(server: Server) -> Finding:
    if server.settings.get("fsync") == "off":
        return Finding("durability", "bad", "fsync is off: a crash of the machine may lose the whole database")
    if server.settings.get("full_page_writes") == "off":
        return Finding("durability", "warning", "full_page_writes is off: a crash of the machine may tear pages")
    commit = server.settings.get("synchronous_commit", "not known")
    return Finding("durability", "ok", f"fsync is on, synchronous_commit is {commit}")


def _vectors(server: Server) -> Finding:
    if server.vector is None:
        return Finding("vectors", "warning", "pgvector is not installed on the server: memory stores need it")
    if not server.vector:
        return Finding("vectors", "warning", "pgvector is there, not in this database: CREATE EXTENSION vector")
    if tuple(map(int, server.vector.split(".")[:2])) < (0, 7):
        return Finding("vectors", "warning", f"pgvector {server.vector}: memory stores need 0.7 or newer")
    return Finding("vectors", "ok", f"pgvector {server.vector}")


def _role(server: Server) -> Finding:
    no_rls = "row-level security does not hold for it; let the application have a role of its own"
    if server.is_superuser:
        return Finding("role", "warning", f"a superuser: {no_rls}")
    if server.bypasses_rls:
        return Finding("role", "warning", f"BYPASSRLS: {no_rls}")
    return Finding("role", "ok", "neither superuser nor BYPASSRLS" + _tables(server))


def _tables(server: Server) -> str:
    return "" if server.can_create else "; may make no tables: the owner makes them (walpool pg-init --print-sql)"


def _room(needed: int, server: Server) -> Finding:
    limit = int(server.settings.get("max_connections", 0))
    said = f"{needed} at most from one process, {limit or 'an unknown number'} at most on the server"
    if limit and needed * 2 > limit and not server.is_pooled:
        return Finding("connections", "warning", f"{said}: lower readers, or put PgBouncer between")
    return Finding("connections", "ok", said)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
