"""`walpool memory` and `walpool check`: what each command prints, asks and refuses; looking leaves no trace."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import walpool.memory
from walpool import cli
from walpool.memory import Query, Record, pack

HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\r\u202eevil\x00 <script>"
STYLE = re.compile(r"\x1b\[[\d;]*m")  # rich's own
Capture = pytest.CaptureFixture[str]
needs_a_pty = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WALPOOL_")]:
        monkeypatch.delenv(name)


def record(id_: str, content: str = "text", **fields: Any) -> Record:
    return Record(**{"id": id_, "content": content, **fields})


@pytest.fixture
def notes(database: Path) -> Path:
    """Return a database with five records in one collection, and one in that of a tenant."""
    old = datetime(2020, 1, 1, tzinfo=timezone.utc)
    with walpool.memory.open(database) as store:
        store.save(
            [
                record("sky", "The sky is blue", scope="/facts/nature", categories=("colour",), embedding=pack([3, 4])),
                record("sea", "The sea is green", scope="/facts/nature", source="ann", created_at=old),
                record("fact", "Water is wet", scope="/facts-not", importance=0.1),
                record("door", "Ann locks the door", scope="/people/ann", metadata={"hour": 21, "who": "ann"}),
                record("lamp", "Ann lit the lamp", scope="/people/ann", metadata={"hour": "21"}),
            ]
        )
    with walpool.memory.open(database, tenant="acme", collection="tickets") as store:
        store.save([record("sky", "a ticket")])
    return database


def ids(database: Path, **where: Any) -> set[str]:
    with walpool.memory.open(database, **where) as store:
        return {each.id for each in store.list(Query())}


def answer(capsys: Capture, *arguments: str, code: int = 0) -> Any:
    """Run a command with --json and return the one document that it printed."""
    assert cli.main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def output(capsys: Capture, *arguments: str, code: int = 0) -> str:
    assert cli.main(list(arguments)) == code
    return capsys.readouterr().out


def refused(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """Run a command that fails, and return its one line."""
    assert cli.main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("walpool: error: ")
    return err.removeprefix("walpool: error: ").rstrip("\n")


# Looking


def test_memory_shows_the_scopes_as_a_tree(notes: Path, capsys: Capture) -> None:
    expected = """\
        /  5
          facts  2
            nature  2
          facts-not  1
          people  2
            ann  2
        """
    lines = [line[8:] for line in expected.splitlines()[:-1]]
    assert output(capsys, "memory", str(notes)).splitlines() == lines
    assert output(capsys, "memory", "scopes", str(notes)).splitlines() == lines
    assert output(capsys, "memory", "scopes", str(notes), "facts/").splitlines() == ["/facts  2", "  nature  2"]
    assert output(capsys, "memory", str(notes), "--scope", "/facts").splitlines() == ["/facts  2", "  nature  2"]


def test_memory_scopes_json_has_full_paths(notes: Path, capsys: Capture) -> None:
    assert answer(capsys, "memory", str(notes), "/people") == {
        "scope": "/people",
        "records": 2,
        "scopes": [{"scope": "/people/ann", "records": 2}],
    }


def test_memory_takes_the_database_of_the_environment(
    notes: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALPOOL_URL", f"walpool://{notes}")
    assert answer(capsys, "memory")["records"] == 5
    assert answer(capsys, "memory", "show", "sky")["id"] == "sky"
    assert [hit["record"]["id"] for hit in answer(capsys, "memory", "search", "sea")["hits"]] == ["sea"]


def test_memory_tree_is_drawn_on_a_terminal(notes: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    drawn = output(capsys, "memory", str(notes))
    assert "├── facts  2" in drawn
    assert "│   └── nature  2" in drawn
    assert "│ /facts/nature │" in output(capsys, "memory", "list", str(notes))


def test_memory_search_goes_by_words_and_conditions(notes: Path, capsys: Capture) -> None:
    found = answer(capsys, "memory", "search", str(notes), "ann", "--scope", "/people", "--where", "hour=21")
    assert [hit["record"]["id"] for hit in found["hits"]] == ["door"]
    assert set(found) == {"hits", "next"}
    assert set(found["hits"][0]) == {"score", "snippet", "record"}
    assert "[Ann]" in found["hits"][0]["snippet"]
    assert answer(capsys, "memory", "search", str(notes), "ann", "--where", 'hour="21"')["hits"][0]["record"]["id"] == (
        "lamp"
    )
    assert output(capsys, "memory", "search", str(notes), "--", "-ann").count("\n") >= 1
    assert output(capsys, "memory", "search", str(notes), 'NEAR( "" -').splitlines() == ["score  id  scope  found"]


def test_memory_list_narrows_and_pages(notes: Path, capsys: Capture) -> None:
    def listed(*arguments: str) -> list[str]:
        return [each["id"] for each in answer(capsys, "memory", "list", str(notes), *arguments)["records"]]

    assert listed("--category", "colour", "--category", "none") == ["sky"]
    assert listed("--source", "ann") == ["sea"]
    assert listed("--where", "who=ann", "--where", "hour=21") == ["door"]
    assert listed("--limit", "1", "--scope", "/facts") == ["sky"]
    first = answer(capsys, "memory", "list", str(notes), "--limit", "3")
    rest = answer(capsys, "memory", "list", str(notes), "--limit", "3", "--after", first["next"])
    assert (len(first["records"]), len(rest["records"]), rest["next"]) == (3, 2, None)
    assert "more: --after " in output(capsys, "memory", "list", str(notes), "--limit", "3")


def test_memory_show_has_all_fields_and_no_numbers_of_the_embedding(notes: Path, capsys: Capture) -> None:
    shown = answer(capsys, "memory", "show", str(notes), "sky")
    fields = ["accessed_at", "categories", "content", "created_at", "embedding", "id", "importance", "metadata"]
    assert sorted(shown) == [*fields, "private", "scope", "source"]
    assert shown["embedding"] == {"dims": 2, "norm": 5.0}
    text = output(capsys, "memory", "show", str(notes), "sky")
    assert "embedding    2 dims, norm 5\n" in text
    assert text.endswith("\nThe sky is blue\n")
    assert answer(capsys, "memory", "show", str(notes), "sea")["embedding"] is None


def test_memory_show_of_no_record_is_code_1(notes: Path, capsys: Capture) -> None:
    assert "no record 'moon'" in refused(capsys, "memory", "show", str(notes), "moon", code=1)


def test_memory_stats_count_each_collection(notes: Path, capsys: Capture) -> None:
    stats = answer(capsys, "memory", "stats", str(notes))
    assert stats["path"] == str(notes)
    assert stats["bytes"] > 0
    assert [(each["tenant"], each["collection"], each["records"]) for each in stats["collections"]] == [
        ("", "memory", 5),
        ("acme", "tickets", 1),
    ]
    first = stats["collections"][0]
    assert (first["scopes"], first["categories"], first["dims"]) == (5, 1, 2)
    assert first["oldest"] == "2020-01-01T00:00:00+00:00"
    assert len(answer(capsys, "memory", "stats", str(notes), "--tenant", "acme")["collections"]) == 1
    assert "tickets" in output(capsys, "memory", "stats", str(notes))


def test_memory_of_a_tenant_shows_nothing_of_others(notes: Path, capsys: Capture) -> None:
    store = ("--tenant", "acme", "--collection", "tickets")
    assert [each["content"] for each in answer(capsys, "memory", "list", str(notes), *store)["records"]] == ["a ticket"]


# Looking leaves no trace

LOOKS: list[list[str]] = [
    ["scopes", "DB"],
    ["list", "DB"],
    ["search", "DB", "text"],
    ["show", "DB", "id"],
    ["stats", "DB"],
    ["check", "DB"],
    ["delete", "DB", "--scope", "/", "--yes"],
    ["expire", "DB", "--keep", "1", "--yes"],
    ["rebuild", "DB"],
    ["compact", "DB"],
]


def on(database: Path, words: Sequence[str]) -> list[str]:
    return ["memory", *(str(database) if word == "DB" else word for word in words)]


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: words[0])
def test_memory_makes_no_file(words: list[str], database: Path, capsys: Capture) -> None:
    assert f"there is no file {database}" in refused(capsys, *on(database, words))
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: words[0])
def test_memory_makes_no_tables_and_no_collection(words: list[str], notes: Path, capsys: Capture) -> None:
    other = notes.with_name("other.db")
    with walpool.Pool(other) as pool:
        pool.script("CREATE TABLE t (a)")
    assert "there is no memory store in" in refused(capsys, *on(other, words))
    with walpool.Pool(other) as pool:
        assert pool.fetch("SELECT name FROM sqlite_schema") == [("t",)]

    before = walpool.memory.collections(notes)
    said = refused(capsys, *on(notes, words), "--collection", "memroy")
    assert "--tenant '' --collection 'memory'" in said
    assert walpool.memory.collections(notes) == before


def test_memory_needs_a_database_that_is_named(capsys: Capture) -> None:
    assert "WALPOOL_URL" in refused(capsys, "memory")
    assert "SQLite files" in refused(capsys, "check", "postgresql://ann@db/agents")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["delete", "DB", "--yes"], "--scope"),
        (["expire", "DB", "--yes"], "--older-than"),
        (["expire", "DB", "--keep", "-1", "--yes"], "keep"),
        (["list", "DB", "--where", "a=1", "--where", "a=2"], "--where"),
        (["list", "DB", "--after", "nonsense"], "--after"),
        (["search", "DB", "sky", "--after", "nonsense"], "--after"),
    ],
)
def test_memory_names_the_argument_that_is_wrong(words: list[str], named: str, notes: Path, capsys: Capture) -> None:
    assert named in refused(capsys, *on(notes, words))
    assert len(ids(notes)) == 5


@pytest.mark.parametrize(
    "words",
    [
        ["delete", "DB", "--scope", "", "--yes"],
        ["list", "DB", "--where", "hour"],
        ["list", "DB", "--where", "=1"],
        ["list", "DB", "--limit", "many"],
        ["expire", "DB", "--older-than", "soon"],
        ["expire", "DB", "--older-than", f"{10**20}w"],
        ["unknown", "DB", "more", "words"],
    ],
)
def test_memory_arguments_that_cannot_be_read_are_code_2(words: list[str], notes: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(on(notes, words))
    assert exit_.value.code == 2
    assert len(ids(notes)) == 5


@pytest.mark.parametrize("text", ["\udcff", "\x00", "\x1b[2J"])
@pytest.mark.parametrize("option", ["--scope", "--id", "--source", "--category"])
def test_memory_arguments_that_nothing_can_have_delete_nothing(
    option: str, text: str, notes: Path, capsys: Capture
) -> None:
    code = cli.main(["memory", "delete", str(notes), option, text, "--yes"])
    out, err = capsys.readouterr()
    assert (code, out) in ((0, "deleted 0 records\n"), (1, ""), (2, ""))
    assert err.count("\n") == (code != 0)
    assert len(ids(notes)) == 5


# Changing


def test_memory_delete_takes_what_was_named(notes: Path, capsys: Capture) -> None:
    assert answer(capsys, "memory", "delete", str(notes), "--scope", "/facts", "--yes") == {"deleted": 2}
    assert ids(notes) == {"fact", "door", "lamp"}
    assert output(capsys, "memory", "delete", str(notes), "--id", "door", "--id", "moon", "--yes") == (
        "deleted 1 record\n"
    )
    assert answer(capsys, "memory", "delete", str(notes), "--scope", "/", "--yes") == {"deleted": 2}
    assert ids(notes) == set()
    assert ids(notes, tenant="acme", collection="tickets") == {"sky"}


def test_memory_expire_takes_what_is_old_or_too_much(notes: Path, capsys: Capture) -> None:
    assert answer(capsys, "memory", "expire", str(notes), "--older-than", "30d", "--yes") == {"expired": 1}
    assert answer(capsys, "memory", "expire", str(notes), "--importance-below", "0.2", "--yes") == {"expired": 1}
    assert answer(capsys, "memory", "expire", str(notes), "--keep", "1", "--scope", "/people", "--yes") == {
        "expired": 1
    }
    assert len(ids(notes)) == 2


@pytest.mark.parametrize("words", [["delete", "DB", "--scope", "/"], ["expire", "DB", "--keep", "0"]], ids=str)
def test_memory_deletes_nothing_where_nobody_can_be_asked(words: list[str], notes: Path) -> None:
    command = [sys.executable, "-m", "walpool", *on(notes, words)]
    done = subprocess.run(command, check=False, capture_output=True, input="y\n", text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert len(ids(notes)) == 5


@needs_a_pty
@pytest.mark.parametrize(
    ("typed", "code", "left"),
    [("y", 0, 3), ("YES", 0, 3), ("n", 1, 5), ("", 1, 5), ("yesterday", 1, 5), ("\x04", 1, 5)],
)
def test_memory_delete_asks_on_a_terminal(typed: str, code: int, left: int, notes: Path) -> None:
    said, returned = on_terminal(["memory", "delete", str(notes), "--scope", "/people"], typed)
    assert "delete 2 records? [y/N]" in said
    assert ("deleted 2 records" in said) == (code == 0)
    assert ("nothing was deleted" in said) == (code == 1)
    assert (returned, len(ids(notes))) == (code, left)


@needs_a_pty
def test_memory_expire_asks_on_a_terminal(notes: Path) -> None:
    said, returned = on_terminal(["memory", "expire", str(notes), "--keep", "0"], "n")
    assert "5 records? [y/N]" in said
    assert (returned, len(ids(notes))) == (1, 5)


def on_terminal(arguments: list[str], typed: str) -> tuple[str, int]:
    """Run a command on a pseudo-terminal, type a line when it asks, and return what was on the screen and its code."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "walpool", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True) as process:
        os.close(theirs)
        screen = b""
        answered = False
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux's way to say that nobody has the terminal open any more
                break
            if not part:
                break
            screen += part
            if b"[y/N] " in screen and not answered:
                answered = True
                os.write(ours, typed.encode() + b"\n" * (typed != "\x04"))
        code = process.wait(timeout=60)
    os.close(ours)
    return screen.decode(), code


