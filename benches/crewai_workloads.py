"""The workloads on CrewAI's surfaces: its default class beside walpool's, through the interface that they share.

Owns what is asked of both sides and how their answers are checked. Must not know how either stores anything.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches import data
from benches.crewai_contenders import CHECKPOINTS, FLOW, KICKOFF, MEMORY, crewai
from benches.harness import Sample, Scale, Workload, settle
from benches.measure import run_threads
from benches.targets import Faster, LowerLatency, Target


@dataclass(frozen=True)
class Kickoff:
    """Each thread runs a crew of one task: it adds the task's output and loads what the kickoff has, in turn."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    loads: bool = True  # else it only writes
    threads: int = 16
    synchronous: str = "full"
    seconds: float = 1.0

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        threads = scale.threads(self.threads)  # CrewAI's lock is polled: each thread waits for a good part of a second
        task = crewai("task").Task
        tasks = [task(description=f"step {worker}", expected_output="a text") for worker in range(threads)]
        last = [-1] * threads  # the number of the last output that was acknowledged, by worker
        with self.contenders[contender]().opened(folder) as storage:
            settle()
            operations = [self._operation(storage, tasks, worker, last) for worker in range(threads)]
            timing = run_threads(operations, self.seconds * scale.window_s)
            found = {str(row["task_id"]): row["output"]["number"] for row in storage.load()}
        lost = sum(found.get(str(task.id)) != last[worker] for worker, task in enumerate(tasks))
        wrong = (f"{lost} of {threads} tasks have lost their latest output",) if lost else ()
        return Sample(timing.figures(), timing.errors, wrong)

    def _operation(self, storage: Any, tasks: Sequence[Any], worker: int, last: list[int]) -> Callable[[int], Any]:
        def add_or_load(number: int) -> None:
            if self.loads and number % 2:
                storage.load()
                return
            storage.add(tasks[worker], data.state(worker, number), worker, inputs={"topic": "storage"})
            last[worker] = number

        return add_or_load


@dataclass(frozen=True)
class FlowStates:
    """Each thread runs a flow: it saves the flow's state and loads it, in turn; it must find what it saved."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    loads: bool = True  # else it only writes
    threads: int = 16
    synchronous: str = "full"
    seconds: float = 1.0

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        threads = scale.threads(self.threads)  # as for a kickoff
        last = [-1] * threads  # the number of the last state that was acknowledged, by worker
        with self.contenders[contender]().opened(folder) as storage:
            settle()
            operations = [self._operation(storage, worker, last) for worker in range(threads)]
            timing = run_threads(operations, self.seconds * scale.window_s)
            found = [storage.load_state(f"flow-{worker}")["number"] for worker in range(threads)]
        wrong = () if found == last else (f"flows at {found} where {last} were saved",)
        return Sample(timing.figures(), timing.errors, wrong)

    def _operation(self, storage: Any, worker: int, last: list[int]) -> Callable[[int], Any]:
        flow = f"flow-{worker}"

        def save_or_load(number: int) -> None:
            if self.loads and number % 2:
                if storage.load_state(flow)["number"] != last[worker]:
                    raise LookupError("a flow loaded another state than the one it had saved")
                return
            storage.save_state(flow, "step", data.state(worker, number))
            last[worker] = number

        return save_or_load


@dataclass(frozen=True)
class Checkpoints:
    """Each thread writes checkpoints of 100 KB, as an event listener of CrewAI's does after a task."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    threads: int = 16
    synchronous: str = "full"
    seconds: float = 1.0

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        with self.contenders[contender]().opened(folder) as (provider, location):
            last = [provider.checkpoint(data.checkpoint(worker, 0), location) for worker in range(self.threads)]
            settle()
            operations = [self._operation(provider, worker, location, last) for worker in range(self.threads)]
            timing = run_threads(operations, self.seconds * scale.window_s)
            read = [json.loads(provider.from_checkpoint(at)) for at in last]
        damaged = sum(checkpoint["worker"] != worker for worker, checkpoint in enumerate(read))
        wrong = self._check(location, timing.acknowledged + self.threads, timing.errors.total(), damaged)
        return Sample(timing.figures(), timing.errors, wrong)

    @staticmethod
    def _operation(provider: Any, worker: int, location: str, last: list[str]) -> Callable[[int], Any]:
        def checkpoint(number: int) -> None:
            last[worker] = provider.checkpoint(texts[number % 8], location, parent_id=None, branch="main")

        texts = [data.checkpoint(worker, number) for number in range(8)]
        return checkpoint

    @staticmethod
    def _check(location: str, acknowledged: int, failed: int, damaged: int) -> tuple[str, ...]:
        with closing(sqlite3.connect(location)) as conn:
            found = conn.execute("SELECT count(*) FROM checkpoints").fetchone()[0]
        wrong = [] if acknowledged <= found <= acknowledged + failed else [f"{found} checkpoints of {acknowledged}"]
        if damaged:
            wrong.append(f"{damaged} checkpoints read back as another one's")
        return tuple(wrong)


SCOPE = "/crew/bench"  # every record lies below it, as CrewAI puts a crew's records under its own root


