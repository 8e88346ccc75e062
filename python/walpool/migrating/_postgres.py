"""`PostgresSide`: the PostgreSQL database of a migration, read and written. Knows neither the other nor the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from walpool.errors import (
    DatabaseError,
    DataError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from walpool.migrating import _postgres_sql as sql
from walpool.migrating._canonical import as_given_back, as_sent
from walpool.migrating._faults import shown_key
from walpool.migrating._hashing import Digest, Hash
from walpool.migrating._sqlite_sql import any_row, figures, quoted, upsert
from walpool.migrating.plan import Column, ForeignKey, Table
from walpool.postgres import Bulk, PostgresPool
from walpool.postgres.binary import check
from walpool.postgres.binary import rows as encoded_rows

if TYPE_CHECKING:
    from walpool.migrating.sets import Part
    from walpool.types import Row

__all__ = ["PostgresSide"]


class PostgresSide:
    """A database by a connection of its own; by one thread at a time.

    Args:
        url: of the database.
        tenant: whose rows of walpool's own tables are read and written, and of those under row-level security.
    """

    backend: Final = "postgres"

    def __init__(self, url: str, tenant: str | None = None) -> None:
        self._pool = PostgresPool(url, tenant=tenant)
        try:
            self._bulk = Bulk(self._pool)
        except BaseException:
            self._pool.close()
            raise
        self._is_open = False
        self.address = url  # by which another pool opens the same database
        self.name = self._pool.path

    @property
    def pool(self) -> PostgresPool:
        """The pool on the database."""
        return self._pool

    def close(self) -> None:
        """Close the connections."""
        self._bulk.close()
        self._pool.close()

    def cancel(self) -> None:
        """Stop what runs; from any thread."""
        self._bulk.cancel()

    # Statements.

    def fetch(self, query: str, params: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query, in the open transaction or in one of its own."""
        if self._is_open:
            return self._bulk.fetch(query, params)
        with self._bulk.transaction(reads_only=True):
            return self._bulk.fetch(query, params)

    def execute(self, statement: str, params: Sequence[Any] = ()) -> None:
        """Run a statement, in the open transaction or in one of its own."""
        with self.transaction():
            self._bulk.execute(statement, params)

    @contextmanager
    def transaction(self, *, waits_for_disk: bool = True) -> Iterator[None]:
        """Run the block's statements in one transaction; inside another one it is the same."""
        if self._is_open:
            yield
            return
        with self._bulk.transaction(waits_for_disk=waits_for_disk):
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False

    @contextmanager
    def frozen(self, tables: Sequence[Table]) -> Iterator[None]:
        """Keep everybody else from writing the tables. Their readers go on."""
        with Bulk(self._pool) as holder, holder.transaction():
            if tables:
                holder.execute(sql.lock(tables))
            yield

    # What there is.

    def encoding(self) -> str:
        """Return the encoding of the database."""
        return str(self.fetch("SELECT current_setting('server_encoding')")[0][0])

    def names(self) -> set[str]:
        """Return the names of the tables and views that there are."""
        return {name for (name,) in self.fetch(sql.NAMES)}

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.fetch(sql.count(table))[0][0])

    def figures(self, part: Part) -> tuple[int, int]:
        """Return how many rows there are of a part of a set, and how many bytes."""
        rows, length = self.fetch(figures(part.columns, part.relation(self.backend)))[0]
        return int(rows), int(length)

    def has_rows(self, table: Table) -> bool:
        """Return whether a table has rows."""
        return bool(self.fetch(any_row(sql.source(table))))

    def has_odd(self, table: Table, column: Column) -> bool:
        """Return whether a column holds what a file cannot: the other types of PostgreSQL's keep their word."""
        return column.form in sql.ODD and bool(self.fetch(sql.odd_row(table, column)))

    def has_false_json(self, table: Table, column: Column) -> bool:
        """Return False: the server has looked at each text."""
        return False

    # Rows.

    def page(self, table: Table, after: Row | None, upto: Row | None = None, limit: int | None = None) -> list[Row]:
        """Return the rows after one key and up to another in the order of keys, `limit` at most."""
        return self.fetch(*sql.page(table, after, upto, limit))

    def pages(self, table: Table) -> Iterator[list[Row]]:
        """Yield all rows, of one snapshot."""
        with Bulk(self._pool) as reader, reader.transaction(reads_only=True):
            yield from reader.stream(sql.select(table) + sql.ordered(table), chunk=table.page)

    def by_keys(self, table: Table, keys: Sequence[Row]) -> list[Row]:
        """Return the rows of these keys; fewer than keys, where some are not there."""
        query = sql.by_key(table)
        found: list[Row] = []
        with self.reading():
            for key in keys:
                found += self._bulk.fetch(query, sql.parameters(table.key_columns, key))
        return found

    def unindexed(self, part: Table, rows: Sequence[Row]) -> list[int]:
        """Return the places of the rows that an index on all columns of `part` does not take.

        Nothing of it stays: they are tried in transactions that are undone.
        """
        return _refused(rows, lambda some: self._is_indexable(part, some))

    def refused(self, column: Column, values: Sequence[Any]) -> list[int]:
        """Return the places of the values, as the server gives them back, that the type of a column does not take."""
        return _refused(values, lambda some: _takes_values(self._bulk, column, some))

    def takes(self, table: Table, statement: Callable[[Table], str]) -> bool:
        """Return whether the server takes a statement on a table with these columns; nothing of it stays."""
        try:
            with self._bulk.transaction():
                self._bulk.execute(sql.create_probe(table))
                self._bulk.execute(statement(replace(table, name=sql.PROBE)))
                raise _Undone
        except _Undone:
            return True
        except OperationalError:
            raise
        except DatabaseError:
            return False

    def _is_indexable(self, part: Table, rows: Sequence[Row]) -> bool:
        try:
            with self._bulk.transaction():
                for statement in sql.probe(part):
                    self._bulk.execute(statement)
                names = [quoted(column.name) for column in part.columns]
                self._bulk.copy_in(f"pg_temp.{sql.PROBE}", names, [encoded_rows(part.wires, rows)])
                raise _Undone
        except _Undone:
            return True
        except (NotSupportedError, ProgrammingError):  # the limit, or no right to temporary tables: then none is sure
            return False
        except IntegrityError:  # a domain refuses a value, which is bad whether it is too long or not
            return False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one snapshot in the block."""
        if self._is_open:
            yield
            return
        with self._bulk.transaction(reads_only=True):
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False

    # Hashes, reckoned by the server.

    def digests(self, table: Table, ranges: Sequence[tuple[Row | None, Row | None]]) -> list[Digest]:
        """Return count and sum of the hashes of each range of keys, as one snapshot has them."""
        with self.reading():
            found = self._bulk.fetch_each([sql.digest(table, after, upto) for after, upto in ranges])
        return [(int(count), int(total)) for ((count, total),) in found]

    def hashes(self, table: Table, after: Row | None, upto: Row | None) -> dict[Row, Hash]:
        """Return the hash of each row of a range of keys."""
        return {row[:-1]: row[-1] for row in self.fetch(*sql.hashes(table, after, upto))}

    def buckets(self, table: Table) -> dict[int, Digest]:
        """Return count and sum of the hashes in each bucket that has any."""
        return {bucket: (int(count), int(total)) for bucket, count, total in self.fetch(sql.buckets(table))}

    def bucket_hashes(self, table: Table, wanted: Sequence[int]) -> dict[Row, Hash]:
        """Return the hash of each row in some buckets."""
        return {row[:-1]: int(row[-1]) for row in self.fetch(sql.bucket_hashes(table, wanted))}

    # Writing.

    def create(self, tables: Sequence[Table]) -> None:
        """Make tables."""
        for table in tables:
            self.execute(sql.create(table))

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows that are not there, by COPY.

        Raises:
            Unfit: a value that PostgreSQL cannot hold.
            DataError: one that a domain refuses.
        """
        encoded = encoded_rows(table.wires, as_sent(table, rows)) if rows else b""
        names = [quoted(column.name) for column in table.columns]
        if table.part is None or table.part.is_plain:
            with self._judged(table, rows):
                self._bulk.copy_in(quoted(sql.name(table)), names, [encoded])
            return
        self._bulk.execute(sql.given(table))
        self._bulk.copy_in("given", names, [encoded])
        self._bulk.execute(table.part.insert(self.backend))
        self._bulk.execute("DROP TABLE given")

    def replace(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows in place of those that have their keys."""
        given = as_sent(table, rows)
        check(table.wires, given)
        given = [tuple(sql.parameters(table.columns, row)) for row in given]
        if table.part is not None or not table.exists:
            self._bulk.executemany(sql.insert(table) + upsert(table, self.backend), given)
        elif len(table.columns) > len(table.key):  # its key is the source's, and maybe no constraint of the target's
            with self._judged(table, rows):
                self._bulk.executemany(sql.update(table), [table.others_of(row) + table.key_of(row) for row in given])

    @contextmanager
    def _judged(self, table: Table, rows: Sequence[Row]) -> Iterator[None]:
        """Write rows in the block; where a domain refuses one, say which."""
        try:
            yield
        except (IntegrityError, DataError) as error:
            for place, column in enumerate(table.columns):
                # Beside the transaction, which has failed.
                values = [row[place] for row in as_given_back(table, rows)] if column.domain else []
                with Bulk(self._pool) as asking:
                    refused = _refused(values, lambda some: _takes_values(asking, column, some))  # noqa: B023
                if refused:
                    where = f"{table.name}.{column.name}, key {shown_key(table, rows[refused[0]])}"
                    raise DataError(
                        f"{where}: a value that the domain {column.domain} refuses came into the source after the plan "
                        "was made"
                    ) from error
            raise

    def delete(self, table: Table, keys: Sequence[Row]) -> None:
        """Delete the rows of these keys."""
        self._bulk.executemany(sql.delete(table), [sql.parameters(table.key_columns, key) for key in keys])

    def clear(self, table: Table) -> None:
        """Delete all rows."""
        self.execute(sql.clear(table))

    def defer(self) -> None:
        """Let foreign keys be looked at when the transaction ends, and not before."""
        self._bulk.execute("SET CONSTRAINTS ALL DEFERRED")

    def finish(self, table: Table) -> None:
        """Make the indexes of a table, and let its numbers go on; or make a part of a set whole."""
        for statement in table.part.postgres.finish if table.part is not None else ():
            self.execute(statement)
        taken = {name for (name,) in self.fetch(sql.TAKEN)}
        for index in table.indexes:
            is_free = index.name not in taken and 0 < len(index.name.encode()) <= sql.NAME_BYTES
            self.execute(sql.create_index(table, index, index.name if is_free else None))
        for column in table.columns:
            if column.is_counted:
                largest = self.fetch(sql.largest(table, column))[0][0]
                if largest is not None and 0 < largest < 2**63 - 1:
                    self.execute(sql.count_on(table, column, largest + 1))
        self.execute(sql.analyze(table))

    def relate(self, tables: Sequence[Table]) -> list[str]:
        """Add the CHECKs and foreign keys of tables, and return what is wrong with them, in sentences."""
        said: list[str] = []
        there = self.names()
        for table in tables:
            for number, condition in enumerate(table.checks):
                name = f"walpool_{_short(table.name)}_check_{number}"
                what = f"{table.name}: the CHECK {condition}"
                said += self._constrain(table, name, what, sql.add_check(table, condition, name))
            for number, foreign in enumerate(table.foreign):
                if foreign.parent in there:
                    said += self._relate(table, foreign, number)
        return said

    def _relate(self, table: Table, foreign: ForeignKey, number: int) -> list[str]:
        name = f"walpool_{_short(table.name)}_{number}"
        what = f"{table.name}: the foreign key ({', '.join(foreign.columns)}) to {foreign.parent}"
        return self._constrain(table, name, what, sql.add_foreign(table, foreign, name))

    def _constrain(self, table: Table, name: str, what: str, statement: str) -> list[str]:
        try:
            if not self.fetch(sql.CONSTRAINT, (name, quoted(table.name))):
                self.execute(statement)
        except OperationalError:
            raise
        except DatabaseError as error:
            return [f"{what} was not added: {error}"]
        try:
            self.execute(sql.validate(table, name))
        except OperationalError:
            raise
        except DatabaseError as error:
            return [f"{what} holds for what is written from now on, but not for all that is there: {error}"]
        return []


class _Undone(Exception):
    """What ends a transaction of which nothing is to stay."""


def _takes_values(bulk: Bulk, column: Column, values: Sequence[Any]) -> bool:
    try:
        with bulk.transaction(reads_only=True):
            bulk.fetch(*sql.cast_all(column, values))
    except OperationalError:
        raise
    except DatabaseError:
        return False
    return True


def _refused(given: Sequence[Any], takes: Callable[[Sequence[Any]], bool]) -> list[int]:
    """Return the places of what the server does not take, which says so of many at once, and not of which."""
    if not given or takes(given):
        return []
    if len(given) == 1:
        return [0]
    half = len(given) // 2
    return [*_refused(given[:half], takes), *(half + place for place in _refused(given[half:], takes))]


def _short(name: str) -> str:
    """Return a name of at most 40 bytes."""
    return name.encode()[:40].decode("utf-8", "ignore")
