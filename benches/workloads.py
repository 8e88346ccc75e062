"""The workloads: seeded data, a number of threads or tasks, the contenders, and the targets. `WORKLOADS` has them all.

Owns what threads do on plain SQLite; what is measured on event loops stands in `async_workloads.py`, on the surfaces of
CrewAI and LangGraph in `crewai_workloads.py` and `langgraph_workloads.py`, on memories in `memory_suite.py`, on the
way to PostgreSQL in `migrate_workloads.py`. Must not know how a contender works nor how a result is printed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benches import contenders as c
from benches import data
from benches.async_workloads import ASYNC_WORKLOADS
from benches.crewai_workloads import CREWAI_WORKLOADS
from benches.harness import Sample, Scale, Workload, beside, by_name, check_upserts, drive, opened, place
from benches.langgraph_workloads import LANGGRAPH_WORKLOADS
from benches.measure import Timing, busy_thread, run_rounds, run_rounds_of_tasks, run_threads
from benches.memory_suite import MEMORY_WORKLOADS
from benches.migrate_workloads import MIGRATE_WORKLOADS
from benches.postgres_memory import POSTGRES_MEMORY_WORKLOADS
from benches.targets import AheadOfSteady, AtLeast, AtMost, Faster, Published, Target


@dataclass(frozen=True)
class Upserts:
    """Each thread upserts a changing row of 1 KB, in a transaction of its own, over and over."""

    name: str
    title: str
    synchronous: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    threads: int
    busy: bool = False  # beside a busy Python thread
    rows: int = 1_000
    seconds: float = 0.7

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        path = place(data.write_items, rows, folder)
        with opened(self.contenders[contender], path, self.synchronous) as db, beside(self.busy):
            operations = [self._operation(db, worker, rows) for worker in range(self.threads)]
            timing = drive(db, operations, self.seconds * scale.window_s)
        wrong = check_upserts(path, rows, timing.acknowledged, timing.errors.total())
        return Sample(timing.figures(), timing.errors, wrong)

    @staticmethod
    def _operation(db: Any, worker: int, rows: int) -> Callable[[int], Any]:
        keys = data.keys(worker, 4_096, below=rows)
        return lambda number: db.upsert(keys[number & 4_095], data.body(worker, number))


@dataclass(frozen=True)
class Agents:
    """Rounds in which parallel agents save ten elements each, every element in a transaction of its own."""

    name: str
    title: str
    synchronous: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    tasks: int
    each: int = 10
    seconds: float = 0.35

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = self.tasks * self.each
        path = place(data.write_items, rows, folder)
        with opened(self.contenders[contender], path, self.synchronous) as db:
            timing = self._rounds(db, self.seconds * scale.window_s, scale.rounds)
        wrong = check_upserts(path, rows, timing.acknowledged * self.each, timing.errors.total() * self.each)
        figures = timing.figures()
        elements = figures.pop("ops/s") * self.tasks * self.each
        return Sample({"elements/s": elements} | figures, timing.errors, wrong)

    def _rounds(self, db: Any, window_s: float, least: int) -> Timing:
        saves = [self._save(db, task) for task in range(self.tasks)]
        if isinstance(db, c.Aiosqlite):
            return db.loop.run_until_complete(run_rounds_of_tasks(saves, window_s, least=least))
        return run_rounds(saves, window_s, least=least)

    def _save(self, db: Any, task: int) -> Callable[[int], Any]:
        mine = range(task * self.each, (task + 1) * self.each)
        return lambda number: db.save([(key, data.body(task, number)) for key in mine])


@dataclass(frozen=True)
class PointReads:
    """Each thread reads a row of 1 KB by its key, over and over."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    threads: int
    busy: bool = False  # beside a busy Python thread
    synchronous: str = "full"
    rows: int = 10_000
    seconds: float = 0.6

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        path = place(data.write_items, rows, folder)
        with opened(self.contenders[contender], path, self.synchronous) as db:
            with beside(self.busy):
                operations = [self._operation(db, worker, rows) for worker in range(self.threads)]
                timing = drive(db, operations, self.seconds * scale.window_s)
            wrong = self._check(db, rows)
        return Sample(timing.figures(), timing.errors, wrong)

    @staticmethod
    def _operation(db: Any, worker: int, rows: int) -> Callable[[int], Any]:
        keys = data.keys(worker, 4_096, below=rows)
        return lambda number: db.point_read(keys[number & 4_095])

    @staticmethod
    def _check(db: Any, rows: int) -> tuple[str, ...]:
        asked = [*data.keys(0, 20, below=rows), rows]
        if isinstance(db, c.Aiosqlite):
            answers = db.loop.run_until_complete(_read_all(db, asked))
        else:
            answers = [db.point_read(key) for key in asked]
        expected = [data.body(data.LOADER, key) for key in asked[:-1]] + [None]
        return () if answers == expected else ("a point read returned another row",)


