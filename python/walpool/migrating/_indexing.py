"""Keys that are too long for an index of PostgreSQL's, found before anything is written, by asking the server.

How much of a page a key takes depends on how far the server compresses it, so nobody else can tell.
https://www.postgresql.org/docs/18/btree.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from walpool.migrating import _postgres_sql, _sqlite_sql
from walpool.migrating._canonical import as_given_back
from walpool.migrating._checking import noted
from walpool.migrating._faults import mended
from walpool.migrating._long_keys import LONG, SURE, is_long, key_hash, part_of, too_long
from walpool.migrating.plan import LongKeys, Plan, Table

if TYPE_CHECKING:
    from walpool.migrating._postgres import PostgresSide
    from walpool.migrating._sqlite import SqliteSide
    from walpool.types import Row

__all__ = ["find_long_keys"]

_MOST: Final = 10_000  # keys of one index that a plan names


def find_long_keys(source: SqliteSide, target: PostgresSide, plan: Plan) -> None:
    """Put into a plan the rows whose keys are too long for the indexes that PostgreSQL has or is to get."""
    plan.tables = [_looked_at(source, target, plan, table) for table in plan.tables]


def _looked_at(source: SqliteSide, target: PostgresSide, plan: Plan, table: Table) -> Table:
    if table.part is not None:
        return table
    found: list[LongKeys] = []
    for columns in dict.fromkeys(_indexed(target, table)):
        part = part_of(table, columns)
        lengths = [column.name for column in part.columns if column.form in LONG]
        if not lengths or not source.fetch(_sqlite_sql.long_row(table.name, lengths, SURE // 6)):
            continue
        refused = _refused(source, target, table, part)
        if len(refused) > _MOST:
            plan.obstacles.append(
                f"{table.name}: more than {_MOST} keys are too long for PostgreSQL's index on {', '.join(columns)}: "
                "index a hash of them, in the source too"
            )
        elif refused:
            found.append(LongKeys(columns, tuple(sorted(refused))))
    return noted(source, plan, replace(table, long=tuple(found), is_suspect=True), too_long) if found else table


def _indexed(target: PostgresSide, table: Table) -> list[tuple[str, ...]]:
    """Return the columns of each index that the table is to have, or has."""
    if not table.exists:
        return [*([table.primary] if table.primary else []), *(index.columns for index in table.indexes)]
    oid = target.fetch(_postgres_sql.OID, (_sqlite_sql.quoted(table.name),))[0][0]
    names = dict(target.fetch(_postgres_sql.ATTRIBUTES, (oid,)))
    return [
        tuple(names[key] for key in keys)
        for _, _, _, _, is_odd, keys, *_ in target.fetch(_postgres_sql.INDEXES, (oid,))
        if not is_odd
    ]


def _refused(source: SqliteSide, target: PostgresSide, table: Table, part: Table) -> set[int]:
    """Return the hashes of the keys that an index does not take; `part` has its columns."""
    refused: set[int] = set()
    seen: set[int] = set()
    wanted = table.only({column.name for column in part.columns})  # by whose key it is read: it may have no rowid
    places = [wanted.columns.index(column) for column in part.columns]
    for rows in source.pages(wanted):
        some: dict[int, Row] = {}
        for row in rows:
            values = tuple(mended(column, row[at]) for column, at in zip(part.columns, places, strict=True))
            if is_long(part, values) and (number := key_hash(part, values)) is not None and number not in seen:
                some[number] = values
        seen.update(some)
        numbers = list(some)
        found = target.unindexed(part, list(as_given_back(part, list(some.values()))))
        refused.update(numbers[place] for place in found)
        if len(refused) > _MOST:
            break
    return refused
