"""`export_memory`: the memories of a database as one file, which is read again before it takes its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import walpool.memory
from walpool.copying import Checksum, Progress, Ticker
from walpool.errors import ConfigError, IntegrityError
from walpool.interchange import _jsonl, _parquet
from walpool.interchange._entries import Entry, Head, Read, Selection
from walpool.interchange._files import STANDARD, Format, format_of, reading, writing
from walpool.interchange.stores import is_secured, name_of, open_collection, patient
from walpool.memory import Collection
from walpool.settings import Settings

__all__ = ["ExportReport", "export_memory"]


@dataclass(slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the file; `-` for standard output.
        format: how it is written.
        collections: how many records of each collection, by tenant and name.
        checksum: of all of them, as the end of the file has it.
    """

    path: str
    format: Format
    collections: dict[tuple[str, str], int] = field(default_factory=dict)
    checksum: str = ""

    @property
    def records(self) -> int:
        """How many records the file holds."""
        return sum(self.collections.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        counts = [{"tenant": t, "collection": c, "records": number} for (t, c), number in self.collections.items()]
        named = {"path": self.path, "format": self.format, "records": self.records, "checksum": self.checksum}
        return {**named, "collections": counts}


def export_memory(
    url: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] = STANDARD,
    *,
    format: Format | None = None,  # noqa: A002 - the word
    tenants: Sequence[str] | None = None,
    collections: Sequence[str] | None = None,
    as_lists: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> ExportReport:
    """Write the memories of a database to a file, and return what it holds.

    Each collection is read as one snapshot, held for as long as it takes: the WAL does not shrink meanwhile. The file
    appears when it is whole, on the disk, and was read again; a file of the name is replaced. Memory use does not grow
    with the number of records.

    Args:
        url: the database, a path or URL; it must be there. None takes `WALPOOL_URL`.
        path: the file: `.jsonl`, `.jsonl.gz` or `.parquet`; `-` is standard output.
        format: `jsonl` or `parquet`; None goes by the file's name.
        tenants: those of these tenants; None is all, where row-level security does not keep them apart.
        collections: those with these names; None is all.
        as_lists: in JSON Lines, embeddings as lists of numbers in place of base64.
        progress: called with how many records of a collection are done, how many there are, and which it is.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: there is no such database, the file is the database, Parquet is asked for without pyarrow, or
            row-level security is on and no tenants are named.
        IntegrityError: the file that was written does not read as what the database holds; there is no file then.
        OSError: the file cannot be written.
        TransactionTimeout: this process has the database open with a shorter `transaction_timeout`.
    """
    report = ExportReport(os.fspath(path), format_of(path, format))
    _refuse_missing(url, path, settings)
    settings = patient(url, settings)
    chosen = Selection(_tuple(tenants), _tuple(collections))
    found = _collections(url, chosen, settings)
    wanted = [each for each in found if chosen.takes(each.tenant, each.collection)]
    total = Read(head=Head(tuple(wanted)))
    entries = _entries(url, wanted, settings, report, progress)
    with writing(path, lambda written: _read_again(written, report.format, total.total)) as file:
        if report.format == "parquet":
            _parquet.write(file, Head(tuple(wanted)), entries, total)
        else:
            _jsonl.write(file, Head(tuple(wanted)), entries, total, as_lists=as_lists)
    report.checksum = str(total.total)
    return report


def _refuse_missing(url: str | os.PathLike[str] | None, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    database = Settings.load(url, **settings).path
    if database is None or database == ":memory:":
        return
    if not os.path.exists(database):  # opening it would make it
        raise ConfigError(f"there is no database to export [{database}]")
    if os.fspath(path) != STANDARD and os.path.exists(path) and os.path.samefile(path, database):
        raise ConfigError(f"the file of an export is another one than its database [{database}]")


def _collections(url: str | os.PathLike[str] | None, chosen: Selection, settings: dict[str, Any]) -> list[Collection]:
    if not is_secured(url, settings):
        return walpool.memory.collections(url, upgrade=True, **settings)
    if chosen.tenants is None:
        raise ConfigError("row-level security shows the memories of one tenant at a time: say whose, by --tenant")
    return [
        each
        for tenant in chosen.tenants
        for each in walpool.memory.collections(url, upgrade=True, tenant=tenant, **settings)
    ]


def _entries(
    url: str | os.PathLike[str] | None,
    wanted: Sequence[Collection],
    settings: dict[str, Any],
    report: ExportReport,
    progress: Progress | None,
) -> Iterator[Entry]:
    for each in wanted:
        with open_collection(url, each, settings) as store:
            tick = Ticker(progress, name_of(each.tenant, each.collection), store.count())
            report.collections[each.tenant, each.collection] = 0
            for record in store.iterate():
                report.collections[each.tenant, each.collection] += 1
                yield Entry(each.tenant, each.collection, record)
                tick(1)
            tick.finish()


def _read_again(path: Path, format_: Format, written: Checksum) -> None:
    """Compare what a reader will find with what was to be written."""
    found = Read()
    with reading(path) as file:
        for _ in (_parquet if format_ == "parquet" else _jsonl).read(file, found):
            pass
    found.check()
    if found.total != written:
        raise IntegrityError("the file that was written does not read as what the database holds")


def _tuple(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
