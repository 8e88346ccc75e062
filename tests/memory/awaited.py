"""An async store behind a face that waits for it, so that the contract of the plain one runs on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from walpool.memory import AsyncMemoryStore


class Awaited:
    """An async store for callers that wait: each call is run on a loop that a thread of its own runs."""

    def __init__(self, store: AsyncMemoryStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)

        def call(*args: Any, **named: Any) -> Any:
            begun = method(*args, **named)
            return self._iterate(begun) if inspect.isasyncgen(begun) else self._wait(begun)

        return call

    def _wait(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(50)

    def _iterate(self, begun: Any) -> Iterator[Any]:
        async def following() -> list[Any]:
            try:
                return [await anext(begun)]
            except StopAsyncIteration:
                return []

        try:
            while found := self._wait(following()):
                yield from found
        finally:
            self._wait(begun.aclose())
