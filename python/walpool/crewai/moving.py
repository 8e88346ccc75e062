"""The tables of the integration, as a file and PostgreSQL have them in common: for `walpool migrate`.

In a file a row stands where it was written, on PostgreSQL where its number is. So rows go to a file in the order of
their numbers, and to PostgreSQL with those of the file, which are below the times that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from walpool.crewai import _sql
from walpool.migrating.sets import Face, Part, Set, integer, real, text, versioned

__all__ = ["SETS"]

# The states of a flow are one thing, in their order.
_STATES: Final = Part(
    name="flow_states",
    columns=(
        text("flow_uuid"),
        integer("id", compared=False),
        text("tie", compared=False),
        text("method_name"),
        text("timestamp"),
        text("state_json"),
    ),
    key=("flow_uuid",),
    is_grouped=True,
    sqlite=Face(
        reads={"tie": "''", "timestamp": "CAST(timestamp AS TEXT)"}, lacks=("id", "tie"), order=("flow_uuid", "id")
    ),
    postgres=Face(order=("flow_uuid", "id", "tie")),
)
_FEEDBACK: Final = Part(
    name="pending_feedback",
    columns=(text("flow_uuid"), text("context_json"), text("state_json"), text("created_at")),
    key=("flow_uuid",),
    sqlite=Face(reads={"created_at": "CAST(created_at AS TEXT)"}),
)
_OUTPUTS: Final = Part(
    name="latest_kickoff_task_outputs",
    columns=(
        text("task_id"),
        text("task_key", required=False),
        text("expected_output", required=False),
        text("output", required=False),
        integer("task_index", required=False),
        text("inputs", required=False),
        integer("was_replayed", required=False),
        text("timestamp", required=False),
    ),
    key=("task_id",),
    # Declared JSON and DATETIME, so that SQLite makes numbers of texts that look like some.
    sqlite=Face(reads={name: f"CAST({name} AS TEXT)" for name in ("output", "inputs", "timestamp")}),
)
_LESSONS: Final = Part(
    name="long_term_memories",
    columns=(
        integer("id", compared=False),
        text("tie", compared=False),
        text("task_description", required=False),
        text("metadata", required=False),
        text("datetime", required=False),
        real("score", required=False),
    ),
    sqlite=Face(reads={"tie": "''"}, lacks=("id", "tie"), order=("id",)),
    postgres=Face(order=("id", "tie")),
)
_CHECKPOINTS: Final = Part(
    name="crewai_checkpoints",
    columns=(
        text("id"),
        integer("place", compared=False),
        text("created_at"),
        text("parent_id", required=False),
        text("branch"),
        text("data"),
    ),
    key=("id",),
    # CrewAI writes JSONB where SQLite has it.
    sqlite=Face(
        table="checkpoints",
        reads={"place": "rowid", "data": "CASE typeof(data) WHEN 'text' THEN data ELSE json(data) END"},
        lacks=("place",),
        order=("place",),
    ),
    postgres=Face(order=("place", "id")),
)


SETS: Final[Mapping[str, Sequence[Set]]] = {
    "crewai": (Set(parts=(_STATES, _FEEDBACK, _OUTPUTS), schemas=versioned("crewai", _sql.MIGRATIONS)),),
    "crewai_long_term": (Set(parts=(_LESSONS,), schemas=versioned("crewai_long_term", _sql.LONG_TERM_MIGRATIONS)),),
    "crewai_checkpoints": (
        Set(
            parts=(_CHECKPOINTS,),
            schemas={"sqlite": {}, "postgres": {"crewai_checkpoints": _sql.CHECKPOINT_MIGRATIONS}},
            unversioned=_sql.CREATE_CHECKPOINTS,
        ),
    ),
}
"""The sets by the names that `walpool_schema` has for them."""
