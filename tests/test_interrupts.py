"""Ctrl-C: a real SIGINT reaches the main thread wherever it waits or reads, and leaves the pool as it should be.

Each program below runs in a process of its own. What keeps its main thread waiting is let go only after the interrupt
has been caught, so a Ctrl-C that is not heard shows as a program that does not end.

main thread                    watcher                        obstacle
                                                              holds the writer, a reader, the file
waits
                               sees that it waits: SIGINT
KeyboardInterrupt
lets the obstacle go           ----------------------------->
checks the pool
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import WITHIN, run_python

from tests.torture import Torture

pytestmark = pytest.mark.crash

PRELUDE = """
import json, os, signal, sys, threading, time
from functools import partial
import walpool
from helpers import COUNT_TO, FOREVER, Caller, eventually, locked_by_another_process, queue_up, writer_held

# No wait ends by itself within the time that the program has.
patient = dict(slow_threshold=60, busy_timeout=600, write_timeout=600, checkout_timeout=600, transaction_timeout=600)
pool = walpool.Pool(sys.argv[1], readers=1, **patient)
pool.script("CREATE TABLE t (a)")
told = {}

def is_stuck():
    # The main thread stands at one place for ten times as long as it could, had it not given the GIL up.
    def place():
        frame = sys._current_frames()[threading.main_thread().ident]
        return frame.f_code.co_filename, frame.f_lasti, id(frame)
    since, here = time.monotonic(), place()
    while place() == here and time.monotonic() < since + 10 * sys.getswitchinterval():
        os.sched_yield()
    return place() == here and here[0].endswith("pool.py")

def interrupt_when(condition=is_stuck, number=signal.SIGINT):
    def watch():
        eventually(condition)
        os.kill(os.getpid(), number)
    return Caller(watch)

def is_waiting(jobs):
    return pool.stats()["jobs_waiting"] == jobs

def call(name, work):
    try:
        told[name] = repr(work())
    except KeyboardInterrupt as error:
        told[name] = "KeyboardInterrupt"
        told["outcome"] = getattr(error, "outcome", None)
"""

EPILOGUE = """
pool.execute("INSERT INTO t VALUES ('afterwards')")
told["kept"] = [a for (a,) in pool.fetch("SELECT a FROM t")]
stats = pool.stats()
told["left"] = [stats["readers_out"], stats["jobs_waiting"], stats["bytes_waiting"]]
pool.close()
print(json.dumps(told))
"""

UNHARMED = [0, 0, 0]  # readers out, jobs and bytes waiting


def run(database: Path, program: str, *args: object, within: float = 2 * WITHIN) -> dict[str, Any]:
    output, errors = run_python(PRELUDE + program + EPILOGUE, database, *args, within=within)
    assert errors == ""
    told: dict[str, Any] = json.loads(output)
    assert told.pop("left") == UNHARMED
    return told


@pytest.mark.parametrize(
    "write",
    [
        "pool.execute('INSERT INTO t VALUES (1)')",
        "pool.executemany('INSERT INTO t VALUES (?)', [(1,), (2,)])",
        "pool.run(lambda tx: tx.execute('INSERT INTO t VALUES (1)'))",
        "pool.checkpoint()",
        "pool.vacuum()",
    ],
)
def test_job_in_the_queue_is_withdrawn(database: Path, write: str) -> None:
    told = run(
        database,
        f"""
with writer_held(pool):
    interrupt_when()
    call("waiting", lambda: {write})
""",
    )
    assert told == {"waiting": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


IN_A_GROUP = """
holding = writer_held(pool)
holding.__enter__()
queue_up(pool, [lambda: pool.execute("INSERT INTO t VALUES ('first')")])

def add_the_last_and_let_go():
    eventually(partial(is_waiting, 2))
    last = queue_up(pool, [lambda: pool.execute("INSERT INTO t " + COUNT_TO, (3_000_000,))])
    holding.__exit__(None, None, None)
    eventually(partial(is_waiting, 0))
    os.kill(os.getpid(), signal.SIGINT)
    last[0].outcome()

watcher = Caller(add_the_last_and_let_go)
call("waiting", lambda: pool.execute("INSERT INTO t VALUES ('main')").rowcount)
try:
    watcher.outcome()
