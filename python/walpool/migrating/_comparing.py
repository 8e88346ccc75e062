"""Comparing a table on both sides: count and sum of its rows' hashes in buckets, then row by row where they differ.

The server hashes its side while this process hashes the file's. A bucket is a range of keys, where both sides have them
in one order; else what the key's hash begins with, or, without a key, the row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from walpool.migrating._canonical import as_given_back, is_typed
from walpool.migrating._hashing import Digest, Hash, bucket_of, hashes, key_hashes, total
from walpool.migrating.plan import Table
from walpool.postgres.binary import Unfit

if TYPE_CHECKING:
    from walpool.migrating._cleaning import Cleaner
    from walpool.migrating._postgres import PostgresSide
    from walpool.migrating._sqlite import SqliteSide
    from walpool.types import Row

__all__ = ["Comparison", "compare"]

T = TypeVar("T")

BUCKETS: Final = 256
_NONE: Final = (0, 0)


@dataclass(slots=True)
class Comparison:
    """What differs between the two sides of a table.

    Attributes:
        table: which.
        rows: how many the source has, of those that the target is to have.
        buckets: the names of the buckets that differ.
        missing, changed, extra: keys that the target lacks, has with other values, and has alone; none for a table
            without a key.
    """

    table: Table
    rows: int = 0
    buckets: list[str] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    changed: list[Row] = field(default_factory=list)
    extra: list[Row] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not self.buckets

    @property
    def keys(self) -> int:
        """How many rows differ, as far as a table has a key."""
        return len(self.missing) + len(self.changed) + len(self.extra)


def compare(
    file: SqliteSide,
    server: PostgresSide,
    table: Table,
    cleaner: Cleaner | None,
    tick: Callable[[int], None],
) -> Comparison:
    """Return what differs between the file's and the server's rows of a table.

    Args:
        file: the one side.
        server: the other.
        table: which.
        cleaner: of a file that is the source; None where the server is.
        tick: is told how many rows were hashed.
    """
    with _beside(server) as start:
        both = _Both(file, server, table, cleaner, start)
        found = both.by_range(tick) if table.is_ordered else both.by_hash(tick)
    if cleaner is None:  # the server is the source
        found.missing, found.extra = found.extra, found.missing
    return found


Start = Callable[..., "Future[Any]"]


@contextmanager
def _beside(server: PostgresSide) -> Iterator[Start]:
    """Yield what starts something on a thread; nothing of it is left at the end of the block."""
    with ThreadPoolExecutor(1, thread_name_prefix="walpool-migrate") as threads:
        try:
            yield threads.submit
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            server.cancel()
            raise


class _Both:
    """One table on both sides."""

    def __init__(
        self, file: SqliteSide, server: PostgresSide, table: Table, cleaner: Cleaner | None, start: Start
    ) -> None:
        self._file = file
        self._server = server
        self._table = table
        self._cleaner = cleaner
        self._start = start
        self._found = Comparison(table)
        self._spelled: dict[Row, Row] = {}  # by the server's key, the file's
        self._last: tuple[Row | None, int] = None, 0  # the key of the row before, and its place among those of it

    def by_range(self, tick: Callable[[int], None]) -> Comparison:
        """Compare range after range of keys.

        The server is asked for all of them at once: a thread that asked for one after the other would stand in line for
        the GIL each time, which the hashing of the file's rows holds.
        """
        table = self._table
        ends = self._file.boundaries(table, min(table.page, max(1000, -(-table.rows // BUCKETS))))
        ranges = list(zip([None, *ends], [*ends, None], strict=True))
        theirs = self._start(self._server.digests, table, ranges)
        ours: list[Digest] = []
        for after, upto in ranges:
            rows = self._file.page(table, after, upto)
            ours.append(total(self._hashed(rows)[1]))
            tick(len(rows))
        answered: list[Digest] = theirs.result()
        self._count(sum(count for count, _ in (ours if self._cleaner else answered)))
        for number, (after, upto) in enumerate(ranges):
            if ours[number] != answered[number]:
                self._found.buckets.append(f"range {number} of {len(ranges)}")
                known = {key: hash_ for key, _, hash_ in self._each(self._file.page(table, after, upto))}
                self._differ(known, self._server.hashes(table, after, upto))
        return self._found

    def by_hash(self, tick: Callable[[int], None]) -> Comparison:
        """Compare the 256 buckets of the keys' hashes, or of the rows'."""
        table = self._table
        theirs = self._start(self._server.buckets, table)
        ours: dict[int, Digest] = {}
        for rows in self._pages():
            given, found = self._hashed(rows)
            for bucket, hash_ in zip(self._buckets(given, found), found, strict=True):
                count, sum_ = ours.get(bucket, _NONE)
                ours[bucket] = count + 1, sum_ + hash_
            tick(len(rows))
        answered: dict[int, Digest] = theirs.result()
        self._count(sum(count for count, _ in (ours if self._cleaner else answered).values()))
        differing = [n for n in range(BUCKETS) if ours.get(n, _NONE) != answered.get(n, _NONE)]
        self._found.buckets = [f"bucket {n:02x}" for n in differing]
        if differing and table.key:
            self._differ(self._in_buckets(set(differing)), self._server.bucket_hashes(table, differing))
        return self._found

    def _in_buckets(self, wanted: set[int]) -> dict[Row, Hash]:
        known: dict[Row, Hash] = {}
        for rows in self._pages():
            for key, bucket, hash_ in self._each(rows):
                if bucket in wanted:
                    known[key] = known.get(key, 0) + hash_
        return known

    def _each(self, rows: list[Row]) -> Iterator[tuple[Row, int, Hash]]:
        """Yield key, bucket and hash of each row as the server has it; keys that the file spells otherwise are kept."""
        table = self._table
        is_odd = table.is_suspect or any(map(is_typed, table.key_columns))
        for some in ([row] for row in rows) if is_odd else [rows]:
            given, found = self._hashed(some)
            keys = table.keys_of(given)
            if is_odd:
                self._spelled.update(
                    (key, its) for key, its in zip(keys, table.keys_of(some), strict=False) if key != its
                )
            yield from zip(keys, self._buckets(given, found), found, strict=True)

    def _pages(self) -> Iterator[list[Row]]:
        self._last = None, 0
        return self._file.pages(self._table)

    def _buckets(self, rows: Sequence[Row], found: Sequence[Hash]) -> list[int]:
        return list(map(bucket_of, key_hashes(self._table, rows) if self._table.key else found))

    def _hashed(self, rows: list[Row]) -> tuple[Sequence[Row], list[Hash]]:
        """Return rows as the server gives them back, and their hashes."""
        last = self._last
        if not self._table.is_suspect:
            try:
                given = as_given_back(self._table, rows)
                return given, hashes(self._table, given, self._places(given))
            except Unfit:
                self._last = last
        kept = self._cleaner.kept(self._table, rows) if self._cleaner else rows
        given = as_given_back(self._table, kept)
        return given, hashes(self._table, given, self._places(given))

    def _places(self, rows: Sequence[Row]) -> Iterator[int]:
        """Yield the place of each row among those of its key, which come one after the other."""
        before, place = self._last
        for key in self._table.keys_of(rows):
            place = place + 1 if key == before else 1
            before = key
            yield place
        self._last = before, place

    def _differ(self, ours: dict[Row, Hash], theirs: dict[Row, Hash]) -> None:
        """Enter the keys that differ; `missing` are those that the server lacks."""
        spelled = self._spelled
        self._found.missing += [spelled.get(key, key) for key in ours if key not in theirs]
        self._found.extra += [key for key in theirs if key not in ours]
        self._found.changed += [spelled.get(key, key) for key, hash_ in ours.items() if theirs.get(key, hash_) != hash_]

    def _count(self, rows: int) -> None:
        self._found.rows += rows
