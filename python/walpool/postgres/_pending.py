"""Bytes that are pending: libpq's TLS or GSS layer has them decrypted, libpq itself has not read them. Knows no SQL.

A record holds up to 16 KiB, and libpq reads what its buffer has room for, 8 KiB at least:

    the server       the socket    the layer              whoever waits
    last record      readable                             told; libpq reads, and needs the rest of it
                     empty         up to 8 KiB pending    for the socket, for ever

A server of PostgreSQL's own does not end an answer so: what it sends last has 8 KiB at most. Poolers do, and other
servers: https://github.com/ged/ruby-pg/issues/588, https://github.com/cockroachdb/cockroach/pull/148470. The libpq of
PostgreSQL 18.6 reads all that is pending, that of 18.1 does not; none says whether anything is, nor whether it would.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg.waiting import Ready, Wait

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

__all__ = ["may_be_pending", "seeing", "told"]

T = TypeVar("T")


def may_be_pending(pgconn: PGconn) -> bool:
    """Return whether a connection has such a layer."""
    if pgconn.ssl_in_use:
        return True
    try:
        return pgconn.used_gssapi
    except psycopg.NotSupportedError:  # a libpq older than 16 cannot say; a socket on this machine needs none
        return not pgconn.host.startswith((b"/", b"@"))


def told(pgconn: PGconn, generator: PQGen[T], ready: Ready | int) -> Wait:
    """Tell a generator what the socket is ready for; return what it waits for next.

    Where the socket has nothing any more it is told once more to read, and takes all that is pending. Unless another
    record comes between the two and is read by halves too: so whoever waits calls this now and then all the same.

    Args:
        pgconn: a connection on which bytes may be pending.
        generator: one of psycopg's or of `_wire`'s, which reads when it is told that the socket is readable.
        ready: what for; `NONE` if nobody knows of anything.
    """
    wait = generator.send(ready)
    if ready != Ready.W and wait & Wait.R and not _is_readable(pgconn.socket):
        wait = generator.send(Ready.R)
    return wait


def seeing(pgconn: PGconn, generator: PQGen[T]) -> PQGen[T]:
    """Return a generator for psycopg's waits, which tells another as `told` does; they look every tenth of a second."""
    try:
        wait = next(generator)
        while True:
            ready = yield wait
            wait = told(pgconn, generator, ready)
    except StopIteration as end:
        result: T = end.value
        return result


def _is_readable(number: int) -> bool:
    if sys.platform == "win32":  # which has no poll(), and takes sockets of any number here
        return bool(select.select([number], [], [], 0)[0])
    look = select.poll()
    look.register(number, select.POLLIN)
    return bool(look.poll(0))
