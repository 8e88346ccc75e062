"""`walpool doctor URL`: what is wrong with a server is said by its name, and nothing of it is called damage."""

from __future__ import annotations

import json

import pytest

import walpool
from walpool.cli import main


def test_server_that_does_not_wait_for_the_disk_is_not_called_damaged(
    own_postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", own_postgres_url]) == 1
    said = capsys.readouterr()
    assert "bad      durability   fsync is off" in said.out
    assert said.err == "walpool: error: not in order: durability\n"


def test_findings_of_a_server_are_one_document(own_postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with walpool.get_pool(own_postgres_url) as pool:
        pool.script("CREATE EXTENSION vector")
    main(["doctor", own_postgres_url, "--json"])
    verdicts = {found["subject"]: found["verdict"] for found in json.loads(capsys.readouterr().out)}
    assert verdicts | {"role": "ok", "vectors": "ok", "server": "ok", "durability": "bad"} == verdicts
