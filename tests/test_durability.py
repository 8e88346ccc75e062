"""SIGKILL at any instant: what was acknowledged is there, and each job is there whole or not at all.

writers (16)                     parent
job ... COMMIT ... "acked"
job ... COMMIT (no word yet)
job ... (in no group yet)
                                 SIGKILL
                                 reopens: the first must be there, the second may be, the third is not
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from durable import Found, JobId, Told, found_by_sqlite3, found_by_walpool
from helpers import WITHIN, start_python

from tests.torture import Torture

WRITING_PROCESS = "import sys; from durable import write_until_killed; write_until_killed(*sys.argv[1:])"
ROUNDS_ON_A_FILE = 4  # each begins with the WAL that the last one left
JOBS_OF_A_ROUND = 10_000  # more than a writer ever gets to: the numbers of a round begin at its multiple of this

# The word at which the parent gets ready to kill, and how many of it come first at most. Opening and closing have a
# word before and one after, so half of all kills are meant for them.
MOMENTS = {"opening": 4, "opened": 2, "closing": 3, "closed": 2, "acked": 500, "checkpointing": 12, "refused": 40}
LONGEST_DELAY = 0.01  # seconds after that word, several times what an open or a close takes


@dataclass(frozen=True)
class Moment:
    """When to kill."""

    word: str
    count: int
    delay: float

    @classmethod
    def drawn(cls, rng: random.Random) -> Moment:
        word = rng.choice(list(MOMENTS))
        return cls(word, rng.randint(1, MOMENTS[word]), rng.random() * LONGEST_DELAY)

    def kill(self, process: subprocess.Popen[str]) -> list[str]:
        """Kill the process at this moment and return what it told."""
        assert process.stdout is not None
        told, descriptor = b"", process.stdout.fileno()
        too_late = threading.Timer(WITHIN, process.kill)  # one that hangs would never tell
        too_late.start()
        try:
            while f"\n{told.decode()}".count(f"\n{self.word}") < self.count:
                piece = os.read(descriptor, 1 << 16)
                assert piece, process.stderr and process.stderr.read()
                told += piece
        finally:
            too_late.cancel()
        with pytest.raises(subprocess.TimeoutExpired):  # it writes for ever
            process.wait(self.delay)
        process.kill()
        while piece := os.read(descriptor, 1 << 16):
            told += piece
        return told.decode().splitlines()


@dataclass
class Account:
    """What the processes that wrote a file have told so far, set against what is found in it."""

    acked: set[JobId] = field(default_factory=set)
    refused: set[JobId] = field(default_factory=set)
    unanswered: set[JobId] = field(default_factory=set)

    def enter(self, told: Told, first: int, writers: int) -> None:
        """Enter what a process told; each writer has at most one job of which it did not tell."""
        self.acked |= told.acked
        self.refused |= told.refused
        for writer in range(writers):
            last = max((n for w, n in told.acked | told.refused if w == writer), default=first - 1)
            self.unanswered.add((writer, last + 1))

    def lost(self, found: Found) -> set[JobId]:
        return self.acked - set(found.jobs())

    def wrong(self, found: Found) -> list[str]:
        """Return what is wrong with what was found, but for what is lost."""
        if found.problems:
            return found.problems  # of a damaged file nothing else can be said
        # Nobody wrote these, or was told that they were not applied.
        uncalled_for = set(found.jobs()) - self.acked - (self.unanswered - self.refused)
        return [
            *(f"{job} is there in part" for job in found.torn()),
            *(f"{job} should not be there" for job in uncalled_for),
            *([] if found.is_counted() else ["the trigger counted otherwise"]),
        ]


@pytest.mark.torture
@pytest.mark.crash
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_killed_process_loses_nothing_that_it_acknowledged_and_leaves_no_job_in_part(
    tmp_path: Path, synchronous: str, torture: Torture
) -> None:
    rounds, acked, lost = torture.size(6, 250), 0, 0
    wrong: list[tuple[int, Moment, str]] = []
    account = Account()
    for number in range(rounds):
        if number % ROUNDS_ON_A_FILE == 0:
            account, database = Account(), tmp_path / f"{number}.db"
        moment = Moment.drawn(random.Random(f"{synchronous} {number}"))
        print(f"round {number}: {moment}")  # noqa: T201 - shown where the test fails
        first = number * JOBS_OF_A_ROUND
        with start_python(WRITING_PROCESS, database, synchronous, first) as process:
            told = Told.by(moment.kill(process))
        account.enter(told, first, writers=16)
        acked += len(told.acked)
        ways = (found_by_walpool, found_by_sqlite3)
        found, again = [find(database) for find in ways[:: 1 if number % 2 else -1]]
        lost += len(account.lost(found))
        wrong += [(number, moment, what) for what in account.wrong(found)]
        if found != again:
            wrong.append((number, moment, "the second to open the file found something else"))
    torture.tell(
        f"SIGKILL of 16 writers, synchronous={synchronous}",
        tried=rounds,
        unit="kills",
        lost=lost,
        note=f"of {acked:,} acknowledged jobs; every job whole",
    )
    assert (lost, wrong) == (0, [])
    assert acked > 0
