"""AsyncPool has what Pool has: the same names in the same order, the same arguments, and `await` before them.

So have the pools of PostgreSQL, among each other and against those of SQLite; what they take besides is listed.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import re
from pathlib import Path

import pytest

import walpool

PAIRS: list[tuple[type, type]] = [
    (walpool.Pool, walpool.AsyncPool),
    (walpool.Snapshot, walpool.AsyncSnapshot),
    (walpool.Transaction, walpool.AsyncTransaction),
    (walpool.Stream, walpool.AsyncStream),
]
ADDED = {
    walpool.AsyncPool: {"open"},  # a constructor cannot wait, so opening has a verb of its own
    walpool.AsyncStream: {"aclose"},  # as every async iterator that holds something, for contextlib.aclosing
}
BACKENDS: list[tuple[type, type]] = []  # a class for SQLite, and the one that does the same on PostgreSQL

if importlib.util.find_spec("psycopg"):
    from walpool import postgres

    PAIRS += [
        (postgres.PostgresPool, postgres.AsyncPostgresPool),
        (postgres.Snapshot, postgres.AsyncSnapshot),
        (postgres.Transaction, postgres.AsyncTransaction),
        (postgres.Stream, postgres.AsyncStream),
    ]
    ADDED |= {postgres.AsyncPostgresPool: {"open"}, postgres.AsyncStream: {"aclose"}}
    BACKENDS = [
        (walpool.Pool, postgres.PostgresPool),
        (walpool.AsyncPool, postgres.AsyncPostgresPool),
        *((getattr(walpool, name), getattr(postgres, name)) for name in ("Snapshot", "Transaction", "Stream")),
        *(
            (getattr(walpool, f"Async{n}"), getattr(postgres, f"Async{n}"))
            for n in ("Snapshot", "Transaction", "Stream")
        ),
    ]

IDS = [plain.__name__ for plain, _ in PAIRS]
ONLY_PLAIN = {"is_pooled"}  # asks the server, which an attribute of the asynchronous one must not
OF_SERVERS = {"is_pooled", "tenant"}  # what a file has not
KEYED = {"execute", "executemany", "batch"}  # on PostgreSQL a job may have a key


BLOCKS = {"stream", "read", "transaction"}  # used with `async with`, not awaited

MEMBERS = [
    (plain, mirrored, name)
    for plain, mirrored in PAIRS
    for name in vars(plain)
    if not name.startswith("_") and name not in ONLY_PLAIN
]
METHODS = [member for member in MEMBERS if inspect.isroutine(vars(member[0])[member[2]])]
ATTRIBUTES = [member for member in MEMBERS if member not in METHODS]


def named(part: object) -> str:
    return part if isinstance(part, str) else part.__name__ if isinstance(part, type) else repr(part)


def public(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_")]


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Return name, kind and default of each parameter."""
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


def annotation(found: object) -> str:
    """Return an annotation as its text, with the async names made plain."""
    text = found if isinstance(found, str) else getattr(found, "__name__", repr(found))
    text = re.sub(r"\bAsync(?=Pool|PostgresPool|Snapshot|Transaction|Stream|Iterator|Generator)", "", text)
    return re.sub(r"\bAwaitable\[(\w+)\]|\bCoroutine\[Any, Any, (\w+)\]", r"\1\2", text)


def texts_of_annotations(function: object) -> dict[str, str]:
    return {
        name: annotation(parameter.annotation)
        for name, parameter in inspect.signature(function).parameters.items()  # type: ignore[arg-type]
    }


@pytest.mark.parametrize(("plain", "mirrored"), PAIRS, ids=IDS)
def test_class_has_the_same_public_names_in_the_same_order(plain: type, mirrored: type) -> None:
    added = ADDED.get(mirrored, set())
    assert added <= set(public(mirrored))
    assert [name for name in public(mirrored) if name not in added] == [
        name for name in public(plain) if name not in ONLY_PLAIN
    ]


@pytest.mark.parametrize(("plain", "mirrored", "name"), METHODS, ids=named)
def test_method_takes_the_same_arguments(plain: type, mirrored: type, name: str) -> None:
    assert parameters(getattr(mirrored, name)) == parameters(getattr(plain, name))
    assert texts_of_annotations(getattr(mirrored, name)) == texts_of_annotations(getattr(plain, name))


