"""Ends that nobody planned: of a pool that others use, of one that is only collected, of the interpreter under it.

daemon thread                  main thread
in the engine, the GIL given up
                               the program ends: the interpreter is taken down
answered; wants the GIL back:
stands still for ever          exit handlers, modules, the last pools go
                               the process ends
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from helpers import COUNT_TO, FOREVER, WITHIN, Caller, eventually, run_python, run_together, start_python
from leftovers import engine_threads, open_descriptors, threads_left_since

import walpool
from tests.torture import Torture
from walpool import errors

INSERT = "INSERT INTO t VALUES (?)"


@pytest.fixture
def table(database: Path) -> walpool.Pool:
    """Return a pool with an empty table, to be closed by the test."""
    pool = walpool.Pool(database, readers=2, synchronous="normal")
    pool.script("CREATE TABLE t (a)")
    return pool


def kept(database: Path) -> Counter[object]:
    with walpool.Pool(database) as pool:
        assert pool.check() == []
        return Counter(a for (a,) in pool.fetch("SELECT a FROM t"))


# Closed under load


def insert_twice(value: str, tx: walpool.Transaction) -> None:
    tx.execute(INSERT, (value,))
    tx.execute(INSERT, (value,))


def read_some(pool: walpool.Pool) -> None:
    with pool.read() as snapshot:
        snapshot.fetchval("SELECT count(*) FROM t")
    with pool.stream("SELECT a FROM t LIMIT 20", chunk=5) as rows:
        list(rows)
    pool.fetchone("SELECT a FROM t")


def work_until_closed(pool: walpool.Pool, name: str, begun: threading.Barrier) -> set[str]:
    """Write and read by every verb in turn, and return what was acknowledged."""
    writes: list[Callable[[str], object]] = [
        lambda value: pool.execute("INSERT INTO t VALUES (?), (?)", (value, value)),
        lambda value: pool.executemany(INSERT, [(value,), (value,)]),
        lambda value: pool.batch([(INSERT, (value,)), (INSERT, (value,))]),
        lambda value: pool.run(partial(insert_twice, value)),
    ]
    acknowledged: set[str] = set()

    def work() -> None:
        begun.wait(WITHIN)
        for n in itertools.count():
            value = f"{name}/{n}"
            writes[n % len(writes)](value)
            acknowledged.add(value)
            read_some(pool)

    with pytest.raises(errors.ClosedError) as refused:
        work()
    assert (refused.value.outcome, refused.value.retryable) == ("not_applied", False)
    return acknowledged


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("closers", [1, 2])
def test_close_under_load_from_sixteen_threads_loses_nothing_and_leaves_nothing_open(
    tmp_path: Path, torture: Torture, closers: int
) -> None:
    rounds, tried, lost = torture.size(2, 300), 0, 0
    for number in range(rounds):
        database = tmp_path / f"{number}.db"
        pool = walpool.Pool(database, readers=2, synchronous="normal")
        pool.script("CREATE TABLE t (a)")
        begun = threading.Barrier(17)
        workers = [Caller(partial(work_until_closed, pool, str(index), begun)) for index in range(16)]
        begun.wait(WITHIN)
        eventually(lambda pool=pool, number=number: pool.stats()["jobs"] > 40 + number % 7)  # type: ignore[misc]
        run_together(closers, lambda _, pool=pool: pool.close())  # type: ignore[misc]
        eventually(lambda database=database: open_descriptors(database) == [])  # type: ignore[misc]
        acknowledged = set().union(*(worker.outcome() for worker in workers))
        found = kept(database)
        tried += len(acknowledged)
        lost += len(acknowledged ^ found.keys()) + sum(count != 2 for count in found.values())
        for left in tmp_path.glob(f"{number}.db*"):
            left.unlink()
    torture.tell(f"writes while {closers} threads close", tried=tried, unit="writes", lost=lost)
    assert lost == 0
    assert tried > 40 * rounds


def test_one_of_two_handles_that_is_closed_under_load_refuses_its_own_callers_alone(
    table: walpool.Pool, database: Path
) -> None:
    other = walpool.Pool(database)
    begun = threading.Barrier(17)
    mine = [Caller(partial(work_until_closed, table, f"mine {index}", begun)) for index in range(8)]
    others = [Caller(partial(work_until_closed, other, f"other {index}", begun)) for index in range(8)]
    begun.wait(WITHIN)
    eventually(lambda: other.stats()["jobs"] > 50)
    table.close()
    acknowledged = set().union(*(worker.outcome() for worker in mine))
    jobs = other.stats()["jobs"]
    eventually(lambda: other.stats()["jobs"] > jobs + 50)  # they go on
    assert all(worker.thread.is_alive() for worker in others)
    other.close()
    acknowledged |= set().union(*(worker.outcome() for worker in others))
    assert open_descriptors(database) == []
    assert kept(database) == Counter(dict.fromkeys(acknowledged, 2))


def test_close_stops_a_read_without_end_after_transaction_timeout(database: Path) -> None:
    # reader                          closer
    # reads without end or timeout
    #                                 close(): waits for transaction_timeout
    #                                 stops the statement
    # Interrupted
    #                                 files closed; returns
    pool = walpool.Pool(database, transaction_timeout=0.2)
    reading = [Caller(partial(pool.fetch, COUNT_TO, (FOREVER,))) for _ in range(2)]
    eventually(lambda: pool.stats()["readers_out"] == 2)
    pool.close()
    assert open_descriptors(database) == []
    for reader in reading:
        error = reader.error(errors.Interrupted)
        assert "the pool was closed" in str(error)
        assert error.outcome == "not_applied"


def test_close_lets_a_read_end_that_takes_less_than_transaction_timeout(database: Path) -> None:
    pool = walpool.Pool(database)
    reading = Caller(partial(pool.fetchval, COUNT_TO, (1_000_000,)))
    eventually(lambda: pool.stats()["readers_out"] == 1)
    pool.close()
    assert reading.outcome() == 1_000_000


# Collected


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_pool_that_another_thread_collects_loses_nothing_and_closes_its_files(
    table: walpool.Pool, database: Path
) -> None:
    class Service:
        def __init__(self, pool: walpool.Pool) -> None:
            self.pool = pool
            self.me = self

    service = Service(table)
    service.pool.execute(INSERT, ("kept",))
    gone = weakref.ref(service)
    del service
    gc.disable()  # nobody but the thread below
    try:
        # The fixture's own reference is the test's parameter.
        del table
        Caller(gc.collect).outcome()
    finally:
        gc.enable()
    assert gone() is None
    assert kept(database) == {"kept": 1}


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_pools_that_nobody_closes_are_collected_with_all_that_they_hold(tmp_path: Path, torture: Torture) -> None:
    rounds = torture.size(10, 2000)
    before = engine_threads()

    class Holder:
        """A cycle around a pool and something half-done with it."""

        def __init__(self, index: int, n: int) -> None:
            self.me = self
            self.pool = walpool.Pool(tmp_path / f"{index}.db", synchronous="normal", transaction_timeout=2.5)
            self.pool.execute("CREATE TABLE IF NOT EXISTS t (a)")
            self.pool.execute(INSERT, (n,))
            self.rows = self.generate()
            next(self.rows)
            if n % 3 == 0:
                self.block = self.pool.transaction()
                self.block.__enter__().execute(INSERT, ("never committed",))
            elif n % 3 == 1:
                self.snapshot = self.pool.read()
                self.snapshot.__enter__().fetchval("SELECT 1")

        def generate(self) -> object:
            with self.pool.stream("SELECT 1 UNION SELECT 2 UNION SELECT 3", chunk=1) as rows:
                yield from rows

    def forget(index: int) -> None:
        for n in range(rounds):
            # In a thread of its own, since a block that is never left would refuse the pool's verbs to this one.
            made = Caller(lambda n=n: Holder(index, n))  # type: ignore[misc]
            assert isinstance(made.outcome(), Holder)
            del made
            if n % 3 == 0 or n % 4 == index:  # who holds the writer keeps the next one waiting until it is collected
                gc.collect()

    run_together(4, forget, timeout=1700)
    gc.collect()
    assert threads_left_since(before) == {}
    lost = 0
    for index in range(4):
        assert open_descriptors(tmp_path / f"{index}.db") == []
        lost += kept(tmp_path / f"{index}.db") != Counter(range(rounds))
    torture.tell("pools forgotten in the middle of something", tried=4 * rounds, unit="pools", lost=lost)
    assert lost == 0


# The interpreter's end

# What a daemon thread is in when the interpreter ends; each says by `told` what was acknowledged to it.
EXIT = """
import atexit, itertools, logging, os, random, sys, threading
import walpool
from helpers import COUNT_TO, FOREVER, Caller, eventually

