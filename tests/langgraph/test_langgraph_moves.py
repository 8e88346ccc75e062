"""`walpool migrate` with savers, stores and caches: what one backend answers the other does, both ways."""

from __future__ import annotations

import json
import signal
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.graph")

import scripted_agent
from delta_graph import rebuilt, run_graph, state
from helpers import start_python
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import PutOp
from savers import Face, Run, checkpoint, opened_saver, thread
from stores import INDEX, opened_store

import walpool
from walpool import cli
from walpool.langgraph import WalpoolCache, WalpoolSaver, WalpoolStore
from walpool.migrating import migration

pytestmark = pytest.mark.postgres

STILL: Any = {"refresh_on_read": False}


class Texts(SerializerProtocol):
    """A serializer that gives text for what is a str, where others give bytes."""

    def __init__(self, inner: SerializerProtocol) -> None:
        self.inner = inner

    def dumps_typed(self, obj: Any) -> Any:
        return ("text", obj) if isinstance(obj, str) else self.inner.dumps_typed(obj)

    def loads_typed(self, data: Any) -> Any:
        if data[0] == "text":
            assert isinstance(data[1], str)
            return data[1]
        return self.inner.loads_typed(data)


@pytest.fixture
def back(tmp_path: Path) -> str:
    return str(tmp_path / "back.db")


def migrate(*arguments: Any) -> int:
    return cli.main(["migrate", *map(str, arguments)])


def answers(face: Face) -> list[Any]:
    """Return all that a saver says: lists, checkpoints, the latest of each thread, what channels are built of."""
    listed = face.list(None)
    threads = {found.config["configurable"]["thread_id"] for found in listed}
    of_runs = face.list(None, filter={"run_id": "run-1"})
    latest = [(name, face.get_tuple(thread(name))) for name in sorted(threads)]
    return [listed, of_runs, latest, *((face.get_tuple(f.config), rebuilt(face, f.config)) for f in listed)]


def write_threads(face: Face) -> None:
    """Store threads of every kind: agents, delta channels, runs, namespaces, copies, early writes, stray values."""
    for turn in range(3):
        run_graph(face, thread("deltas"), metadata={"run_id": f"run-{turn}"})
    scripted_agent.agent(face.saver).invoke(scripted_agent.question("some words to look up"), thread("agent"))
    face.copy_thread("deltas", "copy")
    run = Run(face, thread("steps", "child|1"))
    run.put(long="ünïcode \U0001f600 " * 40, numbers=[1, 2.5, None])
    run.put(long="another text " * 40)
    again = {**checkpoint(), "id": run.config["configurable"]["checkpoint_id"], "channel_values": {"short": 1}}
    face.put(thread("steps", "child|1"), again, {"source": "update", "step": 1, "parents": {}}, {})
    face.put_writes(thread("steps", "", str(checkpoint()["id"])), [("early", ["write"]), ("text", "text")], "task")
    tip = run.put(touched=("numbers", "long"))
    face.put_writes(tip, [("a", {"b": 1}), ("__error__", "what")], "task", "path")


def test_threads_are_answered_alike_on_either_side_and_gone_on_with(
    database: Path, postgres_url: str, back: str
) -> None:
    with opened_saver("sync", database) as face:
        write_threads(face)
        expected = answers(face)
    assert migrate(database, postgres_url) == 0
    with opened_saver("sync", postgres_url) as face:
        assert answers(face) == expected
        total = state(face, thread("deltas"))["total"]
        assert run_graph(face, thread("deltas"), metadata={"run_id": "run-9"})["total"] == total + 3
        scripted_agent.agent(face.saver).invoke(scripted_agent.question("more"), thread("agent"))
        face.put_writes(thread("nowhere", "", str(checkpoint()["id"])), [("early", ["write"])], "task")
        expected = answers(face)
    assert migrate(postgres_url, back) == 0
    with opened_saver("sync", back) as face:
        assert answers(face) == expected
        assert run_graph(face, thread("deltas"))["total"] == total + 6


