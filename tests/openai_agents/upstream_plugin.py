"""A pytest plugin for the SDK's own tests: `WalpoolSession` under the names of the SDK's SQLite sessions.

Loaded by `test_upstream_sessions.py` into a pytest of its own (`-p upstream_plugin`). The two classes below have the
constructors of `SQLiteSession` and `AsyncSQLiteSession`, the one `close()` that is not awaited, and, for tests that put
broken rows into the file, a connection to it by another library. What they store goes through `WalpoolSession`.

With the URL of a PostgreSQL database in SESSIONS_IN, each file is a tenant in that database.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

os.environ.update(
    OPENAI_AGENTS_DISABLE_TRACING="true",
    OPENAI_API_KEY="never-used",
    # Nothing may leave the machine: whoever tries is refused at once rather than after a time-out.
    HTTP_PROXY="http://127.0.0.1:9",
    HTTPS_PROXY="http://127.0.0.1:9",
    OPENAI_AGENTS_TEST_USE_PROXY="true",
)

import agents
import agents.extensions.memory
import agents.extensions.memory.async_sqlite_session
import agents.memory
import agents.memory.sqlite_session
import aiosqlite
from agents.memory import SessionSettings

from walpool.openai_agents import WalpoolSession

if TYPE_CHECKING:
    from walpool.postgres import AsyncPostgresPool

SESSIONS_IN = os.environ.get("SESSIONS_IN")


class AsyncSQLiteSession(WalpoolSession):
    """`WalpoolSession` with the constructor and the attributes of the SDK's asynchronous SQLite session."""

    def __init__(
        self,
        session_id: str,
        db_path: str | Path = ":memory:",
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        assert (sessions_table, messages_table) == ("agent_sessions", "agent_messages")
        self._own_pool = None if SESSIONS_IN is None else _tenant(SESSIONS_IN, db_path)
        super().__init__(session_id, self._own_pool or db_path, session_settings=session_settings)
        self.db_path = db_path
        self.sessions_table = sessions_table
        self.messages_table = messages_table
        self._strangers: list[aiosqlite.Connection] = []

    async def _get_connection(self) -> aiosqlite.Connection:
        await self.get_items()  # the file and its tables are there from the first use on
        self._strangers.append(await aiosqlite.connect(self.db_path))
        return self._strangers[-1]

    async def close(self) -> None:
        while self._strangers:
            await self._strangers.pop().close()
        await super().close()
        if self._own_pool is not None:
            await self._own_pool.close()


class SQLiteSession(AsyncSQLiteSession):
    """The same with the `close()` of the SDK's synchronous SQLite session."""

    @contextmanager
    def _locked_connection(self) -> Iterator[sqlite3.Connection]:
        _elsewhere(self.get_items())
        with closing(sqlite3.connect(self.db_path)) as conn:
            yield conn

    def close(self) -> None:  # type: ignore[override]
        _elsewhere(super().close())


def _tenant(url: str, db_path: str | Path) -> AsyncPostgresPool:
    from walpool.postgres import AsyncPostgresPool

    return AsyncPostgresPool(url, tenant=uuid4().hex if db_path == ":memory:" else str(db_path))


def _elsewhere(work: Coroutine[Any, Any, object]) -> None:
    """Run what must be awaited for a caller who cannot: its loop is running, so it runs on another meanwhile."""
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join()


for module in (agents, agents.memory, agents.memory.sqlite_session):
    vars(module)["SQLiteSession"] = SQLiteSession
for module in (agents.extensions.memory, agents.extensions.memory.async_sqlite_session):
    vars(module)["AsyncSQLiteSession"] = AsyncSQLiteSession
