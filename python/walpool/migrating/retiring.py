"""The mark of a SQLite file that has gone over to a server: set, looked at, taken off. What it does is the engine's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from walpool import schema
from walpool.errors import ConfigError
from walpool.pool import Pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.migrating._sqlite import SqliteSide

__all__ = ["is_marked", "mark", "unmark", "unretire"]


def mark(file: SqliteSide, successor: str) -> None:
    """Mark a file as retired in favour of a server; in the open transaction if there is one, else in one of its own."""
    with file.transaction():
        file.execute(schema.CREATE_RETIRED)
        file.execute(schema.RETIRE, (successor,))


def is_marked(file: SqliteSide) -> bool:
    """Return whether a file has a mark."""
    return bool(file.fetch(schema.IS_RETIRED) and file.fetch(schema.SUCCESSOR))


def unmark(file: SqliteSide) -> bool:
    """Take the mark off; return whether there was one."""
    found = is_marked(file)
    if found:
        file.execute(schema.UNRETIRE)
    return found


def unretire(path_or_url: str | os.PathLike[str]) -> str | None:
    """Take the mark off a file that was retired, so that whoever opens it from now on may write it.

    A pool that has it open already goes on as it began, to read only.

    Args:
        path_or_url: of a SQLite file.

    Returns:
        The URL that it was retired in favour of; None if it was not retired, and nothing was changed.

    Raises:
        ConfigError: there is no such file, it is a PostgreSQL database, or this process has it open with another
            `write_retired`.
    """
    path = Settings.load(path_or_url).path
    if path is None:
        raise ConfigError("only SQLite files are marked as retired: give a path")
    if not os.path.isfile(path):
        raise ConfigError(f"there is no file {path}")
    with Pool(path_or_url, write_retired=True) as pool:
        successor = schema.successor(pool)
        if successor is not None:
            pool.execute(schema.UNRETIRE)
    return successor
