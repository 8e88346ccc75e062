"""`install()`: walpool in the place of CrewAI's stores, for this process, until it is taken out; and what became of it.

Owns the life of the one installation of a process, and what it says. Where CrewAI is touched: `_seams`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from walpool.crewai._database import canonical_url, with_tenant
from walpool.crewai._seams import OLD_SEAMS, SEAMS, InstallWarning, NotReplacedError, Plan, has_long_term
from walpool.errors import ConfigError
from walpool.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

    from walpool.crewai.memory import Score

COMPONENTS: Final = tuple(SEAMS)
"""What `install` can replace, in the order in which it does.

A CrewAI up to 1.9.3 has fewer of them, and one more, `long_term`, which is replaced with them.
"""

_ALL_SEAMS: Final = {**SEAMS, **OLD_SEAMS}


class Surface(NamedTuple):
    """What became of one component."""

    component: str
    replaced: bool
    detail: str
    """The seam that was used; or why it was not, and what to do about it."""
    is_absent: bool = False
    """Whether this version of CrewAI has nothing of the kind."""

    def __str__(self) -> str:
        return f"{self.component}: {'replaced' if self.replaced else 'not replaced'} ({self.detail})"


class Installation:
    """walpool in the place of CrewAI's stores, until `uninstall`; what `install` returns. A context manager.

    Attributes:
        url: the database of memory, flows and kickoffs, as a `walpool://` URL; empty under `WALPOOL_DISABLE`.
        components: what was asked for.
        report: what became of each of them, in order; `str()` of the installation prints it.
    """

    def __init__(self, plan: Plan, components: Sequence[str]) -> None:
        self.url = plan.url
        self.components = tuple(components)
        self.report: tuple[Surface, ...] = ()
        self._plan = plan
        self._users = 1

    @property
    def installed(self) -> bool:
        """Whether it is in place at this moment."""
        return _process.current is self

    def uninstall(self) -> None:
        """Give CrewAI back what it had, once this was called as often as `install`; then safe to call again.

        Crews and flows that were built meanwhile keep storing in walpool. What somebody else has put in the same place
        since is left there, with a warning.
        """
        with _process.lock:
            if _process.current is not self:
                return
            self._users -= 1
            if self._users > 0:
                return
            _process.current = None
            failed = self._plan.take_out()
        for message in failed:
            warnings.warn(message, InstallWarning, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.uninstall()

    def __str__(self) -> str:
        return "\n".join([f"walpool for CrewAI at {self.url or '-'}", *(f"  {surface}" for surface in self.report)])


class _Process:
    """What this process has installed: CrewAI's seams belong to the process, so there is one installation or none."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # guards `current`; one thread at a time changes what CrewAI points to
        self.current: Installation | None = None


_process = _Process()


def install(
    url: str | os.PathLike[str] | None = None,
    *,
    components: Iterable[str] = COMPONENTS,
    score: Score | None = None,
    tenant: str | None = None,
    **settings: Any,
) -> Installation:
    """Let CrewAI store in walpool, in this process, from now on; return what became of it.

    Call it before the modules with your flows are imported: `@persist()` takes its store when the class is made.
    Calling it again gives the same installation, which ends when `uninstall` was called as often. Files are opened at
    their first use. `WALPOOL_DISABLE=1` makes it do nothing.

    Args:
        url: the database of memory, flows and kickoffs: a path, or a `walpool://`, `sqlite://` or `postgresql://` URL.
            None takes `WALPOOL_URL`, and without that `walpool.db` where CrewAI keeps its own databases.
        components: some of `COMPONENTS`, or `long_term`, which CrewAI has up to 1.9.3.
        score: how memory scores; `lance`, as CrewAI's default store does, if nothing is given.
        tenant: whose rows these are, on a server; see `walpool.get_pool`. Every component keeps to them, and so does
            whatever else of a server a crew names; a file that it names has no tenants.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: a setting, the URL or a component is wrong, or walpool is installed with others; or there is a
            tenant, and the URL is a file's. Nothing changed.

    Warns:
        InstallWarning: a component could not be replaced, or something that was built before keeps its old store.
    """
    chosen = tuple(components)
    unknown = [name for name in chosen if name not in _ALL_SEAMS]
    if unknown:
        raise ConfigError(f"components={unknown!r} is not accepted: use some of {', '.join(_ALL_SEAMS)}")
    if chosen == COMPONENTS and has_long_term():
        chosen = tuple(_ALL_SEAMS)
    if Settings.load(url, **settings).disable:
        installation = Installation(Plan(""), chosen)
        installation.report = tuple(Surface(name, False, "WALPOOL_DISABLE is set") for name in chosen)
        return installation
    given = settings if tenant is None else {**settings, "tenant": tenant}
    with _process.lock:
        current = _process.current
        if current is not None:
            _check_the_same(current, url, chosen, score, given)
            current._users += 1
            return current
        where = canonical_url(url)
        plan = Plan(where, score or "lance", with_tenant(where, tenant, settings))
        installation = Installation(plan, chosen)
        try:
            installation.report = tuple(_put_in(plan, name) for name in _ALL_SEAMS if name in chosen)
        except BaseException:
            plan.take_out()
            raise
        _process.current = installation
    try:
        for message in _not_replaced(installation):
            warnings.warn(message, InstallWarning, stacklevel=2)
    except BaseException:  # where warnings are errors, nothing is installed
        installation.uninstall()
        raise
    return installation


