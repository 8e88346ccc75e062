"""Which database a URL names, what may be said of it aloud, and opening one connection to it.

Owns what every connection is opened with. Knows no pool.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote

import psycopg
from psycopg import conninfo
from psycopg.pq import Conninfo, PipelineStatus, TransactionStatus

from walpool.errors import ConfigError, NotSupportedError
from walpool.postgres._kept import Kept
from walpool.postgres._surroundings import completed
from walpool.postgres._unreached import unreached
from walpool.postgres._values import adapters
from walpool.postgres._wire import NAMES, Connection
from walpool.settings import Settings, masked

__all__ = ["Address", "is_usable"]

OLDEST: Final = 140000
"""PostgreSQL 14, the oldest that its makers maintain; older ones end no idle snapshot of a pool's."""

# A peer that vanished without a word is noticed in about half a minute, wherever a call waits for it.
_ALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,  # milliseconds
}

# Whether the process that serves is the one that greeted; only then may the session be set for good.
_IS_OURS: Final = """SELECT is_ours,
        CASE WHEN is_ours AND %s THEN set_config('default_transaction_read_only', 'on', false) END
    FROM (SELECT pg_backend_pid() = %s AS is_ours) AS found"""


@dataclass(frozen=True, slots=True)
class Address:
    """A PostgreSQL database as a URL names it, less walpool's own settings in its query."""

    name: str
    """The URL without its password and its query; this is what errors, logs and `repr` show."""

    parameters: dict[str, Any] = field(repr=False)
    """libpq's, by name; a password stands there."""
    most_kept: int
    """Statements that a session of ours keeps prepared, at most."""

    @classmethod
    def of(cls, settings: Settings) -> Address:
        """Return the address in the settings' `url`.

        Raises:
            ConfigError: libpq does not understand it. Its own message, which quotes the URL, is not passed on.
        """
        url, shown = (settings.url or "").strip(), str(settings.shown_url)  # a secret's file ends in a line feed
        libpqs = _without_settings(url, settings)
        parameters = _parsed(libpqs)
        if _is_misplaced(parameters or {}):
            raise ConfigError(
                f"{shown!r} has a password where libpq takes none: write postgresql://user:password@host/name, or "
                "PGPASSWORD; and PGUSER for a user's name with a colon in it"
            )
        if _is_torn(url, shown, parameters):
            raise ConfigError(
                f"write %2F for / and %40 for @ in the password of {shown!r}, and so on; a port is a number"
            )
        if parameters is None:  # and not in an except clause: the exception there quotes the URL
            _refuse_unknown_keys(libpqs, settings)
            encoded = (
                "; in a user's name and a password write %25 for %, %3F for ?, and so on" if "***@" in shown else ""
            )
            raise ConfigError(f"{shown!r} is no PostgreSQL URL that libpq understands{encoded}")
        if "options" in parameters:
            raise ConfigError(f"{shown!r} sets options=, which poolers such as PgBouncer refuse; set them for the role")
        known = completed(parameters)
        if _is_remote(known) and "sslmode" not in known:
            # libpq's own default falls back to plain text in silence.
            parameters["sslmode"] = "require"
        return cls(_name(known), parameters, settings.statement_cache)

    def connect(self, timeout: float, *, reads_only: bool = False) -> Connection:
        """Open one connection.

        Args:
            timeout: seconds.
            reads_only: whether its session refuses writes, if it has one of its own.

        Raises:
            ConfigError: libpq does not take a parameter.
            OperationalError: the server cannot be reached, or refuses; `retryable` unless it will refuse again.
            NotSupportedError: the server is too old.
        """
        limits = {"connect_timeout": max(1, math.ceil(min(timeout, 2**30))), "application_name": "walpool", **_ALIVE}
        try:
            # No statements that psycopg prepares, and transactions that are begun by name: a pooler gives each
            # transaction another session, https://www.pgbouncer.org/features.html
            connection = Connection.connect(
                **{**limits, **self.parameters},
                autocommit=True,
                prepare_threshold=None,
                context=adapters(),
            )
            try:
                self._prepare(connection, reads_only)
            except BaseException:
                connection.close()
                raise
        except psycopg.ProgrammingError:  # a bad value, before anything was sent; the message may quote it
            raise ConfigError(f"libpq does not accept a parameter in the query of {self.name}") from None
        except psycopg.Error as error:
            failure = unreached(error, self.name)
        else:
            return connection
        raise failure

    def _prepare(self, connection: Connection, reads_only: bool) -> None:
        """Refuse a server that is too old; see whether the session is ours, and what it may keep then."""
        if connection.info.server_version < OLDEST:
            version = connection.info.server_version // 10_000
            raise NotSupportedError(f"PostgreSQL {version} is too old: walpool needs 14 or newer [{self.name}]")
        if connection.info.encoding != "utf-8":
            connection.execute("SET client_encoding TO 'UTF8'")  # what a pooler follows too
        # A pooler greets with a number of its own: no process of the server's can be told to stop through it otherwise.
        is_ours, _ = connection.execute(_IS_OURS, (reads_only, connection.pgconn.backend_pid)).fetchall()[0]
        connection.is_pooled = not is_ours
        connection.reads_only = reads_only and is_ours
        if NAMES and is_ours:
            connection.kept = Kept(self.most_kept)


