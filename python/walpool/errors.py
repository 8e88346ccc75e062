"""The exceptions of walpool: PEP 249's tree, with the answers that a caller needs as fields.

    Error    .retryable  .outcome  .sqlite_errorcode  .sqlite_errorname
    ├── InterfaceError
    │   ├── ClosedError
    │   └── ReentrantError
    ├── ConfigError
    └── DatabaseError
        ├── OperationalError
        │   ├── BusyError *
        │   ├── CheckoutTimeout *
        │   ├── WriteTimeout *
        │   ├── QueueFull *
        │   ├── StatementTimeout
        │   ├── TransactionTimeout
        │   ├── Interrupted
        │   ├── WriterStopped
        │   ├── StorageError
        │   └── ReadOnlyError
        ├── ProgrammingError
        ├── IntegrityError
        ├── DataError
        ├── CorruptError
        └── NotSupportedError

    * retryable: the same call may well succeed if it is made again

Each class also derives from the class of `sqlite3` that bears the name of its nearest PEP 249 ancestor, so that code
which says `except sqlite3.OperationalError` keeps working; `ConfigError` is a `ValueError` too.

Imports nothing of walpool: the compiled module imports this one to raise from it.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

__all__ = [
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
]


class Error(sqlite3.Error):
    """Anything that went wrong in walpool; catch it to catch all of them.

    Branch on the class or on a field, never on the message, which is for a person.

    Attributes:
        retryable: whether the same call may well succeed if it is made again, unchanged.
        outcome: whether the write was applied: `not_applied` (nothing of it is in the database; always so for a
            read), `applied` (all of it is), or `unknown` (a later read tells).
        sqlite_errorcode: SQLite's extended result code; None where SQLite was not the one to refuse.
        sqlite_errorname: its name, such as `SQLITE_CONSTRAINT_UNIQUE`; None with `sqlite_errorcode`.
    """

    retryable: bool = False
    outcome: Literal["not_applied", "applied", "unknown"]
    # sqlite3.Error has both from Python 3.11 on, but only where SQLite raised it: None is what it lacks.
    sqlite_errorcode: int | None  # type: ignore[assignment, unused-ignore]
    sqlite_errorname: str | None  # type: ignore[assignment, unused-ignore]

    def __init__(
        self,
        message: str = "",
        *,
        outcome: Literal["not_applied", "applied", "unknown"] = "not_applied",
        sqlite_errorcode: int | None = None,
        sqlite_errorname: str | None = None,
    ) -> None:
        """Make an error of what was tried, on which file, and what to do; never of a parameter value."""
        # Only the message goes into `args`: pickle and copy call the class with them and then restore the other
        # fields from the instance's dictionary.
        super().__init__(message)
        self.outcome = outcome
        self.sqlite_errorcode = sqlite_errorcode
        self.sqlite_errorname = sqlite_errorname


class InterfaceError(Error, sqlite3.InterfaceError):
    """walpool was called in a way that it does not allow; mend the calling code."""


class ClosedError(InterfaceError):
    """The pool, transaction or snapshot is closed; open a new one."""


class ReentrantError(InterfaceError):
    """A verb of the pool was called inside its own `transaction()` or `read()`; use the `tx` or snapshot in hand.

    Raised at once, where waiting would be waiting for oneself.
    """


class ConfigError(Error, ValueError):
    """A setting is wrong, or contradicts the one that the file was opened with; the message says what is accepted."""


class DatabaseError(Error, sqlite3.DatabaseError):
    """The database refused; the subclasses say why."""


class OperationalError(DatabaseError, sqlite3.OperationalError):
    """The environment failed: time, memory, the disk, another process; the SQL may well be right."""


class BusyError(OperationalError):
    """Another process held the file's lock for longer than `busy_timeout`; try again, or find who holds it."""

    retryable = True


class CheckoutTimeout(OperationalError):
    """No reader came free in time; try again, raise `readers`, or look for snapshots that are held for long."""

    retryable = True


class WriteTimeout(OperationalError):
    """The job's turn did not come in time; it was withdrawn and never applied, so try again.

    A job that a group has taken runs to its end and does not raise this.
    """

    retryable = True


class QueueFull(OperationalError):
    """`max_waiting` jobs are waiting already; the job was refused at once: slow down, then try again."""

    retryable = True


class StatementTimeout(OperationalError):
    """A read ran for longer than its `timeout` and was interrupted; give it an index, or more time."""


class TransactionTimeout(OperationalError):
    """A transaction or snapshot was held for longer than `transaction_timeout`; it was rolled back and revoked.

    Nothing of it is in the database. Do slow work before or after it, or raise the setting.
    """


class Interrupted(OperationalError):
    """The call was interrupted before its end; `outcome` says whether its write was applied."""


class WriterStopped(OperationalError):
    """The writer is gone and takes no more jobs; `outcome` says what became of this one.

    Close the pool and open it anew.
    """


class StorageError(OperationalError):
    """The disk refused: it is full, read-only or failing, or the file cannot be opened; mend that first."""


class ReadOnlyError(OperationalError):
    """The database is not to be written, and nothing of the write was applied; reads go on.

    `walpool migrate` has retired the file in favour of a server, which the message names: write to that, or set
    `write_retired`. Or the server is a standby, or set to take no writes: write to its primary.
    """


class ProgrammingError(DatabaseError, sqlite3.ProgrammingError):
    """The SQL is wrong, its parameters do not fit it, or it writes where only reads are allowed; mend the call."""


class IntegrityError(DatabaseError, sqlite3.IntegrityError):
    """A constraint refused the write; nothing of the job was applied, and no other job was touched."""


class DataError(DatabaseError, sqlite3.DataError):
    """A value is out of range: an integer over 64 bits, a NaN, a vector of another length, bad UTF-8."""


class CorruptError(DatabaseError):
    """The file is damaged, or is not an SQLite database; restore a backup."""


class NotSupportedError(DatabaseError, sqlite3.NotSupportedError):
    """This SQLite, file system or platform lacks what was asked for."""
