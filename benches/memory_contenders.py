"""Stores of an agent's memories, each behind the same few verbs on the same records.

Owns how each is filled, opened and asked. Must not know what a workload does with it or how it is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

from benches.contenders import Walpool
from benches.crewai_contenders import LanceDB, crewai
from benches.memory_data import SELECTIONS, Item, Selection, scope_of

PARENT = scope_of(0).rsplit("/", 2)[0]  # of the teams, whose numbers of records a listing shows


class Store(Protocol):
    """One store; every method is called from many threads at once, but for `load`.

    A workload turns vectors into what the store takes (`pack`) before its clock starts. A store that cannot do
    something has no such method, and is no contender where that is asked for.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]] = ()  # imported before anything is timed in a fresh process

    @classmethod
    def obstacle(cls) -> str | None:
        """Return why it cannot work here although its packages can be imported; None if it can."""
        return None

    @contextmanager
    def opened(self, folder: Path, synchronous: str, cache_kib: int | None = None) -> Iterator[Any]:
        """Yield a store in `folder`, which is empty or holds one; afterwards nothing of it is open or runs.

        Args:
            folder: where the store is.
            synchronous: `full` or `normal`, for those on SQLite.
            cache_kib: the page cache of a connection, for those that have one; None is the one of all benchmarks.
        """
        raise NotImplementedError

    def load(self, items: Sequence[Item]) -> None:
        """Store many records at once."""
        raise NotImplementedError

    def settle(self) -> None:
        """Do, after a bulk load, what the store's makers advise."""

    def pack(self, vector: Any) -> Any:
        """Return a vector as the store takes it."""
        raise NotImplementedError

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        """Return the records nearest to a packed question among those selected, nearest first."""
        raise NotImplementedError

    def numbers(self, answer: Any) -> list[int]:
        """Return the numbers of the records in an answer."""
        raise NotImplementedError

    def stats(self) -> Mapping[str, float]:
        """Return what the store tells about itself."""
        return {}


class WalpoolMemory(Store):
    """walpool's memory store with its default settings, but for `synchronous`."""

    name = "walpool"
    requires = ("walpool.memory", "numpy")

    @contextmanager
    def opened(self, folder: Path, synchronous: str, cache_kib: int | None = None) -> Iterator[Any]:
        import walpool.memory

        cache: dict[str, Any] = {} if cache_kib is None else {"cache_size": cache_kib * 1024}
        with walpool.memory.open(folder / "memory.db", synchronous=synchronous, **cache) as store:
            self._store: Any = store
            yield self
            Walpool.last_stats = dict(self.stats())

    def __init__(self) -> None:
        from walpool.memory import Query

        self._queries = {
            selection.name: Query(scope=selection.scope, metadata={"tier": selection.tier} if selection.tier else None)
            for selection in SELECTIONS
        }

    def load(self, items: Sequence[Item]) -> None:
        self._store.save([self._record(item, self.pack(item.vector)) for item in items])

    def settle(self) -> None:
        self._store.compact()

    def pack(self, vector: Any) -> Any:
        return vector.astype("<f4").tobytes()

    def save(self, item: Item, packed: Any) -> None:
        self._store.save([self._record(item, packed)])

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        return self._store.search(question, self._queries[selection.name], limit=limit)

    def numbers(self, answer: Any) -> list[int]:
        return [int(hit.record.id.removeprefix("record-")) for hit in answer]

    def words(self, text: str, limit: int) -> Any:
        return self._store.search(text=text, limit=limit)

    def hybrid(self, text: str, question: Any, limit: int) -> Any:
        return self._store.search(question, text=text, limit=limit)

    def contents(self, answer: Any) -> list[str]:
        return [hit.record.content for hit in answer]

    def count(self) -> int:
        return int(self._store.count())

    def scopes(self) -> Any:
        return self._store.scopes(PARENT)

    def categories(self) -> dict[str, int]:
        return dict(self._store.categories())

    def stats(self) -> Mapping[str, float]:
        stats: Mapping[str, float] = self._store.pool.stats()
        return stats

    @staticmethod
    def _record(item: Item, packed: Any) -> Any:
        from walpool.memory import Record

        return Record(
            id=item.id,
            content=item.content,
            scope=item.scope,
            categories=item.categories,
            metadata=item.metadata,
            importance=item.importance,
            created_at=item.created_at,
            accessed_at=item.created_at,
            embedding=packed,
        )


