"""The memory store in PostgreSQL: the contract, awaited or not, and what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

import walpool.memory
from tests.memory.awaited import Awaited
from tests.memory.contract import StoreContract
from tests.memory.contract_conditions import ConditionsContract
from tests.memory.contract_spaces import SpacesContract
from tests.memory.contract_words import WordsContract
from walpool.memory import MemoryStore

Opener = Callable[..., MemoryStore]


class PostgresContract(StoreContract, ConditionsContract, SpacesContract, WordsContract):
    """What differs on PostgreSQL: it stores no NUL, and has a syntax of its own for words."""

    keeps_nul = False
    raw_query = "(green <-> apple) | tea"
    raw_exclusion = "green & !(apple | pear)"
    raw_mistakes = ("a &", "(a", "a b", "'a", "a <->")


class TestPostgresStore(PostgresContract):
    @pytest.fixture
    def opener(self, postgres_url: str) -> Iterator[Opener]:
        with ExitStack() as opened:
            yield lambda **names: opened.enter_context(walpool.memory.open(postgres_url, **names))

    @pytest.fixture
    def store(self, opener: Opener) -> MemoryStore:
        return opener()


class TestAsyncPostgresStore(PostgresContract):
    @pytest.fixture
    def opener(self, postgres_url: str, loop: asyncio.AbstractEventLoop) -> Iterator[Opener]:
        opened: list[Any] = []

        def opens(**names: Any) -> MemoryStore:
            opened.append(Awaited(walpool.memory.open_async(postgres_url, **names), loop))
            return cast("MemoryStore", opened[-1])

        yield opens
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, opener: Opener) -> MemoryStore:
        return opener()
