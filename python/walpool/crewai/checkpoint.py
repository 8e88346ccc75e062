"""CrewAI's checkpoint provider: checkpoints in CrewAI's own table, in the file that the user named, through walpool."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import uuid
from collections import OrderedDict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai.state.provider.sqlite_provider import SqliteProvider
from pydantic import PrivateAttr

from walpool.crewai import _sql
from walpool.crewai._database import Reopening, canonical_url, file_of, is_server, open_checkpoints, settings_for

if TYPE_CHECKING:
    from walpool.pool import Pool
    from walpool.postgres import PostgresPool

__all__ = ["CheckpointFiles", "WalpoolCheckpointProvider", "is_checkpoint_location"]

_MAX_OPEN: Final = 8  # files; each costs a few connections, and a process rarely writes checkpoints to more at once
_SUFFIX: Final = ".db"  # CrewAI appends it to what looks like no file's name: to a server's URL too
_LOCATION: Final = re.compile(r".+#\d{8}T\d{6}_[0-9a-f]{8}", re.DOTALL)


class CheckpointFiles:
    """The checkpoint files of this process that are open, the ones used last; the others are closed.

    Args:
        **settings: as `walpool.get_pool` takes them, with `tenant` on a server.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards `_open`; not held while a file is opened, read or written
        self._open: OrderedDict[str, Reopening[Pool | PostgresPool]] = (
            OrderedDict()
        )  # by URL, the one used last at the end

    def at(self, location: str) -> Reopening[Pool | PostgresPool]:
        """Return the handle on the file at `location`, or on a server's database; it opens at its first use."""
        if is_server(location):
            location = location.removesuffix(_SUFFIX)
        url = canonical_url(location)
        with self._lock:
            handle = self._open.pop(url, None)
            if handle is None:
                handle = Reopening(file_of(url), partial(open_checkpoints, url, settings_for(url, self._settings)))
            self._open[url] = handle
            evicted = self._open.popitem(last=False)[1] if len(self._open) > _MAX_OPEN else None
        if evicted is not None:
            evicted.close()  # whoever still uses it opens it again, and its last user closes it
        return handle

    def close(self) -> None:
        """Close all of them; the next use opens one again."""
        with self._lock:
            handles = list(self._open.values())
            self._open.clear()
        for handle in handles:
            handle.close()

    # A provider is copied with the crew that holds it, and a copy writes to the same files.

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckpointFiles:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(CheckpointFiles, **self._settings), ()


_shared = CheckpointFiles()  # of providers that were given none; the installation's, where there is one (`_seams`)


class WalpoolCheckpointProvider(SqliteProvider):
    """A checkpoint provider for `CheckpointConfig(provider=...)`; what `SqliteProvider` is, on walpool.

    A subclass of it with its `provider_type`, since CrewAI accepts no other class. Works on every SQLite that Python
    comes with, where CrewAI's own needs 3.45 to write. On a server it keeps to the rows of the tenant that walpool is
    installed for at the time.
    """

    _files: CheckpointFiles | None = PrivateAttr(default=None)

    @classmethod
    def on(cls, files: CheckpointFiles) -> WalpoolCheckpointProvider:
        """Return a provider that opens its files through `files`."""
        provider = cls()
        provider._files = files
        return provider

    def _at(self, location: str) -> Reopening[Pool | PostgresPool]:
        return (self._files or _shared).at(location)

    def checkpoint(self, data: str, location: str, *, parent_id: str | None = None, branch: str = "main") -> str:
        """Store a checkpoint in the file at `location`, durable when it returns; return `"<location>#<id>"`."""
        created_at = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        checkpoint_id = f"{created_at}_{uuid.uuid4().hex[:8]}"
        row = (checkpoint_id, created_at, parent_id, branch, data)
        self._at(location).use(lambda pool: pool.execute(*_sql.put_checkpoint(pool.backend, *row)))
        # What is returned goes into events and logs.
        return f"{canonical_url(location) if is_server(location) else location}#{checkpoint_id}"

    async def acheckpoint(self, data: str, location: str, *, parent_id: str | None = None, branch: str = "main") -> str:
        """Do what `checkpoint` does without blocking the loop."""
        return await asyncio.to_thread(self.checkpoint, data, location, parent_id=parent_id, branch=branch)

    def prune(self, location: str, max_keep: int, *, branch: str = "main") -> int:
        """Delete all checkpoints of a branch but the newest `max_keep`; return how many went."""
        if not is_server(location) and not os.path.exists(location):
            return 0
        pruned = self._at(location).use(
            lambda pool: pool.execute(*_sql.prune_checkpoints(pool.backend, branch, max_keep))
        )
        return pruned.rowcount

    def from_checkpoint(self, location: str) -> str:
        """Return the JSON of a checkpoint, whoever wrote it.

        Raises:
            ValueError: there is no checkpoint with this id, or no such file.
        """
        path, _, checkpoint_id = location.rpartition("#")
        if not is_server(path) and not Path(path).is_file():  # opening it would make it
            raise ValueError(f"Checkpoint not found: {location}")
        data = self._at(path).use(lambda pool: pool.fetchval(*_sql.load_checkpoint(pool.backend, checkpoint_id)))
        if data is None:
            raise ValueError(f"Checkpoint not found: {checkpoint_id}")
        return str(data)

    async def afrom_checkpoint(self, location: str) -> str:
        """Do what `from_checkpoint` does without blocking the loop."""
        return await asyncio.to_thread(self.from_checkpoint, location)


WalpoolCheckpointProvider.__module__ = "walpool.crewai"


def is_checkpoint_location(location: str) -> bool:
    """Return whether `location` has the form `<file>#<checkpoint id>`, which only SQLite checkpoints have."""
    return _LOCATION.fullmatch(location) is not None
