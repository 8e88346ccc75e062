"""Histories of calls that append to lists and read them, and what no strictly serializable database would show.

Pure: no database here. `anomalies` infers the order of each list from what was read, and looks for cycles, as Elle does
(Kingsbury, Alvaro, VLDB 2020, https://arxiv.org/abs/2003.10554); `against_order` compares with an order that is known.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

APPLIED, FAILED, UNKNOWN = "applied", "failed", "unknown"


@dataclass(frozen=True)
class Append:
    """An element put at the end of a list; elements are unique. `place` is its place in the commit order, if told."""

    key: int
    value: int
    is_kept: bool = True  # False where a savepoint took it back
    place: int | None = None


@dataclass(frozen=True)
class Read:
    """A list as it was read. `place` is the last place in the commit order that the read saw, if it asked."""

    key: int
    values: tuple[int, ...]
    place: int | None = None


@dataclass(frozen=True)
class Call:
    """One caller's job, transaction, snapshot or read: its steps in order, and when it was called and answered."""

    caller: str
    steps: tuple[Append | Read, ...]
    invoked: int  # ns of the monotonic clock, which the processes of one machine share
    returned: int
    outcome: str = APPLIED
    verb: str = ""
    surprise: str = ""  # an error that it should not have met, or that it was applied although it should not

    def reads(self) -> Iterator[Read]:
        return (step for step in self.steps if isinstance(step, Read))

    def appends(self) -> Iterator[Append]:
        return (step for step in self.steps if isinstance(step, Append))

    def kept(self) -> list[Append]:
        """Return the appends that are in the database if the call was applied."""
        return [step for step in self.appends() if step.is_kept]


@dataclass(frozen=True)
class Anomaly:
    """What went wrong, and the calls that show it."""

    kind: str
    calls: tuple[Call, ...]
    why: str = ""


def report(found: Sequence[Anomaly]) -> str:
    """Return how many anomalies of each kind there are, and the first in full."""
    lines = [f"{count} of: {kind}" for kind, count in Counter(anomaly.kind for anomaly in found).items()]
    lines += [f"the first, {anomaly.kind}: {anomaly.why}" for anomaly in found[:1]]
    return "\n".join(lines + [f"  {call}" for anomaly in found[:1] for call in anomaly.calls])


# How one call comes before another. What stands lower in this list explains less, and is asked last.
WW, WR, RW, OWN, TIME = 1, 2, 4, 8, 16
EDGES = {
    WW: "the other appended behind its element",
    WR: "the other read its element",
    RW: "it did not see the other's element",
    OWN: "the same caller's next call",
    TIME: "it was answered before the other began",
}

# A cycle of each kind has one edge of the first sort and a way back over the second.
CYCLES = (
    ("G0, write cycle", WW, WW),
    ("G1c, circular information flow", WR, WW | WR),
    ("G-single, read skew", RW, WW | WR),
    ("G2, write skew", RW, WW | WR | RW),
    ("session order", OWN, WW | WR | RW | OWN),
    ("real-time order", TIME, WW | WR | RW | OWN | TIME),
)

Graph = dict[int, dict[int, int]]  # from, to, the sorts of edge between them


def anomalies(calls: Sequence[Call]) -> list[Anomaly]:
    """Return what no strictly serializable order of the calls explains; an empty list is good news."""
    return _Inference(calls).anomalies()


