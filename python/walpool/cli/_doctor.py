"""`walpool doctor`: whether this machine, and a database, are in order."""

from __future__ import annotations

import argparse

from walpool.cli._command import Command, add_database
from walpool.cli._screen import print_json
from walpool.doctor import examine
from walpool.errors import CorruptError

__all__ = ["COMMANDS"]


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser, "an existing database to check as well")


def _doctor(arguments: argparse.Namespace) -> None:
    findings = []
    for finding in examine(arguments.path_or_url):
        findings.append(finding)
        if not arguments.json:  # one by one: a large database takes its time
            print(f"{finding.verdict:<8} {finding.subject:<12} {finding.said}", flush=True)
    if arguments.json:
        print_json([finding._asdict() for finding in findings])
    if any(finding.verdict == "bad" for finding in findings):
        raise CorruptError("the database is damaged")


COMMANDS = (Command("doctor", "say whether this machine, and a database, are in order", _doctor_arguments, _doctor),)
