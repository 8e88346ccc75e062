"""Damaged files: a pool on one never crashes or hangs, and tells of damage by a class that fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from damage import PAGE, PAYLOAD, make_database

import walpool
from tests.torture import Torture
from walpool import errors

HERE = Path(__file__).parent

# What damage may be called besides CorruptError, by SQLite's code: each is true of the file as it now reads.
OTHER_NAMES = {
    "ProgrammingError": ("SQLITE_ERROR",),  # a name in the schema has changed, or the file is cut to an empty one
    "NotSupportedError": ("SQLITE_ERROR", None),  # the number of a format to come; another journal mode
    "DataError": (None, "SQLITE_TOOBIG"),  # text that is no UTF-8; a length that nothing has
    "IntegrityError": ("SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"),
    "StorageError": ("SQLITE_READONLY", "SQLITE_FULL"),  # a version that may only be read; a page number past the last
}


def attempts(folder: Path, kind: str, size: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Use so many damaged files in another process, and return what each was and which errors came of it."""
    command = [sys.executable, HERE / "damage.py", folder, kind, str(size)]
    path = ":".join(["", *sys.path])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0, f"died of: {lines[-1]}"
    return list(zip(lines[::2], map(json.loads, lines[1::2]), strict=True))


def is_well_told(told: dict[str, Any]) -> bool:
    if PAYLOAD in told["message"] or told["outcome"] not in ("not_applied", "unknown"):
        return False
    is_named = told["kind"] == "CorruptError" or told["code"] in OTHER_NAMES.get(told["kind"], ())
    # Reading a constant touches no damaged page that opening has not met.
    return is_named and (told["what"] != "still" or told["kind"] == "CorruptError")


@pytest.mark.torture
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("kind", "short", "full"), [("flips", 150, 6_000), ("cuts", 8, 1)])
def test_damaged_file_is_told_and_neither_crashes_nor_hangs(
    folder: Path, torture: Torture, kind: str, short: int, full: int
) -> None:
    tried = attempts(folder, kind, torture.size(short, full))
    names = Counter(told["kind"] for _, errors in tried for told in errors)
    wrong = [f"{name}: {told}" for name, errors in tried for told in errors if not is_well_told(told)]
    torture.tell(
        f"damaged files ({kind})", tried=len(tried), unit="files", lost=0, note=f"{names.total():,} errors told"
    )
    assert not wrong, "\n".join(wrong[:20])
    assert names["CorruptError"] > len(tried) / 10


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_damaged_wal_is_cut_off_where_it_is_damaged(folder: Path, torture: Torture) -> None:
    # Each frame's checksum counts those before it: what stands behind a damaged one has not been committed.
    tried = attempts(folder, "wal", torture.size(60, 2_000))
    torture.tell("damaged WALs", tried=len(tried), unit="files", lost=0)
    assert [told for _, told in tried if told] == []


def test_check_finds_damage_and_says_where_it_cannot_go_on(database: Path) -> None:
    whole = bytearray(make_database(database))
    with walpool.Pool(database) as pool:
        root = pool.fetchval("SELECT rootpage FROM sqlite_schema WHERE name = 'by_word'")
    page = (root - 1) * PAGE
    whole[page + 20 : page + 200] = bytes(180)
    database.write_bytes(whole)
    with walpool.Pool(database) as pool:
        assert pool.check() != []
        assert pool.fetchval("SELECT count(*) FROM pairs") == 80  # what is not damaged can be read
    whole[page : page + PAGE] = bytes(PAGE)
    database.write_bytes(whole)
    with walpool.Pool(database) as pool, pytest.raises(errors.CorruptError) as caught:
        pool.check()
    assert caught.value.sqlite_errorname == "SQLITE_CORRUPT"


def test_format_of_a_newer_sqlite_is_not_supported(database: Path) -> None:
    whole = bytearray(make_database(database))
    whole[47] = 9  # the schema's format; 4 is the newest. https://www.sqlite.org/fileformat2.html#schemaformat
    database.write_bytes(whole)
    with pytest.raises(errors.NotSupportedError, match="unsupported file format"):
        walpool.Pool(database)
