"""`import_crewai` and `walpool import crewai`, from what CrewAI's own classes wrote."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
from crewai.flow.async_feedback.types import PendingFeedbackContext
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai.memory.types import MemoryRecord
from crewai.state.provider.json_provider import JsonProvider

import walpool
import walpool.memory
from walpool import cli
from walpool.crewai import (
    CrewReport,
    WalpoolCheckpointProvider,
    WalpoolFlowPersistence,
    WalpoolKickoffStorage,
    WalpoolLongTermStorage,
    WalpoolStorage,
    import_crewai,
)
from walpool.errors import ConfigError
from walpool.memory import pack

DAY = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc).replace(tzinfo=None)  # as CrewAI has them
BRANCHES = ("main", "fork/one")
LONG_TERM = """CREATE TABLE long_term_memories (id INTEGER PRIMARY KEY AUTOINCREMENT, task_description TEXT,
    metadata TEXT, datetime TEXT, score REAL)"""


def memories() -> list[MemoryRecord]:
    found = [
        MemoryRecord(
            id=f"{number:08}-0000-4000-8000-000000000000",
            content=f"the sky, {number}: ü 猫 ' \" %",
            scope=f"/crew/a{number % 3}",
            categories=["sky", f"ä{number}"],
            metadata={"n": number, "deep": [None, 1.5, {"é": True}]},
            importance=number / 30,
            created_at=DAY + timedelta(seconds=number),
            last_accessed=DAY + timedelta(days=1),
            embedding=[number + 0.1, -1.0, 1e-30],
            source="somebody" if number % 2 else None,
            private=bool(number % 2),
        )
        for number in range(30)
    ]
    return [*found, MemoryRecord(id="no vector", content="", created_at=DAY, last_accessed=DAY)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what CrewAI's own classes wrote; importing LanceDB and Qdrant-Edge takes seconds."""
    folder = tmp_path_factory.mktemp("crewai")
    lance = LanceDBStorage(folder / "memory", compact_every=0)
    lance.save(memories()[:20])
    lance.save(memories()[20:])
    lance.update(memories()[3].model_copy(update={"content": "updated"}))
    flows = SQLiteFlowPersistence(str(folder / "flow_states.db"))
    for step in range(5):
        flows.save_state("flow-1", f"step {step}", {"n": step, "text": "é"})
    flows.save_pending_feedback("flow-2", waits_for("flow-2"), {"asked": True})
    outputs = KickoffTaskOutputsSQLiteStorage(str(folder / "latest_kickoff_task_outputs.db"))
    for index in range(3):
        outputs.add(task(index), {"raw": f"output {index}"}, index, inputs={"topic": "sky"})
    with sqlite3.connect(folder / "long_term_memory_storage.db") as old:  # the statements of crewai 1.9.3
        old.execute(LONG_TERM)
        rows = [("task", json.dumps({"n": n, "suggestions": ["é"]}), str(n), n / 2) for n in range(4)] * 2
        put = "INSERT INTO long_term_memories (task_description, metadata, datetime, score) VALUES (?, ?, ?, ?)"
        old.executemany(put, rows)
    old.close()
    for number in range(3):
        parent = JsonProvider().checkpoint(json.dumps({"n": number}), str(folder / ".checkpoints"))
        JsonProvider().checkpoint(
            json.dumps({"fork": number}),
            str(folder / ".checkpoints"),
            parent_id=JsonProvider().extract_id(parent),
            branch="fork/one",
        )
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return copytree(made, tmp_path / "source")


def waits_for(flow: str) -> PendingFeedbackContext:
    return PendingFeedbackContext(
        flow_id=flow, flow_class="some.Flow", method_name="ask", method_output="x", message="go on?", requested_at=DAY
    )