@pytest.mark.parametrize(("plain", "mirrored", "name"), METHODS, ids=named)
def test_method_is_awaited_and_gives_what_the_plain_one_returns(plain: type, mirrored: type, name: str) -> None:
    method = getattr(mirrored, name)
    assert inspect.iscoroutinefunction(method) == (name not in BLOCKS)
    if name not in BLOCKS:
        given = inspect.signature(method).return_annotation
        assert annotation(given) == annotation(inspect.signature(getattr(plain, name)).return_annotation)


@pytest.mark.parametrize(("plain", "mirrored", "name"), ATTRIBUTES, ids=named)
def test_attribute_is_plain_on_both(plain: type, mirrored: type, name: str) -> None:
    assert isinstance(vars(mirrored)[name], property)


@pytest.mark.parametrize(("plain", "mirrored"), PAIRS, ids=IDS)
def test_class_is_used_with_the_async_forms_of_the_same_statements(plain: type, mirrored: type) -> None:
    awaited = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}
    for name, counterpart in awaited.items():
        assert not hasattr(plain, name) or hasattr(mirrored, counterpart), counterpart
        assert not hasattr(mirrored, name), f"{name} would let a plain statement through"


def offered(cls: type) -> set[str]:
    """Return its public names with those that it inherits."""
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize(("ours", "theirs"), BACKENDS, ids=[ours.__name__ for ours, _ in BACKENDS])
def test_classes_of_the_backends_have_the_same_names(ours: type, theirs: type) -> None:
    assert offered(theirs) - OF_SERVERS == offered(ours)
    if "Pool" in ours.__name__:  # the others are in two pieces
        assert [name for name in public(theirs) if name not in OF_SERVERS] == public(ours)
    for name in ("__enter__", "__aenter__", "__iter__", "__aiter__", "__next__", "__anext__", "__reduce__"):
        assert hasattr(theirs, name) == hasattr(ours, name), name


@pytest.mark.parametrize(
    ("ours", "theirs", "name"), [(*pair, name) for pair in BACKENDS for name in sorted(offered(pair[0]))], ids=named
)
def test_name_means_on_postgres_what_it_means_on_sqlite(ours: type, theirs: type, name: str) -> None:
    expected, found = getattr(ours, name), getattr(theirs, name)
    if isinstance(expected, property):
        assert isinstance(found, property)
        return
    taken = parameters(found)
    if name in KEYED and "Pool" in theirs.__name__:
        taken.remove(("key", inspect.Parameter.KEYWORD_ONLY, None))
    assert taken == parameters(expected)
    assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(expected)


@pytest.mark.skipif(not BACKENDS, reason="psycopg is not installed")
def test_constructors_of_the_backends_take_the_same_arguments_and_a_tenant() -> None:
    for ours, theirs in BACKENDS[:2]:
        extra = ("tenant", inspect.Parameter.KEYWORD_ONLY, None)
        found = [each for each in parameters(theirs) if each != extra]
        assert len(found) + 1 == len(parameters(theirs))
        assert [kind for _, kind, _ in found] == [kind for _, kind, _ in parameters(ours)]


def test_opening_is_awaited() -> None:
    assert inspect.iscoroutinefunction(walpool.AsyncPool.open)
    assert [name for name, *_ in parameters(walpool.AsyncPool.open)] == ["self"]


def test_constructors_and_get_pool_take_the_same_arguments() -> None:
    assert parameters(walpool.AsyncPool) == parameters(walpool.Pool)
    assert parameters(walpool.get_async_pool) == parameters(walpool.get_pool)
    assert texts_of_annotations(walpool.get_async_pool) == texts_of_annotations(walpool.get_pool)
    assert not inspect.iscoroutinefunction(walpool.get_async_pool)


def test_pools_tell_the_same_about_themselves(database: Path) -> None:
    with walpool.Pool(database, readers=3) as pool:
        mirrored = walpool.AsyncPool(database, readers=3)
        assert (mirrored.path, mirrored.closed) == (pool.path, pool.closed)
        assert mirrored.settings.values() == pool.settings.values()
        assert repr(mirrored).startswith(f"<walpool.AsyncPool {pool.path!r} ")


def test_copy_and_pickle_are_new_handles_as_of_a_pool(database: Path) -> None:
    pool = walpool.AsyncPool(database, readers=3)
    for other in (copy.copy(pool), pickle.loads(pickle.dumps(pool))):
        assert other is not pool
        assert (type(other), other.path, other.settings.readers) == (walpool.AsyncPool, pool.path, 3)
