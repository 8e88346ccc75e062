"""The awaited memory store: the same contract, behind a face that waits for it; its mirror; and a loop that goes on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from looping import on_asyncio

import walpool
import walpool.memory
from tests.memory.awaited import Awaited
from tests.memory.contract import StoreContract, record
from tests.memory.contract_conditions import ConditionsContract
from tests.memory.contract_spaces import SpacesContract
from tests.memory.contract_words import WordsContract
from tests.test_mirror import annotation, parameters, public, texts_of_annotations
from walpool.memory import (
    AsyncMemoryStore,
    AsyncPostgresMemoryStore,
    AsyncSqliteMemoryStore,
    MemoryStore,
    PostgresMemoryStore,
    Query,
    SqliteMemoryStore,
    pack,
)  # fmt: skip

METHODS = [name for name in public(MemoryStore) if inspect.isfunction(getattr(SqliteMemoryStore, name))]


@pytest.fixture
def opener(database: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., MemoryStore]]:
    opened: list[Any] = []

    def opens(**names: Any) -> MemoryStore:
        opened.append(Awaited(walpool.memory.open_async(database, **names), loop))
        return cast("MemoryStore", opened[-1])

    yield opens
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Callable[..., MemoryStore]) -> MemoryStore:
    return opener()


class TestAsyncSqliteStore(StoreContract, ConditionsContract, SpacesContract, WordsContract):
    pass


# As its mirror

PAIRS = [(SqliteMemoryStore, AsyncSqliteMemoryStore), (PostgresMemoryStore, AsyncPostgresMemoryStore)]


def names(store: type) -> list[str]:
    """Return the public names of a store, its own and those that it has from the stores' common class."""
    return [name for one in reversed(store.__mro__) if one is not object for name in public(one)]


@pytest.mark.parametrize(("plain", "mirrored"), PAIRS)
def test_store_has_the_same_names_in_the_same_order(plain: type, mirrored: type) -> None:
    assert names(mirrored) == names(plain)
    assert set(names(plain)) >= set(public(MemoryStore))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("plain", "mirrored"), PAIRS)
def test_method_takes_the_same_arguments_and_is_awaited(plain: type, mirrored: type, name: str) -> None:
    method, awaited = getattr(plain, name), getattr(mirrored, name)
    assert parameters(awaited) == parameters(method)
    assert texts_of_annotations(awaited) == texts_of_annotations(method)
    assert inspect.iscoroutinefunction(awaited) or inspect.isasyncgenfunction(awaited)
    given = inspect.signature(awaited).return_annotation
    assert annotation(given) == annotation(inspect.signature(method).return_annotation)


@pytest.mark.parametrize(
    ("store", "contract"),
    [
        (store, contract)
        for pair in PAIRS
        for store, contract in zip(pair, (MemoryStore, AsyncMemoryStore), strict=True)
    ],
)
def test_store_has_what_the_contract_asks(store: type, contract: type) -> None:
    for name in public(contract):
        assert parameters(getattr(store, name))[:1] == parameters(getattr(contract, name))[:1]
        asked = [(given.name, given.kind) for given in inspect.signature(getattr(contract, name)).parameters.values()]
        assert [
            (given.name, given.kind) for given in inspect.signature(getattr(store, name)).parameters.values()
        ] == asked


def test_opening_takes_the_same_arguments() -> None:
    assert parameters(walpool.memory.open_async) == parameters(walpool.memory.open)


# On a loop


@on_asyncio
async def test_tasks_that_begin_at_once_make_the_tables_once(database: Path) -> None:
    async with walpool.memory.open_async(database) as store:
        await asyncio.gather(*(store.save([record(str(n), [1.0])]) for n in range(50)))
        assert await store.count() == 50
        assert [found.id async for found in store.iterate(Query(ids=("1", "2")))] == ["1", "2"]
        assert await store.check() == []


@on_asyncio
async def test_store_opens_at_its_first_call_and_both_kinds_share_a_file(database: Path) -> None:
    store = walpool.memory.open_async(database)
    assert not database.exists()
    await store.save([record("a", [1.0])])

    def beside() -> int:
        with walpool.memory.open(database) as plain:
            return plain.count()

    assert await asyncio.to_thread(beside) == 1
    await store.close()
    await store.close()


@on_asyncio
async def test_iterator_that_is_left_early_gives_its_reader_back(database: Path) -> None:
    async with walpool.memory.open_async(database, readers=2) as store:
        await store.save([record(str(n)) for n in range(10)])
        for _ in range(5):
            found = cast("Any", store.iterate(chunk=2))
            assert (await anext(found)).id == "0"
            await found.aclose()
        assert len(await store.search(pack([1.0]))) == 10


@on_asyncio
async def test_read_of_a_cancelled_task_leaves_the_store_whole(database: Path) -> None:
    async with walpool.memory.open_async(database) as store:
        await store.save([record(str(n), [1.0]) for n in range(100)])
        for _ in range(20):
            task = asyncio.ensure_future(store.summary())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await store.count() == 100


def _typed(store: AsyncSqliteMemoryStore) -> AsyncMemoryStore:
    return store  # for the type checker


def _iterates(store: AsyncSqliteMemoryStore) -> AsyncIterator[walpool.memory.Record]:
    return store.iterate()  # for the type checker
