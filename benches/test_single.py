"""The cost of single calls, by pytest-benchmark: `pytest benches/test_single.py`.

One thread, nobody else in the process: what a call costs when there is nothing to wait for. `synchronous=normal`, so
that it is the call that is timed and not the disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benches import contenders as c
from benches import data

ROWS = 1_000
RANGE = "SELECT key, body, version FROM items WHERE key BETWEEN ? AND ?"

Benchmark = Callable[..., Any]  # pytest-benchmark's fixture


@pytest.fixture(params=[c.ConnectionPerThread, c.ConnectionPerOperation, c.ApswPerThread, c.WriterThread, c.Walpool])
def contender(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Yield each contender that can run here, on a database of `ROWS` rows."""
    reason = c.missing(request.param)
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path / "single.db"
    data.write_items(path, ROWS)
    opened = request.param()
    opened.setup(str(path), "normal")
    yield opened
    opened.close()


@pytest.mark.benchmark(group="upsert of 1 KB")
def test_upsert(benchmark: Benchmark, contender: Any) -> None:
    turns = itertools.count()

    def upsert() -> None:
        turn = next(turns)
        contender.upsert(turn % ROWS, data.body(0, turn))  # never the body that the row has

    benchmark(upsert)


@pytest.mark.benchmark(group="point read of 1 KB")
def test_point_read(benchmark: Benchmark, contender: Any) -> None:
    assert benchmark(contender.point_read, 500) == data.body(data.LOADER, 500)


@pytest.mark.benchmark(group="point read of a row that is not there")
def test_point_read_of_a_missing_row(benchmark: Benchmark, contender: Any) -> None:
    assert benchmark(contender.point_read, ROWS + 1) is None


@pytest.mark.benchmark(group="range of 100 rows of 1 KB")
def test_range(benchmark: Benchmark, contender: Any) -> None:
    assert len(benchmark(contender.query, RANGE, (100, 199))) == 100