except KeyboardInterrupt:
    told["outcome"] = "came too late"
"""


def test_job_in_a_group_ends_as_it_would_have_and_its_outcome_is_unknown(tmp_path: Path) -> None:
    # first: leads            main                      last
    # takes all three, and runs them one after the other
    #                                                   runs for long
    #                         KeyboardInterrupt
    # COMMIT, for all three
    #
    # A group closes after 5 ms of work; where the system takes that long over the first two, try again.
    tries = (run(tmp_path / f"{n}.db", IN_A_GROUP) for n in range(10))
    told = next(told for told in tries if told["outcome"] != "came too late")
    assert told == {
        "waiting": "KeyboardInterrupt",
        "outcome": "unknown",
        "kept": ["first", "main", 3_000_000, "afterwards"],
    }


def test_caller_held_back_by_max_waiting_bytes_is_interrupted(database: Path) -> None:
    told = run(
        database,
        """
pool.close()
pool = walpool.Pool(sys.argv[1], readers=1, max_waiting_bytes=1024)
with writer_held(pool):
    queued = queue_up(pool, [lambda: pool.execute("INSERT INTO t VALUES (?)", ("queued" + 1000 * " ",))])
    interrupt_when()
    call("waiting", lambda: pool.execute("INSERT INTO t VALUES (?)", (1000 * " ",)))
queued[0].outcome()
""",
    )
    assert (told["waiting"], told["outcome"]) == ("KeyboardInterrupt", "not_applied")
    assert [str(kept).strip() for kept in told["kept"]] == ["queued", "afterwards"]


@pytest.mark.parametrize(
    "read",
    [
        "pool.fetch('SELECT 1')",
        "pool.read().__enter__()",
        "pool.stream('SELECT 1').__enter__()",
        "pool.check()",
        "pool.backup(sys.argv[1] + '.copy')",
    ],
)
def test_wait_for_a_reader_ends(database: Path, read: str) -> None:
    told = run(
        database,
        f"""
held, let_go = threading.Event(), threading.Event()
def hold():
    with pool.read():
        held.set()
        let_go.wait()
holder = Caller(hold)
held.wait()
interrupt_when()
call("waiting", lambda: {read})
let_go.set()
holder.outcome()
""",
    )
    assert told == {"waiting": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_long_read_is_interrupted(database: Path, timeout: float | None) -> None:
    told = run(
        database,
        f"""
interrupt_when()
call("reading", lambda: pool.fetch(COUNT_TO, (FOREVER,), timeout={timeout}))
""",
    )
    assert told == {"reading": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


def test_long_read_in_a_snapshot_is_interrupted_and_the_snapshot_lives_on(database: Path) -> None:
    told = run(
        database,
        """
with pool.read() as snapshot:
    interrupt_when()
    call("reading", lambda: snapshot.fetch(COUNT_TO, (FOREVER,)))
    told["snapshot"] = snapshot.fetchval("SELECT count(*) FROM t")
""",
    )
    assert told == {"reading": "KeyboardInterrupt", "outcome": "not_applied", "snapshot": 0, "kept": ["afterwards"]}


def test_long_stream_is_interrupted(database: Path) -> None:
    told = run(
        database,
        """
interrupt_when()
def read():
    with pool.stream(COUNT_TO, (FOREVER,)) as rows:
        return list(rows)
call("reading", read)
""",
    )
    assert told == {"reading": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


@pytest.mark.parametrize("sql", ["COUNT_TO", "'INSERT INTO t ' + COUNT_TO"])
def test_long_statement_in_a_transaction_is_interrupted_and_the_transaction_rolled_back(
    database: Path, sql: str
) -> None:
    told = run(
        database,
        f"""
interrupt_when()
def write():
    with pool.transaction() as tx:
        tx.execute("INSERT INTO t VALUES (1)")
        tx.execute({sql}, (FOREVER,))
call("writing", write)
""",
    )
    assert told == {"writing": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


@pytest.mark.parametrize("write", ["execute('INSERT INTO t VALUES (1)')", "transaction().__enter__()", "vacuum()"])
def test_wait_for_another_process_ends(database: Path, write: str) -> None:
    told = run(
        database,
        f"""
with locked_by_another_process(sys.argv[1]):
    interrupt_when()
    call("waiting", lambda: pool.{write})
