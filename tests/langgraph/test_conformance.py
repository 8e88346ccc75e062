"""LangGraph's own conformance kit for checkpointers, on both savers, and with nothing left out of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph.checkpoint.conformance")

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from langgraph.checkpoint.conformance.report import CapabilityReport, CapabilityResult, ProgressCallbacks

from walpool.langgraph import AsyncWalpoolSaver, WalpoolSaver

# How many tests the kit has for each capability: a later one may have more, but none may be lost on the way.
TESTS = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}


def left_out(report: CapabilityReport) -> list[str]:
    """Return the capabilities that the kit did not test as a whole; its own verdict counts those as passed."""
    results = {capability.value: report.results.get(capability.value) for capability in ALL_CAPABILITIES}
    return [
        name
        for name, result in results.items()
        if result is None or not result.detected or result.passed is None or result.tests_skipped
    ]


@pytest.mark.parametrize("kind", [WalpoolSaver, AsyncWalpoolSaver])
def test_saver_passes_every_test_of_the_conformance_kit(
    kind: type[WalpoolSaver | AsyncWalpoolSaver], tmp_path: Path
) -> None:
    assert_conforms(kind, lambda opened: nullcontext(tmp_path / f"{opened}.db"))


@pytest.mark.bounced
@pytest.mark.postgres
@pytest.mark.parametrize("kind", [WalpoolSaver, AsyncWalpoolSaver])
def test_saver_passes_every_test_of_the_conformance_kit_on_postgres(
    kind: type[WalpoolSaver | AsyncWalpoolSaver], postgres_url: str
) -> None:
    from walpool.postgres import AsyncPostgresPool, PostgresPool

    # Each saver that the kit asks for is to be an empty one: a tenant of its own.
    pool = PostgresPool if kind is WalpoolSaver else AsyncPostgresPool
    assert_conforms(kind, lambda opened: pool(postgres_url, tenant=str(opened)))


def assert_conforms(kind: type[WalpoolSaver | AsyncWalpoolSaver], empty: Callable[[int], Any]) -> None:
    """Run the kit; `empty` makes a context manager of what a saver is opened on, with nothing in it."""
    opened = 0

    @checkpointer_test(name=kind.__name__)
    async def saver() -> AsyncIterator[BaseCheckpointSaver[str]]:
        nonlocal opened
        opened += 1
        if kind is WalpoolSaver:
            given = await asyncio.to_thread(empty, opened)  # opening would keep the loop
            sync_saver = await asyncio.to_thread(WalpoolSaver, given.__enter__())
            yield sync_saver
            await asyncio.to_thread(sync_saver.close)
            await asyncio.to_thread(given.__exit__, None, None, None)
        else:
            async with empty(opened) as given, AsyncWalpoolSaver(given) as async_saver:
                yield async_saver

    failures: list[str] = []
    heard = ProgressCallbacks(on_test_result=lambda *result: None if result[2] else failures.append(str(result)))
    report = asyncio.run(validate(saver, progress=heard))
    assert failures == []
    assert left_out(report) == []
    assert {name: result.passed for name, result in report.results.items()} == dict.fromkeys(TESTS, True)
    assert all(result.tests_passed >= TESTS[name] for name, result in report.results.items())


def test_verdict_of_the_kit_alone_would_not_have_been_enough() -> None:
    skipped = CapabilityResult(detected=False, passed=None, tests_skipped=1)
    report = CapabilityReport("a saver that can do nothing", dict.fromkeys(TESTS, skipped))
    assert report.conformance_level() == "FULL"
    assert sorted(left_out(report)) == sorted(TESTS)
