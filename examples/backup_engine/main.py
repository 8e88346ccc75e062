"""The backup engine from above: serve it, or start it, give it jobs over HTTP, and count what it stored."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from backup_engine import report
from backup_engine.app import ROWS, create_app
from backup_engine.progress import progress

SHOWN_EVERY = 0.2  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if a row is missing, a job failed or /health was not answered."""
    options = _parse(arguments)
    if options.data is not None:
        options.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="backups-", dir=options.data) as made:
        if options.serve:
            database = options.database or str((options.data or Path(made)) / "backups.db")
            uvicorn.run(create_app(database), port=options.port, log_level="info")
            return 0
        database = options.database or str(Path(made) / "backups.db")
        outcome = asyncio.run(demonstrate(database, options.jobs, options.packs, options.upload_ms / 1_000))
        outcome |= report.count(database, outcome["jobs"])
    outcome["problems"] = report.problems(outcome)
    sys.stdout.write(json.dumps(outcome, indent=2) + "\n" if options.json else report.text(outcome))
    return 1 if outcome["problems"] else 0


async def demonstrate(database: str, jobs: int, packs: int, upload_s: float) -> dict[str, Any]:
    """Start the engine on a free port, run jobs in it while /health is asked, and return what was measured."""
    async with (
        _serving(database) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
        _asking(url) as health,
    ):
        begun = time.perf_counter()
        started = await client.post("/backups", json={"jobs": jobs, "packs": packs, "upload_s": upload_s})
        started.raise_for_status()
        found = await _watch(client, jobs * packs)
        seconds = time.perf_counter() - begun
    rows = sum(job["packs_done"] for job in found) * ROWS
    return {"seconds": seconds, "rows_per_second": rows / seconds, "jobs": found, "health": health}


async def _watch(client: httpx.AsyncClient, packs: int) -> list[dict[str, Any]]:
    """Show how far the jobs are until each of them has ended; return them."""
    with progress(packs) as advance:
        while True:
            jobs: list[dict[str, Any]] = (await client.get("/backups")).raise_for_status().json()
            advance(sum(job["packs_done"] for job in jobs))
            if all(job["state"] != "running" for job in jobs):
                return jobs
            await asyncio.sleep(SHOWN_EVERY)


@asynccontextmanager
async def _asking(url: str) -> AsyncIterator[dict[str, float]]:
    """Ask /health from another process while the block runs; afterwards what is yielded holds the figures."""
    command = [sys.executable, "-m", "backup_engine.health", url]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    )
    assert process.stdout is not None, "it was asked for"
    figures: dict[str, float] = {}
    await process.stdout.readline()  # it is ready
    try:
        yield figures
    finally:
        printed, _ = await process.communicate(b"")  # which ends its standard input
        figures.update(json.loads(printed))


@asynccontextmanager
async def _serving(database: str) -> AsyncIterator[str]:
    """Run the engine on this loop and a free local port; yield its URL."""
    # asyncio switches Nagle's algorithm off (40 ms a response) only where a socket says that it is TCP's.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(database), log_level="warning", access_log=False))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            if serving.done():
                raise OSError("the server did not start")
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="backup_engine.py", description="A backup engine behind an HTTP API, on a SQLite file or on PostgreSQL."
    )
    parser.add_argument("--jobs", type=int, default=32, metavar="N", help="jobs at once (default: %(default)s)")
    parser.add_argument("--packs", type=int, default=200, metavar="N", help="of each job (default: %(default)s)")
    upload = "milliseconds that a job's upload of a pack stands for; 0 keeps the loop busy (default: %(default)s)"
    parser.add_argument("--upload-ms", type=float, default=20.0, metavar="MS", help=upload)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="for the database; a temporary folder if not given")
    parser.add_argument("--database", metavar="URL", help="postgresql://..., in place of a file")
    parser.add_argument("--serve", action="store_true", help="only serve, until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="to serve on (default: %(default)s)")
    return parser.parse_args(arguments)
