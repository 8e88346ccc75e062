"""`import_sqlite` and `walpool import langgraph`, from databases that langgraph-checkpoint-sqlite wrote."""

from __future__ import annotations

import json
import operator
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langgraph.checkpoint.sqlite")

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.store.sqlite import SqliteStore
from langgraph.types import interrupt
from stores import INDEX, keys, letters

import walpool
from walpool import cli
from walpool.langgraph import WalpoolSaver, WalpoolStore, import_sqlite
from walpool.memory import pack

THREADS = ("ada", "grace", "alan")


class State(TypedDict):
    notes: Annotated[list[Any], operator.add]
    blob: bytes


def graph_on(saver: Any) -> Any:
    def work(state: State) -> Any:
        return {"notes": [AIMessage(f"step {len(state['notes'])}")], "blob": b"\x00\xff"}

    def ask(state: State) -> Any:
        return {"notes": [interrupt("go on?")]}

    inner = StateGraph(State).add_node("work", work).add_edge(START, "work").add_edge("work", END).compile()
    builder = StateGraph(State).add_node("work", work).add_node("inner", inner).add_node("ask", ask)
    builder.add_edge(START, "work").add_edge("work", "inner").add_edge("inner", "ask").add_edge("ask", END)
    return builder.compile(checkpointer=saver)


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a database of langgraph-checkpoint-sqlite: threads that wait at an interrupt, namespaces, and a store."""
    path = tmp_path / "source.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        for thread in THREADS:
            graph_on(saver).invoke({"notes": ["begin"], "blob": b""}, config(thread))
        other: Any = {"configurable": {"thread_id": "ada", "checkpoint_ns": "sub|1"}}
        put = saver.put(other, empty_checkpoint(), {"source": "input", "step": 0, "parents": {}}, {})
        saver.put_writes(put, [("notes", ["pending"]), ("__error__", "boom")], "task-1", "path")
    with SqliteStore.from_conn_string(str(path)) as store:
        store.put(("docs", "a"), "one", {"text": "aab", "n": 1})
        store.put(("docs",), "two", {"text": "b", "née": [None, 1.5]}, ttl=60)
        # Its vectors as it writes them with an index: that needs a Python that loads extensions, and not all do.
        for statement in store.VECTOR_MIGRATIONS:
            store.conn.execute(statement)
        rows = [("docs.a", "one", "text", pack(letters("aab"))), ("docs", "two", "text", pack(letters("b")))]
        put = "INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES (?, ?, ?, ?)"
        store.conn.executemany(put, rows)
    return path


def everything(saver: Any) -> list[Any]:
    found = []
    for at in sorted(saver.list(None), key=lambda at: repr(at.config)):
        checkpoint = dict(at.checkpoint)
        checkpoint["channel_values"] = sorted(checkpoint["channel_values"].items())
        checkpoint["channel_versions"] = sorted(checkpoint["channel_versions"].items())
        writes = sorted(at.pending_writes or (), key=repr)
        found.append((at.config, sorted(checkpoint.items()), sorted(at.metadata.items()), at.parent_config, writes))
    return found


TABLES = {
    "sqlite": "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name",
    "postgres": "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename",
}


def dump(place: str) -> list[str]:
    with walpool.get_pool(place) as pool:
        tables = [name for (name,) in pool.fetch(TABLES[pool.backend])]
        return [repr((name, sorted(map(repr, pool.fetch(f"SELECT * FROM {name}"))))) for name in tables]


def test_import_copies_all_threads_and_graphs_go_on_from_them(source: Path, place: str) -> None:
    steps: list[tuple[int, int]] = []
    report = import_sqlite(source, place, progress=lambda done, total: steps.append((done, total)))
    assert report.differences == []
    assert (report.threads, report.items, report.vectors) == (3, 2, 2)
    assert report.added == report.checkpoints + report.writes + report.items
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1] > 0
    with SqliteSaver.from_conn_string(str(source)) as stock, WalpoolSaver(place) as saver:
        assert everything(saver) == everything(stock)
        from langgraph.types import Command

        done = graph_on(saver).invoke(Command(resume="yes"), config("grace"))
        assert done["notes"][-1] == "yes"


def test_import_copies_the_store_with_its_vectors_times_and_ttls(source: Path, place: str) -> None:
    import_sqlite(source, place)
    with SqliteStore.from_conn_string(str(source)) as stock, WalpoolStore(place, index=INDEX) as store:
        assert keys(store.search((), query="a")) == ["one", "two"]
        for namespace, key in ((("docs", "a"), "one"), (("docs",), "two")):
            mine, theirs = store.get(namespace, key), stock.get(namespace, key)
            assert mine is not None
            assert theirs is not None
            assert mine.value == theirs.value
            assert mine.updated_at.replace(tzinfo=None) == theirs.updated_at
    with walpool.get_pool(place) as pool:
        assert pool.fetchval("SELECT ttl FROM langgraph_items WHERE key = 'two'") == 60 * 60 * 1_000_000


def test_import_run_again_changes_nothing(source: Path, place: str) -> None:
    import_sqlite(source, place)
    before, of_source = dump(place), source.read_bytes()
    report = import_sqlite(source, place)
    assert (report.added, report.differences) == (0, [])
    assert dump(place) == before
    assert source.read_bytes() == of_source


def test_import_leaves_a_thread_alone_that_has_gone_on_unless_told_to_overwrite(source: Path, place: str) -> None:
    import_sqlite(source, place)
    with WalpoolSaver(place) as saver:
        graph_on(saver).update_state(config("ada"), {"notes": ["later"]})
        later = everything(saver)
    report = import_sqlite(source, place)
    assert [difference.subject for difference in report.differences] == ["thread 'ada'"]
    with SqliteSaver.from_conn_string(str(source)) as stock, WalpoolSaver(place) as saver:
        assert everything(saver) == later
        assert import_sqlite(source, place, overwrite=True).differences == []
        assert everything(saver) == everything(stock)


def test_import_tells_what_differs_and_overwrites_it_when_told(source: Path, place: str) -> None:
    import_sqlite(source, place)
    with walpool.get_pool(place) as pool:
        pool.execute("UPDATE langgraph_checkpoints SET metadata = '{}' WHERE thread_id = 'alan'")
        pool.execute("UPDATE langgraph_writes SET value = ? WHERE thread_id = 'grace'", (b"\0",))
        pool.execute("UPDATE langgraph_items SET value = '{}' WHERE key = 'one'")
    said = {difference.subject: difference.said for difference in import_sqlite(source, place).differences}
    assert sorted(said) == ["item docs.a 'one'", "thread 'alan'", "thread 'grace'"]
    assert "metadata" in said["thread 'alan'"]
    assert import_sqlite(source, place, overwrite=True).differences == []
    with SqliteSaver.from_conn_string(str(source)) as stock, WalpoolSaver(place) as saver:
        assert everything(saver) == everything(stock)


@pytest.mark.crash
def test_import_that_was_killed_goes_on_when_it_is_run_again(source: Path, place: str) -> None:
    program = """
