"""`walpool import WHAT`: what a framework stored, copied into a walpool database. A command for each source."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool.cli._command import Command, Group
from walpool.cli._screen import print_json, progress
from walpool.errors import ConfigError, DataError

__all__ = ["COMMANDS"]


# walpool import langgraph


def _langgraph_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the database that they wrote; it is only read")
    parser.add_argument("target", metavar="DST", help="the walpool database, a path or URL; made if it is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace what differs in DST")


def _langgraph(arguments: argparse.Namespace) -> None:
    try:
        from walpool.langgraph import import_sqlite
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'walpool[langgraph]'") from error
    with progress(arguments.json, "copying and comparing") as shown:
        report = import_sqlite(arguments.source, arguments.target, overwrite=arguments.overwrite, progress=shown)
    if arguments.json:
        differences = [difference._asdict() for difference in report.differences]
        print_json({**asdict(report), "differences": differences})
    else:
        print(f"{report.threads} threads: {report.checkpoints} checkpoints, {report.writes} writes")
        print(f"{report.items} items of the store, {report.vectors} vectors")
        print(f"{report.added} of these were added")
        for difference in report.differences:
            print(f"{difference.subject}: {difference.said}")
    if report.differences:
        raise DataError(f"{len(report.differences)} of the threads and items are not in DST as they are in SRC")


_SOURCES = (Command("langgraph", "copy what LangGraph's own SQLite classes stored", _langgraph_arguments, _langgraph),)

COMMANDS = (Group("import", "copy what a framework stored into a walpool database", _SOURCES),)
