"""`walpool export`: the memories of a database as a file that others can read."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from walpool.cli._command import Command, add_database
from walpool.cli._screen import harmless, print_json, progress_of_each

if TYPE_CHECKING:
    from walpool.interchange import ExportReport

__all__ = ["COMMANDS"]


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser)
    where = "the file: .jsonl, .jsonl.gz or .parquet; default: -, standard output"
    parser.add_argument("--to", metavar="FILE", default="-", help=where)
    parser.add_argument("--format", choices=["jsonl", "parquet"], help="in place of what the file's name says")
    parser.add_argument("--tenant", metavar="NAME", action="append", help="only of this tenant; may be repeated")
    parser.add_argument("--collection", metavar="NAME", action="append", help="only of this name; may be repeated")
    parser.add_argument("--lists", action="store_true", help="embeddings as lists of numbers in place of base64")


def _export(arguments: argparse.Namespace) -> None:
    from walpool.interchange import export_memory

    with progress_of_each(arguments.json) as shown:
        report = export_memory(
            arguments.path_or_url,
            arguments.to,
            format=arguments.format,
            tenants=arguments.tenant,
            collections=arguments.collection,
            as_lists=arguments.lists,
            progress=shown,
        )
    if arguments.to == "-":  # where the records went: what is said goes beside them
        said = json.dumps(report.as_dict()) if arguments.json else _summary(report)
        print(said, file=sys.stderr)
    elif arguments.json:
        print_json(report.as_dict())
    else:
        for (tenant, collection), number in report.collections.items():
            print(f"{harmless(f'{tenant}/{collection}' if tenant else collection)}: {number} records")
        print(_summary(report))


def _summary(report: ExportReport) -> str:
    where = "standard output" if report.path == "-" else f"{harmless(report.path)}, read again"
    return f"{report.records} records to {where}; checksum {report.checksum[:12]}"


COMMANDS = (Command("export", "write the memories of a database to a file", _arguments, _export),)
