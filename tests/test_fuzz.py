"""Every public entry with wrong types, sizes and moments: an error of walpool's or Python's, and a pool that works on.

A panic is a BaseException of its own and passes every `except` here; an abort ends the process, so what could bring one
about runs in a child.
"""

from __future__ import annotations

import contextlib
import decimal
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest
from helpers import run_python
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import walpool
from tests.torture import Torture
from walpool import errors, memory


class Hostile(Exception):
    """What the objects below raise wherever they are looked at."""


REFUSALS = (errors.Error, TypeError, ValueError, Hostile)
# Plain Python looks for `.id` in what is no record, and a Decimal's NaN has an error of its own.
STORE_REFUSALS = (*REFUSALS, AttributeError, ArithmeticError)


def refuse(*_: object, **__: object) -> Any:
    raise Hostile


def hostile(name: str, *bases: type, **answers: object) -> Any:
    """Return an object whose special methods raise, or answer what they should not."""
    methods = {method: (lambda *_, answer=answer: answer) for method, answer in answers.items()}
    looks = dict.fromkeys(
        ("__len__", "__iter__", "__getitem__", "__index__", "__int__", "__float__", "__str__"), refuse
    )
    looks |= dict.fromkeys(
        ("__repr__", "__bool__", "__eq__", "__fspath__", "__call__", "keys", "items", "__next__"), refuse
    )
    return type(name, bases, {**({} if answers else looks), "__hash__": object.__hash__, **methods})


class LyingAboutItsClass:
    """Its class is whatever raises when it is asked for."""

    __class__ = property(refuse)  # type: ignore[assignment]


class Pretending(Mapping[Any, Any]):
    """A mapping whose items are no pairs."""

    def __getitem__(self, key: object) -> object:
        return key

    def __iter__(self) -> Iterator[Any]:
        return iter([1, "a"])

    def __len__(self) -> int:
        return 2**62

    def items(self) -> Any:
        return [1, (2,), (3, 4, 5)]


class Endless(Sequence[int]):
    """A sequence whose length is a lie."""

    def __getitem__(self, index: Any) -> Any:
        if index < 3:
            return index
        raise IndexError

    def __len__(self) -> int:
        return 5


CRUEL = [
    hostile("Anything")(),
    hostile("Text", str)("text"),
    hostile("Number", int)(1),
    hostile("Fraction", float)(1.5),
    hostile("Bytes", bytes)(b"x"),
    hostile("Row", tuple)((1,)),
    hostile("Rows", list)([(1,)]),
    hostile("Names", dict)(a=1),
    hostile("Long", __len__=2**62, __iter__=iter(()))(),
    hostile("Negative", __len__=-1, __iter__=iter(()))(),
    hostile("Wrong", __len__="x", __iter__=1, __float__="x", __index__="x", __fspath__=3, __str__=3)(),
    hostile("Falling", __iter__=iter([]), __getitem__=None)(),
    LyingAboutItsClass(),
    Pretending(),
    Endless(),
    type,
    object,
    refuse,
    walpool,
    NotImplemented,
    ...,
    decimal.Decimal("NaN"),
    datetime.now(timezone.utc),
]


def one_cruel(index: int) -> Any:
    return CRUEL[index]


# By their numbers: hypothesis looks at what it samples from.
cruel = st.integers(0, len(CRUEL) - 1).map(one_cruel)
numbers = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**400, 0, -1, 1]),
    st.floats(),
    st.complex_numbers(),
    st.decimals(),
)
texts = st.one_of(
    st.text(), st.text(alphabet=st.characters()), st.just("\0"), st.just("x" * 100_000), st.just("\ud800")
)
blobs = st.one_of(st.binary(), st.binary().map(bytearray), st.binary().map(memoryview))
scalars = st.one_of(st.none(), numbers, texts, blobs, cruel)
keys = st.one_of(st.none(), st.integers(), texts, st.binary())
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.lists(inner, max_size=3).map(iter),
        st.just(range(3)),
    ),
    max_leaves=8,
)
statements = st.one_of(
    st.sampled_from(
        [
            "SELECT 1",
            "SELECT ?",
            "SELECT ?, ?2, :a",
            "SELECT :a, $a, @a",
            "INSERT INTO t VALUES (?)",
            "INSERT INTO t VALUES (:a) RETURNING *",
            "INSERT INTO t SELECT value FROM json_each(?)",
            "SELECT * FROM t",
            "SELECT CAST(? AS TEXT), zeroblob(?)",
            "SELECT CAST(x'ff' AS TEXT)",
            "DELETE FROM t",
            "UPDATE t SET a = ?",
            "CREATE TABLE IF NOT EXISTS other (a)",
            "SELECT vec_dot(?, ?), vec_sketch(?, ?), vec_nearest(?, ?, ?, ?, ?, NULL, ?, ?, ?, ?)",
            "SELECT vec_cosine(:a, :a)",
            "PRAGMA table_info(t)",
            "COMMIT",
            "SELECT 1; SELECT 2",
            "-- nothing",
            "",
        ]
    ),
    anything,
)
parameters = st.one_of(
    st.just(()), st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "?"]), scalars), anything
)
rows = st.one_of(st.sampled_from([tuple, dict, list, None, lambda columns, values: values]), anything)
timeouts = st.one_of(st.none(), st.sampled_from([1, 0.5, 1e308]), anything)
paths = st.one_of(
    anything.filter(lambda given: not issubclass(type(given), (str, bytes))), st.just(""), st.just("a\0b")
)


