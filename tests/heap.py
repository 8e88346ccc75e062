"""The garbage collector's part in a run: what was imported and collected is not looked through again and again.

CrewAI and the tests come to half a million objects. They stay for as long as the run does, so `gc.collect()` looks at
what tests made alone: microseconds, not a fifth of a second.
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
