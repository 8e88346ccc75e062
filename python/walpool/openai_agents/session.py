"""`WalpoolSession`: the history of one conversation, for the SDK's `Runner`."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agents.memory.session_settings import SessionSettings, coerce_session_settings, resolve_session_limit

from walpool.errors import ClosedError
from walpool.openai_agents import _database, _sql
from walpool.registry import is_async_pool, is_pool

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from walpool.aio import AsyncPool
    from walpool.postgres import AsyncPostgresPool

__all__ = ["SessionClosedError", "WalpoolSession"]


# The one class of walpool's that derives from RuntimeError: the SDK's sessions raise that when they are closed, so code
# written for them catches it, and the SDK takes it for nothing else.
class SessionClosedError(ClosedError, RuntimeError):
    """The session was closed; make a new one with the same `session_id`. Nothing was read or written."""


SessionClosedError.__module__ = "walpool.openai_agents"


class WalpoolSession:
    """A `Session` for `Runner.run(..., session=...)`: the items of one conversation, in the order they were added.

    Any number of sessions may use one file, from any number of tasks, event loops and threads; what each method writes
    is one job, all of it or nothing, and durable when the method returns. A cancelled method has written all or
    nothing too; docs/asyncio.md says which.

    The tables in a file are those of the SDK's `SQLiteSession`, so a file of the one may be used by the other.

    Args:
        session_id: which conversation. The same id on the same file is the same conversation, in any process.
        pool_or_path_or_url: a `walpool.AsyncPool`, or what `walpool.get_async_pool` gives, which stays yours to close;
            or a path or URL, for which all sessions of the process that name it share one pool, closed with the last of
            them; None takes `WALPOOL_URL`. `:memory:` is a temporary file for this session alone.
        session_settings: the SDK's settings, or a dict of them: `limit` is what `get_items` takes where it is given
            none.
        **settings: as `walpool.AsyncPool` takes them; only with a path or a URL.

    Attributes:
        session_id: as given.
        session_settings: as given, as a `SessionSettings`; may be replaced.

    Raises:
        ConfigError: no database was named, or a setting is wrong.
        TypeError: settings beside a pool, a synchronous pool, or unknown session settings.
    """

    session_id: str
    session_settings: SessionSettings | None = None

    def __init__(
        self,
        session_id: str,
        pool_or_path_or_url: AsyncPool | AsyncPostgresPool | str | os.PathLike[str] | None = None,
        *,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.session_id = session_id
        self.session_settings = coerce_session_settings({} if session_settings is None else session_settings)
        self._is_closed = False
        if is_pool(pool_or_path_or_url):
            raise TypeError("a Pool cannot be awaited: give an AsyncPool on the same file, which shares its engine")
        if not is_async_pool(pool_or_path_or_url):
            self._database = _database.of_path(pool_or_path_or_url, settings, self)
        elif settings:
            raise TypeError(f"{', '.join(sorted(settings))}: the pool that was given has its settings already")
        else:
            self._database = _database.of_pool(pool_or_path_or_url)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the items of the conversation, oldest first, read from one snapshot.

        What is no JSON in the file is left out, and does not count.

        Args:
            limit: the newest so many; 0 is none, a negative one is all. None uses `session_settings.limit`, and
                without that returns all.

        Raises:
            SessionClosedError: the session is closed.
            CheckoutTimeout: no reader came free in time (retryable).
        """
        pool = await self._pool()
        wanted = resolve_session_limit(limit, self.session_settings)
        if wanted is not None and wanted < 0:
            wanted = None
        window = _sql.NO_LIMIT if wanted is None else min(wanted, _sql.NO_LIMIT)
        while True:
            sql, params, decode = _sql.latest_items(pool.backend, self.session_id, window)
            rows = await pool.fetch(sql, params)
            items = decode(rows)
            if wanted is None or wanted <= len(items) or len(rows) < window:
                return items[-wanted:] if wanted is not None and wanted > 0 else items
            window *= 2  # some of the newest could not be decoded: look further back

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items to the conversation: one job, durable when this returns.

        Items that two callers add at once do not mix.

        Args:
            items: what JSON can hold; an empty list writes nothing.

        Raises:
            SessionClosedError: the session is closed.
            TypeError, ValueError: an item has no JSON form; nothing was written.
            WriteTimeout, BusyError, QueueFull: the job's turn did not come; nothing was written (retryable).
            StorageError: the disk refused; see `.outcome`.
        """
        if not items:
            self._refuse_if_closed()
            return
        pool = await self._pool()
        await pool.batch(_sql.add_items(pool.backend, self.session_id, items))

    async def pop_item(self) -> TResponseInputItem | None:
        """Take the newest item out of the conversation and return it; None if there is none.

        Of callers that pop at once each gets another item. What is no JSON is taken out on the way.

        Raises:
            As `add_items`.
        """
        pool = await self._pool()
        job, decode = _sql.pop_item(pool.backend, self.session_id)
        while rows := (await pool.batch(job))[-1].rows:
            items: list[TResponseInputItem] = decode(rows)
            if items:
                return items[0]
        return None

    async def clear_session(self) -> None:
        """Forget the conversation: one job. Items that are added later begin it anew.

        Raises:
            As `add_items`.
        """
        pool = await self._pool()
        await pool.batch(_sql.clear_session(pool.backend, self.session_id))

    async def close(self) -> None:
        """Refuse further calls, and close what was opened for this session alone. Safe to call twice.

        A pool that was given to the session stays open, and one that was opened by a path stays open for the other
        sessions on that path: the last one closes it, after all that was accepted has been answered.
        """
        self._is_closed = True
        await self._database.leave(self)

    async def __aenter__(self) -> WalpoolSession:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _pool(self) -> AsyncPool | AsyncPostgresPool:
        self._refuse_if_closed()
        return await self._database.open()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise SessionClosedError(f"{type(self).__name__} is closed")


WalpoolSession.__module__ = "walpool.openai_agents"
