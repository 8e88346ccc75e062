"""PgBouncer in front of a PostgreSQL server of ours: what most rented servers have there.

Owns how it is configured and started; with a certificate it takes TLS only.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from benches.daemons import Daemon, free_port
from benches.postgres_server import PostgresServer
from tests.postgres.certificates import making_certificate

# Few connections for many clients, so that what one client leaves in its session meets another at once. Start-up
# parameters that PgBouncer does not know stay refused, as they are by default.
_CONFIG = """\
[databases]
* = host={server.host} port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
"""
_TLS = """\
client_tls_sslmode = require
client_tls_key_file = {home}/key.pem
client_tls_cert_file = {home}/certificate.pem
"""
_PREPARES_SINCE = (1, 21)  # before, it knows no `max_prepared_statements` and handles none
_PORTS_TRIED = 3


class PgBouncer:
    """One PgBouncer in transaction mode on a TCP port of 127.0.0.1; it ends with this process.

    Attributes:
        port: where it listens.
        certificate: with TLS, its certificate, signed by itself, for 127.0.0.1 and localhost: a client's `sslrootcert`.
    """

    def __init__(self, server: PostgresServer, *, users: Iterable[str], tls: bool = False) -> None:
        """Start it for the given users of `server`, of whom it asks no password.

        Raises:
            OSError: it does not start, or there is no `openssl` to make a certificate with.
        """
        self._server = server
        self._daemon = Daemon(Path(tempfile.gettempdir()), signal.SIGKILL)  # SIGQUIT is unknown to older ones
        self.certificate = self._daemon.home / "certificate.pem" if tls else None
        try:
            self._daemon.write("users", "".join(f'"{user}" ""\n' for user in users))
            if tls:
                self._daemon.run(*making_certificate(self._daemon.home))
            for left in reversed(range(_PORTS_TRIED)):
                self.port = free_port()
                self._configure()
                try:
                    self.start()
                except OSError:
                    if not left:
                        raise
                else:
                    break
        except BaseException:
            self.close()
            raise

    def url(self, *, database: str = "postgres", user: str = "postgres") -> str:
        """Return a URL for libpq; with TLS, one that verifies the certificate."""
        tls = f"?sslmode=verify-full&sslrootcert={quote(str(self.certificate), safe='')}" if self.certificate else ""
        return f"postgresql://{quote(user, safe='')}@127.0.0.1:{self.port}/{quote(database, safe='')}{tls}"

    def start(self) -> None:
        """Start it again where it was, after `stop`; return once it takes connections."""
        found = program()
        assert found is not None, "pgbouncer is not installed"
        self._daemon.start([found, "--quiet", self._daemon.home / "pgbouncer.ini"], self._is_ready)

    def stop(self) -> None:
        """End it and all its connections at once."""
        self._daemon.stop()

    def restart(self) -> None:
        """Stop it and start it again on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its files. Safe to call twice."""
        self._daemon.remove()

    def _configure(self) -> None:
        config = _CONFIG + ("max_prepared_statements = 0\n" if version() >= _PREPARES_SINCE else "")
        config += _TLS if self.certificate else ""
        text = config.format(server=self._server, port=self.port, home=self._daemon.home)
        self._daemon.write("pgbouncer.ini", text)

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@functools.cache
def program() -> str | None:
    """Return the path of pgbouncer, None if it is not installed."""
    # Debian puts it where a plain user's PATH does not lead.
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


@functools.cache
def version() -> tuple[int, int]:
    """Return (1, 18) for PgBouncer 1.18.0."""
    said = subprocess.run([program() or "pgbouncer", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])