# In order


def miscount(database: Path) -> None:
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE memory_scopes SET records = records + 7")


@pytest.fixture
def damaged(notes: Path) -> Path:
    """Return the notes after another program has changed what is derived from them."""
    miscount(notes)
    return notes


def test_memory_check_and_rebuild_are_about_every_collection(damaged: Path, capsys: Capture) -> None:
    found = answer(capsys, "memory", "check", str(damaged), code=1)["collections"]
    assert [(each["tenant"], each["collection"], bool(each["problems"])) for each in found] == [
        ("", "memory", True),
        ("acme", "tickets", True),
    ]
    assert answer(capsys, "memory", "rebuild", str(damaged), "--tenant", "acme") == {
        "rebuilt": [{"tenant": "acme", "collection": "tickets"}]
    }
    assert cli.main(["memory", "check", str(damaged)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == "acme/tickets: in order"
    assert "walpool memory rebuild" in err
    assert output(capsys, "memory", "rebuild", str(damaged)) == "memory: rebuilt\nacme/tickets: rebuilt\n"
    assert [each["problems"] for each in answer(capsys, "memory", "check", str(damaged))["collections"]] == [[], []]


def test_memory_compact_keeps_every_record(notes: Path, capsys: Capture) -> None:
    assert output(capsys, "memory", "compact", str(notes)) == "memory: compacted\nacme/tickets: compacted\n"
    assert answer(capsys, "memory", "compact", str(notes), "--collection", "tickets") == {
        "compacted": [{"tenant": "acme", "collection": "tickets"}]
    }
    assert len(ids(notes)) == 5


def verdicts(findings: Any) -> list[tuple[str, str]]:
    return [(finding["subject"], finding["verdict"]) for finding in findings]


def test_check_compares_every_memory_store_and_repairs(damaged: Path, capsys: Capture) -> None:
    found = answer(capsys, "check", str(damaged), code=1)
    assert verdicts(found) == [("integrity", "ok"), ("memory", "bad"), ("memory", "bad")]
    assert "--repair" in found[1]["said"]
    assert cli.main(["doctor", str(damaged)]) == 1
    capsys.readouterr()
    mended = answer(capsys, "check", str(damaged), "--repair")
    assert verdicts(mended) == [("integrity", "ok"), ("memory", "ok"), ("memory", "ok")]
    assert "mended" in mended[1]["said"]
    assert "mended" not in json.dumps(answer(capsys, "check", str(damaged)))
    assert len(ids(damaged)) == 5


def test_check_mends_a_damaged_word_index(notes: Path, capsys: Capture) -> None:
    with closing(sqlite3.connect(notes)) as conn, conn:
        conn.execute("UPDATE memory_words_data SET block = zeroblob(length(block)) WHERE id > 10")
    assert ("integrity", "bad") in verdicts(answer(capsys, "check", str(notes), code=1))
    assert {verdict for _, verdict in verdicts(answer(capsys, "check", str(notes), "--repair"))} == {"ok"}
    assert len(answer(capsys, "memory", "search", str(notes), "sky")["hits"]) == 1


def test_check_of_a_database_without_memory_is_sqlites_own(database: Path, capsys: Capture) -> None:
    with walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a)")
    assert verdicts(answer(capsys, "check", str(database))) == [("integrity", "ok")]
    with walpool.Pool(database) as pool:
        assert pool.fetch("SELECT name FROM sqlite_schema") == [("t",)]


def test_check_repairs_no_file_that_is_damaged_otherwise(notes: Path, capsys: Capture) -> None:
    with walpool.Pool(notes) as pool:
        pool.script("CREATE TABLE t (a); CREATE INDEX i ON t (a)")
        pool.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2000)])
        page = pool.fetchval("SELECT rootpage FROM sqlite_schema WHERE name = 'i'")
        pool.checkpoint("truncate")
    content = bytearray(notes.read_bytes())
    content[(page - 1) * 4096 : (page - 1) * 4096 + 100] = bytes(100)
    notes.write_bytes(content)
    miscount(notes)
    found = answer(capsys, "check", str(notes), "--repair", code=1)
    assert verdicts(found)[:2] == [("integrity", "bad"), ("memory", "bad")]


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: words[0])
def test_memory_upgrades_tables_of_an_older_walpool_only_when_told(
    words: list[str], notes: Path, capsys: Capture
) -> None:
    with walpool.Pool(notes) as pool:
        pool.execute("UPDATE walpool_schema SET version = 1 WHERE name = 'memory'")
    assert "--upgrade" in refused(capsys, *on(notes, words))
    with walpool.Pool(notes) as pool:
        assert pool.fetchval("SELECT version FROM walpool_schema WHERE name = 'memory'") == 1
        pool.execute("UPDATE walpool_schema SET version = 99 WHERE name = 'memory'")
    assert "upgrade walpool" in refused(capsys, *on(notes, words), "--upgrade")


