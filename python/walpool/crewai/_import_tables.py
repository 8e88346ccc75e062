"""Copying CrewAI's flow states, kickoff outputs and long-term memories.

None of these rows has a name of its own, and the target may have gone on since it was filled: what each table means
says which rows belong to the past of which. Rows that the target has are never changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

from walpool.copying import Part, SourceFile, Ticker, jobs
from walpool.crewai import _import_sql as sql
from walpool.crewai import _sql
from walpool.crewai._import_target import Target
from walpool.crewai._sql import Statement

__all__ = ["FlowStates", "KickoffOutputs", "LongTermMemories"]

Row: TypeAlias = "tuple[Any, ...]"


class _TableCopy:
    """What copying one of these tables has in common."""

    def __init__(self, source: SourceFile, target: Target, part: Part, tick: Ticker) -> None:
        self.part = part
        self._source = source
        self._target = target
        self._tick = tick

    def finish(self) -> None:
        """Show that it is done."""
        self._tick.finish()


class FlowStates(_TableCopy):
    """The states of flows, in the order in which each flow saved them, and what flows wait for.

    The last state counts. So a flow is copied if the target has none of it, goes on where the target's states are the
    beginning of the source's, and is left alone where the target's flow has gone on by itself.
    """

    def __init__(self, source: SourceFile, target: Target, part: Part, tick: Ticker) -> None:
        super().__init__(source, target, part, tick)
        self._has_feedback = source.has_columns("pending_feedback", sql.FEEDBACK_COLUMNS)
        self._left: set[str] = set()  # flows that differ, and it is said why
        self._settled: set[str] = set()  # flows whose question was answered in the target

    def add(self) -> None:
        """Append the states that the target lacks; a flow's question is stored by the job that stores its state."""
        for job in jobs(group for flow in self._flows() for group in self._missing(flow)):
            self._target.write(job)

    def compare(self) -> None:
        """Compare each flow's states, as far as the source has them, and what it waits for."""
        for flow in self._flows():
            if flow in self._left:
                continue
            mine = [row[1:] for row in self._states(flow) if self._refusal(row) is None]
            theirs = self._stored(flow)[: len(mine)]
            if flow not in self._settled and (question := self._question(flow)) is not None:
                mine.append(question)
                theirs += self._target.fetch("pending_feedback", sql.FEEDBACK, (flow,))
            for row in mine:
                self.part.read.add_row((flow, *row))
            for row in theirs:
                self.part.stored.add_row((flow, *row))
            if mine != theirs:
                self.part.differs(f"flow {flow!r}", "it was not stored as it is")
            self._tick(len(mine))

    def _missing(self, flow: str) -> Iterator[list[Statement]]:
        mine = self._storable_states(flow)
        theirs = self._stored(flow)
        if mine[: len(theirs)] != theirs[: len(mine)]:
            self._left.add(flow)
            self.part.differs(f"flow {flow!r}", "the target has other states of it: left alone")
            return
        new = mine[len(theirs) :]
        self.part.added += len(new)
        self.part.present += len(mine) - len(new)
        groups: list[list[Statement]] = [[_sql.save_state(self._target.backend, flow, *row)] for row in new]
        question = self._question_to_store(flow, is_new=bool(new) or not theirs)
        if question is not None:
            groups = groups or [[]]
            groups[-1].append(question)
        yield from groups
        self._tick(len(mine))

    def _question_to_store(self, flow: str, *, is_new: bool) -> Statement | None:
        question = self._question(flow)
        if question is None:
            return None
        if self._target.fetch("pending_feedback", sql.FEEDBACK, (flow,)) == [question]:
            self.part.present += 1
            return None
        if not is_new:  # nothing was added: the target knew the question, and it was answered there
            self.part.superseded += 1
            self.part.notes.append(f"flow {flow!r}: what it waited for was answered in the target")
            self._settled.add(flow)
            return None
        self.part.added += 1
        return _sql.save_feedback(self._target.backend, flow, *question)

    def _flows(self) -> Iterator[str]:
        flows = {str(flow) for (flow,) in self._source.rows(sql.FLOWS)}
        if self._has_feedback:
            flows |= {str(flow) for (flow,) in self._source.rows(sql.FEEDBACK_FLOWS)}
        return iter(sorted(flows))

    def _refusal(self, row: Row) -> str | None:
        return self._target.refusal(row, required=(1, 2, 3), numbers=(0,))

    def _states(self, flow: str) -> list[Row]:
        is_fine = self._target.refusal((flow,), ()) is None
        return list(self._source.rows(sql.STATES["sqlite"], flow)) if is_fine else []

    def _storable_states(self, flow: str) -> list[Row]:
        if (why := self._target.refusal((flow,), ())) is not None:
            self._left.add(flow)
            self.part.differs(f"flow {flow!r}", why)
            return []
        kept = []
        for row in self._states(flow):
            if (why := self._refusal(row)) is None:
                kept.append(row[1:])
            else:
                self.part.differs(f"flow_states id {row[0]}", why)
        return kept

    def _stored(self, flow: str) -> list[Row]:
        if self._target.refusal((flow,), ()) is not None:
            return []
        return [row[1:] for row in self._target.fetch("flow_states", sql.STATES, (flow,))]

    def _question(self, flow: str) -> Row | None:
        if not self._has_feedback or self._target.refusal((flow,), ()) is not None:
            return None
        row = next(self._source.rows(sql.FEEDBACK["sqlite"], flow), None)
        return None if row is None or self._target.refusal(row, (0, 1, 2)) is not None else row


