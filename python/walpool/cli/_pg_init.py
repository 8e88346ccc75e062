"""`walpool pg-init`: roles, tables and row-level security for memories on PostgreSQL, printed for a DBA or applied."""

from __future__ import annotations

import argparse

from walpool.cli._command import Command, Failed, add_database
from walpool.cli._screen import print_json
from walpool.errors import ConfigError, ProgrammingError

__all__ = ["COMMANDS"]

_BEGIN, _COMMIT = "BEGIN;\n", "COMMIT;\n"


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_database(parser, "the database to make them in, as a superuser; default: WALPOOL_URL")
    parser.add_argument(
        "--print-sql",
        action="store_true",
        help="print the SQL, and touch nothing: what DB lacks if it is given, else what an empty database does",
    )
    parser.add_argument("--owner", default="walpool_owner", metavar="ROLE", help="owns the tables (%(default)s)")
    parser.add_argument("--app", default="walpool_app", metavar="ROLE", help="what stores log in as (%(default)s)")
    parser.add_argument("--reader", default="walpool_reader", metavar="ROLE", help="may only look (%(default)s)")
    parser.add_argument("--hnsw-dims", type=int, metavar="N", help="also an HNSW index for embeddings of this length")


def _run(arguments: argparse.Namespace) -> None:
    from walpool import schema  # here: the memory store takes as long to import as all of walpool
    from walpool.memory.postgres import init_sql
    from walpool.registry import get_pool

    roles = {"owner": arguments.owner, "app": arguments.app, "reader": arguments.reader}
    if arguments.print_sql and arguments.path_or_url is None:
        _print(init_sql(**roles, hnsw_dims=arguments.hnsw_dims), arguments)
        return
    with get_pool(arguments.path_or_url) as pool:
        if pool.backend != "postgres":
            raise ConfigError("roles and row-level security are PostgreSQL's: give a postgresql:// URL, or --print-sql")
        sql = init_sql(**roles, version=schema.version(pool, "memory"), hnsw_dims=arguments.hnsw_dims)
        if arguments.print_sql:
            _print(sql, arguments)
            return
        try:
            pool.script(sql.removeprefix(_BEGIN).removesuffix(_COMMIT))  # a job is a transaction
        except ProgrammingError as error:
            raise Failed(f"{error}; nothing was changed; --print-sql prints what a superuser may run") from error
    print_json(roles) if arguments.json else print(", ".join(f"{name} {role}" for name, role in roles.items()))


def _print(sql: str, arguments: argparse.Namespace) -> None:
    print_json({"sql": sql}) if arguments.json else print(sql, end="")


COMMANDS = (Command("pg-init", "make roles, tables and row-level security on PostgreSQL", _arguments, _run),)
