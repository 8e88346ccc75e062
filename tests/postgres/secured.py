"""A database of walpool's memories under row-level security, for the tests that ask for `secured`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from walpool.memory.postgres import init_sql

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer

ROLES = {"owner": "memory_owner", "app": "memory_app", "reader": 'memory "reader"'}
_NAME = "memory_tenants"


class Secured:
    """A database with row-level security, and its URLs by who logs in."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name
        self.app = server.url(database=name, user=ROLES["app"])
        self.reader = server.url(database=name, user=ROLES["reader"])
        self.superuser = server.url(database=name, user="postgres")


@contextmanager
def secured_database(server: PostgresServer) -> Iterator[Secured]:
    """Make such a database, and drop it at the end of the block."""
    server.create_database(_NAME)
    try:
        server.execute(init_sql(**ROLES), database=_NAME)
        yield Secured(server, _NAME)
    finally:
        server.drop_database(_NAME)
