"""The order of a run that several processes share (pytest-xdist): files that take long first.

A file is run by one process (`--dist loadfile`), so what is begun last decides how long one of them works on alone.
`--no-loadscope-reorder` keeps this order. A run of one process is left as it is.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

# Seconds that a test takes, roughly and by its marker: the slow files have to come first, the others are alike.
_SECONDS = {"slow": 10.0, "crash": 1.0, "torture": 1.0, "postgres": 0.15}
_ANY = 0.03


@pytest.hookimpl(trylast=True)  # after the markers were given
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    takes: Counter[Path] = Counter()
    for item in items:
        marked = [_SECONDS[mark.name] for mark in item.iter_markers() if mark.name in _SECONDS]
        takes[item.path] += max(marked, default=_ANY)  # type: ignore[assignment]
    items.sort(key=lambda item: -takes[item.path])  # stable: what is in a file keeps its order
