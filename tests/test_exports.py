"""The public names: exactly these, each with a doc, each at home where it is imported from."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

ERRORS = {
    "BusyError",
    "CheckoutTimeout",
    "ClosedError",
    "ConfigError",
    "CorruptError",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "Interrupted",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "QueueFull",
    "ReadOnlyError",
    "ReentrantError",
    "StatementTimeout",
    "StorageError",
    "TransactionTimeout",
    "WriteTimeout",
    "WriterStopped",
}

EXPORTS = {
    "walpool": ERRORS
    | {"AsyncPool", "AsyncSnapshot", "AsyncStream", "AsyncTransaction", "get_async_pool"}
    | {"Pool", "Result", "Settings", "Snapshot", "Stream", "Transaction"}
    | {"__version__", "errors", "get_pool", "sqlite_version"},
    "walpool.crewai": {
        "COMPONENTS",
        "CrewReport",
        "InstallWarning",
        "Installation",
        "Surface",
        "WalpoolCheckpointProvider",
        "WalpoolFlowPersistence",
        "WalpoolKickoffStorage",
        "WalpoolLock",
        "WalpoolLongTermStorage",
        "WalpoolStorage",
        "import_crewai",
        "install",
    },
    "walpool.errors": ERRORS,
    "walpool.interchange": {
        "ExportReport",
        "Format",
        "ImportReport",
        "MemoryMover",
        "export_memory",
        "import_memory",
        "move_memory",
    },
    "walpool.langgraph": {
        "AsyncWalpoolSaver",
        "AsyncWalpoolStore",
        "Difference",
        "ImportReport",
        "WalpoolCache",
        "WalpoolSaver",
        "WalpoolStore",
        "import_sqlite",
    },
    "walpool.memory": {
        "AsyncMemoryStore",
        "AsyncPostgresMemoryStore",
        "AsyncSqliteMemoryStore",
        "Changes",
        "Collection",
        "Condition",
        "Contains",
        "DimsError",
        "EmbeddingError",
        "Equals",
        "Exists",
        "Explanation",
        "Hit",
        "Hits",
        "In",
        "MemoryStore",
        "Metric",
        "Mode",
        "PostgresMemoryStore",
        "PythonEquals",
        "Query",
        "Range",
        "Record",
        "Records",
        "ScopeSummary",
        "SqliteMemoryStore",
        "Weights",
        "collections",
        "normalize_scope",
        "open",
        "open_async",
        "pack",
        "unpack",
    },
    "walpool.migrating": {
        "Barred",
        "Column",
        "Element",
        "Fault",
        "ForeignKey",
        "Index",
        "LongKeys",
        "Options",
        "Plan",
        "Progress",
        "Refused",
        "Report",
        "Table",
        "TableReport",
        "migrate",
        "unretire",
    },
    "walpool.openai_agents": {"SessionClosedError", "WalpoolSession"},
}

FRAMEWORKS = {
    "walpool.crewai": "crewai",
    "walpool.langgraph": "langgraph.checkpoint.base",
    "walpool.migrating": "psycopg",
    "walpool.openai_agents": "agents",
}

NAMES = [(home, name) for home, names in EXPORTS.items() for name in sorted(names)]


def imported(home: str) -> ModuleType:
    if home in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[home])
    return importlib.import_module(home)


def has_a_doc(thing: object) -> bool:
    return inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)


@pytest.mark.parametrize("home", EXPORTS)
def test_package_exports_exactly_its_public_names(home: str) -> None:
    assert sorted(imported(home).__all__) == sorted(EXPORTS[home])


@pytest.mark.parametrize(("home", "name"), NAMES)
def test_public_name_has_a_doc_and_lives_where_it_is_imported_from(home: str, name: str) -> None:
    thing = getattr(imported(home), name)
    if has_a_doc(thing):
        assert inspect.cleandoc(thing.__doc__ or "")
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__module__ == ("walpool.errors" if name in ERRORS else home)


@pytest.mark.parametrize(("home", "name"), NAMES)
def test_public_method_has_a_doc(home: str, name: str) -> None:
    thing = getattr(imported(home), name)
    if inspect.isclass(thing) and name != "AsyncMemoryStore":  # its methods are documented in MemoryStore
        methods = {key: member for key, member in vars(thing).items() if not key.startswith("_")}
        assert [key for key, member in methods.items() if callable(member) and not inspect.getdoc(member)] == []


def test_import_of_walpool_imports_no_framework_and_starts_nothing() -> None:
    program = """
import sys, threading
import walpool
OPTIONAL = ("walpool.memory", "walpool.crewai", "walpool.interchange", "walpool.langgraph", "walpool.openai_agents")
OPTIONAL += ("walpool.cli",)
roots = {name.split(".")[0] for name in sys.modules}
FOREIGN = {"agents", "asyncio", "crewai", "langgraph", "numpy", "pydantic", "rich"}
print(sorted(roots & FOREIGN), threading.active_count())
print(sorted(name for name in sys.modules if name.startswith(OPTIONAL)))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[] 1", "[]"]
