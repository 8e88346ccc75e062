"""Which database the integration writes to, and handles on it that can be closed while others use them.

Owns what of a URL may be said aloud. Knows `walpool`'s pools and where CrewAI keeps its files; knows no surface of
CrewAI's.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import quote

from walpool import schema
from walpool.crewai import _sql
from walpool.errors import ClosedError, ConfigError, ReadOnlyError
from walpool.registry import get_pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.memory import MemoryStore
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

T = TypeVar("T")

# URLs of servers that this process was given, by what `canonical_url` made of them. CrewAI writes URLs into checkpoints
# and shows them to people, so a password is not in them; but whoever was given one in this process is to be served.
_given: Final[dict[str, str]] = {}


class Resource(Protocol):
    """What a `Reopening` holds: something on one file that can be closed."""

    def close(self) -> None: ...


R = TypeVar("R", bound=Resource)


def canonical_url(url: str | os.PathLike[str] | None) -> str:
    """Return `url` as a URL that names the same from every working directory, and that may be shown and stored.

    A file's is a `walpool://` URL with an absolute path; a server's has no password. None takes `WALPOOL_URL`, and
    without that the file `walpool.db` where CrewAI keeps its own databases.

    Raises:
        ConfigError: it is no path and no URL of a database.
    """
    settings = Settings.load(url)
    given = settings.url
    if given is None:
        return _walpool_url(os.path.join(storage_folder(), "walpool.db"), "")
    if settings.path is None:
        shown = _without_password(settings)
        if given != shown:
            _given[shown] = given
        return shown
    if settings.path == ":memory:":
        return settings.path
    _, mark, query = given.partition("?") if "://" in given else ("", "", "")
    return _walpool_url(os.path.abspath(settings.path), mark + query)


def is_server(url: str) -> bool:
    """Return whether a path or URL names a PostgreSQL server."""
    return url.startswith(("postgresql://", "postgres://"))


def storage_folder() -> str:
    """Return the folder in which CrewAI keeps this project's databases; made if it is not there."""
    try:
        from crewai_core.paths import db_storage_path
    except ImportError:  # before 1.10
        from crewai.utilities.paths import db_storage_path  # type: ignore[import-not-found, no-redef, unused-ignore]
    return str(db_storage_path())


def file_of(url: str) -> str:
    """Return the path of the file that a canonical URL names; `:memory:` for that, and a server's URL for itself."""
    return url if is_server(url) else str(Settings.load(url).path)


def open_pool(url: str, settings: dict[str, Any]) -> Pool | PostgresPool:
    """Return a handle of its own on the process's pool for `url`; makes the folder that the file is to lie in."""
    path = file_of(url)
    if path != ":memory:" and not is_server(url):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    pool = get_pool(full_url(url), **settings)
    # CrewAI's interfaces are synchronous, and it calls them on the event loops that it runs flows on.
    pool._warns_on_loop = False
    return pool


def open_store(url: str, settings: dict[str, Any]) -> MemoryStore:
    """Return a memory store on a handle of its own, with the rows of the tenant that the settings name."""
    from walpool.memory import PostgresMemoryStore, SqliteMemoryStore  # here: nobody else needs all of it

    pool = open_pool(url, settings)
    try:
        if pool.backend == "sqlite":
            return SqliteMemoryStore(cast("Pool", pool))
        return PostgresMemoryStore(cast("PostgresPool", pool), tenant=settings.get("tenant") or "")
    except BaseException:
        pool.close()
        raise