@pytest.mark.parametrize("direction", ["to_postgres", "to_sqlite"])
def test_thread_that_was_moved_is_pruned_and_deleted_as_where_it_came_from(
    database: Path, postgres_url: str, back: str, direction: str
) -> None:
    source, target = (str(database), postgres_url) if direction == "to_postgres" else (postgres_url, back)
    with opened_saver("sync", source) as face:
        write_threads(face)
        face.put_writes(thread("nowhere", "", str(checkpoint()["id"])), [("early", ["write"])], "task")
    assert migrate(source, target) == 0
    kept = []
    for place in (source, target):
        with opened_saver("sync", place) as face:
            face.prune(["deltas", "copy"])
            face.delete_for_runs(["run-1"])
            kept.append(answers(face))
            for name in ("deltas", "copy", "agent", "steps", "nowhere"):
                face.delete_thread(name)
            assert [face.rows(table) for table in ("checkpoints", "blobs", "writes")] == [0, 0, 0]
    assert kept[0] == kept[1]


def test_values_that_a_serializer_gives_as_text_stay_text(database: Path, postgres_url: str, back: str) -> None:
    def opened(place: Any) -> Any:
        saver = WalpoolSaver(place)
        saver.serde = Texts(saver.serde)
        return saver

    with opened(database) as saver:
        config = saver.put(
            thread(),
            {**checkpoint(long="text \U0001f600 " * 20), "channel_versions": {"long": "1"}},
            {"source": "loop", "step": 0, "parents": {}},
            {"long": "1"},
        )
        saver.put_writes(config, [("text", "a text"), ("number", 1)], "task")
        expected = saver.get_tuple(config)
    assert migrate(database, postgres_url) == 0
    assert migrate(postgres_url, back) == 0
    for place in (postgres_url, back):
        with opened(place) as saver:
            assert saver.get_tuple(config) == expected


def found(store: Any) -> list[Any]:
    """Return all that a store says."""
    queries = [store.search((), limit=100)]
    queries += [store.search(("docs",), query=query, limit=100) for query in ("aab", "e", "bcd")]
    queries += [store.search((), filter={"kind": "even"}, limit=5, offset=3), store.list_namespaces()]
    told = [scores(items) for items in queries[1:4]]
    return [*queries, *told, store.get(("docs",), "3"), store.get(("docs", "deep"), "both")]


def scores(items: Any) -> dict[tuple[Any, ...], Any]:
    """Return the score of each item; the backends differ in the last digits."""
    return {(*item.namespace, item.key): item.score and round(item.score, 12) for item in items}


def write_items(store: Any) -> None:
    """Put items: many at one moment, so that only their order tells them apart, with no, one and several vectors."""
    store.batch(
        [
            PutOp(("docs",), str(n), {"text": "abcde"[n % 5] * (n % 4), "kind": "even" if n % 2 == 0 else "odd"})
            for n in reversed(range(40))
        ]
    )
    store.put(("docs", "deep"), "both", {"text": ["aa", "bc", "e"]}, index=["text[*]"])
    store.put(("docs",), "3", {"text": "bbb ünïcode \U0001f600", "kind": None}, ttl=60)
    store.put(("other",), "plain", {"text": "a"}, index=False)
    store.delete(("docs",), "4")


@pytest.mark.parametrize("index", [None, INDEX], ids=["plain", "indexed"])
def test_items_are_answered_alike_on_either_side_and_gone_on_with(
    database: Path, postgres_url: str, back: str, index: Any
) -> None:
    with opened_store("sync", database, index=index) as store:
        write_items(store)
        expected = found(store)
    assert migrate(database, postgres_url) == 0
    with opened_store("sync", postgres_url, index=index) as store:
        assert found(store) == expected
        write_items(store)
        store.put(("docs",), "new", {"text": "dd"})
        expected = found(store)
    assert migrate(postgres_url, back) == 0
    with opened_store("sync", back, index=index) as store:
        assert found(store) == expected
        store.put(("docs",), "3", {"text": "ccc"})
        assert store.search((), limit=1)[0].key == "3"
        for item in store.search((), limit=100):
            store.delete(item.namespace, item.key)
    with walpool.Pool(back) as pool:
        assert pool.fetchval("SELECT count(*) FROM langgraph_vectors") == 0
        assert pool.fetchval("SELECT count(*) FROM langgraph_sketches WHERE gone = 0") == 0


def test_cache_answers_alike_on_either_side(database: Path, postgres_url: str, back: str) -> None:
    keys = [(("a", "b"), "1"), (("a",), "1"), ((), "ü\n")]
    with WalpoolCache[Any](database) as cache:
        cache.set({keys[0]: ([1, "x"], None), keys[1]: ({"b": b"\0\xff"}, 3600), keys[2]: ("text", 7200)})
        expected = cache.get(keys)
    assert len(expected) == 3
    assert migrate(database, postgres_url) == 0
    assert migrate(postgres_url, back) == 0
    for place in (postgres_url, back):
        with WalpoolCache[Any](place) as cache:
            assert cache.get(keys) == expected
            cache.clear([("a",)])
            assert list(cache.get(keys)) == [keys[0], keys[2]]


