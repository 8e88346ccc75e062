"""The LangGraph savers on PostgreSQL: many writers of one thread, tenants, and what its types cannot hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from helpers import run_together, start_python

pytest.importorskip("langgraph.checkpoint.base")

from savers import Run, opened_saver, thread

import walpool
from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver

pytestmark = pytest.mark.postgres

GROW_A_BRANCH = """
    import sys
    sys.path.insert(0, sys.argv[3])
    from savers import Run, opened_saver, thread

    with opened_saver("sync", sys.argv[1]) as face:
        run = Run(face)
        for step in range(15):
            stored = run.put(state=[sys.argv[2], step], metadata={"writer": sys.argv[2]})
            face.put_writes(stored, [("x", [step]), ("y", [step])], f"task of {sys.argv[2]}")
"""


def grow(face: Any, writer: int, steps: int) -> None:
    """Store a branch of the thread, each checkpoint with writes."""
    run = Run(face)
    for step in range(steps):
        stored = run.put(state=[writer, step], metadata={"writer": writer})
        face.put_writes(stored, [("x", [step]), ("y", [step])], f"task {writer}")


def assert_whole(face: Any, writers: list[Any], steps: int) -> None:
    """Hold the thread to having every checkpoint of every writer, with its values and its writes."""
    found = face.list(thread())
    assert len(found) == len(writers) * steps
    for writer in writers:
        branch = [one for one in found if one.metadata["writer"] == writer]
        assert [one.checkpoint["channel_values"]["state"] for one in reversed(branch)] == [
            [writer, step] for step in range(steps)
        ]
        assert all(len(one.pending_writes or ()) == 2 for one in branch)


@pytest.mark.bounced
def test_sixteen_threads_that_write_one_thread_lose_nothing(postgres_url: str) -> None:
    with opened_saver("sync", postgres_url) as face:
        run_together(16, lambda writer: grow(face, writer, 6))
        assert_whole(face, list(range(16)), 6)


@pytest.mark.bounced
def test_sixteen_tasks_that_put_the_same_writes_leave_each_once(postgres_url: str) -> None:
    async def main() -> None:
        async with AsyncWalpoolSaver(postgres_url) as saver:
            stored = await saver.aput(thread(), {**_empty(), "id": "1"}, {}, {})  # type: ignore[typeddict-item]
            await asyncio.gather(
                *(saver.aput_writes(stored, [("x", n), ("y", n), ("__error__", n)], "task") for n in range(16))
            )
            found = await saver.aget_tuple(thread())
            assert found is not None
            assert sorted(channel for _, channel, _ in found.pending_writes or ()) == ["__error__", "x", "y"]

    asyncio.run(main())


def _empty() -> Any:
    from savers import checkpoint

    return checkpoint()


def test_two_processes_that_write_one_thread_lose_nothing(postgres_url: str) -> None:
    from pathlib import Path

    here = Path(__file__).parent
    processes = [start_python(GROW_A_BRANCH, postgres_url, name, here) for name in ("one", "two")]
    for process in processes:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    with opened_saver("sync", postgres_url) as face:
        assert_whole(face, ["one", "two"], 15)


def test_prune_and_puts_at_once_leave_no_checkpoint_without_its_values(postgres_url: str) -> None:
    with opened_saver("sync", postgres_url) as face:

        def work(index: int) -> None:
            if index:
                grow(face, index, 8)
            else:
                for _ in range(10):
                    face.prune(["t"])

        run_together(5, work)
        for found in face.list(thread()):
            assert found.checkpoint["channel_values"].keys() == found.checkpoint["channel_versions"].keys()
        face.prune(["t"])
        assert len(face.list(thread())) == 1
        face.delete_thread("t")
        assert [face.rows(table) for table in ("checkpoints", "blobs", "writes")] == [0, 0, 0]


def test_each_tenant_has_threads_of_its_own_under_the_same_ids(postgres_url: str) -> None:
    from walpool.postgres import PostgresPool

    for tenant in ("ann", "ben"):
        with PostgresPool(postgres_url, tenant=tenant) as pool, opened_saver("sync", pool) as face:
            assert face.list(None) == []
            Run(face).put(state=[tenant], metadata={"run_id": "r"})
    with PostgresPool(postgres_url, tenant="ann") as pool, opened_saver("sync", pool) as face:
        face.copy_thread("t", "copy")
        face.delete_for_runs(["r"])
        assert face.list(None) == []
    with PostgresPool(postgres_url, tenant="ben") as pool, opened_saver("sync", pool) as face:
        assert face.get_tuple(thread()).checkpoint["channel_values"] == {"state": ["ben"]}
        face.delete_thread("t")
        assert face.rows("blobs") == 0


def test_async_saver_of_a_tenant_serves_other_threads_with_the_tenants_rows(postgres_url: str) -> None:
    from walpool.postgres import AsyncPostgresPool

    async def main() -> None:
        async with AsyncPostgresPool(postgres_url, tenant="ann") as pool, AsyncWalpoolSaver(pool) as saver:
            await saver.aput(thread(), {**_empty(), "id": "1"}, {}, {})  # type: ignore[typeddict-item]
            assert await asyncio.to_thread(saver.get_tuple, thread()) is not None
        async with AsyncWalpoolSaver(postgres_url) as saver:
            assert await asyncio.to_thread(saver.get_tuple, thread()) is None

    asyncio.run(main())


def test_nul_is_kept_in_values_and_metadata_and_refused_in_names(postgres_url: str) -> None:
    deltas = {"counters_since_delta_snapshot": {"x": 1}, "nul": ["a\0b"], "half": ["\ud83d"]}
    with opened_saver("sync", postgres_url) as face:
        run = Run(face)
        run.put(state=["a\0b"], short="a\0b", metadata=deltas)
        run.put(state=["a\0c"], metadata=deltas)
        face.prune(["t"])
        found = face.get_tuple(thread())
        assert found.checkpoint["channel_values"] == {"state": ["a\0c"], "short": "a\0b"}
        assert (found.metadata["nul"], found.metadata["half"]) == (["a\0b"], ["\ud83d"])
        for place in (thread("t\0"), thread("t", "ns\0")):
            with pytest.raises(walpool.DataError, match="NUL"):
                Run(face, place).put(state=["x"])
        for value in (["x"], 1):
            with pytest.raises(walpool.DataError, match="NUL"):
                Run(face, thread("other")).put(**{"chan\0nel": value})
        assert face.list(thread("other")) == []


def test_serializer_that_gives_text_has_it_back_as_text(postgres_url: str) -> None:
    class Text:
        def dumps_typed(self, value: Any) -> tuple[str, str]:
            return "json", json.dumps(value)

        def loads_typed(self, typed: tuple[str, str]) -> Any:
            assert (typed[0], type(typed[1])) == ("json", str)
            return json.loads(typed[1])

    with opened_saver("sync", postgres_url, serde=Text()) as face:
        stored = Run(face).put(state=["\ud83d", "\0"])
        face.put_writes(stored, [("x", {"a": 1})], "task")
        found = face.get_tuple(thread())
        assert found.checkpoint["channel_values"] == {"state": ["\ud83d", "\0"]}
        assert found.pending_writes == [("task", "x", {"a": 1})]


def test_environment_names_the_server_and_pools_are_told_apart(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    monkeypatch.setenv("WALPOOL_URL", postgres_url)
    with WalpoolSaver() as saver:
        assert saver.pool.backend == "postgres"
    with PostgresPool(postgres_url) as pool:
        with WalpoolSaver(pool):
            pass
        assert not pool.closed
        with pytest.raises(walpool.ConfigError, match="works on an AsyncPool"):
            AsyncWalpoolSaver(pool)  # type: ignore[arg-type]
    with pytest.raises(walpool.ConfigError, match="works on a Pool"):
        WalpoolSaver(AsyncPostgresPool(postgres_url))  # type: ignore[arg-type]


def test_threads_of_langgraphs_own_saver_in_the_database_are_not_passed_over_in_silence(postgres_url: str) -> None:
    with walpool.get_pool(postgres_url) as pool:
        pool.script("CREATE TABLE checkpoint_blobs (a INTEGER); CREATE TABLE checkpoint_writes (a INTEGER)")
    with pytest.warns(UserWarning, match="langgraph-checkpoint-postgres"), opened_saver("sync", postgres_url):
        pass
