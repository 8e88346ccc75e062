"""`Dialect`: what the LangGraph savers say to a database, in the SQL of its backend. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from walpool.langgraph import _postgres_sql, _sql, _upkeep_sql
from walpool.langgraph._sql import Key, Search, Statement
from walpool.schema import Migration

Typed: TypeAlias = "tuple[str, bytes]"
"""A value as LangGraph's serializers give it; some give text in place of bytes."""


@dataclass(frozen=True)
class Dialect:
    """The statements of one backend; each is described where it is made, in `_sql` and `_upkeep_sql`."""

    migrations: Sequence[Migration]
    find_stock_tables: str
    stock: str
    """The package whose tables those are."""
    put_writes: str
    stored: Callable[[Any], tuple[str, bytes]]
    loaded: Callable[[str, bytes], Any]
    put_checkpoint: Callable[[str, str, str, str | None, str | None, str, str, Typed], Statement]
    put_blob: Callable[[str, str, str, str, Typed], Statement]
    get: Callable[[str, str, str | None], Statement]
    get_many: Callable[[Sequence[Key]], Statement]
    find: Callable[[Search, Key | None, int], Statement]
    delete_threads: Callable[[Sequence[str]], list[Statement]]
    keep_latest: Callable[[Sequence[str]], list[Statement]]
    delete_runs: Callable[[Sequence[str]], list[Statement]]
    copy_thread: Callable[[str, str], list[Statement]]
    history: Callable[[str, str, str | None, Sequence[str]], Statement]


SQLITE: Final = Dialect(
    migrations=_sql.MIGRATIONS,
    find_stock_tables=_sql.FIND_STOCK_TABLES,
    stock="langgraph-checkpoint-sqlite",
    put_writes=_sql.PUT_WRITES,
    stored=lambda typed: typed,
    loaded=lambda kind, value: (kind, value),
    put_checkpoint=_sql.put_checkpoint,
    put_blob=_sql.put_blob,
    get=_sql.get,
    get_many=_sql.get_many,
    find=_sql.find,
    delete_threads=_upkeep_sql.delete_threads,
    keep_latest=_upkeep_sql.keep_latest,
    delete_runs=_upkeep_sql.delete_runs,
    copy_thread=_upkeep_sql.copy_thread,
    history=_upkeep_sql.history,
)

POSTGRES: Final = Dialect(
    migrations=_postgres_sql.MIGRATIONS,
    find_stock_tables=_postgres_sql.FIND_STOCK_TABLES,
    stock="langgraph-checkpoint-postgres",
    put_writes=_postgres_sql.PUT_WRITES,
    stored=_postgres_sql.stored,
    loaded=_postgres_sql.loaded,
    put_checkpoint=_postgres_sql.put_checkpoint,
    put_blob=_postgres_sql.put_blob,
    get=_postgres_sql.get,
    get_many=_postgres_sql.get_many,
    find=_postgres_sql.find,
    delete_threads=_postgres_sql.delete_threads,
    keep_latest=_postgres_sql.keep_latest,
    delete_runs=_postgres_sql.delete_runs,
    copy_thread=_postgres_sql.copy_thread,
    history=_postgres_sql.history,
)


def of(backend: Literal["sqlite", "postgres"]) -> Dialect:
    """Return what is said to a backend."""
    return SQLITE if backend == "sqlite" else POSTGRES
