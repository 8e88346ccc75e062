"""Delta channels, which are rebuilt from their ancestors: what prune, delete_for_runs and copy_thread must leave them.

The judge is a real graph, and LangGraph's own saver in memory, which is given the same checkpoints.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langgraph.graph")

from delta_graph import graph, rebuilt, run_graph, state
from langgraph.checkpoint.memory import InMemorySaver
from savers import Face, Run, checkpoint, thread


def test_history_is_what_langgraphs_own_saver_says_at_every_checkpoint(face: Face) -> None:
    memory = InMemorySaver()
    for turn in range(3):
        last = run_graph(face, thread())
        assert graph(memory).invoke({"log": ["asked"], "total": 0}, thread()) == last, turn
    ours, theirs = face.list(thread()), list(memory.list(thread()))
    assert len(ours) == len(theirs) > 20
    for mine, other in zip(ours, theirs, strict=True):
        got, expected = rebuilt(face, mine.config), rebuilt(Memory(memory), other.config)
        assert {name: [value for _, _, value in entry["writes"]] for name, entry in got.items()} == {
            name: [value for _, _, value in entry["writes"]] for name, entry in expected.items()
        }
        assert {name: entry.get("seed") for name, entry in got.items()} == {
            name: entry.get("seed") for name, entry in expected.items()
        }
    assert rebuilt(face, thread()) == rebuilt(face, ours[0].config)
    assert any("seed" in rebuilt(face, found.config)["log"] for found in ours)


class Memory:
    """LangGraph's saver in memory, as `rebuilt` calls it."""

    def __init__(self, saver: InMemorySaver) -> None:
        self.get_delta_channel_history = saver.get_delta_channel_history


def test_prune_keeps_the_ancestors_that_delta_channels_are_rebuilt_from(face: Face) -> None:
    for _ in range(3):
        expected = run_graph(face, thread())
    before = face.list(thread())
    history = rebuilt(face, thread())
    face.prune(["t"])
    kept = face.list(thread())
    assert 1 < len(kept) < len(before)
    assert kept[0] == before[0]
    assert state(face, thread()) == expected
    assert rebuilt(face, thread()) == history
    assert run_graph(face, thread())["total"] == expected["total"] + 3


def test_prune_keeps_one_checkpoint_where_the_delta_channels_have_just_been_stored(face: Face) -> None:
    run = Run(face)
    for step in range(5):
        run.put(metadata={"counters_since_delta_snapshot": {"log": (1, 1)}}, log=[step])
    run.put(metadata={"counters_since_delta_snapshot": {"log": (1, 2), "never written": (0, 6)}}, other=["x"])
    face.prune(["t"])
    assert len(face.list(thread())) == 1
    assert face.rows("blobs") == 2
    assert face.get_tuple(thread()).checkpoint["channel_values"] == {"log": [4], "other": ["x"]}


def test_prune_follows_the_chain_of_parents_and_not_the_order_of_ids(face: Face) -> None:
    counting = {"counters_since_delta_snapshot": {"log": (1, 1)}}
    trunk = Run(face)
    root = trunk.put(metadata=counting, log=["the seed"])
    face.put_writes(root, [("log", ["from the root"])], "task")
    off_path = Run(face, root, trunk.versions)
    for step in range(3):
        off_path.put(metadata=counting, log=[f"another branch {step}"])
    tip = Run(face, root, trunk.versions).put(metadata=counting, touched=("log",))
    face.prune(["t"])
    assert face.ids(thread()) == [item["configurable"]["checkpoint_id"] for item in (tip, root)]
    assert face.get_delta_channel_history(config=tip, channels=["log"]) == {
        "log": {"seed": ["the seed"], "writes": [("task", "log", ["from the root"])]}
    }


@pytest.mark.parametrize(
    "seed", [["a list"], 5, None, "short", "long " * 100], ids=["list", "int", "None", "short", "long"]
)
def test_value_from_before_the_channel_was_a_delta_channel_is_found_wherever_it_lies(face: Face, seed: Any) -> None:
    run = Run(face)
    run.put(log="older")
    run.put(log=seed)
    tip = run.put(metadata={"counters_since_delta_snapshot": {"log": (1, 1)}}, touched=("log",))
    expected = {"log": {"writes": [], "seed": seed}}
    assert face.get_delta_channel_history(config=tip, channels=["log"]) == expected
    face.prune(["t"])
    assert len(face.list(thread())) == 2
    assert face.get_delta_channel_history(config=tip, channels=["log"]) == expected


def test_deleted_run_leaves_what_later_checkpoints_are_rebuilt_from(face: Face) -> None:
    for run_id in ("run-1", "run-2", "run-3"):
        expected = run_graph(face, thread(), metadata={"run_id": run_id})
    in_run = {name: len(face.list(thread(), filter={"run_id": name})) for name in ("run-1", "run-2", "run-3")}
    face.delete_for_runs(["run-2"])
    assert state(face, thread()) == expected
    assert 0 < len(face.list(thread(), filter={"run_id": "run-2"})) < in_run["run-2"]
    face.delete_for_runs(["run-3"])
    assert len(face.list(thread(), filter={"run_id": "run-3"})) == 0
    assert state(face, thread())["total"] == 6
    face.delete_for_runs(["run-1", "run-2"])
    assert [face.rows(table) for table in ("checkpoints", "blobs", "writes")] == [0, 0, 0]


def test_deleted_run_takes_its_own_values_and_leaves_shared_ones(face: Face) -> None:
    run = Run(face)
    run.put(metadata={"run_id": "a"}, shared=["s"], state=["a"])
    run.put(metadata={"run_id": "b"}, state=["b"])
    face.delete_for_runs(["a"])
    assert face.rows("blobs") == 2
    (only,) = face.list(thread())
    assert only.checkpoint["channel_values"] == {"shared": ["s"], "state": ["b"]}


def test_copied_thread_is_rebuilt_like_the_one_it_was_copied_from_and_outlives_it(face: Face) -> None:
    for _ in range(3):
        expected = run_graph(face, thread())
    everything = [(found.checkpoint, found.metadata, found.pending_writes) for found in face.list(thread())]
    face.copy_thread("t", "copy")
    face.copy_thread("t", "copy")
    face.copy_thread("t", "t")
    face.delete_thread("t")
    assert [
        (found.checkpoint, found.metadata, found.pending_writes) for found in face.list(thread("copy"))
    ] == everything
    assert state(face, thread("copy")) == expected
    assert run_graph(face, thread("copy"))["total"] == expected["total"] + 3


def test_chain_of_parents_that_bites_its_own_tail_ends(face: Face) -> None:
    counting = {"counters_since_delta_snapshot": {"log": (1, 1)}}
    run = Run(face)
    first = run.put(metadata=counting, touched=("log",))
    second = run.put(metadata=counting, touched=("log",))
    again = {**checkpoint(), "id": first["configurable"]["checkpoint_id"], "channel_versions": dict(run.versions)}
    face.put(second, again, counting, {})
    face.put_writes(first, [("log", [1])], "task")
    assert face.get_delta_channel_history(config=second, channels=["log"])["log"]["writes"] == [("task", "log", [1])]
    face.prune(["t"])
    assert len(face.list(thread())) == 2
