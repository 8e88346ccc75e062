"""How the LangGraph savers are opened, shared, closed and misused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.sqlite")

from helpers import retire
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from leftovers import open_descriptors
from savers import KINDS, Face, Run, checkpoint, opened_saver, thread

import walpool
from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver


def test_two_savers_on_one_file_see_each_others_threads_at_once(kind: str, place: str) -> None:
    with opened_saver(kind, place) as one, opened_saver("sync", place) as other:
        stored = Run(one).put(state=["seen"])
        assert other.get_tuple(thread()).checkpoint["channel_values"] == {"state": ["seen"]}
        other.put_writes(stored, [("x", [1])], "task")
        assert one.get_tuple(thread()).pending_writes == [("task", "x", [1])]


def test_threads_are_there_after_a_restart(kind: str, place: str) -> None:
    with opened_saver(kind, place) as face:
        run = Run(face)
        stored = run.put(state=["kept"], count=3)
        face.put_writes(stored, [("x", [1])], "task")
        expected = face.get_tuple(thread())
    for again in KINDS:
        with opened_saver(again, place) as face:
            assert face.get_tuple(thread()) == expected
    assert Run(face, stored, run.versions).versions == expected.checkpoint["channel_versions"]


def test_threads_in_a_retired_file_are_read_and_not_gone_on_with(kind: str, database: Path) -> None:
    with opened_saver(kind, database) as face:
        run = Run(face)
        run.put(state=["kept"])
        expected = face.get_tuple(thread())
    retire(database)
    with opened_saver(kind, database) as face:
        with pytest.raises(walpool.ReadOnlyError):
            Run(face, expected.config, run.versions).put(state=["more"])
        assert face.get_tuple(thread()) == expected
        assert face.list(None) == [expected]


def test_serializer_of_ones_own_is_used_and_may_give_text(kind: str, place: str) -> None:
    class Text:
        dumps, loads = staticmethod(json.dumps), staticmethod(json.loads)

    with opened_saver(kind, place, serde=Text()) as face:
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


def test_sync_methods_of_the_async_saver_serve_other_threads_and_refuse_the_loops_own(
    database: Path, place: str
) -> None:
    async def work() -> None:
        async with AsyncWalpoolSaver(place, synchronous="normal") as saver:
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


def test_async_saver_is_used_on_several_loops_and_made_without_one(database: Path, place: str) -> None:
    saver = AsyncWalpoolSaver(place)
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
