"""Profiles: where the time of one more run goes, by py-spy, Python and native frames of every thread together."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_RATE = 100  # samples a second; each stops the process while its native stacks are walked


@contextlib.contextmanager
def flame_graph(path: Path) -> Iterator[None]:
    """Write a flame graph (SVG) of this process while the block runs.

    Raises:
        FileNotFoundError: py-spy is not on the PATH nor beside this Python.
    """
    command = [_py_spy(), "record", "--native", "--rate", str(_RATE), "--pid", str(os.getpid())]
    path.parent.mkdir(parents=True, exist_ok=True)
    recorder = subprocess.Popen([*command, "--output", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)  # it writes the file on this
        _, errors = recorder.communicate(timeout=120)
    if recorder.returncode != 0:
        raise RuntimeError(f"py-spy failed: {errors.decode(errors='replace').strip()}")


def _py_spy() -> str:
    found = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise FileNotFoundError("py-spy is not installed: pip install py-spy")
    return found
