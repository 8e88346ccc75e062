"""`StoreDialect`: what the LangGraph store says to a database, in the SQL of its backend. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from walpool.langgraph import _store_nearest, _store_postgres, _store_schema, _store_sql
from walpool.langgraph._handles import Tables
from walpool.langgraph._steps import Read, Statement, Steps
from walpool.langgraph._store_sql import Found, ItemId, Selection

ITEMS: Final = Tables("langgraph_store", {"sqlite": _store_schema.MIGRATIONS, "postgres": _store_postgres.MIGRATIONS})
VECTORS: Final = Tables(
    "langgraph_store_vectors",
    {"sqlite": (), "postgres": _store_postgres.VECTOR_MIGRATIONS},  # on SQLite they are among the items' tables
    (_store_postgres.HAS_VECTORS, "a store with an index needs the extension pgvector, which this server lacks"),
)


class Unscored(Protocol):
    """`_store_sql.unscored`."""

    def __call__(self, selection: Selection, dims: int, *, limit: int, offset: int) -> Read[list[ItemId]]: ...


class Nearest(Protocol):
    """`_store_nearest.nearest`."""

    def __call__(self, embedding: bytes, selection: Selection, *, limit: int) -> Steps[list[tuple[ItemId, float]]]: ...


class Put(Protocol):
    """`_store_sql.put`."""

    def __call__(
        self,
        namespace: Sequence[str],
        key: str,
        value: str,
        vectors: Sequence[tuple[str, bytes]],
        *,
        now: int,
        ttl: int | None,
        place: int,
        is_indexed: bool,
    ) -> list[Statement]: ...


@dataclass(frozen=True)
class StoreDialect:
    """The statements of one backend; each is described where it is made, in `_store_sql`."""

    in_key_order: bool
    """Whether the puts of a job are to follow the order of their keys, so that jobs which meet do not deadlock."""
    select: Callable[[Sequence[str], Selection, int | None], Selection]
    select_ids: Callable[[Sequence[ItemId]], Selection]
    narrow: Callable[[Mapping[Any, Any]], tuple[Selection, bool]]
    one: Callable[[Sequence[str], str, int | None], Read[Found | None]]
    items: Callable[[Sequence[ItemId]], Read[dict[ItemId, Found]]]
    unscored: Unscored
    nearest: Nearest
    namespaces: Callable[[Sequence[str], int | None], Read[list[tuple[str, ...]]]]
    put: Put
    delete: Callable[[Sequence[str], str], Statement]
    refresh: Callable[[Sequence[ItemId], int], Statement]
    sweep: Callable[[int, int], Statement]


SQLITE: Final = StoreDialect(
    in_key_order=False,
    select=_store_sql.select,
    select_ids=_store_sql.select_ids,
    narrow=_store_sql.narrow,
    one=_store_sql.one,
    items=_store_sql.items,
    unscored=_store_sql.unscored,
    nearest=_store_nearest.nearest,
    namespaces=_store_sql.namespaces,
    put=_store_sql.put,
    delete=_store_sql.delete,
    refresh=_store_sql.refresh,
    sweep=_store_sql.sweep,
)

POSTGRES: Final = StoreDialect(
    in_key_order=True,
    select=_store_postgres.select,
    select_ids=_store_postgres.select_ids,
    narrow=_store_postgres.narrow,
    one=_store_postgres.one,
    items=_store_postgres.items,
    unscored=_store_postgres.unscored,
    nearest=_store_postgres.nearest,
    namespaces=_store_postgres.namespaces,
    put=_store_postgres.put,
    delete=_store_postgres.delete,
    refresh=_store_postgres.refresh,
    sweep=_store_postgres.sweep,
)


def of(backend: Literal["sqlite", "postgres"]) -> StoreDialect:
    """Return what is said to a backend."""
    return SQLITE if backend == "sqlite" else POSTGRES
