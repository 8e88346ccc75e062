"""`walpool memory COMMAND`: looking at the memory stores of a database. What changes them is in `_memory_change`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import fsum, sqrt
from typing import TYPE_CHECKING, Any

from walpool.cli._command import Command, Failed, Group, add_database
from walpool.cli._memory_arguments import add_query, query_of
from walpool.cli._memory_change import CHANGES
from walpool.cli._screen import harmless, print_json, print_table, print_tree, shortened
from walpool.cli._stores import add_store, existing, opened, opened_each
from walpool.errors import ConfigError, DataError

if TYPE_CHECKING:
    from walpool.memory import Hit, Record

__all__ = ["COMMANDS"]

_CONTENT = 80  # characters in a table
_NAME = 64  # of an id or a scope there; a UUID has 36


# walpool memory scopes


def _scopes_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    parser.add_argument("below", metavar="SCOPE", nargs="?", help="only this scope and what lies below it")
    parser.add_argument("--scope", metavar="SCOPE", help="the same, where DB is WALPOOL_URL")
    add_store(parser)


def _scopes(arguments: argparse.Namespace) -> None:
    from walpool.memory import Query, normalize_scope

    root = normalize_scope(arguments.below or arguments.scope or "/")
    with opened(arguments) as store:
        number = store.count(Query(scope=root))
        scopes = store.scopes(root, deep=True)
    if arguments.json:
        rows = [{"scope": path, "records": number} for path, number in scopes.items()]
        print_json({"scope": root, "records": number, "scopes": rows})
    else:
        print_tree(f"{root}  {number:,}", _tree(root, scopes))


def _tree(root: str, scopes: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Yield the depth and the label of each scope below `root`, parents first."""
    above = root.rstrip("/").count("/")
    # By parts, not by text: "/a/b" comes before "/a-b", though "-" comes before "/".
    for path in sorted(scopes, key=lambda path: path.split("/")):
        yield path.count("/") - above, f"{shortened(path.rpartition('/')[2], _NAME)}  {scopes[path]:,}"


# walpool memory list, search, show


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    add_query(parser)
    parser.add_argument("--limit", metavar="N", type=int, default=20, help="at most so many; default: 20")
    parser.add_argument("--after", metavar="TOKEN", help="the page behind the one that gave this token (next)")
    add_store(parser)


def _list(arguments: argparse.Namespace) -> None:
    with opened(arguments) as store, _page(arguments.after):
        page = store.list(query_of(arguments), limit=arguments.limit, after=arguments.after)
    if arguments.json:
        print_json({"records": [_record(record) for record in page], "next": page.next})
        return
    rows = [(*_place(record), _day(record), shortened(record.content, _CONTENT)) for record in page]
    print_table(("id", "scope", "created", "content"), rows)
    if page.next is not None:
        print(f"more: --after {page.next}")


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    parser.add_argument(
        "text", metavar="TEXT", help='words, "phrases", beginn*, -without, this or that; behind -- if it begins with -'
    )
    add_query(parser)
    parser.add_argument("--limit", metavar="N", type=int, default=10, help="at most so many; default: 10")
    parser.add_argument("--after", metavar="TOKEN", help="the page behind the one that gave this token (next)")
    add_store(parser)


def _search(arguments: argparse.Namespace) -> None:
    with opened(arguments) as store, _page(arguments.after):
        # By words alone: walpool calls no model, so there is no embedding of TEXT.
        page = store.search(
            text=arguments.text, query=query_of(arguments), limit=arguments.limit, after=arguments.after
        )
    if arguments.json:
        print_json({"hits": [_hit(hit) for hit in page], "next": page.next})
        return
    rows = [
        (f"{hit.score:.3f}", *_place(hit.record), shortened(hit.snippet or hit.record.content, _CONTENT))
        for hit in page
    ]
    print_table(("score", "id", "scope", "found"), rows)
    if page.next is not None:
        print(f"more: --after {page.next}")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    parser.add_argument("id", metavar="ID", help="the record's id")
    add_store(parser)


