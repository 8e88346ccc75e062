"""What CrewAI up to 1.9.3 keeps as long-term memory, in a walpool database: what tasks taught, found by the task."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from walpool.crewai import _sql
from walpool.crewai._database import Reopening, canonical_url, file_of, open_long_term

__all__ = ["WalpoolLongTermStorage"]


class WalpoolLongTermStorage:
    """What `LTMSQLiteStorage` is, method for method, without a connection per call; works beside any CrewAI.

    Where CrewAI's own class prints that something failed and goes on without it, this one raises: the crew catches it,
    says so and goes on.

    Args:
        db_path: a path, or a `walpool://`, `sqlite://` or `postgresql://` URL; None takes `WALPOOL_URL`, and without
            that `walpool.db` where CrewAI keeps its own databases. Opened at the first call.
        verbose: accepted for CrewAI's sake; nothing is printed.
        **settings: as `walpool.get_pool` takes them, with `tenant` on a server.

    Raises:
        ConfigError: the URL is none of a database.
    """

    def __init__(self, db_path: str | None = None, verbose: bool = True, **settings: Any) -> None:
        self.url = canonical_url(db_path)
        self.db_path = file_of(self.url)
        self._pool = Reopening(self.db_path, partial(open_long_term, self.url, settings))

    def save(self, task_description: str, metadata: dict[str, Any], datetime: str, score: int | float) -> None:  # noqa: PYI041 - as CrewAI says
        """Add what a task taught; one job, durable when it returns.

        Raises:
            TypeError: metadata that JSON cannot hold.
            DataError: a text with a lone surrogate.
        """
        row = (task_description, json.dumps(metadata), datetime, score)
        self._pool.use(lambda pool: pool.execute(*_sql.save_long_term(pool.backend, *row)))

    def load(self, task_description: str, latest_n: int) -> list[dict[str, Any]] | None:
        """Return what this very task taught, as dicts with metadata, datetime and score; None if nothing is there.

        Args:
            task_description: the task, to the letter.
            latest_n: at most this many, the latest first.
        """
        rows = self._pool.use(
            lambda pool: pool.fetch(*_sql.load_long_term(pool.backend, task_description, latest_n), row=dict)
        )
        return [{**row, "metadata": json.loads(row["metadata"])} for row in rows] or None

    def reset(self) -> None:
        """Delete all long-term memories."""
        self._pool.use(lambda pool: pool.execute(_sql.CLEAR_LONG_TERM[pool.backend]))

    async def asave(self, task_description: str, metadata: dict[str, Any], datetime: str, score: int | float) -> None:  # noqa: PYI041
        """Do what `save` does without blocking the loop."""
        await asyncio.to_thread(self.save, task_description, metadata, datetime, score)

    async def aload(self, task_description: str, latest_n: int) -> list[dict[str, Any]] | None:
        """Do what `load` does without blocking the loop."""
        return await asyncio.to_thread(self.load, task_description, latest_n)

    async def areset(self) -> None:
        """Do what `reset` does without blocking the loop."""
        await asyncio.to_thread(self.reset)

    def close(self) -> None:
        """Give the database back; the next call opens it again."""
        self._pool.close()


WalpoolLongTermStorage.__module__ = "walpool.crewai"