def task(index: int) -> Any:
    return SimpleNamespace(id=f"task-{index}", key=f"key-{index}", expected_output="something")


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Return every file below a folder, with its time and its content."""
    files = [entry for entry in folder.rglob("*") if entry.is_file()]
    return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}


def checkpoints(place: str, branch: str = "main") -> str:
    """Return where the checkpoints of a branch lie, as SQL, in the order in which they were made."""
    table, order = ("crewai_checkpoints", "place") if "://" in place else ("checkpoints", "rowid")
    return f"{table} WHERE branch = '{branch}' ORDER BY {order}"


def dump(place: Path | str) -> list[str]:
    """Return what a database holds, but for what is derived, and numbers that tell in how many jobs it was filled."""
    with walpool.memory.open(place) as store:
        found = sorted(repr(record) for record in store.iterate())
    with walpool.get_pool(place) as pool:
        queries = (
            "SELECT flow_uuid, method_name, timestamp, state_json FROM flow_states ORDER BY flow_uuid, id",
            "SELECT task_id, output, inputs, timestamp FROM latest_kickoff_task_outputs ORDER BY task_id",
            "SELECT task_description, metadata, datetime, score FROM long_term_memories ORDER BY 1, 2, 3",
            "SELECT flow_uuid, context_json, state_json FROM pending_feedback ORDER BY flow_uuid",
            *(f"SELECT id, created_at, parent_id, branch, data FROM {checkpoints(str(place), b)}" for b in BRANCHES),
        )
        return found + [repr(row) for query in queries for row in pool.fetch(query)]


def by_table(report: CrewReport) -> dict[str, Any]:
    return {part.table: part for part in report.parts}


def test_everything_that_crewai_stored_is_there_afterwards_through_walpools_classes(made: Path, place: str) -> None:
    before = tree(made)
    steps: dict[str, list[tuple[int, int]]] = {}
    report = import_crewai(
        made, place, progress=lambda done, total, what: steps.setdefault(what, []).append((done, total))
    )
    assert tree(made) == before
    assert report.is_verified, report.as_dict()
    assert {part.table: (part.found, part.added) for part in report.parts} == {
        "flow states": (7, 7),
        "kickoff outputs": (3, 3),
        "long-term memories": (8, 8),
        "LanceDB memories": (31, 31),
        "JSON checkpoints": (6, 6),
    }
    assert all(part.read == part.stored and part.read.count == part.found for part in report.parts)
    assert all(told[0][0] == 0 and told[-1][0] == told[-1][1] > 0 for told in steps.values())
    assert set(steps) == set(by_table(report))

    storage = WalpoolStorage(place)
    for wanted in memories():
        found = storage.get_record(wanted.id)
        assert found is not None
        expected = wanted.model_copy(update={"content": "updated"}) if wanted.id.startswith("00000003") else wanted
        assert found.model_dump() == expected.model_dump()
        assert found.embedding is None if wanted.embedding is None else pack(found.embedding) == pack(wanted.embedding)
    flows = WalpoolFlowPersistence(place)
    assert flows.load_state("flow-1") == {"n": 4, "text": "é"}
    assert flows.load_pending_feedback("flow-2") == ({"asked": True}, waits_for("flow-2"))
    loaded = WalpoolKickoffStorage(place).load()
    assert loaded == KickoffTaskOutputsSQLiteStorage(str(made / "latest_kickoff_task_outputs.db")).load()
    lessons = WalpoolLongTermStorage(place).load("task", 10)
    assert lessons is not None
    assert [row["score"] for row in lessons] == [1.5, 1.5, 1.0, 1.0, 0.5, 0.5, 0, 0]
    with walpool.get_pool(place) as pool:
        main = pool.fetch(f"SELECT id, parent_id FROM {checkpoints(place, 'main')}")
        fork = pool.fetch(f"SELECT id, parent_id FROM {checkpoints(place, 'fork/one')}")
    provider = WalpoolCheckpointProvider()
    restored = [[json.loads(provider.from_checkpoint(f"{place}#{name}")) for name, _ in rows] for rows in (main, fork)]
    assert restored == [[{"n": 0}, {"n": 1}, {"n": 2}], [{"fork": 0}, {"fork": 1}, {"fork": 2}]]
    assert [parent for _, parent in main] == [None] * 3
    assert [parent for _, parent in fork] == [name for name, _ in main]


def test_second_run_adds_nothing_and_changes_nothing(made: Path, place: str) -> None:
    import_crewai(made, place)
    before = dump(place)
    report = import_crewai(made, place)
    assert report.is_verified
    assert report.added == 0
    assert sum(part.present for part in report.parts) == 55
    assert dump(place) == before


def test_dry_run_says_what_would_be_added_and_writes_nothing(made: Path, database: Path) -> None:
    report = import_crewai(made, database, dry_run=True)
    assert report.added == 55
    assert report.is_verified
    assert not database.exists()
    import_crewai(made, database)
    assert import_crewai(made, database, dry_run=True).added == 0


def test_search_finds_what_lancedb_finds_with_its_scores(made: Path, place: str) -> None:
    import_crewai(made, place)
    lance, ours = LanceDBStorage(made / "memory", compact_every=0), WalpoolStorage(place)
    for query in ([3.0, -1.0, 0.0], [29.0, 0.0, 0.5]):
        theirs = [(record.id, pytest.approx(score, rel=1e-5)) for record, score in lance.search(query, limit=8)]
        assert [(record.id, score) for record, score in ours.search(query, limit=8)] == theirs


# What has gone on


def test_flow_that_went_on_in_walpool_is_left_alone_and_one_that_went_on_in_crewai_goes_on(
    source: Path, place: str
) -> None:
    import_crewai(source, place)
    theirs = SQLiteFlowPersistence(str(source / "flow_states.db"))
    ours = WalpoolFlowPersistence(place)
    ours.save_state("flow-1", "later", {"n": "ours"})
    ours.clear_pending_feedback("flow-2")  # it was answered
    theirs.save_state("flow-3", "new", {"n": "theirs"})
    report = import_crewai(source, place)
    assert report.is_verified
    assert report.added == 1
    assert ours.load_state("flow-1") == {"n": "ours"}
    assert ours.load_pending_feedback("flow-2") is None
    assert ours.load_state("flow-3") == {"n": "theirs"}
    assert by_table(report)["flow states"].notes == ["flow 'flow-2': what it waited for was answered in the target"]
    theirs.save_state("flow-3", "newer", {"n": "theirs again"})
    theirs.save_state("flow-1", "newer", {"n": "theirs again"})
    report = import_crewai(source, place)
    assert [difference.subject for difference in by_table(report)["flow states"].differences] == ["flow 'flow-1'"]
    assert ours.load_state("flow-1") == {"n": "ours"}
    assert ours.load_state("flow-3") == {"n": "theirs again"}


def test_outputs_of_a_later_kickoff_are_not_mixed_with_those_of_an_earlier_one(source: Path, place: str) -> None:
    import_crewai(source, place)
    ours = WalpoolKickoffStorage(place)
    ours.delete_all()
    ours.add(task(7), {"raw": "later"}, 0)
    report = import_crewai(source, place)
    assert report.is_verified
    assert "later kickoff" in by_table(report)["kickoff outputs"].notes[0]
    assert [row["task_id"] for row in ours.load()] == ["task-7"]
    with walpool.get_pool(place) as pool:
        pool.execute("UPDATE latest_kickoff_task_outputs SET timestamp = '2001-01-01 00:00:00'")
    assert not import_crewai(source, place).is_verified
    assert [row["task_id"] for row in ours.load()] == ["task-7"]


def test_memory_that_was_recalled_since_is_the_same_and_one_that_was_changed_is_left_alone(
    made: Path, place: str
) -> None:
    import_crewai(made, place)
    ours = WalpoolStorage(place)
    one, two = memories()[0], memories()[1]
    ours.touch_records([one.id])
    touched = ours.get_record(one.id)
    assert import_crewai(made, place).is_verified
    ours.update(two.model_copy(update={"content": "ours"}))
    report = import_crewai(made, place)
    assert by_table(report)["LanceDB memories"].differences == [
        (f"record {two.id!r}", "the target has it with other content: left alone")
    ]
    assert ours.get_record(one.id) == touched
    assert ours.get_record(two.id).content == "ours"  # type: ignore[union-attr]


def test_pruning_after_an_import_keeps_the_newest_checkpoints(source: Path, place: str) -> None:
    provider = WalpoolCheckpointProvider()
    later = provider.checkpoint('{"n": "later"}', place)
    import_crewai(source / ".checkpoints", place)
    assert provider.prune(place, 2) == 2
    with walpool.get_pool(place) as pool:
        kept = pool.fetch(f"SELECT data FROM {checkpoints(place)}")
    assert [json.loads(data)["n"] for (data,) in kept] == [2, "later"]
    assert provider.from_checkpoint(later) == '{"n": "later"}'


def test_checkpoints_of_sqlite_come_over_as_text_and_as_its_own_binary_json(tmp_path: Path, place: str) -> None:
    # Python's SQLite may be too old to write what SqliteProvider writes: walpool's own makes the file.
    with walpool.Pool(tmp_path / "crew.db") as pool:
        WalpoolCheckpointProvider().checkpoint('{"a": [1, 2.50, "é"]}', str(tmp_path / "crew.db"))
        put = "INSERT INTO checkpoints (id, created_at, branch, data) VALUES (?, ?, 'main', jsonb(?))"
        pool.execute(put, ("20260101T000000_0123abcd", "20260101T000000", '{"b": {"c": null}}'))
        put = put.replace("jsonb(?)", "?")
        pool.execute(put, ("20260101T000001_0123abcd", "20260101T000001", b"\xff\xff"))
        pool.execute(put, ("20260101T000002_0123abcd", "20260101T000002", '{"cut": '))
    report = import_crewai(tmp_path / "crew.db", place)
    subjects = [difference.subject for difference in report.parts[0].differences]
    assert sorted(subjects) == ["checkpoint '20260101T000001_0123abcd'", "checkpoint '20260101T000002_0123abcd'"]
    assert report.added == 2
    with walpool.get_pool(place) as pool:
        assert pool.fetch(f"SELECT data FROM {checkpoints(place)}") == [
            ('{"a": [1, 2.50, "é"]}',),
            ('{"b":{"c":null}}',),
        ]


# What cannot be taken


def test_what_cannot_be_taken_is_named_and_the_rest_goes_on(source: Path, place: str) -> None:
    lance = LanceDBStorage(source / "memory", compact_every=0)
    row = lance._record_to_row(memories()[0])
    bad: dict[str, dict[str, Any]] = {
        "infinite": {"vector": [float("inf"), 1.0, 2.0]},  # LanceDB refuses a NaN by itself
        "importance": {"importance": 7.0},
        "time": {"created_at": "yesterday"},
        "json": {"metadata_str": "{"},
        "list": {"metadata_str": "[1]"},
        "surrogate": {"metadata_str": json.dumps({"a": "\ud800"})},
    }
    fine = {**row, "id": "fine", "vector": [0.0, 0.0, -0.5]}
    rows = [fine, *({**row, "id": name, **fields} for name, fields in bad.items())]
    lance._table.add(rows)
    (source / ".checkpoints" / "main" / "20260101T000000_0123abcd_p-none.json").write_text('{"cut')
    with sqlite3.connect(source / "flow_states.db") as flows:
        put = "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json) VALUES (?, 'm', '1', ?)"
        flows.execute(put, ("flow-1", "{}"))
        flows.execute(put.replace("?)", "CAST(x'ff' AS TEXT))"), ("flow-1",))
    flows.close()
    report = import_crewai(source, place)
    parts = by_table(report)
    named = {difference.subject for difference in parts["LanceDB memories"].differences}
    assert named == {f"record {name!r}" for name in bad}
    assert parts["LanceDB memories"].added == 32
    assert parts["LanceDB memories"].read == parts["LanceDB memories"].stored
    assert [d.subject for d in parts["JSON checkpoints"].differences] == ["checkpoint '20260101T000000_0123abcd'"]
    assert [d.said for d in parts["flow states"].differences] == ["a text of it is no UTF-8"]
    assert parts["flow states"].added == 8
    assert WalpoolStorage(place).get_record("fine") is not None


def test_embeddings_of_another_length_are_refused_one_by_one(made: Path, place: str) -> None:
    WalpoolStorage(place).save([MemoryRecord(content="here before", embedding=[1.0, 2.0])])
    report = import_crewai(made, place)
    part = by_table(report)["LanceDB memories"]
    assert part.added == 1  # the one that has no embedding
    assert len(part.differences) == 30
    assert {difference.said for difference in part.differences} == {
        "this store holds embeddings of 2 dims, and one of 3 was given"
    }


def test_of_several_rows_of_one_id_the_newest_is_taken(tmp_path: Path, place: str) -> None:
    lance = LanceDBStorage(tmp_path / "memory", compact_every=0)
    for number, at in ((1, DAY), (3, DAY + timedelta(days=2)), (2, DAY + timedelta(days=1))):
        lance.save([MemoryRecord(id="one", content=str(number), created_at=at, last_accessed=at, embedding=[number])])
    report = import_crewai(tmp_path / "memory", place)
    assert report.is_verified
    assert (report.parts[0].found, report.parts[0].added, report.parts[0].superseded) == (3, 1, 2)
    found = WalpoolStorage(place).get_record("one")
    assert found is not None
    assert found.content == "3"


# Qdrant-Edge


def test_memories_of_qdrant_edge_come_over_from_the_central_shard_and_from_those_of_processes(
    tmp_path: Path, database: Path
) -> None:
    pytest.importorskip("qdrant_edge")
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    folder = tmp_path / "memory" / "qdrant-edge"
    first = QdrantEdgeStorage(folder)
    first.save(memories())
    first.close()  # to the central shard
    second = QdrantEdgeStorage(folder)
    newer = {"content": "newer", "last_accessed": DAY + timedelta(days=5)}
    second.save(
        [memories()[0].model_copy(update=newer), MemoryRecord(id="own", content="own", embedding=[0, 3.0, 4.0])]
    )
    before = tree(folder)
    try:
        report = import_crewai(folder, database)
        assert import_crewai(tmp_path, database).added == 0
    finally:
        second.close()
    assert before
    assert report.is_verified, report.as_dict()
    part = by_table(report)["Qdrant-Edge memories"]
    assert (part.found, part.added, part.superseded) == (33, 32, 1)
    storage = WalpoolStorage(str(database))
    assert storage.get_record(memories()[0].id).content == "newer"  # type: ignore[union-attr]
    found = storage.get_record("own")
    assert found is not None
    assert found.embedding == pytest.approx([0, 0.6, 0.8])  # Qdrant-Edge keeps directions
    assert storage.get_record("no vector").embedding is None  # type: ignore[union-attr]


# Files of others


def test_source_that_is_being_written_is_read_as_one_snapshot(source: Path, database: Path) -> None:
    # A connection that keeps its WAL, as a running crew has: what it committed is not in the file yet.
    writer = sqlite3.connect(source / "flow_states.db", isolation_level=None)
    try:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("PRAGMA wal_autocheckpoint=0")
        put = "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json) VALUES ('wal', 'm', '1', '{}')"
        writer.execute(put)
        writer.execute("BEGIN")
        writer.execute(put)
        report = import_crewai(source / "flow_states.db", database)
        assert report.is_verified
        assert report.added == 8
        writer.execute("COMMIT")
    finally:
        writer.close()
    assert import_crewai(source / "flow_states.db", database).added == 1


def test_damaged_file_costs_itself_and_no_other(source: Path, database: Path) -> None:
    content = bytearray((source / "flow_states.db").read_bytes())
    content[4096:] = b"\x55" * len(content[4096:])
    (source / "flow_states.db").write_bytes(content)
    report = import_crewai(source, database)
    damaged = next(part for part in report.parts if part.source.endswith("flow_states.db"))
    assert "damaged" in damaged.differences[0].said
    assert report.added == 48


def test_walpools_own_database_and_databases_of_others_are_no_source(source: Path, database: Path) -> None:
    with walpool.Pool(source / "walpool.db"):
        WalpoolFlowPersistence(str(source / "walpool.db")).save_state("ours", "m", {})
    with sqlite3.connect(source / "other.db") as other:
        other.execute("CREATE TABLE checkpoints (thread_id, checkpoint)")
    other.close()
    report = import_crewai(source, database)
    assert report.is_verified
    assert not any(part.source.endswith(("walpool.db", "other.db")) for part in report.parts)


def test_source_and_target_are_two_files(source: Path) -> None:
    with pytest.raises(ConfigError, match="another file than its source"):
        import_crewai(source / "flow_states.db", source / "flow_states.db")
    with pytest.raises(ConfigError, match="nothing to import from"):
        import_crewai(source / "not there", source / "t.db")
    (source / "empty").mkdir()
    with pytest.raises(ConfigError, match="nothing that CrewAI stored was found"):
        import_crewai(source / "empty", source / "t.db")


def test_default_is_where_crewai_keeps_this_projects_data(
    made: Path, storage_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(made, storage_folder)
    monkeypatch.chdir(tmp_path)
    JsonProvider().checkpoint('{"of": "this folder"}', ".checkpoints")
    report = import_crewai()
    assert report.is_verified
    assert report.target == str(storage_folder / "walpool.db")
    assert report.added == 56
    assert import_crewai().added == 0


# The command line


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "walpool", "import", "crewai", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def test_command_prints_each_table_its_counts_and_checksum(
    made: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", "crewai", str(made), "--into", str(database)]) == 0
    printed = capsys.readouterr()
    assert "LanceDB memories: 31 found, 31 added; 31 read back, checksum " in printed.out
    assert printed.out.endswith(f"55 added to {database}\n")
    assert printed.err == ""
    assert cli.main(["import", "crewai", str(made), "--into", str(database)]) == 0
    assert capsys.readouterr().out.endswith(f"nothing new for {database}\n")
    assert cli.main(["import", "crewai", str(made), "--into", str(database), "--json", "--dry-run"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["added"], document["dry_run"], document["verified"]) == (0, True, True)


def test_command_lists_differences_with_1_and_a_wrong_source_with_2(
    source: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / ".checkpoints" / "main" / "20260101T000000_0123abcd_p-none.json").write_text('{"cut')
    assert cli.main(["import", "crewai", str(source / ".checkpoints"), "--into", str(database)]) == 1
    printed = capsys.readouterr()
    assert "checkpoint '20260101T000000_0123abcd': its data is no JSON: was it cut off" in printed.out
    assert printed.err == "walpool: error: 1 of the source are not in the target as they are there\n"
    assert cli.main(["import", "crewai", str(source / "none"), "--into", str(database)]) == 2
    assert "nothing to import from" in capsys.readouterr().err


# SIGKILL


KILLED = """
import os, signal, sys
from walpool.crewai import import_crewai
import walpool.pool

jobs, batch = 0, walpool.pool.Pool.batch
def counted(pool, *args, **kwargs):
    global jobs
    jobs += 1
    if jobs == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(pool, *args, **kwargs)
walpool.pool.Pool.batch = counted
import walpool.copying._records as records
import walpool.copying._report as report
records._CHUNK, report._JOB_BYTES = 4, 60  # many small jobs
import_crewai(sys.argv[1], sys.argv[2])
print(jobs)
"""


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_import_that_was_killed_and_run_again_ends_as_one_that_was_not(
    made: Path, tmp_path: Path, database: Path, torture: Any
) -> None:
    whole = tmp_path / "whole.db"
    import_crewai(made, whole)
    wanted = dump(whole)
    places = torture.size((2, 9), tuple(range(1, 30)))
    for number in places:
        target = database.with_name(f"killed-{number}.db")
        command = [sys.executable, "-W", "ignore", "-c", KILLED, str(made), str(target), str(number)]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        report = import_crewai(made, target)
        assert report.is_verified
        assert dump(target) == wanted
    torture.tell(
        "SIGKILL during an import from CrewAI", tried=len(torture.size((2, 9), range(1, 30))), unit="runs", lost=0
    )