import os, signal, sys
import walpool.copying._report as report
from walpool.langgraph import _import
report._JOB_BYTES = 1  # a job for each row
def kill(done, total):
    if done * 4 > total:
        os.kill(os.getpid(), signal.SIGKILL)
_import.import_sqlite(sys.argv[1], sys.argv[2], progress=kill)
"""
    killed = subprocess.run([sys.executable, "-c", program, source, place], check=False, timeout=60)
    assert killed.returncode < 0
    with walpool.get_pool(place) as pool:
        there = pool.fetchval("SELECT count(*) FROM langgraph_checkpoints")
    report = import_sqlite(source, place)
    assert report.differences == []
    assert 0 < there < report.checkpoints
    with SqliteSaver.from_conn_string(str(source)) as stock, WalpoolSaver(place) as saver:
        assert everything(saver) == everything(stock)


def test_damaged_source_is_refused_with_a_clear_error(source: Path, database: Path) -> None:
    sqlite3.connect(source).close()  # moves what a WAL may hold into the file
    content = bytearray(source.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    source.write_bytes(content)
    with pytest.raises(walpool.CorruptError, match="source is damaged"):
        import_sqlite(source, database)
    assert not database.exists()


def test_source_that_is_none_is_refused(tmp_path: Path, database: Path) -> None:
    with pytest.raises(walpool.StorageError, match="no file"):
        import_sqlite(tmp_path / "absent", database)
    (tmp_path / "text").write_text("no database, " * 1000)
    with pytest.raises(walpool.CorruptError):
        import_sqlite(tmp_path / "text", database)
    with walpool.Pool(tmp_path / "other") as pool:
        pool.execute("CREATE TABLE checkpoints (id)")
    with pytest.raises(walpool.DataError, match="no tables"):
        import_sqlite(tmp_path / "other", database)
    assert not database.exists()


def test_source_and_target_are_two_files(source: Path) -> None:
    with pytest.raises(walpool.ConfigError, match="another file"):
        import_sqlite(source, source)


def test_checkpoints_of_another_serializer_are_reported_and_the_others_copied(source: Path, place: str) -> None:
    connection = sqlite3.connect(source)
    with connection:
        connection.execute("UPDATE checkpoints SET type = 'msgpack+aes' WHERE thread_id = 'ada'")
    connection.close()
    report = import_sqlite(source, place)
    assert [difference.subject for difference in report.differences] == ["thread 'ada'"]
    with WalpoolSaver(place) as saver:
        assert {at.config["configurable"]["thread_id"] for at in saver.list(None)} == {"grace", "alan"}


def test_command_imports_prints_json_and_fails_where_something_differs(
    source: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", "langgraph", str(source), place, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["threads"], printed["differences"]) == (3, [])
    with WalpoolSaver(place) as saver:
        graph_on(saver).update_state(config("ada"), {"notes": ["later"]})
    assert cli.main(["import", "langgraph", str(source), place]) == 1
    out, err = capsys.readouterr()
    assert "thread 'ada'" in out
    assert "1 of the threads and items" in err
    assert cli.main(["import", "langgraph", str(source), place, "--overwrite"]) == 0
