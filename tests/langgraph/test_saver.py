"""`WalpoolSaver` and `AsyncWalpoolSaver`: what the conformance kit does not ask, on both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.sqlite")

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from langgraph.checkpoint.sqlite import SqliteSaver
from savers import Face, Run, checkpoint, opened_saver, thread

from walpool.langgraph import AsyncWalpoolSaver

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


@pytest.mark.bounced
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


@pytest.mark.bounced
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


@pytest.mark.bounced
def test_branches_from_one_checkpoint_do_not_see_each_others_values(face: Face) -> None:
    trunk = Run(face)
    root = trunk.put(state=["root"])
    branches = [Run(face, root, trunk.versions) for _ in range(3)]
    tips = [branch.put(state=[number]) for number, branch in enumerate(branches)]
    assert [face.get_tuple(tip).checkpoint["channel_values"] for tip in tips] == [{"state": [n]} for n in range(3)]
    assert {face.get_tuple(tip).parent_config["configurable"]["checkpoint_id"] for tip in tips} == {
        root["configurable"]["checkpoint_id"]
    }


@pytest.mark.bounced
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


@pytest.mark.bounced
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


def test_value_that_did_not_change_is_not_serialized_again(kind: str, database: Path) -> None:
    class Counting(JsonPlusSerializer):
        seen = 0

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            self.seen += obj == ["document"]
            return super().dumps_typed(obj)

    serde = Counting()
    with opened_saver(kind, database, serde=serde) as face:
        run = Run(face)
        run.put(document=["document"])
        for step in range(5):
            run.put(state=[step])
        assert face.get_tuple(thread()).checkpoint["channel_values"] == {"document": ["document"], "state": [4]}
    assert serde.seen == 1