def examples(torture: Torture, short: int, full: int) -> settings:
    """Return how often hypothesis tries; it makes no example smaller for long, and keeps none."""
    tries = torture.size(short, full)
    return settings(
        max_examples=tries,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def given_some(draw: Callable[..., Any], **strategies: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Draw keyword arguments, each given or left out, and now and then one that nobody takes."""
    chosen = {name: draw(strategy) for name, strategy in strategies.items() if draw(st.booleans())}
    return chosen | ({"nonsense": 1} if draw(st.integers(0, 30)) == 30 else {})


def drawn_calls(draw: Callable[..., Any], verbs: Any) -> list[Callable[[], object]]:
    """Return one call of each reading verb of a pool, a snapshot or a transaction, with drawn arguments."""
    options = given_some(draw, timeout=timeouts)
    factory = given_some(draw, row=rows)
    sql, params = draw(statements), draw(parameters)
    return [
        lambda: verbs.fetch(sql, params, **options, **factory),
        lambda: verbs.fetchone(sql, params, **options, **factory),
        lambda: verbs.fetchval(sql, params, **options),
    ]


def drawn_writes(draw: Callable[..., Any], verbs: Any) -> list[Callable[[], object]]:
    options = given_some(draw, timeout=timeouts)
    sql, params, many = draw(statements), draw(parameters), draw(st.one_of(st.lists(parameters, max_size=3), anything))
    return [lambda: verbs.execute(sql, params, **options), lambda: verbs.executemany(sql, many, **options)]


def drawn_pool_calls(draw: Callable[..., Any], pool: walpool.Pool) -> list[Callable[[], object]]:
    options = given_some(draw, timeout=timeouts)
    batch = draw(st.one_of(st.lists(st.tuples(statements, parameters), max_size=3), st.lists(statements), anything))
    sql, params, value = draw(statements), draw(parameters), draw(anything)
    streaming = given_some(draw, timeout=timeouts, row=rows, chunk=st.one_of(st.integers(1, 5), anything))

    def stream() -> None:
        with pool.stream(sql, params, **streaming) as rows:
            list(rows)

    def snapshot() -> None:
        with pool.read(**options) as held:
            attempt(drawn_calls(draw, held))

    def transaction() -> None:
        with pool.transaction(**options) as tx:
            attempt([*drawn_calls(draw, tx), *drawn_writes(draw, tx)])
            with tx.transaction():
                attempt(drawn_writes(draw, tx))

    dest = draw(paths)
    return [
        *drawn_calls(draw, pool),
        *drawn_writes(draw, pool),
        lambda: pool.batch(batch, **options),
        lambda: pool.script(sql, **options),
        lambda: pool.run(value, **options),
        lambda: pool.checkpoint(value),
        lambda: pool.backup(dest),
        stream,
        snapshot,
        transaction,
    ]


def attempt(calls: list[Callable[[], object]], refusals: tuple[type[Exception], ...] = REFUSALS) -> None:
    for call in calls:
        with contextlib.suppress(*refusals):
            call()


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_verbs_of_a_pool_refuse_whatever_they_cannot_use_and_the_pool_works_on(database, torture):
    tried = 0
    with walpool.Pool(database, synchronous="normal", readers=2) as pool:
        pool.script("CREATE TABLE t (a)")

        @examples(torture, 60, 6_000)
        @given(st.data())
        def fuzz(data: Any) -> None:
            nonlocal tried
            calls = drawn_pool_calls(data.draw, pool)
            attempt(calls)
            tried += len(calls)
            pool.execute("DELETE FROM t")
            assert pool.execute("INSERT INTO t VALUES (1)").rowcount == 1
            assert pool.fetch("SELECT a FROM t") == [(1,)]

        try:
            fuzz()
        finally:
            stats = pool.stats()
            torture.tell("entries of a pool with anything", tried=tried, unit="calls", lost=0)
        assert (stats["jobs_waiting"], stats["readers_out"]) == (0, 0)
        assert pool.check() == []


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_settings_and_paths_of_any_kind_open_a_pool_or_are_refused(tmp_path, monkeypatch, torture):
    monkeypatch.chdir(tmp_path)
    names = [name for name, *_ in walpool.pool._core.setting_table()]
    tried = 0

    @examples(torture, 25, 500)
    @given(st.data())
    def fuzz(data: Any) -> None:
        nonlocal tried
        draw = data.draw
        given = draw(st.dictionaries(st.sampled_from([*names, "nonsense"]), anything, max_size=3))
        path = draw(
            st.one_of(paths, st.just("a.db"), st.just(":memory:"), texts.map(lambda text: f"walpool://b.db?{text}"))
        )
        calls: list[Callable[[], object]] = [
            lambda: walpool.Settings.load(path, **given),
            lambda: walpool.Settings.load(env=draw(st.dictionaries(st.sampled_from(VARIABLES), texts))),
            lambda: walpool.Pool(path, **given).close(),
            lambda: walpool.get_pool(path, **given).close(),
            lambda: memory.open(path, **given).close(),
        ]
        attempt(calls)
        tried += len(calls)

    VARIABLES = [f"WALPOOL_{name.upper()}" for name in names]  # noqa: N806 - a table
    monkeypatch.delenv("WALPOOL_URL", raising=False)
    fuzz()
    torture.tell("settings and paths of any kind", tried=tried, unit="calls", lost=0)
    with walpool.Pool("a.db") as pool:
        assert pool.fetchval("SELECT 1") == 1


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_verbs_of_a_memory_store_refuse_whatever_they_cannot_use(database, torture):
    tried = 0
    vectors = st.one_of(st.just(memory.pack([1.0, 2.0])), st.binary(), anything)
    fields = {"id": texts, "content": texts, "scope": texts, "embedding": st.none() | vectors, "source": texts}
    fields |= {
        "categories": st.lists(texts).map(tuple),
        "metadata": st.dictionaries(texts, st.none() | numbers | texts),
    }
    fields |= {"importance": st.floats(0, 1), "private": st.booleans()}
    conditions = {"scope": texts, "categories": st.lists(texts).map(tuple), "ids": st.lists(texts).map(tuple)}
    conditions |= {"metadata": st.dictionaries(texts, scalars), "created_before": st.datetimes()}

    def wrongly(draw: Callable[..., Any], make: Callable[..., object], right: dict[str, Any]) -> object:
        """Return what `make` makes of drawn fields, of which few are wrong; anything at all where it refuses them."""
        wrong = {name: draw(anything) for name in right if draw(st.integers(0, 9)) == 9}
        with contextlib.suppress(*STORE_REFUSALS):
            return make(**{name: draw(strategy) for name, strategy in right.items()} | wrong)
        return draw(anything)

    with memory.open(database, synchronous="normal") as store:

        @examples(torture, 40, 1_500)
        @given(st.data())
        def fuzz(data: Any) -> None:
            nonlocal tried
            draw = data.draw
            record, query = wrongly(draw, memory.Record, fields), wrongly(draw, memory.Query, conditions)
            vector, text, value = draw(vectors), draw(texts), draw(anything)
            searching = given_some(
                draw, limit=numbers, min_score=anything, metric=st.sampled_from(["l2", "x"]) | anything
            )
            paging = given_some(draw, limit=st.integers() | anything, offset=st.integers() | anything)
            calls: list[Callable[[], object]] = [
                lambda: store.save([record]),
                lambda: store.save(value),
                lambda: store.get(value),
                lambda: store.search(vector, query, **searching),
                lambda: store.list(query, **paging),
                lambda: store.count(query),
                lambda: store.categories(query),
                lambda: store.scopes(value),
                lambda: store.scopes(text),
                lambda: store.summary(text),
                lambda: store.touch([text], datetime.now(timezone.utc)),
                lambda: store.touch(value, value),
                lambda: store.delete(query),
                lambda: memory.pack(value),
                lambda: memory.unpack(value),
                lambda: memory.normalize_scope(value),
            ]
            attempt(calls, STORE_REFUSALS)
            tried += len(calls)
            store.reset()
            good = memory.Record(id="good", content="a", embedding=memory.pack([1.0]))
            store.save([good])
            assert [hit.record.id for hit in store.search(memory.pack([1.0]))] == ["good"]

        fuzz()
        torture.tell("verbs of a memory store with anything", tried=tried, unit="calls", lost=0)
        assert store.pool.check() == []


# Each of these could bring the process down, or never come back.
CRUELTIES = '''
import faulthandler, gc, itertools, pickle, copy, os, sys, threading
import walpool
from walpool import errors, memory, _core

faulthandler.dump_traceback_later(60, exit=True)  # a hang is a failure that says where
path, folder = sys.argv[1], os.path.dirname(sys.argv[1])
INSERT = "INSERT INTO t VALUES (?)"
pool = walpool.Pool(path, synchronous="normal", readers=2)
pool.script("CREATE TABLE t (a)")

class Hostile(Exception):
    pass

class Long:
    def __init__(self, length):
        self.length = length
    def __len__(self):
        if isinstance(self.length, BaseException):
            raise self.length
        return self.length
    def __iter__(self):
        return iter([(1,), (2,)])
    def __getitem__(self, index):
        return [(1,), (2,)][index]

class Growing(list):
    """Grows while it is read."""
    def __iter__(self):
        for index in range(3):
            self.append((index,))
            yield (index,)

class Shrinking:
    """Its rows empty the list of parameters that is being converted."""
    def __init__(self, params):
        self.params = params
    @property
    def __class__(self):
        self.params.clear()
        return object

def endless_nesting():
    inner = []
    inner.append(inner)
    return inner

def deep(levels, make):
    value = 1
    for _ in range(levels):
        value = make(value)
    return value

def calling_back(verb):
    """Rows whose making calls the pool that waits for them."""
    for number in range(3):
        verb()
        yield (number,)

def outcome(name, call):
    print(name, file=sys.stderr, flush=True)
    try:
        call()
    except (errors.Error, TypeError, ValueError, MemoryError, BufferError, Hostile, RecursionError) as error:
        print(f"{name}: {type(error).__name__}")
    else:
        print(f"{name}: fine")
    assert pool.execute(INSERT, (7,)).rowcount == 1, name
    assert pool.fetchval("SELECT a FROM t WHERE a = 7") == 7, name

def raiser(error):
    def raise_it(*_):
        raise error
    return raise_it

for length in (2**62, 2**40, 2**34, -1, "x", 2**70, Hostile(), MemoryError(), 0):
    outcome(f"rows of length {length!r}", lambda: pool.executemany(INSERT, Long(length)))
    outcome(f"parameters of length {length!r}", lambda: pool.execute(INSERT, Long(length)))
    outcome(f"a batch of length {length!r}", lambda: pool.batch(Long(length)))
    outcome(f"records of length {length!r}", lambda: memory.pack(Long(length)))

outcome("rows that grow", lambda: pool.executemany(INSERT, Growing()))
params = [1, 2, 3]
params.insert(0, Shrinking(params))
outcome("parameters that shrink", lambda: pool.execute("INSERT INTO t VALUES (?)", params))
outcome("rows that shrink", lambda: pool.executemany(INSERT, [params, params]))
outcome("nesting without an end", lambda: pool.execute(INSERT, endless_nesting()))
outcome("nesting without an end as rows", lambda: pool.executemany(INSERT, endless_nesting()))
for make in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}):
    value = deep(50_000, make)
    outcome("deep nesting", lambda: pool.execute(INSERT, (value,)))
    outcome("deep nesting as parameters", lambda: pool.execute(INSERT, value))
    outcome("deep nesting as rows", lambda: pool.executemany(INSERT, value))
    outcome("deep nesting as a batch", lambda: pool.batch(value))
    outcome("deep nesting as a setting", lambda: walpool.Settings.load(path, readers=value))
    del value  # in slices: a deep tuple is freed through Python's trashcan

buffer = bytearray(1000)
view = memoryview(buffer)
outcome("a view", lambda: pool.execute(INSERT, (view,)))
view.release()
outcome("a released view", lambda: pool.execute(INSERT, (view,)))
outcome("a view of two dimensions", lambda: pool.execute(INSERT, (memoryview(bytes(16)).cast("B", (4, 4)),)))
outcome("a view of doubles", lambda: pool.execute(INSERT, (memoryview(bytes(16)).cast("d"),)))

for name, verb in {
    "execute": lambda: pool.execute(INSERT, (1,)),
    "fetch": lambda: pool.fetch("SELECT 1"),
    "transaction": lambda: pool.run(lambda tx: tx.execute(INSERT, (1,))),
    "itself": lambda: pool.executemany(INSERT, [(1,)]),
    "stats": pool.stats,
    "another pool": lambda: walpool.Pool(path).close(),
    "a collection": gc.collect,
    "raising": raiser(Hostile()),
}.items():
    outcome(f"rows that call {name}", lambda: pool.executemany(INSERT, calling_back(verb)))
    outcome(f"a batch that calls {name}", lambda: pool.batch((INSERT, row) for row in calling_back(verb)))
    outcome(f"a row factory that calls {name}", lambda: pool.fetch("SELECT * FROM t LIMIT 5", row=lambda c, v: verb()))
    with pool.stream("SELECT * FROM t", row=lambda c, v: verb(), chunk=2) as rows:
        outcome(f"a stream's row factory that calls {name}", lambda: list(rows))
    def leased(tx):
        try:
            tx.executemany(INSERT, calling_back(verb))
        except errors.ReentrantError:
            pass
    outcome(f"a lease's rows that call {name}", lambda: pool.run(leased))
    def lease_factory(tx):
        tx.fetch("SELECT 1", row=lambda c, v: tx.execute(INSERT, (1,)))
    outcome("a lease's row factory that writes", lambda: pool.run(lease_factory))

def rows_that_close():
    other = walpool.Pool(path)
    def rows():
        other.close()
        yield (1,)
    other.executemany(INSERT, rows())
outcome("rows that close their pool", rows_that_close)

def factory_that_closes():
    other = walpool.Pool(path)
    other.fetch("SELECT 1", row=lambda c, v: other.close())
    other.fetch("SELECT 1")
outcome("a row factory that closes its pool", factory_that_closes)

def factory_of_a_stream_that_ends_it():
    with pool.stream("SELECT * FROM t", chunk=1) as rows:
        inner = rows._stream
        for _ in rows:
            inner.close()
outcome("a stream that is ended while it is read", factory_of_a_stream_that_ends_it)

def recursion(columns, values):
    return pool.fetch("SELECT 1", row=recursion)
outcome("a row factory that fetches for ever", lambda: pool.fetch("SELECT 1", row=recursion))

for number in (32_766, 32_767, 200_000):
    many = ",".join(["?"] * number)
    outcome(f"{number} parameters", lambda: pool.fetch(f"SELECT 1 WHERE 1 IN ({many})", [1] * number))
    outcome(f"{number} parameters too many", lambda: pool.fetch("SELECT ?", [1] * number))
    outcome(f"{number} names", lambda: pool.fetch("SELECT :n1", {f"n{i}": i for i in range(number)}))
outcome("parameter 999999999", lambda: pool.fetch("SELECT ?999999999", [1]))
outcome("a long name", lambda: pool.fetch("SELECT :" + "n" * 1_000_000, {"n" * 1_000_000: 1}))
outcome("a long text", lambda: pool.fetch("SELECT ?", ["x" * 10_000_000]))
outcome("long SQL", lambda: pool.fetch("SELECT 1 -- " + "x" * 10_000_000))
outcome("a long blob in a key", lambda: pool.fetch("SELECT 1", {b"x" * 1_000_000: 1}))
outcome("a wrong batch", lambda: pool.batch(itertools.chain([("SELECT 1", ())], [None])))

for timeout in (1e308, 5e-324, float("inf"), 10**400, -0.0, float("nan"), -1, 1e9, 2**63, 1e18):
    for verb in (pool.fetch, pool.execute):
        outcome(f"timeout {timeout!r:.20}", lambda: verb("SELECT 1", timeout=timeout))
    def hold(block):
        with block(timeout=timeout):
            pass
    outcome(f"a snapshot in {timeout!r:.20}", lambda: hold(pool.read))
    outcome(f"a transaction in {timeout!r:.20}", lambda: hold(pool.transaction))
for chunk in (sys.maxsize, sys.maxsize + 1, 2**64, 2**70, 10**400, 0, -1, True):
    def stream():
        with pool.stream("SELECT * FROM t", chunk=chunk) as rows:
            list(rows)
    outcome(f"chunk {chunk!r:.20}", stream)

# Each setting at both its ends: durations are added to instants, sizes are multiplied.
for name, unit, default, minimum, maximum, choices, doc in _core.setting_table():
    for end in (minimum, maximum):
        if end is None or name == "file_mode":
            continue
        def open_and_use():
            with walpool.Pool(os.path.join(folder, "ends.db"), **{name: end}) as other:
                other.script("CREATE TABLE IF NOT EXISTS t (a)")
                other.execute(INSERT, (1,), timeout=5)
                other.run(lambda tx: tx.fetch("SELECT * FROM t"))
                with other.read() as snapshot:
                    snapshot.fetch("SELECT * FROM t")
                with other.stream("SELECT * FROM t") as rows:
                    list(rows)
                other.stats(), other.checkpoint("truncate")
        outcome(f"{name} at {end}", open_and_use)

for thing in (pool, pool.execute("SELECT 1"), pool.settings, errors.BusyError("x")):
    outcome(f"a copy of {type(thing).__name__}", lambda: copy.copy(thing))
    outcome(f"a pickle of {type(thing).__name__}", lambda: pickle.loads(pickle.dumps(thing)))
with pool.read() as snapshot:
    held = snapshot
with pool.stream("SELECT 1") as held_stream:
    pass
tx = pool.run(lambda tx: tx)
for thing in (held, held_stream, tx):
    outcome(f"a pickle of {type(thing).__name__}", lambda: pickle.dumps(thing))
outcome("an ended snapshot", lambda: held.fetch("SELECT 1"))
outcome("an ended stream", lambda: list(held_stream))
outcome("an ended transaction", lambda: tx.execute("SELECT 1"))
outcome("a transaction that is left lying", lambda: pool._engine.lease(1.0) and None)
gc.collect()
outcome("an engine of nonsense", lambda: _core.Engine.open(path, {"readers": "x"}, []))
outcome("an engine of no settings", lambda: _core.Engine.open(path, {1: 2}, ["nonsense"]))

with memory.open(path) as store:
    for levels in (500, 50_000):
        nested = deep(levels, lambda inner: {"a": inner})
        record = memory.Record(id="a", content="a", metadata={"a": nested})
        outcome(f"metadata {levels} deep", lambda: store.save([record]))
        outcome(f"a question {levels} deep", lambda: store.count(memory.Query(metadata={"a": nested})))
        outcome(f"metadata {levels} deep, read", lambda: store.get("a"))

# All at once, from many threads.
def many(number):
    for again in range(20):
        for call in (
            lambda: pool.executemany(INSERT, Long(2**62)),
            lambda: pool.executemany(INSERT, calling_back(raiser(Hostile()))),
            lambda: pool.fetch("SELECT * FROM t LIMIT 3", row=raiser(Hostile())),
            lambda: pool.batch([(INSERT, (number,)), ("nonsense", ())]),
            lambda: pool.run(raiser(Hostile())),
        ):
            try:
                call()
            except (errors.Error, Hostile):
                pass
threads = [threading.Thread(target=many, args=(n,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
outcome("all at once", lambda: None)
assert pool.check() == []
pool.close()
print("the end")
'''


def test_cruel_objects_sizes_and_moments_end_in_an_error_and_never_in_a_crash(database):
    output, said = run_python(CRUELTIES, database)
    lines = output.splitlines()
    assert lines[-1] == "the end"
    assert "panicked" not in said
    tried = dict(line.rsplit(": ", 1) for line in lines[:-1])
    assert tried["rows of length 4611686018427387904"] == "fine"
    assert tried["a row factory that calls raising"] == "Hostile"
    assert tried["rows that close their pool"] == "ClosedError"
    at_their_ends = {came for what, came in tried.items() if re.fullmatch(r"\w+ at \S+", what)}
    assert "fine" in at_their_ends
    assert at_their_ends <= {"fine", "CheckoutTimeout", "WriteTimeout", "TransactionTimeout", "QueueFull"}
    too_deep = {what for what, came in tried.items() if came == "RecursionError"}
    assert too_deep == {"a row factory that fetches for ever"}  # the caller's own