# Ends itself at the step of that number: before or after each statement, COPY and COMMIT.
ENDS_ITSELF = """
    import os, signal, sys

    from walpool import cli
    from walpool.migrating._sqlite import SqliteSide
    from walpool.migrating.plan import Table
    from walpool.postgres import Bulk

    Table.page = property(lambda table: 20)
    left = int(sys.argv[1])

    def stepping(owner, name):
        method = getattr(owner, name)
        def stepped(*args, **named):
            global left
            for when in ("before", "after"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if when == "before":
                    result = method(*args, **named)
            return result
        setattr(owner, name, stepped)

    for owner, names in ((Bulk, ("execute", "executemany", "copy_in", "_commit")), (SqliteSide, ("execute", "_write"))):
        for name in names:
            stepping(owner, name)
    sys.exit(cli.main(["migrate", *sys.argv[2:], "--resume"]))
"""


@pytest.mark.crash
@pytest.mark.timeout(300)
@pytest.mark.parametrize("direction", ["to_postgres", "to_sqlite"])
def test_migration_of_sets_killed_again_and_again_goes_on_to_equal_answers(
    database: Path, postgres_url: str, back: str, direction: str
) -> None:
    source, target = (str(database), postgres_url) if direction == "to_postgres" else (postgres_url, back)
    with opened_saver("sync", source) as face, opened_store("sync", source, index=INDEX) as store:
        write_threads(face)
        write_items(store)
        expected = answers(face), found(store)
    kills = 0
    while True:
        process = start_python(ENDS_ITSELF, 31 * (kills + 1), source, target)
        _, errors = process.communicate(timeout=120)
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
    assert (process.returncode, errors) == (0, "")
    assert kills >= 2
    with opened_saver("sync", target) as face, opened_store("sync", target, index=INDEX) as store:
        assert (answers(face), found(store)) == expected


