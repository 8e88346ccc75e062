"""What is derived in the SQLite file: each kind of damage is found and mended, a kill leaves none, a model agrees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import walpool
import walpool.memory
from tests.memory.contract import NOON, ids, record
from walpool.memory import Contains, MemoryStore, Query, Record, SqliteMemoryStore, pack
from walpool.memory import _sqlite_schema as schema

DAMAGE = {
    "a sketch is lost": "DELETE FROM memory_sketches WHERE key = 2",
    "a sketch is another's": """UPDATE memory_sketches SET sketch = (SELECT sketch FROM memory_sketches WHERE key = 3)
        WHERE key = 2""",
    "a record counts as deleted": "UPDATE memory_sketches SET gone = 1 WHERE key = 2",
    "a state has another scope": "UPDATE memory_sketches SET scope = 77 WHERE key = 2",
    "a state has no record": "INSERT INTO memory_sketches (space, key, scope, gone) VALUES (1, 77, 1, 0)",
    "a count of a scope": "UPDATE memory_scopes SET records = records + 1 WHERE path = '/s1'",
    "a scope is lost": "DELETE FROM memory_scopes WHERE path = '/s1'",
    "a vector is lost": "DELETE FROM memory_vectors WHERE key = 4",
    "a vector has no record": "INSERT INTO memory_vectors (key) VALUES (77)",
    "a category is lost": "DELETE FROM memory_categories WHERE key = 2",
    "a category too many": "INSERT INTO memory_categories (space, category, key) VALUES (1, 'other', 2)",
    "a count of a category": "UPDATE memory_category_counts SET records = 9 WHERE category = 'c1'",
    "a value is lost": "DELETE FROM memory_metadata WHERE key = 2 AND name = 'n'",
    "a value too many": "INSERT INTO memory_metadata VALUES (1, 'n', 0, 2, 77, 2)",
    "words are lost": "INSERT INTO memory_words (memory_words, rowid, content) VALUES ('delete', 2, 'about r1')",
    "words too many": "INSERT INTO memory_words (rowid, content) VALUES (2, 'secret')",
}


def filled(store: MemoryStore) -> list[Record]:
    records = [
        record(
            f"r{n}",
            [1.0, n] if n < 3 else None,
            scope=f"/s{n % 2}",
            categories=(f"c{n % 2}",),
            metadata={"n": n, "l": [n]},
        )
        for n in range(6)
    ]
    store.save(records)
    return records


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_mended(database: Path, damage: str) -> None:
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        records = filled(store)
        assert store.check() == []
        pool.execute(DAMAGE[damage])
        found = store.check()
        assert found, damage
        assert all(sentence.startswith("memory_") and "secret" not in sentence for sentence in found)
        store.rebuild()
        assert store.check() == []
        if damage != "a scope is lost":  # its path stands nowhere else: what lay there comes to the root
            assert sorted(store.list(), key=lambda item: item.id) == records
        assert len(store.search(pack([1.0, 0.0]), Query(metadata={"l": Contains(1)}))) == 1
        assert ids(store.search(text="about r1")) == ["r1"]


def test_tombstones_are_trimmed_and_the_space_says_so(database: Path) -> None:
    trigger = next(sql for sql in schema.MIGRATIONS[1] if "memory_sketches_trimmed" in sql)
    small = trigger.replace(str(schema.TRIM_AT), "10").replace(str(schema.TRIM_TO), "5")
    with walpool.memory.open(database) as store, walpool.Pool(database) as pool:
        pool.script(f"DROP TRIGGER memory_sketches_trimmed; {small}")
        for n in range(40):
            store.save([record(str(n), [1.0]), record(f"later{n}")])  # a key that is free at the end is given again
            store.delete(Query(ids=(str(n),)))
            found = pool.fetchone(
                """SELECT count(*), coalesce(min(change), 0), (SELECT max(change) FROM memory_sketches),
                (SELECT trimmed FROM memory_spaces) FROM memory_sketches WHERE gone = 1"""
            )
            tombstones, oldest, newest, trimmed = found
            assert tombstones <= 12
            assert trimmed < oldest <= newest
        assert trimmed > 0
        assert store.check() == []


WRITER = """
import random, sys, walpool.memory as m
from walpool.memory import Query, Record, pack
with m.open(sys.argv[1]) as store:
    rng = random.Random(int(sys.argv[2]))
    while True:
        n = rng.randrange(50)
        batch = [
            Record(
                id=f"{sys.argv[2]}-{n}-{k}", content=f"words {n}", scope=f"/{rng.randrange(4)}",
                embedding=pack([n, k, 1.0]), categories=(f"c{n % 3}",), metadata={"n": n, "l": [k, n]},
            )
            for k in range(rng.randrange(1, 4))
        ]
        store.save(batch)
        verb = rng.randrange(5)
        if verb == 0:
            store.delete(Query(metadata={"n": n}))
        elif verb == 1:
            store.update(batch[0].id, scope="/moved", content="other words")
        elif verb == 2:
            store.expire(keep=20)
        elif verb == 3 and n == 0:
            store.compact()
        print(n, flush=True)
