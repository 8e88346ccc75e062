"""Which memory store a command is about: its arguments, and opening it without leaving anything behind.

Looking creates no file, no tables and no collection: what is not there is an error that names what to say instead.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from walpool.cli._screen import harmless
from walpool.errors import ConfigError, NotSupportedError
from walpool.settings import Settings

if TYPE_CHECKING:  # at run time where it is needed: it takes as long to import as all of walpool
    from walpool.memory import Collection, MemoryStore

__all__ = ["Database", "add_store", "existing", "existing_file", "label", "opened", "opened_each"]

_TENANT = ""
_COLLECTION = "memory"


class Database(NamedTuple):
    """A file that exists, or a server's database."""

    target: str
    """The path or URL by which it was named."""
    path: str | None
    """Of the file; None for a server's."""
    name: str
    """What a message may call it: the path, or the URL without its password."""


def add_store(parser: argparse.ArgumentParser, *, each: bool = False) -> None:
    """Add the arguments that name a store beside its database.

    Args:
        parser: where to.
        each: the command is about every collection that is not excluded by them.
    """
    tenant, collection = ("every one", "every one") if each else ("the one without a name", repr(_COLLECTION))
    parser.add_argument("--tenant", metavar="NAME", help=f"whose records; default: {tenant}")
    parser.add_argument(
        "--collection", metavar="NAME", help=f"which of the tenant's collections; default: {collection}"
    )
    parser.add_argument("--upgrade", action="store_true", help="bring tables of an older walpool up to date first")


def existing(path_or_url: str | None) -> Database:
    """Return the database that was named, or WALPOOL_URL's.

    Raises:
        ConfigError: none was named, or it is a file that is not there.
    """
    settings = Settings.load(path_or_url)
    target = settings.url if path_or_url is None else path_or_url
    if target is None:
        raise ConfigError("no database was named: give DB, a path or a URL, or set WALPOOL_URL")
    if settings.path is not None and not os.path.exists(settings.path):
        raise ConfigError(f"there is no file {harmless(settings.path)}: give another DB, or set WALPOOL_URL")
    return Database(target, settings.path, harmless(settings.path or str(settings.shown_url)))


def existing_file(path_or_url: str | None) -> str:
    """Return what names the file, as `existing` does.

    Raises:
        ConfigError: also where it is a server's database.
    """
    database = existing(path_or_url)
    if database.path is None:
        raise ConfigError("this looks at SQLite files: give DB as a path, walpool://... or sqlite://...")
    return database.target


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[MemoryStore]:
    """Yield the one store that the arguments name, open.

    Raises:
        ConfigError: as `existing`; also without such a collection, or where the tables are an older walpool's.
    """
    database = existing(arguments.path_or_url)
    tenant = _TENANT if arguments.tenant is None else arguments.tenant
    name = _COLLECTION if arguments.collection is None else arguments.collection
    there = _collections(database, arguments)
    found = [each for each in there if (each.tenant, each.collection) == (tenant, name)]
    if not found:
        raise _lacking(database, there)
    with _open(database, found[0]) as store:
        yield store


def opened_each(arguments: argparse.Namespace) -> Iterator[tuple[Collection, MemoryStore]]:
    """Yield every collection that the arguments do not exclude, with its store, open until the next one is asked for.

    Raises:
        As `opened`.
    """
    database = existing(arguments.path_or_url)
    there = _collections(database, arguments)
    found = [
        each
        for each in there
        if arguments.tenant in (None, each.tenant) and arguments.collection in (None, each.collection)
    ]
    if not found:
        raise _lacking(database, there)
    for each in found:
        with _open(database, each) as store:
            yield each, store


def label(each: Collection) -> str:
    """Return what to call a collection in a line of output."""
    return harmless(f"{each.tenant}/{each.collection}" if each.tenant else each.collection)


def _open(database: Database, each: Collection) -> MemoryStore:
    from walpool.interchange.stores import open_collection

    return open_collection(database.target, each, {})


def _collections(database: Database, arguments: argparse.Namespace) -> list[Collection]:
    from walpool import memory

    try:
        return memory.collections(database.target, upgrade=arguments.upgrade, tenant=arguments.tenant or None)
    except NotSupportedError as error:
        raise ConfigError(str(error)) from error


def _lacking(database: Database, there: list[Collection]) -> ConfigError:
    if not there:
        secured = "" if database.path else ", or --tenant where row-level security is on"
        return ConfigError(f"there is no memory store in {database.name}: give another DB{secured}")
    names = ", ".join(f"--tenant {each.tenant!r} --collection {each.collection!r}" for each in there[:5])
    more = f", and {len(there) - 5} more" if len(there) > 5 else ""
    return ConfigError(f"there is no such collection in {database.name}, but {names}{more}")
