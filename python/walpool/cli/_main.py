"""The program: it finds the command, runs it, and turns what it raised into one line and an exit code.

A command is a row of its subject's file and two small functions: its arguments, and what it prints. Exit codes: 0 done,
1 it failed, 2 it was called wrongly (arguments, settings); `migrate` has others. An
error is one line on stderr. Must not know SQL.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

import walpool
from walpool.cli import _doctor, _export, _import, _memory, _migrate, _pg_init, _settings
from walpool.cli._command import Command, Failed, Group
from walpool.cli._screen import harmless
from walpool.errors import ConfigError, Error

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[Command | Group, ...] = (
    *_settings.COMMANDS,
    *_memory.COMMANDS,
    *_import.COMMANDS,
    *_export.COMMANDS,
    *_migrate.COMMANDS,
    *_doctor.COMMANDS,
    *_pg_init.COMMANDS,
)

_FAILED = 1
_MISUSED = 2
_MIGRATE_INTERRUPTED = 3  # its 1 says that the two differ


def main(argv: Sequence[str] | None = None, commands: Sequence[Command | Group] = COMMANDS) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments without the program's name; None uses the process's own.
        commands: those that there are.

    Raises:
        SystemExit: `--help`, `--version`, or arguments that argparse refuses (code 2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, commands)
    except KeyboardInterrupt:
        return _interrupted(words)


def _run(words: list[str], commands: Sequence[Command | Group]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console of another encoding is no reason to fail
    arguments = _parser(commands).parse_args(_completed(words, commands))
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
        except Failed as error:
            return _fail(str(error), error.code)
        except (Error, OSError) as error:
            return _fail(str(error), _FAILED)


def _interrupted(words: list[str]) -> int:
    """Say so for a command that does not itself, such as `migrate` before its work begins and behind it."""
    # Python notes an interrupt that leaves an exec(), as in the making of a dataclass while a module is imported, and
    # at its end dies of it in place of our code; it forgets it where it begins another.
    exec("")
    if words[:1] != ["migrate"]:
        return _fail("interrupted", _FAILED)
    said = "interrupted; where anything was written, walpool migrate with --resume goes on from there"
    return _fail(said, _MIGRATE_INTERRUPTED)


def _completed(words: list[str], commands: Sequence[Command | Group]) -> list[str]:
    for command in commands:
        if isinstance(command, Group) and words[:1] == [command.name]:
            return [command.name, *command.completed(words[1:])]
    return words


def _parser(commands: Sequence[Command | Group]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="walpool", description="A pooled, WAL-mode SQLite engine.")
    versions = f"walpool {version('walpool')} (SQLite {walpool.sqlite_version})"
    parser.add_argument("--version", action="version", version=versions)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        if isinstance(command, Command):
            _add(command, subparser)
            continue
        inner = subparser.add_subparsers(metavar="COMMAND", required=True)
        for each in command.commands:
            _add(each, inner.add_parser(each.name, help=each.help, description=each.help))
    return parser


def _add(command: Command, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=command.run)
    command.add_arguments(parser)


def _fail(message: str, code: int) -> int:
    print(f"walpool: error: {harmless(_one_line(message))}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line; in place of `warnings.showwarning`, which adds a class and a line of code."""
    print(f"walpool: warning: {harmless(_one_line(str(message)))}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
