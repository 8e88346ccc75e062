"""Searches of an agent's memories on PostgreSQL, inside one scope: walpool's store beside what is written by hand.

Owns the records, the server, how each contender fills and asks it, and how the answers are checked. The server has its
makers' settings, so that its memory (128 MB) does not hold the embeddings.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from benches import postgres_server
from benches.harness import Sample, Scale, Workload, by_name, settle
from benches.measure import run_in_turn
from benches.memory_contenders import WalpoolMemory
from benches.memory_data import TIE, Corpus, Item, Synthetic
from benches.targets import AtMost, Target

LIMIT = 10  # hits
IN_SCOPE = 500  # records
ASKED = 64  # questions that are timed, again and again
CHECKED = 20  # questions whose answers are compared with the exact ones
STRIDE = 37  # scopes from one search to the next: a server that reads ahead gains nothing
WHOLE = 5  # searches of everything, at least


class Store(Protocol):
    """A table of memories on a server."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]

    @classmethod
    def obstacle(cls) -> str | None:
        """Return why no server can run here; None if one can."""
        return postgres_server.obstacle()

    @contextmanager
    def served(self, url: str) -> Iterator[Any]:
        """Yield it on an empty database."""
        raise NotImplementedError

    def load(self, items: Sequence[Item]) -> None:
        """Store many records at once."""
        raise NotImplementedError

    def settle(self) -> None:
        """Do, after a bulk load, what its makers advise."""
        raise NotImplementedError

    def pack(self, vector: Any) -> Any:
        """Return a vector as it takes it."""
        raise NotImplementedError

    def nearest(self, question: Any, scope: str | None) -> Any:
        """Return the records nearest to a packed question, in a scope or everywhere, nearest first."""
        raise NotImplementedError

    def numbers(self, answer: Any) -> list[int]:
        """Return the numbers of the records in an answer."""
        raise NotImplementedError


class OnPostgres(Store):
    """`walpool.memory.open(url)`, with its default settings."""

    name = "walpool"
    requires = ("walpool.memory", "psycopg", "numpy")

    @contextmanager
    def served(self, url: str) -> Iterator[Any]:
        import walpool.memory

        with walpool.memory.open(url) as store:
            self._store: Any = store
            yield self

    def load(self, items: Sequence[Item]) -> None:
        self._store.save([WalpoolMemory._record(item, self.pack(item.vector)) for item in items])

    def settle(self) -> None:
        self._store.compact()

    def pack(self, vector: Any) -> Any:
        return vector.astype("<f4").tobytes()

    def nearest(self, question: Any, scope: str | None) -> Any:
        from walpool.memory import Query

        return self._store.search(question, Query(scope=scope), limit=LIMIT)

    def numbers(self, answer: Any) -> list[int]:
        return [int(hit.record.id.removeprefix("record-")) for hit in answer]


class InOrder(OnPostgres):
    """The same after what the page on memories advises for searches in scopes: a scope's rows next to each other."""

    name = "walpool-cluster"

    @contextmanager
    def served(self, url: str) -> Iterator[Any]:
        self._url = url
        with super().served(url) as store:
            yield store

    def settle(self) -> None:
        import psycopg

        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute("CLUSTER memory_vectors USING memory_vectors_scope")
        super().settle()


class PgvectorByHand(Store):
    """psycopg and pgvector as their pages have it: a table, an index on the scope, an exact search, vectors in binary.

    psycopg prepares what is asked time and again. It gives back what a caller shows, and not the embeddings.
    """

    name = "pgvector"
    requires = ("psycopg", "numpy")
    _create = """CREATE EXTENSION vector;
        CREATE TABLE memories (id TEXT PRIMARY KEY, scope TEXT NOT NULL, content TEXT NOT NULL,
            categories TEXT[] NOT NULL, metadata JSONB NOT NULL, importance DOUBLE PRECISION NOT NULL,
            created_at TIMESTAMPTZ NOT NULL,
            embedding VECTOR(1536) NOT NULL);
        CREATE INDEX ON memories (scope)"""
    _copy = """COPY memories (id, scope, content, categories, metadata, importance, created_at, embedding)
        FROM STDIN WITH (FORMAT BINARY)"""
    _types = ("text", "text", "text", "text[]", "jsonb", "float8", "timestamptz", "vector")
    _columns = "id, scope, content, categories, metadata, importance, created_at, 1 - (embedding <=> %b) AS score"

    @contextmanager
    def served(self, url: str) -> Iterator[Any]:
        import psycopg
        from psycopg.types import TypeInfo

        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(self._create)
            found = TypeInfo.fetch(conn, "vector")
            assert found is not None  # it was made just now
            found.register(conn)
            conn.adapters.register_dumper(Packed, _dumper(found.oid))
            self._conn: Any = conn
            yield self

    def load(self, items: Sequence[Item]) -> None:
        from psycopg.types.json import Jsonb

        with self._conn.cursor() as cursor, cursor.copy(self._copy) as copy:
            copy.set_types(self._types)
            for item in items:
                told = (item.id, item.scope, item.content, list(item.categories), Jsonb(item.metadata))
                copy.write_row((*told, item.importance, item.created_at, self.pack(item.vector)))

    def settle(self) -> None:
        self._conn.execute("ANALYZE memories")

    def pack(self, vector: Any) -> Any:
        return Packed(vector)

    def nearest(self, question: Any, scope: str | None) -> Any:
        where, given = ("", ()) if scope is None else ("WHERE scope = %s", (scope,))
        sql = f"SELECT {self._columns} FROM memories {where} ORDER BY embedding <=> %b LIMIT {LIMIT}"
        rows: list[Any] = self._conn.execute(sql, (question, *given, question)).fetchall()
        return rows

    def numbers(self, answer: Any) -> list[int]:
        return [int(row[0].removeprefix("record-")) for row in answer]


