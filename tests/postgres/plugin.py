"""The ground on which tests of the Postgres backend stand, in every folder of tests: a server, and databases on it.

A test that asks for one of these fixtures bears the marker `postgres`. Where no server can run it is skipped with the
reason. The environment: WALPOOL_TEST_PG_URL names another server to create databases on, by a user who may;
WALPOOL_TEST_PG_PROGRAMS the folder of PostgreSQL's programs for tests of TLS; WALPOOL_REQUIRE_PG=1 and
WALPOOL_REQUIRE_PGBOUNCER=1 make a failure of a skip.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:  # a run that asks for no server imports none of it
    from benches.postgres_server import Databases, PostgresServer
    from tests.postgres.pgbouncer import PgBouncer
    from tests.postgres.secured import Secured
    from tests.postgres.tls import TlsServer

ROLE = "walpool"  # who owns the databases of tests: no superuser, as where people rent a server
_VARIABLES = ("WALPOOL_TEST_PG_URL", "WALPOOL_TEST_PG_PROGRAMS", "WALPOOL_REQUIRE_PG", "WALPOOL_REQUIRE_PGBOUNCER")
_ROOM_BYTES = 2**30  # the server's log of writes and its data come to half of it; containers often have 64 MiB
_ASKED = pytest.StashKey[dict[str, str]]()
_TOLD = "walpool_postgres"  # what a worker of pytest-xdist finds it under


def pytest_configure(config: pytest.Config) -> None:
    # Taken out of the environment: walpool warns of variables that are no settings of its own, in tests' processes too.
    asked = {name: os.environ.pop(name, "") for name in _VARIABLES}
    config.stash[_ASKED] = getattr(config, "workerinput", {}).get(_TOLD, asked)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist what was asked; it is started from the environment that has it no more."""
    node.workerinput[_TOLD] = node.config.stash[_ASKED]


def pytest_unconfigure(config: pytest.Config) -> None:
    os.environ.update({name: value for name, value in config.stash[_ASKED].items() if value})


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = {"own_postgres_server", "postgres_server", "tls_server"}
    for item in items:
        if ours.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.postgres)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for `place` each backend, and one that bears `bounced` PgBouncer besides."""
    is_bounced = metafunc.definition.get_closest_marker("bounced") is not None
    servers = [pytest.param(name, marks=pytest.mark.postgres) for name in ("postgres", "pgbouncer")[: 1 + is_bounced]]
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", ["sqlite", *servers], indirect=True)
    elif is_bounced and "postgres_url" in metafunc.fixturenames:
        metafunc.parametrize("postgres_url", servers, indirect=True)


@pytest.fixture(scope="session")
def own_postgres_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """Yield a server of this run's own, which a test may restart; it does not wait for the disk."""
    from benches.postgres_server import CannotStart, PostgresServer

    if missing := _missing_driver():
        _do_without(missing, pytestconfig, "WALPOOL_REQUIRE_PG")
    try:
        server = PostgresServer(_place(), fsync=False, options={"max_wal_size": "256MB"})
    except CannotStart as error:
        _do_without(str(error), pytestconfig, "WALPOOL_REQUIRE_PG")
    try:
        server.create_role(ROLE)
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Databases:
    """Return the server that tests use: that of WALPOOL_TEST_PG_URL, else this run's own."""
    url = request.config.stash[_ASKED]["WALPOOL_TEST_PG_URL"]
    if not url:
        server: Databases = request.getfixturevalue("own_postgres_server")
        return server
    if missing := _missing_driver():
        _do_without(missing, request.config, "WALPOOL_REQUIRE_PG")
    from tests.postgres.other_server import OtherServer

    return OtherServer(url)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: Databases) -> Iterator[str]:
    """Yield the URL of a new, empty database whose owner it logs in as; dropped afterwards, whoever is connected."""
    if getattr(request, "param", None) == "pgbouncer":
        yield request.getfixturevalue("pgbouncer_url")
        return
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture
def place(request: pytest.FixtureRequest, database: Path) -> str:
    """Return where things are kept: a path, then the URL of an empty database, then one behind PgBouncer."""
    if request.param == "sqlite":
        return str(database)
    return str(request.getfixturevalue("postgres_url" if request.param == "postgres" else "pgbouncer_url"))


@pytest.fixture
def own_postgres_url(own_postgres_server: PostgresServer) -> Iterator[str]:
    """Yield what `postgres_url` yields, always on `own_postgres_server`, which the test may restart."""
    with new_database(own_postgres_server) as url:
        yield url


