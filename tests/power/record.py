"""Running a program under the recorder, and reading what was recorded."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("recorder.c")
HEAD = struct.Struct("=IIqQ")  # `struct record` of recorder.c
WITHIN = 120.0  # seconds in which a recorded program must have ended

FOLDER = 1  # the number of the folder itself; files are counted from there


class Kind(IntEnum):
    """What a record tells."""

    CREATE = 1
    UNLINK = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC_BEGINS = 5
    SYNC_ENDS = 6
    MARK = 7
    FOUND = 8


@dataclass(frozen=True)
class Record:
    """One change, one end of a sync, or one mark."""

    kind: Kind
    file: int  # one that is unlinked and made again has a new number
    at: int  # the offset of a write, the size of a truncation, the number of a sync
    data: bytes  # what was written, the name of a file, the text of a mark

    @property
    def text(self) -> str:
        return self.data.decode()


def build_recorder(folder: Path) -> Path:
    """Return the compiled recorder; skips the test where there is none."""
    if not sys.platform.startswith("linux"):
        pytest.skip("writes are recorded by a preloaded library, which is written for Linux")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the recorder is written in C, and there is no cc")
    library = folder / "recorder.so"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-nonnull-compare"]  # glibc calls a NULL path impossible
    subprocess.run(
        [compiler, *warnings, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True
    )
    return library


def record(recorder: Path, folder: Path, program: str, *args: object) -> list[Record]:
    """Run `program` in a Python of its own and return what it did to the files of `folder`, in their order."""
    log = folder.with_name(f"{folder.name}.log")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "LD_PRELOAD": str(recorder),
        "POWER_FOLDER": str(folder.resolve()),
        "POWER_LOG": str(log),
    }
    command = [sys.executable, "-c", program, *map(str, args)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert ended.returncode == 0, ended.stderr
    return list(_read(log.read_bytes()))


def _read(log: bytes) -> Iterator[Record]:
    at = 0
    while at < len(log):
        kind, file, number, size = HEAD.unpack_from(log, at)
        at += HEAD.size
        yield Record(Kind(kind), file, number, log[at : at + size])
        at += size
