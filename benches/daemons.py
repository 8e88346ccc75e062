"""A server program of somebody else's, for as long as this process: its files, its user, its end.

Owns where its files lie, as whom it runs, and that neither it nor they outlive this process, even where that is killed.
Must not know which program it is.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

USER = "nobody"  # as whom a server runs that refuses to run as root
WITHIN_S = 30.0  # in which a server is up or down, on a machine that has much else to do

# Reads the server's process id whenever it changes. Its input ends when we do, however that came about; then it ends
# the server and removes the folders. Linux's "signal on the parent's death" comes when the thread that started the
# server ends, and removes nothing.
_WATCHER = """
while read -r line; do pid=$line; done
[ -z "$pid" ] || kill -s "$0" "$pid"
n=0
until rm -rf "$@" || [ $n -ge 100 ]; do sleep 0.1; n=$((n + 1)); done  # fails while a server that dies adds a file
"""


class Daemon:
    """The folders of one server, and the server in them while it runs.

    Attributes:
        home: a new folder for its data, the server's own.
        sockets: a new folder of a short path: a socket's path has a hundred characters at most.
    """

    def __init__(self, near: Path, at_once: signal.Signals) -> None:
        """Make the folders, `home` on the file system of `near`; the signal `at_once` ends the server with no wait."""
        self.home = Path(tempfile.mkdtemp(prefix="walpool-server-", dir=reachable(near)))
        self.sockets = Path(tempfile.mkdtemp(prefix="walpool-", dir=reachable(Path(tempfile.gettempdir()))))
        self._at_once = at_once
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        folders = [str(self.home), str(self.sockets)]
        if is_root():
            for folder in folders:
                shutil.chown(folder, USER)
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, at_once.name.removeprefix("SIG"), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # what ends us, an interrupt from a terminal say, must not end it first
        )
        self._is_removed = False
        atexit.register(self.remove)

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return None if self._process is None else self._process.pid

    def write(self, name: str, text: str) -> Path:
        """Write a file in `home` that the server's user, and nobody else but root, can read; return its path."""
        path = self.home / name
        path.write_text(text)
        path.chmod(0o600)
        if is_root():
            shutil.chown(path, USER)
        return path

    def folder(self, name: str) -> Path:
        """Make a folder in `home`, the server's user's like all in it; return its path."""
        path = self.home / name
        path.mkdir(mode=0o700)
        if is_root():
            shutil.chown(path, USER)
        return path

    def run(self, *command: str | Path) -> None:
        """Run a program as the server's user to its end.

        Raises:
            OSError: it cannot be run, or it failed; with the end of what it said.
        """
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            check=False,
            timeout=2 * WITHIN_S,
            **_as_user(),
        )
        if done.returncode:
            msg = f"{Path(command[0]).name} failed: {_end_of(done.stdout)}"
            raise OSError(msg)

    def start(self, command: Sequence[str | Path], is_ready: Callable[[], bool]) -> None:
        """Start the server and return once `is_ready()` holds.

        Raises:
            OSError: it cannot be run, or it ended, or it is not ready in time; with the end of its log.
        """
        log = self.home / "log"
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **_as_user(),
            )
        self._tell_watcher()
        deadline = time.monotonic() + WITHIN_S
        while not is_ready():
            has_ended = self._process.poll() is not None
            if has_ended or time.monotonic() > deadline:
                self.stop()
                what = "ended at its start" if has_ended else f"is not ready after {WITHIN_S:g} s"
                msg = f"{Path(command[0]).name} {what}: {_end_of(log.read_bytes())}"
                raise OSError(msg)
            time.sleep(0.005)

    def stop(self, how: signal.Signals | None = None) -> None:
        """Send the server a signal, the one that ends it at once if none is given, and wait for its end."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        if process.poll() is None:
            process.send_signal(how or self._at_once)
        process.wait(WITHIN_S)
        self._process = None
        self._tell_watcher()

    def remove(self) -> None:
        """Stop the server and remove its folders. Safe to call twice; in a forked child it does nothing."""
        if self._is_removed or os.getpid() != self._owner:
            return
        self._is_removed = True
        atexit.unregister(self.remove)
        self.stop()
        self._watcher.communicate()  # ends its input; it removes the folders

    def _tell_watcher(self) -> None:
        assert self._watcher.stdin is not None
        self._watcher.stdin.write(f"{self.pid or ''}\n".encode())
        self._watcher.stdin.flush()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on.

    Not one of those that the system gives to outgoing connections (from 32768 on Linux): somebody's might sit on it
    when a server that was stopped comes back.
    """
    for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = "a hundred ports of 127.0.0.1 were tried, all are taken"
    raise OSError(msg)


def reachable(folder: Path) -> Path:
    """Return the folder itself, or its nearest ancestor that the server's user can get to."""
    folder = folder.resolve()
    if not is_root():
        return folder
    closed = [one for one in (folder, *folder.parents) if not one.stat().st_mode & stat.S_IXOTH]
    return closed[-1].parent if closed else folder


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _as_user() -> dict[str, Any]:
    if not is_root():
        return {}
    import pwd

    return {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []}


def _end_of(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-500:]
