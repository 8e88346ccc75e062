"""The workloads on an agent's memories: their sizes, their contenders and what walpool should reach.

Must not know how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benches import memory_workloads as m
from benches.harness import Workload, by_name
from benches.memory_contenders import LanceDBMemory, NumpyMatrix, WalpoolMemory
from benches.memory_sqlite import BlobsAndNumpy, SqliteVec
from benches.memory_text import REQUIRES, RealText
from benches.targets import AtLeast, AtMost, Faster, Target

SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
PASSAGES = 3_000
SEARCH_S = {"1k": 1.5, "10k": 3.0, "100k": 6.0}  # a p99 needs a hundred searches, and four others stand between two
SAVE_S = 3.0  # LanceDB saves fewer than a hundred in a second

EXACT = by_name(LanceDBMemory, NumpyMatrix, SqliteVec, BlobsAndNumpy, WalpoolMemory)
STORES = by_name(LanceDBMemory, SqliteVec, BlobsAndNumpy, WalpoolMemory)
WITH_WORDS = by_name(SqliteVec, BlobsAndNumpy, WalpoolMemory)  # CrewAI asks LanceDB for vectors alone
OURS_ALONE = by_name(WalpoolMemory)

FOUND: Sequence[Target] = (AtLeast("recall@10", 0.99), AtLeast("recall narrow", 0.99), AtLeast("recall 1 %", 0.99))
SELECTED = AtMost("worst ×", 1.1)  # a search in a selection takes no longer than one of everything, but for noise
AHEAD = Faster(20.0, than=("lancedb",), figure="searches/s")


def _sized(size: str, rows: int) -> list[Workload]:
    memories = f"{rows:,} memories of 1536 dims".replace(",", " ")
    among = f"among {memories}"
    alone = {"10k": (AtMost("p50 ms", 3.0), SELECTED), "100k": (AtMost("p50 ms", 10.0), SELECTED)}.get(size, ())
    fast = {"100k": (AtMost("scopes ms", 5.0), AtMost("categories ms", 5.0))}.get(size, ())
    both = {"100k": (AtMost("p50 ms", 25.0),)}.get(size, ())
    together = () if size == "1k" else (AHEAD,)
    saves = (Faster(20.0, than=("lancedb",), figure="saves/s"),)
    seconds = SEARCH_S[size]
    return [
        m.Load(f"memory-load-{size}", f"filling a store with {memories}", (), rows, STORES),
        m.Recall(f"memory-recall-{size}", f"how many of the 10 nearest {among} are found", FOUND, rows, EXACT),
        m.SearchAlone(f"memory-search-{size}-1", f"the 10 nearest {among}, 1 thread", alone, rows, EXACT, seconds),
        m.SearchTogether(f"memory-search-{size}-8", f"the 10 nearest {among}, 8 threads", together, rows, EXACT),
        m.Save(f"memory-save-{size}", f"saving 1 memory to {memories}, 8 threads", saves, rows, STORES, SAVE_S),
        m.Listings(f"memory-list-{size}", f"listing scopes and categories of {memories}, 1 thread", fast, rows, STORES),
        m.Texts(
            f"memory-text-{size}", f"hybrid search by 6 to 10 words {among}, 1 thread", both, rows, WITH_WORDS, seconds
        ),
    ]


def _openings() -> list[Workload]:
    title = "opening {} memories of 1536 dims in a fresh process: the first search, and memory"
    targets = (AtMost("first ms", 200.0), AtMost("memory ×", 1.3))
    return [
        m.Opening("memory-open-10k", title.format("10 000"), (), 10_000, EXACT),
        m.Opening("memory-open-100k", title.format("100 000"), targets, 100_000, EXACT),
    ]


def _real() -> list[Workload]:
    contenders = _needing(EXACT, REQUIRES)
    among = f"among {PASSAGES:,} passages embedded by a real model".replace(",", " ")
    found, alone = f"how many of the 10 nearest {among} are found", f"the 10 nearest {among}, 1 thread"
    return [
        m.Recall("memory-recall-real", found, FOUND, PASSAGES, contenders, of=RealText),
        m.SearchAlone("memory-search-real-1", alone, (SELECTED,), PASSAGES, contenders, 3.0, RealText),
    ]


def _million() -> Workload:
    found = (AtLeast("recall@10", 0.99), AtLeast("recall 1 %", 0.99), AtMost("memory ×", 1.3), SELECTED)
    return m.Million("memory-million", "a million memories of 1536 dims", found, 1_000_000, OURS_ALONE, 20.0)


def _needing(kinds: Mapping[str, type[Any]], modules: Sequence[str]) -> dict[str, type[Any]]:
    """Return contenders that are skipped where a module is missing that the data needs."""
    return {
        name: type(kind.__name__, (kind,), {"requires": (*modules, *kind.requires)}) for name, kind in kinds.items()
    }


MEMORY_WORKLOADS: list[Workload] = [
    *(workload for size, rows in SIZES.items() for workload in _sized(size, rows)),
    *_openings(),
    *_real(),
    _million(),
]
