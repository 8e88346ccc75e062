"""A failing disk: the layer that lets calls fail, and stories that are told in a process of their own.

Runs in a Python that was started with faults.c before libc. Each attempt is a fork of it that lets one call of the
story fail; the parent never opens a pool, and looks at what is left with the standard library's SQLite.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from leftovers import open_descriptors

import walpool

CALLS = ("open", "read", "write", "sync", "truncate", "lock", "map", "stat", "unlink")
FILES = ("none", "database", "wal", "shm", "journal", "copy", "folder")
FOR_EVER = 2**60
ATTEMPT_ENDS_WITHIN = 30.0  # seconds; one that hangs is killed and told

PARTS = 2  # rows of a job
INSERT = "INSERT INTO t VALUES (?, ?)"
FRAMES_OF_AN_INDEX = 4096  # what one segment of the WAL's index has room for: the next frame makes the -shm file grow


@dataclass(frozen=True)
class Fault:
    """Which calls fail, and how."""

    call: str
    file: str
    error: int = 0
    first: int = 1
    lasts: bool = False  # all later ones fail too
    half: bool = False  # a write brings half of its bytes to the file all the same

    @property
    def is_unnoticed(self) -> bool:
        return self.call == "write" and self.error in (0, errno.EINTR)

    def __str__(self) -> str:
        what = errno_name(self.error) + (" after half of it" if self.half else "")
        return f"{self.call} {self.first} on {self.file}{' and all later' if self.lasts else ''}: {what}"


def errno_name(error: int) -> str:
    return errno.errorcode.get(error, "short")


class Layer:
    """The functions of faults.c in this process."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.fault_arm.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
        ]
        self._library.fault_watch.argtypes = [ctypes.c_char_p]
        self._library.fault_hits.restype = ctypes.c_long
        self._library.fault_count.restype = ctypes.c_long

    def watch(self, path: Path) -> None:
        self._library.fault_watch(bytes(path))

    def arm(self, fault: Fault) -> None:
        last = FOR_EVER if fault.lasts else fault.first
        place = CALLS.index(fault.call), FILES.index(fault.file)
        self._library.fault_arm(*place, fault.first, last, fault.error, int(fault.half))

    def disarm(self) -> None:
        self._library.fault_disarm()

    def hits(self) -> int:
        return self._library.fault_hits()

    def count(self, call: str, file: str) -> int:
        return self._library.fault_count(CALLS.index(call), FILES.index(file))


# How each call may fail. A write is repeated where a signal came or not all went out; nobody should notice.
WAYS = {
    "open": [Fault("open", "", errno.EMFILE), Fault("open", "", errno.EACCES)],
    "read": [Fault("read", "", errno.EIO)],
    "write": [
        Fault("write", "", errno.EIO),
        Fault("write", "", errno.ENOSPC),
        Fault("write", "", errno.ENOSPC, half=True),
        Fault("write", "", 0, half=True),
        Fault("write", "", errno.EINTR),
    ],
    "sync": [Fault("sync", "", errno.EIO)],
    "truncate": [Fault("truncate", "", errno.EIO)],
    "lock": [Fault("lock", "", errno.EIO), Fault("lock", "", errno.ENOLCK), Fault("lock", "", errno.EINTR)],
    "map": [Fault("map", "", errno.ENOMEM)],
    "stat": [Fault("stat", "", errno.EIO)],
    "unlink": [Fault("unlink", "", errno.EIO)],
}


@dataclass
class Told:
    """What a caller was told about one thing that it did."""

    what: str
    jobs: list[int] = field(default_factory=list)
    kind: str = ""  # the class of the error; empty: it succeeded
    outcome: str = ""
    code: str | None = None
    message: str = ""
    is_walpools: bool = True
    missing: list[int] = field(default_factory=list)  # acknowledged jobs that a read did not find
    after: bool = False  # said when the disk worked again


