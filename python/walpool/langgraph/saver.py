"""`WalpoolSaver`: LangGraph's checkpoints in a walpool database, for threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from walpool.errors import ConfigError
from walpool.langgraph import _codec, _dialects
from walpool.langgraph._base import BaseSaver, prepare, refuse_unknown
from walpool.registry import get_pool, is_async_pool, is_pool

if TYPE_CHECKING:
    from types import TracebackType

    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

__all__ = ["WalpoolSaver"]


class WalpoolSaver(BaseSaver):
    """A checkpointer for graphs that are run with `invoke` and `stream`, by any number of threads.

    Every call is whole: a checkpoint, its values and its metadata are committed together, or not at all, and what
    `put` has returned from is on disk (`synchronous`). Calls wait for no lock: reads have readers of their own, and the
    writes of threads that wait at the same time share one fsync. The value of a channel is stored once for each of its
    versions, not once in each checkpoint.

    The async methods run the sync ones on threads of the loop's default executor, so a graph that is run with both
    works; a program that lives on asyncio uses `AsyncWalpoolSaver`, which needs no threads.

    Args:
        pool_or_path_or_url: a pool, which stays its owner's to close; or a path or URL, on which the saver opens a
            pool of its own, and closes it in `close()`. None takes `WALPOOL_URL`. Pools on one file share one engine.
        serde: how values are serialized; LangGraph's `JsonPlusSerializer` by default.
        **settings: as `walpool.Pool` takes them, for a pool that the saver opens.

    Raises:
        ConfigError: no database was named, a setting is wrong, or settings were given beside a pool.
        NotSupportedError: the tables were written by a newer walpool.
        StorageError, CorruptError, BusyError, OperationalError: as the pool.
    """

    def __init__(
        self,
        pool_or_path_or_url: Pool | PostgresPool | str | os.PathLike[str] | None = None,
        *,
        serde: SerializerProtocol | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(serde=serde)
        if is_async_pool(pool_or_path_or_url):
            raise ConfigError("WalpoolSaver works on a Pool: give it one, or the path")
        self._owns_pool = not is_pool(pool_or_path_or_url)
        if is_pool(pool_or_path_or_url):
            if settings:
                msg = "settings belong to whoever opens the pool: give a path, or a pool without settings"
                raise ConfigError(msg)
            self._pool = pool_or_path_or_url
        else:
            self._pool = get_pool(pool_or_path_or_url, **settings)
        self._sql = _dialects.of(self._pool.backend)
        try:
            prepare(self._pool)
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextmanager
    def from_conn_string(cls, conn_string: str, **settings: Any) -> Iterator[WalpoolSaver]:
        """Yield a saver on a path or URL and close it at the end of the block.

        Args:
            conn_string: a path, a `walpool://` or `postgresql://` URL, or `:memory:`.
            **settings: as `walpool.Pool` takes them.
        """
        with cls(conn_string, **settings) as saver:
            yield saver

    @property
    def pool(self) -> Pool | PostgresPool:
        """The pool that the saver works on."""
        return self._pool

    def setup(self) -> None:
        """Do nothing: the tables were made with the saver. It is there for programs that set up any checkpointer."""

    def close(self) -> None:
        """Close the pool, if the saver opened it. Safe to call twice."""
        if self._owns_pool:
            self._pool.close()

    def __enter__(self) -> WalpoolSaver:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return a checkpoint with its values, metadata and pending writes, all from one snapshot, or None.

        Args:
            config: names a thread, perhaps a namespace (`checkpoint_ns`), and perhaps a checkpoint; without one it is
                the latest.

        Raises:
            ConfigError: the config names no thread.
        """
        return _codec.decode_tuple(self._sql, self.serde, self._pool.fetch(*self._sql.get(*_codec.place_of(config))))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, newest first, a page at a time in memory.

        Nothing is held between pages: any other call may be made meanwhile, by this thread too. Each page is a snapshot
        of its own, so what is stored or deleted meanwhile may be seen or missed; nothing is seen twice.

        Args:
            config: names a thread, and perhaps a namespace and a checkpoint; without a namespace it is all of them.
                None is every thread.
            filter: what the metadata must hold: each key with an equal value.
            before: names a checkpoint; only older ones are listed.
            limit: at most this many.
        """
        listing = _codec.Listing(self._sql, config, filter, before, limit)
        while not listing.is_done:
            yield from self._page(listing)

    def _page(self, listing: _codec.Listing) -> Sequence[CheckpointTuple]:
        with self._pool.read() as snapshot:
            chosen = listing.choose(snapshot.fetch(*listing.keys_wanted()))
            rows = snapshot.fetch(*self._sql.get_many(chosen)) if chosen else []
        found = _codec.decode_tuples(self._sql, self.serde, rows)
        return [found[key.row] for key in chosen]

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, and the values of the channels that changed, as one job; return the config that names it.

        Args:
            config: names the thread, the namespace, and as `checkpoint_id` the parent.
            checkpoint: the values of channels that are not in `new_versions` were stored before, under the version that
                it names for them; those of channels without a version are stored with the checkpoint itself.
            metadata: JSON's types.
            new_versions: the channels that changed, with their versions.

        Raises:
            ConfigError: the config names no thread.
            TypeError: metadata that is not JSON.
            WriteTimeout, BusyError, QueueFull: its turn did not come; nothing was stored (retryable).
            StorageError: the disk refused; see `.outcome`.
        """
        statements, stored = _codec.encode_put(self._sql, self.serde, config, checkpoint, metadata, new_versions)
        self._pool.batch(statements)
        return stored

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote, beside the checkpoint that it ran on, as one job.

        Stored again, a write changes nothing, but for those of LangGraph's special channels (errors, interrupts,
        resume values), which replace what was there.

        Args:
            config: names a thread and a checkpoint.
            writes: pairs of channel and value, in order.
            task_id: the task.
            task_path: where in the graph it ran; what is read back is ordered by it.

        Raises:
            ConfigError: the config names no thread or no checkpoint.
            WriteTimeout, BusyError, QueueFull: its turn did not come; nothing was stored (retryable).
        """
        rows = _codec.encode_writes(self._sql, self.serde, config, writes, task_id, task_path)
        if rows:
            self._pool.executemany(self._sql.put_writes, rows)

    def delete_thread(self, thread_id: str) -> None:
        """Delete all that belongs to a thread, as one job."""
        self._pool.batch(self._sql.delete_threads([str(thread_id)]))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints whose metadata names one of these runs, with their writes and values, as one job.

        A checkpoint stays if the delta channels of one that is not deleted are rebuilt from it.

        Args:
            run_ids: values of `run_id`.
        """
        if run_ids:
            self._pool.batch(self._sql.delete_runs([str(run_id) for run_id in run_ids]))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all that belongs to a thread to another one, as one job.

        What the target has under the same ids is replaced; the rest of it stays.

        Args:
            source_thread_id: a thread; one that is not there is copied as nothing.
            target_thread_id: the thread to add to.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        if source != target:
            self._pool.batch(self._sql.copy_thread(source, target))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete what these threads no longer need, as one job.

        Args:
            thread_ids: which threads.
            strategy: `keep_latest` keeps the latest checkpoint of each namespace, and those ancestors from which its
                delta channels are rebuilt; `delete` keeps nothing.

        Raises:
            ConfigError: another strategy.
        """
        refuse_unknown(strategy)
        ids = [str(thread_id) for thread_id in thread_ids]
        if ids:
            of = self._sql.keep_latest if strategy == "keep_latest" else self._sql.delete_threads
            self._pool.batch(of(ids))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what delta channels are rebuilt from at a checkpoint, read in one statement.

        Args:
            config: names the checkpoint; without one it is the latest.
            channels: the channels to rebuild.

        Returns:
            For each channel the writes of its ancestors, oldest first, and as `seed` the value that they begin from,
            if there is one.
        """
        if not channels:
            return {}
        rows = self._pool.fetch(*self._sql.history(*_codec.place_of(config), list(channels)))
        return _codec.decode_history(self._sql, self.serde, rows, channels)

    # The same for asyncio, on threads.

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return what `get_tuple` returns."""
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield what `list` yields."""
        listing = _codec.Listing(self._sql, config, filter, before, limit)
        while not listing.is_done:
            for found in await asyncio.to_thread(self._page, listing):
                yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do what `put` does."""
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `put_writes` does."""
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Do what `delete_thread` does."""
        await asyncio.to_thread(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `delete_for_runs` does."""
        await asyncio.to_thread(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `copy_thread` does."""
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do what `prune` does."""
        await asyncio.to_thread(lambda: self.prune(thread_ids, strategy=strategy))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what `get_delta_channel_history` returns."""
        return await asyncio.to_thread(lambda: self.get_delta_channel_history(config=config, channels=channels))


WalpoolSaver.__module__ = "walpool.langgraph"
