"""`walpool pg-init`: what it prints is what makes row-level security, and it makes the same itself, twice too."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

import walpool.memory
from walpool.cli import main
from walpool.memory import Record

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer


@pytest.fixture
def roles() -> dict[str, str]:
    """Return names that no other test has: roles belong to the server, not to a database."""
    mark = secrets.token_hex(4)
    return {name: f"{name}_{mark}" for name in ("owner", "app", "reader")}


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
