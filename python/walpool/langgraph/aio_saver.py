"""`AsyncWalpoolSaver`: LangGraph's checkpoints in a walpool database, for asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from walpool.errors import ClosedError, ConfigError, InterfaceError
from walpool.holds import is_on_event_loop
from walpool.langgraph import _codec, _dialects
from walpool.langgraph._base import BaseSaver, prepare_async, refuse_unknown
from walpool.langgraph.saver import WalpoolSaver
from walpool.registry import get_async_pool, is_async_pool, is_pool, sync_twin

if TYPE_CHECKING:
    from types import TracebackType

    from walpool.aio import AsyncPool
    from walpool.langgraph._sql import Statement
    from walpool.postgres import AsyncPostgresPool

__all__ = ["AsyncWalpoolSaver"]


class AsyncWalpoolSaver(BaseSaver):
    """A checkpointer for graphs that are run with `ainvoke` and `astream`, by any number of tasks and event loops.

    It promises what `WalpoolSaver` promises, never blocks the loop, and has no thread and no connection of its own: a
    short read is done on the spot, and the writes of all tasks that wait at the same time share one fsync.

    The sync methods are for threads without an event loop, such as those on which LangGraph runs sync nodes. On the
    thread of a running loop they would block it, and raise `InterfaceError`.

    A task that is cancelled in `aput` or `aput_writes` may have stored what it was storing, all of it or nothing.

    Args:
        pool_or_path_or_url: a pool, which stays its owner's to close; or a path or URL, on which the saver opens a
            pool of its own at the first call, and closes it in `close()`. None takes `WALPOOL_URL`. No event loop need
            run yet.
        serde: how values are serialized; LangGraph's `JsonPlusSerializer` by default.
        **settings: as `walpool.AsyncPool` takes them, for a pool that the saver opens.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool. What opening the
            file can raise (see `WalpoolSaver`) is raised by the call that opens it.
    """

    def __init__(
        self,
        pool_or_path_or_url: AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        serde: SerializerProtocol | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(serde=serde)
        self._is_prepared = False
        if is_pool(pool_or_path_or_url):
            raise ConfigError("AsyncWalpoolSaver works on an AsyncPool: give it one, or the path")
        self._owns_pool = not is_async_pool(pool_or_path_or_url)
        if is_async_pool(pool_or_path_or_url):
            if settings:
                msg = "settings belong to whoever opens the pool: give a path, or a pool without settings"
                raise ConfigError(msg)
            self._pool = pool_or_path_or_url
        else:
            self._pool = get_async_pool(pool_or_path_or_url, **settings)
        self._sql = _dialects.of(self._pool.backend)

    @classmethod
    @asynccontextmanager
    async def from_conn_string(cls, conn_string: str, **settings: Any) -> AsyncIterator[AsyncWalpoolSaver]:
        """Yield a saver on a path or URL and close it at the end of the block.

        Args:
            conn_string: a path, a `walpool://` or `postgresql://` URL, or `:memory:`.
            **settings: as `walpool.AsyncPool` takes them.
        """
        async with cls(conn_string, **settings) as saver:
            yield saver

    @property
    def pool(self) -> AsyncPool | AsyncPostgresPool:
        """The pool that the saver works on."""
        return self._pool

    async def setup(self) -> None:
        """Open the file and bring the tables up to date, which the first call does too. Safe to call twice.

        Raises:
            NotSupportedError: the tables were written by a newer walpool.
            StorageError, CorruptError, BusyError, OperationalError: as the pool.
        """
        if self._is_prepared:
            return
        await prepare_async(self._pool)  # of several tasks that come here at once, one has something to do
        self._is_prepared = True

    async def close(self) -> None:
        """Close the pool, if the saver opened it. Safe to call twice."""
        if self._owns_pool:
            await self._pool.close()

    async def __aenter__(self) -> AsyncWalpoolSaver:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        try:
            await self.setup()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with its values, metadata and pending writes. See `WalpoolSaver.get_tuple`."""
        if not self._is_prepared:
            await self.setup()
        rows = await self._pool.fetch(*self._sql.get(*_codec.place_of(config)))
        return _codec.decode_tuple(self._sql, self.serde, rows)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first; any other call may be made meanwhile. See `WalpoolSaver.list`."""
        if not self._is_prepared:
            await self.setup()
        listing = _codec.Listing(self._sql, config, filter, before, limit)
        while not listing.is_done:
            async with self._pool.read() as snapshot:
                chosen = listing.choose(await snapshot.fetch(*listing.keys_wanted()))
                rows = await snapshot.fetch(*self._sql.get_many(chosen)) if chosen else []
            found = _codec.decode_tuples(self._sql, self.serde, rows)
            for key in chosen:
                yield found[key.row]

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and the values of the channels that changed, as one job. See `WalpoolSaver.put`."""
        if not self._is_prepared:
            await self.setup()
        statements, stored = _codec.encode_put(self._sql, self.serde, config, checkpoint, metadata, new_versions)
        await self._pool.batch(statements)
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote, beside the checkpoint that it ran on, as one job. See `WalpoolSaver.put_writes`."""
        if not self._is_prepared:
            await self.setup()
        rows = _codec.encode_writes(self._sql, self.serde, config, writes, task_id, task_path)
        if rows:
            await self._pool.executemany(self._sql.put_writes, rows)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all that belongs to a thread, as one job."""
        await self._run(self._sql.delete_threads([str(thread_id)]))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints of these runs, as one job. See `WalpoolSaver.delete_for_runs`."""
        if run_ids:
            await self._run(self._sql.delete_runs([str(run_id) for run_id in run_ids]))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all that belongs to a thread to another one, as one job. See `WalpoolSaver.copy_thread`."""
        source, target = str(source_thread_id), str(target_thread_id)
        if source != target:
            await self._run(self._sql.copy_thread(source, target))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete what these threads no longer need, as one job. See `WalpoolSaver.prune`."""
        refuse_unknown(strategy)
        ids = [str(thread_id) for thread_id in thread_ids]
        if ids:
            of = self._sql.keep_latest if strategy == "keep_latest" else self._sql.delete_threads
            await self._run(of(ids))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what delta channels are rebuilt from. See `WalpoolSaver.get_delta_channel_history`."""
        if not channels:
            return {}
        if not self._is_prepared:
            await self.setup()
        rows = await self._pool.fetch(*self._sql.history(*_codec.place_of(config), list(channels)))
        return _codec.decode_history(self._sql, self.serde, rows, channels)

    async def _run(self, statements: Sequence[Statement]) -> None:
        if not self._is_prepared:
            await self.setup()
        await self._pool.batch(statements)

    # The same for threads without an event loop.

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return what `aget_tuple` returns, on a thread without an event loop."""
        with self._blocking("get_tuple") as saver:
            return saver.get_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield what `alist` yields, on a thread without an event loop."""
        with self._blocking("list") as saver:
            yield from saver.list(config, filter=filter, before=before, limit=limit)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do what `aput` does, on a thread without an event loop."""
        with self._blocking("put") as saver:
            return saver.put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `aput_writes` does, on a thread without an event loop."""
        with self._blocking("put_writes") as saver:
            saver.put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """Do what `adelete_thread` does, on a thread without an event loop."""
        with self._blocking("delete_thread") as saver:
            saver.delete_thread(thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `adelete_for_runs` does, on a thread without an event loop."""
        with self._blocking("delete_for_runs") as saver:
            saver.delete_for_runs(run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `acopy_thread` does, on a thread without an event loop."""
        with self._blocking("copy_thread") as saver:
            saver.copy_thread(source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do what `aprune` does, on a thread without an event loop."""
        with self._blocking("prune") as saver:
            saver.prune(thread_ids, strategy=strategy)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what `aget_delta_channel_history` returns, on a thread without an event loop."""
        with self._blocking("get_delta_channel_history") as saver:
            return saver.get_delta_channel_history(config=config, channels=channels)

    @contextmanager
    def _blocking(self, method: str) -> Iterator[WalpoolSaver]:
        """Yield a sync saver on the same engine, for one call: a handle that is kept would keep the file open."""
        if is_on_event_loop():
            msg = f"{method}() would block this thread's event loop: await a{method}(), or run the graph with ainvoke"
            raise InterfaceError(msg)
        if self._pool.closed:
            msg = f"the pool is closed [{self._pool.path}]"
            raise ClosedError(msg)
        if self._pool.path == ":memory:":
            msg = f"{method}() on a private temporary file that was not opened yet: await setup() first"
            raise InterfaceError(msg)
        with sync_twin(self._pool) as pool:
            yield WalpoolSaver(pool, serde=self.serde)


AsyncWalpoolSaver.__module__ = "walpool.langgraph"