for _public in (Installation, Surface, install):
    _public.__module__ = "walpool.crewai"


def _check_the_same(
    current: Installation,
    url: str | os.PathLike[str] | None,
    components: Sequence[str],
    score: Score | None,
    settings: dict[str, Any],
) -> None:
    """Refuse what contradicts the installation; what was not given contradicts nothing."""
    plan = current._plan
    differences = [f"{name}={value!r}" for name, value in settings.items() if plan.settings.get(name) != value]
    if url is not None and canonical_url(url) != plan.url:
        differences.append(f"url={os.fspath(url)!r}")
    if score is not None and score != plan.score:
        differences.append(f"score={score!r}")
    is_default = set(components) - set(OLD_SEAMS) == set(COMPONENTS)
    if not is_default and (missing := [name for name in components if name not in current.components]):
        differences.append(f"components={missing!r}")
    if differences:
        raise ConfigError(f"walpool is installed at {plan.url} without {', '.join(differences)}: uninstall it first")


def _put_in(plan: Plan, component: str) -> Surface:
    """Replace one component; all of it or, where this CrewAI lacks a seam, nothing of it."""
    steps = len(plan.undo)
    try:
        return Surface(component, True, _ALL_SEAMS[component](plan))
    except NotReplacedError as error:
        return Surface(component, False, str(error))
    except (ImportError, AttributeError) as error:
        plan.take_out(down_to=steps)
        is_old = has_long_term()
        if isinstance(error, ModuleNotFoundError) and (is_old or component in OLD_SEAMS):
            age = "older" if is_old else "newer"
            detail = f"crewai {_version()} is {age} than what walpool replaces here: it has no {error.name}"
            return Surface(component, False, detail, is_absent=True)
        return Surface(component, False, f"crewai {_version()} is not built as walpool expects: {error}")


def _version() -> str:
    return getattr(sys.modules.get("crewai"), "__version__", "of this environment")


def _not_replaced(installation: Installation) -> Iterator[str]:
    """Yield what stays with CrewAI's own stores: components, and what was built before and keeps what it has."""
    absent = [found.component for found in installation.report if found.is_absent]
    for found in installation.report:
        if not found.replaced and not found.is_absent:
            yield f"walpool is not in place of CrewAI's {found}"
    if absent:
        names = ", ".join(absent)
        yield f"crewai {_version()} has no {names} that walpool could replace; print the installation for more"
    replaced = {surface.component for surface in installation.report if surface.replaced}
    if "flow" in replaced:
        for name in _flows_with_the_stock_default():
            yield f"{name} was made before install() and keeps CrewAI's store: import its module after install()"
    if "memory" in replaced:
        yield from _alive("memories", "crewai.memory.storage.lancedb_storage", "LanceDBStorage")
    if "kickoff" in replaced:
        module = "crewai.memory.storage.kickoff_task_outputs_storage"
        yield from _alive("crews", module, "KickoffTaskOutputsSQLiteStorage")


def _flows_with_the_stock_default() -> Iterator[str]:
    """Yield the flow classes that took CrewAI's default store when they were decorated."""
    from crewai.flow.flow import Flow
    from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
    from crewai_core.paths import db_storage_path

    default = os.path.join(db_storage_path(), "flow_states.db")
    for flow in _subclasses(Flow):
        parts = (flow, *vars(flow).values())
        stores = [getattr(getattr(part, "__flow_persistence_config__", None), "persistence", None) for part in parts]
        if any(type(store) is SQLiteFlowPersistence and store.db_path == default for store in stores):
            yield f"{flow.__module__}.{flow.__qualname__}"


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _alive(what: str, module: str, name: str) -> Iterator[str]:
    """Yield a message if objects of a class of CrewAI's are alive; does not import what nobody has imported."""
    cls = getattr(sys.modules.get(module), name, None)
    number = 0 if cls is None else sum(type(thing) is cls for thing in gc.get_objects())
    if number:
        yield f"{number} {what} were built before install() and keep CrewAI's store: build them after install()"
