"""Power loss at any instant: what was acknowledged with `full` is there, and what is there is sound, with `normal` too.

A process is recorded while it writes: each change of a file, each sync, each acknowledgement. From the record are built
the states that a failure may leave, and each is opened and compared with what the process left when it ended well.

process            record                 a failure here may leave
job                WRITE a, WRITE b       a, b, both, neither, sectors of each
COMMIT (full)      SYNC                   both
"acked"            MARK                   both, and the job must be there
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from durable import COPY, Found, JobId, found_by_walpool

from tests.power.rebuild import Disk, cuts, lay_out
from tests.power.record import Kind, build_recorder, record
from tests.torture import Torture
from walpool import errors

DATABASE = "test.db"
PROGRAM = "import sys, durable; durable.{}(*sys.argv[1:])"
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a state is opened once: no disk need keep it
JOBS_OF_A_PROCESS = 10_000  # more than a writer ever gets to: the second process begins its numbers here
KEPT = 3  # states that are kept for a person to look at, of those in which something is wrong


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled recorder."""
    return build_recorder(tmp_path_factory.mktemp("recorder"))


@dataclass
class Heard:
    """What the process has told so far."""

    acked: set[JobId] = field(default_factory=set)
    settled: set[JobId] = field(default_factory=set)  # acknowledged before a checkpoint that was complete, or a close
    _before: set[JobId] = field(default_factory=set)

    def hear(self, line: str) -> None:
        word, *numbers = line.split()
        if word == "acked":
            self.acked.add((int(numbers[0]), int(numbers[1])))
        elif word in ("checkpointing", "closing"):
            self._before = set(self.acked)
        elif word in ("checkpointed", "closed"):
            self.settled = self._before


@dataclass(frozen=True)
class Look:
    """What came of opening a state."""

    problems: tuple[str, ...]
    rows: int  # of those that the process left in the end, from the first on