class Packed:
    """A vector in pgvector's binary form."""

    def __init__(self, vector: Any) -> None:
        self.wire: bytes = struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes()


def _dumper(oid: int) -> Any:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class PackedDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: Packed) -> bytes:
            return obj.wire

    PackedDumper.oid = oid
    return PackedDumper


@dataclass(frozen=True)
class Scoped:
    """A corpus whose records lie in scopes of `IN_SCOPE`, to each of which comes one record in turn."""

    corpus: Corpus

    @property
    def scopes(self) -> int:
        return max(2, self.corpus.rows // IN_SCOPE)

    def scope(self, number: int) -> str:
        return f"/crew/agent-{number % self.scopes:02}"

    def blocks(self) -> Iterator[list[Item]]:
        for block in self.corpus.blocks():
            yield [replace(item, scope=self.scope(item.number)) for item in block]


@dataclass(frozen=True)
class PostgresMemory:
    """One caller asks a store on a server for the ten nearest: in one scope after another, in one alone, everywhere."""

    name: str
    title: str
    targets: Sequence[Target]
    rows: int
    seconds: float = 6.0
    synchronous: str = "full"
    most_runs: int = 3

    @property
    def contenders(self) -> Mapping[str, type[Any]]:
        return by_name(PgvectorByHand, InOrder, OnPostgres)

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        memories = Scoped(Synthetic(scale.rows(self.rows)))
        server = postgres_server.PostgresServer(folder)
        try:
            with self.contenders[contender]().served(server.url()) as store:
                loaded = _load(store, memories)
                server.execute("CHECKPOINT")
                settle()
                return self._asked(store, memories, scale, loaded)
        finally:
            server.close()

    def _asked(self, store: Any, memories: Scoped, scale: Scale, loaded: Mapping[str, float]) -> Sample:
        questions = [store.pack(vector) for vector in memories.corpus.questions(ASKED)]
        window = self.seconds * scale.window_s
        asked = {
            "turn": lambda number: store.nearest(questions[number % ASKED], memories.scope(number * STRIDE)),
            "same": lambda number: store.nearest(questions[number % ASKED], memories.scope(0)),
        }
        timings = {name: run_in_turn({name: ask}, window, least=scale.rounds)[name] for name, ask in asked.items()}
        everywhere = {"whole": lambda number: store.nearest(questions[number % ASKED], None)}
        timings |= run_in_turn(everywhere, 0.0, least=min(WHOLE, scale.rounds))
        figures = {name: timing.figures() for name, timing in timings.items()}
        told = {"searches/s": figures["turn"]["ops/s"], "p50 ms": figures["turn"]["p50 ms"]}
        told |= {"p99 ms": figures["turn"]["p99 ms"], "same p50 ms": figures["same"]["p50 ms"]}
        told |= {"whole ms": figures["whole"]["p50 ms"]}
        errors = sum((timing.errors for timing in timings.values()), Counter[str]())
        return Sample({**told, **loaded}, errors, _mistakes(store, memories))


def _load(store: Any, memories: Scoped) -> dict[str, float]:
    seconds = 0.0
    for block in memories.blocks():
        begun = time.perf_counter()
        store.load(block)
        seconds += time.perf_counter() - begun
    begun = time.perf_counter()
    store.settle()
    return {"load s": seconds, "settle s": time.perf_counter() - begun}


def _mistakes(store: Any, memories: Scoped) -> tuple[str, ...]:
    """Return what differs from an exact search in float64; of two as near either is right."""
    import numpy as np

    scopes = {memories.scope(number * STRIDE): memories.corpus.questions(CHECKED)[number] for number in range(CHECKED)}
    members: dict[str, list[Item]] = {scope: [] for scope in scopes}
    for block in memories.blocks():
        for item in block:
            if item.scope in members:
                members[item.scope].append(item)
    wrong: Counter[str] = Counter()
    for scope, question in scopes.items():
        scores = {item.number: float(item.vector.astype(float) @ question.astype(float)) for item in members[scope]}
        best = np.sort(list(scores.values()))[::-1][:LIMIT]
        found = [scores.get(number, -2.0) for number in store.numbers(store.nearest(store.pack(question), scope))]
        if len(found) != len(best) or np.abs(found - best).max() > TIE:
            wrong["a search in a scope found others than the nearest"] += 1
    return tuple(f"{times} times {text}" for text, times in wrong.items())


POSTGRES_MEMORY_WORKLOADS: list[Workload] = [
    PostgresMemory(
        "postgres-memory-scope",
        "the 10 nearest in a scope of 500 among 50 000 memories of 1536 dims on PostgreSQL, 1 thread",
        (AtMost("p50 ms", 3.0),),
        50_000,
    )
]