""",
    )
    assert told == {"waiting": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


def test_interrupt_while_another_process_holds_the_file_leaves_the_other_threads_waiting(database: Path) -> None:
    told = run(
        database,
        """
with locked_by_another_process(sys.argv[1]):
    others = [Caller(lambda: pool.execute("INSERT INTO t VALUES ('other')")) for _ in range(3)]
    eventually(partial(is_waiting, 3))
    interrupt_when()
    call("waiting", lambda: pool.execute("INSERT INTO t VALUES ('main')"))
    told["alive"] = [other.thread.is_alive() for other in others]
for other in others:
    other.outcome()
""",
    )
    assert told == {
        "waiting": "KeyboardInterrupt",
        "outcome": "not_applied",
        "alive": [True, True, True],
        "kept": ["other", "other", "other", "afterwards"],
    }


# Long work on the file as a whole: the interrupt may come after its end, and is tried again then.
LARGE = """
pool.script("CREATE TABLE large (id INTEGER PRIMARY KEY, a, b); CREATE INDEX large_b ON large (b)")
pool.executemany("INSERT INTO large VALUES (?, ?, ?)", ((n, n * 7 % 1000, 100 * " " + str(n)) for n in range({rows})))
def is_begun():
    stats = pool.stats()
    return stats["readers_out"] == 1 or is_stuck()
interrupt_when(is_begun)
call("working", lambda: pool.{work})
pool.script("DROP TABLE large")
told["copy"] = os.path.exists(sys.argv[1] + ".copy")
"""


@pytest.mark.parametrize("work", ["check()", "vacuum()", "backup(sys.argv[1] + '.copy')"])
def test_long_work_on_the_whole_file_is_interrupted_and_leaves_nothing_half_made(tmp_path: Path, work: str) -> None:
    sizes = (100_000, 200_000, 400_000, 800_000)
    tries = (run(tmp_path / f"{rows}.db", LARGE.format(rows=rows, work=work)) for rows in sizes)
    told = next(told for told in tries if told["working"] == "KeyboardInterrupt" and told["outcome"] == "not_applied")
    assert told == {"working": "KeyboardInterrupt", "outcome": "not_applied", "copy": False, "kept": ["afterwards"]}


def test_close_hears_the_interrupt_only_when_it_is_done(database: Path) -> None:
    told = run(
        database,
        """
from leftovers import open_descriptors
held, let_go = threading.Event(), threading.Event()
def hold():
    with pool.read():
        held.set()
        let_go.wait()
holder = Caller(hold)
held.wait()
def interrupt_and_let_go():
    eventually(is_stuck)
    os.kill(os.getpid(), signal.SIGINT)
    told["still closing"] = is_stuck()
    let_go.set()
watcher = Caller(interrupt_and_let_go)
call("closing", pool.close)
told["files left"] = open_descriptors(__import__("pathlib").Path(sys.argv[1]))
pool = walpool.Pool(sys.argv[1])
""",
    )
    assert told == {
        "still closing": True,
        "closing": "KeyboardInterrupt",
        "outcome": "applied",
        "files left": [],
        "kept": ["afterwards"],
    }


def test_interrupt_is_not_lost_in_the_log_that_tells_of_a_slow_job(database: Path) -> None:
    # main thread                     engine
    # leads                           runs the job, which nobody may interrupt
    # SIGINT
    #                                 COMMIT; has a message for the log
    # writes the log: Python, in the middle of which KeyboardInterrupt would come
    told = run(
        database,
        """
import logging
heard = []
class Handler(logging.Handler):
    def emit(self, record):
        heard.append("slow job" in record.getMessage())
logging.getLogger("walpool").addHandler(Handler())
pool.close()
pool = walpool.Pool(sys.argv[1], readers=1, slow_threshold=0.01)
interrupt_when()
call("writing", lambda: pool.execute("INSERT INTO t " + COUNT_TO, (5_000_000,)))
pool.stats()
told["heard"] = all(heard) and len(heard) > 0
""",
    )
    assert told == {
        "writing": "KeyboardInterrupt",
        "outcome": "applied",
        "heard": True,
        "kept": [5_000_000, "afterwards"],
    }


def test_signal_that_another_thread_gets_is_heard_by_the_main_one(database: Path) -> None:
    told = run(
        database,
        """
