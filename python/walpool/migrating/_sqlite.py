"""`SqliteSide`: the SQLite file of a migration, read and written. Knows no other side and no order of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from walpool.errors import DataError
from walpool.migrating import _sqlite_sql as sql
from walpool.migrating._faults import Garbled
from walpool.migrating.plan import Column, Index, Table
from walpool.pool import Pool
from walpool.postgres.binary import Form, Unfit
from walpool.postgres.spelling.arrays import has_bounds

if TYPE_CHECKING:
    from walpool.migrating.sets import Part
    from walpool.pool import Transaction
    from walpool.types import Row

__all__ = ["SqliteSide"]

_READ, _WRITTEN = 0, 1
_ODD: Final[dict[Form, Callable[[Any], bool]]] = {Form.DOUBLE: math.isnan, Form.ARRAY: has_bounds}
"""What a file would not give back, though it comes from a server."""

HELD: Final = 86_400.0
"""Seconds that a transaction of a migration may take: the source stands still as long as it is compared."""


class SqliteSide:
    """A file by walpool's own pool; by one thread.

    Args:
        path: of the file.
    """

    backend: Final = "sqlite"

    def __init__(self, path: str) -> None:
        # Without foreign keys: tables are filled in any order, and what refers to nothing is looked for at the end.
        # A retired file too is written here: as the target of the way back, and locked as a source that is live.
        self._pool = Pool(path, transaction_timeout=HELD, slow_threshold=HELD, foreign_keys=False, write_retired=True)
        self._tx: Transaction | None = None
        self.name = self._pool.path

    @property
    def address(self) -> str:
        """By which another pool opens the file beside this one: with its settings, whatever the environment says."""
        given = {
            row.name: row.text for row in self._pool.settings.explain() if row.name in self._pool.settings.explicit
        }
        return f"walpool://{quote(self._pool.path)}?{urlencode({k: v for k, v in given.items() if k != 'url'})}"

    @property
    def pool(self) -> Pool:
        """The pool on the file."""
        return self._pool

    def close(self) -> None:
        """Close the file."""
        self._pool.close()

    # Statements.

    def fetch(self, query: str, params: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query, in the open transaction if there is one."""
        return (self._tx or self._pool).fetch(query, params)

    def execute(self, statement: str, params: Sequence[Any] = ()) -> None:
        """Run a statement, in the open transaction if there is one."""
        (self._tx or self._pool).execute(statement, params)

    @contextmanager
    def transaction(self, *, waits_for_disk: bool = True) -> Iterator[None]:
        """Run the block's statements in one transaction; inside another one it is the same."""
        if self._tx is not None:
            yield
            return
        with self._pool.transaction() as tx:
            self._tx = tx
            try:
                yield
            finally:
                self._tx = None

    @contextmanager
    def frozen(self, tables: Sequence[Table]) -> Iterator[None]:
        """Keep everybody else from writing."""
        with self.transaction():
            yield

    # What there is.

    def names(self) -> set[str]:
        """Return the names of the tables and views that there are."""
        return {name for (name,) in self.fetch(sql.NAMES)}

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.fetch(sql.count(table))[0][0])

    def figures(self, part: Part) -> tuple[int, int]:
        """Return how many rows there are of a part of a set, and how many bytes."""
        rows, length = self.fetch(sql.figures(part.columns, part.relation(self.backend)))[0]
        return int(rows), int(length)

    def has_rows(self, table: Table) -> bool:
        """Return whether a table has rows."""
        return bool(self.fetch(sql.any_row(sql.relation(table))))

    def orphans(self) -> list[str]:
        """Return a sentence for each table with rows that refer to none."""
        return [f"{table}: {number} rows refer to rows that there are not" for table, number in self.fetch(sql.ORPHANS)]

    def has_odd(self, table: Table, column: Column) -> bool:
        """Return True: a column may hold anything."""
        return True

    def has_false_json(self, table: Table, column: Column) -> bool:
        """Return whether a column of JSON has texts that are none."""
        return bool(self.fetch(sql.false_json(table.name, column.name)))

    # Rows.

    def page(self, table: Table, after: Row | None, upto: Row | None = None, limit: int | None = None) -> list[Row]:
        """Return the rows after one key and up to another in the order of keys, `limit` at most.

        Where nothing orders them, rows have their number at their end. A text that is no UTF-8 comes as `Garbled`.
        """
        try:
            found = self.fetch(*sql.page(table, after, upto, limit, raw=False))
        except DataError:
            raw = self.fetch(*sql.page(table, after, upto, limit, raw=True))
            found = [_decoded(row, len(table.columns)) for row in raw]
        return _coded(table, found, _READ)

    def pages(self, table: Table) -> Iterator[list[Row]]:
        """Yield all rows, page by page; each page is of a snapshot of its own."""
        after: Row | None = None
        width = len(table.columns)
        has_order = bool(table.order(self.backend))
        while rows := self.page(table, after, limit=table.page):
            after = table.place_of(rows[-1], self.backend) if has_order else rows[-1][width:]
            yield rows if has_order else [row[:width] for row in rows]

    def boundaries(self, table: Table, size: int) -> list[Row]:
        """Return every key at which `size` rows more end, in the order of keys."""
        found: list[Row] = []
        after: Row | None = None
        while rows := self.fetch(*sql.key_after(table, after, size)):
            after = rows[0]
            found.append(rows[0])
        return found

    def by_keys(self, table: Table, keys: Sequence[Row]) -> list[Row]:
        """Return the rows of these keys; fewer than keys, where some are not there."""
        found: list[Row] = []
        query = sql.by_key(table)
        for key in keys:
            found += self.fetch(query, key)
        return _coded(table, found, _READ)

    # Writing.

    def create(self, tables: Sequence[Table]) -> None:
        """Make tables."""
        there = {table.name for table in tables} | self.names()
        for table in tables:
            self.execute(sql.create(table, there))

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows that are not there.

        Raises:
            Unfit: a value that SQLite would not give back.
        """
        self._write(table, sql.insert(table, replaces=False), rows)

    def replace(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows in place of those that have their keys."""
        self._write(table, sql.insert(table, replaces=True), rows)

    def delete(self, table: Table, keys: Sequence[Row]) -> None:
        """Delete the rows of these keys."""
        if self._tx is not None:
            self._tx.executemany(sql.delete(table), keys)

    def clear(self, table: Table) -> None:
        """Delete all rows."""
        self.execute(sql.clear(table))

    def defer(self) -> None:
        """Do nothing: foreign keys are not looked at here."""

    def finish(self, table: Table) -> None:
        """Make the indexes of a table, or make a part of a set whole."""
        for statement in table.part.sqlite.finish if table.part is not None else ():
            self.execute(statement)
        taken = {name for (name,) in self.fetch("SELECT name FROM sqlite_schema")}
        for index in table.indexes:
            self.execute(sql.create_index(table, index, _free(index, table, taken)))

    def relate(self, tables: Sequence[Table]) -> list[str]:
        """Look at the foreign keys, which were made with the tables, and return what is wrong with them."""
        return self.orphans()

    def _write(self, table: Table, statement: str, rows: Sequence[Row]) -> None:
        for place, column in enumerate(table.columns):
            is_odd = _ODD.get(column.form)
            if is_odd is not None and any(row[place] is not None and is_odd(row[place]) for row in rows):
                raise Unfit(place)
        if self._tx is None:
            raise AssertionError("rows are written in a transaction")
        if rows:
            self._tx.executemany(statement, _coded(table, rows, _WRITTEN))


def _coded(table: Table, rows: Sequence[Row], way: int) -> list[Row]:
    """Return rows with the values of some columns as the other side has them, or as this one."""
    codes = table.part.sqlite.codes if table.part is not None else {}
    places = {place: codes[column.name][way] for place, column in enumerate(table.columns) if column.name in codes}
    if not places:
        return list(rows)
    return [tuple(places[at](value) if at in places else value for at, value in enumerate(row)) for row in rows]


def _decoded(row: Row, width: int) -> Row:
    """Return a row that was read raw: texts as such, or `Garbled`."""
    classes = row[-width:]
    values = [_text(value) if kind == "text" else value for value, kind in zip(row[:width], classes, strict=True)]
    return (*values, *row[width:-width])


def _text(value: bytes) -> str | Garbled:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Garbled(value)


def _free(index: Index, table: Table, taken: set[str]) -> str:
    """Return a name for an index that nothing else has, and take it."""
    wanted = name = index.name or f"{table.name}_{'_'.join(index.columns)}_idx"
    number = 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name