class _Inference:
    """What the reads of a history tell about the order of its calls."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = calls
        self.found = [Anomaly("surprise", (call,), call.surprise) for call in calls if call.surprise]
        self.writers: dict[tuple[int, int], int] = {}  # (key, element): index of the call
        for index, call in enumerate(calls):
            for step in call.appends():
                assert (step.key, step.value) not in self.writers, "elements are unique, or nothing can be inferred"
                self.writers[step.key, step.value] = index

    def anomalies(self) -> list[Anomaly]:
        longest: dict[int, tuple[int, ...]] = defaultdict(tuple)
        whole = [read for index, call in enumerate(self.calls) for read in self._looked_at(index, call)]
        for _, read in whole:
            longest[read.key] = max(longest[read.key], read.values, key=len)
        unseen = {key: self._unseen(key, order) for key, order in longest.items()}
        graph: Graph = defaultdict(dict)
        for index, read in whole:
            if read.values != longest[read.key][: len(read.values)]:
                self._tell("incompatible orders", index, why=f"list {read.key}: {read.values} and {longest[read.key]}")
                continue
            self._add_edges_of_read(graph, index, read, longest[read.key], unseen[read.key])
        self._add_edges_of_writes(graph, longest, unseen)
        self._add_edges_of_time(graph)
        return self.found + [self._anomaly(kind, cycle) for kind, cycle in cycles(graph)]

    def _tell(self, kind: str, *indices: int, why: str) -> None:
        self.found.append(Anomaly(kind, tuple(self.calls[index] for index in indices), why))

    # What one call shows

    def _looked_at(self, index: int, call: Call) -> Iterator[tuple[int, Read]]:
        """Yield the call's reads that make sense, without its own elements, and tell of those that make none."""
        before: dict[int, tuple[int, ...]] = {}  # lists as others left them
        own: dict[int, tuple[int, ...]] = defaultdict(tuple)
        for step in call.steps:
            if isinstance(step, Append):
                own[step.key] += (step.value,) * step.is_kept
                continue
            rest = step.values[: len(step.values) - len(own[step.key])]
            if rest + own[step.key] != step.values or before.get(step.key, rest) != rest:
                self._tell("internal", index, why=f"list {step.key} differs from what the call itself read or wrote")
                continue
            before[step.key] = rest
            if self._makes_sense(index, step.key, rest):
                yield index, Read(step.key, rest)

    def _makes_sense(self, reader: int, key: int, values: tuple[int, ...]) -> bool:
        known = [self.writers.get((key, value)) for value in values]
        if len(set(values)) != len(values):
            self._tell("duplicate element", reader, why=f"list {key}: {values}")
        elif None in known:
            self._tell("element from nowhere", reader, why=f"list {key}: {values}")
        elif undone := [v for v in values if self._is_undone(key, v)]:
            writer = self.writers[key, undone[0]]
            self._tell("G1a, aborted read", reader, writer, why=f"list {key}: {undone}")
        elif values and known[-1] != reader and values[-1] != self._last_of(self.writers[key, values[-1]], key):
            self._tell("G1b, intermediate read", reader, self.writers[key, values[-1]], why=f"list {key}: {values}")
        else:
            return True
        return False

    def _is_undone(self, key: int, value: int) -> bool:
        call = self.calls[self.writers[key, value]]
        kept = any(step.key == key and step.value == value for step in call.kept())
        return call.outcome == FAILED or not kept

    def _last_of(self, index: int, key: int) -> int:
        return [step.value for step in self.calls[index].kept() if step.key == key][-1]

    # Edges

    def _add_edges_of_read(
        self, graph: Graph, reader: int, read: Read, order: tuple[int, ...], unseen: set[int]
    ) -> None:
        seen = len(read.values)
        if seen:
            _add(graph, self.writers[read.key, order[seen - 1]], reader, WR)
        if seen < len(order):
            _add(graph, reader, self.writers[read.key, order[seen]], RW)
        else:
            for writer in unseen:
                _add(graph, reader, writer, RW)

    def _add_edges_of_writes(
        self, graph: Graph, longest: dict[int, tuple[int, ...]], unseen: dict[int, set[int]]
    ) -> None:
        for key, order in longest.items():
            for before, after in pairwise(order):
                _add(graph, self.writers[key, before], self.writers[key, after], WW)
            for writer in unseen[key] if order else ():
                _add(graph, self.writers[key, order[-1]], writer, WW)

    def _unseen(self, key: int, order: tuple[int, ...]) -> set[int]:
        """Return who appended, for certain, what the longest read does not have: it must stand behind that."""
        missing = {(key, step.value) for call in self.calls for step in call.kept() if step.key == key}
        missing -= {(key, value) for value in order}
        return {self.writers[each] for each in missing if self.calls[self.writers[each]].outcome == APPLIED}

    def _add_edges_of_time(self, graph: Graph) -> None:
        """Draw a line of moments, one for each answer: a call hangs on the last one before it began.

        So the edges are as many as the calls, and not their square.
        """
        last_of: dict[str, int] = {}
        for index in sorted(range(len(self.calls)), key=lambda index: self.calls[index].invoked):
            caller = self.calls[index].caller
            if caller in last_of:
                _add(graph, last_of[caller], index, OWN)
            last_of[caller] = index
        happened = [(call.invoked, False, index) for index, call in enumerate(self.calls)]
        happened += [(call.returned, True, index) for index, call in enumerate(self.calls) if call.outcome != UNKNOWN]
        moment = len(self.calls) - 1  # moments are numbered behind the calls
        for _, is_answer, index in sorted(happened):  # at the same instant, both ran at once
            if not is_answer:
                if moment >= len(self.calls):
                    _add(graph, moment, index, TIME)
                continue
            if moment >= len(self.calls):
                _add(graph, moment, moment + 1, TIME)
            moment += 1
            _add(graph, index, moment, TIME)

    # Telling

    def _anomaly(self, kind: str, cycle: list[tuple[int, int]]) -> Anomaly:
        steps = [(index, sort) for index, sort in cycle if index < len(self.calls)]
        calls = tuple(self.calls[index] for index, _ in steps)
        why = "; then ".join(f"{calls[i].caller} {calls[i].verb}: {EDGES[sort]}" for i, (_, sort) in enumerate(steps))
        return Anomaly(_plain_name(kind, calls), calls, why)