def signal_this_thread():
    eventually(is_stuck)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
with writer_held(pool):
    watcher = Caller(signal_this_thread)
    call("waiting", lambda: pool.execute("INSERT INTO t VALUES (1)"))
""",
    )
    assert told == {"waiting": "KeyboardInterrupt", "outcome": "not_applied", "kept": ["afterwards"]}


def test_handler_that_does_not_raise_is_run_and_the_wait_goes_on(database: Path) -> None:
    told = run(
        database,
        """
heard = threading.Event()
signal.signal(signal.SIGINT, lambda number, frame: heard.set())
holding = writer_held(pool)
holding.__enter__()
def interrupt_and_let_go():
    eventually(is_stuck)
    os.kill(os.getpid(), signal.SIGINT)
    assert heard.wait(20)  # the handler ran on the main thread, which waits in the queue
    holding.__exit__(None, None, None)
watcher = Caller(interrupt_and_let_go)
call("waiting", lambda: pool.execute("INSERT INTO t VALUES (1)").rowcount)
assert watcher.outcome() is None
""",
    )
    assert told == {"waiting": "1", "kept": [1, "afterwards"]}


def test_handler_may_raise_what_it_likes(database: Path) -> None:
    told = run(
        database,
        """
class Stop(Exception):
    pass
def stop(number, frame):
    raise Stop("now")
signal.signal(signal.SIGTERM, stop)
interrupt_when(number=signal.SIGTERM)
try:
    pool.fetch(COUNT_TO, (FOREVER,))
except Stop as error:
    told["raised"] = [str(error), error.outcome]
""",
    )
    assert told == {"raised": ["now", "not_applied"], "kept": ["afterwards"]}


def test_handler_may_use_the_pool(database: Path) -> None:
    told = run(
        database,
        """
pool.close()
pool = walpool.Pool(sys.argv[1], readers=2)
def write(number, frame):
    told["in the handler"] = [pool.fetchval("SELECT 1"), pool.execute("INSERT INTO t VALUES ('handler')").rowcount]
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, write)
interrupt_when()
call("reading", lambda: pool.fetch(COUNT_TO, (FOREVER,)))
""",
    )
    assert told == {
        "reading": "KeyboardInterrupt",
        "outcome": "not_applied",
        "in the handler": [1, 1],
        "kept": ["handler", "afterwards"],
    }


@pytest.mark.parametrize("wait", ["fetch(COUNT_TO, (FOREVER,))", "execute('INSERT INTO t VALUES (1)')", "vacuum()"])
def test_handler_that_closes_the_pool_is_refused_where_close_would_wait_for_the_interrupted_call(
    database: Path, wait: str
) -> None:
    # main thread                     handler
    # waits, or reads without end
    #                                 close(): would wait for the call, which waits for the handler
    told = run(
        database,
        f"""
def close(number, frame):
    pool.close()
signal.signal(signal.SIGTERM, close)
with writer_held(pool):
    interrupt_when(number=signal.SIGTERM)
    try:
        pool.{wait}
    except walpool.errors.ReentrantError as error:
        told["raised"] = ["signal handler" in str(error), error.outcome]
""",
    )
    assert told == {"raised": [True, "not_applied"], "kept": ["afterwards"]}


def test_handler_that_opens_a_pool_in_the_middle_of_an_opening_is_refused(database: Path) -> None:
    # main thread                     handler
    # opens: another process has the file
    #                                 Pool(...): would wait for the opening, which waits for the handler
    told = run(
        database,
        """
path = sys.argv[1] + ".other"
def open_another(number, frame):
    walpool.Pool(path)
signal.signal(signal.SIGTERM, open_another)
try:
    with locked_by_another_process(path, "EXCLUSIVE"):
        interrupt_when(number=signal.SIGTERM)
        walpool.Pool(path)
except walpool.errors.ReentrantError as error:
    told["raised"] = "signal handler" in str(error)
""",
    )
    assert told == {"raised": True, "kept": ["afterwards"]}


AT_ANY_MOMENT = """
import random
drawn = random.Random(int(sys.argv[2]))
rounds, is_in_a_call, heard, state = int(sys.argv[3]), False, 0, {}
pool.close()
pool = walpool.Pool(sys.argv[1], readers=2, synchronous="normal")

