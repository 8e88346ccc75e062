"""`walpool pg-init`: what it prints is what makes row-level security, and it makes the same itself, twice too."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import walpool.memory
from tests.postgres.plugin import ROLE
from walpool import schema
from walpool.cli import main
from walpool.memory import Record

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer


@pytest.fixture
def roles() -> dict[str, str]:
    """Return names that no other test has: roles belong to the server, not to a database."""
    mark = secrets.token_hex(4)
    return {name: f"{name}_{mark}" for name in ("owner", "app", "reader")}


@pytest.fixture
def before(own_postgres_server: PostgresServer) -> Iterator[str]:
    """Yield the name of a database with memories and other tables that somebody made without pg-init."""
    name = f"pg_init_{secrets.token_hex(4)}"
    own_postgres_server.create_database(name, owner=ROLE)
    try:
        url = own_postgres_server.url(database=name, user=ROLE)
        with walpool.memory.open(url, tenant="a") as store:
            store.save([Record(id="old", content="from before")])
        with walpool.get_pool(url) as pool:
            schema.migrate(pool, "others", [["CREATE TABLE others (id INT)"]])
        yield name
    finally:
        own_postgres_server.drop_database(name)


def options(roles: dict[str, str]) -> list[str]:
    return [word for name, role in roles.items() for word in (f"--{name}", role)]


def test_printed_sql_touches_no_database_and_names_the_roles(
    roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pg-init", "--print-sql", *options(roles)]) == 0
    printed = capsys.readouterr().out
    assert all(f'"{role}"' in printed for role in roles.values())
    assert "FORCE ROW LEVEL SECURITY" in printed

    assert main(["pg-init", "--print-sql", "--json", *options(roles)]) == 0
    assert json.loads(capsys.readouterr().out) == {"sql": printed}


def test_applied_twice_it_lets_the_app_see_its_own_tenant_alone(
    own_postgres_server: PostgresServer, roles: dict[str, str]
) -> None:
    name = f"pg_init_{secrets.token_hex(4)}"
    own_postgres_server.create_database(name)
    try:
        url = own_postgres_server.url(database=name)
        assert [main(["pg-init", url, *options(roles)]) for _ in range(2)] == [0, 0]
        app = own_postgres_server.url(database=name, user=roles["app"])
        for tenant in ("a", "b"):
            with walpool.memory.open(app, tenant=tenant, tenancy="rls") as store:
                store.save([Record(id=tenant, content=f"of {tenant}")])
        with walpool.memory.open(app, tenant="a", tenancy="rls") as store:
            assert [record.id for record in store.list()] == ["a"]
        with walpool.get_pool(app) as pool:
            assert pool.fetchval("SELECT count(*) FROM memory_records") == 0
    finally:
        own_postgres_server.drop_database(name)


def test_tables_from_before_become_the_owners_and_whoever_made_them_may_be_the_app(
    own_postgres_server: PostgresServer, before: str, roles: dict[str, str]
) -> None:
    url = own_postgres_server.url(database=before)
    app = own_postgres_server.url(database=before, user=ROLE)
    with pytest.raises(walpool.ConfigError, match="owns"):
        walpool.memory.open(app, tenant="a", tenancy="rls")
    assert [main(["pg-init", url, *options({**roles, "app": ROLE})]) for _ in range(2)] == [0, 0]
    with walpool.memory.open(app, tenant="a", tenancy="rls") as store:
        assert [record.id for record in store.list()] == ["old"]
    with walpool.get_pool(app) as pool:
        assert pool.fetchval("SELECT count(*) FROM memory_records") == 0
        # What is not memories' stays whose it is, the table of versions too.
        schema.migrate(pool, "others", [["CREATE TABLE others (id INT)"], ["ALTER TABLE others ADD COLUMN a INT"]])


def test_sql_printed_for_a_database_is_what_that_one_lacks(
    own_postgres_server: PostgresServer, before: str, roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = own_postgres_server.url(database=before)
    assert main(["pg-init", url, "--print-sql", *options(roles)]) == 0
    printed = capsys.readouterr().out
    with walpool.get_pool(url) as pool:
        assert pool.fetchval("SELECT count(*) FROM pg_policies") == 0  # nothing was touched
    own_postgres_server.execute(printed, database=before)
    own_postgres_server.execute(printed, database=before)
    app = own_postgres_server.url(database=before, user=roles["app"])
    with walpool.memory.open(app, tenant="a", tenancy="rls") as store:
        assert store.count() == 1


def test_a_file_is_refused(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pg-init", f"{tmp_path}/a.db"]) == 2
    assert "postgresql://" in capsys.readouterr().err


def test_printed_sql_for_a_database_is_what_it_lacks(
    own_postgres_server: PostgresServer, roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"pg_init_{secrets.token_hex(4)}"
    own_postgres_server.create_database(name)
    url = own_postgres_server.url(database=name)
    try:
        for is_first in (True, False):
            assert main(["pg-init", url, "--print-sql", *options(roles)]) == 0
            printed = capsys.readouterr().out
            assert ("CREATE TABLE memory_records" in printed) == is_first
            own_postgres_server.execute(printed, database=name)  # as a DBA does it, twice
        with walpool.memory.open(
            own_postgres_server.url(database=name, user=roles["app"]), tenant="a", tenancy="rls"
        ) as store:
            store.save([Record(id="1", content="x")])
    finally:
        own_postgres_server.drop_database(name)


def test_role_that_may_not_is_told_who_may(
    postgres_url: str, roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pg-init", postgres_url, *options(roles)]) == 1
    said = capsys.readouterr().err
    assert "nothing was changed; --print-sql prints what a superuser may run" in said
    assert said.count("\n") == 1
