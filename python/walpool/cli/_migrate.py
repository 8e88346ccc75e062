"""`walpool migrate`: a SQLite file into PostgreSQL, or back; and `walpool unretire`, for the file it left."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from walpool.cli._command import Command, Failed
from walpool.cli._screen import harmless, print_json, progress_of_each
from walpool.errors import ConfigError, Error

if TYPE_CHECKING:
    from walpool.migrating import Options, Plan, Report, Table, TableReport
    from walpool.migrating.sets import Set

__all__ = ["COMMANDS"]

_DIFFERS: Final = 1
_INTERRUPTED: Final = 3
_SHOWN: Final = 20  # values, buckets or keys that are printed; --json has more
_HOMES: Final = {
    "crewai": "walpool.crewai.moving",
    "crewai_checkpoints": "walpool.crewai.moving",
    "crewai_long_term": "walpool.crewai.moving",
    "langgraph": "walpool.langgraph.moving",
    "langgraph_cache": "walpool.langgraph.moving",
    "langgraph_store": "walpool.langgraph.moving",
    "openai_agents": "walpool.openai_agents.moving",
}
_REFUSED: Final = 2


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="path or URL that is read; it stays as it is")
    parser.add_argument("target", metavar="DST", help="path or URL that is written, of the other backend")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the plan, and write nothing")
    what.add_argument("--resume", action="store_true", help="go on with a migration that was interrupted")
    what.add_argument("--verify", action="store_true", help="only compare the two")
    what.add_argument("--repair", action="store_true", help="compare the two, and copy the rows that differ")
    parser.add_argument(
        "--live",
        action="store_true",
        help="the source is written to: at the end its writers wait while both are compared",
    )
    parser.add_argument(
        "--on-bad",
        nargs="+",
        metavar=("HOW", "FILE"),
        help="rows that DST cannot take: fail (the default), replace, or skip-to-file FILE",
    )
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--force", action="store_true", help="DST may have tables: those of the same names are filled")
    parser.add_argument(
        "--tenant", metavar="NAME", help="whose rows the server's are, of walpool's tables and under policies"
    )
    parser.add_argument("--retire", action="store_true", help="mark a SQLite source as retired once both are equal")


def _migrate(arguments: argparse.Namespace) -> None:
    from walpool.migrating import Refused, migrate

    options = _options(arguments)
    is_json = bool(arguments.json)
    begun: list[bool] = []
    try:
        with progress_of_each(is_json, rate="rows") as shown:
            report = migrate(arguments.source, arguments.target, options, shown, lambda: begun.append(True))
    except Refused as error:
        _print(error.report, is_json=is_json)
        raise
    except ConfigError:
        raise
    except KeyboardInterrupt:
        raise Failed(f"interrupted; {_next(options, is_begun=bool(begun))}", _INTERRUPTED) from None
    except (Error, OSError) as error:
        is_begun = bool(begun) or getattr(error, "outcome", None) == "unknown"
        mended = "" if getattr(error, "retryable", False) or not is_begun else "once that is mended, "
        said = f"{error}; {mended}{_next(options, is_begun=is_begun)}"
        raise Failed(said, _INTERRUPTED if is_begun else _REFUSED) from error
    _print(report, is_json=is_json)
    if report.is_dry and report.plan.obstacles:
        raise ConfigError(report.plan.obstacles[0])
    if not report.is_dry and not report.is_same:
        raise Failed("the target differs from the source: walpool migrate with --repair copies what differs", _DIFFERS)


def _next(options: Options, *, is_begun: bool) -> str:
    """Return what a migration that was stopped has left, and how to go on."""
    if not is_begun:
        return "nothing was written"
    return f"walpool migrate with --{'repair' if options.repair else 'resume'} goes on from here"


def _options(arguments: argparse.Namespace) -> Options:
    from walpool.interchange import MemoryMover
    from walpool.migrating import Options

    how, *files = arguments.on_bad or [None]
    known: dict[str | None, Any] = {None: None, "fail": "fail", "replace": "replace", "skip-to-file": "skip"}
    if how not in known:
        raise ConfigError(f"--on-bad takes fail, replace, or skip-to-file FILE, not {how!r}")
    if len(files) != (how == "skip-to-file"):
        raise ConfigError("--on-bad skip-to-file takes one FILE, and the others none; put SRC and DST before it")
    return Options(
        is_dry=arguments.dry_run,
        resume=arguments.resume,
        verify=arguments.verify,
        repair=arguments.repair,
        live=arguments.live,
        force=arguments.force,
        on_bad=known[how],
        bad_path=files[0] if files else None,
        tables=arguments.tables,
        tenant=arguments.tenant,
        retire=arguments.retire,
        sets=_Sets(),
        movers={"memory": MemoryMover(arguments.tenant)},
    )


class _Sets(Mapping[str, "Sequence[Set]"]):
    """What goes by the name of a set; its framework is imported where there is something of it, and only there."""

    def __getitem__(self, name: str) -> Sequence[Set]:
        found: Mapping[str, Sequence[Set]] = import_module(_HOMES[name]).SETS
        return found[name]

    def __contains__(self, name: object) -> bool:
        return name in _HOMES

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


def _print(report: Report, *, is_json: bool) -> None:
    if is_json:
        print_json(report.as_dict())
        return
    _print_plan(report.plan)
    for table in report.tables:
        _print_table(table)
    for note in report.notes:
        print(harmless(note))
    if not report.is_dry:
        print(_summary(report))


def _print_plan(plan: Plan) -> None:
    print(f"{harmless(plan.source)} to {harmless(plan.target)}")
    for table in plan.tables:
        print(f"  {harmless(table.name)}: {table.rows} rows, {_key(table)}")
        for note in table.notes:
            print(f"    {harmless(note)}")
    for name, why in plan.left_out:
        print(f"  {harmless(name)}: left out: {harmless(why)}")
    for note in plan.notes:
        print(f"  {harmless(note)}")
    for fault in plan.faults[:_SHOWN]:
        print(f"  bad: {harmless(f'{fault.table}.{fault.column}, key {fault.key}: {fault.why}')}")
    if plan.faulty > _SHOWN:
        print(f"  and {plan.faulty - _SHOWN} bad values more")
    for obstacle in plan.obstacles:
        print(f"  refused: {harmless(obstacle)}")


def _key(table: Table) -> str:
    return f"key {', '.join(map(harmless, table.key))}" if table.key else "no key"


def _print_table(table: TableReport) -> None:
    counts = [f"{table.copied} copied"] if table.copied else []
    counts += [f"{table.skipped} skipped"] if table.skipped else []
    counts += [f"{table.replaced} replaced"] if table.replaced else []
    counts += [f"{table.compared} compared"] if table.is_compared and not _is_a_whole(table) else []
    counts += ["moved and compared"] if _is_a_whole(table) else []
    print(f"{harmless(table.name)}: {', '.join(counts)}: {'differs' if table.buckets else 'same'}")
    for said in table.buckets[:_SHOWN]:
        print(f"  {harmless(said)}")
    for what in ("missing", "changed", "extra"):
        keys = getattr(table, what)
        if keys:
            some = ", ".join(harmless(repr(key)) for key in keys[:_SHOWN])
            print(f"  {len(keys)} {what}: {some}{', ...' if len(keys) > _SHOWN else ''}")


def _is_a_whole(table: TableReport) -> bool:
    """Return whether it is a set that was moved as one, by whoever knows it."""
    return table.name.startswith("set ")


def _summary(report: Report) -> str:
    earlier = sum(table.earlier for table in report.tables)
    copied = sum(table.copied for table in report.tables) - earlier
    seconds = report.seconds.get("copy", 0.0)
    rate = f" ({copied / seconds:,.0f} rows/s)" if copied and seconds > 0 else ""
    before = f", {earlier} before" if earlier else ""
    said = [f"{copied} rows copied in {seconds:.1f} s{rate}{before}"] if "copy" in report.seconds else []
    said += [f"compared in {report.seconds['verify']:.1f} s"] if "verify" in report.seconds else []
    said += [f"{report.repaired} rows repaired"] if report.repaired else []
    said += ["the source is marked as retired"] if report.is_retired else []
    return f"{'; '.join(said)}: {'same' if report.is_same else 'differs'}"


def _unretire_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="DB", help="path or URL of the file")


def _unretire(arguments: argparse.Namespace) -> None:
    from walpool.migrating import unretire

    successor = unretire(arguments.file)
    if arguments.json:
        print_json({"successor": successor})
    elif successor is None:
        print("it was not retired; nothing was changed")
    else:
        print(f"no longer retired in favour of {harmless(successor)}: pools that open it from now on may write it")


COMMANDS = (
    Command("migrate", "copy a SQLite file into PostgreSQL, or back, and compare both", _arguments, _migrate),
    Command("unretire", "let a file be written again that migrate has retired", _unretire_arguments, _unretire),
)
