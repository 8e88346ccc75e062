"""walpool: a pooled, WAL-mode SQLite engine. Many readers, one writer, one fsync for everybody who is waiting."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from walpool import errors
from walpool._core import Result, sqlite_version
from walpool.errors import (
    BusyError,
    CheckoutTimeout,
    ClosedError,
    ConfigError,
    CorruptError,
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    Interrupted,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    QueueFull,
    ReadOnlyError,
    ReentrantError,
    StatementTimeout,
    StorageError,
    TransactionTimeout,
    WriterStopped,
    WriteTimeout,
)
from walpool.pool import Pool, Snapshot, Stream, Transaction
from walpool.registry import get_async_pool, get_pool
from walpool.settings import Settings

if TYPE_CHECKING:
    from walpool.aio import AsyncPool, AsyncSnapshot, AsyncStream, AsyncTransaction

__version__ = version("walpool")

__all__ = [
    "AsyncPool",
    "AsyncSnapshot",
    "AsyncStream",
    "AsyncTransaction",
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
    "Pool",
    "ProgrammingError",
    "QueueFull",
    "ReadOnlyError",
    "ReentrantError",
    "Result",
    "Settings",
    "Snapshot",
    "StatementTimeout",
    "StorageError",
    "Stream",
    "Transaction",
    "TransactionTimeout",
    "WriteTimeout",
    "WriterStopped",
    "__version__",
    "errors",
    "get_async_pool",
    "get_pool",
    "sqlite_version",
]


def __getattr__(name: str) -> Any:
    """Import what asyncio has to be imported for once somebody asks for it: that takes as long as all else together."""
    if name not in {"AsyncPool", "AsyncSnapshot", "AsyncStream", "AsyncTransaction"}:
        msg = f"module 'walpool' has no attribute {name!r}"
        raise AttributeError(msg)
    from walpool import aio

    return getattr(aio, name)
