"""What commands on memory stores take beside the store: which records, how old, how many."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from walpool.errors import ConfigError, DataError
from walpool.memory import Query

__all__ = ["add_query", "age", "has_conditions", "query_of"]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_query(parser: argparse.ArgumentParser) -> None:
    """Add the conditions that records have to meet, all of them."""
    parser.add_argument("--scope", metavar="SCOPE", help="in this scope and below it, such as /crew/research")
    parser.add_argument("--category", metavar="NAME", action="append", help="of this category; again: or of that one")
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        type=_where,
        help='whose metadata has this value, as JSON (3, true, "3") or else as text; again: and that one',
    )
    parser.add_argument("--source", metavar="NAME", help="from this source")


def query_of(arguments: argparse.Namespace, ids: Sequence[str] | None = None) -> Query:
    """Return the query that the arguments of `add_query` make.

    Args:
        arguments: as parsed.
        ids: only these records.

    Raises:
        ConfigError: two conditions on one key, or one that no record could meet.
    """
    where = dict(arguments.where or ())
    if len(where) < len(arguments.where or ()):
        raise ConfigError("--where takes each key once")
    try:
        return Query(
            scope=arguments.scope,
            categories=None if arguments.category is None else tuple(arguments.category),
            metadata=where or None,
            source=arguments.source,
            ids=None if ids is None else tuple(ids),
        )
    except DataError as error:
        raise ConfigError(str(error)) from error


def has_conditions(arguments: argparse.Namespace) -> bool:
    """Return whether any condition was given; the root scope is one that somebody said."""
    given = (arguments.scope, arguments.category, arguments.where, arguments.source)
    return any(value is not None for value in given)


def age(text: str) -> timedelta:
    """Return a length of time, such as `30d`, `12h`, `90min`, `45s` or `2w`; for argparse.

    Raises:
        ArgumentTypeError: it is none, or too long.
    """
    found = _AGE.fullmatch(text.strip())
    try:
        if found:
            return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
    except OverflowError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no length of time: give one as 30d, 12h, 90min, 45s or 2w")


def _where(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return key, value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # json.loads would take NaN and Infinity
