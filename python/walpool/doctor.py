"""What `walpool doctor` finds: whether this machine, and a database on it, are fit for what walpool promises.

Looks through the pool's own verbs. Must not know how findings are printed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal, NamedTuple

import walpool
from walpool.errors import ConfigError, CorruptError, StorageError
from walpool.settings import Settings

__all__ = ["Finding", "examine"]

_PRIVATE = 0o077  # what others may do with a file


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    verdict: Literal["ok", "warning", "bad"]
    said: str
    """What was found, and what to do if it is not well."""


def examine(path_or_url: str | None = None) -> Iterator[Finding]:
    """Yield what there is to say of this machine, and of a database if one is given.

    The database is opened as any pool opens it, and checked as a whole: that reads every page.

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
    path = Settings.load(path_or_url).path
    if path is None:
        msg = "walpool doctor examines SQLite files: give a path, walpool://... or sqlite://..."
        raise ConfigError(msg)
    if not os.path.exists(path):
        msg = f"there is no file {path}"
        raise StorageError(msg)
    with walpool.Pool(path_or_url) as pool:
        yield from _database(pool)


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
    yield _wal(pool)
    yield _integrity(pool)


def _integrity(pool: walpool.Pool) -> Finding:
    try:
        problems = pool.check()
    except CorruptError as error:
        problems = [str(error)]
    if not problems:
        return Finding("integrity", "ok", "SQLite's integrity check finds nothing")
    return Finding(
        "integrity", "bad", "; ".join(problems) + ": restore a backup, or save what sqlite3's .recover finds"
    )


def _wal(pool: walpool.Pool) -> Finding:
    _, frames, moved = pool.checkpoint()
    size = os.stat(f"{pool.path}-wal").st_size
    if moved < frames:
        return Finding("WAL", "warning", f"{_mib(size)}: a reader of another process keeps it from being reused")
    if size > pool.settings.wal_limit:
        said = f"{_mib(size)}, past wal_limit; pool.checkpoint('truncate') cuts it when nobody reads"
        return Finding("WAL", "warning", said)
    return Finding("WAL", "ok", f"on, {_mib(size)}, all of it in the file")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