def interrupt(number, frame):
    global heard
    if is_in_a_call:
        heard += 1
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)

def interrupt_now_and_then():
    pause = random.Random(int(sys.argv[2]) + 1)
    while heard < rounds:
        threading.Event().wait(pause.random() / 100)
        os.kill(os.getpid(), signal.SIGINT)

def others():  # somebody to wait for, and to share groups with
    n = 0
    while heard < rounds:
        if n % 3:
            pool.execute("INSERT INTO other VALUES (?)", (n,))
        else:
            pool.run(lambda tx: [tx.execute("INSERT INTO other VALUES (?)", (n,)), tx.fetchval(COUNT_TO, (20_000,))])
        n += 1
    return n

def transaction(tx, n):
    tx.execute("INSERT INTO t VALUES (?)", (n,))
    tx.fetchval(COUNT_TO, (drawn.randrange(50_000),))
    tx.execute("INSERT INTO t VALUES (?)", (n,))

def snapshot(n):
    with pool.read() as held:
        return held.fetchval("SELECT count(*) FROM t") + 0 * held.fetchval(COUNT_TO, (drawn.randrange(50_000),))

def stream(n):
    with pool.stream("SELECT a FROM t", chunk=3) as rows:
        return [row for row, _ in zip(rows, range(100))]

pool.script("CREATE TABLE other (a)")
calls = [
    lambda n: pool.execute("INSERT INTO t VALUES (?), (?)", (n, n)),
    lambda n: pool.executemany("INSERT INTO t VALUES (?)", [(n,), (n,)]),
    lambda n: pool.batch([("INSERT INTO t VALUES (?)", (n,)), ("INSERT INTO t SELECT ?", (n,))]),
    lambda n: pool.run(lambda tx: transaction(tx, n)),
]
reads = [snapshot, stream, lambda n: pool.fetchval(COUNT_TO, (drawn.randrange(50_000),)), lambda n: pool.check()]
watchers = [Caller(interrupt_now_and_then), Caller(others), Caller(others)]
n = 0
while heard < rounds:
    n += 1
    call = drawn.choice(calls) if n % 2 else drawn.choice(reads)
    try:
        is_in_a_call = True
        call(n)
        is_in_a_call = False
        state[n] = "applied" if n % 2 else "not_applied"
    except KeyboardInterrupt as error:
        is_in_a_call = False
        # The interrupt of a moment in Python, before or after the engine's part, cannot say what became of it.
        state[n] = getattr(error, "outcome", "unknown") if n % 2 else "not_applied"
written = [watcher.outcome() for watcher in watchers][1:]
rows = {}
for (a,) in pool.fetch("SELECT a FROM t"):
    rows[a] = rows.get(a, 0) + 1
told["heard"] = heard
told["others"] = pool.fetchval("SELECT count(*) FROM other") - sum(written)
told["half"] = [a for a, count in rows.items() if count != 2]
told["lost"] = [a for a, outcome in state.items() if outcome == "applied" and a not in rows]
told["applied after all"] = [a for a, outcome in state.items() if outcome == "not_applied" and a in rows]
pool.script("DELETE FROM t")
"""


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
def test_interrupts_at_any_moment_lose_nothing_and_leave_nothing_held(
    database: Path, torture: Torture, seed: int
) -> None:
    rounds = torture.size(100, 10_000)
    told = run(database, AT_ANY_MOMENT, seed, rounds, within=torture.size(WITHIN * 2, 1700))
    lost = len(told["lost"]) + len(told["half"]) + len(told["applied after all"])
    torture.tell("Ctrl-C at any moment of mixed calls", tried=told.pop("heard"), unit="interrupts", lost=lost)
    assert told == {"others": 0, "half": [], "lost": [], "applied after all": [], "kept": ["afterwards"]}


def test_threads_other_than_the_main_one_hear_no_interrupt(database: Path) -> None:
    told = run(
        database,
        """
with writer_held(pool):
    other = queue_up(pool, [lambda: pool.execute("INSERT INTO t VALUES ('other')")])
    try:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(20)
    except KeyboardInterrupt:
        told["waiting"] = pool.stats()["jobs_waiting"]
other[0].outcome()
""",
    )
    assert told == {"waiting": 1, "kept": ["other", "afterwards"]}