@pytest.fixture
def secured(own_postgres_server: PostgresServer) -> Iterator[Secured]:
    """Yield a new database whose memories are under row-level security; it is dropped afterwards."""
    from tests.postgres.secured import secured_database

    with secured_database(own_postgres_server) as made:
        yield made


@pytest.fixture(scope="session")
def pgbouncer(own_postgres_server: PostgresServer, pytestconfig: pytest.Config) -> Iterator[PgBouncer]:
    """Yield a PgBouncer in transaction mode in front of this run's own server; it asks for no password."""
    yield from _pgbouncer(own_postgres_server, pytestconfig, tls=False)


@pytest.fixture(scope="session")
def pgbouncer_tls(own_postgres_server: PostgresServer, pytestconfig: pytest.Config) -> Iterator[PgBouncer]:
    """Yield another that takes TLS only; its URL has the certificate to verify it with."""
    yield from _pgbouncer(own_postgres_server, pytestconfig, tls=True)


@pytest.fixture(scope="session")
def tls_server(pytestconfig: pytest.Config) -> Iterator[TlsServer]:
    """Yield a server that takes TLS only, of other programs than the wheel's; its URL verifies it."""
    from benches.postgres_server import CannotStart
    from tests.postgres.tls import TlsServer, installed_programs

    if missing := _missing_driver():
        _do_without(missing, pytestconfig, "WALPOOL_REQUIRE_PG")
    named = pytestconfig.stash[_ASKED]["WALPOOL_TEST_PG_PROGRAMS"]
    folders = [Path(named)] if named else installed_programs()
    if not folders:
        pytest.skip("no PostgreSQL from 15 on is installed (WALPOOL_TEST_PG_PROGRAMS), and pip's has no TLS")
    try:
        server = TlsServer(_place(), folders[0])
    except CannotStart as error:
        if named:
            raise
        pytest.skip(str(error))
    try:
        server.create_role(ROLE)
        yield server
    finally:
        server.close()


@pytest.fixture
def pgbouncer_url(pgbouncer: PgBouncer, own_postgres_server: PostgresServer) -> Iterator[str]:
    """Yield the URL of a new, empty database behind PgBouncer; `own_postgres_server.url` reaches it past PgBouncer."""
    with _database(own_postgres_server, ROLE) as database:
        yield pgbouncer.url(database=database, user=ROLE)


@contextmanager
def new_database(server: Databases) -> Iterator[str]:
    """Make a database as `postgres_url` does, for fixtures of a wider scope, and drop it at the end of the block."""
    from tests.postgres.other_server import OtherServer

    owner = None if isinstance(server, OtherServer) else ROLE
    with _database(server, owner) as database:
        yield server.url(database=database, user=owner)


def _place() -> Path:
    """Return where the server's data lie: in memory if that has room; a database is made in 10 ms there, not in 70."""
    memory = Path("/dev/shm")
    needed = _ROOM_BYTES * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # each worker has a server
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= needed
    return memory if has_room else Path(tempfile.gettempdir())


@contextmanager
def _database(server: Databases, owner: str | None) -> Iterator[str]:
    name = f"walpool_test_{secrets.token_hex(6)}"  # others may use the server too
    server.create_database(name, owner=owner)
    try:
        yield name
    finally:
        server.drop_database(name)


def _pgbouncer(server: PostgresServer, config: pytest.Config, *, tls: bool) -> Iterator[PgBouncer]:
    from tests.postgres.pgbouncer import PgBouncer, program

    needed = {"pgbouncer": program(), **({"openssl": shutil.which("openssl")} if tls else {})}
    if missing := [name for name, found in needed.items() if found is None]:
        _do_without(f"{' and '.join(missing)} is not installed", config, "WALPOOL_REQUIRE_PGBOUNCER")
    bouncer = PgBouncer(server, users=("postgres", ROLE), tls=tls)
    try:
        yield bouncer
    finally:
        bouncer.close()


def _missing_driver() -> str | None:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:  # the package, or the libpq that it needs
        return f"no psycopg: {error}"
    return None


def _do_without(reason: str, config: pytest.Config, variable: str) -> NoReturn:
    if config.stash[_ASKED][variable] == "1":
        pytest.fail(f"{variable}=1, but {reason}", pytrace=False)
    pytest.skip(reason)