def _plain_name(kind: str, calls: tuple[Call, ...]) -> str:
    """Return the name that people have for a cycle, where it has a narrower one."""
    if kind.startswith("G-single") and len(calls) == 2:
        keys = [{step.key for step in call.kept()} & {read.key for read in call.reads()} for call in calls]
        return "lost update" if keys[0] & keys[1] else kind
    if kind == "session order" and not calls[1].kept():
        return "own write unread" if calls[0].kept() else "non-monotonic read"
    if kind == "real-time order" and any(not call.kept() for call in calls):
        return "stale read"
    return kind


def _add(graph: Graph, before: int, after: int, sort: int) -> None:
    if before != after:
        graph[before][after] = graph[before].get(after, 0) | sort


def cycles(graph: Graph) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yield a shortest cycle of each knot, plainest kind first, as (node, sort of the edge to the next)."""
    told: list[set[int]] = []
    for kind, through, others in CYCLES:
        for component in components(graph, through | others):
            if any(cycle <= component for cycle in told):
                continue  # a plainer cycle in it has been told
            inside = [(a, b) for a in component for b in graph.get(a, ()) if b in component and graph[a][b] & through]
            backs = [(a, way_back(graph, b, a, others, component)) for a, b in inside]
            whole = [[(a, through), *back] for a, back in backs if back is not None]
            if whole:
                cycle = min(whole, key=len)
                told.append({node for node, _ in cycle})
                yield kind, cycle


def way_back(graph: Graph, start: int, end: int, sorts: int, within: set[int]) -> list[tuple[int, int]] | None:
    """Return a shortest path as (node, sort of the edge to the next), without its end; None if there is none."""
    came: dict[int, tuple[int, int]] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        if node == end:
            path = []
            while node != start:
                node, sort = came[node]
                path.append((node, sort))
            return path[::-1]
        for after, edge in graph.get(node, {}).items():
            if edge & sorts and after in within and after not in came and after != start:
                came[after] = (node, (edge & sorts) & -(edge & sorts))  # the plainest of its sorts
                waiting.append(after)
    return None


def components(graph: Graph, sorts: int) -> list[set[int]]:
    """Return the sets of two nodes and more in which each reaches each (Tarjan's algorithm, without recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found = []

    def enter(node: int) -> tuple[int, Iterator[int]]:
        number[node] = low[node] = len(number)
        stack.append(node)
        on_stack.add(node)
        return node, (after for after, edge in graph.get(node, {}).items() if edge & sorts)

    for root in list(graph):
        way = [] if root in number else [enter(root)]
        while way:
            node, afters = way[-1]
            after = next(afters, None)
            if after is None:
                way.pop()
                if way:
                    low[way[-1][0]] = min(low[way[-1][0]], low[node])
                if low[node] == number[node]:
                    component = {stack.pop()}
                    while node not in component:
                        component.add(stack.pop())
                    on_stack -= component
                    found.append(component)
            elif after not in number:
                way.append(enter(after))
            elif after in on_stack:
                low[node] = min(low[node], number[after])
    return [component for component in found if len(component) > 1]


# Against an order that is known


def against_order(calls: Sequence[Call], order: Sequence[tuple[int, int, int]]) -> list[Anomaly]:
    """Return what does not fit the commit order that the database itself kept, as (place, key, element)."""
    places = {(key, value): place for place, key, value in order}
    found = []
    if order and [place for place, _, _ in order] != list(range(order[0][0], order[0][0] + len(order))):
        found.append(Anomaly("gap in the order", ()))
    lists: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, key, value in sorted(order):
        lists[key].append((place, value))
    for call in calls:
        found += [Anomaly(kind, (call,)) for kind in _misplaced(call, places)]
        found += [Anomaly(kind, (call,)) for kind in _misread(call, lists)]
    return found + list(_out_of_time(calls, places))


def _misplaced(call: Call, places: dict[tuple[int, int], int]) -> Iterator[str]:
    kept = call.kept() if call.outcome != FAILED else []
    there = [places[step.key, step.value] for step in kept if (step.key, step.value) in places]
    gone = [step for step in call.appends() if step not in kept]
    if any((step.key, step.value) in places for step in gone):
        yield "failed job left something"
    if len(there) != len(kept) and (there or call.outcome == APPLIED):
        yield "acknowledged write is missing"
    elif there and there != list(range(there[0], there[0] + len(there))):
        yield "job is not in one piece"
    elif any(step.place not in (None, place) for step, place in zip(kept, there, strict=False)):
        yield "answer tells another place"


def _misread(call: Call, lists: dict[int, list[tuple[int, int]]]) -> Iterator[str]:
    """Tell of reads that are no prefix of the order. What a failed call saw of its own came to nothing."""
    reads = [read for read in call.reads() if read.place is not None]
    if not any(call.appends()) and len({read.place for read in reads}) > 1:
        yield "torn snapshot"
    for read in reads if call.outcome == APPLIED or not any(call.appends()) else ():
        upto = [value for place, value in lists[read.key] if place <= (read.place or 0)]
        if list(read.values) != upto:
            yield "read is no prefix of the order"


def _out_of_time(calls: Sequence[Call], places: dict[tuple[int, int], int]) -> Iterator[Anomaly]:
    """Tell of calls that saw, or stand at, an earlier place than one that was answered before they began."""
    spans: list[tuple[Call, int, int]] = []
    for call in calls:
        told = [read.place for read in call.reads() if read.place is not None]
        kept = [places[s.key, s.value] for s in call.kept() if call.outcome != FAILED and (s.key, s.value) in places]
        if kept or (told and (call.outcome == APPLIED or not any(call.appends()))):
            spans.append((call, kept[0] - 1 if kept else min(told), kept[-1] if kept else min(told)))
    answered = sorted((call.returned, end) for call, _, end in spans if call.outcome != UNKNOWN)
    latest, upto = 0, 0
    for call, start, _ in sorted(spans, key=lambda span: span[0].invoked):
        while upto < len(answered) and answered[upto][0] < call.invoked:
            latest = max(latest, answered[upto][1])
            upto += 1
        if start < latest:
            yield Anomaly("order against time", (call,), f"it saw place {start}, and {latest} had been answered")
