"""Passwords of PostgreSQL URLs: on the wire to the server, nowhere else; and the way there, TLS unless it is home."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from typing import TYPE_CHECKING

import pytest
from looping import run
from psycopg.pq import Conninfo

from tests.postgres.pools import terminate
from walpool import Settings, errors, get_async_pool, get_pool
from walpool.postgres import AsyncPostgresPool, PostgresPool
from walpool.postgres._address import Address
from walpool.settings import _LIBPQ_KEYS

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer

PASSWORD = "Hunter2Said"


def assert_silent(caplog: pytest.LogCaptureFixture, *told: object) -> None:
    for each in told:
        text = "".join(traceback.format_exception(each)) if isinstance(each, BaseException) else str(each)
        assert PASSWORD not in text + repr(each) + str(getattr(each, "args", ""))
    assert PASSWORD not in caplog.text


def test_password_reaches_the_server_and_nobody_else(
    own_postgres_server: PostgresServer, own_postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "psycopg")
    own_postgres_server.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'")
    try:
        database = own_postgres_url.partition("?")[0].rpartition("/")[2]
        for url in (
            own_postgres_server.url(database=database, user="guarded", password=PASSWORD, host="tcp"),
            f"postgresql://127.0.0.1:{own_postgres_server.port}/{database}?user=guarded&password={PASSWORD}",
        ):
            with PostgresPool(url) as pool:
                assert pool.fetchval("SELECT current_user") == "guarded"
                with pytest.raises(errors.ProgrammingError) as refused:
                    pool.execute("CREATE TABLE pg_catalog.x (a int)")
                assert_silent(caplog, refused.value, pool, pool.path, pool.stats(), pickle.dumps(pool), pool.settings)
                assert_silent(caplog, pool.settings.explain(), vars(pool.settings)["_origins"], pool._engine.address)
                with copy.copy(pool) as other:
                    assert other.fetchval("SELECT 1") == 1  # a copy in this process has it
                with pytest.raises(errors.OperationalError, match="password") as refused_too:
                    pickle.loads(pickle.dumps(pool))  # one that has left the process has not
                assert_silent(caplog, refused_too.value)
            wrong = url.replace(PASSWORD, PASSWORD + "!")
            with pytest.raises(errors.OperationalError) as refused_by_server:
                PostgresPool(wrong)
            assert_silent(caplog, refused_by_server.value)
            mirrored = AsyncPostgresPool(wrong)
            with pytest.raises(errors.OperationalError) as refused_by_server:
                run(mirrored.open())
            assert_silent(caplog, refused_by_server.value, mirrored, mirrored.path, pickle.dumps(mirrored))
            with pytest.raises(errors.OperationalError), PostgresPool(url) as pool, pool.transaction() as tx:
                import psycopg

                tx.fetch("SELECT 1")
                with psycopg.connect(own_postgres_server.url(database=database), autocommit=True) as keeper:
                    terminate(keeper)
                tx.fetch("SELECT 1")
    finally:
        own_postgres_server.execute("DROP ROLE guarded")
    assert_silent(caplog)


MALFORMED = [
    f"postgresql://ann:{PASSWORD}@host:port/x",
    f"postgresql://ann:{PASSWORD}@[::1/x",
    f"postgresql://ann:{PASSWORD}@host/x?nonsense=1",
    f"postgresql://ann:{PASSWORD}@host/x?sslmode",
    f"postgresql://ann:{PASSWORD}%zz@host/x",
    f"postgresql://ann:{PASSWORD}@host/x?password={PASSWORD}&password",
    f"postgresql://ann@host/x?password={PASSWORD}%",
    f"postgresql://ann:{PASSWORD}@host/x?options=-c%20a%3Db",
    f"postgresql://ann:{PASSWORD}@host/x?connect_timeout=soon",
    f"postgresql://ann:{PASSWORD}@host/x?sslmode=maybe",
    f"postgresql://ann:{PASSWORD}/more@host/x",
    f"postgresql://ann:12/{PASSWORD}@host/x",
    f"postgresql://ann:12@{PASSWORD}@host/x",
    f"postgresql://ann:{PASSWORD}@127.0.0.1,host:more/x",
    f"postgresql://ann:12?{PASSWORD}@host/x",
    f"postgresql://ann:12?a={PASSWORD}@host/x",
    f"postgresql://ann:{PASSWORD}@127.0.0.1:1:2/x",
    f"postgresql://ann:{PASSWORD}@127.0.0.1:99999/x",
    f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x?hostaddr=nowhere",
    f"postgresql://ann:{PASSWORD}\0@127.0.0.1:1/x",
    f"postgresql://ann:{PASSWORD}\ud800@127.0.0.1:1/x",
    f"postgresql://ann:a {PASSWORD}@127.0.0.1:1/x",
    f"postgresql://ann@127.0.0.1:1/x?sslpassword={PASSWORD}&sslkey=/nowhere",
    f"postgresql://127.0.0.1:1/x?user=ann;password={PASSWORD}",
    f"postgresql://127.0.0.1:1/x?user=ann&password%20={PASSWORD}",
    f"postgresql://127.0.0.1:1/x?user=ann#password={PASSWORD}",
    f"postgresql://127.0.0.1:1/x?user=ann&password=SEK&{PASSWORD}",
    f"postgresql://127.0.0.1:1/x?user=ann&password=SEK&{PASSWORD}=1&sslmode=disable",
]
# What libpq takes for a piece of something else, which the server would be told, and tell.
MISPLACED = [
    f"postgresql://127.0.0.1:1/x&password={PASSWORD}",
    f"postgresql://127.0.0.1:1/x;password={PASSWORD}?sslmode=disable",
    f"postgresql://127.0.0.1:1/x?dbname=host%3Dx%20password%3D{PASSWORD}",
    f"postgresql://127.0.0.1:1/x?dbname=postgresql%3A//ann%3A{PASSWORD}%40host/x",
    f"postgresql://ann%3A{PASSWORD}@127.0.0.1:1/x",
    f"postgresql://127.0.0.1:1/x?user=ann:{PASSWORD}",
    f"postgresql://127.0.0.1:1/x?sslmode=disable%26password%3D{PASSWORD}",
]


@pytest.mark.parametrize("url", [*MALFORMED, *MISPLACED])
def test_url_that_libpq_refuses_is_told_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    for open_it in (PostgresPool, get_pool):
        with pytest.raises((errors.ConfigError, errors.OperationalError)) as refused:
            open_it(url, write_timeout=2)
        assert_silent(caplog, refused.value)
    for open_later in (AsyncPostgresPool, get_async_pool):
        with pytest.raises((errors.ConfigError, errors.OperationalError)) as refused:
            run(open_later(url, write_timeout=2).open())  # type: ignore[union-attr]
        assert_silent(caplog, refused.value)


@pytest.mark.parametrize("url", MISPLACED)
def test_password_where_libpq_takes_none_is_sent_to_no_server(url: str) -> None:
    with pytest.raises(
        errors.ConfigError, match=r"^'postgresql://.*\*\*\*.*' has a password where libpq takes none"
    ) as refused:
        Address.of(Settings.load(url, env={}))
    assert PASSWORD not in str(refused.value)


def test_name_shows_no_password_that_the_environment_puts_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", f"ann:{PASSWORD}")
    monkeypatch.setenv("PGDATABASE", f"x password={PASSWORD}")
    assert PASSWORD not in Address.of(Settings.load("postgresql://127.0.0.1", env={})).name


def test_key_is_named_unless_it_may_be_a_piece_of_a_password() -> None:
    with pytest.raises(errors.ConfigError, match="'readres' is no setting"):
        Address.of(Settings.load("postgresql://h/x?readres=3&password=a&b", env={}))
    with pytest.raises(errors.ConfigError, match=r"^'postgresql://h/x\?password=\*\*\*' is no PostgreSQL URL"):
        Address.of(Settings.load("postgresql://h/x?password=a&readres=3", env={}))


def test_settings_know_the_keys_that_end_a_password() -> None:
    assert {option.keyword.decode() for option in Conninfo.get_defaults()} <= _LIBPQ_KEYS


def sslmode(url: str) -> object:
    return Address.of(Settings.load(url, env={})).parameters.get("sslmode")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://db.example/x", "require"),
        ("postgres://ann@db.example:5433/x", "require"),
        ("postgresql://10.0.0.1/x", "require"),
        ("postgresql://[fe80::1]/x", "require"),
        ("postgresql://localhost,db.example/x", "require"),
        ("postgresql://localhost.example/x", "require"),
        ("postgresql:///x?host=db.example", "require"),
        ("postgresql:///x?hostaddr=10.0.0.1", "require"),
        ("postgresql://127.0.0.1/x", None),
        ("postgresql://[::1]/x", None),
        ("postgresql://localhost/x", None),
        ("postgresql:///x", None),
        ("postgresql:///x?host=/run/postgresql", None),
        ("postgresql://db.example/x?sslmode=disable", "disable"),
        ("postgresql://db.example/x?sslmode=verify-full", "verify-full"),
    ],
)
def test_server_elsewhere_is_spoken_to_in_tls_unless_the_url_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: object
) -> None:
    for name in ("PGSSLMODE", "PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert sslmode(url) == expected


def test_characters_that_are_encoded_are_understood() -> None:
    address = Address.of(Settings.load("postgresql://ann:a%2Fb%40c%3Ad%3Fe@[::1]:5433,127.0.0.1/x%2Fy", env={}))
    assert address.parameters["password"] == "a/b@c:d?e"
    assert address.name == "postgresql://ann@%3A%3A1:5433,127.0.0.1/x%2Fy"


def test_environment_says_where_the_server_is_and_how_it_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert sslmode("postgresql:///x") == "require"
    monkeypatch.delenv("PGHOST")
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.1")
    assert sslmode("postgresql:///x") == "require"
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert sslmode("postgresql:///x") is None
