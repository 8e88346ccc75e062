"""The application: backup jobs behind an HTTP API, on one pool; the database is a file, or PostgreSQL by its URL.

Must not know who measures it.

A job loops transactions of 18 rows: 16 chunks, the pack that they lie in, and its snapshot's totals. Each transaction
is one `batch`, made when its pack is where it belongs; those of all jobs that wait at the same time are committed
together, with one fsync.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import BaseModel, Field

import walpool

if TYPE_CHECKING:
    from walpool.postgres import AsyncPostgresPool

CHUNKS = 16  # in a pack
ROWS = CHUNKS + 2  # that a transaction writes
CHUNK_BYTES = 64 * 1024

# What SQLite and PostgreSQL both take: keys that the application makes, and types that both have a name for.
SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL,
    packs BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS packs (
    id TEXT NOT NULL PRIMARY KEY, snapshot_id TEXT NOT NULL REFERENCES snapshots (id), bytes BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS chunks (
    content_hash TEXT NOT NULL, pack_id TEXT NOT NULL, "offset" BIGINT NOT NULL, length BIGINT NOT NULL
);
"""
NEW_SNAPSHOT = "INSERT INTO snapshots (id, name) VALUES (?, ?)"
NEW_CHUNK = 'INSERT INTO chunks (content_hash, pack_id, "offset", length) VALUES (?, ?, ?, ?)'
NEW_PACK = "INSERT INTO packs (id, snapshot_id, bytes) VALUES (?, ?, ?)"
GROW_SNAPSHOT = "UPDATE snapshots SET packs = packs + 1, bytes = bytes + ? WHERE id = ?"


class Order(BaseModel):
    """What `POST /backups` asks for."""

    jobs: int = Field(default=1, ge=1, le=1_000)
    packs: int = Field(default=100, ge=1)
    upload_s: float = Field(default=0.02, ge=0)  # seconds that sending a pack takes


@dataclass
class Job:
    """One backup that runs, or has run."""

    name: str
    packs: int
    upload_s: float
    snapshot: str | None = None  # its id, once it is there
    packs_done: int = 0
    state: str = "running"  # then "done" or "failed"
    error: str | None = None
    seconds: float | None = None  # that it took


@dataclass
class Engine:
    """The jobs and the pool that they share."""

    pool: walpool.AsyncPool | AsyncPostgresPool
    jobs: list[Job] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self, order: Order) -> list[Job]:
        """Start jobs and return them."""
        first = len(self.jobs)
        started = [Job(f"backup-{number}", order.packs, order.upload_s) for number in range(first, first + order.jobs)]
        self.jobs += started
        for job in started:
            task = asyncio.create_task(self._run(job), name=job.name)
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)
        return started

    async def stop(self) -> None:
        """End the jobs that still run; what they have stored stays, whole packs only."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: Job) -> None:
        begun = time.monotonic()
        try:
            snapshot = uuid.uuid4().hex
            await self.pool.execute(NEW_SNAPSHOT, (snapshot, job.name))
            job.snapshot = snapshot
            for number in range(job.packs):
                await upload(job)  # before the transaction: nobody waits for the network with the writer in hand
                await self.pool.batch(pack(job.snapshot, number))
                job.packs_done += 1
        except walpool.Error as error:
            job.state, job.error = "failed", type(error).__name__
        except asyncio.CancelledError:
            job.state, job.error = "failed", "cancelled"
            raise
        else:
            job.state = "done"
        finally:
            job.seconds = time.monotonic() - begun


async def upload(job: Job) -> None:
    """Stand for sending a pack to where it is kept."""
    if job.upload_s:
        await asyncio.sleep(job.upload_s)


def pack(snapshot: str, number: int) -> list[tuple[str, tuple[str | int, ...]]]:
    """Return the statements that store a snapshot's pack, as one transaction."""
    name = f"{snapshot}-{number:08d}"
    hashes = (hashlib.blake2b(f"{name}-{chunk}".encode(), digest_size=32).hexdigest() for chunk in range(CHUNKS))
    size = CHUNKS * CHUNK_BYTES
    return [
        *((NEW_CHUNK, (digest, name, i * CHUNK_BYTES, CHUNK_BYTES)) for i, digest in enumerate(hashes)),
        (NEW_PACK, (name, snapshot, size)),
        (GROW_SNAPSHOT, (size, snapshot)),
    ]


def create_app(database: str) -> FastAPI:
    """Return the application on a path or a URL, which is opened when it starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # full: a pack whose chunks may be forgotten after a power cut is worse than no backup
        async with walpool.get_async_pool(database, synchronous="full") as pool:
            await pool.script(SCHEMA)
            app.state.engine = engine = Engine(pool)
            yield
            await engine.stop()

    app = FastAPI(title="backup engine", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, object]:
        engine: Engine = app.state.engine
        is_alive = await engine.pool.fetchval("SELECT 1") == 1
        return {"ok": is_alive, "running": sum(job.state == "running" for job in engine.jobs)}

    @app.post("/backups", status_code=202)
    async def start(order: Order) -> list[Job]:
        engine: Engine = app.state.engine
        return engine.start(order)

    @app.get("/backups")
    async def progress() -> list[Job]:
        engine: Engine = app.state.engine
        return engine.jobs

    return app
