"""`WalpoolLock`: fair in a process, exclusive between processes, with CrewAI's own lock too, and woken up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crewai_core import lock_store
from portalocker.exceptions import LockException

from walpool.crewai import Installation, WalpoolLock

if sys.platform == "win32":
    pytest.skip("Windows has no flock", allow_module_level=True)

# Takes the lock `name`, says so, and holds it until its input ends; with CrewAI's own lock or with walpool's.
HOLDER = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from crewai_core import lock_store
if sys.argv[1] == "walpool":
    from walpool.crewai import WalpoolLock
    lock_store.set_lock_backend(WalpoolLock())
with lock_store.lock("name", timeout=50):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


@pytest.fixture
def lock(tmp_path: Path) -> WalpoolLock:
    return WalpoolLock(str(tmp_path))


@pytest.fixture
def held_elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lock `name`; closing its input makes it release."""
    who = getattr(request, "param", "walpool")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, who, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def waiting(lock: WalpoolLock, name: str) -> int:
    return len(lock._queues.get(name, ()))


def until(condition: object) -> None:
    """Wait, without sleeping, until a condition that another thread brings about holds."""
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        os.sched_yield()


def test_lock_shuts_out_another_thread_until_it_is_released(lock: WalpoolLock) -> None:
    inside, release, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with lock("name"):
            inside.set()
            release.wait(20)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    with lock("another"):
        order.append("another name")
    with pytest.raises(LockException, match="'name'"), lock("name", timeout=0.0):
        pass
    release.set()
    with lock("name"):
        order.append("second")
    thread.join(20)
    assert order == ["another name", "first", "second"]


def test_threads_get_the_lock_in_the_order_in_which_they_asked(lock: WalpoolLock) -> None:
    #   main   holds name ........................ releases
    #   0      asks ....................................... holds
    #   1           asks .......................................... holds     (and so on)
    order: list[int] = []

    def work(index: int) -> None:
        with lock("name"):
            order.append(index)

    threads = []
    with lock("name"):
        for index in range(12):
            threads.append(threading.Thread(target=work, args=(index,)))
            threads[-1].start()
            until(lambda expected=index + 2: waiting(lock, "name") == expected)
    for thread in threads:
        thread.join(20)
    assert order == list(range(12))
    assert lock._queues == {}


def test_many_threads_never_hold_one_name_together(lock: WalpoolLock) -> None:
    inside = 0

    def work() -> None:
        nonlocal inside
        for _ in range(50):
            with lock("name"):
                inside += 1
                assert inside == 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert not any(thread.is_alive() for thread in threads)


def test_one_who_gave_up_does_not_hold_up_those_behind_him(lock: WalpoolLock) -> None:
    got, refused = threading.Event(), threading.Event()

    def patient() -> None:
        with lock("name"):
            got.set()

    def impatient_one() -> None:
        with pytest.raises(LockException), lock("name", timeout=0.2):
            pass
        refused.set()

    with lock("name"):
        impatient = threading.Thread(target=impatient_one)
        impatient.start()
        until(lambda: waiting(lock, "name") == 2)
        thread = threading.Thread(target=patient)
        thread.start()
        until(lambda: refused.is_set() or waiting(lock, "name") == 3)
        impatient.join(20)
        assert refused.is_set()
        assert waiting(lock, "name") == 2
        assert not got.is_set()
    assert got.wait(20)
    thread.join(20)


def test_lock_is_released_when_the_block_raises(lock: WalpoolLock) -> None:
    with pytest.raises(ZeroDivisionError), lock("name"):
        raise ZeroDivisionError
    with lock("name", timeout=0.0):
        pass


def test_thread_may_release_what_another_one_took(lock: WalpoolLock) -> None:
    # CrewAI's RAG client takes and releases in an executor, each on whichever thread is free.
    stack = ExitStack()
    taker = threading.Thread(target=lambda: stack.enter_context(lock("name")))
    taker.start()
    taker.join(20)
    stack.close()
    with lock("name", timeout=0.0):
        pass


@pytest.mark.parametrize("held_elsewhere", ["walpool", "crewai"], indirect=True)
def test_other_process_is_waited_for_and_wakes_the_waiter(
    lock: WalpoolLock, held_elsewhere: subprocess.Popen[str]
) -> None:
    with pytest.raises(LockException, match="another process"), lock("name", timeout=0.05):
        pass
    got = threading.Event()

    def wait() -> None:
        with lock("name", timeout=50):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: any(t.name == "walpool-flock" for t in threading.enumerate()))
    assert not got.is_set()
    assert held_elsewhere.stdin is not None
    held_elsewhere.stdin.close()
    assert got.wait(20)
    thread.join(20)
    # The wait that was given up took the lock too, in its turn, and gave it back.
    until(lambda: not any(t.name == "walpool-flock" for t in threading.enumerate()))
    with lock("name", timeout=5.0):
        pass


def test_lock_of_a_killed_process_is_free(lock: WalpoolLock, held_elsewhere: subprocess.Popen[str]) -> None:
    held_elsewhere.kill()
    with lock("name", timeout=20):
        pass


def test_ctrl_c_ends_the_wait_for_another_process(lock: WalpoolLock, held_elsewhere: subprocess.Popen[str]) -> None:
    def interrupt() -> None:
        until(lambda: any(t.name == "walpool-flock" for t in threading.enumerate()))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), lock("name", timeout=50):
        pass
    thread.join(20)
    assert held_elsewhere.stdin is not None
    held_elsewhere.stdin.close()
    with lock("name", timeout=20):
        pass


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12: the subject of the test
def test_child_that_was_forked_while_the_lock_was_held_holds_nothing(lock: WalpoolLock) -> None:
    context = multiprocessing.get_context("fork")

    def child() -> None:
        with pytest.raises(LockException), lock("name", timeout=0.05):
            pass  # it is the parent's, to the child as to any other process

    with lock("name"):
        process = context.Process(target=child)
        process.start()
        process.join(30)
        assert process.exitcode == 0
        # The child's end has not taken the lock from the parent.
        other = WalpoolLock(lock._directory)
        with pytest.raises(LockException), other("name", timeout=0.0):
            pass
    with lock("name", timeout=0.0):
        pass


def test_crewai_takes_its_locks_from_it(installation: Installation) -> None:
    assert isinstance(lock_store._backend, WalpoolLock)
    with lock_store.lock("name", timeout=5), pytest.raises(LockException), lock_store.lock("name", timeout=0.05):
        pass
