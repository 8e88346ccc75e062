"""The demo from above: both sides, the count of their rows, the restart, the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import plot, report
from demo.processes import ProcessError, last_message, messages
from demo.progress import progress
from demo.sides import SIDES, WALPOOL, Side

_MARK = ".walpool-demo"  # in a folder that the demo made, and may empty


@dataclass(frozen=True)
class Options:
    """How much work, and where to."""

    rounds: int
    workers: int
    limit: float
    """Seconds after which a side begins no new round."""
    results: Path
    is_json: bool


_FULL = {"rounds": 64, "workers": 16, "limit": 40.0}
_QUICK = {"rounds": 8, "workers": 8, "limit": 15.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and print what came of it; return the exit status: 1 if walpool lost a row or recalled wrongly."""
    options = _parse(arguments)
    try:
        outcome = run(options)
    except (ProcessError, FileExistsError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(json.dumps(outcome, indent=2) + "\n" if options.is_json else report.text(outcome))
    return 0 if outcome["ok"] else 1


def run(options: Options) -> dict[str, Any]:
    """Return what was measured and found, as `--json` prints it.

    Raises:
        ProcessError: one of the demo's processes failed.
        FileExistsError: the results folder holds something that is not the demo's.
    """
    _empty(options.results)
    sides = {side.name: _run_side(side, options) for side in SIDES.values()}
    recall = last_message(
        "recall", options.results / f"{WALPOOL.name}.json", storage=_storage(options, WALPOOL), log=_log(options)
    )
    files = {
        "database": WALPOOL.files(_storage(options, WALPOOL)).memory,
        "plot": options.results / "demo.png",
        "report": options.results / "demo.json",
    }
    outcome: dict[str, Any] = {
        "sides": sides,
        "recall": recall,
        "environment": _environment(sides),
        "files": {name: str(path) for name, path in files.items()},
    }
    outcome["problems"] = report.problems(outcome)
    outcome["ok"] = not outcome["problems"]
    plot.save(outcome, files["plot"])
    files["report"].write_text(json.dumps(outcome, indent=2) + "\n")
    return outcome


def _run_side(side: Side, options: Options) -> dict[str, Any]:
    """Run one side and count its rows; return its figures with the counts, but without the ledger."""
    storage, log = _storage(options, side), _log(options)
    storage.mkdir()
    work = (side.name, options.results, options.rounds, options.workers, options.limit)
    with progress(side.title, options.rounds) as advance:
        for message in messages("worker", *work, storage=storage, log=log):
            if "rounds" in message:
                advance(message["rounds"])
    result = options.results / f"{side.name}.json"
    rows = last_message("audit", side.name, storage, result, storage=storage, log=log)
    figures = json.loads(result.read_text())
    del figures["acknowledged"], figures["reports"]
    return {**figures, "rows": rows}


def _storage(options: Options, side: Side) -> Path:
    return options.results / side.name


def _log(options: Options) -> Path:
    return options.results / "crewai.log"


def _empty(folder: Path) -> None:
    """Make `folder`, or clear it if an earlier demo made it."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise FileExistsError(f"{folder} holds files that are not the demo's; give --results another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _environment(sides: dict[str, Any]) -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        **sides["walpool"]["versions"],
        "sqlite": {name: side["sqlite"] for name, side in sides.items()},
        "dims": sides["walpool"]["dims"],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
    }


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Run CrewAI in parallel workers on its own storage and on walpool, and compare."
    )
    parser.add_argument("--quick", action="store_true", help="a few rounds only, to see that it works")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--results", type=Path, default=Path("results/demo"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    amount: dict[str, Any] = _QUICK if given.quick else _FULL
    return Options(**amount, results=given.results.absolute(), is_json=given.json)
