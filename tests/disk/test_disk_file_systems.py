"""File systems where WAL is not safe: one that nobody can vouch for works, with a warning that names it.

Which name is refused, warned about or trusted is tried in src/connection/file_system.rs: no network file system can be
mounted here.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuse import NAME

import walpool


@pytest.fixture
def fuse_folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on which a FUSE file system is mounted; skip where it may not be."""
    folder = tmp_path / "mounted here"
    folder.mkdir()
    command = [sys.executable, Path(__file__).parent / "fuse.py", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        answer = server.stdout.readline().strip()
        if answer != "mounted":
            pytest.skip(f"FUSE cannot be mounted: {answer}")
        try:
            yield folder
        finally:
            server.stdin.close()
            server.wait(10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the list of mounts is Linux's")
def test_file_system_of_a_program_is_warned_about_by_name(fuse_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="walpool"), walpool.Pool(fuse_folder / "test.db") as pool:
        pool.script("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        assert pool.fetchval("SELECT a FROM t") == 1
    assert [f"lies on {NAME}," in record.getMessage() for record in caplog.records] == [True]


def test_local_disk_is_not_warned_about(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="walpool"), walpool.Pool(database) as pool:
        pool.script("CREATE TABLE t (a)")
    assert caplog.records == []
