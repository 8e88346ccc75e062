"""What the tests of the LangGraph savers share: both kinds behind one face, and checkpoints to store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver

KINDS = ("sync", "async")


class Face:
    """A saver of either kind, called synchronously; the async one runs on an event loop of its own.

    Args:
        saver: what to call.
    """

    def __init__(self, saver: WalpoolSaver | AsyncWalpoolSaver) -> None:
        self.saver = saver
        self.loop = asyncio.new_event_loop() if isinstance(saver, AsyncWalpoolSaver) else None
        self.get_next_version = saver.get_next_version

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the method of that name, or the async one that stands for it."""
        if self.loop is None:
            return getattr(self.saver, name)
        method = getattr(self.saver, name if name in ("setup", "close") else f"a{name}")
        return lambda *args, **kwargs: self.loop.run_until_complete(method(*args, **kwargs))

    def list(self, config: RunnableConfig | None, **kwargs: Any) -> list[CheckpointTuple]:
        if self.loop is None:
            return list(self.saver.list(config, **kwargs))

        async def collect() -> list[CheckpointTuple]:
            return [found async for found in self.saver.alist(config, **kwargs)]

        return self.loop.run_until_complete(collect())

    def ids(self, config: RunnableConfig | None, **kwargs: Any) -> list[str]:
        return [found.config["configurable"]["checkpoint_id"] for found in self.list(config, **kwargs)]

    def value(self, sql: str) -> Any:
        """Return the first column of the first row of a query on the saver's file."""
        found = self.saver.pool.fetchval(sql)
        return found if self.loop is None else self.loop.run_until_complete(found)

    def rows(self, table: str) -> int:
        """Return how many rows a table of the savers has."""
        return int(self.value(f"SELECT count(*) FROM langgraph_{table}"))

    def end(self) -> None:
        self.close()
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


@contextmanager
def opened_saver(kind: str, database: Any, **settings: Any) -> Iterator[Face]:
    """Yield a saver of that kind on a path, a URL or a pool."""
    face = Face((WalpoolSaver if kind == "sync" else AsyncWalpoolSaver)(database, **settings))
    try:
        yield face
    finally:
        face.end()


def thread(thread_id: Any = "t", ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    """Return a config that points to a thread, or to a checkpoint of it."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(step: int = 0, **values: Any) -> Checkpoint:
    """Return a checkpoint with these values and no versions yet."""
    return {**empty_checkpoint(), "v": 4, "id": str(uuid6(clock_seq=step)), "channel_values": values}


class Run:
    """A thread that grows step by step, as LangGraph would have it.

    Args:
        face: where it is stored.
        config: the thread, or a checkpoint to branch off from.
        versions: the channels' versions there.
    """

    def __init__(
        self, face: Face, config: RunnableConfig | None = None, versions: dict[str, Any] | None = None
    ) -> None:
        self.face = face
        self.config = config or thread()
        self.values: dict[str, Any] = {}
        self.versions: dict[str, Any] = dict(versions or {})
        self.step = -1

    def put(
        self, *, metadata: dict[str, Any] | None = None, touched: tuple[str, ...] = (), **changed: Any
    ) -> RunnableConfig:
        """Store the next checkpoint: `changed` channels get new values, `touched` ones a new version and no value."""
        self.step += 1
        version = self.face.get_next_version(max(self.versions.values(), default=None), None)
        new = dict.fromkeys((*changed, *touched), version)
        self.values = {k: v for k, v in {**self.values, **changed}.items() if k not in touched}
        self.versions = {**self.versions, **new}
        stored = {**checkpoint(self.step, **self.values), "channel_versions": dict(self.versions)}
        self.config = self.face.put(
            self.config, stored, {"source": "loop", "step": self.step, "parents": {}, **(metadata or {})}, new
        )
        return self.config
