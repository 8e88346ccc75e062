"""What the figures were measured on: commit, versions, file system, cores, and the disk's own fsync time."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROBES = 200
PROBE_BYTES = 4_096  # a page


def describe(folder: Path, fsync_ms: float) -> dict[str, str]:
    """Return the header of a report: what stands with every figure in it.

    Args:
        folder: where the databases lie.
        fsync_ms: what `fsync_ms` measured there.
    """
    return {
        "commit": _commit(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {_gil()}",
        "SQLite": ", ".join(f"{version} ({whose})" for whose, version in _sqlite_versions().items()),
        "NumPy": _numpy(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": str(_cores()),
        "file system": f"{_file_system(folder)} ({folder})",
        "fdatasync": f"{fsync_ms:.3f} ms (median of {PROBES} appends of {PROBE_BYTES} bytes)",
    }


def measure_fsync_ms(folder: Path, probes: int = PROBES) -> float:
    """Return the median time of an append of a page followed by fdatasync, in milliseconds."""
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    path = folder / "fsync-probe"
    with open(path, "wb", buffering=0) as file:
        for _ in range(probes):
            file.write(bytes(PROBE_BYTES))
            begun = time.perf_counter_ns()
            sync(file.fileno())
            times.append(time.perf_counter_ns() - begun)
    path.unlink()
    return statistics.median(times) / 1e6


@dataclass
class OthersCpu:
    """What other processes used of the machine."""

    cores: float = math.nan  # of CPU time, on average; not known without psutil


@contextmanager
def others_cpu() -> Iterator[OthersCpu]:
    """Yield what, after the block, says how many cores other processes used: noise that a reader should know of."""
    others = OthersCpu()
    begun = _cpu_times()
    yield others
    elapsed, everybody, ours = (after - before for after, before in zip(_cpu_times(), begun, strict=True))
    others.cores = max(0.0, everybody - ours) / elapsed


def _cpu_times() -> tuple[float, float, float]:
    """Return the clock, and the CPU seconds that all processes together and this one have used so far."""
    ours = time.process_time()
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return time.perf_counter(), math.nan, ours
    times = psutil.cpu_times()
    return time.perf_counter(), sum(times) - times.idle - getattr(times, "iowait", 0.0), ours


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git, or no checkout)"


def _gil() -> str:
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    return f"{'with' if enabled else 'without'} the GIL, switch interval {sys.getswitchinterval() * 1000:g} ms"


def _sqlite_versions() -> dict[str, str]:
    versions = {"sqlite3": sqlite3.sqlite_version}
    try:
        import apsw

        versions["apsw"] = apsw.sqlite_lib_version()
    except ImportError:
        versions["apsw"] = "none"
    try:
        import walpool

        with walpool.Pool(":memory:") as pool:
            versions["walpool"] = str(pool.fetchval("SELECT sqlite_version()"))
    except ImportError:
        versions["walpool"] = "none"
    return versions


def _numpy() -> str:
    """Return NumPy's version and which of OpenBLAS's kernels runs: a product of matrices is as fast as that."""
    try:
        import numpy as np
    except ImportError:
        return "none"
    try:
        loaded = Path("/proc/self/maps").read_text().split()
    except OSError:
        loaded = []
    for library in {path for path in loaded if "openblas" in path}:
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            corename = getattr(ctypes.CDLL(library), name, None)
            if corename is not None:
                corename.restype = ctypes.c_char_p
                return f"{np.__version__}, OpenBLAS for {corename().decode()}"
    return f"{np.__version__}"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`: the mount with the longest path above it."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return "unknown (psutil is not installed)"
    resolved = folder.resolve()
    above = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if Path(mount.mountpoint) == resolved or Path(mount.mountpoint) in resolved.parents
    ]
    return max(above, key=lambda mount: len(mount.mountpoint)).fstype if above else "unknown"
