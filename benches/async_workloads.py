"""What is measured on an event loop: tasks beside a heartbeat whose lag is reported. `ASYNC_WORKLOADS` has them all.

Owns the tasks, the checks and the targets. Must not know how a contender works nor how a result is printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benches import async_contenders as a
from benches import backup_contenders as b
from benches import data
from benches.harness import Sample, Scale, Workload, by_name, check_upserts, place
from benches.measure import Heartbeat, Timing, run_tasks
from benches.targets import AtMost, Faster, LowerLatency, Target

Operation = Callable[[int], Awaitable[None]]

WINDOW_S = 2.0  # with --quick there must be a hundred beats of the heartbeat, or there is no p99
_FASTEST_NS = 50_000  # a transaction of eighteen rows


@asynccontextmanager
async def opened(kind: type[Any], path: Path, synchronous: str) -> AsyncIterator[Any]:
    """Open a contender on a file, and close it afterwards."""
    contender = kind()
    await contender.open(str(path), synchronous)
    try:
        yield contender
    finally:
        await contender.close()


@dataclass(frozen=True)
class AsyncUpserts:
    """Each task upserts a changing row of 1 KB, in a transaction of its own, over and over."""

    name: str
    title: str
    synchronous: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    tasks: int
    rows: int = 1_000

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        path = place(data.write_items, rows, folder)
        heartbeat = Heartbeat()
        timing = asyncio.run(self._drive(contender, path, rows, WINDOW_S * scale.window_s, heartbeat))
        wrong = check_upserts(path, rows, timing.acknowledged, timing.errors.total())
        return Sample(timing.figures() | heartbeat.figures(), timing.errors, wrong)

    async def _drive(self, contender: str, path: Path, rows: int, window_s: float, heartbeat: Heartbeat) -> Timing:
        async with opened(self.contenders[contender], path, self.synchronous) as db:
            operations = [self._operation(db, worker, rows) for worker in range(self.tasks)]
            return await run_tasks(operations, window_s, heartbeat)

    @staticmethod
    def _operation(db: a.AsyncContender, worker: int, rows: int) -> Operation:
        keys = data.keys(worker, 4_096, below=rows)
        return lambda number: db.upsert(keys[number & 4_095], data.body(worker, number))


@dataclass(frozen=True)
class AsyncTransactions(AsyncUpserts):
    """Each task reads three rows and then upserts one that no other task writes, in one transaction, over and over."""

    @staticmethod
    def _operation(db: a.AsyncContender, worker: int, rows: int) -> Operation:
        keys = data.keys(worker, 4_096, below=rows)

        def transact(number: int) -> Awaitable[None]:
            reads = [keys[(number + step) & 4_095] for step in range(1, 4)]
            return db.transact(reads, worker % rows, data.body(worker, number))

        return transact


@dataclass(frozen=True)
class AsyncPointReads:
    """Each task reads a row of 1 KB by its key, over and over."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    tasks: int
    synchronous: str = "full"
    rows: int = 10_000

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        path = place(data.write_items, rows, folder)
        heartbeat = Heartbeat()
        timing, wrong = asyncio.run(self._drive(contender, path, rows, WINDOW_S * scale.window_s, heartbeat))
        return Sample(timing.figures() | heartbeat.figures(), timing.errors, wrong)

    async def _drive(
        self, contender: str, path: Path, rows: int, window_s: float, heartbeat: Heartbeat
    ) -> tuple[Timing, tuple[str, ...]]:
        async with opened(self.contenders[contender], path, self.synchronous) as db:
            operations = [self._operation(db, worker, rows) for worker in range(self.tasks)]
            timing = await run_tasks(operations, window_s, heartbeat)
            asked = [*data.keys(0, 20, below=rows), rows]
            answers = [await db.point_read(key) for key in asked]
        expected = [data.body(data.LOADER, key) for key in asked[:-1]] + [None]
        return timing, () if answers == expected else ("a point read returned another row",)

    @staticmethod
    def _operation(db: a.AsyncContender, worker: int, rows: int) -> Callable[[int], Awaitable[str | None]]:
        keys = data.keys(worker, 4_096, below=rows)
        return lambda number: db.point_read(keys[number & 4_095])