path, seed, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
drawn = random.Random(seed)
logging.getLogger("walpool").addHandler(logging.NullHandler())
pool = walpool.Pool(path, readers=3, transaction_timeout=0.5, max_waiting_bytes=4096, slow_threshold=60,
                    synchronous=drawn.choice(["full", "normal"]))
pool.script("CREATE TABLE t (a)")
is_telling = os.dup(1)
numbers = itertools.count()

def tell(value):
    os.write(is_telling, f"{value}\\n".encode())  # past any buffer that may not be written at the end

def execute(name):
    for n in numbers:
        pool.execute("INSERT INTO t VALUES (?)", (f"{name}/{n}",))
        tell(f"{name}/{n}")

def batches(name):
    for n in numbers:
        values = [f"{name}/{n}/{k}" for k in range(3)]
        pool.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
        for value in values:
            tell(value)

def leases(name):
    for n in numbers:
        with pool.transaction() as tx:
            tx.execute("INSERT INTO t VALUES (?)", (f"{name}/{n}",))
            tx.fetchval(COUNT_TO, (1000,))
        tell(f"{name}/{n}")

def large(name):  # held back by max_waiting_bytes now and then
    for n in numbers:
        pool.execute("INSERT INTO t VALUES (substr(?, 1, ?))", (f"{name}/{n}" + 3000 * "x", len(f"{name}/{n}")))
        tell(f"{name}/{n}")

