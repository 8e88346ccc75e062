"""What a pool may have left behind in this process: threads of the engine, descriptors on the file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

OWN_THREADS = ("walpool", "r2d2")  # names of the engine's threads; the kernel keeps 15 characters of a name
THREADS_END_WITHIN = 2.0  # seconds; join() returns a moment before the kernel takes the thread out of /proc


def engine_threads() -> dict[int, str]:
    """Return the running threads that bear a name of the engine's, by id; empty where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return {}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:  # the thread ended between the listing and the reading
            continue
        if name.startswith(OWN_THREADS):
            found[int(task.name)] = name
    return found


def threads_left_since(before: dict[int, str]) -> dict[int, str]:
    """Return the engine's threads that are still there and were not in `before`, once they have had time to go."""
    deadline = time.monotonic() + THREADS_END_WITHIN
    while True:
        left = {thread: name for thread, name in engine_threads().items() if thread not in before}
        if not left or time.monotonic() > deadline:
            return left
        os.sched_yield()


def open_descriptors(database: Path) -> list[str]:
    """Return what this process holds open of `database` and of the files beside it; empty where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return []
    ours = {str(database.resolve()) + suffix for suffix in ("", "-wal", "-shm", "-journal")}
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()).removesuffix(" (deleted)"))
        except OSError:  # the descriptor of the listing itself
            continue
    return sorted(target for target in targets if target in ours)
