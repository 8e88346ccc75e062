"""`walpool memory` on a PostgreSQL server: the answers of a file, of one tenant at a time where that is secured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

import walpool.memory
from walpool import cli
from walpool.memory import Record, pack
from walpool.memory.postgres import init_sql

if TYPE_CHECKING:
    from benches.postgres_server import PostgresServer

RECORDS = [
    Record(id="sky", content="The sky is blue", scope="/facts", categories=("colour",), embedding=pack([3, 4])),
    Record(id="door", content="Ann locks the door", scope="/people/ann", metadata={"hour": 21}),
    Record(id="lamp", content="Ann lit the lamp", scope="/people/ann"),
]
ASKED = [
    ["scopes"],
    ["list", "--scope", "/people"],
    ["search", "ann"],
    ["show", "sky"],
    ["check"],
    ["compact"],
    ["rebuild"],
    ["delete", "--id", "lamp", "--yes"],
    ["expire", "--keep", "1", "--yes"],
    ["scopes"],
]


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WALPOOL_URL", raising=False)


def answers(capsys: pytest.CaptureFixture[str], target: str, *more: str) -> list[Any]:
    """Return what each command prints as JSON; scores and times aside, which differ."""
    given = []
    for command, *words in ASKED:
        assert cli.main(["memory", command, target, *words, *more, "--json"]) == 0
        given.append(json.loads(capsys.readouterr().out, object_hook=_without_scores))
    return given


def _without_scores(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("score", "created_at", "accessed_at", "next")}


def test_commands_answer_as_on_a_file(tmp_path: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [str(tmp_path / "notes.db"), postgres_url]
    for target in targets:
        with walpool.memory.open(target) as store:
            store.save(RECORDS)
    on_a_file, on_a_server = (answers(capsys, target) for target in targets)
    assert on_a_server == on_a_file
    assert cli.main(["memory", "stats", postgres_url, "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["bytes"] is None
    assert [each["records"] for each in stats["collections"]] == [on_a_file[-1]["records"]]


def test_server_without_memories_is_told_and_left_without(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["memory", "list", postgres_url]) == 2
    assert "there is no memory store" in capsys.readouterr().err
    assert walpool.memory.collections(postgres_url) == []


def test_tenant_that_is_named_is_seen_under_row_level_security(
    own_postgres_server: PostgresServer, own_postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = urlsplit(own_postgres_url).path[1:]
    roles = {"owner": "cli_owner", "app": "cli_app", "reader": "cli_reader"}
    own_postgres_server.execute(init_sql(**roles), database=name)
    app = own_postgres_server.url(database=name, user="cli_app")
    for tenant in ("a", "b"):
        with walpool.memory.open(app, tenant=tenant, tenancy="rls") as store:
            store.save([Record(id=tenant, content=f"of {tenant}")])
    assert cli.main(["memory", "list", app, "--tenant", "a", "--json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)["records"]] == ["a"]
    assert cli.main(["memory", "list", app]) == 2
    assert "--tenant" in capsys.readouterr().err
