"""CrewAI on walpool: memory, flow states, kickoff outputs, checkpoints and locks.

    import walpool.crewai
    walpool.crewai.install()          # before your flow modules are imported

Each class also works by itself, handed to CrewAI where CrewAI takes one; docs/crewai.md says where that is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from walpool.crewai._install import COMPONENTS, Installation, Surface, install
from walpool.crewai._seams import InstallWarning

if TYPE_CHECKING:
    from walpool.crewai._import import CrewReport, import_crewai
    from walpool.crewai.checkpoint import WalpoolCheckpointProvider
    from walpool.crewai.flow import WalpoolFlowPersistence
    from walpool.crewai.kickoff import WalpoolKickoffStorage
    from walpool.crewai.lock import WalpoolLock
    from walpool.crewai.long_term import WalpoolLongTermStorage
    from walpool.crewai.memory import WalpoolStorage

__all__ = [
    "COMPONENTS",
    "CrewReport",
    "InstallWarning",
    "Installation",
    "Surface",
    "WalpoolCheckpointProvider",
    "WalpoolFlowPersistence",
    "WalpoolKickoffStorage",
    "WalpoolLock",
    "WalpoolLongTermStorage",
    "WalpoolStorage",
    "import_crewai",
    "install",
]

# Imported when they are asked for: each needs another part of CrewAI, and an older CrewAI that lacks one of them still
# gets the others.
_HOMES = {
    "CrewReport": "walpool.crewai._import",
    "WalpoolCheckpointProvider": "walpool.crewai.checkpoint",
    "WalpoolFlowPersistence": "walpool.crewai.flow",
    "WalpoolKickoffStorage": "walpool.crewai.kickoff",
    "WalpoolLock": "walpool.crewai.lock",
    "WalpoolLongTermStorage": "walpool.crewai.long_term",
    "WalpoolStorage": "walpool.crewai.memory",
    "import_crewai": "walpool.crewai._import",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
