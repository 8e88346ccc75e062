"""Servers that load the application and fork: gunicorn with --preload, Celery's prefork pool. Real ones."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from helpers import WITHIN, eventually

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

REQUESTS = 200


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@contextmanager
def running(*command: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in `folder` beside the block; it must end by itself when it is asked to."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, stdout=output, stderr=output)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@needs("gunicorn")
def test_preloaded_application_writes_from_every_worker(tmp_path: Path) -> None:
    application = """
        import os, walpool
        pool = walpool.get_pool("requests.db")
        pool.script("CREATE TABLE t (worker INTEGER, number INTEGER)")
        pool.fetch("SELECT * FROM t")

        def app(environ, start_response):
            number = int(environ["PATH_INFO"].strip("/"))
            pool.execute("INSERT INTO t VALUES (?, ?)", (os.getpid(), number))
            found = pool.fetchval("SELECT count(*) FROM t WHERE number = ?", (number,))
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(found).encode()]
    """
    (tmp_path / "application.py").write_text(textwrap.dedent(application))
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--preload", "--workers", "3", "--threads", "4", "--bind", f"127.0.0.1:{port}"]
    with running("gunicorn", *options, "application:app", folder=tmp_path):
        eventually(lambda: _answers(port))
        with ThreadPoolExecutor(8) as clients:
            assert set(clients.map(lambda number: _get(port, number), range(1, REQUESTS))) == {b"1"}
    with closing(sqlite3.connect(tmp_path / "requests.db")) as conn:
        numbers = [row[0] for row in conn.execute("SELECT number FROM t ORDER BY number")]
        workers = conn.execute("SELECT count(DISTINCT worker) FROM t").fetchone()[0]
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sorted(set(numbers)) == list(range(REQUESTS))
    assert workers > 1


def _answers(port: int) -> bool:
    try:
        return _get(port, 0) != b""
    except OSError:
        return False


def _get(port: int, number: int) -> bytes:
    with closing(HTTPConnection("127.0.0.1", port, timeout=WITHIN)) as connection:
        connection.request("GET", f"/{number}")
        return connection.getresponse().read()


@needs("celery")
def test_prefork_workers_share_the_pool_of_the_application(tmp_path: Path) -> None:
    application = """
        import os, celery, walpool
        folders = {name: "messages" for name in ("data_folder_in", "data_folder_out")}
        app = celery.Celery("application", broker="filesystem://")
        app.conf.broker_transport_options = folders | {"processed_folder": "processed", "control_folder": "control"}
        app.conf.worker_hijack_root_logger = False
        pool = walpool.get_pool("tasks.db")
        pool.script("CREATE TABLE IF NOT EXISTS t (worker INTEGER, number INTEGER)")

        @app.task
        def insert(number):
            pool.execute("INSERT INTO t VALUES (?, ?)", (os.getpid(), number))
    """
    (tmp_path / "application.py").write_text(textwrap.dedent(application))
    for folder in ("messages", "processed", "control"):
        (tmp_path / folder).mkdir()
    send = "import application; [application.insert.delay(number) for number in range(60)]; application.pool.close()"
    subprocess.run([sys.executable, "-c", send], cwd=tmp_path, check=True, timeout=WITHIN)
    options = ["worker", "--pool", "prefork", "--concurrency", "3", "--without-gossip", "--without-mingle"]
    database = tmp_path / "tasks.db"
    with running("celery", "--app", "application", *options, folder=tmp_path):
        eventually(lambda: _count(database) == 60, within=2 * WITHIN)
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("SELECT count(DISTINCT number), count(DISTINCT worker) > 1 FROM t").fetchone() == (60, 1)
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _count(database: Path) -> int:
    with closing(sqlite3.connect(database, timeout=WITHIN)) as conn:
        count: int = conn.execute("SELECT count(*) FROM t").fetchone()[0]
        return count
