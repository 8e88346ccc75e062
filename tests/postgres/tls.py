"""PostgreSQL behind TLS: a server that takes nothing else, and a gate that cuts its answers into the largest records.

The programs of the tests' own server are built without TLS; where others are installed they serve. The gate stands in
front of any server, as a pooler does.
"""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlencode

from benches.postgres_server import PostgresServer
from tests.postgres.certificates import making_certificate
from tests.postgres.pools import End, Proxy

if TYPE_CHECKING:
    from benches.daemons import Daemon

RECORD = 2**14
"""Bytes that a record of TLS holds at most. https://www.rfc-editor.org/rfc/rfc8446#section-5.1"""
_HBA = """\
local   all all              trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""
_SSL_REQUEST = (80877103).to_bytes(4, "big")  # https://www.postgresql.org/docs/18/protocol-message-formats.html
_READY = b"Z\0\0\0\5"  # ReadyForQuery, but for its last byte
_PAUSE = 0.02  # seconds: an answer that stops for so long without it is sent on


def verifying(certificate: Path) -> str:
    """Return the query of a URL that has libpq verify the server."""
    return urlencode({"sslmode": "verify-full", "sslrootcert": certificate})


def installed_programs() -> list[Path]:
    """Return the folders of PostgreSQL's programs where Debian puts them, built with TLS; the newest first."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("[1-9][0-9]/bin/postgres")]
    return sorted((folder for folder in folders if int(folder.parent.name) >= 15), reverse=True)


class TlsServer(PostgresServer):
    """A server that takes no connection over TCP without TLS.

    Attributes:
        certificate: a client's `sslrootcert`.
    """

    def __init__(self, near: Path, programs: Path) -> None:
        """Start it.

        Raises:
            CannotStart: these programs cannot run here, or are built without TLS, or there is no `openssl`.
        """
        tls = {"ssl": "on", "ssl_key_file": "key.pem", "ssl_cert_file": "certificate.pem"}
        super().__init__(near, fsync=False, options=tls, programs=programs)

    @property
    def certificate(self) -> Path:
        return self._data / "certificate.pem"

    def url(
        self,
        *,
        database: str | None = None,
        user: str | None = None,
        password: str | None = None,
        host: Literal["socket", "tcp"] = "tcp",
    ) -> str:
        """Return a URL for libpq; over TCP, one that verifies the certificate."""
        url = super().url(database=database, user=user, password=password, host=host)
        return f"{url}?{verifying(self.certificate)}" if host == "tcp" else url

    def _make_cluster(self) -> None:
        super()._make_cluster()
        daemon: Daemon = self._daemon
        daemon.write("data/pg_hba.conf", _HBA)
        daemon.run(*making_certificate(self._data))


def ragged(size: int) -> Iterable[int]:
    """Return the records of an answer: the first holds what is over, all others as much as they can.

    libpq's buffer has the beginning of a row by then, and no room for the last record.
    """
    first = size % RECORD or RECORD
    return [first, *[RECORD] * ((size - first) // RECORD)]


class TlsGate(Proxy):
    """The end of TLS before a server's socket; each of its answers is sent at once, in records of the sizes asked for.

    Attributes:
        certificate: a client's `sslrootcert`.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        records: Callable[[int], Iterable[int]] = ragged,
        look: Callable[[bytes], str | None] = lambda data: None,
    ) -> None:
        """Begin to listen.

        Args:
            url: of the server's socket.
            folder: where the certificate is put.
            records: returns the sizes of the records in which so many bytes go.
            look: what a `Proxy` does with the bytes that a client sends; here decrypted.
        """
        subprocess.run(making_certificate(folder), check=True, capture_output=True)
        self.certificate = folder / "certificate.pem"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, folder / "key.pem")
        self._records = records
        super().__init__(url, look)
        self.url = self.url.replace("sslmode=disable", verifying(self.certificate))

    def _end(self, client: socket.socket) -> End:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _TlsEnd(client, self._context, self._records)

    def _answer(self, server: socket.socket) -> bytes:
        answer = super()._answer(server)
        while answer and answer[-6:-1] != _READY and select.select([server], [], [], _PAUSE)[0]:
            more = super()._answer(server)
            if not more:
                break
            answer += more
        return answer


class _TlsEnd:
    """A client's socket, in the clear for whoever reads and writes here, each on one thread."""

    def __init__(self, client: socket.socket, context: ssl.SSLContext, records: Callable[[int], Iterable[int]]) -> None:
        self._client = client
        self._records = records
        self._lock = threading.Lock()  # guards what follows; not held while the socket is waited for
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False

    def recv(self, size: int, /) -> bytes:
        if not self._is_open:
            first = self._opened(size)
            if first is not None:
                return first
        while True:
            data = self._taken(self._tls.read, size)
            if data is not None:
                return data
            if not self._fill(size):
                return b""

    def sendall(self, data: bytes, /) -> None:
        rest = memoryview(data)
        with self._lock:
            for size in self._records(len(data)):
                self._tls.write(rest[:size])
                rest = rest[size:]
            out = self._outgoing.read()
        self._client.sendall(out)

    def shutdown(self, how: int, /) -> None:
        self._client.shutdown(how)

    def close(self) -> None:
        self._client.close()

    def _opened(self, size: int) -> bytes | None:
        """Shake hands; or return what a client says that asks for no TLS: a libpq older than 17 cancels so."""
        self._is_open = True
        asked = self._client.recv(8, socket.MSG_WAITALL)
        if asked[4:] != _SSL_REQUEST:
            return asked + self._client.recv(size)
        self._client.sendall(b"S")
        while self._taken(self._shaken, 0) is None:
            if not self._fill(size):
                return b""
        return None

    def _shaken(self, size: int) -> bytes:
        self._tls.do_handshake()
        return b""

    def _taken(self, take: Callable[[int], bytes], size: int) -> bytes | None:
        with self._lock:
            try:
                return take(size)
            except ssl.SSLWantReadError:
                return None
            except ssl.SSLError:  # refused by the client, or closed
                return b""
            finally:
                if self._outgoing.pending:
                    self._client.sendall(self._outgoing.read())

    def _fill(self, size: int) -> bool:
        data = self._client.recv(size)
        with self._lock:
            self._incoming.write(data)
        return bool(data)