class KickoffOutputs(_TableCopy):
    """The outputs of the latest kickoff, which the next kickoff deletes: all of them are copied, or none."""

    _is_left = False  # whether the target has others, and it is said so

    def add(self) -> None:
        """Store the outputs if the target holds none."""
        mine, theirs = self._wanted(), self._stored()
        if mine and not theirs:
            self._target.write([sql.put_output(row) for row in mine])
            self.part.added = len(mine)
        elif set(mine) <= set(theirs):
            self.part.present = len(mine)
        elif min(str(row[-1]) for row in theirs) >= max(str(row[-1]) for row in mine):
            self._is_left = True
            self.part.superseded = len(mine)
            self.part.notes.append("the target holds the outputs of a later kickoff, which would have deleted these")
        else:
            self._is_left = True
            self.part.differs("latest kickoff", "the target holds the outputs of another one: left alone")
        self._tick(len(mine))

    def compare(self) -> None:
        """Compare the outputs, if they were stored now or before."""
        if self._is_left:
            return
        mine, theirs = self._wanted(silent=True), set(self._stored())
        for row in mine:
            self.part.read.add_row(row)
            if row in theirs:
                self.part.stored.add_row(row)
            else:
                self.part.differs(f"task {row[0]!r}", "its output was not stored as it is")
        self._tick(len(mine))

    def _wanted(self, *, silent: bool = False) -> list[Row]:
        has_key = self._source.has_columns("latest_kickoff_task_outputs", ["task_key"])
        rows = self._source.rows(sql.OUTPUTS.format(task_key="task_key" if has_key else "NULL"))
        kept = []
        for row in rows:
            if (why := self._target.refusal(row, required=(0,), numbers=(4, 6))) is None:
                kept.append(row)
            elif not silent:
                self.part.differs(f"task {row[0]!r}", why)
        return kept

    def _stored(self) -> list[Row]:
        return self._target.fetch("latest_kickoff_task_outputs", sql.OWN_OUTPUTS)


class LongTermMemories(_TableCopy):
    """What CrewAI up to 1.9.3 learned from its tasks: rows without names or order, as often as the source has each."""

    def add(self) -> None:
        """Add what the target has less often than the source."""
        theirs = self._stored()
        missing = []
        for row in self._source.rows(sql.LONG_TERM):
            if (why := self._refusal(row)) is not None:
                self.part.differs(f"long_term_memories id {row[0]}", why)
            elif theirs[row[1:]]:
                theirs[row[1:]] -= 1
                self.part.present += 1
            else:
                missing.append([_sql.save_long_term(self._target.backend, *row[1:])])
                self.part.added += 1
            self._tick(1)
        for job in jobs(missing):
            self._target.write(job)

    def compare(self) -> None:
        """Compare how often each memory is there."""
        theirs = self._stored()
        for row in self._source.rows(sql.LONG_TERM):
            if self._refusal(row) is None:
                self.part.read.add_row(row[1:])
                if theirs[row[1:]]:
                    theirs[row[1:]] -= 1
                    self.part.stored.add_row(row[1:])
                else:
                    self.part.differs(f"long_term_memories id {row[0]}", "it was not stored as it is")
            self._tick(1)

    def _refusal(self, row: Row) -> str | None:
        return self._target.refusal(row, required=(), numbers=(0, 4))

    def _stored(self) -> Counter[Row]:
        return Counter(self._target.fetch("long_term_memories", sql.OWN_LONG_TERM))
