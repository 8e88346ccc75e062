"""walpool's own sets of tables, which differ between backends: what both sides of one have in common, or who moves it.

A set is described once, beside its tables: each `Part` has the columns that both backends have in common, and for each
backend a `Face`, which says how they are read and written there. All else is as for any table. A set that is more than
its tables is moved by a `Mover`. Both are handed in by the set's name, that of `walpool_schema`, since those who know
sets stand above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

from walpool.migrating.plan import Column
from walpool.postgres.binary import Form
from walpool.schema import TENANT, Migration

__all__ = [
    "DERIVED", "OWN", "Backend", "Face", "LooksAhead", "Mover", "Part", "Set", "blob", "integer", "real", "set_of",
    "text", "vector", "versioned",
]  # fmt: skip

Backend: TypeAlias = Literal["sqlite", "postgres"]

Code: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What a value becomes that was read, and one that is written."""


class Mover(Protocol):
    """Moves one set of tables from one database to another."""

    def __call__(self, source: str, target: str, /) -> list[str]:
        """Copy what the target lacks, compare both, and return what differs, in sentences.

        Called again it adds what is missing, and changes nothing that is there.
        """


@runtime_checkable
class LooksAhead(Protocol):
    """A `Mover` that says beforehand what stands in its way."""

    def look(self, source: str, target: str, /) -> tuple[list[str], list[str]]:
        """Return why the set cannot be moved, and what a person should know of it; in sentences, for the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """How one backend has the rows of a part, in SQL. What is not said is as it is in a table with these columns.

    Attributes:
        table: the name of its table.
        rows: where rows are read from: FROM and what follows.
        reads: columns that are read as another expression.
        given: where rows are written from: `given`, which has all columns of the part, perhaps joined with others.
        writes: columns of the table, the part's or others, that are written as another expression.
        lacks: columns of the part that are not written.
        order: by what rows are read in pages, each at its place: the columns of an index.
        drop: the statement that deletes the rows of one key.
        finish: statements that make whole what was written; run again they change nothing.
        codes: columns whose values become others in Python.
    """

    table: str = ""
    rows: str = ""
    reads: Mapping[str, str] = field(default_factory=dict)
    given: str = "given"
    writes: Mapping[str, str] = field(default_factory=dict)
    lacks: Collection[str] = ()
    order: tuple[str, ...] = ()
    drop: str = ""
    finish: tuple[str, ...] = ()
    codes: Mapping[str, Code] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table of a set, as both backends have it in common.

    Attributes:
        name: what it is called.
        columns: those that are moved, each of the type that PostgreSQL's values have. One that is not compared follows
            from others, or says where a row stands.
        key: what tells rows apart; without one all are compared and repaired as a whole.
        is_grouped: whether several rows have one key. They are one thing: compared with their order, and repaired
            together.
        sqlite, postgres: how each backend has them.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    is_grouped: bool = False
    sqlite: Face = field(default_factory=Face)
    postgres: Face = field(default_factory=Face)

    def face(self, backend: Backend) -> Face:
        """Return how a backend has it."""
        return self.sqlite if backend == "sqlite" else self.postgres

    def order(self, backend: Backend) -> tuple[str, ...]:
        """Return the columns by which a backend's rows are read in pages."""
        return self.face(backend).order or self.key

    def table(self, backend: Backend) -> str:
        """Return the name of its table."""
        return self.face(backend).table or self.name

    def relation(self, backend: Backend) -> str:
        """Return what its rows are read from: a subquery, with the columns of the part."""
        face = self.face(backend)
        rows = face.rows or f"FROM {self.table(backend)}{self.mine(backend, 'WHERE')}"
        shown = ", ".join(f'{face.reads.get(name, _quoted(name))} AS "{name}"' for name in self._names)
        return f"(SELECT {shown} {rows}) AS part"

    def insert(self, backend: Backend) -> str:
        """Return the statement that writes what is in `given`."""
        face = self.face(backend)
        written = {name: f'given."{name}"' for name in self._names if name not in face.lacks} | dict(face.writes)
        into = f"INSERT INTO {self.table(backend)} ({', '.join(map(_quoted, written))})"
        return f"{into} SELECT {', '.join(written.values())} FROM {face.given} WHERE true"

    def upsert(self, backend: Backend) -> str:
        """Return what makes an INSERT change the row that has its key; where it stands, it stays."""
        face, known = self.face(backend), {*self.key, *self.sqlite.order, *self.postgres.order}
        changed = [name for name in self._names if name not in known and name not in face.lacks]
        setting = ", ".join(f'"{name}" = excluded."{name}"' for name in changed)
        key = self.key if backend == "sqlite" else ("tenant", *self.key)
        return f" ON CONFLICT ({', '.join(map(_quoted, key))}) DO UPDATE SET {setting}"

    def delete(self, backend: Backend) -> str:
        """Return the statement that deletes the rows of one key."""
        having = " AND ".join(f'"{name}" = ?' for name in self.key)
        made = f"DELETE FROM {self.table(backend)} WHERE {having}{self.mine(backend, 'AND')}"
        return self.face(backend).drop or made

    def clear(self, backend: Backend) -> str:
        """Return the statement that deletes all rows."""
        return f"DELETE FROM {self.table(backend)}{self.mine(backend, 'WHERE')}"

    def mine(self, backend: Backend, before: str) -> str:
        """Return the condition that rows are the tenant's: a file has no others."""
        return f" {before} tenant = {TENANT}" if backend == "postgres" else ""

    @property
    def is_plain(self) -> bool:
        """Whether PostgreSQL's table takes rows as they are."""
        return not self.postgres.writes and not self.postgres.lacks

    @property
    def _names(self) -> list[str]:
        return [column.name for column in self.columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A set of tables that is moved part by part.

    Attributes:
        parts: what it consists of, in the order in which rows are written.
        schemas: by which names `walpool_schema` has its tables, with the migrations that make them.
        unversioned: what makes a table of a file that is in no schema.
        needs: a query that says whether a PostgreSQL has what the tables need, and what to say where it has not. Such
            tables are made only where there are rows for them.
    """

    parts: tuple[Part, ...]
    schemas: Mapping[Backend, Mapping[str, Sequence[Migration]]]
    unversioned: str = ""
    needs: tuple[str, str] | None = None


def versioned(
    name: str, migrations: Mapping[Any, Sequence[Migration]]
) -> Mapping[Backend, Mapping[str, Sequence[Migration]]]:
    """Return the schemas of a set that both backends have by one name."""
    return {"sqlite": {name: migrations["sqlite"]}, "postgres": {name: migrations["postgres"]}}


def text(name: str, *, required: bool = True, compared: bool = True) -> Column:
    """Return a column of texts, which sort by their bytes."""
    return Column(name, Form.TEXT, "TEXT", "TEXT", required, is_compared=compared)


def integer(name: str, *, required: bool = True, compared: bool = True) -> Column:
    """Return a column of integers."""
    return Column(name, Form.BIGINT, "BIGINT", "INTEGER", required, is_compared=compared)


def real(name: str, *, required: bool = True) -> Column:
    """Return a column of numbers with a point."""
    return Column(name, Form.DOUBLE, "DOUBLE PRECISION", "REAL", required)


def blob(name: str) -> Column:
    """Return a column of bytes."""
    return Column(name, Form.BYTEA, "BYTEA", "BLOB", is_required=True)


def vector(name: str) -> Column:
    """Return a column of embeddings, each as pgvector sends it."""
    return Column(name, Form.VECTOR, "vector", "BLOB", is_required=True)


OWN: Final = frozenset({"walpool_schema", "walpool_migration", "walpool_retired"})
"""Tables that are about one database, and are in no other."""

_TABLES: Final = {
    "memory": re.compile(r"memory_\w+"),
    "langgraph": re.compile(r"langgraph_(blobs|checkpoints|writes)"),
    "langgraph_store": re.compile(r"langgraph_(items|vectors|spaces|scopes|sketches)"),
    "langgraph_cache": re.compile(r"langgraph_cache"),
    "crewai": re.compile(r"flow_states|pending_feedback|latest_kickoff_task_outputs"),
    "crewai_checkpoints": re.compile(r"crewai_checkpoints"),
    "crewai_long_term": re.compile(r"long_term_memories"),
    "openai_agents": re.compile(r"agent_(sessions|messages)"),
}
DERIVED: Final = {"memory": re.compile(r"memory_(words|trigrams)(_\w+)?")}
"""What a set has besides its tables, virtual tables and views, by its name."""
_CREWAI_CHECKPOINTS: Final = {"id", "created_at", "parent_id", "branch", "data"}


def set_of(backend: Backend, table: str, columns: Collection[str], present: set[str]) -> str | None:
    """Return the set that a table belongs to, of those that a database has; None if it is the user's own."""
    if backend == "sqlite" and table == "checkpoints" and set(columns) == _CREWAI_CHECKPOINTS:
        return "crewai_checkpoints"  # it is CrewAI's own table, and in no schema
    for name, pattern in _TABLES.items():
        if name in present and pattern.fullmatch(table):
            return name
    return None


def _quoted(name: str) -> str:
    return f'"{name}"'
