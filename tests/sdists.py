"""Other projects' own tests: fetched with the source of the installed version, run by a pytest of their own.

Knows no project: each `test_upstream*` names its project, its files, and what it leaves out.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

CHECKOUT = Path(__file__).parent.parent
CACHE = CHECKOUT / ".cache"

# `pip download` of a source asks its build backend for metadata that nobody needs here, and would first install that
# backend. This one stands in its place and answers at once.
BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name, version = os.environ["SDIST_NAME"], os.environ["SDIST_VERSION"]
    home = pathlib.Path(directory) / f"{name.replace('-', '_')}-{version}.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return home.name
"""


def source_of(project: str, wanted: str | None = None) -> Path:
    """Return the folder with a project's source and tests; fetched once a checkout.

    Skips the test where it cannot be fetched.

    Args:
        project: its name on PyPI.
        wanted: which version; None is the one that is installed.
    """
    wanted = wanted or version(project)
    found = CACHE / f"{project.replace('-', '_')}-{wanted}"
    if not found.exists():
        CACHE.mkdir(exist_ok=True)
        # In the cache's own file system, so that the folder appears there at once and whole.
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name)
            _download(project, wanted, folder)
            with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
                if hasattr(tarfile, "data_filter"):
                    archive.extractall(folder, filter="data")
                else:  # a Python 3.10 without its last updates
                    archive.extractall(folder)
            try:
                (folder / found.name).rename(found)
            except OSError:  # another process was quicker
                if not found.exists():
                    raise
    return found


def _download(project: str, wanted: str, folder: Path) -> None:
    backend = folder / "backend" / "hatchling"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(BACKEND)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", project, "--no-build-isolation", "--dest", str(folder), f"{project}=={wanted}"]
    environment = {**os.environ, "PYTHONPATH": str(backend.parent), "SDIST_NAME": project, "SDIST_VERSION": wanted}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the source of {project} {wanted} cannot be fetched here: {done.stderr.strip()[-300:]}")


def run(source: Path, plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a pytest with our `plugin` in a project's source, without the project's own settings."""
    command = [sys.executable, "-m", "pytest", "-p", plugin.stem, "-c", os.devnull, "--rootdir", str(source)]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:langsmith_plugin"]
    command += ["-W", "ignore", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(plugin.parent)}
    return subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=590, check=False
    )


def outcomes(
    source: Path, plugin: Path, report: Path, files: Sequence[str], deselected: Iterable[str], *arguments: str
) -> dict[str, Counter[str]]:
    """Run test files; return, for each, how many tests passed, failed (or had an error) and were skipped.

    Args:
        source: the project's folder.
        plugin: a file of ours that pytest loads first.
        report: where pytest writes what came of it.
        files: files, and folders of files, by their paths in the source.
        deselected: tests to leave out.
        *arguments: for pytest.
    """
    left_out = [argument for name in deselected for argument in ("--deselect", name)]
    done = run(
        source, plugin, "-q", "--tb=short", "--timeout=120", f"--junit-xml={report}", *arguments, *left_out, *files
    )
    if done.returncode not in (0, 1):
        pytest.fail(f"the tests of {source.name} did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    names, found = _modules(source, files), dict[str, Counter[str]]()
    for case in ET.parse(report).iter("testcase"):
        file = next(name for name in names if f"{case.get('classname')}.".startswith(f"{name}."))
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found.setdefault(names[file], Counter())[kinds.pop() if kinds else "passed"] += 1
    if done.returncode == 1:
        print(done.stdout[-20_000:])  # noqa: T201 - shown with the tests that fail because of it
    return found


def _modules(source: Path, files: Sequence[str]) -> dict[str, str]:
    """Return the test files by the dotted names that a report gives them."""
    listed = [source / name for name in files]
    every = [found for entry in listed for found in ([entry] if entry.is_file() else sorted(entry.rglob("test_*.py")))]
    paths = [file.relative_to(source) for file in every]
    return {".".join(path.with_suffix("").parts): path.as_posix() for path in paths}


def functions(source: Path, files: Iterable[str]) -> set[str]:
    """Return the names of the test functions in files, as pytest writes them; read, since to collect is to import."""
    return {
        f"{file}::{node.name}"
        for file in set(files)
        for node in ast.parse((source / file).read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
