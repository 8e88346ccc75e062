"""What came of a migration: `Report`, plain data. Knows no database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from walpool.migrating.plan import Plan

__all__ = ["Progress", "Report", "TableReport"]


class Progress(Protocol):
    """What is called with how far a migration is."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Show that `done` of about `total` rows of `what` are done."""


@dataclass(slots=True)
class TableReport:
    """What came of one table.

    Attributes:
        name: which.
        copied: rows that were written, by this run and by those before it that it went on from.
        earlier: how many of these the runs before it wrote.
        skipped, replaced: rows that were left out, or changed, because the target could not take them.
        compared: rows of the source that were compared, as the target has to have them.
        buckets: those that differ.
        missing, changed, extra: keys of rows that the target lacks, has with other values, or has alone.
        is_compared: whether it was compared at all.
    """

    name: str
    copied: int = 0
    earlier: int = 0
    skipped: int = 0
    replaced: int = 0
    compared: int = 0
    buckets: list[str] = field(default_factory=list)
    missing: list[Any] = field(default_factory=list)
    changed: list[Any] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)
    is_compared: bool = False


@dataclass(slots=True)
class Report:
    """What came of a migration.

    Attributes:
        plan: what was to be done.
        tables: what came of each table.
        notes: what a person should know of what was done.
        repaired: how many rows were written or deleted to make both sides equal.
        seconds: how long each step took, by its name.
        is_dry: whether only the plan was made.
        is_retired: whether the source was marked as retired.
    """

    plan: Plan
    tables: list[TableReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repaired: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    is_dry: bool = False
    is_retired: bool = False

    @property
    def is_same(self) -> bool:
        """Whether every table was compared, and none differs."""
        return all(table.is_compared and not table.buckets for table in self.tables)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "plan": self.plan.as_dict(),
            "dry_run": self.is_dry,
            "same": None if self.is_dry else self.is_same,
            "repaired": self.repaired,
            "retired": self.is_retired,
            "seconds": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
            "tables": [_as_dict(table) for table in self.tables],
            "notes": list(self.notes),
        }


def _as_dict(table: TableReport) -> dict[str, Any]:
    return {name: getattr(table, name) for name in TableReport.__dataclass_fields__}
