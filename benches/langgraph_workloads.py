"""The workloads on LangGraph's checkpoints: agents on one event loop that store and read their state step by step.

Owns the states, the steps and how they are checked. Must not know how a checkpointer stores anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benches.harness import Sample, Scale, Workload, settle
from benches.langgraph_contenders import SAVERS, SIZES
from benches.measure import run_tasks
from benches.targets import Faster, Target

CHANNELS = 8  # equal parts of a state; each step changes one of them
LONE_S = 5.0  # a lone writer must get past its WAL's first checkpoint: until then the WAL grows, at twice the fsync
FASTEST_NS = 20_000  # of a step; a shorter one would be two commits and a read within it


class Agent:
    """One agent with a thread of its own. A step stores its state, then what a task wrote, and reads both back."""

    def __init__(self, saver: Any, number: int, state_bytes: int) -> None:
        self._saver = saver
        self._thread = {"configurable": {"thread_id": f"agent-{number:04d}", "checkpoint_ns": ""}}
        self._config: Any = self._thread
        self._padding = "x" * (state_bytes // CHANNELS - 16)
        self._number = number
        self.values: dict[str, str] = {}
        self._versions: dict[str, Any] = {}
        self.stored: list[str] = []  # ids of the checkpoints that were acknowledged

    async def step(self, number: int) -> None:
        """Do one step; the first one stores all channels.

        Raises:
            LookupError: something else came back than what was stored.
        """
        from langgraph.checkpoint.base import empty_checkpoint

        names = self._change(number)
        checkpoint: Any = empty_checkpoint() | {
            "ts": datetime.now(timezone.utc).isoformat(),
            "channel_values": dict(self.values),
            "channel_versions": dict(self._versions),
            "versions_seen": {"agent": {names[0]: self._versions[names[0]]}},
        }
        metadata = {"source": "loop", "step": number, "parents": {}}
        changed = {name: self._versions[name] for name in names}
        self._config = await self._saver.aput(self._config, checkpoint, metadata, changed)
        self.stored.append(checkpoint["id"])
        writes = [(names[0], self.values[names[0]]), ("branch:to:agent", None)]
        await self._saver.aput_writes(self._config, writes, f"task-{number}")
        found = await self._saver.aget_tuple(self._thread)
        if not self._is_latest(found) or [tuple(write[1:]) for write in found.pending_writes] != writes:
            raise LookupError("another state or other writes came back than what was stored")

    async def loses(self) -> int:
        """Return 1 if the thread no longer has what was acknowledged last, else 0."""
        return int(not self._is_latest(await self._saver.aget_tuple(self._thread)))

    def _change(self, number: int) -> list[str]:
        """Change one channel, all of them in the first step; return their names."""
        names = [f"channel_{channel}" for channel in range(CHANNELS)]
        names = [names[number % CHANNELS]] if self.values else names
        for name in names:
            self.values[name] = f"{self._number:04d}{number:012d}{self._padding}"
            self._versions[name] = self._saver.get_next_version(self._versions.get(name), None)
        return names

    def _is_latest(self, found: Any) -> bool:
        return (
            found is not None
            and found.checkpoint["id"] == self.stored[-1]
            and found.checkpoint["channel_values"] == self.values
        )


@dataclass(frozen=True)
class Steps:
    """Each agent does one step after another on a thread of its own."""

    name: str
    title: str
    agents: int
    state_bytes: int
    targets: Sequence[Target]
    contenders: Mapping[str, type[Any]] = field(default_factory=lambda: SAVERS)
    synchronous: str = "full"
    seconds: float = 1.5

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        settle()
        opened = self.contenders[contender]().opened(folder / "checkpoints.db", self.synchronous)
        return asyncio.run(self._run(opened, scale))

    async def _run(self, opened: AbstractAsyncContextManager[Any], scale: Scale) -> Sample:
        async with opened as saver:
            agents = [Agent(saver, number, self.state_bytes) for number in range(scale.threads(self.agents))]
            steps = [agent.step for agent in agents]
            timing = await run_tasks(steps, self.seconds * scale.window_s, fastest_ns=FASTEST_NS)
            lost = sum([await agent.loses() for agent in agents])
        wrong = (f"{lost} of {len(agents)} threads have lost their latest state",) if lost else ()
        figures = timing.figures()
        return Sample({"steps/s": figures.pop("ops/s")} | figures, timing.errors, wrong)


@dataclass(frozen=True)
class Size:
    """The bytes of a database after so many steps of one thread; it is closed, so nothing is left in its WAL."""

    name: str
    title: str
    targets: Sequence[Target]
    contenders: Mapping[str, type[Any]] = field(default_factory=lambda: SIZES)
    synchronous: str = "normal"  # nobody is timed
    steps: int = 1_000
    sizes: Mapping[str, int] = field(default_factory=lambda: {"4 KB": 4_096, "32 KB": 32_768})

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        figures, sizes_mb, lost = {}, {}, 0
        steps = scale.rows(self.steps)
        for size, state_bytes in self.sizes.items():
            path = folder / f"{state_bytes}.db"
            opened = self.contenders[contender]().opened(path, self.synchronous)
            lost += asyncio.run(self._grow(opened, state_bytes, steps))
            files = [file for file in folder.iterdir() if file.name.startswith(path.name)]
            sizes_mb[f"MB, {size}"] = size_mb = sum(file.stat().st_size for file in files) / 1e6
            figures[f"steps/MB, {size}"] = steps / size_mb  # the first figure of a table is one that should be high
        return Sample(figures | sizes_mb, wrong=("a thread has lost its latest state",) if lost else ())

    @staticmethod
    async def _grow(opened: AbstractAsyncContextManager[Any], state_bytes: int, steps: int) -> int:
        async with opened as saver:
            agent = Agent(saver, 0, state_bytes)
            for number in range(steps):
                await agent.step(number)
            return await agent.loses()


def _steps(agents: int, size: str, state_bytes: int) -> Workload:
    ahead = Faster(1.0, than=("writer-thread",), figure="steps/s")
    times = {20: 6.0, 100: 12.0}.get(agents)
    targets = (ahead,) if times is None else (Faster(times, than=("langgraph",), figure="steps/s"), ahead)
    title = f"LangGraph: put, put_writes and get_tuple on a state of {size}, {agents} agent{'s' if agents > 1 else ''}"
    name = f"langgraph-{size.lower().replace(' kb', 'k')}-{agents}"
    seconds = LONE_S if agents == 1 else 1.5
    return Steps(name, title, agents, state_bytes, targets, seconds=seconds)


LANGGRAPH_WORKLOADS: list[Workload] = [
    *(_steps(agents, size, of) for size, of in (("4 KB", 4_096), ("32 KB", 32_768)) for agents in (1, 20, 100)),
    Size("langgraph-size", "LangGraph: the database after 1 000 steps of one thread", ()),
]