class Recorded:
    """A process that was recorded, and the states that a failure may leave of it; each content is opened once."""

    def __init__(
        self,
        recorder: Path,
        folder: Path,
        program: str,
        synchronous: str,
        *args: object,
        at_the_start: dict[str, bytes] | None = None,
    ) -> None:
        self._at_the_start = at_the_start or {}
        lay_out(self._at_the_start, folder)
        self.records = record(recorder, folder, PROGRAM.format(program), folder / DATABASE, synchronous, *args)
        self.at_the_end = {path.name: path.read_bytes() for path in folder.iterdir()}
        self._final = found_by_walpool(folder / DATABASE)
        self._length = {(row[1], row[2]): length for length, row in enumerate(self._final.rows, start=1)}
        self._kept = folder.parent
        self._looks: dict[bytes, Look] = {}

    @property
    def states(self) -> int:
        """How many states were opened."""
        return len(self._looks)

    @property
    def rows(self) -> int:
        """How many rows there are in the end."""
        return len(self._final.rows)

    def disk(self) -> Disk:
        """Return the folder as the process found it."""
        return Disk(self._at_the_start)

    def wrong(self) -> list[str]:
        """Return what was wrong with any state."""
        return [problem for look in self._looks.values() for problem in look.problems]

    def failures(self, count: int, of_each: int, seed: str) -> Iterator[tuple[Heard, dict[str, bytes]]]:
        """Yield some of the states that may be left at `count` cuts, each with what was told until then."""
        disk, heard, done, rng = self.disk(), Heard(), 0, random.Random(seed)
        hows = ("none", "all", *([None] * of_each))
        for cut in cuts(self.records, count, rng):
            for event in self.records[done:cut]:
                disk.do(event)
                if event.kind is Kind.MARK:
                    heard.hear(event.text)
            done = cut
            for how in hows:
                yield heard, disk.left(rng, how)

    def lost(self, jobs: set[JobId], look: Look) -> set[JobId]:
        """Return those of the jobs that are not there; one that was not there in the end either is lost too."""
        return {job for job in jobs if self._length.get(job, look.rows + 1) > look.rows}

    def look(self, files: dict[str, bytes], database: str = DATABASE) -> Look:
        """Return what is in a state's database."""
        digest = sha256(repr(sorted(files.items())).encode()).digest()
        if digest not in self._looks:
            look = self._open(files, database)
            if look.problems and len(self.wrong()) < KEPT:
                lay_out(files, self._kept / f"wrong-{self.states}")
            self._looks[digest] = look
        return self._looks[digest]

    def _open(self, files: dict[str, bytes], database: str) -> Look:
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
            lay_out(files, Path(folder) / "state")
            try:
                found = found_by_walpool(Path(folder) / "state" / database)
            except errors.DatabaseError as error:
                return Look((str(error),), 0)
        return Look(tuple(self._problems(found)), len(found.rows))

    def _problems(self, found: Found) -> Iterator[str]:
        if found.problems:
            yield from found.problems
            return  # of a damaged file nothing else can be said
        if found.rows != self._final.rows[: len(found.rows)]:
            yield "what is there is no beginning of what was committed"
        yield from (f"{job} is there in part" for job in found.torn())
        if not found.is_counted():
            yield "the trigger counted otherwise"


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_power_loss_leaves_what_was_promised_and_whole_jobs_in_the_order_of_their_commits(
    recorder: Path, tmp_path: Path, synchronous: str, torture: Torture
) -> None:
    states, forgotten, lost, wrong = 0, 0, 0, list[str]()
    for number in range(torture.size(1, 8)):
        recorded = Recorded(recorder, tmp_path / f"recorded-{number}", "write_under_the_recorder", synchronous)
        for heard, files in recorded.failures(torture.size(50, 600), of_each=3, seed=f"{synchronous} {number}"):
            look = recorded.look(files)
            promised = heard.acked if synchronous == "full" else heard.settled
            lost += len(recorded.lost(promised, look))
            forgotten += len(recorded.lost(heard.acked, look))
        states += recorded.states
        wrong += recorded.wrong()
    torture.tell(
        f"power loss, synchronous={synchronous}",
        tried=states,
        unit="states",
        lost=lost,
        note="" if synchronous == "full" else "of what was acknowledged before a checkpoint or a close",
    )
    assert (lost, wrong) == (0, [])
    if synchronous == "normal":
        assert forgotten > 0  # durable at a crash of the process only: else the states would forget nothing


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_second_power_loss_takes_nothing_that_either_process_acknowledged(
    recorder: Path, tmp_path: Path, torture: Torture
) -> None:
    # The second process finds what the failure left of the WAL, and writes over what it cannot use of it.
    states, lost, wrong = 0, 0, list[str]()
    for number in range(torture.size(1, 12)):
        first = Recorded(recorder, tmp_path / f"first-{number}", "write_under_the_recorder", "full")
        seed = f"second {number}"
        left = [
            (set(heard.acked), files)
            for heard, files in first.failures(40, of_each=2, seed=seed)
            if files.get(f"{DATABASE}-wal")
        ]
        acked, files = random.Random(seed).choice(left)
        second = Recorded(
            recorder,
            tmp_path / f"second-{number}",
            "write_under_the_recorder",
            "full",
            JOBS_OF_A_PROCESS,
            at_the_start=files,
        )
        for heard, files in second.failures(torture.size(20, 300), of_each=3, seed=seed):
            lost += len(second.lost(acked | heard.acked, second.look(files)))
        states += second.states
        wrong += second.wrong()
    torture.tell("power loss after power loss, synchronous=full", tried=states, unit="states", lost=lost)
    assert (lost, wrong) == (0, [])


def test_recorder_misses_nothing(recorder: Path, tmp_path: Path) -> None:
    for program in ("write_under_the_recorder", "write_with_sqlite3"):
        recorded = Recorded(recorder, tmp_path / program, program, "normal")
        disk = recorded.disk()
        for event in recorded.records:
            disk.do(event)
        assert disk.left(random.Random(0), "all") == recorded.at_the_end


@pytest.mark.parametrize(
    ("synchronous", "loses", "breaks"), [("FULL", False, False), ("NORMAL", True, False), ("OFF", True, True)]
)
def test_states_show_what_sqlite_says_of_each_synchronous(
    recorder: Path, tmp_path: Path, synchronous: str, loses: bool, breaks: bool
) -> None:
    # https://www.sqlite.org/pragma.html#pragma_synchronous
    recorded = Recorded(recorder, tmp_path / "recorded", "write_with_sqlite3", synchronous)
    lost = [
        recorded.lost(heard.acked, recorded.look(files))
        for heard, files in recorded.failures(40, of_each=2, seed=synchronous)
    ]
    assert (any(lost), recorded.wrong() != []) == (loses, breaks)


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_backup_is_there_and_whole_after_power_loss_once_it_has_returned(
    recorder: Path, tmp_path: Path, synchronous: str
) -> None:
    recorded = Recorded(recorder, tmp_path / "recorded", "back_up_under_the_recorder", synchronous)
    disk, rng, is_copied = recorded.disk(), random.Random(synchronous), False
    for event in recorded.records:
        disk.do(event)
        is_copied = is_copied or (event.kind is Kind.MARK and event.text == "copied")
        for how in ("none", "all", None, None) if is_copied else ():
            files = {name: data for name, data in disk.left(rng, how).items() if name.startswith(COPY)}
            assert recorded.look(files, COPY) == Look((), recorded.rows)