class Story:
    """A scripted life of a pool, with everything that its callers were told."""

    def __init__(self, path: Path, *, ends_at_error: Callable[[Story], None] | None = None) -> None:
        self.path = path
        self.told: list[Told] = []
        self.pool: walpool.Pool | None = None
        self.is_after = False
        self._jobs = iter(range(1, 1_000_000))
        self._copies = 0
        self._lock = threading.Lock()
        self._ends_at_error = ends_at_error

    def acknowledged(self) -> set[int]:
        return {job for told in self.told if not told.kind for job in told.jobs}

    def does(self, what: str, work: Callable[[Told], object], jobs: int = 0) -> None:
        with self._lock:
            told = Told(what, [next(self._jobs) for _ in range(jobs)], after=self.is_after)
        try:
            work(told)
        except Exception as error:  # noqa: BLE001 - told, and judged by the test
            told.kind, told.message = type(error).__name__, str(error)
            told.is_walpools = isinstance(error, walpool.Error)
            told.outcome = getattr(error, "outcome", "")
            told.code = getattr(error, "sqlite_errorname", None)
        with self._lock:
            self.told.append(told)
            if told.kind and self._ends_at_error:
                self._ends_at_error(self)

    def opens(self) -> None:
        def work(_: Told) -> None:
            self.pool = walpool.Pool(self.path, readers=2, busy_timeout=0.2, checkout_timeout=5, transaction_timeout=5)

        self.does("open", work)

    def makes_the_table(self) -> None:
        self.does("script", lambda _: self.pool.script("CREATE TABLE IF NOT EXISTS t (job, part)"))

    def writes(self) -> None:
        def work(told: Told) -> None:
            self.pool.batch([(INSERT, (told.jobs[0], part)) for part in range(PARTS)])

        self.does("batch", work, jobs=1)

    def writes_much(self) -> None:
        def work(told: Told) -> None:
            fill = ("INSERT INTO ballast VALUES (zeroblob(?))", (FRAMES_OF_AN_INDEX * SMALL_PAGE,))
            self.pool.batch([*((INSERT, (told.jobs[0], part)) for part in range(PARTS)), fill])

        self.does("large batch", work, jobs=1)

    def writes_from_threads(self, count: int = 3) -> None:
        barrier = threading.Barrier(count)

        def work() -> None:
            barrier.wait()
            self.writes()

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def writes_many(self) -> None:
        self.does(
            "executemany",
            lambda told: self.pool.executemany(INSERT, [(told.jobs[0], part) for part in range(PARTS)]),
            jobs=1,
        )

    def leases(self) -> None:
        def work(told: Told) -> None:
            with self.pool.transaction() as tx:
                for part in range(PARTS):
                    tx.execute(INSERT, (told.jobs[0], part))

        self.does("transaction", work, jobs=1)

    def reads(self) -> None:
        def work(told: Told) -> None:
            known = self.acknowledged()
            found = {job for (job,) in self.pool.fetch("SELECT job FROM t GROUP BY job HAVING count(*) = ?", (PARTS,))}
            told.missing = sorted(known - found)

        self.does("fetch", work)

    def checkpoints(self, mode: str = "truncate") -> None:
        self.does("checkpoint", lambda _: self.pool.checkpoint(mode))

    def vacuums(self) -> None:
        self.does("vacuum", lambda _: self.pool.vacuum())

    def backs_up(self) -> None:
        self._copies += 1  # a new name each time: removing the old copy could fail as well
        self.does("backup", lambda _: self.pool.backup(f"{self.path}.copy{self._copies}"))

    def checks(self) -> None:
        def work(told: Told) -> None:
            if problems := self.pool.check():
                raise walpool.errors.CorruptError(problems[0], sqlite_errorname="SQLITE_CORRUPT")

        self.does("check", work)

    def closes_if_all_went_well(self) -> None:
        """Close the pool; one that met a failure stays open, to be seen working when the disk works again."""
        if not any(told.kind for told in self.told):
            self.closes()

    def closes(self) -> None:
        self.does("close", lambda _: self.pool.close())
        if left := open_descriptors(self.path):
            self.told.append(Told("descriptors", kind="Leak", message=str(left), is_walpools=False))