def is_usable(connection: Connection) -> bool:
    """Return whether a connection may be lent out again: open, idle, in no transaction."""
    return (
        not connection.closed
        and connection.pgconn.pipeline_status == PipelineStatus.OFF
        and connection.pgconn.transaction_status == TransactionStatus.IDLE
    )


def _parsed(url: str) -> dict[str, Any] | None:
    """Return libpq's parameters in a URL; None where it holds none that libpq understands."""
    scheme, mark, rest = url.partition("://")
    try:
        return dict(conninfo.conninfo_to_dict(scheme.lower() + mark + rest))  # libpq takes small letters alone
    except (psycopg.Error, UnicodeError):
        return None


def _without_settings(url: str, settings: Settings) -> str:
    """Return the URL with what is libpq's alone in its query."""
    location, mark, query = url.partition("?")
    ours = settings.values()
    kept = [pair for pair in query.split("&") if pair and unquote(pair.partition("=")[0]) not in ours]
    return location + (mark + "&".join(kept) if kept else "")


def _refuse_unknown_keys(url: str, settings: Settings) -> None:
    """Name a key of the query that neither walpool nor libpq knows; nothing that may be a piece of a password."""
    if "@" in url.partition("?")[2]:
        return
    query = masked(url).partition("?")[2].partition("***")[0]  # behind a secret a key may be a piece of it
    known = [*settings.values(), *(option.keyword.decode() for option in Conninfo.get_defaults())]
    for key in (unquote(pair.partition("=")[0]) for pair in query.split("&")):
        if key.isidentifier() and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"the URL's key {key!r} is no setting, and no parameter of libpq{meant}")


def _is_misplaced(parameters: dict[str, Any]) -> bool:
    """Return whether libpq takes a password for a piece of something else, which a server, too, would name and log."""
    # The name of the application is free text, and stands in no message.
    told = {name: str(value) for name, value in parameters.items() if not name.endswith("application_name")}
    told = {name: value for name, value in told.items() if masked(f"{name}=") == f"{name}="}
    return ":" in told.get("user", "") or any(masked(value) != value for value in told.values())


def _is_torn(url: str, shown: str, parameters: dict[str, Any] | None) -> bool:
    """Return whether libpq takes, or might take, a piece of the password for the host or the database, and name it.

    Args:
        url: with the password.
        shown: with asterisks in its place.
        parameters: what libpq made of it; None, where it made nothing.
    """
    location = url.partition("://")[2].partition("?")[0]
    authority, _, path = location.partition("/")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in authority.rpartition("@")[2].split(",")]
    is_split = authority.count("@") > 1 or "@" in path
    if "\0" in url or is_split or not all(port.isdecimal() or not port for port in ports):
        return True
    if parameters is None or "***@" not in shown:
        return False
    others = "".join(str(parameters.get(name, "")) for name in ("user", "host", "port", "dbname"))
    return "password" not in parameters or "@" in others


def _is_remote(parameters: dict[str, str]) -> bool:
    hosts = (parameters.get("hostaddr") or parameters.get("host") or "").split(",")
    return any(host and not host.startswith(("/", "@")) and not _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _name(parameters: dict[str, str]) -> str:
    hosts = (parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = (parameters.get("port") or "").split(",")
    places = [
        quote(host, safe="") + (f":{port}" if port else "")
        for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    ]
    user = parameters.get("user")
    before = f"{quote(user, safe='')}@" if user else ""
    return masked(f"postgresql://{before}{','.join(places)}/{quote(parameters.get('dbname') or '', safe='')}")