def _show(arguments: argparse.Namespace) -> None:
    with opened(arguments) as store:
        record = store.get(arguments.id)
    if record is None:
        raise Failed(f"there is no record {arguments.id!r} in this collection (--collection, --tenant)")
    shown = {**_record(record), "embedding": _embedding(record)}
    if arguments.json:
        print_json(shown)
        return
    content = shown.pop("content")
    for name, value in shown.items():
        print(f"{name:<12} {_plain(value)}".rstrip())
    print()
    for line in content.splitlines():
        print(harmless(line))


# walpool memory stats


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    add_store(parser, each=True)


def _stats(arguments: argparse.Namespace) -> None:
    database = existing(arguments.path_or_url)
    size = None if database.path is None else os.path.getsize(database.path)
    rows: list[dict[str, Any]] = []
    for each, store in opened_each(arguments):
        summary = store.summary()
        rows.append(
            {
                "tenant": each.tenant,
                "collection": each.collection,
                "records": summary.count,
                "scopes": len(store.scopes(deep=True)),
                "categories": len(summary.categories),
                "dims": each.dims,
                "words": each.words,
                "oldest": summary.oldest and summary.oldest.isoformat(),
                "newest": summary.newest and summary.newest.isoformat(),
            }
        )
    if arguments.json:
        print_json({"path": database.path or database.name, "bytes": size, "collections": rows})
        return
    print(database.name if size is None else f"{database.name}, {size / 2**20:.1f} MiB")
    print_table(list(rows[0]), [[_plain(value) for value in row.values()] for row in rows])


@contextmanager
def _page(after: str | None) -> Iterator[None]:
    """Lay what a search refuses at the door of the token that was given to it, if one was."""
    try:
        yield
    except DataError as error:
        if after is None:
            raise
        raise ConfigError(f"--after: {error}") from error


def _record(record: Record) -> dict[str, Any]:
    """Return what JSON shows of a record: all but its embedding."""
    return {
        "id": record.id,
        "scope": record.scope,
        "categories": list(record.categories),
        "metadata": dict(record.metadata),
        "importance": record.importance,
        "created_at": record.created_at.isoformat(),
        "accessed_at": record.accessed_at.isoformat(),
        "source": record.source,
        "private": record.private,
        "content": record.content,
    }


def _hit(hit: Hit) -> dict[str, Any]:
    return {"score": hit.score, "snippet": hit.snippet, "record": _record(hit.record)}


def _embedding(record: Record) -> dict[str, Any] | None:
    if record.embedding is None:
        return None
    from walpool.memory import unpack

    numbers = unpack(record.embedding)
    return {"dims": len(numbers), "norm": sqrt(fsum(number * number for number in numbers))}


def _plain(value: Any) -> str:
    """Return a value of a record as one harmless line."""
    if isinstance(value, dict) and set(value) == {"dims", "norm"}:
        return f"{value['dims']} dims, norm {value['norm']:.6g}"
    return harmless(
        "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def _place(record: Record) -> tuple[str, str]:
    return shortened(record.id, _NAME), shortened(record.scope, _NAME)


def _day(record: Record) -> str:
    return f"{record.created_at:%Y-%m-%d %H:%M}"


COMMANDS = (
    Group(
        "memory",
        "look at the memory stores of a database, and keep them in order",
        (
            Command(
                "scopes", "show the scopes as a tree, each with its records there and below", _scopes_arguments, _scopes
            ),
            Command("list", "list records, newest first", _list_arguments, _list),
            Command("search", "search records by their words, best first", _search_arguments, _search),
            Command("show", "show all there is of one record", _show_arguments, _show),
            Command("stats", "count what each collection holds", _stats_arguments, _stats),
            *CHANGES,
        ),
        default="scopes",
    ),
)
