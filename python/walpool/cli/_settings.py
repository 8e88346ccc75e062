"""`walpool env`: each setting, its value, and where that came from."""

from __future__ import annotations

import argparse

from walpool.cli._command import Command, add_database
from walpool.cli._screen import has_rich, print_json, print_table
from walpool.settings import Settings

__all__ = ["COMMANDS"]


def _env(arguments: argparse.Namespace) -> None:
    settings = Settings.load(arguments.path_or_url)
    explanation = settings.explain()
    if arguments.json:
        print_json({"path": settings.path, "settings": [row._asdict() for row in explanation]})
    elif has_rich():
        faint = [row.origin == "default" for row in explanation]
        rows = [(row.name, row.text, row.origin) for row in explanation]
        print_table(("setting", "value", "origin"), rows, faint=faint)
    else:
        print(explanation)


COMMANDS = (Command("env", "print each setting, its value and where that came from", add_database, _env),)