def fetch(name):
    while True:
        pool.fetchval(COUNT_TO, (5000,))

def fails(name):
    while True:
        try:
            pool.fetch("SELECT nothing")
        except walpool.errors.Error:
            pass

def makes_rows(name):
    while True:
        pool.fetch("SELECT 1 UNION SELECT 2", row=lambda columns, values: values)

def writes_the_log(name):
    with walpool.Pool(path + "." + name, slow_threshold=0) as other:
        while True:
            other.fetchval("SELECT 1")

def long_read(name):
    pool.fetch(COUNT_TO, (FOREVER,))

def streams(name):
    while True:
        with pool.stream("SELECT a FROM t", chunk=2) as rows:
            for row, _ in zip(rows, range(50)):
                pass

def snapshots(name):
    while True:
        with pool.read() as snapshot:
            snapshot.fetchval("SELECT count(*) FROM t")

def opens(name):
    while True:
        with walpool.Pool(path) as other:
            other.fetchval("SELECT 1")

def waits_in_a_lease(name):
    with pool.transaction() as tx:
        tx.execute("INSERT INTO t VALUES ('never committed')")
        threading.Event().wait()

def stays_in_a_snapshot(name):
    with pool.read():
        threading.Event().wait()

kinds = [execute, execute, batches, leases, large, fetch, fails, makes_rows, writes_the_log, streams, snapshots, opens]
if way != "closes":
    kinds.append(long_read)  # a close waits for it, for transaction_timeout
if way in ("falls off", "raises") and seed % 3 == 0:
    kinds += [waits_in_a_lease, stays_in_a_snapshot]

def use_the_pool():
    pool.execute("INSERT INTO t VALUES ('by atexit')")
    tell("by atexit")

def finish(name):
    for n in range(50):
        pool.execute("INSERT INTO t VALUES (?)", (f"{name}/{n}",))
        tell(f"{name}/{n}")
    if way == "a worker exits":
        sys.exit(7)  # ends the thread, and says nothing to the process

def run(kind, name):
    while True:
        try:
            kind(name)
        except walpool.errors.TransactionTimeout:  # where the machine is slow
            pass

