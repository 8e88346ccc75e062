"""walpool's own sets of tables, which differ between backends: who moves each, if anybody.

A set that has tables of its own on either backend is not copied table by table: what knows the set moves it, handed in
by the set's name, that of `walpool_schema`, since those who know sets stand above.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

__all__ = ["OWN", "Mover", "set_of"]


class Mover(Protocol):
    """Moves one set of tables from one database to another."""

    def __call__(self, source: str, target: str, /) -> list[str]:
        """Copy what the target lacks, compare both, and return what differs, in sentences.

        Called again it adds what is missing, and changes nothing that is there.
        """


OWN: Final = frozenset({"walpool_schema", "walpool_migration", "walpool_retired"})
"""Tables that are about one database, and are in no other."""

_TABLES: Final = {
    "memory": re.compile(r"memory_\w+"),
    "langgraph": re.compile(r"langgraph_(blobs|checkpoints|writes)\w*"),
    "langgraph_store": re.compile(r"langgraph_(items|vectors|spaces|scopes|sketches)\w*"),
    "langgraph_cache": re.compile(r"langgraph_cache\w*"),
    "crewai": re.compile(r"flow_states|pending_feedback|latest_kickoff_task_outputs|crewai_checkpoints"),
    "crewai_long_term": re.compile(r"long_term_memories"),
    "openai_agents": re.compile(r"agent_(sessions|messages)"),
}


def set_of(table: str, present: set[str]) -> str | None:
    """Return the set that a table belongs to, of those that a database has; None if it is the user's own."""
    for name, pattern in _TABLES.items():
        if name in present and pattern.fullmatch(table):
            return name
    return None
