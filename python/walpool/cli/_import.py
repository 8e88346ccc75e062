"""`walpool import WHAT`: what a framework or a file holds, copied into a database of walpool's; a command for each."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from walpool.cli._command import Command, Group, add_database
from walpool.cli._moving import print_report
from walpool.cli._screen import print_json, progress, progress_of_each
from walpool.errors import ConfigError, DataError

__all__ = ["COMMANDS"]


# walpool import langgraph


def _langgraph_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the database that they wrote; it is only read")
    parser.add_argument(
        "target", metavar="DST", help="the walpool database, a path or URL; a file is made if it is not there"
    )
    _add_tenant(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what differs in DST")


def _langgraph(arguments: argparse.Namespace) -> None:
    try:
        from walpool.langgraph import import_sqlite
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'walpool[langgraph]'") from error
    with progress(arguments.json, "copying and comparing") as shown:
        report = import_sqlite(
            arguments.source,
            arguments.target,
            tenant=arguments.tenant,
            overwrite=arguments.overwrite,
            progress=shown,
        )
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


# walpool import crewai


def _crewai_arguments(parser: argparse.ArgumentParser) -> None:
    where = "a folder or file of CrewAI's; default: where it keeps the data of the project in this folder"
    parser.add_argument("source", metavar="PATH", nargs="?", help=f"{where}; it is only read")
    default = "WALPOOL_URL, or where walpool.crewai.install() stores"
    parser.add_argument("--into", metavar="DB", help=f"path or URL of the database; default: {default}")
    _add_tenant(parser)
    _add_dry_run(parser)


def _crewai(arguments: argparse.Namespace) -> None:
    try:
        from walpool.crewai import import_crewai
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'walpool[crewai]'") from error
    with progress_of_each(arguments.json) as shown:
        report = import_crewai(
            arguments.source,
            arguments.into,
            tenant=arguments.tenant,
            dry_run=arguments.dry_run,
            progress=shown,
        )
    print_report(report, as_json=arguments.json)


# walpool import FILE DB


def _file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="memories in .jsonl, .jsonl.gz or .parquet; - is standard input")
    add_database(parser, "the database, made if it is not there; default: WALPOOL_URL")
    parser.add_argument("--format", choices=["jsonl", "parquet"], help="in place of what the file's name says")
    parser.add_argument("--tenant", metavar="NAME", action="append", help="only of this tenant; may be repeated")
    parser.add_argument("--collection", metavar="NAME", action="append", help="only of this name; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace what differs in DB")
    _add_dry_run(parser)


def _file(arguments: argparse.Namespace) -> None:
    from walpool.interchange import import_memory

    try:
        with progress_of_each(arguments.json) as shown:
            report = import_memory(
                arguments.source,
                arguments.path_or_url,
                format=arguments.format,
                tenants=arguments.tenant,
                collections=arguments.collection,
                overwrite=arguments.overwrite,
                dry_run=arguments.dry_run,
                progress=shown,
            )
    except (DataError, FileNotFoundError, IsADirectoryError) as error:  # the source's fault, like a wrong argument
        raise ConfigError(f"{error} [{arguments.source}]") from error
    print_report(report, as_json=arguments.json)


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", metavar="NAME", help="whose rows they become, on a server (postgresql://)")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="write nothing, and say what would be added")


_SOURCES = (
    Command("crewai", "copy what CrewAI's own stores hold", _crewai_arguments, _crewai),
    Command("langgraph", "copy what LangGraph's own SQLite classes stored", _langgraph_arguments, _langgraph),
    Command("file", "copy memories from JSON Lines or Parquet; meant where no other is named", _file_arguments, _file),
)

COMMANDS = (Group("import", "copy what a framework or a file holds into a walpool database", _SOURCES, "file"),)
