"""What a command is: a name, its arguments, and what it does; and a group of them under one word."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Command", "Failed", "Group", "add_database"]


class Failed(Exception):
    """What a command could not do, or found to be wrong, in one line.

    Args:
        message: that line.
        code: the program's exit code.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Command(NamedTuple):
    """One command of the command line."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    """Does the work and prints what came of it; to fail is to raise."""


class Group(NamedTuple):
    """Several commands under one word: `walpool NAME COMMAND`."""

    name: str
    help: str
    commands: tuple[Command, ...]
    default: str | None = None
    """The command that is meant where the word behind the group's is no command's; None: one must be named."""

    def completed(self, words: list[str]) -> list[str]:
        """Return what stands behind the group's word, with the default command put in where none is named."""
        known = {command.name for command in self.commands} | {"-h", "--help"}
        return [self.default, *words] if self.default is not None and not known & set(words[:1]) else words


def add_database(parser: argparse.ArgumentParser, what: str = "the database; default: WALPOOL_URL") -> None:
    """Add the argument that names a database, which every command spells alike: `path_or_url`."""
    parser.add_argument("path_or_url", metavar="DB", nargs="?", help=f"path or URL of {what}")