def everyday(story: Story) -> None:
    """An open pool's life: jobs alone and in groups, a lease, reads, checkpoints; the WAL begins anew once."""
    story.opens()
    if story.pool is None:
        return
    story.writes()
    story.writes_from_threads()
    story.reads()
    story.leases()
    story.checkpoints()
    story.writes_many()
    story.reads()
    story.checkpoints("passive")
    story.writes()
    story.closes_if_all_went_well()


def upkeep(story: Story) -> None:
    """What reads and writes the whole file: backup, check, vacuum."""
    story.opens()
    if story.pool is None:
        return
    story.writes()
    story.backs_up()
    story.checks()
    story.vacuums()
    story.checkpoints()
    story.writes()
    story.reads()
    story.closes_if_all_went_well()


def birth(story: Story) -> None:
    """A file that is not there yet."""
    story.opens()
    if story.pool is None:
        return
    story.makes_the_table()
    if story.told[-1].kind:
        return
    story.writes()
    story.reads()
    story.closes_if_all_went_well()


def growth(story: Story) -> None:
    """A WAL that outgrows the first segment of its index, by small pages and a large job."""
    story.opens()
    if story.pool is None:
        return
    story.writes()
    story.writes_much()
    story.writes()
    story.closes_if_all_went_well()


STORIES = {"everyday": everyday, "upkeep": upkeep, "birth": birth, "growth": growth}
SMALL_PAGE = 512


def aftermath(story: Story) -> None:
    """The disk works again: so does the pool, the same one if there is one."""
    story.is_after = True
    if story.pool is None or story.pool.closed:
        story.opens()
    if story.pool is not None:
        story.makes_the_table()
        story.writes()
        story.reads()
        story.checkpoints("passive")
        story.leases()
        story.reads()
        story.closes()


def make_template(path: Path, page_size: int) -> None:
    """Make the file that every story but `birth` begins with: in WAL mode, closed, with a table and a few pages."""
    with sqlite3.connect(path) as conn:
        conn.execute(f"PRAGMA page_size = {page_size}")
        conn.execute("PRAGMA journal_mode = WAL")
        conn.executescript("CREATE TABLE t (job, part); CREATE TABLE ballast (a)")
        conn.executemany("INSERT INTO ballast VALUES (zeroblob(3000))", [()] * 8)
    conn.close()


def look_at(path: Path) -> dict[str, Any]:
    """Return what another SQLite finds in the file, its WAL recovered: jobs with their number of rows, and problems."""
    conn = sqlite3.connect(path)
    try:
        has_table = conn.execute("SELECT count(*) FROM sqlite_schema WHERE name = 't'").fetchone()[0]
        rows = conn.execute("SELECT job, count(*) FROM t GROUP BY job").fetchall() if has_table else []
        problems = [line for (line,) in conn.execute("PRAGMA integrity_check") if line != "ok"]
    except sqlite3.Error as error:
        return {"rows": {}, "problems": [repr(error)]}
    finally:
        conn.close()
    return {"rows": dict(rows), "problems": problems}


