"""What came of a copy: counted, with a checksum of both sides and a list of what differs; and how far it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from walpool.types import Value

__all__ = ["Checksum", "Difference", "Part", "Progress", "Ticker", "jobs"]

Statement: TypeAlias = tuple[str, tuple[Value, ...]]

_JOB_BYTES: Final = 4 << 20  # a job is about so long: other writers wait meanwhile
_MODULUS: Final = 1 << 256


class Difference(NamedTuple):
    """Something that is not in the target as it is in the source."""

    subject: str
    """Which: `thread 'a'`, or `item a.b 'key'`."""
    said: str
    """What about it, in words."""


class Progress(Protocol):
    """What is called with how far a copy is."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Show that `done` of `total` rows of `what` are done."""


class Ticker:
    """Counts the rows that are done of one thing, and tells."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = 0
        self(0)

    def __call__(self, rows: int) -> None:
        """Count `rows` more; never beyond the total."""
        self._done = min(self._done + rows, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total, self._what)

    def finish(self) -> None:
        """Count what was left out as done too."""
        self(self._total)


class Checksum:
    """A count and a checksum of several things, whatever their order: the sum of their SHA-256, modulo 2 ** 256."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, content: bytes) -> None:
        """Add one thing."""
        self.count += 1
        self._sum = (self._sum + int.from_bytes(sha256(content).digest(), "big")) % _MODULUS

    def add_row(self, row: Iterable[Any]) -> None:
        """Add one row of a database: 1, 1.0, '1' and x'31' are four different values."""
        self.add(repr(tuple(row)).encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        return f"{self._sum:064x}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checksum) and (self.count, self._sum) == (other.count, other._sum)

    __hash__ = None  # type: ignore[assignment] # it changes


@dataclass(slots=True)
class Part:
    """What came of one table, or one store of records.

    Attributes:
        table: what was copied.
        source: the path that it was read from.
        found: how many rows there are in the source.
        added: how many of them this run stored.
        present: how many of them the target had already.
        superseded: how many of them are older versions of others, which the source would not give back either.
        notes: what a person should know, and that is no difference.
        differences: what is not in the target as it is in the source; empty if all is well.
        read, stored: count and checksum of what was read from the source and of what the target gives back for it.
    """

    table: str
    source: str
    found: int = 0
    added: int = 0
    present: int = 0
    superseded: int = 0
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    read: Checksum = field(default_factory=Checksum)
    stored: Checksum = field(default_factory=Checksum)

    @property
    def is_verified(self) -> bool:
        """Whether nothing differs, and both sides were read back with one count and one checksum."""
        return not self.differences and self.read == self.stored

    def differs(self, subject: str, said: str) -> None:
        """Note a difference."""
        self.differences.append(Difference(subject, said))

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        counts = {name: getattr(self, name) for name in ("table", "source", "found", "added", "present", "superseded")}
        return {
            **counts,
            "notes": list(self.notes),
            "differences": [difference._asdict() for difference in self.differences],
            "verified": self.is_verified,
            "read": {"count": self.read.count, "checksum": str(self.read)},
            "stored": {"count": self.stored.count, "checksum": str(self.stored)},
        }


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of a copy into a database.

    Attributes:
        target: the path or URL of the database.
        is_dry: whether nothing was written, and `added` says what would be.
        parts: what came of each table or collection, in the order in which they were copied.
    """

    target: str
    is_dry: bool = False
    parts: list[Part] = field(default_factory=list)

    @property
    def added(self) -> int:
        """How many rows and records this run stored."""
        return sum(part.added for part in self.parts)

    @property
    def is_verified(self) -> bool:
        """Whether all that was found is in the target as it is in the source; of a dry run, whether it could be."""
        return all(part.is_verified for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "target": self.target,
            "dry_run": self.is_dry,
            "added": self.added,
            "verified": self.is_verified,
            "parts": [part.as_dict() for part in self.parts],
        }


def jobs(groups: Iterable[list[Statement]], first: list[Statement] | None = None) -> Iterator[list[Statement]]:
    """Yield jobs of about 4 MiB, each of whole groups; the first one begins with the statements `first`."""
    job, length = list(first or ()), 0
    for group in groups:
        job += group
        length += sum(len(value) for _, params in group for value in params if isinstance(value, (str, bytes)))
        if length >= _JOB_BYTES:
            yield job
            job, length = [], 0
    if job:
        yield job
