"""Timing the calls of a storage class from outside, and noting what they acknowledged; the same for every side.

Knows the methods that CrewAI calls; knows no database.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SURFACES = ("memory save", "memory search", "flow save", "flow load", "kickoff add")
"""The operations that the report lists; the others count in the total."""

# What CrewAI calls in a run like this one. It deletes and updates memories only when its model says that two of them
# are one, which the scripted one never says: so what was saved must be there.
MEMORY = {
    "__init__": "memory open",
    "save": "memory save",
    "search": "memory search",
    "touch_records": "memory touch",
    "list_scopes": "memory scopes",
    "list_categories": "memory categories",
    "get_scope_info": "memory scope info",
}
FLOW = {"save_state": "flow save", "load_state": "flow load"}
KICKOFF = {"__init__": "kickoff open", "add": "kickoff add", "load": "kickoff load", "delete_all": "kickoff delete"}

_LOCK_ERRORS = {"LockException", "AlreadyLocked", "BusyError", "WriteTimeout", "CheckoutTimeout", "QueueFull"}
_LOCK_MESSAGES = ("database is locked", "database table is locked", "Commit conflict")


@dataclass
class Ledger:
    """What the storage classes acknowledged: whoever reads the database afterwards must find it."""

    memories: list[str] = field(default_factory=list)
    """The ids of the records."""
    states: list[tuple[str, str]] = field(default_factory=list)
    """The flow and the method after which its state was saved."""
    outputs: list[tuple[str, float]] = field(default_factory=list)
    """The task, and when its output was handed over."""
    last_reset: float = 0.0
    """When the last deletion of all outputs ended: every kickoff begins with one, whosever outputs they are."""


class Meter:
    """Watches storage classes: how long each call takes, what it acknowledged, how it failed."""

    def __init__(self) -> None:
        operations = (*MEMORY.values(), *FLOW.values(), *KICKOFF.values())
        self.ledger = Ledger()
        self.errors: Counter[str] = Counter()
        self.lock_errors = 0
        self._lock = threading.Lock()  # guards the errors and `last_reset`; appending to a list needs no lock
        self._seconds: dict[str, list[float]] = {operation: [] for operation in operations}

    def watch(self, memory: type, flow: type, kickoff: type) -> None:
        """Time the methods of these classes from now on."""
        self._wrap(memory, MEMORY, {"save": self._note_memories})
        self._wrap(flow, FLOW, {"save_state": self._note_state})
        self._wrap(kickoff, KICKOFF, {"add": self._note_output, "delete_all": self._note_reset})

    def restart(self) -> None:
        """Forget the latencies so far; what was acknowledged stays."""
        for seconds in self._seconds.values():
            seconds.clear()

    def operations(self) -> int:
        """Return how many calls there were, failed ones included; opening is left out, since only one side does it."""
        return sum(len(seconds) for operation, seconds in self._seconds.items() if not operation.endswith(" open"))

    def busy(self) -> float:
        """Return the seconds that all threads together spent in the storage classes, opening and waiting included."""
        return sum(map(sum, self._seconds.values()))

    def latencies(self) -> dict[str, dict[str, float]]:
        """Return count, p50, p99 and max of each operation that was called, in milliseconds."""
        return {operation: _summary(sorted(seconds)) for operation, seconds in self._seconds.items() if seconds}

    def _wrap(self, cls: type, methods: dict[str, str], notes: dict[str, Callable[..., None]]) -> None:
        for method, operation in methods.items():
            timed = self._timed(getattr(cls, method), self._seconds[operation], notes.get(method))
            setattr(cls, method, timed)

    def _timed(
        self, method: Callable[..., Any], seconds: list[float], note: Callable[..., None] | None
    ) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(storage: Any, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                result = method(storage, *args, **kwargs)
            except Exception as error:
                self._note_error(error)
                raise
            finally:
                seconds.append(time.perf_counter() - begun)
            if note is not None:
                note(begun, *args, **kwargs)
            return result

        return call

    def _note_error(self, error: Exception) -> None:
        with self._lock:
            self.errors[f"{type(error).__name__}: {error}"] += 1
            self.lock_errors += is_lock_error(error)

    # Each has the parameters of the method that it follows, after the instant at which the call began.

    def _note_memories(self, begun: float, records: Iterable[Any]) -> None:
        del begun
        self.ledger.memories.extend(record.id for record in records)

    def _note_state(self, begun: float, flow_uuid: str, method_name: str, state_data: object) -> None:
        del begun, state_data
        self.ledger.states.append((flow_uuid, method_name))

    def _note_output(self, begun: float, task: Any, *_: object, **__: object) -> None:
        self.ledger.outputs.append((str(task.id), begun))

    def _note_reset(self, begun: float) -> None:
        del begun
        with self._lock:
            self.ledger.last_reset = max(self.ledger.last_reset, time.perf_counter())


def is_lock_error(error: BaseException) -> bool:
    """Return whether an exception, or one that it came from, says that somebody else holds a lock."""
    return any(
        type(cause).__name__ in _LOCK_ERRORS or any(message in str(cause) for message in _LOCK_MESSAGES)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _summary(ascending: list[float]) -> dict[str, float]:
    return {
        "count": len(ascending),
        "p50_ms": _percentile(ascending, 50) * 1e3,
        "p99_ms": _percentile(ascending, 99) * 1e3,
        "max_ms": ascending[-1] * 1e3,
    }


def _percentile(ascending: list[float], share: int) -> float:
    """Return the value that `share` per cent do not exceed (nearest rank)."""
    return ascending[math.ceil(len(ascending) * share / 100) - 1]
