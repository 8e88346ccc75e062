"""Copying CrewAI's checkpoints, from SQLite files and from folders of JSON, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from walpool.copying import Part, SourceFile, Ticker, jobs
from walpool.crewai import _import_sql as sql
from walpool.crewai._import_find import CHECKPOINT_FILE
from walpool.crewai._import_target import Target
from walpool.crewai._json import decode
from walpool.crewai._sql import Statement
from walpool.types import Value

__all__ = ["Checkpoints", "FolderOfCheckpoints", "TableOfCheckpoints"]

_REQUIRED: Final = (0, 1, 3)


class Key(NamedTuple):
    """A checkpoint's name and time."""

    id: str
    created_at: str


class CheckpointSource(Protocol):
    """Where checkpoints come from."""

    def keys(self) -> Sequence[Key]:
        """Return the checkpoints, oldest first."""

    def row(self, checkpoint_id: str) -> tuple[Any, ...] | None:
        """Return id, created_at, parent_id, branch and data of a checkpoint; None if it is gone."""


class TableOfCheckpoints:
    """What `SqliteProvider` wrote: JSON as text, or in SQLite's own binary form."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source

    def keys(self) -> list[Key]:
        """Return the checkpoints, oldest first."""
        return [Key(str(name), str(at)) for name, at in self._source.rows(sql.CHECKPOINT_KEYS["sqlite"])]

    def row(self, checkpoint_id: str) -> tuple[Any, ...] | None:
        """Return one checkpoint."""
        return next(self._source.rows(sql.CHECKPOINT, checkpoint_id), None)


class FolderOfCheckpoints:
    """What `JsonProvider` wrote: a folder for each branch, a file for each checkpoint, named by its id and parent."""

    def __init__(self, base: Path) -> None:
        found = [(entry.stat().st_mtime_ns, entry) for entry in base.rglob("*.json") if entry.is_file()]
        self._files: dict[str, Path] = {}
        self._base = base
        for _, entry in sorted(found):  # by time: of two in one second the name does not say which was first
            if (named := CHECKPOINT_FILE.fullmatch(entry.name)) is not None:
                self._files[named["id"]] = entry

    def keys(self) -> list[Key]:
        """Return the checkpoints, oldest first."""
        return [Key(name, name.partition("_")[0]) for name in self._files]

    def row(self, checkpoint_id: str) -> tuple[Any, ...] | None:
        """Return one checkpoint; the data is bytes where the file is no UTF-8."""
        entry = self._files[checkpoint_id]
        named = CHECKPOINT_FILE.fullmatch(entry.name)
        try:
            content = entry.read_bytes()
        except FileNotFoundError:  # pruned meanwhile
            return None
        parent = None if named is None or named["parent"] in (None, "none") else named["parent"]
        branch = entry.parent.relative_to(self._base).as_posix()
        text = content.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
        return checkpoint_id, checkpoint_id.partition("_")[0], parent, branch, text


class Checkpoints:
    """Checkpoints on their way into walpool's table of them, each by its id."""

    def __init__(self, source: CheckpointSource, target: Target, part: Part, tick: Ticker) -> None:
        self.part = part
        self._source = source
        self._target = target
        self._tick = tick
        self._keys = source.keys()
        self._left: set[str] = set()  # what cannot be stored, and it is said why

    def add(self) -> None:
        """Store what the target lacks: what is newer than all of it above, the rest below, newest first.

        Pruning keeps the checkpoints that were stored last, and an import that was interrupted goes on downwards.
        """
        present = {str(name) for name, _ in self._target.fetch("checkpoints", sql.CHECKPOINT_KEYS)}
        newest = next((at for (at,) in self._target.fetch("checkpoints", sql.NEWEST_CHECKPOINT)), None)
        missing = [key for key in self._keys if key.id not in present]
        self.part.present = len(self._keys) - len(missing)
        self._tick(self.part.present)
        above = [key for key in missing if newest is not None and key.created_at > str(newest)]
        below = [key for key in missing if newest is None or key.created_at <= str(newest)]
        for keys, is_newest in ((reversed(below), False), (above, True)):
            for job in jobs(self._statements(keys, is_newest)):
                self._target.write(job)

    def compare(self) -> None:
        """Compare all of them with what a restore would read."""
        for key in self._keys:
            self._tick(1)
            mine = self._readable(key) if key.id not in self._left else None
            if mine is None:
                continue
            self.part.read.add_row(mine)
            found = self._target.fetch("checkpoints", sql.OWN_CHECKPOINT, (key.id,))
            for row in found:
                self.part.stored.add_row(row)
            if found != [mine]:
                self.part.differs(f"checkpoint {key.id}", "the target has it with other content, or not at all")

    def finish(self) -> None:
        """Show that it is done."""
        self._tick.finish()

    def _statements(self, keys: Any, is_newest: bool) -> Iterator[list[Statement]]:
        for key in keys:
            row = self._readable(key)
            if row is not None:
                self.part.added += 1
                yield [sql.put_checkpoint(self._target.backend, row, is_newest=is_newest)]
            self._tick(1)

    def _readable(self, key: Key) -> tuple[Value, ...] | None:
        """Return a checkpoint with its data as text; None, and it is said why, if it cannot be stored."""
        row = self._source.row(key.id) if self._target.refusal(key, ()) is None else None
        why = "it cannot be read" if row is None else self._target.refusal(row[:4], _REQUIRED)
        if row is not None and why is None:
            data = self._text(row[4])
            why = self._target.refusal((data,), ())
            if data is not None and why is None:
                return (*row[:4], data)
            why = why or "its data is no JSON: was it cut off while it was written?"
        self._left.add(key.id)
        self.part.differs(f"checkpoint {key.id!r}", str(why))
        return None

    def _text(self, data: Any) -> str | None:
        if isinstance(data, bytes):
            data = self._target.as_json(data)
        try:
            decode(data)
        except (TypeError, ValueError):
            return None
        return str(data)
