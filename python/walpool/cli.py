"""The command line: `walpool COMMAND`, the same as `python -m walpool COMMAND`.

A command is a row of `COMMANDS` and two small functions: its arguments, and what it prints. Exit codes: 0 done, 1 it
failed, 2 it was called wrongly (arguments, settings). An error is one line on stderr. Must not know SQL.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import NamedTuple

import walpool
from walpool.doctor import examine
from walpool.errors import ConfigError, CorruptError, DataError, Error
from walpool.settings import Explanation, Settings

__all__ = ["COMMANDS", "Command", "main"]

_FAILED = 1
_MISUSED = 2


class Command(NamedTuple):
    """One command of the command line."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    """Does the work and prints what came of it; to fail is to raise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments without the program's name; None uses the process's own.

    Raises:
        SystemExit: `--help`, `--version`, or arguments that argparse refuses (code 2).
    """
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments.run(arguments)
            sys.stdout.flush()  # here, where a closed pipe can still be answered for
            return 0
        except ConfigError as error:
            return _fail(str(error), _MISUSED)
        except BrokenPipeError:
            # The reader of our output went away, as `head` does: nothing to say, and nothing left to flush at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _FAILED
        except (Error, OSError) as error:
            return _fail(str(error), _FAILED)
        except KeyboardInterrupt:
            return _fail("interrupted", _FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="walpool", description="A pooled, WAL-mode SQLite engine.")
    versions = f"walpool {version('walpool')} (SQLite {walpool.sqlite_version})"
    parser.add_argument("--version", action="version", version=versions)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help, description=command.help)
        subparser.add_argument("--json", action="store_true", help="print JSON")
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser


def _fail(message: str, code: int) -> int:
    print(f"walpool: error: {_one_line(message)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; in place of `warnings.showwarning`, which adds a class and a line of code."""
    print(f"walpool: warning: {_one_line(str(message))}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())


# walpool env


def _env_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path_or_url", metavar="PATH_OR_URL", nargs="?", help="the database; default: WALPOOL_URL")


def _env(arguments: argparse.Namespace) -> None:
    settings = Settings.load(arguments.path_or_url)
    explanation = settings.explain()
    if arguments.json:
        print(json.dumps({"path": settings.path, "settings": [row._asdict() for row in explanation]}, indent=2))
    elif not (sys.stdout.isatty() and _print_rich(explanation)):
        print(explanation)


def _print_rich(explanation: Explanation) -> bool:
    """Print a rich table; False, and nothing printed, where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table("setting", "value", "origin", highlight=False)
    for row in explanation:
        # Text, because rich reads markup in a plain string, and a path may hold brackets.
        table.add_row(row.name, Text(row.text), Text(row.origin), style="dim" if row.origin == "default" else "")
    Console().print(table)
    return True


# walpool doctor


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path_or_url", metavar="PATH_OR_URL", nargs="?", help="an existing database to check as well")


def _doctor(arguments: argparse.Namespace) -> None:
    findings = []
    for finding in examine(arguments.path_or_url):
        findings.append(finding)
        if not arguments.json:  # one by one: a large database takes its time
            print(f"{finding.verdict:<8} {finding.subject:<12} {finding.said}", flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    if any(finding.verdict == "bad" for finding in findings):
        raise CorruptError("the database is damaged")


# walpool import


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("framework", metavar="FRAMEWORK", choices=["langgraph"], help="langgraph: its SQLite classes")
    parser.add_argument("source", metavar="SRC", help="the database that they wrote; it is only read")
    parser.add_argument("target", metavar="DST", help="the walpool database, a path or URL; made if it is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace what differs in DST")


def _import(arguments: argparse.Namespace) -> None:
    try:
        from walpool.langgraph import import_sqlite
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'walpool[langgraph]'") from error
    with _progress(arguments.json) as progress:
        report = import_sqlite(arguments.source, arguments.target, overwrite=arguments.overwrite, progress=progress)
    if arguments.json:
        differences = [difference._asdict() for difference in report.differences]
        print(json.dumps({**asdict(report), "differences": differences}, indent=2))
    else:
        print(f"{report.threads} threads: {report.checkpoints} checkpoints, {report.writes} writes")
        print(f"{report.items} items of the store, {report.vectors} vectors")
        print(f"{report.added} of these were added")
        for difference in report.differences:
            print(f"{difference.subject}: {difference.said}")
    if report.differences:
        raise DataError(f"{len(report.differences)} of the threads and items are not in DST as they are in SRC")


@contextmanager
def _progress(is_silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what shows how far a long work is, on a terminal: a bar, or figures where rich is not installed."""
    if is_silent or not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda done, total: print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("copying and comparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


COMMANDS = (
    Command("env", "print each setting, its value and where that came from", _env_arguments, _env),
    Command("import", "copy what a framework stored into a walpool database", _import_arguments, _import),
    Command("doctor", "say whether this machine, and a database, are in order", _doctor_arguments, _doctor),
)
