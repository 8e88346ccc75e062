"""`Cleaner`: what happens to rows that the target cannot take. They fail, go into a file, or are replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from walpool.errors import ConfigError, DataError
from walpool.migrating._barred import barred, let_in
from walpool.migrating._faults import as_json, fault, mended, shown_key
from walpool.migrating._long_keys import cut, too_long
from walpool.migrating.plan import Fault, Table

if TYPE_CHECKING:
    from walpool.types import Row

__all__ = ["Cleaner", "OnBad", "faults_of", "refuse_unwritable"]

OnBad: TypeAlias = Literal["fail", "skip", "replace"]


class Cleaner:
    """Makes rows such that the target takes them, always in the same way.

    Args:
        on_bad: `fail` raises, `skip` leaves rows out, `replace` changes their values.
        path: the file for rows that are left out, a line of JSON for each; None writes none.
    """

    def __init__(self, on_bad: OnBad, path: str | os.PathLike[str] | None = None) -> None:
        self.on_bad = on_bad
        self._path = path
        self.skipped = 0
        self.replaced = 0

    def kept(self, table: Table, rows: Sequence[Row], *, tells: bool = False) -> list[Row]:
        """Return the rows that the target is to have.

        Args:
            table: whose.
            rows: as they were read.
            tells: whether this is the copy, so that what is left out is counted and written into the file.

        Raises:
            DataError: a row is bad, and bad rows fail.
        """
        found: list[Row] = []
        lines: list[str] = []
        for row in rows:
            faulty = faults_of(table, row)
            if not faulty:
                found.append(row)
            elif self.on_bad == "replace":
                found.append(_replaced(table, row))
                self.replaced += tells
            elif self.on_bad == "skip":
                self.skipped += tells
                lines.append(_line(table, row, faulty))
            else:
                first = faulty[0]
                raise DataError(f"{first.table}.{first.column}: {first.why}; --on-bad says what to do with such rows")
        if tells and lines and self._path is not None:
            _append(self._path, lines)
        return found


def refuse_unwritable(path: str | os.PathLike[str] | None) -> None:
    """Raise `ConfigError` where the file for rows that are left out cannot be written; leaves none where none was."""
    if path is None:
        return
    is_there = os.path.lexists(path)
    try:
        _append(path, ())
        if not is_there:
            os.unlink(path)
    except OSError as error:
        raise ConfigError(f"the file for rows that are left out: {error.strerror} [{os.fspath(path)}]") from None


def faults_of(table: Table, row: Row, number: int | None = None) -> list[Fault]:
    """Return what is wrong with a row.

    Args:
        table: whose.
        row: its values.
        number: which one it is, where the table has no key.
    """
    faulty = [
        (column.name, why)
        for column, value in zip(table.columns, row, strict=True)
        if (why := fault(column, value)) is not None
    ]
    if not faulty and table.barred:
        faulty = barred(table, row)
    if not faulty and table.long:
        faulty = too_long(table, row)
    if not faulty:
        return []
    return [Fault(table.name, name, shown_key(table, row, number), why) for name, why in faulty]


def _replaced(table: Table, row: Row) -> Row:
    fit = tuple(mended(column, value) for column, value in zip(table.columns, row, strict=True))
    return cut(table, let_in(table, fit))


def _line(table: Table, row: Row, faulty: Sequence[Fault]) -> str:
    values = {column.name: as_json(value) for column, value in zip(table.columns, row, strict=True)}
    why = {one.column: one.why for one in faulty}
    return json.dumps({"table": table.name, "why": why, "row": values})


def _append(path: str | os.PathLike[str], lines: Sequence[str]) -> None:
    """Write lines, on the disk before the batch that they were left out of is committed."""
    with open(path, "a", encoding="utf-8", opener=_private) as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
