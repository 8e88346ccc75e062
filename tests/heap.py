"""The garbage collector's part in a run: what was imported and collected is not looked through again and again.

CrewAI and the tests come to half a million objects. They stay for as long as the run does, so `gc.collect()` looks at
what the tests of one file made alone: microseconds, not a fifth of a second, and more than one with what files import.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # nearly all that is made now is kept: an import of CrewAI takes a quarter less
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)  # once the file's own fixtures are gone
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
