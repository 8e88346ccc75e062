"""`python -m benches.run`: runs workloads, the contenders in turn, and prints a table for each.

Owns the order of runs and the command line. Must not know what a workload does.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benches import environment, plots, profiling
from benches.contenders import Walpool, missing
from benches.harness import FULL, QUICK, SMALLEST, Scale, Workload
from benches.report import RICH, Report
from benches.results import Result
from benches.targets import OURS
from benches.workloads import WORKLOADS

Tick = Callable[[str], None]  # called with what runs next


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 0, or 1 if a contender lost or damaged a row."""
    arguments = _parse(argv)
    if arguments.list:
        print("\n".join(f"{workload.name:20} {workload.title}" for workload in WORKLOADS.values()))
        return 0
    chosen = _chosen(arguments.workloads) or [w for w in WORKLOADS.values() if not getattr(w, "on_request", False)]
    with _folder(arguments.data) as folder:
        return _run(chosen, arguments, folder)


def _chosen(names: Sequence[str]) -> list[Workload]:
    """Return the workloads that are named; what runs on request only is not meant by a name with a `*`."""
    chosen = []
    for name in names:
        matching = [workload for workload in WORKLOADS.values() if fnmatch.fnmatchcase(workload.name, name)]
        chosen += [w for w in matching if w.name == name or not getattr(w, "on_request", False)]
    return chosen


def _run(chosen: Sequence[Workload], arguments: argparse.Namespace, folder: Path) -> int:
    scale: Scale = arguments.scale
    runs = arguments.runs or scale.runs
    fsync_ms = environment.measure_fsync_ms(folder)
    facts = environment.describe(folder.parent, fsync_ms) | {"runs": f"{runs}, interleaved; medians"}
    report = Report()
    report.header(facts)
    results = []
    with _progress(sum(len(workload.contenders) * _runs(workload, runs) for workload in chosen), report) as tick:
        for workload in chosen:
            result = measure(workload, folder, scale, _runs(workload, runs), arguments.contenders, tick)
            results.append(result)
            report.result(result, fsync_ms)
            if arguments.profile:
                _profile(workload, folder, scale, arguments.plots, report)
            if arguments.plots:
                _plot(result, arguments.plots, facts)
    report.summary(results, fsync_ms)
    if arguments.json:
        report_json = {"facts": facts, "fsync_ms": fsync_ms, "results": [r.as_json(fsync_ms) for r in results]}
        arguments.json.write_text(json.dumps(report_json, indent=1))
    return 1 if any(result.wrong() for result in results) else 0


def _runs(workload: Workload, runs: int) -> int:
    """Return how often a workload is run: once, where it says that nothing would change."""
    most: int = getattr(workload, "most_runs", runs)
    return min(runs, most)


def measure(
    workload: Workload, folder: Path, scale: Scale, runs: int, only: Sequence[str] = (), tick: Tick = lambda _: None
) -> Result:
    """Run every contender of a workload `runs` times, interleaved (A B C C B A ...), so that drift meets them all.

    Args:
        workload: what to run.
        folder: where databases are made; what runs share stays there.
        scale: how long and on how much data.
        runs: how often, at least 1.
        only: the contenders to run; empty runs all of them.
        tick: called before each run.
    """
    result = Result(workload)
    able = []
    for name, contender in workload.contenders.items():
        reason = missing(contender)
        if reason is not None:
            result.skipped[name] = reason
        elif not only or name in only:
            able.append(name)
    for run in range(runs):
        for name in able if run % 2 == 0 else reversed(able):
            tick(f"{workload.name}, {name}, run {run + 1}")
            with environment.others_cpu() as others:
                sample = _once(workload, name, folder, scale)
            result.add(name, sample, others.cores)
    for _ in range(runs * (len(workload.contenders) - len(able))):
        tick(workload.name)
    return result


def _once(workload: Workload, contender: str, folder: Path, scale: Scale) -> Any:
    own = folder / "run"
    own.mkdir()
    gc.collect()  # the last contender's garbage is not the next one's pause
    try:
        return workload.run(contender, own, scale)
    finally:
        shutil.rmtree(own)


def _profile(workload: Workload, folder: Path, scale: Scale, plots_folder: Path | None, report: Report) -> None:
    if OURS not in workload.contenders or missing(workload.contenders[OURS]) is not None:
        return
    path = (plots_folder or Path.cwd()) / f"{workload.name}-profile.svg"
    # The statistics are those of the last run before: the profiler stops the process for each of its samples.
    stats = {f"  {name}": f"{value:g}" for name, value in Walpool.last_stats.items() if value}
    with profiling.flame_graph(path):
        _once(workload, OURS, folder, scale)
    report.header({"  profile": str(path), **stats})


def _plot(result: Result, folder: Path, facts: dict[str, str]) -> None:
    try:
        plots.save(result, folder, facts)
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="benches-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _progress(total: int, report: Report) -> Iterator[Tick]:
    if not RICH:
        yield lambda text: print(text, file=sys.stderr)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=report.console, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("", total=total, completed=-1)

        def tick(text: str) -> None:
            progress.update(task, advance=1, description=text)

        yield tick


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help="the names that --list prints, or 'memory-*'; all if none"
    )
    parser.add_argument("--list", action="store_true", help="print the workloads and stop")
    parser.add_argument("--contenders", nargs="+", default=(), metavar="NAME", help="run only these")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each contender (5; 3 with --quick)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="scale", action="store_const", const=QUICK, default=FULL, help="shorter runs")
    size.add_argument("--smallest", dest="scale", action="store_const", const=SMALLEST, help="only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures")
    parser.add_argument("--plots", type=Path, metavar="DIR", default=Path("results"), help="for plots (results)")
    parser.add_argument("--no-plots", dest="plots", action="store_const", const=None, help="draw none")
    parser.add_argument("--profile", action="store_true", help="one more run of walpool under py-spy: a flame graph")
    parser.add_argument("--data", type=Path, metavar="DIR", default=Path("results"), help="for databases (results)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.workloads if not _chosen([name])]
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}; --list prints them")
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs is at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
