"""A store of memories in a process of its own: how long until its first answer, and how much memory it takes.

Owns that process, both ends of it: `fresh` starts it, `python -m benches.memory_process` is it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benches.memory_contenders import LanceDBMemory, NumpyMatrix, WalpoolMemory, import_all
from benches.memory_data import ALL, SELECTIONS, Corpus, Synthetic
from benches.memory_sqlite import BlobsAndNumpy, SqliteVec

KINDS: dict[str, type[Any]] = {
    kind.name: kind for kind in (LanceDBMemory, NumpyMatrix, SqliteVec, BlobsAndNumpy, WalpoolMemory)
}
SEARCHES = 20  # in each selection, after the first one: whatever a store keeps, it keeps by then
LIMIT = 10  # hits
PATIENCE_S = 600


def fresh(
    contender: str,
    store: Path,
    corpus: Corpus,
    synchronous: str,
    *,
    cold: bool = False,
    cache_kib: int | None = None,
) -> dict[str, float]:
    """Open a store in a new process, search, and return what that process measured.

    Args:
        contender: whose store it is.
        store: its folder; nobody has it open.
        corpus: what it holds: a synthetic one.
        synchronous: as for every contender.
        cold: put the files out of the page cache of the system first.
        cache_kib: the page cache of each connection.
    """
    if cold:
        if not hasattr(os, "posix_fadvise"):
            return {}
        _evict(store)
    asked = {
        "contender": contender,
        "store": str(store.resolve()),
        "rows": corpus.rows,
        "dims": corpus.dims,
        "synchronous": synchronous,
        "cache_kib": cache_kib,
    }
    command = [sys.executable, "-m", "benches.memory_process", json.dumps(asked)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        raise OSError(f"{contender} failed in a process of its own: {done.stderr.strip()[-2_000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _evict(folder: Path) -> None:
    """Have the system forget what it keeps of the files; what only drops all caches would slow the neighbours too."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def main() -> None:
    """Measure what the first argument asks for, and print it as JSON."""
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))


def _measure(
    contender: str, store: str, rows: int, dims: int, synchronous: str, cache_kib: int | None
) -> dict[str, float]:
    kind = KINDS[contender]
    import_all(kind)
    opened = kind()
    questions = [opened.pack(vector) for vector in Synthetic(rows, dims).questions(1 + SEARCHES)]
    gc.collect()
    before = _memory_bytes()
    _forget_peak()
    begun = time.perf_counter()
    with opened.opened(Path(store), synchronous, cache_kib):
        opened.search(questions[0], ALL, LIMIT)
        first_s = time.perf_counter() - begun
        for question in questions[1:]:
            for selection in SELECTIONS:
                opened.search(question, selection, LIMIT)
        gc.collect()
        after, peak = _memory_bytes(), _peak_bytes()
        sketches = opened.stats().get("sketch_bytes", 0)
    return {
        "first ms": first_s * 1_000,
        "memory MB": (after - before) / 1e6,
        "peak MB": (peak - before) / 1e6,
        "sketches MB": sketches / 1e6,
    }


def _memory_bytes() -> int:
    """Return what this process has of its own in RAM: on Linux without the files that it has mapped."""
    return _status("RssAnon") or _resident_bytes()


def _peak_bytes() -> int:
    return max(_status("VmHWM") - _status("RssFile") - _status("RssShmem"), _memory_bytes())


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak of the imports stands, which is below that of most stores


def _status(name: str) -> int:
    """Return a size of `/proc/self/status` in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1_024 for line in lines if line.startswith(f"{name}:")), 0)


def _resident_bytes() -> int:
    try:
        resident: int = importlib.import_module("psutil").Process().memory_info().rss
    except ImportError:
        return 0
    return resident


if __name__ == "__main__":
    main()
