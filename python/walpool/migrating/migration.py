"""`migrate`: one database into another of the other backend. The order of the work; each step has a file of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from walpool.errors import ConfigError, NotSupportedError, ProgrammingError
from walpool.migrating import _from_postgres, _from_sqlite, retiring
from walpool.migrating._barred import irreplaceable
from walpool.migrating._checking import check
from walpool.migrating._choosing import choose
from walpool.migrating._cleaning import Cleaner, OnBad, refuse_unwritable
from walpool.migrating._comparing import Comparison, compare
from walpool.migrating._copying import copy
from walpool.migrating._existing import fit_into
from walpool.migrating._faults import as_json
from walpool.migrating._indexing import find_long_keys
from walpool.migrating._judging import find_barred
from walpool.migrating._own import Own
from walpool.migrating._postgres import PostgresSide
from walpool.migrating._repairing import repair
from walpool.migrating._sqlite import SqliteSide
from walpool.migrating._state import State
from walpool.migrating._trying import try_conditions
from walpool.migrating.plan import Plan, Table
from walpool.migrating.report import Progress, Report, TableReport
from walpool.migrating.sets import OWN, LooksAhead, Mover, Set
from walpool.settings import Settings

__all__ = ["Options", "Refused", "migrate"]

_ROUNDS: Final = 3
"""Times that what was written meanwhile is copied before everybody is kept from writing."""


class Refused(ConfigError):
    """The migration cannot be done as asked; nothing was written.

    Attributes:
        report: with the plan, which says why.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    Attributes:
        is_dry: make the plan, and write nothing.
        resume: go on with a migration that was interrupted; begin, where it had not begun.
        verify: only compare the two.
        repair: compare the two, and copy what differs.
        live: the source is written to meanwhile: at the end everybody is kept from writing it for the last comparison.
        force: the target may have tables already; those of the same names are filled as they are.
        on_bad: what happens to rows that the target cannot take; None is what the migration began with, or `fail`.
        bad_path: the file for those that are skipped.
        tables: only these; None is all.
        retire: cut over, once both are equal: mark the file as retired if it is the source; if it is the target, take
            such a mark off it.
        sets: walpool's own sets of tables that are moved part by part, by their names: `walpool.langgraph.moving.SETS`,
            and those of `walpool.crewai.moving` and `walpool.openai_agents.moving`.
        movers: who moves such a set as a whole; those that are in neither are left out, and the plan says so.
        tenant: whose rows of walpool's own sets the server's are, and of tables under row-level security; None is the
            one without a name.
    """

    is_dry: bool = False
    resume: bool = False
    verify: bool = False
    repair: bool = False
    live: bool = False
    force: bool = False
    on_bad: OnBad | None = None
    bad_path: str | os.PathLike[str] | None = None
    tables: Sequence[str] | None = None
    retire: bool = False
    sets: Mapping[str, Sequence[Set]] = field(default_factory=dict)
    movers: Mapping[str, Mover] = field(default_factory=dict)
    tenant: str | None = None


def migrate(
    source: str,
    target: str,
    options: Options | None = None,
    progress: Progress | None = None,
    on_begun: Callable[[], object] = bool,
) -> Report:
    """Copy a database into another one, and compare both: a SQLite file to PostgreSQL, or back.

    The source stays as it is. Stopped at any moment, the target is such that `resume` goes on.

    Args:
        source: path or URL of what is read.
        target: path or URL of what is written: one of the two is a file, the other `postgresql://`.
        options: how; None is `Options()`.
        progress: called with how far it is.
        on_begun: called when something may have been written: from then on `resume` or `repair` goes on.

    Raises:
        Refused: it cannot be done as asked; see its `report`. Nothing was written.
        ConfigError: both are of one backend, the source is not there, or there is nothing to compare.
        DataError: a row that the target cannot take came into the source after the plan was made.
    """
    with _Migration(source, target, options or Options(), progress, on_begun) as migration:
        return migration.run()


class _Migration:
    def __init__(
        self, source: str, target: str, options: Options, progress: Progress | None, on_begun: Callable[[], object]
    ) -> None:
        self._addresses = source, target
        self._on_begun = on_begun
        self._options = options
        self._progress = progress
        self._own = Own(options.sets)
        self._open = ExitStack()
        self._seconds: dict[str, float] = {}
        source_path, target_path = Settings.load(source).path, Settings.load(target).path
        if (source_path is None) == (target_path is None):
            kind = "PostgreSQL databases" if source_path is None else "SQLite files"
            other = "pg_dump, or logical replication" if source_path is None else "pool.backup()"
            both = f"{Settings.load(source).shown_url} and {Settings.load(target).shown_url}"
            raise ConfigError(f"{both}: both are {kind}, and migrate goes from one backend to the other; use {other}")
        if source_path is not None and not os.path.isfile(source_path):
            raise ConfigError(f"there is no file {source_path}")
        # A target that is not there is not made before something is written into it.
        self._target_is_new = target_path is not None and not os.path.exists(target_path)
        self._target_path = target_path

    def __enter__(self) -> _Migration:  # noqa: PYI034  (typing.Self is newer than Python 3.10)
        try:
            self._source = self._opened(self._addresses[0])
            self._target = None if self._target_is_new else self._opened(self._addresses[1])
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def run(self) -> Report:
        options = self._options
        known = None if self._target is None else State(self._target).plan()
        if options.verify or options.repair:
            return self._check_only(known)
        if options.resume and known is not None:  # where nothing was written yet it begins
            plan, on_bad, _ = known
            self._refuse_another(plan)
            refuse_unwritable(options.bad_path)
            self._on_begun()
            return self._work(plan, options.on_bad or on_bad)
        with self._timed("plan"):
            plan = self._planned()
        report = Report(plan, seconds=self._seconds, is_dry=True)
        self._refuse_target(plan, known)
        on_bad = options.on_bad or "fail"
        if plan.faulty and on_bad == "fail":
            plan.obstacles.append(
                f"{plan.faulty} values that the target cannot take: --on-bad says what to do with them"
            )
        if on_bad == "replace":
            plan.obstacles += [said for table in plan.tables for said in irreplaceable(table)]
        if options.is_dry:
            return report
        if plan.obstacles:
            others = len(plan.obstacles) - 1
            more = f", and {others} more reason{'s' if others > 1 else ''}" if others else ""
            raise Refused(f"{plan.obstacles[0]}{more}", report)
        refuse_unwritable(options.bad_path)
        if plan.direction == "to_sqlite" and on_bad != "fail":
            plan.tables = [replace(table, on_odd=on_bad) if table.is_suspect else table for table in plan.tables]
        target = self._target = self._target or self._opened(self._addresses[1])
        try:
            with target.transaction():
                State(target).begin(plan, on_bad)
                target.create([table for table in plan.tables if not table.exists and not table.owner])
        except (NotSupportedError, ProgrammingError) as error:
            plan.obstacles.append(f"the tables cannot be made: {error}")
            raise Refused(plan.obstacles[0], report) from error
        self._on_begun()
        return self._work(plan, on_bad)

    # The plan.

    def _planned(self) -> Plan:
        source, options = self._source, self._options
        is_to_postgres = isinstance(source, SqliteSide)
        target_name = self._target.name if self._target is not None else str(self._target_path)
        direction = "to_postgres" if is_to_postgres else "to_sqlite"
        plan = Plan(source.name, target_name, direction, tenant=options.tenant)
        if isinstance(source, SqliteSide):
            _from_sqlite.look(source, plan)
            chosen = choose(source, plan, options, self._own)
            _from_sqlite.refuse_names(plan)
        else:
            _from_postgres.look(source, plan)
            chosen = choose(source, plan, options, self._own)
            _from_postgres.refuse_names(plan)
        if plan.obstacles:
            return plan
        if self._target is not None and options.force:
            fit_into(source, self._target, plan)
        for owner in chosen:
            self._own.look(owner, source, self._target, plan)
        for name in plan.moved:
            if isinstance(mover := options.movers[name], LooksAhead):
                obstacles, notes = mover.look(source.address, self._addresses[1])
                plan.obstacles += obstacles
                plan.notes += notes
        check(source, plan, self._ticks(plan, "look at"))
        if isinstance(source, SqliteSide) and isinstance(self._target, PostgresSide):
            try_conditions(self._target, plan)
            find_barred(source, self._target, plan)
            find_long_keys(source, self._target, plan)
        return plan

    def _refuse_target(self, plan: Plan, known: tuple[Plan, OnBad, bool] | None) -> None:
        if known is not None and not known[2]:
            plan.obstacles.append("a migration into it was interrupted: --resume goes on with it")
        there = set() if self._target is None else self._target.names() - OWN
        if there and not self._options.force:
            some = ", ".join(sorted(there)[:3])
            plan.obstacles.append(f"the target is not empty ({some}): --force leaves what is there, and adds to it")
        if isinstance(self._target, PostgresSide) and (encoding := self._target.encoding()) != "UTF8":
            plan.obstacles.append(f"the target is encoded in {encoding}: make the database with ENCODING 'UTF8'")

    def _refuse_another(self, plan: Plan) -> None:
        if plan.source != self._source.name:
            raise ConfigError(f"the migration in the target is from {plan.source}, not from {self._source.name}")
        if plan.tenant != self._options.tenant:
            raise ConfigError("the migration in the target is of another tenant: give the --tenant that it began with")
        self._own.attach(plan)

    # The work.

    def _work(self, plan: Plan, on_bad: OnBad) -> Report:
        options, target = self._options, self._target
        assert target is not None
        state, cleaner = State(target), Cleaner(on_bad, options.bad_path)
        report = Report(plan, seconds=self._seconds)
        self._own.make(plan, target)
        held = self._held(plan, state)
        with self._timed("copy"):
            for table in plan.tables:
                report.tables.append(self._copied(table, state, cleaner, is_held=table.name in held))
        with self._timed("indexes"):
            for table in plan.tables:
                self._finished(table, state)
        with ExitStack() as frozen:
            self._made_equal(report, cleaner, frozen, held)
            if options.retire and report.is_same:
                self._cut_over(report)
        if isinstance(target, SqliteSide) and retiring.is_marked(target):
            report.notes.append("the target is marked as retired: walpool unretire lets it be written")
        with self._timed("foreign keys"):
            report.notes += target.relate(plan.tables)
        self._move_sets(report, target)
        state.set_plan(plan, on_bad, is_done=report.is_same)
        return report

    def _held(self, plan: Plan, state: State) -> set[str]:
        """Return the tables in which the target has rows of its own; of a set all, where one of them has."""
        assert self._target is not None
        found = [
            table
            for table in plan.tables
            if (table.exists or table.owner) and not state.table(table).is_begun and self._target.has_rows(table)
        ]
        owners = {table.owner for table in found if table.owner}
        return {table.name for table in found} | {table.name for table in plan.tables if table.owner in owners}

    def _copied(self, table: Table, state: State, cleaner: Cleaner, *, is_held: bool) -> TableReport:
        assert self._target is not None
        if is_held:
            return TableReport(table.name)  # what it lacks is found by the comparison
        tick = self._ticks_of("copy", table)
        before = state.table(table)
        progressed = copy(self._source, self._target, table, state, cleaner, tick)
        return TableReport(table.name, progressed.rows, before.rows, progressed.skipped, progressed.replaced)

    def _finished(self, table: Table, state: State) -> None:
        assert self._target is not None
        progressed = state.table(table)
        if progressed.phase == "copied":
            with self._target.transaction():
                self._target.finish(table)
                progressed.phase = "finished"
                state.set_table(table, progressed)

    def _made_equal(self, report: Report, cleaner: Cleaner, frozen: ExitStack, held: set[str]) -> None:
        """Compare, and repair what is to be repaired; at the end nobody writes a source that is live."""
        options, tables = self._options, report.plan.tables
        found = self._compared(tables, cleaner)
        if options.live:
            for _ in range(_ROUNDS):
                if all(one.is_same for one in found):
                    break
                self._repaired(report, found, cleaner)
                found = self._compared([one.table for one in found if not one.is_same], cleaner)
            frozen.enter_context(self._source.frozen(tables))
            with self._timed("frozen"):
                found = self._mended(report, self._compared(tables, cleaner), cleaner)
        elif options.repair:
            found = self._mended(report, found, cleaner)
        elif held:
            self._repaired(report, [one for one in found if one.table.name in held], cleaner, only_adds=True)
            found = self._compared(tables, cleaner)
        _enter(report, found)

    def _mended(self, report: Report, found: list[Comparison], cleaner: Cleaner) -> list[Comparison]:
        """Repair, until both are the same: an item that is changed loses its vectors, which are the next to come."""
        for _ in range(_ROUNDS):
            if not self._repaired(report, found, cleaner):
                break
            found = self._compared(report.plan.tables, cleaner)
        return found

    def _compared(self, tables: Sequence[Table], cleaner: Cleaner) -> list[Comparison]:
        with self._timed("verify"):
            return [self._compare(table, cleaner) for table in tables]

    def _compare(self, table: Table, cleaner: Cleaner) -> Comparison:
        source, target = self._source, self._target
        tick = self._ticks_of("verify", table)
        tick(0)
        if isinstance(source, SqliteSide):
            assert isinstance(target, PostgresSide)
            return compare(source, target, table, cleaner, tick)
        assert isinstance(target, SqliteSide)
        return compare(target, source, table, None, tick)

    def _repaired(
        self, report: Report, found: Sequence[Comparison], cleaner: Cleaner, *, only_adds: bool = False
    ) -> int:
        assert self._target is not None
        differing = [one for one in found if not one.is_same]
        if not differing:
            return 0
        with self._timed("repair"):
            number = repair(self._source, self._target, differing, cleaner, only_adds=only_adds)
        report.repaired += number
        return number

    def _check_only(self, known: tuple[Plan, OnBad, bool] | None) -> Report:
        """Compare two databases that are there, by the plan of the migration that made the one from the other."""
        if known is None:
            raise ConfigError("the target has no migration in it that could be compared with its source")
        plan, on_bad, _ = known
        self._refuse_another(plan)
        if self._options.tables is not None:
            wanted = set(self._options.tables)
            plan.tables = [table for table in plan.tables if not wanted.isdisjoint((table.name, table.owner))]
        report = Report(plan, [TableReport(table.name) for table in plan.tables], seconds=self._seconds)
        with ExitStack() as frozen:
            if self._options.repair:
                self._on_begun()
                self._made_equal(report, Cleaner(on_bad), frozen, set())
                if self._options.retire and report.is_same:
                    self._cut_over(report)
                if self._options.tables is None and self._target is not None:
                    State(self._target).set_plan(plan, on_bad, is_done=report.is_same)
            else:
                _enter(report, self._compared(plan.tables, Cleaner(on_bad)))
        return report

    def _cut_over(self, report: Report) -> None:
        if isinstance(self._source, SqliteSide):
            retiring.mark(self._source, report.plan.target)
            report.is_retired = True
            return
        report.notes.append("a PostgreSQL source is not marked as retired: take its rights to write away")
        if isinstance(self._target, SqliteSide) and retiring.unmark(self._target):
            report.notes.append("the target was marked as retired, and is no more")

    def _move_sets(self, report: Report, target: SqliteSide | PostgresSide) -> None:
        for name in report.plan.moved:
            if name not in self._options.movers:
                raise ConfigError(f"the migration moves the set {name}, and nothing here can")
            with self._timed(f"set {name}"):
                said = self._options.movers[name](self._source.address, target.address)
            report.tables.append(TableReport(f"set {name}", is_compared=True, buckets=list(said)))

    # What all of it needs.

    def _opened(self, address: str) -> SqliteSide | PostgresSide:
        is_file = Settings.load(address).path is not None
        side = SqliteSide(address) if is_file else PostgresSide(address, self._options.tenant)
        self._open.callback(side.close)
        return side

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[step] = self._seconds.get(step, 0.0) + time.monotonic() - began

    def _ticks(self, plan: Plan, what: str) -> Callable[[Table, int], None]:
        counters: dict[str, Callable[[int], None]] = {}

        def tick(table: Table, rows: int) -> None:
            counters.setdefault(table.name, self._ticks_of(what, table))(rows)

        return tick

    def _ticks_of(self, what: str, table: Table) -> Callable[[int], None]:
        done = 0

        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            if self._progress is not None and (table.rows or done):
                self._progress(done, max(table.rows, done), f"{what} {table.name}")

        return tick


def _enter(report: Report, found: Sequence[Comparison]) -> None:
    by_name = {table.name: table for table in report.tables}
    for one in found:
        entry = by_name[one.table.name]
        entry.is_compared = True
        entry.compared = one.rows
        entry.buckets = list(one.buckets)
        for name in ("missing", "changed", "extra"):
            setattr(entry, name, [[as_json(part) for part in key] for key in getattr(one, name)])
