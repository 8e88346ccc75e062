"""`import_memory`: the memories of a file into a database, compared with it afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from walpool.copying import Part, Progress, RecordCopy, Report
from walpool.errors import ConfigError
from walpool.interchange import _jsonl, _parquet
from walpool.interchange._entries import Entry, Read, Selection
from walpool.interchange._files import Format, format_of, reading
from walpool.interchange.stores import has_stores, name_of, open_collection
from walpool.memory import Collection, MemoryStore
from walpool.settings import Settings

__all__ = ["ImportReport", "import_memory"]


@dataclass(slots=True, kw_only=True)
class ImportReport(Report):
    """What an import of a file found, did, and could not do, collection by collection.

    Attributes:
        path: the file; `-` for standard input.
        has_end: whether the file says how many records it holds, so that its being whole was checked.
    """

    path: str
    has_end: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        # Named: `super()` knows only the class that `slots` has replaced.
        return {"path": self.path, "has_end": self.has_end, **Report.as_dict(self)}


def import_memory(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str] | None = None,
    *,
    format: Format | None = None,  # noqa: A002 - the word
    tenants: Sequence[str] | None = None,
    collections: Sequence[str] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> ImportReport:
    """Copy the memories of a file into a database, compare both, and return what came of it.

    The file is read to its end before anything is written: one that was cut off or damaged is refused whole. It may be
    run again: a record that is there already stays as it is, and one with other content is left alone and reported. A
    record that cannot be taken is reported, and the rest goes on. Memory use does not grow with the number of records.

    Args:
        path: the file, `.jsonl`, `.jsonl.gz` or `.parquet`; `-` is standard input. It need not come from walpool, if
            each of its records has an id, a content and a created_at.
        url: the database, a path or URL, made if it is not there; None takes `WALPOOL_URL`.
        format: `jsonl` or `parquet`; None goes by the file's name.
        tenants: those of these tenants; None is all.
        collections: those with these names; None is all.
        overwrite: replace what differs in the database.
        dry_run: write nothing, and say what would be added.
        progress: called with how many records are done, how many there are in all, copying and comparing each counted
            (0: not known yet), and what is done.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: the file is the database, or Parquet is asked for without pyarrow.
        DataError: the file was cut off, is damaged, or is none of memories; nothing was written.
        OSError: the file cannot be read.
        WriteTimeout, BusyError: somebody else was writing the database for too long; run it again.
    """
    format_ = format_of(path, format)
    loaded = Settings.load(url, **settings)
    database = loaded.path
    if database is not None and _is_same_file(path, database):
        raise ConfigError(f"the file of an import is another one than its database [{database}]")
    target = database if database is not None else str(loaded.shown_url)
    report = ImportReport(path=os.fspath(path), target=target, is_dry=dry_run)
    # Opening a store makes its tables, and a file for them.
    is_to_open = not dry_run or ((database is None or os.path.exists(database)) and has_stores(url, settings))
    chosen = Selection(None if tenants is None else tuple(tenants), None if collections is None else tuple(collections))
    with reading(path) as file, ExitStack() as stack:
        run = _Run(file, format_, chosen, report, progress)
        run.check()
        for place in run.found:
            store = None
            if is_to_open:
                store = stack.enter_context(open_collection(url, run.described(place), settings))
            run.take(place, store, overwrite=overwrite)
        run.copy()
    return report


def _is_same_file(path: str | os.PathLike[str], database: str) -> bool:
    return all(map(os.path.exists, (path, database))) and os.path.samefile(path, database)


class _Run:
    """One run of `import_memory`."""

    def __init__(
        self, file: IO[bytes], format_: Format, chosen: Selection, report: ImportReport, progress: Progress | None
    ) -> None:
        self._file = file
        self._read = _parquet.read if format_ == "parquet" else _jsonl.read
        self._chosen = chosen
        self._report = report
        self._progress = progress
        self._head = Read()
        self.found: dict[tuple[str, str], int] = {}
        self._copies: dict[tuple[str, str], RecordCopy] = {}

    def check(self) -> None:
        """Read all of the file, so that a damaged one is refused before anything is written."""
        for number, entry in enumerate(self._read(self._file, self._head), 1):
            if self._chosen.takes(entry.tenant, entry.collection):
                place = entry.tenant, entry.collection
                self.found[place] = self.found.get(place, 0) + 1
            if self._progress is not None and number % 1000 == 0:
                self._progress(number, 0, "reading the file")
        self._head.check()
        self._report.has_end = self._head.end is not None

    def described(self, place: tuple[str, str]) -> Collection:
        """Return what the file says of a collection."""
        listed = self._head.head.collections if self._head.head is not None else ()
        return next((each for each in listed if (each.tenant, each.collection) == place), _collection(*place))

    def take(self, place: tuple[str, str], store: MemoryStore | None, *, overwrite: bool) -> None:
        """Let the records of a collection go into a store."""
        part = Part(name_of(*place), self._report.path, found=self.found[place])
        self._report.parts.append(part)
        self._copies[place] = RecordCopy(store, part, self._tick, overwrite=overwrite, is_dry=self._report.is_dry)

    def copy(self) -> None:
        """Copy all records, then compare all of them."""
        passes = 1 if self._report.is_dry else 2
        self._done, self._total = 0, passes * sum(self.found.values())
        for place, records in self._groups():
            self._copies[place].add(records)
        if not self._report.is_dry:
            for copy in self._copies.values():
                if copy.part.added and copy.store is not None:
                    copy.store.compact()
            for place, records in self._groups():
                self._copies[place].compare(records)

    def _groups(self) -> Iterator[tuple[tuple[str, str], Iterator[Any]]]:
        """Yield the records of the file, those of one collection that stand together at a time."""
        chosen = (entry for entry in self._read(self._file, Read()) if self._chosen.takes(*entry[:2]))
        for place, entries in groupby(chosen, key=_place):
            yield place, (entry.record for entry in entries)

    def _tick(self, records: int) -> None:
        self._done += records
        if self._progress is not None:
            self._progress(self._done, self._total, "copying and comparing")


def _collection(tenant: str, name: str) -> Collection:
    return Collection(tenant, name, "unicode61", None, 0)


def _place(entry: Entry) -> tuple[str, str]:
    return entry.tenant, entry.collection
