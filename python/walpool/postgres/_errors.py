"""What psycopg raises, as the errors of walpool: their class, whether it was applied, and no value of a parameter.

Owns which SQLSTATE means what. https://www.postgresql.org/docs/18/errcodes-appendix.html
"""

from __future__ import annotations

import re
from typing import Final

import psycopg

from walpool import errors
from walpool.postgres._portable import hint
from walpool.types import Outcome

__all__ = ["forget_theirs", "is_broken", "is_conflict", "is_lock_timeout", "mapped"]

_CLASSES: Final = {
    "08": errors.OperationalError,  # the connection
    "0A": errors.NotSupportedError,
    "0B": errors.ProgrammingError,  # SQL that begins or ends transactions
    "22": errors.DataError,
    "23": errors.IntegrityError,
    "25": errors.ProgrammingError,  # a state of the transaction: a write in a read
    "26": errors.OperationalError,  # a prepared statement that another session of a pooler had
    "2D": errors.ProgrammingError,
    "3D": errors.ProgrammingError,  # no such database
    "3F": errors.ProgrammingError,  # no such schema
    "40": errors.BusyError,  # deadlock, serialization failure
    "42": errors.ProgrammingError,
    "44": errors.IntegrityError,  # WITH CHECK OPTION
    "53": errors.StorageError,  # out of disk, memory or connections
    "54": errors.NotSupportedError,  # a limit of the program
    "55": errors.OperationalError,
    "57": errors.OperationalError,
    "58": errors.StorageError,
    "P0": errors.IntegrityError,  # RAISE EXCEPTION in a trigger: what RAISE(ABORT) is on SQLite
    "XX": errors.CorruptError,
}
_STATES: Final = {
    "25006": errors.ReadOnlyError,
    "25P03": errors.TransactionTimeout,  # idle in a transaction
    "25P04": errors.TransactionTimeout,
    "42501": errors.ProgrammingError,  # insufficient privilege, row-level security
    "53300": errors.OperationalError,  # too many connections
    "55P03": errors.BusyError,  # lock_timeout
    "57014": errors.StatementTimeout,  # canceled
    "XX000": errors.OperationalError,  # internal: extensions and poolers use it for all sorts of things
}
_MAY_QUOTE: Final = frozenset({"21", "22", "2F", "38", "39", "3F", "42", "58", "HV", "XX"})
"""Classes whose messages may quote values; the others quote names of the schema."""
_RETRYABLE: Final = frozenset({"40001", "40P01", "55P03", "53300"})
_HINTED: Final = frozenset({"42601", "42883", "42703", "42704", "42804", "42P01", "42P02", "42P18"})
_ADVICE: Final = {
    "25001": "a job is a transaction: run it by psql, or on a connection of your own",
    "2201W": "to have no limit leave LIMIT out",
}
_READ_ONLY: Final = "25006"
_WRITES: Final = "the statement writes, and this is a read: use execute(), batch() or transaction()"
_TAKES_NO_WRITES: Final = "the server is a standby, or default_transaction_read_only is on for the role or the database"
_UNTRANSLATABLE: Final = "the database does not hold every text: make it with ENCODING 'UTF8'"
NO_SUCH_PARAMETER: Final = "42P02"
_UNKNOWN_TYPE: Final = "42P18"  # of a parameter, which has no place either
_NAME_THINGS: Final = frozenset({"ExecWithCheckOptions", "CreateExtensionInternal", "execute_extension_script"})
"""Functions of the server's whose messages quote names of the schema alone: of tables and policies, of extensions."""
_BYTES: Final = re.compile(r"0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*")
_NUMBERED: Final = re.compile(r"\$[0-9]+")
_BY_CLASS: Final = (
    (psycopg.IntegrityError, errors.IntegrityError),
    (psycopg.DataError, errors.DataError),
    (psycopg.ProgrammingError, errors.ProgrammingError),
    (psycopg.NotSupportedError, errors.NotSupportedError),
    (psycopg.InterfaceError, errors.InterfaceError),
)
_THEIRS: Final = (psycopg.Error, UnicodeError)
_QUOTES: Final = '["«»„“”「」『』]'  # those of every language that the server speaks
_QUOTED: Final = re.compile(f"{_QUOTES}(?:.*{_QUOTES}|.*)", re.DOTALL)  # to the last: a value may hold some itself
_OF_A_SCHEMA: Final = ("table ", "view ", "index ", "sequence ", "column ", "constraint ", "trigger ", "policy ")
_DUPLICATES: Final = frozenset({"42701", "42710", "42712", "42723", "42P03", "42P04", "42P05", "42P06", "42P07"})
_PASSWORD: Final = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)|(://[^:@/\s]*:)[^@\s]*@", re.IGNORECASE)


def mapped(
    error: psycopg.Error,
    what: str,
    *,
    place: str = "",
    sql: bytes = b"",
    outcome: Outcome = "not_applied",
    is_read: bool = False,
) -> errors.Error:
    """Return the error of walpool that says what psycopg's says, but for what a person may not see.

    Args:
        error: psycopg's.
        what: what was tried and where, for the end of the message: a URL without its password.
        place: where in the job.
        sql: the statement, for a word on what to write instead.
        outcome: whether the write was applied.
        is_read: whether it was tried in a read.
    """
    kind = errors.ProgrammingError if is_read and error.sqlstate == _READ_ONLY else _kind(error)
    said = f"{_message(error)}{_portable(error, sql) or _advice(error, is_read=is_read)}"
    found = kind(f"{said}{place} [{what}]", outcome=outcome)
    if outcome == "not_applied":
        found.retryable = kind.retryable or error.sqlstate in _RETRYABLE or _lost(error)
    else:
        found.retryable = False
    return found


def forget_theirs(error: BaseException | None) -> None:
    """Take psycopg's exceptions out of the chain behind one of ours: they quote rows and URLs."""
    while isinstance(error, errors.Error) and isinstance(error.__context__, _THEIRS):
        error.__context__ = error.__context__.__context__


def is_conflict(error: psycopg.Error) -> bool:
    """Return whether the server undid the transaction for the sake of another one."""
    return error.sqlstate in {"40001", "40P01"}


def is_lock_timeout(error: psycopg.Error) -> bool:
    """Return whether `lock_timeout` passed."""
    return error.sqlstate == "55P03"


def is_broken(connection: psycopg.Connection[object], error: psycopg.Error) -> bool:
    """Return whether the connection is gone, with whatever it was doing."""
    return bool(connection.closed or connection.broken or _lost(error))


def _lost(error: psycopg.Error) -> bool:
    """Return whether an error says that the connection ended: by itself (no SQLSTATE) or by the server's will."""
    state = error.sqlstate
    if state is None:
        return type(error) is psycopg.OperationalError
    return state.startswith("08") or state in {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}


def _kind(error: psycopg.Error) -> type[errors.Error]:
    state = error.sqlstate
    if state is not None:
        return _STATES.get(state) or _CLASSES.get(state[:2]) or errors.DatabaseError
    for theirs, ours in _BY_CLASS:
        if isinstance(error, theirs):
            return ours
    return errors.OperationalError


def _message(error: psycopg.Error) -> str:
    """Return the server's sentence, without its detail, which quotes rows, and the values that it quotes itself."""
    primary = error.diag.message_primary
    if primary is None:  # libpq's or psycopg's own; several lines where several hosts were tried
        return _PASSWORD.sub(_masked, " ".join(str(error).split())) or type(error).__name__
    state = error.sqlstate or ""
    # Written by a function of somebody's, with any SQLSTATE, and maybe from a row.
    if state.startswith("P0") or error.diag.source_function == "exec_stmt_raise":
        return f"a function or trigger raised an exception; the server's log has its text ({state})"
    is_about_the_sql = state.startswith("42") and _is_about_the_sql(error)
    if not is_about_the_sql and state[:2] in _MAY_QUOTE:
        primary = _QUOTED.sub('"..."', primary)
    primary = _BYTES.sub("0x...", primary)  # of a text that an encoding lacks
    hint = error.diag.message_hint if is_about_the_sql else None
    return f"{primary}{f' ({hint})' if hint else ''} ({state})"


def _is_about_the_sql(error: psycopg.Error) -> bool:
    """Return whether a message of class 42 quotes the SQL: those of `?::regclass` and of tsqueries quote a value."""
    primary = error.diag.message_primary or ""
    return bool(
        error.diag.statement_position  # found by the parser; what a value is refused for has no place in the text
        or error.diag.source_function in _NAME_THINGS
        or error.sqlstate in _DUPLICATES
        or error.sqlstate == _UNKNOWN_TYPE
        or primary.startswith(_OF_A_SCHEMA)  # DDL, which takes no parameters
    )


def _portable(error: psycopg.Error, sql: bytes) -> str:
    """Return the form that both backends take, where the server does not know a thing of SQLite's."""
    if error.sqlstate not in _HINTED or not sql or not _is_about_the_sql(error):
        return ""
    text = sql.decode()
    if error.sqlstate != NO_SUCH_PARAMETER:  # else `$1` is what the caller wrote, not what became of `?`
        text = _NUMBERED.sub("?", text)
    found = hint(text, error.diag.message_primary or "")
    return f": {found}" if found else ""


def _advice(error: psycopg.Error, *, is_read: bool) -> str:
    """Return what to do about a thing that is not in the SQL."""
    if error.sqlstate == _READ_ONLY:
        return f": {_WRITES if is_read else _TAKES_NO_WRITES}"
    if error.diag.source_function == "report_untranslatable_char":
        return f": {_UNTRANSLATABLE}"
    found = _ADVICE.get(error.sqlstate or "")
    return f": {found}" if found else ""


def _masked(found: re.Match[str]) -> str:
    return f"{found[1]}***" if found[1] else f"{found[3]}***@"