@pytest.mark.parametrize("direction", ["to_postgres", "to_sqlite"])
def test_what_was_changed_in_the_target_is_found_and_repaired(
    database: Path, postgres_url: str, back: str, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = (str(database), postgres_url) if direction == "to_postgres" else (postgres_url, back)
    with opened_saver("sync", source) as face, opened_store("sync", source, index=INDEX, ttl=STILL) as store:
        write_threads(face)
        write_items(store)
        expected = answers(face), found(store)
    assert migrate(source, target) == 0
    with opened_saver("sync", target) as face, opened_store("sync", target, index=INDEX, ttl=STILL) as store:
        face.delete_thread("agent")
        face.put(thread("more"), checkpoint(), {}, {})
        run_graph(face, thread("deltas"))
        store.put(("docs",), "5", {"text": "changed"})
        store.put(("docs",), "9", {"text": "e", "kind": "its vector is the same"})
        store.put(("docs",), "6", {"text": ""}, index=False)
        store.put(("docs",), "extra", {"text": "e"})
        store.delete(("docs", "deep"), "both")
        assert (answers(face), found(store)) != expected
    capsys.readouterr()
    assert migrate(source, target, "--verify", "--json") == 1
    said = {table["name"]: table for table in json.loads(capsys.readouterr().out)["tables"]}
    differing = {
        name: [sorted(".".join(key) for key in said[name][how]) for how in ("missing", "changed", "extra")]
        for name in ("langgraph_items", "langgraph_vectors")
    }
    assert differing == {
        "langgraph_items": [["docs.deep.both"], ["docs.5", "docs.6", "docs.9"], ["docs.extra"]],
        "langgraph_vectors": [["docs.6", "docs.deep.both"], ["docs.5"], ["docs.extra"]],
    }
    assert migrate(source, target, "--repair") == 0
    with opened_saver("sync", target) as face, opened_store("sync", target, index=INDEX, ttl=STILL) as store:
        assert answers(face) == expected[0]
        by_key = [{item.key: item for item in items} for items in (found(store)[0], expected[1][0])]
        assert by_key[0] == by_key[1]  # what was deleted is written anew, behind what was put at the same moment
        assert [scores(items) for items in found(store)[1:4]] == [scores(items) for items in expected[1][1:4]]


def test_each_tenant_goes_by_itself(
    database: Path, postgres_url: str, back: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with WalpoolStore(database) as store:
        store.put(("n",), "k", {"of": "ann"})
    with WalpoolStore(postgres_url, tenant="bob") as store:
        store.put(("n",), "k", {"of": "bob"})
    assert migrate(database, postgres_url, "--tenant", "ann") == 2  # not empty
    assert migrate(database, postgres_url, "--tenant", "ann", "--force") == 0
    assert migrate(database, postgres_url, "--verify") == 2
    assert "another tenant" in capsys.readouterr().err
    for tenant in ("ann", "bob"):
        with WalpoolStore(postgres_url, tenant=tenant) as store:
            assert [item.value for item in store.search(())] == [{"of": tenant}]
    assert migrate(postgres_url, back, "--tenant", "bob") == 0
    assert "rows of other tenants" in capsys.readouterr().out
    with WalpoolStore(back) as store:
        assert [item.value for item in store.search(())] == [{"of": "bob"}]


def test_what_the_target_has_gone_on_with_is_left_alone(database: Path, postgres_url: str) -> None:
    with WalpoolStore(database, index=INDEX) as store:
        store.put(("n",), "old", {"text": "a"})
        store.put(("n",), "both", {"text": "b"})
    with WalpoolStore(postgres_url, index=INDEX) as store:
        store.put(("n",), "both", {"text": "newer"}, index=False)
    assert migrate(database, postgres_url, "--force") == 1
    with WalpoolStore(postgres_url, index=INDEX) as store:
        assert store.get(("n",), "both").value == {"text": "newer"}
        assert [item.key for item in store.search((), query="a")] == ["old", "both"]
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT key FROM langgraph_vectors") == [("old",)]


def test_plan_shows_the_sets_and_writes_nothing(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_saver("sync", database) as face, WalpoolStore(database) as store:
        face.put(thread(), checkpoint(), {}, {})
        store.put(("n",), "k", {"text": "a"})
    assert migrate(database, postgres_url, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  langgraph_checkpoints: 1 rows, key thread_id, checkpoint_ns, checkpoint_id" in lines
    assert "  langgraph_items: 1 rows, key namespace, key" in lines
    assert "  langgraph_vectors: left out: it has no rows" in lines
    assert not any("trigger" in line for line in lines)
    assert migrate(database, postgres_url, "--tables", "langgraph_items", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [table["name"] for table in document["plan"]["tables"]] == ["langgraph_items"]
    with walpool.get_pool(postgres_url) as pool:
        names = {name for (name,) in pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert names == {"langgraph_items", "walpool_migration", "walpool_schema"}


def test_what_the_target_cannot_take_of_a_set_is_found_first(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with WalpoolStore(database) as store:
        store.put(("n",), "k\0", {"text": "a"})
    assert migrate(database, postgres_url) == 2
    assert "bad: langgraph_items.key" in capsys.readouterr().out
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0.5] * 16_001, "an embedding of 16001 dims: pgvector holds 16000 at most"),
        ([0.5] * 70_000, "an embedding of 70000 dims"),
        ([], "a BLOB that is no embedding of float32"),
    ],
)
def test_vector_that_pgvector_does_not_hold_is_found_first_and_left_out_when_told(
    database: Path,
    postgres_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    numbers: list[float],
    said: str,
) -> None:
    with WalpoolStore(database, index=INDEX) as store:
        store.put(("n",), "good", {"text": "a"})
        store.put(("n",), "odd", {"text": "b"})
    with walpool.Pool(database) as pool:
        packed = struct.pack(f"<{len(numbers)}f", *numbers)
        odd = "(SELECT id << 16 FROM langgraph_items WHERE key = 'odd')"
        assert pool.execute(f"UPDATE langgraph_vectors SET embedding = ? WHERE id = {odd}", (packed,)).rowcount == 1
    assert migrate(database, postgres_url) == 2
    assert f'bad: langgraph_vectors.embedding, key ["n", "odd"]: {said}' in capsys.readouterr().out
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    assert migrate(database, postgres_url, "--on-bad", "skip-to-file", tmp_path / "bad.jsonl") == 0
    with walpool.get_pool(postgres_url) as pool:
        assert pool.fetch("SELECT key FROM langgraph_vectors") == [("good",)]
        assert pool.fetch("SELECT count(*) FROM langgraph_items") == [(2,)]


def test_vectors_are_refused_where_there_is_no_pgvector(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from walpool.langgraph import moving

    query, said = moving.VECTORS.needs or ("", "")
    items, vectors = moving.SETS["langgraph_store"]
    lacking = type(vectors)(parts=vectors.parts, schemas=vectors.schemas, needs=(f"SELECT NOT ({query})", said))
    monkeypatch.setattr(moving, "SETS", {**moving.SETS, "langgraph_store": (items, lacking)})
    with WalpoolStore(database, index=INDEX) as store:
        store.put(("n",), "k", {"text": "a"})
    assert migrate(database, postgres_url) == 2
    assert "pgvector" in capsys.readouterr().err


def test_table_of_somebody_elses_is_not_written_to(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with WalpoolStore(database) as store:
        store.put(("n",), "k", {"text": "a"})
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE langgraph_items (id int)")
    assert migrate(database, postgres_url, "--force") == 2
    assert "is not walpool's" in capsys.readouterr().err


def test_newer_tables_are_refused_by_name(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with WalpoolStore(database) as store:
        store.put(("n",), "k", {"text": "a"})
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE walpool_schema SET version = 99")
    assert migrate(database, postgres_url) == 2
    assert "another version of walpool: upgrade walpool" in capsys.readouterr().err


@pytest.mark.parametrize("direction", ["to_postgres", "to_sqlite"])
def test_what_is_put_during_a_live_migration_is_there_at_its_end(
    database: Path, postgres_url: str, back: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (str(database), postgres_url) if direction == "to_postgres" else (postgres_url, back)
    with opened_saver("sync", source) as face, opened_store("sync", source, index=INDEX) as store:
        write_threads(face)
        write_items(store)

    def copy_and_write(*arguments: Any) -> Any:
        copied = copy(*arguments)
        if arguments[2].name == "langgraph_vectors":
            with opened_saver("sync", source) as face, opened_store("sync", source, index=INDEX) as store:
                run_graph(face, thread("deltas"))
                face.delete_thread("agent")
                face.put_writes(thread("nowhere", "", str(checkpoint()["id"])), [("early", ["write"])], "task")
                store.put(("docs",), "5", {"text": "b", "kind": "odd"})
                store.put(("docs",), "new", {"text": "c"})
                store.delete(("docs",), "7")
        return copied

    copy = migration.copy
    monkeypatch.setattr(migration, "copy", copy_and_write)
    assert migrate(source, target, "--live") == 0
    told = []
    for place in (source, target):
        with opened_saver("sync", place) as face, opened_store("sync", place, index=INDEX) as store:
            told.append((answers(face), found(store), face.rows("writes")))
            face.delete_thread("nowhere")
            assert face.rows("writes") == told[-1][-1] - 1
    assert told[0] == told[1]


def test_sets_of_a_framework_that_is_not_installed_are_left_out_by_name(
    database: Path, postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name="langgraph")

    with WalpoolStore(database) as store:
        store.put(("n",), "k", {"text": "a"})
    monkeypatch.setattr("walpool.cli._migrate.import_module", lacking)
    assert migrate(database, postgres_url) == 0
    said = "langgraph_items: left out: of walpool's set langgraph_store, which needs a package that is not installed"
    assert f"  {said}: langgraph" in capsys.readouterr().out.splitlines()


def test_delta_channels_are_known_by_name_whatever_else_the_metadata_holds(database: Path, postgres_url: str) -> None:
    counting = {"counters_since_delta_snapshot": {"log": (1, 1), "never": (0, 1)}, "odd": "\0 \ud83d"}
    with opened_saver("sync", database) as face:
        run = Run(face)
        root = run.put(metadata=counting, log=["the seed " * 20])
        face.put_writes(root, [("log", ["from the root"])], "task")
        tip = run.put(metadata=counting, touched=("log",))
        run.put(other=1)
    assert migrate(database, postgres_url) == 0
    with walpool.get_pool(postgres_url) as pool:
        said = [deltas for (deltas,) in pool.fetch("SELECT deltas FROM langgraph_checkpoints ORDER BY checkpoint_id")]
    assert [json.loads(names) for names in said] == [["log"], ["log"], []]
    with opened_saver("sync", postgres_url) as face:
        face.prune(["t"])
        assert len(face.list(thread())) == 3
        assert face.get_delta_channel_history(config=tip, channels=["log"])["log"]["seed"] == ["the seed " * 20]