class Stage:
    """Where attempts are made, one after the other, each in a process of its own."""

    def __init__(self, layer: Layer, folder: Path, name: str) -> None:
        self.layer = layer
        self.name = name
        self.path = folder / "test.db"
        self.template = folder / "template.db"
        make_template(self.template, page_size=SMALL_PAGE if name == "growth" else 4096)

    def places(self) -> list[tuple[str, str, int]]:
        """Return which calls the story makes on which files, and how often, where nothing fails."""
        nowhere = Fault(CALLS[0], FILES[0])
        return [tuple(place) for place in self.attempt(nowhere, dies=False)["places"]]

    def attempt(self, fault: Fault, *, dies: bool) -> dict[str, Any]:
        """Tell the story with this fault in it, and return what was told and what is left.

        Args:
            fault: what fails.
            dies: the process ends at the first error that anybody is told, as if it were killed; else the disk works
                again when the story has ended, and the pool is used and closed.
        """
        for old in self.path.parent.glob(f"{self.path.name}*"):
            old.unlink()
        if self.name != "birth":
            shutil.copyfile(self.template, self.path)
        answer, write = os.pipe()
        child = os.fork()
        if child == 0:
            self._tell_story(fault, dies, write)
        os.close(write)
        report, ended_well = _read_all(answer, child)
        found = json.loads(report) if ended_well else {"told": [], "hits": 1, "places": []}
        return {"fault": str(fault), "dies": dies, "ended_well": ended_well, **found, **look_at(self.path)}

    def _tell_story(self, fault: Fault, dies: bool, write: int) -> None:
        def end(story: Story) -> None:
            told = [asdict(told) for told in story.told]
            os.write(write, json.dumps({"told": told, "hits": self.layer.hits(), "places": places}).encode())
            os._exit(0)

        places: list[tuple[str, str, int]] = []
        story = Story(self.path, ends_at_error=end if dies else None)
        self.layer.watch(self.path)
        self.layer.arm(fault)
        try:
            STORIES[self.name](story)
            self.layer.disarm()
            counts = ((call, file, self.layer.count(call, file)) for call in CALLS for file in FILES[1:])
            places += [place for place in counts if place[2]]
            if not dies:
                aftermath(story)
            end(story)
        finally:
            os._exit(1)  # only an error of the story itself comes here


def _read_all(answer: int, child: int) -> tuple[str, bool]:
    """Return what the child wrote, and whether it ended by itself, well and in time."""
    pieces = []
    while select.select([answer], [], [], ATTEMPT_ENDS_WITHIN)[0]:
        if not (piece := os.read(answer, 1 << 16)):
            break
        pieces.append(piece)
    else:
        os.kill(child, signal.SIGKILL)
    os.close(answer)
    _, status = os.waitpid(child, 0)
    return b"".join(pieces).decode(), status == 0


def numbers(count: int, extent: str, chance: random.Random) -> Iterable[int]:
    """Return which of `count` calls are to fail, one after the other: all that there are, the last, or one of them."""
    if extent == "all":
        return itertools.count(1)  # there may be more of them: threads do not make the same calls each time
    return [count if extent == "last" else chance.randint(1, count)]


def sweep(stage: Stage, fault: Fault, *, dies: bool, which: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Let these calls fail, each in a story of its own, until one is told without meeting its fault."""
    for number in which:
        result = stage.attempt(replace(fault, first=number), dies=dies)
        if not result["hits"]:
            return
        yield result


def ways(call: str, file: str) -> Iterator[tuple[Fault, bool]]:
    """Yield each way in which the call may fail, and whether the process dies of the first error."""
    for way in WAYS[call]:
        fault = replace(way, file=file)
        yield fault, False
        if not fault.is_unnoticed:
            yield fault, True
            if call != "lock":  # SQLite waits for its locks for up to 10 s, each time
                yield replace(fault, lasts=True), False


def main() -> None:
    """Print a line of JSON for each attempt.

    Arguments: the library, a folder, the story, the files whose calls fail, and which: `all`, `last`, or `one`.
    """
    library, folder, name, files, extent = sys.argv[1:]
    stage = Stage(Layer(library), Path(folder), name)
    chance = random.Random(name)
    for call, file, count in stage.places():
        if file not in files.split(","):
            continue
        for fault, dies in ways(call, file):
            for result in sweep(stage, fault, dies=dies, which=numbers(count, extent, chance)):
                result |= {"is_unnoticed": fault.is_unnoticed, "call": call}
                sys.stdout.write(json.dumps(result) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
