"""The places where CrewAI can be given another store: for each component, the seam, what goes in, and the way back.

A seam is an official setter where CrewAI has one, and a rebound name where it has none. CrewAI is imported by each
component for itself, so that one that lacks a seam costs that component and no other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from walpool.crewai._database import canonical_url, is_server, settings_for, storage_folder

if TYPE_CHECKING:
    from walpool.crewai.memory import Score


class _Closeable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closeable)

_LONG_TERM: Final = "crewai.memory.storage.ltm_sqlite_storage"


class InstallWarning(UserWarning):
    """Something of CrewAI's stays as it is, although walpool was asked to replace it; the message says what and why."""


InstallWarning.__module__ = "walpool.crewai"


class NotReplacedError(Exception):
    """A component stays as it is; the message is the reason."""


@dataclass
class Plan:
    """What one installation puts where, and how to take it out again."""

    url: str
    score: Score = "lance"
    settings: dict[str, Any] = field(default_factory=dict)
    undo: list[Callable[[], str | None]] = field(default_factory=list)
    """Called last first; each returns what it could not undo, if anything."""

    def rebind(self, owner: Any, name: str, ours: object, setter: Callable[[Any], None] | None = None) -> None:
        """Point `owner.name` to `ours`, through CrewAI's own `setter` if it has one."""
        before = getattr(owner, name)
        put = setter or partial(setattr, owner, name)
        put(ours)
        self.undo.append(partial(_restore, owner, name, ours, before, put))

    def take_out(self, down_to: int = 0) -> list[str]:
        """Undo what was done after the first `down_to` steps, last first; return what could not be undone."""
        failed = [self.undo.pop()() for _ in range(len(self.undo) - down_to)]
        return [message for message in failed if message is not None]


def _restore(owner: Any, name: str, ours: object, before: object, put: Callable[[Any], None]) -> str | None:
    if getattr(owner, name) is not ours:
        home = getattr(owner, "__name__", owner)
        return f"{home}.{name} was replaced by somebody else after walpool, and stays so"
    put(before)
    return None


def put_in_memory(plan: Plan) -> str:
    """Replace the default memory storage; return the seam."""
    factory = import_module("crewai.memory.storage.factory")
    from walpool.crewai.memory import WalpoolStorage

    storages = _Storages(
        lambda url: WalpoolStorage(url, score=plan.score, **settings_for(url, plan.settings)), plan.url
    )
    storages("lancedb")  # opens nothing, but checks the score
    plan.undo.append(storages.close)
    plan.rebind(factory, "_factory", storages, factory.set_memory_storage_factory)
    return "set_memory_storage_factory"


def put_in_flow(plan: Plan) -> str:
    """Replace the default flow persistence; return the seam."""
    factory = import_module("crewai.flow.persistence.factory")
    from walpool.crewai.flow import WalpoolFlowPersistence

    shared = _Once(lambda: WalpoolFlowPersistence(plan.url, settings=plan.settings))
    plan.undo.append(shared.close)
    plan.rebind(factory, "_factory", shared, factory.set_flow_persistence_factory)
    return "set_flow_persistence_factory"


def put_in_checkpoint(plan: Plan) -> str:
    """Let `SqliteProvider` and restores go through walpool; return the seam."""
    stock = import_module("crewai.state.provider.sqlite_provider").SqliteProvider
    utilities = import_module("crewai.state.provider.utils")
    from walpool.crewai import checkpoint
    from walpool.crewai.checkpoint import CheckpointFiles, WalpoolCheckpointProvider, is_checkpoint_location

    files = CheckpointFiles(**plan.settings)
    provider = WalpoolCheckpointProvider.on(files)
    detect = utilities.detect_provider

    def detect_provider(path: str) -> Any:
        # A location says by its form that it is SQLite's: the file need not be opened to look at it.
        found = provider if is_checkpoint_location(path) else detect(path)
        return provider if type(found) is stock else found

    plan.undo.append(files.close)
    plan.rebind(checkpoint, "_shared", files)
    plan.rebind(utilities, "detect_provider", detect_provider)
    # The methods rather than the class: whoever holds the class or an object of it already is reached as well.
    for name in ("checkpoint", "acheckpoint", "prune", "from_checkpoint", "afrom_checkpoint"):
        plan.rebind(stock, name, _delegate(getattr(provider, name)))
    return "rebound SqliteProvider's methods and detect_provider; JsonProvider, CrewAI's default, stays"


