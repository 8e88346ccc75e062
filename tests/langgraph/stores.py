"""What the tests of the LangGraph store and cache share: both kinds behind one face, and an embedding."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walpool.langgraph import AsyncWalpoolStore, WalpoolCache, WalpoolStore

KINDS = ("sync", "async")
LETTERS = "abcde"
INDEX: Any = {"dims": len(LETTERS), "embed": lambda texts: [letters(text) for text in texts], "fields": ["text"]}


def letters(text: str) -> list[float]:
    """Return how often each of LETTERS stands in a text: an embedding whose neighbours are known."""
    return [float(text.count(letter)) for letter in LETTERS]


class Blocking:
    """Calls the a* method of a name where its plain method is called, on one event loop of its own."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # `sweep_ttl` and `close` of an asynchronous class have no "a".
        method = getattr(self._target, f"a{name}", None) or getattr(self._target, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))


@contextmanager
def looping(target: Any) -> Iterator[Blocking]:
    loop = asyncio.new_event_loop()
    blocking = Blocking(target, loop)
    try:
        yield blocking
    finally:
        blocking.close()
        loop.close()


@contextmanager
def opened_store(kind: str, path: Path | str, **options: Any) -> Iterator[Any]:
    """Yield a store of one kind, with the methods of a synchronous one."""
    if kind == "sync":
        with WalpoolStore(path, **options) as store:
            yield store
    else:
        with looping(AsyncWalpoolStore(path, **options)) as blocking:
            yield blocking


@contextmanager
def opened_cache(kind: str, path: Path | str, **options: Any) -> Iterator[Any]:
    """Yield a cache whose methods of one kind are called, with the names of the synchronous ones."""
    cache: WalpoolCache[Any] = WalpoolCache(path, **options)
    if kind == "sync":
        with cache:
            yield cache
    else:
        with looping(cache) as blocking:
            yield blocking


def keys(items: Sequence[Any]) -> list[str]:
    return [item.key for item in items]