@dataclass(frozen=True)
class Memory:
    """What the two memory workloads share: a store that already holds `rows` records of unit vectors."""

    name: str
    title: str
    contenders: Mapping[str, type[Any]]
    targets: Sequence[Target]
    rows: int
    threads: int = 8
    dims: int = 1536
    synchronous: str = ""  # a durability setting of SQLite's; LanceDB writes its files in its own way
    seconds: float = 1.2

    def _filled(self, contender: str, folder: Path, rows: int) -> None:
        """Copy a filled store into `folder`; it is filled once, through the contender itself."""
        template = folder.parent / f"crewai-memory-{contender}-{rows}"
        if not template.exists():
            template.mkdir()
            vectors = data.embeddings(rows, self.dims)
            with self.contenders[contender]().opened(template) as storage:
                for begin in range(0, rows, 500):
                    batch = vectors[begin : begin + 500].tolist()
                    storage.save([_record(f"record-{begin + i}", vector) for i, vector in enumerate(batch)])
                if hasattr(storage, "optimize"):
                    storage.optimize()
        shutil.copytree(template, folder, dirs_exist_ok=True)
        settle()


class MemorySave(Memory):
    """Each thread saves one record after another."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        self._filled(contender, folder, rows)
        vectors = data.embeddings(64, self.dims, seed=1).tolist()
        with self.contenders[contender]().opened(folder) as storage:
            operations = [self._operation(storage, worker, vectors) for worker in range(scale.threads(self.threads))]
            timing = run_threads(operations, self.seconds * scale.window_s)
            found = storage.count()
        least = rows + timing.acknowledged
        wrong = () if least <= found <= least + timing.errors.total() else (f"{found} records where {least} should be",)
        return Sample(timing.figures(), timing.errors, wrong)

    @staticmethod
    def _operation(storage: Any, worker: int, vectors: list[list[float]]) -> Callable[[int], Any]:
        return lambda number: storage.save([_record(f"new-{worker}-{number}", vectors[(worker + number) % 64])])


class MemorySearch(Memory):
    """Each thread searches the ten records nearest to a vector, below the crew's scope; compared with exact answers."""

    limit = 10
    checked = 16  # queries

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        rows = scale.rows(self.rows)
        self._filled(contender, folder, rows)
        queries = data.embeddings(64, self.dims, seed=2).tolist()
        with self.contenders[contender]().opened(folder) as storage:
            operations = [self._operation(storage, worker, queries) for worker in range(self.threads)]
            timing = run_threads(operations, self.seconds * scale.window_s)
            answers = [self._ids(storage, query) for query in queries[: self.checked]]
        differ = self._differing(rows, queries, answers)
        wrong = (f"{differ} of {self.checked} searches differ from the exact answer",) if differ else ()
        return Sample(timing.figures(), timing.errors, wrong)

    def _operation(self, storage: Any, worker: int, queries: list[list[float]]) -> Callable[[int], Any]:
        return lambda number: storage.search(queries[(worker + number) % 64], scope_prefix=SCOPE, limit=self.limit)

    def _ids(self, storage: Any, query: list[float]) -> list[int]:
        hits = storage.search(query, scope_prefix=SCOPE, limit=self.limit)
        return [int(record.id.removeprefix("record-")) for record, _ in hits]

    def _differing(self, rows: int, queries: list[list[float]], answers: list[list[int]]) -> int:
        vectors = data.embeddings(rows, self.dims)
        differ = 0
        for query, answer in zip(queries[: self.checked], answers, strict=True):
            cosines, best = data.nearest(vectors, query, self.limit)
            # Two records as near as float32 can tell may change places.
            same = len(answer) == len(best) and abs(cosines[answer] - cosines[best]).max() < 1e-6
            differ += not same
        return differ


def _record(record_id: str, vector: list[float]) -> Any:
    record = crewai("memory.types").MemoryRecord
    return record(id=record_id, content=f"noted as {record_id}", scope=f"{SCOPE}/agent/a", embedding=vector)


def _memory() -> list[Workload]:
    saves = (Faster(5.0, than=("lancedb",)),)
    searches = (Faster(2.0, than=("lancedb",)),)
    save, search = "CrewAI memory: save 1 record of 1536 dims", "CrewAI memory: the 10 nearest of 1536 dims"
    return [
        MemorySave("crewai-memory-save-1000", f"{save} to 1 000 others, 8 threads", MEMORY, saves, rows=1_000),
        MemorySave("crewai-memory-save-10000", f"{save} to 10 000 others, 8 threads", MEMORY, saves, rows=10_000),
        MemorySearch("crewai-memory-search-1000", f"{search} among 1 000, 8 threads", MEMORY, (), rows=1_000),
        MemorySearch("crewai-memory-search-10000", f"{search} among 10 000, 8 threads", MEMORY, searches, rows=10_000),
    ]


def _surfaces() -> list[Workload]:
    states = (Faster(40.0, than=("crewai",)), LowerLatency(100.0, than="crewai"))
    stock = (Faster(5.0, than=("crewai", "crewai-apsw")),)
    kickoff, flow = "CrewAI kickoff outputs of 1 KB", "CrewAI flow states of 1 KB"
    return [
        Kickoff("crewai-kickoff", f"{kickoff}: add and load in turn, 16 threads", KICKOFF, states),
        Kickoff("crewai-kickoff-add", f"{kickoff}: add, 16 threads", KICKOFF, states, loads=False),
        FlowStates("crewai-flow", f"{flow}: save and load in turn, 16 threads", FLOW, states),
        FlowStates("crewai-flow-save", f"{flow}: save, 16 threads", FLOW, states, loads=False),
        Checkpoints("crewai-checkpoint", "CrewAI checkpoints of 100 KB, 16 threads", CHECKPOINTS, stock),
    ]


CREWAI_WORKLOADS: list[Workload] = [*_surfaces(), *_memory()]
