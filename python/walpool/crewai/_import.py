"""`import_crewai`: what CrewAI's own stores hold, into a walpool database, compared with it afterwards.

Owns the order of things: what was found, table by table, copied and read back; and the report. One table that cannot
be read costs that table and no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from walpool.copying import Part, Progress, RecordCopy, Report, SourceFile, Ticker
from walpool.crewai import _import_sql as sql
from walpool.crewai._database import canonical_url, file_of, is_server, open_pool, open_store, with_tenant
from walpool.crewai._import_checkpoints import Checkpoints, FolderOfCheckpoints, TableOfCheckpoints
from walpool.crewai._import_find import Found, find, places
from walpool.crewai._import_memory import LanceTable, QdrantShards, lance_tables
from walpool.crewai._import_tables import FlowStates, KickoffOutputs, LongTermMemories
from walpool.crewai._import_target import Copy, Target, is_same_file
from walpool.errors import ConfigError, Error
from walpool.memory import MemoryStore

if TYPE_CHECKING:
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

__all__ = ["CrewReport", "import_crewai"]

_WRITTEN: Final = "it was written while it was read: run the import again"


class CrewReport(Report):
    """What an import found, did, and could not do, table by table."""

    __slots__ = ()


def import_crewai(
    path: str | os.PathLike[str] | None = None,
    into: str | os.PathLike[str] | None = None,
    *,
    tenant: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> CrewReport:
    """Copy what CrewAI's own stores hold, compare both, and return what came of it.

    Found and copied: memories in LanceDB and Qdrant-Edge, flow states and what flows wait for, the outputs of the
    latest kickoff, checkpoints in SQLite files and in folders of JSON, and the long-term memories of CrewAI up to
    1.9.3. They go where `install()` looks for them, checkpoints into the same database. The sources are only read, each
    as one snapshot. It may be run again: what is there already stays as it is, an import that was interrupted goes on,
    and what has gone on in the target is left alone. A row that cannot be taken is reported, and the rest goes on.

    Args:
        path: a file of CrewAI's, or a folder, which is searched; None takes where CrewAI keeps the data of the project
            in the working directory.
        into: the database, a path or URL; None takes what `install()` takes. Made if it is not there.
        tenant: whose rows they become, on a server; see `walpool.get_pool`.
        dry_run: write nothing, and say what would be added.
        progress: called with how many rows of a table are done, copying and comparing each counted, how many there
            are, and which table it is.
        **settings: as `walpool.Pool` takes them.

    Raises:
        ConfigError: there is nothing to import, source and target are one file, a file is to have a tenant, or a
            setting is wrong.
        StorageError: the disk refused a write.
        OperationalError: the server cannot be reached, or the connection was lost; run it again.
        WriteTimeout, BusyError: somebody else was writing the target for too long; run it again.
    """
    wanted = [Path(path)] if path is not None else places()
    url = canonical_url(into)
    settings = with_tenant(url, tenant, settings)
    target = file_of(url)
    found = [entry for place in wanted for entry in find(place)]
    if path is not None and os.path.isfile(path) and is_same_file(path, target):
        raise ConfigError(f"the target of an import is another file than its source [{target}]")
    found = [entry for entry in found if not is_same_file(entry.path, target)]
    report = CrewReport(target=target, is_dry=dry_run)
    with ExitStack() as stack:
        pool: Pool | PostgresPool | None = None
        if not dry_run or is_server(url) or os.path.exists(target):
            pool = open_pool(url, settings)
            stack.callback(pool.close)
        run = _Run(stack.enter_context(closing(Target(pool, is_dry=dry_run))), report, progress)
        if pool is not None and (not dry_run or run.target.has("memory_records")):
            run.store = stack.enter_context(open_store(url, settings))
        for entry in found:
            run.take(entry)
    if not report.parts:
        places_said = ", ".join(map(str, wanted)) or "where CrewAI keeps this project's data"
        raise ConfigError(f"nothing that CrewAI stored was found [{places_said}]")
    return report


for _public in (CrewReport, import_crewai):
    _public.__module__ = "walpool.crewai"


class _Run:
    """One run of `import_crewai`."""

    def __init__(self, target: Target, report: CrewReport, progress: Progress | None) -> None:
        self.target = target
        self.store: MemoryStore | None = None
        self._report = report
        self._progress = progress

    def take(self, entry: Found) -> None:
        """Copy and compare all that lies at one place; what cannot be opened is a difference."""
        takers: dict[str, Callable[[Path], None]] = {
            "lancedb": self._lance,
            "qdrant-edge": self._qdrant,
            "sqlite": self._sqlite,
            "json checkpoints": self._folder,
        }
        try:
            takers[entry.kind](entry.path)
        except ImportError as error:
            self._refuse(entry, f"it cannot be read here: {error}")
        except (OSError, RuntimeError, ValueError, Error) as error:  # what lancedb and qdrant_edge raise, too
            if isinstance(error, Error) and not _is_of(entry, error):
                raise
            self._refuse(entry, f"it cannot be read: {' '.join(str(error).split())}")

    def _lance(self, folder: Path) -> None:
        for name in lance_tables(folder):
            self._records("LanceDB memories", folder / f"{name}.lance", LanceTable(folder, name))

    def _qdrant(self, folder: Path) -> None:
        shards = QdrantShards(folder)
        try:
            self._records("Qdrant-Edge memories", folder, shards)
        finally:
            shards.close()

    def _records(self, table: str, path: Path, source: LanceTable | QdrantShards) -> None:
        part = self._part(table, path, source.rows, superseded=source.superseded)
        tick = self._ticker(table, source.rows - source.superseded)
        copy = RecordCopy(self.store, part, tick, is_dry=self.target.is_dry)
        copy.add(source.records())
        if not self.target.is_dry:
            copy.compare(source.records())
            if part.added and self.store is not None:
                self.store.compact()
        tick.finish()

    def _sqlite(self, path: Path) -> None:
        with SourceFile(path) as source:
            if sql.OWN_MARK in source.tables:
                return  # walpool's own
            copies = list(self._copies(source))
            for copy in copies:
                self._copy(copy)
            if source.was_written and copies:
                copies[-1].part.differs(str(path), _WRITTEN)

    def _copies(self, source: SourceFile) -> Iterator[Copy]:
        if source.has_columns("flow_states", sql.FLOW_COLUMNS):
            questions = source.has_columns("pending_feedback", sql.FEEDBACK_COLUMNS)
            number = source.count("flow_states") + (source.count("pending_feedback") if questions else 0)
            yield FlowStates(source, self.target, *self._counted("flow states", source.path, number))
        for table, columns, name, kind in (
            ("latest_kickoff_task_outputs", sql.OUTPUT_COLUMNS, "kickoff outputs", KickoffOutputs),
            ("long_term_memories", sql.LONG_TERM_COLUMNS, "long-term memories", LongTermMemories),
        ):
            if source.has_columns(table, columns):
                yield kind(source, self.target, *self._counted(name, source.path, source.count(table)))
        if source.has_columns("checkpoints", sql.CHECKPOINT_COLUMNS):
            counted = self._counted("checkpoints", source.path, source.count("checkpoints"))
            yield Checkpoints(TableOfCheckpoints(source), self.target, *counted)

    def _folder(self, base: Path) -> None:
        source = FolderOfCheckpoints(base)
        counted = self._counted("JSON checkpoints", base, len(source.keys()))
        self._copy(Checkpoints(source, self.target, *counted))

    def _copy(self, copy: Copy) -> None:
        copy.add()
        if not self.target.is_dry:
            copy.compare()
        copy.finish()

    def _counted(self, table: str, path: Path, number: int) -> tuple[Part, Ticker]:
        return self._part(table, path, number), self._ticker(table, number)

    def _part(self, table: str, path: Path, number: int, superseded: int = 0) -> Part:
        part = Part(table, str(path), found=number, superseded=superseded)
        self._report.parts.append(part)
        return part

    def _ticker(self, table: str, number: int) -> Ticker:
        passes = 1 if self.target.is_dry else 2
        return Ticker(self._progress, table, passes * number)

    def _refuse(self, entry: Found, why: str) -> None:
        part = next((part for part in self._report.parts if part.source == str(entry.path)), None)
        part = part or self._part(entry.kind, entry.path, 0)
        part.differs(str(entry.path), why)


def _is_of(entry: Found, error: Error) -> bool:
    """Return whether an error of walpool's is about the source: its message names the file."""
    return f"[{entry.path}]" in str(error)
