"""The states that a power failure may leave behind, at any cut through a record.

What was synced is there. Of what was done to a file since its last sync anything may be there or not: nothing, all of
it, its beginning, any part of it, and of one write any of its sectors; so too for the names in the folder. What comes
later may be there although what came before is not.

writes to a file     a   b   c  sync  d   e   f   <- the cut
there in any state   a   b   c
there in some                         d   e   f       each by itself, each sector of each
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.power.record import FOLDER, Kind, Record

SECTOR = 512  # bytes that a disk writes whole; SQLite counts on no more. https://www.sqlite.org/atomiccommit.html

HOW = ("none", "all", "beginning", "some", "sectors", "torn")  # which of the changes that were not synced are there


@dataclass
class Pending:
    """What was done and may be gone: until a sync that began later has ended."""

    changes: list[Record] = field(default_factory=list)
    _certain: int = 0  # how many came before these
    _covered: dict[int, int] = field(default_factory=dict)  # of each running sync, how many it covers

    def do(self, record: Record) -> list[Record]:
        """Take a record in, and return the changes that it makes certain."""
        if record.kind is Kind.SYNC_BEGINS:
            self._covered[record.at] = self._certain + len(self.changes)
        elif record.kind is Kind.SYNC_ENDS:
            count = max(0, self._covered.pop(record.at) - self._certain)  # another, which began later, may have ended
            certain, self.changes = self.changes[:count], self.changes[count:]
            self._certain += count
            return certain
        else:
            self.changes.append(record)
        return []


class File:
    """What is certain of a file, and what is pending."""

    def __init__(self, content: bytes = b"") -> None:
        self._synced = bytearray(content)
        self._pending = Pending()

    def do(self, record: Record) -> None:
        """Take a record in."""
        for change in self._pending.do(record):
            apply(self._synced, change)

    def left(self, how: str, rng: random.Random) -> bytes:
        """Return what a failure may leave of the file."""
        image = bytearray(self._synced)
        for change in chosen(self._pending.changes, how, rng):
            apply(image, change)
        return bytes(image)


def apply(image: bytearray, change: Record) -> None:
    """Write to an image of a file, or cut or lengthen it."""
    end = change.at + len(change.data)
    if len(image) < end:
        image.extend(bytes(end - len(image)))
    if change.kind is Kind.WRITE:
        image[change.at : end] = change.data
    else:
        del image[change.at :]


def chosen(changes: list[Record], how: str, rng: random.Random) -> Iterable[Record]:
    """Return those changes, or parts of them, that a failure leaves, in their order.

    Orders of other kinds need no thought: where two writes meet in a sector, either may be the one that is there.
    """
    if how == "none":
        return []
    if how == "all":
        return changes
    if how == "beginning":
        return changes[: rng.randint(0, len(changes))]
    likely = rng.random()
    if how == "some":
        return [change for change in changes if rng.random() < likely]
    if how == "sectors":
        return [part for change in changes for part in sectors(change) if rng.random() < likely]
    length = rng.randint(0, len(changes))
    torn = [part for change in changes[length : length + 1] for part in sectors(change) if rng.random() < likely]
    return [*changes[:length], *torn]


def sectors(change: Record) -> Iterator[Record]:
    """Yield the parts of a write that lie in one sector each. A longer file may be there without what was written."""
    if change.kind is not Kind.WRITE:
        yield change
        return
    end = change.at + len(change.data)
    yield Record(Kind.WRITE, change.file, end, b"")
    start = change.at
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield Record(Kind.WRITE, change.file, start, change.data[start - change.at : stop - change.at])
        start = stop


class Disk:
    """The folder as the records build it up, with all that a failure may take away again.

    Args:
        found: the files that the process found there, by name; these are certain.
    """

    def __init__(self, found: dict[str, bytes]) -> None:
        self._files: dict[int, File] = defaultdict(File)
        self._names = {name: -number for number, name in enumerate(found)}  # those that are certain
        self._files.update((self._names[name], File(content)) for name, content in found.items())
        self._pending = Pending()  # names that came and went

    def do(self, record: Record) -> None:
        """Take the next record in."""
        if record.kind is Kind.FOUND:
            self._files[record.file] = self._files.pop(self._names[record.text])
            self._names[record.text] = record.file
        elif record.kind in (Kind.CREATE, Kind.UNLINK) or record.file == FOLDER:
            rename(self._names, self._pending.do(record))
        elif record.kind is not Kind.MARK:
            self._files[record.file].do(record)

    def left(self, rng: random.Random, how: str | None = None) -> dict[str, bytes]:
        """Return the files that a failure may leave, by name; `how` holds for all of them, else each has its own."""
        names = dict(self._names)
        # The changes of one name come in their order; those of different names know nothing of each other.
        for name in sorted({change.text for change in self._pending.changes}):
            own = [change for change in self._pending.changes if change.text == name]
            rename(names, chosen(own, how or rng.choice(HOW[:3]), rng))
        return {name: self._files[file].left(how or rng.choice(HOW), rng) for name, file in sorted(names.items())}


def rename(names: dict[str, int], changes: Iterable[Record]) -> None:
    """Let names come and go."""
    for change in changes:
        if change.kind is Kind.CREATE:
            names[change.text] = change.file
        else:
            names.pop(change.text, None)


def lay_out(files: dict[str, bytes], folder: Path) -> None:
    """Write a state into a new folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def cuts(records: list[Record], count: int, rng: random.Random) -> list[int]:
    """Return numbers of records after which the power may fail, in rising order: half of them where it matters most.

    That is around the syncs and the truncations, where what was made certain changes, and around names and marks.
    """
    edges = [at for at, record in enumerate(records) if record.kind is not Kind.WRITE]
    near = [min(len(records), max(0, at + rng.randint(-2, 2))) for at in rng.choices(edges, k=count // 2)]
    anywhere = [rng.randint(0, len(records)) for _ in range(count - len(near))]
    return sorted(near + anywhere)