async def _read_all(db: c.Aiosqlite, keys: Sequence[int]) -> list[str | None]:
    return [await db.point_read(key) for key in keys]


AGGREGATE = "SELECT count(*), total(value), max(value), total(bucket * value) FROM facts WHERE value > ? AND note != ?"
SEARCH = "SELECT rowid, rank FROM docs WHERE docs MATCH ? ORDER BY rank LIMIT 10"


@dataclass(frozen=True)
class Parallel:
    """A query that takes milliseconds, by one thread and then by two: what two give over one is the figure."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    sql: str
    params: tuple[Any, ...]
    build: Callable[[Path, int], None]
    synchronous: str = "full"
    rows: int = 20_000
    seconds: float = 0.6

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        path = place(self.build, scale.rows(self.rows), folder)
        expected = self._answer(c.OneConnection, path)
        window_s = self.seconds * scale.window_s
        with opened(self.contenders[contender], path, self.synchronous) as db:
            one, two = (run_threads([lambda _: db.query(self.sql, self.params)] * n, window_s) for n in (1, 2))
        wrong = () if self._answer(self.contenders[contender], path) == expected else ("another result than sqlite3's",)
        speedup = two.per_second / one.per_second if one.per_second else math.nan
        figures = {"2 threads/s": two.per_second, "1 thread/s": one.per_second, "speed-up": speedup}
        return Sample(figures | {"p99 ms": two.figures()["p99 ms"]}, one.errors + two.errors, wrong)

    def _answer(self, kind: type[Any], path: Path) -> list[list[Any]]:
        with opened(kind, path, self.synchronous) as db:
            rows = db.query(self.sql, self.params)
        return [[round(value, 6) if isinstance(value, float) else value for value in row] for row in rows]


COUNT_TO = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT total(i) FROM n"


@dataclass(frozen=True)
class BusyBesideQuery:
    """A thread runs queries of 200 ms, one after another: how much of its own speed a busy Python thread keeps."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    synchronous: str = "full"
    seconds: float = 0.7
    query_s: float = 0.2

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        path = place(data.write_items, 32, folder)
        window_s = self.seconds * scale.window_s
        with opened(self.contenders[contender], path, self.synchronous) as db:
            limit = self._calibrate(db)
            with busy_thread() as alone:
                time.sleep(window_s)
            with busy_thread() as beside_query:
                timing = run_threads([lambda _: db.query(COUNT_TO, (limit,))], window_s)
            wrong = () if db.query(COUNT_TO, (1_000,)) == [(500_500.0,)] else ("the query returned another sum",)
        figures = timing.figures()
        share = {"speed kept": beside_query.per_second / alone.per_second}
        return Sample(
            share | {"query p50 ms": figures["p50 ms"], "query max ms": figures["max ms"]}, timing.errors, wrong
        )

    def _calibrate(self, db: Any) -> int:
        probe = 100_000
        begun = time.perf_counter()
        db.query(COUNT_TO, (probe,))
        return int(probe * self.query_s / (time.perf_counter() - begun))


WRITERS = by_name(
    c.OneConnection,
    c.ConnectionPerThread,
    c.ConnectionPerOperation,
    c.PoolWithWriterLock,
    c.SymmetricPool,
    c.WriterThread,
    c.ApswPerThread,
    c.Aiosqlite,
    c.Walpool,
)
ALONE = by_name(c.ConnectionPerThread, c.WriterThread, c.ApswPerThread, c.Aiosqlite, c.Walpool)
AGENTS = by_name(
    c.GlobalWriteLock,
    c.OneConnection,
    c.ConnectionPerThread,
    c.PoolWithWriterLock,
    c.SymmetricPool,
    c.WriterThread,
    c.Aiosqlite,
    c.Walpool,
)
READERS = by_name(
    c.OneConnection,
    c.ConnectionPerThread,
    c.ConnectionPerOperation,
    c.PoolWithWriterLock,
    c.ApswPerThread,
    c.Aiosqlite,
    c.Walpool,
)
BESIDE_BUSY = by_name(c.ConnectionPerThread, c.ApswPerThread, c.Aiosqlite, c.Walpool)
IN_PARALLEL = by_name(c.ConnectionPerThread, c.ApswPerThread, c.Walpool)

LOCKING = ("one-connection", "per-thread", "pool-8-writer-lock")


# Until its first checkpoint a WAL grows its file, which costs twice the fsync: a lone writer must get well past that,
# or the window shows little else.
LONE_S = 2.0


