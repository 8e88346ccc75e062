"""Files of memories: which format, and how they are opened, written whole or not at all, and read more than once."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

from walpool.errors import ConfigError

__all__ = ["STANDARD", "Format", "format_of", "reading", "writing"]

Format: TypeAlias = Literal["jsonl", "parquet"]
"""How a file of memories is written."""

STANDARD: Final = "-"
"""Stands for standard input or output."""

_SUFFIXES: Final[dict[str, Format]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def format_of(path: str | os.PathLike[str], given: Format | None) -> Format:
    """Return the format of a file: what was given, or what its name says.

    Raises:
        ConfigError: its name says nothing, or a Parquet file is to go where it cannot.
    """
    name = os.fspath(path)
    found = given or ("jsonl" if name == STANDARD else _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix))
    if found is None:
        raise ConfigError(f"the name of a file of memories ends in .jsonl, .jsonl.gz or .parquet [{name}]")
    if found == "parquet" and name.endswith(".gz"):
        raise ConfigError(f"a Parquet file is compressed inside: it needs no .gz [{name}]")
    return found


@contextmanager
def writing(path: str | os.PathLike[str], check: Callable[[Path], None]) -> Iterator[IO[bytes]]:
    """Yield a file that appears under its name, whole and on the disk, when the block ends; not if anything raises.

    With a name in `.gz` it is compressed. Standard output is written as it comes, and cannot be checked.

    Args:
        path: the file.
        check: called with the path of what was written, before it takes its name.
    """
    name = os.fspath(path)
    if name == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(name)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if name.endswith(".gz"):
                # No name and no time inside: the same records make the same file.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    yield packed  # type: ignore[misc] # it has what is used of IO
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        check(Path(temporary))
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file that can be read from its beginning again; standard input is kept in a temporary file for that.

    What is compressed with gzip is unpacked, whatever it is called.
    """
    with _raw(path) as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if is_packed:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


@contextmanager
def _raw(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    if os.fspath(path) != STANDARD:
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.seek(0)
        yield kept


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # which has no handle on a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
