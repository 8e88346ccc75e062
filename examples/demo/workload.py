"""The application: a flow that keeps its state, and in it a crew that keeps what it learned.

Knows nothing of walpool and nothing of measuring. A flow class takes its store when it is decorated, so this module is
imported after walpool is installed.
"""

from __future__ import annotations

import offline  # first: it switches off what would call home
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from crewai.flow.persistence import persist
from crewai.memory.unified_memory import Memory
from pydantic import BaseModel

CREW = "desk"
KICKOFFS_PER_ROUND = 3  # the flow, the crew inside it, and the flow again from what it had stored
MEMORIES_PER_ROUND = 4  # two tasks, two sentences each


class Report(BaseModel):
    """The state of a flow."""

    id: str = ""
    topic: str = ""
    text: str = ""
    times_filed: int = 0


@persist()
class ReportFlow(Flow[Report]):
    """Has a crew write a report, unless the state that it was started from holds one already, and files it."""

    @start()
    def write(self) -> None:
        """Run the crew."""
        if not self.state.text:
            self.state.text = str(report_crew(self.state.topic).kickoff())

    @listen(write)
    def file(self) -> None:
        """Count."""
        self.state.times_filed += 1


def report_crew(topic: str) -> Crew:
    """Return two agents that measure something and report it; each recalls and remembers."""
    llm = offline.ScriptedLLM()
    analyst = Agent(role="Analyst", goal="Find the figures", backstory="Measures twice.", llm=llm)
    writer = Agent(role="Writer", goal="Report the figures", backstory="Writes short sentences.", llm=llm)
    measure = Task(description=f"Measure {topic}", expected_output="a figure", agent=analyst)
    report = Task(description=f"Report on {topic}", expected_output="a report of two sentences", agent=writer)
    return Crew(name=CREW, agents=[analyst, writer], tasks=[measure, report], memory=True, embedder=offline.EMBEDDER)


def run_round(topic: str) -> Report:
    """Run the flow, and then once more from the state that it stored, as after a pause; return the state at the end.

    Raises:
        ValueError: the second flow did not go on where the first one stopped.
    """
    first = ReportFlow(suppress_flow_events=True)
    first.kickoff(inputs={"topic": topic})
    again = resume(first.state.id)
    if (again.text, again.times_filed) != (first.state.text, 2):
        raise ValueError(f"the flow on {topic!r} was not resumed from what it had stored: {again}")
    return again


def resume(flow_id: str) -> Report:
    """Run the flow from the state that is stored under its id; return the state at the end."""
    flow = ReportFlow(suppress_flow_events=True)
    flow.kickoff(inputs={"id": flow_id})
    return Report.model_validate(flow.state.model_dump())


def memory() -> Memory:
    """Return the crew's memory, as the next process finds it."""
    return Memory(llm=offline.ScriptedLLM(), embedder=offline.HashEmbedder(), root_scope=f"/crew/{CREW}")