# What was stored steers no terminal


@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "rich"])
def test_memory_prints_hostile_text_as_text(
    terminal: bool, database: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = HOSTILE.replace("\x00", "")
    with walpool.memory.open(database) as store:
        store.save([record(name, HOSTILE, scope=f"/{name}", categories=(name,), metadata={name: HOSTILE}, source=name)])
    if terminal:
        pytest.importorskip("rich")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "999")
    for words in (["scopes"], ["list"], ["search", "evil"], ["show", name], ["stats"], ["check"]):
        said = STYLE.sub("", output(capsys, *on(database, [words[0], "DB", *words[1:]])))
        assert not set(said) & set("\x1b\x07\r\u202e\x00"), words
        if words[0] in ("scopes", "list", "show"):
            assert "[bold]x" in said
    shown = answer(capsys, "memory", "show", str(database), name)
    assert (shown["id"], shown["content"], shown["metadata"]) == (name, HOSTILE, {name: HOSTILE})


def test_memory_prints_what_the_console_cannot_encode(database: Path) -> None:
    with walpool.memory.open(database) as store:
        store.save([record("1", "東京 €")])
    command = [sys.executable, "-m", "walpool", "memory", "list", str(database)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u6771" in done.stdout


def test_memory_shortens_long_text_in_tables(database: Path, capsys: Capture) -> None:
    with walpool.memory.open(database) as store:
        store.save([record("1", "x" * 10**6), record("y" * 10**5, scope="z" * 10**5)])
    assert len(output(capsys, "memory", "list", str(database))) < 1_000
    assert len(output(capsys, "memory", str(database))) < 1_000
    assert answer(capsys, "memory", "show", str(database), "1")["content"] == "x" * 10**6
