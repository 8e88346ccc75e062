"""What the benchmarks on event loops stand on: group commit in pure Python, the heartbeat, the check, PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from benches import async_contenders, async_workloads, data, measure

HEADS = data.hash_heads(0)


def _pack(number: int) -> async_contenders.Pack:
    return async_contenders.Pack(*data.pack(0, number, HEADS))


def test_async_writer_thread_answers_a_failed_job_with_its_error_and_commits_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "backups.db"
    data.write_backups(path, 1)

    async def record() -> list[Any]:
        async with async_workloads.opened(async_contenders.AsyncWriterThread, path, "normal") as writer:
            packs = [_pack(1), _pack(1), _pack(2)]  # the second has the keys of the first
            return await asyncio.gather(*(writer.record(pack) for pack in packs), return_exceptions=True)

    answers = asyncio.run(record())

    assert [type(answer) for answer in answers] == [type(None), sqlite3.IntegrityError, type(None)]
    assert async_workloads.check_backups(path, acknowledged=2, failed=1) == ()


def test_async_writer_thread_leaves_a_cancelled_caller_alone(tmp_path: Path) -> None:
    path = tmp_path / "backups.db"
    data.write_backups(path, 1)

    async def record() -> None:
        async with async_workloads.opened(async_contenders.AsyncWriterThread, path, "normal") as writer:
            first = asyncio.ensure_future(writer.record(_pack(1)))
            await asyncio.sleep(0)  # it is in the queue now
            first.cancel()
            await writer.record(_pack(2))

    asyncio.run(record())

    assert async_workloads.check_backups(path, acknowledged=1, failed=1) == ()


def test_check_finds_a_pack_that_was_lost_and_one_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "backups.db"
    data.write_backups(path, 1)
    with sqlite3.connect(path) as conn:
        async_contenders.record_pack(conn, _pack(1))
    assert async_workloads.check_backups(path, acknowledged=1, failed=0) == ()
    assert async_workloads.check_backups(path, acknowledged=2, failed=0) == (
        "2 packs acknowledged and 0 failed, but 1 applied",
    )

    with sqlite3.connect(path) as conn:
        conn.execute('DELETE FROM chunks WHERE "offset" = 0')
    conn.close()

    assert async_workloads.check_backups(path, acknowledged=1, failed=0) == (
        "1 packs, but 15 chunks, and 16 by the snapshots' count",
        "1 packs without all of their chunks",
    )


def test_packs_of_a_job_share_no_hash() -> None:
    hashes = [chunk[0] for number in range(1_000) for chunk in _pack(number).chunks]

    assert len(set(hashes)) == len(hashes) == 16_000
    assert {len(one) for one in hashes} == {64}


def test_heartbeat_is_late_for_each_beat_of_a_pause_of_the_loop() -> None:
    heartbeat = measure.Heartbeat()

    async def pause() -> None:
        async with heartbeat:
            await asyncio.sleep(0)  # the first beat is waited for now
            time.sleep(0.1)  # what nobody should do on a loop
            await asyncio.sleep(heartbeat.period_s)

    asyncio.run(pause())

    lags_ms = sorted(lag / 1e6 for lag in heartbeat._lags_ns)
    assert lags_ms[-1] > 90
    assert sum(lag > 45 for lag in lags_ms) >= 10  # half of the beats that fell into it waited for half of it


def test_tasks_tell_what_each_of_them_did() -> None:
    async def quick(number: int) -> None:
        await asyncio.sleep(0)

    async def slow(number: int) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    timing = asyncio.run(measure.run_tasks([quick, slow], 0.01))

    assert timing.each[0] > 2 * timing.each[1] > 0
    assert sum(timing.each) == pytest.approx(timing.per_second)


def test_dollars_number_the_places_of_parameters() -> None:
    assert async_contenders._dollars("UPDATE t SET a = ? WHERE b = ?") == "UPDATE t SET a = $1 WHERE b = $2"
