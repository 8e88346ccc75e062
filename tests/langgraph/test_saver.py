"""`WalpoolSaver` and `AsyncWalpoolSaver`: what the conformance kit does not ask, on both."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.sqlite")

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from langgraph.checkpoint.sqlite import SqliteSaver
from leftovers import engine_threads, open_descriptors, threads_left_since
from savers import KINDS, Face, Run, checkpoint, opened_saver, thread

import walpool
from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def face(kind: str, database: Path) -> Iterator[Face]:
    before = engine_threads()
    with opened_saver(kind, database) as opened:
        yield opened
    assert open_descriptors(database) == []
    assert threads_left_since(before) == {}


VALUES = {
    "none": None,
    "flag": True,
    "big": 2**63 - 1,
    "small": -(2**63),
    "real": 0.1 + 0.2,
    "short": "ä\x00\U0001f600",
    "long": "ä\x00\U0001f600" * 1000,
    "raw": bytes(range(256)),
    "empty": b"",
    "nested": {"deep": [1, {"er": (2, 3)}], "": {}},
}


def test_values_come_back_as_langgraphs_own_saver_gives_them(face: Face) -> None:
    versions = dict.fromkeys(VALUES, face.get_next_version(None, None))
    stored = {**checkpoint(0, **VALUES), "channel_versions": versions, "versions_seen": {"node": versions}}
    metadata = {"source": "input", "step": -1, "parents": {}, "note": "ä\U0001f600", "many": [1.5, None]}
    memory = InMemorySaver()
    ours = face.get_tuple(face.put(thread(), stored, metadata, versions))
    theirs = memory.get_tuple(memory.put(thread(), stored, metadata, versions))
    assert ours.checkpoint == theirs.checkpoint
    assert ours.metadata == theirs.metadata == metadata
    assert ours.config == theirs.config


def test_metadata_may_hold_half_a_surrogate_pair(face: Face) -> None:
    assert face.get_tuple(face.put(thread(), checkpoint(), {"note": "\ud800"}, {})).metadata == {"note": "\ud800"}


@pytest.mark.parametrize(
    "thread_id", [7, 2**70, "7", "ä\U0001f600/..%", "x" * 5000], ids=["int", "huge", "str", "odd", "long"]
)
def test_thread_id_need_not_be_a_short_string(face: Face, thread_id: Any) -> None:
    stored = face.put(thread(thread_id), checkpoint(), {}, {})
    assert stored["configurable"]["thread_id"] == str(thread_id)
    assert face.get_tuple(thread(thread_id)).config == stored
    face.delete_thread(thread_id)
    assert face.get_tuple(thread(thread_id)) is None


@pytest.mark.parametrize("versions", [(1, 2), (0.1 + 0.2, 1.5), ("a", "b"), (1, 1.5)], ids=repr)
def test_versions_may_be_of_any_kind_that_langgraph_allows(face: Face, versions: tuple[Any, Any]) -> None:
    config = thread()
    for version in versions:
        new = {"state": version}
        config = face.put(config, {**checkpoint(0, state=[version]), "channel_versions": new}, {}, new)
        assert face.get_tuple(config).checkpoint["channel_versions"] == new
    assert [found.checkpoint["channel_values"] for found in face.list(thread())] == [
        {"state": [versions[1]]},
        {"state": [versions[0]]},
    ]


def test_next_version_sorts_after_the_last_and_is_nobody_elses(face: Face) -> None:
    for last in (None, 41, "00000000000000000000000000000041.0.7310", face.get_next_version(41, None)):
        following = [face.get_next_version(last, None) for _ in range(1000)]
        assert len(set(following)) == 1000
        assert last is None or min(following) > f"{int(str(last).partition('.')[0]):032d}.g"
    assert SqliteSaver.get_next_version(None, following[0], None) > following[0]


def test_value_without_a_version_is_kept_with_its_checkpoint(face: Face) -> None:
    stored = face.put(thread(), checkpoint(0, state=["kept"], count=1), {}, {})
    assert face.get_tuple(stored).checkpoint["channel_values"] == {"state": ["kept"], "count": 1}


def test_metadata_takes_what_the_config_says(face: Face) -> None:
    config = {**thread(), "metadata": {"user": "ada", "__private": 1}}
    config["configurable"]["run_id"] = "run-1"
    assert face.get_tuple(face.put(config, checkpoint(), {"step": 1}, {})).metadata == {
        "step": 1,
        "user": "ada",
        "run_id": "run-1",
    }


def test_stored_twice_a_write_stays_and_a_special_one_is_replaced(face: Face) -> None:
    config = face.put(thread(), checkpoint(), {}, {})
    face.put_writes(config, [("a", 1), (ERROR, "first"), ("b", 2)], "task")
    face.put_writes(config, [("a", 9), (ERROR, "second"), ("b", 9), ("c", 3)], "task")
    face.put_writes(config, [(INTERRUPT, "asks")], "task")
    face.put_writes(config, [(INTERRUPT, "asks again")], "task")
    assert sorted(face.get_tuple(config).pending_writes) == [
        ("task", ERROR, "second"),
        ("task", INTERRUPT, "asks again"),
        ("task", "a", 1),
        ("task", "b", 2),
        ("task", "c", 3),
    ]


def test_writes_come_back_in_the_order_in_which_the_step_applied_them(face: Face) -> None:
    config = face.put(thread(), checkpoint(), {}, {})
    face.put_writes(config, [("x", 3)], "a-task", "~2")
    face.put_writes(config, [("x", 1), ("x", 2)], "z-task", "~1")
    face.put_writes(config, [("x", 0)], "m-task")
    assert [value for _, _, value in face.get_tuple(config).pending_writes] == [0, 1, 2, 3]


def test_writes_may_come_before_their_checkpoint_and_go_with_their_thread(face: Face) -> None:
    early = checkpoint()
    face.put_writes(thread(checkpoint_id=early["id"]), [("x", 1)], "task")
    face.prune(["t"])
    config = face.put(thread(), early, {}, {})
    assert face.get_tuple(config).pending_writes == [("task", "x", 1)]
    face.put_writes(thread(checkpoint_id=checkpoint()["id"]), [("x", [1])], "its checkpoint never comes")
    face.copy_thread("t", "copy")
    face.delete_thread("t")
    assert face.rows("writes") == 2
    face.delete_thread("copy")
    assert face.rows("writes") == 0


def test_checkpoint_that_is_stored_again_is_replaced_with_all_that_belonged_to_it(face: Face) -> None:
    run = Run(face)
    parent = run.put(state=["old"])
    again = {**checkpoint(), "id": parent["configurable"]["checkpoint_id"], "channel_values": {"state": ["new"]}}
    again["channel_versions"] = {"state": face.get_next_version(None, None)}
    face.put(thread(), again, {"step": 5}, again["channel_versions"])
    (only,) = face.list(thread())
    assert (only.checkpoint["channel_values"], only.metadata) == ({"state": ["new"]}, {"step": 5})
    assert face.rows("blobs") == 2
    face.delete_thread("t")
    assert [face.rows(table) for table in ("checkpoints", "blobs", "writes")] == [0, 0, 0]


def test_size_of_a_thread_grows_with_its_steps_and_not_with_their_square(face: Face) -> None:
    def stored() -> int:
        return int(
            face.value("SELECT sum(length(value)) FROM langgraph_blobs")
            + face.value(
                "SELECT sum(length(checkpoint) + length(channels) + length(metadata)) FROM langgraph_checkpoints"
            )
        )

    run, document = Run(face), "x" * 200_000
    run.put(document=[document])
    sizes = [stored()]
    for step in range(200):
        run.put(state=[step, "y" * 1000])
        if step in (99, 199):
            sizes.append(stored())
    assert sizes[0] < len(document) + 1000
    assert sizes[1] - sizes[0] < 100 * 2000
    assert sizes[2] - sizes[1] < 1.05 * (sizes[1] - sizes[0])
    assert face.get_tuple(thread()).checkpoint["channel_values"] == {"document": [document], "state": [199, "y" * 1000]}


def test_channel_that_a_step_consumed_has_no_value_any_more(face: Face) -> None:
    run = Run(face)
    run.put(state=["a"], trigger="go" * 100)
    run.put(touched=("trigger",))
    last, first = face.list(thread())
    assert last.checkpoint["channel_values"] == {"state": ["a"]}
    assert first.checkpoint["channel_values"] == {"state": ["a"], "trigger": "go" * 100}


def test_branches_from_one_checkpoint_do_not_see_each_others_values(face: Face) -> None:
    trunk = Run(face)
    root = trunk.put(state=["root"])
    branches = [Run(face, root, trunk.versions) for _ in range(3)]
    tips = [branch.put(state=[number]) for number, branch in enumerate(branches)]
    assert [face.get_tuple(tip).checkpoint["channel_values"] for tip in tips] == [{"state": [n]} for n in range(3)]
    assert {face.get_tuple(tip).parent_config["configurable"]["checkpoint_id"] for tip in tips} == {
        root["configurable"]["checkpoint_id"]
    }


def test_list_pages_through_a_long_history_in_order_and_without_gaps(face: Face) -> None:
    ids = []
    for ns in ("", "child:1"):
        run = Run(face, thread(ns=ns))
        ids += [run.put(state=[step])["configurable"]["checkpoint_id"] for step in range(75)]
    other = Run(face, thread("other")).put(state=[0])["configurable"]["checkpoint_id"]
    without_ns = {"configurable": {"thread_id": "t"}}
    assert face.ids(thread()) == sorted(ids[:75], reverse=True)
    assert face.ids(without_ns) == sorted(ids, reverse=True)
    assert face.ids(None) == sorted([*ids, other], reverse=True)
    assert face.ids(without_ns, limit=40) == sorted(ids, reverse=True)[:40]
    assert face.ids(without_ns, limit=0) == []
    before = thread(checkpoint_id=ids[74])
    assert face.ids(without_ns, before=before, limit=70) == sorted(ids[:74], reverse=True)[:70]
    assert face.ids(thread(checkpoint_id=ids[3])) == [ids[3]]


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ({"even": True}, range(0, 600, 2)),
        ({"step": 599}, [599]),
        ({"run_id": "run-7"}, range(700 // 100 * 100, 700)),
        ({"run_id": "run-3", "even": False}, range(301, 400, 2)),
        ({"nested": {"a": [1, None]}, "step": 5}, [5]),
        ({"missing": None, "step": 6}, [6]),
        ({"a.b": "dotted", "step": 7}, [7]),
        ({"'; DROP TABLE langgraph_writes; --": 1}, []),
        ({"step": "5"}, []),
    ],
    ids=repr,
)
def test_list_filters_by_equality_whatever_the_key(face: Face, wanted: dict[str, Any], steps: Any) -> None:
    run = Run(face)
    for step in range(600):
        metadata = {"even": step % 2 == 0, "run_id": f"run-{step // 100}", "nested": {"a": [1, None]}, "a.b": "dotted"}
        run.put(metadata=metadata)
    found = [item.metadata["step"] for item in face.list(thread(), filter=wanted)]
    assert found == sorted(steps, reverse=True)
    assert [item.metadata["step"] for item in face.list(thread(), filter=wanted, limit=40)] == found[:40]


def test_list_may_be_iterated_while_other_calls_are_made(database: Path) -> None:
    with opened_saver("sync", database, readers=2) as face:
        run = Run(face)
        ids = [run.put(state=[step])["configurable"]["checkpoint_id"] for step in range(100)]
        seen = []
        for found in face.saver.list(thread()):
            seen.append(found.config["configurable"]["checkpoint_id"])
            assert face.saver.get_tuple(found.config).checkpoint == found.checkpoint
            run.put(state=["meanwhile"])
            open_at_once = [next(face.saver.list(thread())) for _ in range(3)]
            assert len(open_at_once) == 3
        assert seen == ids[::-1]


def test_list_may_be_iterated_while_other_tasks_and_the_same_one_go_on(database: Path) -> None:
    async def work() -> None:
        async with AsyncWalpoolSaver(database, readers=2) as saver:
            config = thread()
            for step in range(100):
                config = await saver.aput(config, checkpoint(step), {"step": step}, {})
            steps = []
            async for found in saver.alist(thread()):
                steps.append(found.metadata["step"])
                assert await saver.aget_tuple(found.config) == found
                await asyncio.gather(*(saver.aput(thread("other"), checkpoint(), {}, {}) for _ in range(3)))
                await saver.adelete_thread("nobody")
            assert steps == list(range(99, -1, -1))

    asyncio.run(work())


def test_list_that_is_left_half_way_holds_nothing(face: Face) -> None:
    run = Run(face)
    for step in range(100):
        run.put(state=[step])
    if face.loop is None:
        left = face.saver.list(thread())
        next(left)
    else:
        left = face.saver.alist(thread())
        face.loop.run_until_complete(left.__anext__())
    face.prune(["t"])
    stats = face.loop.run_until_complete(face.saver.pool.stats()) if face.loop else face.saver.pool.stats()
    assert stats.get("readers_out", 0) == 0
    assert len(face.list(thread())) == 1


def test_two_savers_on_one_file_see_each_others_threads_at_once(kind: str, database: Path) -> None:
    with opened_saver(kind, database) as one, opened_saver("sync", database) as other:
        stored = Run(one).put(state=["seen"])
        assert other.get_tuple(thread()).checkpoint["channel_values"] == {"state": ["seen"]}
        other.put_writes(stored, [("x", [1])], "task")
        assert one.get_tuple(thread()).pending_writes == [("task", "x", [1])]


def test_threads_are_there_after_a_restart(kind: str, database: Path) -> None:
    with opened_saver(kind, database) as face:
        run = Run(face)
        stored = run.put(state=["kept"], count=3)
        face.put_writes(stored, [("x", [1])], "task")
        expected = face.get_tuple(thread())
    for again in KINDS:
        with opened_saver(again, database) as face:
            assert face.get_tuple(thread()) == expected
    assert Run(face, stored, run.versions).versions == expected.checkpoint["channel_versions"]


def test_serializer_of_ones_own_is_used_and_may_give_text(kind: str, database: Path) -> None:
    class Text:
        dumps, loads = staticmethod(json.dumps), staticmethod(json.loads)

    with opened_saver(kind, database, serde=Text()) as face:
        stored = Run(face).put(state=["own"])
        face.put_writes(stored, [("x", {"a": 1})], "task")
        found = face.get_tuple(stored)
        assert found.checkpoint["channel_values"] == {"state": ["own"]}
        assert found.pending_writes == [("task", "x", {"a": 1})]


def test_clone_with_an_allowlist_shares_the_database(kind: str, database: Path) -> None:
    with opened_saver(kind, database, serde=JsonPlusSerializer(allowed_msgpack_modules=None)) as face:
        stored = Run(face).put(state=["shared"])
        clone = face.saver.with_allowlist([("some.module", "Name")])
        assert clone is not face.saver
        original, face.saver = face.saver, clone
        assert face.get_tuple(stored).checkpoint["channel_values"] == {"state": ["shared"]}
        face.saver = original


BAD = [({}, "dict under"), ({"configurable": {}}, "names no thread"), (None, "dict under"), ("t", "dict under")]


@pytest.mark.parametrize(("config", "text"), BAD, ids=repr)
def test_config_without_a_thread_is_refused_by_what_it_lacks(face: Face, config: Any, text: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: face.get_tuple(config),
        lambda: face.put(config, checkpoint(), {}, {}),
        lambda: face.put_writes(config, [("x", 1)], "task"),
        lambda: face.get_delta_channel_history(config=config, channels=["x"]),
    ]
    for call in calls if config is None else [*calls, lambda: face.list(config)]:
        with pytest.raises(walpool.ConfigError, match=text):
            call()


def test_other_mistakes_are_named(face: Face) -> None:
    with pytest.raises(walpool.ConfigError, match="names no checkpoint"):
        face.put_writes(thread(), [("x", 1)], "task")
    with pytest.raises(walpool.ConfigError, match="keep_latest"):
        face.prune(["t"], strategy="keep_last")
    with pytest.raises(TypeError, match="not JSON serializable"):
        face.put(thread(), checkpoint(), {"when": object()}, {})
    with pytest.raises(walpool.DataError, match="NUL"):
        Run(face).put(**{"chan\x00nel": ["x"]})
    assert face.list(None) == []


def test_pool_that_is_given_is_left_open_and_takes_no_settings(database: Path) -> None:
    with walpool.Pool(database) as pool:
        with WalpoolSaver(pool) as saver:
            saver.put(thread(), checkpoint(), {}, {})
        assert pool.fetchval("SELECT count(*) FROM langgraph_checkpoints") == 1
        with pytest.raises(walpool.ConfigError, match="whoever opens the pool"):
            WalpoolSaver(pool, readers=3)
        with pytest.raises(walpool.ConfigError, match="works on an AsyncPool"):
            AsyncWalpoolSaver(pool)  # type: ignore[arg-type]

    async def work() -> None:
        async with walpool.AsyncPool(database) as pool:
            async with AsyncWalpoolSaver(pool) as saver:
                assert await saver.aget_tuple(thread()) is not None
            assert not pool.closed
            with pytest.raises(walpool.ConfigError, match="whoever opens the pool"):
                AsyncWalpoolSaver(pool, readers=3)
            with pytest.raises(walpool.ConfigError, match="works on a Pool"):
                WalpoolSaver(pool)  # type: ignore[arg-type]

    asyncio.run(work())


def test_database_may_be_named_by_the_environment_a_url_or_not_at_all(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(walpool.ConfigError, match="no database was named"):
        WalpoolSaver()
    with pytest.raises(walpool.ConfigError, match="no database was named"):
        AsyncWalpoolSaver()
    monkeypatch.setenv("WALPOOL_URL", f"walpool://{database}?synchronous=normal")
    with WalpoolSaver() as saver:
        assert (saver.pool.path, saver.pool.settings.synchronous) == (str(database.resolve()), "normal")
    with WalpoolSaver.from_conn_string(":memory:") as saver:
        saver.put(thread(), checkpoint(), {}, {})
        assert saver.get_tuple(thread()) is not None

    async def work() -> None:
        async with AsyncWalpoolSaver.from_conn_string(":memory:") as saver:
            await saver.aput(thread(), checkpoint(), {}, {})
            assert await saver.aget_tuple(thread()) is not None
            found = await asyncio.to_thread(saver.get_tuple, thread())
            assert found is not None

    asyncio.run(work())


def test_tables_of_a_newer_walpool_are_refused_and_the_file_is_closed(kind: str, database: Path) -> None:
    with opened_saver(kind, database) as face:
        face.setup()
    with walpool.Pool(database) as pool:
        pool.execute("UPDATE walpool_schema SET version = 99 WHERE name = 'langgraph'")
    with pytest.raises(walpool.NotSupportedError, match="version 99"), opened_saver(kind, database) as face:
        face.get_tuple(thread())
    assert open_descriptors(database) == []


def test_threads_of_langgraphs_own_saver_in_the_file_are_not_passed_over_in_silence(kind: str, database: Path) -> None:
    with SqliteSaver.from_conn_string(str(database)) as stock:
        stock.put(thread(), checkpoint(), {}, {})
    with pytest.warns(UserWarning, match="langgraph-checkpoint-sqlite"), opened_saver(kind, database) as face:
        assert face.get_tuple(thread()) is None
    with opened_saver(kind, database) as face:
        assert face.list(None) == []  # said once, when the tables are made


def test_sync_methods_of_the_async_saver_serve_other_threads_and_refuse_the_loops_own(database: Path) -> None:
    async def work() -> None:
        async with AsyncWalpoolSaver(database, synchronous="normal") as saver:
            stored = await asyncio.to_thread(saver.put, thread(), checkpoint(), {"step": 0}, {})
            await asyncio.to_thread(saver.put_writes, stored, [("x", [1])], "task")
            found = await asyncio.to_thread(saver.get_tuple, thread())
            assert found == await saver.aget_tuple(thread())
            assert await asyncio.to_thread(lambda: list(saver.list(None))) == [found]
            with pytest.raises(walpool.InterfaceError, match=r"await aget_tuple\(\)"):
                saver.get_tuple(thread())
            with pytest.raises(walpool.InterfaceError, match=r"await alist\(\)"):
                list(saver.list(None))
            await asyncio.to_thread(saver.delete_thread, "t")
            assert await saver.aget_tuple(thread()) is None
        with pytest.raises(walpool.ClosedError):
            await asyncio.to_thread(saver.get_tuple, thread())

    asyncio.run(work())
    assert open_descriptors(database) == []


def test_async_saver_is_used_on_several_loops_and_made_without_one(database: Path) -> None:
    saver = AsyncWalpoolSaver(database)
    ends = threading.Barrier(4)

    def work(number: int) -> None:
        async def steps() -> None:
            config = thread(number)
            for step in range(20):
                config = await saver.aput(config, checkpoint(step), {"step": step}, {})
            found = await saver.aget_tuple(thread(number))
            assert found is not None
            assert found.metadata["step"] == 19

        asyncio.run(steps())
        ends.wait(20)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    ends.wait(20)
    for worker in workers:
        worker.join()
    asyncio.run(saver.close())
    assert open_descriptors(database) == []
