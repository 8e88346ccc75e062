"""What both LangGraph savers are, and what both refuse; no statement is run here but to prepare the tables."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

from langgraph.checkpoint.base import BaseCheckpointSaver

from walpool import schema
from walpool.errors import ConfigError
from walpool.langgraph import _codec, _dialects, _sql

if TYPE_CHECKING:
    from walpool.aio import AsyncPool
    from walpool.pool import Pool
    from walpool.postgres import AsyncPostgresPool, PostgresPool

_STOCK_TABLES: Final = (
    "{path} holds threads of {stock}, which walpool does not read: "
    "its savers begin with tables of their own, beside them"
)


class BaseSaver(BaseCheckpointSaver[str]):
    """How both savers number the versions of a channel: so that LangGraph's own savers could go on with a thread."""

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version that sorts after `current`, and that nobody else who follows `current` gets.

        Args:
            current: the version before, of this saver or one of LangGraph's own; None for a channel's first.
            channel: not used.
        """
        return _codec.next_version(current)


def refuse_unknown(strategy: str) -> None:
    """Refuse what `prune` cannot do.

    Raises:
        ConfigError: the strategy is not one of LangGraph's.
    """
    if strategy not in ("keep_latest", "delete"):
        msg = "strategy must be 'keep_latest' or 'delete'"
        raise ConfigError(msg)


def prepare(pool: Pool | PostgresPool) -> None:
    """Bring the savers' tables in the pool's database up to date."""
    dialect = _dialects.of(pool.backend)
    if schema.version(pool, _sql.SCHEMA) == 0 and pool.fetchval(dialect.find_stock_tables) == 2:
        text = _STOCK_TABLES.format(path=pool.path, stock=dialect.stock)
        warnings.warn(text, UserWarning, stacklevel=4)
    schema.migrate(pool, _sql.SCHEMA, dialect.migrations)


async def prepare_async(pool: AsyncPool | AsyncPostgresPool) -> None:
    """Do what `prepare` does, through a pool for asyncio."""
    dialect = _dialects.of(pool.backend)
    if await schema.version_async(pool, _sql.SCHEMA) == 0 and await pool.fetchval(dialect.find_stock_tables) == 2:
        text = _STOCK_TABLES.format(path=pool.path, stock=dialect.stock)
        warnings.warn(text, UserWarning, stacklevel=3)
    await schema.migrate_async(pool, _sql.SCHEMA, dialect.migrations)