def _upserts() -> list[Workload]:
    alone = (Faster(0.95, than=("per-thread",)),)
    full = (
        Faster(3.5, than=LOCKING),
        Faster(1.2, than=("writer-thread",)),
        AtMost("p99 ms", lambda fsync_ms: max(10.0, 20 * fsync_ms)),
    )
    normal = (AheadOfSteady(50.0), Faster(1.0, than=("per-thread",)), AtMost("p99.9 ms", 20.0))
    lone = Upserts("", "upsert of a changing 1 KB row, 1 thread", "full", ALONE, alone, threads=1, seconds=LONE_S)
    return [
        Upserts("upsert-full-16", "upsert of a changing 1 KB row, 16 threads", "full", WRITERS, full, threads=16),
        replace(lone, name="upsert-full-1"),
        Upserts("upsert-normal-16", "upsert of a changing 1 KB row, 16 threads", "normal", WRITERS, normal, threads=16),
        replace(lone, name="upsert-normal-1", synchronous="normal"),
    ]


def _agents() -> list[Workload]:
    targets: dict[tuple[int, str], Sequence[Target]] = {
        (16, "full"): (
            Faster(4.0, than=("write-lock",), figure="elements/s"),
            Faster(50.0, than=("per-thread",), figure="elements/s"),
        ),
        (16, "normal"): (
            Faster(1.4, than=("write-lock",), figure="elements/s"),
            Published(45_700, "a global write lock over one connection", "elements/s"),
        ),
    }
    return [
        Agents(
            f"agents-{synchronous}-{tasks}",
            f"{tasks} agents save 10 elements each at once; the latency is the batch's",
            synchronous,
            AGENTS,
            targets.get((tasks, synchronous), ()),
            tasks=tasks,
        )
        for synchronous in ("full", "normal")
        for tasks in (4, 8, 16)
    ]


def _exhaustion() -> list[Workload]:
    contenders = by_name(c.SymmetricPool, c.WalpoolOfFive)
    title = "upsert of a changing 1 KB row, 16 threads for 6.5 s, 5 connections with 5 s patience"
    none = (AtMost("errors", 0),)
    return [Upserts("pool-exhaustion", title, "full", contenders, none, threads=16, seconds=6.5)]


def _reads() -> list[Workload]:
    one = (Faster(1.3, than=("per-thread",)), Faster(20.0, than=("per-operation",)))
    sixteen = (Faster(1.8, than=("per-thread",)), AtMost("p99 ms", 0.2))
    return [
        PointReads("point-read-1", "point read of 1 KB by key, 1 thread", READERS, one, threads=1),
        PointReads("point-read-16", "point read of 1 KB by key, 16 threads", READERS, sixteen, threads=16),
    ]


def _beside_busy() -> list[Workload]:
    reads = (Faster(50.0, than=("per-thread", "aiosqlite")),)
    writes = (Faster(20.0, than=("per-thread", "aiosqlite")),)
    read, write = "point read of 1 KB by key beside a busy Python thread", "upsert of 1 KB beside a busy Python thread"
    return [
        PointReads("busy-read-1", f"{read}, 1 thread", BESIDE_BUSY, reads, threads=1, busy=True),
        PointReads("busy-read-4", f"{read}, 4 threads", BESIDE_BUSY, reads, threads=4, busy=True),
        Upserts("busy-write-1", f"{write}, 1 thread", "normal", BESIDE_BUSY, writes, threads=1, busy=True),
        Upserts("busy-write-4", f"{write}, 4 threads", "normal", BESIDE_BUSY, writes, threads=4, busy=True),
    ]


def _parallel() -> list[Workload]:
    faster = (AtLeast("speed-up", 1.7),)
    kept = (AtLeast("speed kept", 0.9),)
    facts = (
        "aggregate over 20 000 rows, 2 threads over 1",
        IN_PARALLEL,
        faster,
        AGGREGATE,
        (0.25, ""),
        data.write_facts,
    )
    docs = ("FTS5 search of 20 000 documents, 2 threads over 1", IN_PARALLEL, faster, SEARCH, ("babake OR babaru",))
    title = "a busy Python thread beside queries of 200 ms"
    return [
        Parallel("parallel-aggregate", *facts),
        Parallel("parallel-search", *docs, data.write_documents),
        BusyBesideQuery("busy-beside-query", title, IN_PARALLEL, kept),
    ]


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in [
        *_upserts(),
        *_agents(),
        *_exhaustion(),
        *_reads(),
        *_beside_busy(),
        *_parallel(),
        *ASYNC_WORKLOADS,
        *CREWAI_WORKLOADS,
        *LANGGRAPH_WORKLOADS,
        *MEMORY_WORKLOADS,
        *MIGRATE_WORKLOADS,
        *POSTGRES_MEMORY_WORKLOADS,
    ]
}