def with_tenant(url: str, tenant: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with a tenant in them, as `get_pool` takes both.

    Raises:
        ConfigError: there is a tenant, and the URL is a file's.
    """
    if tenant is None:
        return settings
    if not is_server(url):
        raise ConfigError(f"tenant= is for a server: a file is one tenant's; give a postgresql:// URL [{file_of(url)}]")
    return {**settings, "tenant": tenant}


def settings_for(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an installation for a database that a crew names: a file has no tenants."""
    return settings if is_server(url) else {name: value for name, value in settings.items() if name != "tenant"}


def full_url(url: str) -> str:
    """Return a canonical URL with its password, if this process was given one or has it in `WALPOOL_URL`.

    Without one libpq looks for it, in PGPASSWORD and in its password file.
    """
    if not is_server(url) or url in _given:
        return _given.get(url, url)
    environment = Settings.load()
    is_it = environment.url is not None and _without_password(environment) == url
    return str(environment.url) if is_it else url


def open_tables(url: str, settings: dict[str, Any]) -> Pool | PostgresPool:
    """Return `open_pool` of a database that has the tables of flows and kickoffs."""
    return _open_migrated(url, settings, "crewai", _sql.MIGRATIONS)


def open_long_term(url: str, settings: dict[str, Any]) -> Pool | PostgresPool:
    """Return `open_pool` of a database that has the table of long-term memories."""
    return _open_migrated(url, settings, "crewai_long_term", _sql.LONG_TERM_MIGRATIONS)


def open_checkpoints(url: str, settings: dict[str, Any]) -> Pool | PostgresPool:
    """Return `open_pool` of a database that has the table of checkpoints: in a file CrewAI's own, and no other."""
    pool = open_pool(url, settings)
    try:
        with suppress(ReadOnlyError):  # of a retired file: whatever is there may be read
            _make_checkpoints(pool)
    except BaseException:
        pool.close()
        raise
    return pool


def make_tables(pool: Pool | PostgresPool) -> None:
    """Make all tables of the integration but memory's, where they are missing: as an import needs them."""
    schema.migrate(pool, "crewai", _sql.MIGRATIONS[pool.backend])
    schema.migrate(pool, "crewai_long_term", _sql.LONG_TERM_MIGRATIONS[pool.backend])
    _make_checkpoints(pool)


def _make_checkpoints(pool: Pool | PostgresPool) -> None:
    if pool.backend == "postgres":
        schema.migrate(pool, "crewai_checkpoints", _sql.CHECKPOINT_MIGRATIONS)
    else:
        pool.execute(_sql.CREATE_CHECKPOINTS)


def _open_migrated(
    url: str, settings: dict[str, Any], name: str, migrations: Mapping[str, Sequence[schema.Migration]]
) -> Pool | PostgresPool:
    pool = open_pool(url, settings)
    try:
        schema.migrate(pool, name, migrations[pool.backend])
    except BaseException:
        pool.close()
        raise
    return pool


class _Opened(NamedTuple):
    """What is open, the file that it is open on, and the process that opened it."""

    resource: Any
    file: tuple[int, int] | None
    process: int


class Reopening(Generic[R]):
    """Something on a database that is opened at its first use, and again at the first use after `close`.

    CrewAI hands one storage to many crews and gives none of them a say in its life: one of them may close it while the
    others go on, the file may be deleted under it (as `crewai reset-memories` and notebooks do), the process may fork
    (as web servers do), and nobody closes it in the end. So each use finds it open, by this process, on the file that
    lies at the path now; and when the last user has gone, or the interpreter ends, it is closed without a warning.

    Args:
        path: the file; `:memory:` and a server's URL are never looked at.
        opener: opens it.
    """

    def __init__(self, path: str, opener: Callable[[], R]) -> None:
        self._path = path
        self._opener = opener
        # Guards changes of `_opened`; held while opening, so that one thread opens. One for each process: a child may
        # inherit its parent's locked, by a thread that it does not have.
        self._locks: dict[int, threading.Lock] = {}
        self._opened: list[_Opened] = []  # the last one counts; before it, what was inherited across a fork
        self._finalizer = weakref.finalize(self, _close_all, self._opened)

    def use(self, work: Callable[[R], T]) -> T:
        """Return `work(resource)`.

        A resource that another thread closed refuses new work and has applied nothing of it, so the work is done on
        the one that is opened in its place.
        """
        while True:
            resource = self.get()
            try:
                return work(resource)
            except ClosedError:
                if self._opened and self._opened[-1].resource is resource:
                    raise  # whoever closed it did not do it through `close`

    def get(self) -> R:
        """Return the resource, opened if need be; for whoever needs more than one call, at the caller's own risk."""
        opened = self._current()
        if opened is None:
            with self._lock():
                opened = self._current()
                if opened is None:
                    self._close_open()  # its file is no longer there
                    resource = self._opener()
                    opened = _Opened(resource, self._file(), os.getpid())
                    self._opened.append(opened)
        return cast("R", opened.resource)

    def close(self) -> None:
        """Close what is open; the next use opens it again."""
        with self._lock():
            self._close_open()

    # A copy is the same handle, and a pickle one on the same file: CrewAI copies and pickles what holds it.

    def __copy__(self) -> Reopening[R]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Reopening[R]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Reopening, (self._path, self._opener)

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _current(self) -> _Opened | None:
        try:
            opened = self._opened[-1]
        except IndexError:
            return None
        return opened if opened.process == os.getpid() and opened.file == self._file() else None

    def _close_open(self) -> None:
        if self._opened and self._opened[-1].process == os.getpid():
            self._opened.pop().resource.close()

    def _file(self) -> tuple[int, int] | None:
        """Return which file lies at the path now: a look at its name, the file itself is not opened."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _without_password(settings: Settings) -> str:
    return str(settings.__getstate__()["url"])  # what a pickle of it may carry


def _walpool_url(path: str, query: str) -> str:
    return f"walpool://{quote(path)}{query}"


def _close_all(opened: list[_Opened]) -> None:
    while opened:
        last = opened.pop()
        if last.process == os.getpid():  # what a parent opened is the parent's to close
            last.resource.close()
