"""Where no connection comes about the error says whether trying again may help, on which server, and what to do.

libpq tells no SQLSTATE then; its words and the server's are all there is, so each is put to a real server here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benches.postgres_server import PostgresServer
from walpool import errors, get_pool
from walpool.postgres import PostgresPool
from walpool.postgres._address import Address
from walpool.settings import Settings

VARIABLES = ("PGDATABASE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE", "PGUSER")


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def guest(own_postgres_server: PostgresServer) -> Iterator[str]:
    """Yield a user who has no password that anybody knows, and who may be refused in many ways."""
    own_postgres_server.execute("CREATE ROLE guest LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    yield "guest"
    own_postgres_server.execute("DROP ROLE guest")


def refused(url: str) -> errors.Error:
    with pytest.raises(errors.Error) as caught, get_pool(url, write_timeout=5):
        pass
    return caught.value


def test_refusal_that_will_be_so_again_is_not_retryable(own_postgres_server: PostgresServer, guest: str) -> None:
    server = own_postgres_server
    nobody = server.url(user=guest, password=None, host="tcp")
    cases = {
        server.url(user=guest, password="wrong", host="tcp"): "PGPASSWORD",
        nobody: "give one by PGPASSWORD",
        server.url(database="no_such_database"): 'database "no_such_database" does not exist',
        server.url(user="no_such_user"): 'role "no_such_user" does not exist',
        f"{server.url(host='tcp')}?sslmode=require": "sslmode=disable in the URL goes on without",
        f"{server.url(host='tcp')}?client_encoding=nonsense": "client_encoding",
    }
    for url, said in cases.items():
        error = refused(url)
        assert type(error) is errors.OperationalError
        assert said in str(error)
        assert "connecting to postgresql://" in str(error)
        assert not error.retryable, error


def test_server_that_is_away_may_come_back(own_postgres_server: PostgresServer, tmp_path: Path) -> None:
    for url in ("postgresql://127.0.0.1:1/x", f"postgresql:///x?host={tmp_path}"):
        error = refused(url)
        assert type(error) is errors.OperationalError
        assert error.retryable
    # One of two hosts is away, and may come back; that the other refuses says nothing of it.
    away = own_postgres_server.url(user="postgres", password="wrong", host="tcp").replace("@", "@127.0.0.1:1,", 1)
    assert refused(away).retryable
    twice = f"127.0.0.1:{own_postgres_server.port}"
    assert not refused(f"postgresql://postgres:wrong@{twice},{twice}/postgres").retryable


def test_server_without_room_says_what_to_do(own_postgres_server: PostgresServer, guest: str) -> None:
    url = own_postgres_server.url(user=guest)
    with get_pool(url):
        error = refused(f"{url}&application_name=another")  # another engine
    assert error.retryable
    assert "lower readers, or put PgBouncer between" in str(error)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sslmode=requirre", 'invalid sslmode value: "requirre"'),
        ("port=70000", 'invalid port number: "70000"'),
        ("service=nowhere", 'definition of service "nowhere" not found'),
        ("target_session_attrs=master", "target_session_attrs"),
        ("readres=3", "the URL's key 'readres' is no setting, and no parameter of libpq; did you mean readers?"),
        ("sslmod=require", "did you mean sslmode?"),
        ("nonsense=1", "the URL's key 'nonsense' is no setting, and no parameter of libpq"),
    ],
)
def test_parameter_that_libpq_does_not_take_is_a_wrong_setting(query: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        PostgresPool(f"postgresql:///x?host={tmp_path}&{query}")
    assert said in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("password", ["a%zz", "a b%"])
def test_password_that_is_not_encoded_is_told_how_to_be(password: str) -> None:
    with pytest.raises(errors.ConfigError, match="write %25") as caught:
        PostgresPool(f"postgresql://ann:{password}@host/x")
    assert password not in str(caught.value)


def test_url_from_a_file_ends_in_a_line_feed(own_postgres_url: str) -> None:
    with get_pool(f"{own_postgres_url}\n") as pool:
        assert pool.fetchval("SELECT 1") == 1


# What stands around a URL.


def address(url: str) -> Address:
    return Address.of(Settings.load(url, env={}))


def test_name_says_what_the_environment_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "db.example", "PGPORT": "5433", "PGUSER": "ann", "PGDATABASE": "x"}.items():
        monkeypatch.setenv(name, value)
    assert address("postgresql://").name == "postgresql://ann@db.example:5433/x"
    assert address("postgresql://eve@127.0.0.1:1/y").name == "postgresql://eve@127.0.0.1:1/y"


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "services"
    text = """# of this test
[far]
host=db.example
user=ann
password=sesame

[strict]
host=db.example
sslmode=verify-full
[near]
host=127.0.0.1
dbname=x
"""
    path.write_text(text)
    monkeypatch.setenv("PGSERVICEFILE", str(path))
    return path


def test_server_that_a_service_names_is_spoken_to_in_tls_too(services: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = address("postgresql:///y?service=far")
    assert (far.name, far.parameters["sslmode"]) == ("postgresql://ann@db.example/y", "require")
    assert "password" not in far.parameters  # libpq reads it itself
    assert "sslmode" not in address("postgresql:///?service=strict").parameters  # what the service says stays
    assert "sslmode" not in address("postgresql:///?service=near").parameters
    assert "sslmode" not in address("postgresql:///?service=nowhere").parameters
    monkeypatch.setenv("PGSERVICE", "far")
    assert address("postgresql://").parameters["sslmode"] == "require"
    assert "sslmode" not in address("postgresql://127.0.0.1/y").parameters  # the URL comes first
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert "sslmode" not in address("postgresql://").parameters


def test_service_leads_to_its_server(
    own_postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_postgres_server
    lines = ("[mine]", f"host={server.host}", f"port={server.port}", "user=postgres", "dbname=postgres")
    (tmp_path / "pg_service.conf").write_text("\n".join(lines))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with get_pool("postgresql:///?service=mine") as pool:
        assert pool.fetchval("SELECT current_user") == "postgres"
        assert f":{server.port}/postgres" in pool.path
