"""`walpool memory COMMAND`: changing the memory stores of a database. What takes records away asks first."""

from __future__ import annotations

import argparse

from walpool.cli._command import Command, Failed, add_database
from walpool.cli._memory_arguments import add_query, age, has_conditions, query_of
from walpool.cli._screen import ask, print_json
from walpool.cli._stores import add_store, label, opened, opened_each
from walpool.errors import ConfigError, DataError

__all__ = ["CHANGES"]


# walpool memory delete, expire


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    add_query(parser)
    parser.add_argument(
        "--id", metavar="ID", action="append", dest="ids", help="the record with this id; again: or that one"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_store(parser)


def _delete(arguments: argparse.Namespace) -> None:
    if arguments.ids is None and not has_conditions(arguments):
        raise ConfigError(
            "say what to delete: --scope, --id, --category, --where or --source (--scope / is everything)"
        )
    query = query_of(arguments, arguments.ids)
    with opened(arguments) as store:
        if not arguments.yes:
            _ask("delete", store.count(query))
        deleted = store.delete(query)
    if arguments.json:
        print_json({"deleted": deleted})
    else:
        print(f"deleted {_records(deleted)}")


def _expire_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    add_query(parser)
    parser.add_argument("--older-than", metavar="AGE", type=age, help="made longer ago than this, such as 30d or 12h")
    parser.add_argument("--keep", metavar="N", type=int, help="not among the newest N of their own scope")
    parser.add_argument("--importance-below", metavar="X", type=float, help="less important than this, 0 to 1")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_store(parser)


def _expire(arguments: argparse.Namespace) -> None:
    conditions = {name: getattr(arguments, name) for name in ("older_than", "keep", "importance_below")}
    if all(value is None for value in conditions.values()):
        raise ConfigError("say what expires: --older-than, --keep or --importance-below")
    query = query_of(arguments)
    with opened(arguments) as store:
        if not arguments.yes:
            _ask("delete what has expired of", store.count(query))
        try:
            expired = store.expire(query, **conditions)
        except DataError as error:
            raise ConfigError(f"--older-than, --keep or --importance-below: {error}") from error
    if arguments.json:
        print_json({"expired": expired})
    else:
        print(f"deleted {_records(expired)}")


def _ask(what: str, number: int) -> None:
    ask(f"{what} {_records(number)}", declined="nothing was deleted")


def _records(number: int) -> str:
    return f"{number:,} record{'' if number == 1 else 's'}"


# walpool memory check, rebuild, compact


def _each_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    add_store(parser, each=True)


def _check(arguments: argparse.Namespace) -> None:
    rows = []
    for each, store in opened_each(arguments):
        problems = list(store.check())
        rows.append({"tenant": each.tenant, "collection": each.collection, "problems": problems})
        if not arguments.json:  # one by one: a large store takes its time
            print(f"{label(each)}: {'; '.join(problems) or 'in order'}", flush=True)
    if arguments.json:
        print_json({"collections": rows})
    if any(row["problems"] for row in rows):
        raise Failed("what is derived differs from the records: walpool memory rebuild mends it")


def _rebuild(arguments: argparse.Namespace) -> None:
    rows = []
    for each, store in opened_each(arguments):
        store.rebuild()
        rows.append({"tenant": each.tenant, "collection": each.collection})
        if not arguments.json:
            print(f"{label(each)}: rebuilt", flush=True)
    if arguments.json:
        print_json({"rebuilt": rows})


def _compact(arguments: argparse.Namespace) -> None:
    rows = []
    for each, store in opened_each(arguments):
        store.compact()
        rows.append({"tenant": each.tenant, "collection": each.collection})
        if not arguments.json:
            print(f"{label(each)}: compacted", flush=True)
    if arguments.json:
        print_json({"compacted": rows})


CHANGES = (
    Command("delete", "delete records, after a question", _delete_arguments, _delete),
    Command("expire", "delete records by age, number or importance, after a question", _expire_arguments, _expire),
    Command("check", "compare what is derived from the records with them", _each_arguments, _check),
    Command("rebuild", "make what is derived from the records anew", _each_arguments, _rebuild),
    Command("compact", "make searches fast and the file small, after a bulk load", _each_arguments, _compact),
)