atexit.register(use_the_pool)
workers = 10 if waits_in_a_lease in kinds else 8
for index in range(workers):
    kind = kinds[index - workers] if index >= 8 else drawn.choice(kinds)
    threading.Thread(target=run, args=(kind, f"{kind.__name__} {index}"), daemon=True).start()
for index in range(2):
    threading.Thread(target=finish, args=(f"finish {index}",)).start()
eventually(lambda: pool.stats()["jobs"] > drawn.randrange(5, 60) or waits_in_a_lease in kinds)
if way == "raises":
    raise LookupError("not caught")
elif way == "exits":
    sys.exit(5)
elif way == "stops dead":
    os._exit(6)
elif way == "closes":
    pool.close()
    atexit.unregister(use_the_pool)
"""

# The ways in which a program ends, with its exit code and the last line that it may leave on its standard error.
WAYS = {
    "falls off": (0, ""),
    "raises": (1, "LookupError: not caught"),
    "exits": (5, ""),
    "stops dead": (6, ""),
    "a worker exits": (0, ""),
    "closes": (0, ""),
}


def end(database: Path, seed: int, way: str) -> tuple[set[str], list[str]]:
    """Let a program end in this way; return what was acknowledged in it, and what it complained of."""
    with start_python(EXIT, database, seed, way) as process:
        try:
            output, complaints = process.communicate(timeout=2 * WITHIN)
        finally:
            process.kill()
    code, last_line = WAYS[way]
    lines = complaints.strip().splitlines() or [""]
    is_expected = lines[-1] == last_line or (way == "closes" and "ClosedError" in complaints)
    is_well = process.returncode == code and is_expected
    wrong = [] if is_well else [f"it {way}, seed {seed}, code {process.returncode}: {complaints}"]
    return set(output.split("\n")[:-1]), wrong


@pytest.mark.crash
@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS)
def test_process_ends_by_itself_beside_daemon_threads_in_every_call_and_keeps_what_was_acknowledged(
    tmp_path: Path, torture: Torture, way: str
) -> None:
    seeds = torture.size(2, 150)
    complaints: list[str] = []
    acknowledged: set[str] = set()
    lost = 0
    for seed in range(seeds):
        database = tmp_path / f"{seed}.db"
        told, wrong = end(database, seed, way)
        complaints += wrong
        found = kept(database)
        lost += len(told - found.keys()) + sum(count > 1 for count in found.values())
        lost += "never committed" in found
        acknowledged |= told
        for left in tmp_path.glob(f"{seed}.db*"):
            left.unlink()
    torture.tell(f"ends of a process: it {way}", tried=seeds, unit="processes", lost=lost + len(complaints))
    assert complaints == []
    assert lost == 0
    assert acknowledged
    if way not in ("stops dead", "closes"):
        assert {"by atexit", "finish 0/49", "finish 1/49"} <= acknowledged


def test_object_that_uses_the_pool_when_it_is_deleted_at_the_end_is_served(database: Path) -> None:
    program = """
    import os, sys
    import walpool
    class Service:
        def __init__(self):
            self.pool = walpool.Pool(sys.argv[1])
            self.pool.script("CREATE TABLE t (a)")
        def __del__(self, write=os.write):  # the module's own names are gone by then
            self.pool.execute("INSERT INTO t VALUES ('by __del__')")
            with self.pool.transaction() as tx:
                tx.execute("INSERT INTO t VALUES ('in a transaction')")
            write(1, str(self.pool.fetchval("SELECT count(*) FROM t")).encode())
    service = Service()
    """
    assert run_python(program, database) == ("2", "")
    assert kept(database) == {"by __del__": 1, "in a transaction": 1}


IN_PYTHON = """
import logging, sys, threading
import walpool
logging.getLogger("walpool").addHandler(logging.NullHandler())
what = sys.argv[2]
pool = walpool.Pool(sys.argv[1], slow_threshold=0 if what == "log" else 60)
pool.script("CREATE TABLE IF NOT EXISTS t (a)")
def call():
    if what == "error":
        try:
            pool.fetch("SELECT nothing")
        except walpool.errors.ProgrammingError:
            pass
    elif what == "row":
        pool.fetch("VALUES " + ", ".join(["(1)"] * 100), row=lambda columns, values: values)
    elif what == "generator":
        pool.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(100)))
    else:
        pool.fetch("SELECT 1")
