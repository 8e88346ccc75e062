"""`WalpoolFlowPersistence`: states and pending feedback, by itself and under real flows."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext
from crewai.flow.flow import Flow, FlowState, listen, start
from crewai.flow.human_feedback import human_feedback
from crewai.flow.persistence import persist
from crewai.flow.persistence.factory import default_flow_persistence
from pydantic import BaseModel

import walpool
from walpool.crewai import Installation, WalpoolFlowPersistence


@pytest.fixture
def persistence(place: str) -> Iterator[WalpoolFlowPersistence]:
    opened = WalpoolFlowPersistence(place)
    yield opened
    opened.close()


def context(flow_id: str, method: str = "review") -> PendingFeedbackContext:
    return PendingFeedbackContext(
        flow_id=flow_id, flow_class="tests.Review", method_name=method, method_output={"draft": 1}, message="Well?"
    )


class Inner(BaseModel):
    when: datetime


def test_last_state_counts_and_every_one_is_kept(persistence: WalpoolFlowPersistence, place: str) -> None:
    for step in range(3):
        persistence.save_state("flow-1", f"step{step}", {"id": "flow-1", "step": step})
    persistence.save_state("flow-2", "step0", {"id": "flow-2"})
    assert persistence.load_state("flow-1") == {"id": "flow-1", "step": 2}
    assert persistence.load_state("unknown") is None
    with walpool.get_pool(place) as pool:
        history = pool.fetch("SELECT method_name FROM flow_states WHERE flow_uuid = 'flow-1' ORDER BY id")
    assert history == [("step0",), ("step1",), ("step2",)]


@pytest.mark.parametrize(
    "value",
    ["half of a pair: \ud800", "nul \x00", 10**40, 1e308, 0.1 + 0.2, -0.0, float("inf"), "ä\n", {"": [None, True]}],
    ids=repr,
)
def test_state_comes_back_as_json_would_give_it(persistence: WalpoolFlowPersistence, value: Any) -> None:
    state = {"id": "f", "value": value}
    persistence.save_state("f", "m", state)
    loaded = persistence.load_state("f")
    assert repr(loaded) == repr(json.loads(json.dumps(state)))


def test_state_may_hold_what_json_has_no_form_for(persistence: WalpoolFlowPersistence) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    persistence.save_state(
        "f",
        "m",
        {
            "when": noon,
            "day": date(2026, 3, 1),
            "set": {1},
            "pair": (1, 2),
            "uuid": UUID(int=1),
            "model": Inner(when=noon),
            "path": Path("x"),
        },
    )
    assert persistence.load_state("f") == {
        "when": "2026-03-01T12:00:00+00:00",
        "day": "2026-03-01",
        "set": [1],
        "pair": [1, 2],
        "uuid": "00000000-0000-0000-0000-000000000001",
        "model": {"when": "2026-03-01T12:00:00Z"},
        "path": "x",
    }


def test_state_may_be_a_model_with_a_field_that_pydantic_cannot_dump(persistence: WalpoolFlowPersistence) -> None:
    class Odd(BaseModel):
        anything: Any

    persistence.save_state("f", "m", Odd(anything=object))
    assert persistence.load_state("f") == {"anything": "<class 'object'>"}


def test_state_that_is_neither_dict_nor_model_is_refused(persistence: WalpoolFlowPersistence) -> None:
    with pytest.raises(ValueError, match="not list"):
        persistence.save_state("f", "m", [1])  # type: ignore[arg-type]


def test_pending_feedback_comes_with_its_state_until_it_is_cleared(persistence: WalpoolFlowPersistence) -> None:
    assert persistence.load_pending_feedback("f") is None
    persistence.save_pending_feedback("f", context("f", "first"), {"step": 1})
    persistence.save_pending_feedback("f", context("f"), {"step": 2})
    found = persistence.load_pending_feedback("f")
    assert found is not None
    assert found[0] == persistence.load_state("f") == {"step": 2}
    assert found[1] == context("f") or found[1].to_dict().keys() == context("f").to_dict().keys()
    assert (found[1].method_name, found[1].method_output) == ("review", {"draft": 1})
    persistence.clear_pending_feedback("f")
    persistence.clear_pending_feedback("f")
    assert persistence.load_pending_feedback("f") is None
    assert persistence.load_state("f") == {"step": 2}


def test_state_and_pending_feedback_are_one_job(persistence: WalpoolFlowPersistence, place: str) -> None:
    with walpool.get_pool(place) as pool:
        pool.execute("DROP TABLE pending_feedback")
    with pytest.raises(walpool.ProgrammingError, match="pending_feedback"):
        persistence.save_pending_feedback("f", context("f"), {"step": 1})
    assert persistence.load_state("f") is None


def test_restored_persistence_stores_in_the_same_database(persistence: WalpoolFlowPersistence) -> None:
    from crewai.flow.persistence.base import _persistence_registry

    persistence.save_state("f", "m", {"step": 1})
    fields = json.loads(persistence.model_dump_json())
    assert fields["persistence_type"] == "WalpoolFlowPersistence"
    restored = _persistence_registry[fields["persistence_type"]].model_validate(fields)
    assert restored.load_state("f") == {"step": 1}
    for twin in (copy.deepcopy(persistence), pickle.loads(pickle.dumps(persistence))):
        assert twin.load_state("f") == {"step": 1}


def test_closing_it_does_not_end_it(persistence: WalpoolFlowPersistence) -> None:
    persistence.save_state("f", "m", {"step": 1})
    persistence.close()
    assert persistence.load_state("f") == {"step": 1}


def test_file_of_crewais_own_is_read_and_written(database: Path) -> None:
    from crewai.flow.persistence.sqlite import SQLiteFlowPersistence

    stock = SQLiteFlowPersistence(str(database))
    stock.save_state("f", "m", {"by": "crewai"})
    ours = WalpoolFlowPersistence(str(database))
    assert ours.load_state("f") == {"by": "crewai"}
    ours.save_state("f", "m", {"by": "walpool"})
    ours.close()
    assert stock.load_state("f") == {"by": "walpool"}


# Under real flows


class Count(FlowState):
    count: int = 0


def counting_flow() -> type[Flow[Any]]:
    """Make the class when it is asked for: `@persist()` takes its store then."""

    @persist()
    class Counting(Flow[Count]):
        @start()
        def first(self) -> None:
            self.state.count += 1

        @listen(first)
        def second(self) -> None:
            self.state.count += 10

    return Counting


def test_flow_is_persisted_and_goes_on_where_it_was(installation: Installation, database: Path) -> None:
    flow = counting_flow()()
    flow.kickoff()
    again = counting_flow()()
    again.kickoff(inputs={"id": flow.state.id})
    assert again.state.count == 22
    with walpool.Pool(database) as pool:
        methods = pool.fetch("SELECT method_name FROM flow_states WHERE flow_uuid = ? ORDER BY id", (flow.state.id,))
    assert methods == [("first",), ("second",)] * 2


def test_flow_that_waits_for_a_person_is_resumed_from_the_file(installation: Installation) -> None:
    class Later:
        def request_feedback(self, context: PendingFeedbackContext, flow: Flow[Any]) -> str:
            raise HumanFeedbackPending(context=context)

    class Review(Flow[Count]):
        @start()
        @human_feedback(message="Well?", provider=Later())
        def draft(self) -> str:
            self.state.count = 7
            return "a draft"

        @listen(draft)
        def publish(self, result: Any) -> str:
            self.state.count += 1
            return str(result.feedback)

    flow = Review()
    assert isinstance(flow.kickoff(), HumanFeedbackPending)
    resumed = Review.from_pending(flow.state.id)
    assert resumed.resume("fine") == "fine"
    assert resumed.state.count == 8
    assert default_flow_persistence().load_pending_feedback(flow.state.id) is None