def put_in_kickoff(plan: Plan) -> str:
    """Replace the store of kickoff task outputs; return the seam."""
    handler = import_module("crewai.utilities.task_output_storage_handler")
    from walpool.crewai.kickoff import WalpoolKickoffStorage

    shared = _Once(lambda: WalpoolKickoffStorage(plan.url, **plan.settings))
    plan.undo.append(shared.close)
    plan.rebind(handler, "KickoffTaskOutputsSQLiteStorage", shared)
    return "rebound task_output_storage_handler.KickoffTaskOutputsSQLiteStorage"


def put_in_lock(plan: Plan) -> str:
    """Replace the lock of what CrewAI still locks; return the seam."""
    store = import_module("crewai_core.lock_store")
    if sys.platform == "win32":
        raise NotReplacedError("Windows has no flock; CrewAI's own lock stays")
    if store._redis_available():
        raise NotReplacedError("REDIS_URL is set; CrewAI's Redis lock, which other machines share, stays")
    from walpool.crewai.lock import WalpoolLock

    plan.rebind(store, "_backend", WalpoolLock(), store.set_lock_backend)
    return "set_lock_backend"


def has_long_term() -> bool:
    """Return whether this CrewAI keeps long-term memories of the old kind: up to 1.9.3 it does."""
    try:
        return find_spec(_LONG_TERM) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


def put_in_long_term(plan: Plan) -> str:
    """Replace the store of long-term memories that CrewAI has up to 1.9.3; return the seam."""
    stock = import_module(_LONG_TERM).LTMSQLiteStorage
    from walpool.crewai.long_term import WalpoolLongTermStorage

    default = os.path.join(storage_folder(), "long_term_memory_storage.db")
    storages = _Storages(lambda url: WalpoolLongTermStorage(url, **settings_for(url, plan.settings)), plan.url)
    plan.undo.append(storages.close)

    def ours(storage: Any) -> WalpoolLongTermStorage:
        # A crew that names a file keeps it: the table in it is the same.
        return storages.at(plan.url if storage.db_path == default else canonical_url(storage.db_path))

    plan.rebind(stock, "_initialize_db", lambda _: None)
    # The methods rather than the class: whoever holds the class or an object of it already is reached as well.
    for name in ("save", "load", "reset", "asave", "aload", "areset"):
        plan.rebind(stock, name, _forward(ours, getattr(WalpoolLongTermStorage, name)))
    return "rebound LTMSQLiteStorage's methods"


SEAMS: Final[dict[str, Callable[[Plan], str]]] = {
    "memory": put_in_memory,
    "flow": put_in_flow,
    "checkpoint": put_in_checkpoint,
    "kickoff": put_in_kickoff,
    "lock": put_in_lock,
}
"""By component, in the order in which they are put in. Each returns the seam that it used."""

OLD_SEAMS: Final[dict[str, Callable[[Plan], str]]] = {"long_term": put_in_long_term}
"""Those that only an older CrewAI has."""


class _Storages(Generic[C]):
    """One storage for the default, and one for each database that a crew names; called, the memory storage factory.

    Another path is left to CrewAI: it names a folder of LanceDB's, with memories in it that would seem lost.
    """

    def __init__(self, make: Callable[[str], C], default_url: str) -> None:
        self._make = make
        self._default_url = default_url
        self._lock = threading.Lock()  # guards the table
        self._by_url: dict[str, C] = {}

    def __call__(self, spec: str) -> C | None:
        if spec == "lancedb":
            url = self._default_url
        elif (
            spec.startswith(("walpool://", "sqlite://"))
            or is_server(spec)
            or spec.endswith((".db", ".sqlite", ".sqlite3"))
        ):
            url = canonical_url(spec)
        else:
            return None
        return self.at(url)

    def at(self, url: str) -> C:
        """Return the storage of the database with this canonical URL."""
        with self._lock:
            storage = self._by_url.get(url)
            if storage is None:
                self._by_url[url] = storage = self._make(url)
            return storage

    def close(self) -> None:
        """Give the databases back; a crew that goes on opens its own again."""
        with self._lock:
            for storage in self._by_url.values():
                storage.close()


class _Once(Generic[C]):
    """Makes one object, when it is first asked for, and gives everybody that one."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._lock = threading.Lock()  # guards `_made`
        self._made: C | None = None

    def __call__(self) -> C:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def close(self) -> None:
        """Give its database back; a crew or flow that goes on opens it again."""
        with self._lock:
            if self._made is not None:
                self._made.close()


def _forward(ours: Callable[[Any], object], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method for a class of CrewAI's that does what `method` does, on `ours` of the object."""

    @wraps(method)
    def call(storage: Any, *args: Any, **kwargs: Any) -> Any:
        return method(ours(storage), *args, **kwargs)

    return call


def _delegate(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(_: object, *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    call.__name__ = method.__name__
    call.__doc__ = method.__doc__
    return call