"""


@pytest.mark.crash
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_writers_leave_what_is_derived_whole(database: Path) -> None:
    for turn in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(database), str(n)], stdout=subprocess.PIPE, text=True)
            for n in (1, 2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            for _ in range(30):
                assert writer.stdout.readline()
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            writer.communicate()
        with walpool.memory.open(database) as store:
            assert store.check() == [], turn
            assert len(store.list(limit=10_000)) == store.count()
            assert len(store.search(pack([1.0, 1.0, 1.0]), limit=10_000)) == store.count()


# A model: the same in a dict

IDS = st.sampled_from("abcdef")
SCOPES = st.sampled_from(["/", "/a", "/a/b", "/ab", "/c"])
CATEGORIES = st.lists(st.sampled_from("xyz"), max_size=3).map(tuple)
METADATA = st.dictionaries(
    st.sampled_from("kl"), st.sampled_from([1, 1.0, True, None, "1", [1, "x"], {"a": 1}]), max_size=2
)
EMBEDDINGS = st.none() | st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=2, max_size=2).map(pack)
TIMES = st.integers(0, 5).map(lambda days: NOON + timedelta(days=days))


class Model(RuleBasedStateMachine):
    """The store does what a dict of records does."""

    store: SqliteMemoryStore

    def __init__(self) -> None:
        super().__init__()
        self.store.reset()
        self.records: dict[str, Record] = {}
        self.order: dict[str, int] = {}  # rows, as they were first saved
        self.saved = 0

    @rule(name=IDS, scope=SCOPES, categories=CATEGORIES, metadata=METADATA, embedding=EMBEDDINGS, at=TIMES)
    def save(self, name: str, embedding: bytes | None, at: Any, **fields: Any) -> None:
        old = self.records.get(name)
        kept = old.embedding if embedding is None and old is not None else embedding
        new = Record(id=name, content=f"about {name}", embedding=embedding, created_at=at, accessed_at=at, **fields)
        self.store.save([new])
        self._keep(name, new, embedding=kept)

    @rule(name=IDS, changes=st.fixed_dictionaries({}, optional={
        "scope": SCOPES, "categories": CATEGORIES, "metadata": METADATA, "embedding": EMBEDDINGS, "created_at": TIMES,
    }))  # fmt: skip
    def update(self, name: str, changes: Any) -> None:
        assert self.store.update(name, **changes) == (name in self.records)
        if name in self.records:
            self._keep(name, self.records[name], **changes)

    @rule(name=IDS, at=TIMES)
    def touch(self, name: str, at: Any) -> None:
        assert self.store.touch([name], at) == (name in self.records)
        if name in self.records:
            self._keep(name, self.records[name], accessed_at=at)

    @rule(scope=st.none() | SCOPES, categories=st.none() | CATEGORIES, before=st.none() | TIMES)
    def delete(self, scope: str | None, categories: Any, before: Any) -> None:
        query = Query(scope=scope, categories=categories, created_before=before)
        gone = [name for name, kept in self.records.items() if self._meets(kept, query)]
        assert self.store.delete(query) == len(gone)
        for name in gone:
            del self.records[name], self.order[name]

    @rule(keep=st.integers(0, 2))
    def expire(self, keep: int) -> None:
        places: dict[str, int] = {}
        gone = []
        for kept in self._newest():
            places[kept.scope] = places.get(kept.scope, 0) + 1
            if places[kept.scope] > keep:
                gone.append(kept.id)
        assert self.store.expire(keep=keep) == len(gone)
        for name in gone:
            del self.records[name], self.order[name]

    @rule(verb=st.sampled_from(["compact", "rebuild"]))
    def look_after(self, verb: str) -> None:
        getattr(self.store, verb)()

    @precondition(lambda self: len(self.records) > 3)
    @rule()
    def reset(self) -> None:
        self.store.reset()
        self.records, self.order = {}, {}

    @invariant()
    def agrees(self) -> None:
        newest = self._newest()
        pages, after = [], None
        while True:
            page = self.store.list(limit=2, after=after)
            pages += page
            after = page.next
            if after is None:
                break
        assert pages == newest
        assert self.store.count() == len(newest)
        scopes: dict[str, int] = {}
        names: dict[str, int] = {}
        for kept in newest:
            parts = kept.scope.split("/")[1:] if kept.scope != "/" else []
            for depth in range(1, len(parts) + 1):
                path = "/" + "/".join(parts[:depth])
                scopes[path] = scopes.get(path, 0) + 1
            for name in set(kept.categories):
                names[name] = names.get(name, 0) + 1
        assert self.store.scopes(deep=True) == dict(sorted(scopes.items()))
        assert self.store.categories() == dict(sorted(names.items()))
        assert self.store.categories(Query(created_after=NOON)) == self.store.categories()
        found = self.store.search(pack([1.0, 0.5]), metric="l2", limit=10)
        assert set(ids(found)) == set(self.records)
        assert set(ids(self.store.search(text="about", limit=10))) == set(self.records)

    def teardown(self) -> None:
        assert self.store.check() == []

    def _keep(self, name: str, new: Record, **changes: Any) -> None:
        if name not in self.order:
            self.saved += 1
            self.order[name] = self.saved
        self.records[name] = replace(new, **changes)

    def _newest(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda kept: (kept.created_at, self.order[kept.id]), reverse=True)

    def _meets(self, kept: Record, query: Query) -> bool:
        return (
            (query.scope is None or kept.scope == query.scope or kept.scope.startswith(f"{query.scope}/"))
            and (query.categories is None or bool(set(kept.categories) & set(query.categories)))
            and (query.created_before is None or kept.created_at < query.created_before)
        )


@pytest.fixture
def store(database: Path) -> Iterator[MemoryStore]:
    with walpool.memory.open(database, synchronous="normal") as opened:
        yield opened


@pytest.mark.timeout(180)
def test_store_does_what_a_dict_does(store: SqliteMemoryStore) -> None:
    class Bound(Model):
        pass

    Bound.store = store
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Bound,
        settings=settings(
            max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