begun = threading.Barrier(5)
def work():
    call()
    begun.wait()
    while True:
        call()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
threading.Event().wait(0.02)  # in the middle of it, wherever that is
"""


@pytest.mark.crash
@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("what", ["error", "row", "log", "generator"])
def test_process_ends_well_beside_daemon_threads_in_python_code_that_walpool_called(
    database: Path, torture: Torture, what: str
) -> None:
    # Where the interpreter's end unwinds such a thread as far as into Rust, the process dies of a signal.
    rounds = torture.size(2, 150)
    codes = Counter[int]()
    for _ in range(rounds):
        with start_python(IN_PYTHON, database, what) as process:
            try:
                process.communicate(timeout=2 * WITHIN)
            finally:
                process.kill()
        codes[process.returncode] += 1
    torture.tell(
        f"ends of a process inside Python code: {what}", tried=rounds, unit="processes", lost=rounds - codes[0]
    )
    assert codes == {0: rounds}


def test_pool_that_is_closed_while_the_interpreter_ends_waits_no_longer_than_transaction_timeout(
    database: Path,
) -> None:
    # daemon thread                    main thread
    # holds a lease, a snapshot
    #                                  ends; threads stand still from here on
    #                                  __del__: close() waits for both, which never come back
    #                                  the keeper takes them back; the file is closed
    program = """
    import os, sys, threading
    import walpool
    class Service:
        def __init__(self):
            self.pool = walpool.Pool(sys.argv[1], transaction_timeout=0.2)
            self.pool.script("CREATE TABLE t (a)")
        def __del__(self, write=os.write):
            self.pool.close()
            write(1, b"closed")
    service = Service()
    # Not of this module: a thread that stands in a function of it keeps it, and its names, from being cleared.
    elsewhere = {"threading": threading}
    exec("def hold(block, held):\\n with block:\\n  held.wait()\\n  threading.Event().wait()", elsewhere)
    held = threading.Barrier(3)
    other = walpool.Pool(sys.argv[1])
    for block in (other.transaction(), other.read()):
        threading.Thread(target=elsewhere["hold"], args=(block, held), daemon=True).start()
    held.wait()
    other.close()
    del block
    """
    output, _ = run_python(program, database)
    assert output == "closed"
    assert kept(database) == {}


# Other processes and interpreters


@pytest.mark.crash
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pool_that_is_handed_to_other_processes_opens_anew_there_and_all_share_the_file(
    table: walpool.Pool, database: Path, method: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    context = multiprocessing.get_context(method)
    rows = [[(f"{process}/{n}",) for n in range(100)] for process in range(3)]
    started = [context.Process(target=walpool.Pool.executemany, args=(table, INSERT, part)) for part in rows]
    for process in started:
        process.start()
    for n in range(100):
        table.execute(INSERT, (f"parent/{n}",))
    for process in started:
        process.join(2 * WITHIN)
    assert [process.exitcode for process in started] == [0, 0, 0]
    table.close()
    values = [value for part in rows for (value,) in part] + [f"parent/{n}" for n in range(100)]
    assert kept(database) == Counter(values)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the module has another name in every version")
def test_subinterpreter_is_refused_clearly_and_the_main_one_goes_on(database: Path) -> None:
    program = """
    import sys
    import _xxsubinterpreters as interpreters
    import walpool
    pool = walpool.Pool(sys.argv[1])
    pool.script("CREATE TABLE t (a)")
    other = interpreters.create()
    try:
        interpreters.run_string(other, f"import sys; sys.path[:0] = {sys.path!r}; import walpool")
    except interpreters.RunFailedError as error:
        print(error)
    interpreters.destroy(other)
    print(pool.execute("INSERT INTO t VALUES (1)").rowcount, pool.fetch("SELECT a FROM t"))
    pool.close()
    """
    output, complaints = run_python(program, database)
    refused, goes_on = output.strip().split("\n")
    assert "ImportError" in refused
    assert "subinterpreter" in refused
    assert goes_on == "1 [(1,)]"
    assert complaints == ""
