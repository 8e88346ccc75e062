"""How far a migration is: a table in the target, written in the same transactions as the rows. Knows no rows."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from walpool.migrating import _postgres_sql, _sqlite_sql
from walpool.migrating._faults import Garbled
from walpool.migrating.plan import Plan, Table

if TYPE_CHECKING:
    from walpool.migrating._cleaning import OnBad
    from walpool.migrating._sides import Side
    from walpool.types import Row

__all__ = ["Progressed", "State"]

_CREATE = {"sqlite": _sqlite_sql.CREATE_STATE, "postgres": _postgres_sql.CREATE_STATE}
_READ = "SELECT state, document FROM walpool_migration WHERE name = ?"
_WRITE = """INSERT INTO walpool_migration (name, state, document) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET state = excluded.state, document = excluded.document"""
_FORGET = "DELETE FROM walpool_migration"
_PLAN = "plan"


@dataclass(slots=True)
class Progressed:
    """How far one table is.

    Attributes:
        phase: `copying`, `copied`, or `finished` when its indexes are made.
        after: the key of the last row that was read; None before the first.
        rows: how many rows were written.
        skipped, replaced: how many were left out, or changed.
    """

    phase: str = "copying"
    after: Row | None = None
    rows: int = 0
    skipped: int = 0
    replaced: int = 0

    @property
    def is_begun(self) -> bool:
        """Whether anything was copied."""
        return self.after is not None or self.phase != "copying"


class State:
    """The state of a migration, in its target."""

    def __init__(self, target: Side) -> None:
        self._target = target

    def plan(self) -> tuple[Plan, OnBad, bool] | None:
        """Return the plan by which the target was made, what happens to bad rows, and whether all of it was done."""
        if "walpool_migration" not in self._target.names():
            return None
        found = self._target.fetch(_READ, (_PLAN,))
        if not found:
            return None
        state, document = found[0]
        given = json.loads(document)
        return Plan.from_dict(given["plan"]), given["on_bad"], state == "done"

    def begin(self, plan: Plan, on_bad: OnBad) -> None:
        """Write the plan down, in place of an older one."""
        if "walpool_migration" not in self._target.names():  # a role that may make no table may be given this one
            self._target.execute(_CREATE[self._target.backend])
        self._target.execute(_FORGET)
        self.set_plan(plan, on_bad, is_done=False)

    def set_plan(self, plan: Plan, on_bad: OnBad, *, is_done: bool) -> None:
        """Write down that all was done, or not yet."""
        document = json.dumps({"plan": plan.as_dict(), "on_bad": on_bad})
        self._target.execute(_WRITE, (_PLAN, "done" if is_done else "running", document))

    def table(self, table: Table) -> Progressed:
        """Return how far a table is."""
        found = self._target.fetch(_READ, (f"table {table.name}",))
        if not found:
            return Progressed()
        phase, document = found[0]
        given = json.loads(document)
        after = given.pop("after")
        return Progressed(phase, None if after is None else tuple(map(_value, after)), **given)

    def set_table(self, table: Table, progressed: Progressed) -> None:
        """Write down how far a table is; in the transaction that made it so."""
        after = None if progressed.after is None else list(map(_spelled, progressed.after))
        document = {
            "after": after,
            "rows": progressed.rows,
            "skipped": progressed.skipped,
            "replaced": progressed.replaced,
        }
        self._target.execute(_WRITE, (f"table {table.name}", progressed.phase, json.dumps(document)))


def _spelled(value: Any) -> Any:
    """Return a value of a key as JSON that gives it back to the bit."""
    if isinstance(value, Garbled):
        return {"garbled": b64encode(value).decode()}
    if isinstance(value, bytes):
        return {"bytes": b64encode(value).decode()}
    if isinstance(value, float):
        return {"float": value.hex()}
    return value


def _value(spelled: Any) -> Any:
    if not isinstance(spelled, dict):
        return spelled
    ((kind, text),) = spelled.items()
    if kind == "float":
        return float.fromhex(text)
    return Garbled(b64decode(text)) if kind == "garbled" else b64decode(text)
