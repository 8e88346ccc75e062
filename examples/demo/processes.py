"""Starting the demo's processes and reading what they say; each in a storage folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1]


class ProcessError(Exception):
    """A process of the demo failed; the message says which, and ends with what it printed last."""


def messages(module: str, *arguments: object, storage: Path, log: Path) -> Iterator[dict[str, Any]]:
    """Run a module of the demo's and yield each line of JSON that it prints, as it comes.

    Args:
        module: `worker`, `audit` or `recall`.
        *arguments: given to it as text.
        storage: its `CREWAI_STORAGE_DIR`, absolute, or CrewAI would look for SQLite and LanceDB in different places.
        log: what it and its libraries print besides is appended to this file.

    Raises:
        ProcessError: it ended with an error.
    """
    command = [sys.executable, "-m", f"demo.{module}", *map(str, arguments)]
    with log.open("a") as errors:
        process = subprocess.Popen(command, env=_environment(storage), stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in process.stdout:
                    yield json.loads(line)
        except BaseException:  # Ctrl-C, or the reader gave up: nothing goes on behind its back
            process.kill()
            raise
        finally:
            process.wait()
    if process.returncode:
        last = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-20:])
        raise ProcessError(f"demo.{module} ended with {process.returncode}; the end of {log}:\n{last}")


def last_message(module: str, *arguments: object, storage: Path, log: Path) -> dict[str, Any]:
    """Run a module of the demo's and return the last line of JSON that it prints; see `messages`."""
    *_, last = messages(module, *arguments, storage=storage, log=log)
    return last


def _environment(storage: Path) -> dict[str, str]:
    """Return this process's environment without what would make one side store elsewhere or otherwise."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WALPOOL_", "CREWAI_")) and name != "REDIS_URL"
    }
    path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    return kept | {"CREWAI_STORAGE_DIR": str(storage), "PYTHONPATH": path}
