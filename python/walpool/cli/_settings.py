"""`walpool env`: each setting, its value, and where that came from."""

from __future__ import annotations

import argparse
import sys

from walpool.cli._command import Command, add_database
from walpool.cli._screen import print_json
from walpool.settings import Explanation, Settings

__all__ = ["COMMANDS"]


def _env(arguments: argparse.Namespace) -> None:
    settings = Settings.load(arguments.path_or_url)
    explanation = settings.explain()
    if arguments.json:
        print_json({"path": settings.path, "settings": [row._asdict() for row in explanation]})
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


COMMANDS = (Command("env", "print each setting, its value and where that came from", add_database, _env),)