class LanceDBMemory(Store):
    """LanceDB as CrewAI uses it: CrewAI's own storage class, with the compaction that it does itself."""

    name = "lancedb"
    requires = LanceDB.requires
    modules = ("crewai.memory.storage.lancedb_storage", "crewai.memory.types")

    @contextmanager
    def opened(self, folder: Path, synchronous: str, cache_kib: int | None = None) -> Iterator[Any]:
        with LanceDB().opened(folder) as storage:
            self._storage: Any = storage
            yield self

    def __init__(self) -> None:
        self._memory_record = crewai("memory.types").MemoryRecord

    def load(self, items: Sequence[Item]) -> None:
        self._storage.save([self._record(item, self.pack(item.vector)) for item in items])

    def settle(self) -> None:
        self._storage.optimize()

    def pack(self, vector: Any) -> Any:
        return vector.tolist()

    def save(self, item: Item, packed: Any) -> None:
        self._storage.save([self._record(item, packed)])

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        metadata = {"tier": selection.tier} if selection.tier else None
        return self._storage.search(question, scope_prefix=selection.scope, metadata_filter=metadata, limit=limit)

    def numbers(self, answer: Any) -> list[int]:
        return [int(record.id.removeprefix("record-")) for record, _ in answer]

    def count(self) -> int:
        return int(self._storage.count())

    def scopes(self) -> Any:
        return self._storage.list_scopes(PARENT)

    def categories(self) -> dict[str, int]:
        return dict(self._storage.list_categories())

    def _record(self, item: Item, packed: Any) -> Any:
        naive = item.created_at.replace(tzinfo=None)
        return self._memory_record(
            id=item.id,
            content=item.content,
            scope=item.scope,
            categories=list(item.categories),
            metadata=item.metadata,
            importance=item.importance,
            created_at=naive,
            last_accessed=naive,
            embedding=packed,
        )


class NumpyMatrix(Store):
    """Exact search over a matrix in memory: the floor of what a scan costs. It knows numbers, and no records."""

    name = "numpy"
    requires = ("numpy",)

    @contextmanager
    def opened(self, folder: Path, synchronous: str, cache_kib: int | None = None) -> Iterator[Any]:
        if (folder / "vectors.npy").exists():
            self._read(folder)
        yield self
        if self._parts:
            self._write(folder)

    def __init__(self) -> None:
        self._parts: list[tuple[Any, list[str], list[str]]] = []  # vectors, scopes, tiers of what was loaded

    def _read(self, folder: Path) -> None:
        import numpy as np

        self._matrix = np.load(folder / "vectors.npy")
        scopes, tiers = np.load(folder / "scopes.npy"), np.load(folder / "tiers.npy")
        self._masks = {
            selection.name: np.char.startswith(np.char.add(scopes, "/"), f"{selection.scope or ''}/")
            & ((tiers == selection.tier) if selection.tier else True)
            for selection in SELECTIONS
        }

    def _write(self, folder: Path) -> None:
        import numpy as np

        vectors, scopes, tiers = zip(*self._parts, strict=True)
        np.save(folder / "vectors.npy", np.concatenate(vectors))
        np.save(folder / "scopes.npy", np.array([*chain.from_iterable(scopes)]))
        np.save(folder / "tiers.npy", np.array([*chain.from_iterable(tiers)]))
        self._parts = []

    def load(self, items: Sequence[Item]) -> None:
        import numpy as np

        vectors = np.stack([item.vector for item in items])
        self._parts.append((vectors, [item.scope for item in items], [item.tier for item in items]))

    def pack(self, vector: Any) -> Any:
        return vector

    def search(self, question: Any, selection: Selection, limit: int) -> Any:
        import numpy as np

        scores = self._matrix @ question
        mask = self._masks[selection.name]
        if selection.scope or selection.tier:
            scores[~mask] = -np.inf
        best = np.argpartition(-scores, min(limit, len(scores) - 1))[:limit]
        best = best[np.argsort(-scores[best])]
        return best[mask[best]]

    def numbers(self, answer: Any) -> list[int]:
        numbers: list[int] = answer.tolist()
        return numbers


def import_all(kind: type[Any]) -> None:
    """Import what a store needs, so that nobody is timed who imports."""
    if "crewai" in kind.requires:
        crewai("memory.types")  # sets what keeps it quiet, before the rest of it is imported
    for module in (*kind.requires, *kind.modules):
        importlib.import_module(module)
