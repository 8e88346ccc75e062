"""Layers between a process and the system, in C, loaded by LD_PRELOAD: machines that cannot be had otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent


def environment_with(layer: str, folder: Path) -> dict[str, str]:
    """Return an environment in which processes start with the layer `layer`.c, compiled into `folder`."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("layers need Linux and a C compiler")
    built = folder / f"{layer}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, HOME / f"{layer}.c"], check=True)
    return {**os.environ, "LD_PRELOAD": str(built)}
