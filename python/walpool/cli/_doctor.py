"""`walpool doctor` and `walpool check`: whether this machine, and a database, are in order."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from walpool.cli._command import Command, Failed, add_database
from walpool.cli._screen import harmless, print_json
from walpool.cli._stores import existing_file
from walpool.doctor import Finding, check, examine
from walpool.errors import CorruptError

__all__ = ["COMMANDS"]


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser, "an existing database to check as well")


def _doctor(arguments: argparse.Namespace) -> None:
    _print(examine(arguments.path_or_url), arguments.json)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    parser.add_argument("--repair", action="store_true", help="mend what is derived from the records of memory stores")


def _check(arguments: argparse.Namespace) -> None:
    _print(check(existing_file(arguments.path_or_url), repair=arguments.repair), arguments.json)


def _print(found: Iterable[Finding], as_json: bool) -> None:
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:  # one by one: a large database takes its time
            print(f"{finding.verdict:<8} {finding.subject:<12} {harmless(finding.said)}", flush=True)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    bad = {finding.subject for finding in findings if finding.verdict == "bad"}
    if bad == {"memory"}:
        raise Failed("what is derived from the records of a memory store differs from them: walpool check --repair")
    if "integrity" in bad:
        raise CorruptError("the database is damaged")
    if bad:
        raise Failed(f"not in order: {', '.join(sorted(bad))}")


COMMANDS = (
    Command("doctor", "say whether this machine, and a database, are in order", _doctor_arguments, _doctor),
    Command("check", "check a database, its memory stores too, and mend what can be mended", _check_arguments, _check),
)