@dataclass(frozen=True)
class BackupEngine:
    """Concurrent jobs record packs, each in a transaction of eighteen statements, beside the API's health check."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    jobs: int
    synchronous: str = "full"

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        path = place(data.write_backups, self.jobs, folder)
        jobs = scale.threads(self.jobs)
        heartbeat = Heartbeat()
        timing = asyncio.run(self._drive(contender, path, jobs, WINDOW_S * scale.window_s, heartbeat))
        wrong = check_backups(path, timing.acknowledged, timing.errors.total())
        figures = timing.figures()
        del figures["p99.9 ms"]  # a window has too few transactions to tell
        rows = {"rows/s": figures.pop("ops/s") * data.PACK_ROWS}
        fairness = {"fast/slow": max(timing.each) / max(min(timing.each), 1e-9)}
        return Sample(rows | fairness | figures | heartbeat.figures(), timing.errors, wrong)

    async def _drive(self, contender: str, path: Path, jobs: int, window_s: float, heartbeat: Heartbeat) -> Timing:
        async with opened(self.contenders[contender], path, self.synchronous) as db:
            operations = [self._operation(db, job) for job in range(jobs)]
            return await run_tasks(operations, window_s, heartbeat, _FASTEST_NS)

    @staticmethod
    def _operation(db: a.AsyncContender, job: int) -> Operation:
        hashes = data.hash_heads(job)
        return lambda number: db.record(a.Pack(*data.pack(job, number, hashes)))


def check_backups(path: Path, acknowledged: int, failed: int) -> tuple[str, ...]:
    """Return what is wrong with the packs: each that was acknowledged is there, and each that is there is whole."""
    packs, chunks, counted, lost = data.read_backups(path)
    wrong = []
    if not acknowledged <= packs <= acknowledged + failed:
        wrong.append(f"{acknowledged} packs acknowledged and {failed} failed, but {packs} applied")
    if not chunks == counted == packs * data.PACK_CHUNKS:
        wrong.append(f"{packs} packs, but {chunks} chunks, and {counted} by the snapshots' count")
    if lost:
        wrong.append(f"{lost} packs without all of their chunks")
    return tuple(wrong)


WRITERS = by_name(
    a.AiosqliteOneConnection,
    a.AiosqliteOneHop,
    a.ApswAsync,
    a.Asyncpg,
    a.AsyncWalpoolOnPostgres,
    a.AsyncWriterThread,
    a.AsyncWalpool,
)
BACKUPS = by_name(
    a.AiosqliteOneConnection,
    b.AiosqliteStatements,
    a.Asyncpg,
    a.AsyncWalpoolOnPostgres,
    a.AsyncWriterThread,
    b.SqliteOnTheLoop,
    b.AiosqlitePerJob,
    b.HeldAcrossUpload,
    a.AsyncWalpool,
)


def _upserts() -> list[Workload]:
    apsw = Faster(5.0, than=("apsw-async",))
    targets = {"full": (Faster(6.0, than=("aiosqlite",)), apsw), "normal": (Faster(10.0, than=("aiosqlite",)), apsw)}
    title = "upsert of a changing 1 KB row beside a heartbeat"
    return [
        AsyncUpserts(
            f"async-upsert-{synchronous}-{tasks}",
            f"{title}, {_counted(tasks, 'task')}",
            synchronous,
            WRITERS,
            targets[synchronous] if tasks == 16 else (),
            tasks=tasks,
        )
        for synchronous in ("full", "normal")
        for tasks in (16, 1)
    ]


def _reads() -> list[Workload]:
    title = "point read of 1 KB by key beside a heartbeat"
    calm = LowerLatency(1.0, than="aiosqlite", figure="lag p99 ms")
    one = AsyncPointReads(
        "async-point-read-1", f"{title}, 1 task", WRITERS, (Faster(12.0, than=("aiosqlite",)), calm), tasks=1
    )
    sixteen = (Faster(5.0, than=("aiosqlite",)), calm)
    return [one, replace(one, name="async-point-read-16", title=f"{title}, 16 tasks", targets=sixteen, tasks=16)]


def _backups() -> list[Workload]:
    rows = "rows/s"
    targets = (
        Faster(3.0, than=("aiosqlite",), figure=rows),
        Faster(8.0, than=("aiosqlite-statements",), figure=rows),
        Faster(2.5, than=("asyncpg",), figure=rows),
        Faster(1.3, than=("writer-thread",), figure=rows),
        AtMost("fast/slow", 1.5),
        AtMost("errors", 0),
        AtMost("lag p99 ms", 10.0),
    )
    title = "jobs record packs of 16 chunks beside a heartbeat; the latency is the transaction's"
    return [
        BackupEngine(f"backup-engine-{jobs}", f"{jobs} {title}", BACKUPS, targets if jobs == 32 else (), jobs=jobs)
        for jobs in (32, 10, 2)
    ]


def _transactions() -> list[Workload]:
    contenders = {"asyncpg": a.Asyncpg, "asyncpg-savepoints": a.AsyncpgSavepoints, "walpool": a.AsyncWalpoolOnPostgres}
    return [
        AsyncTransactions(
            f"postgres-transaction-{tasks}",
            f"three point reads and an upsert in one transaction on PostgreSQL, {_counted(tasks, 'task')}",
            "full",
            contenders,
            (Faster(times, than=("asyncpg",)), Faster(1.5, than=("asyncpg-savepoints",)), AtMost("errors", 0)),
            tasks=tasks,
        )
        for tasks, times in ((16, 1.0), (1, 0.9))
    ]


def _servers() -> list[Workload]:
    contenders = {"asyncpg": a.Asyncpg, "walpool": a.AsyncWalpoolOnPostgres}
    title = "jobs record packs of 16 chunks on PostgreSQL beside a heartbeat; the latency is the transaction's"
    return [
        BackupEngine(
            f"postgres-backup-{jobs}",
            f"{jobs} {title}",
            contenders,
            (Faster(times, than=("asyncpg",), figure="rows/s"), AtMost("errors", 0), AtMost("lag p99 ms", 20.0)),
            jobs=jobs,
        )
        for jobs, times in ((32, 2.0), (10, 1.3))
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


ASYNC_WORKLOADS: list[Workload] = [*_upserts(), *_reads(), *_backups(), *_servers(), *_transactions()]
