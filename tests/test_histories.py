"""The checker of histories: each anomaly, made by hand, is found by its name; what is in order is left alone.

Histories are drawn as one line a call: who, from when to when, what it did, and what came of it.
"""

from __future__ import annotations

import random

import pytest
from histories import APPLIED, FAILED, UNKNOWN, Append, Call, Read, against_order, anomalies, report

X, Y = 1, 2  # lists
AGES = 10**6  # an interval that overlaps every other


def call(caller: str, *steps: Append | Read, at: tuple[int, int] = (0, AGES), outcome: str = APPLIED) -> Call:
    return Call(caller, steps, *at, outcome)


def kinds(*calls: Call) -> list[str]:
    return [anomaly.kind for anomaly in anomalies(calls)]


# Each entry holds calls that overlap in time unless they say when.
FOUND: dict[str, tuple[str, list[Call]]] = {
    "two jobs of which each stands before the other": (
        "G0, write cycle",
        [
            call("a", Append(X, 1), Append(Y, 2)),
            call("b", Append(X, 3), Append(Y, 4)),
            call("c", Read(X, (1, 3))),
            call("d", Read(Y, (4, 2))),
        ],
    ),
    "a job that is torn apart by another": (
        "G0, write cycle",
        [call("a", Append(X, 1), Append(X, 2)), call("b", Append(X, 3)), call("c", Read(X, (1, 3, 2)))],
    ),
    "an element of a failed job": (
        "G1a, aborted read",
        [call("a", Append(X, 1), outcome=FAILED), call("b", Read(X, (1,)))],
    ),
    "an element that a savepoint took back": (
        "G1a, aborted read",
        [call("a", Append(X, 1, is_kept=False), Append(X, 2)), call("b", Read(X, (1, 2)))],
    ),
    "a job half done": (
        "G1b, intermediate read",
        [call("a", Append(X, 1), Append(X, 2)), call("b", Read(X, (1,))), call("c", Read(X, (1, 2)))],
    ),
    "a job half done that nobody saw whole": (
        "G1b, intermediate read",
        [call("a", Append(X, 1), Append(X, 2)), call("b", Read(X, (1,)))],
    ),
    "two transactions that read each other's writes": (
        "G1c, circular information flow",
        [call("a", Append(X, 1), Read(Y, (2,))), call("b", Append(Y, 2), Read(X, (1,)))],
    ),
    "two transactions that append to what both read": (
        "lost update",
        [
            call("a", Read(X, ()), Append(X, 1)),
            call("b", Read(X, ()), Append(X, 2)),
            call("c", Read(X, (1, 2))),
        ],
    ),
    "an update that the other wrote over": (
        "lost update",
        [call("a", Read(X, ()), Append(X, 1)), call("b", Read(X, ()), Append(X, 2)), call("c", Read(X, (2,)))],
    ),
    "a snapshot with one list from before a job and one from after it": (
        "G-single, read skew",
        [call("a", Append(X, 1), Append(Y, 2)), call("b", Read(X, ()), Read(Y, (2,))), call("c", Read(X, (1,)))],
    ),
    "two transactions that each miss the other's write": (
        "G2, write skew",
        [
            call("a", Read(X, ()), Append(Y, 1)),
            call("b", Read(Y, ()), Append(X, 2)),
            call("c", Read(X, (2,)), at=(AGES, AGES + 1)),
            call("d", Read(Y, (1,)), at=(AGES, AGES + 1)),
        ],
    ),
    "two readers that saw two jobs in different orders": (
        "G2, write skew",
        [
            call("a", Append(X, 1)),
            call("b", Append(Y, 2)),
            call("c", Read(X, (1,)), Read(Y, ())),
            call("d", Read(X, ()), Read(Y, (2,))),
        ],
    ),
    "a read that began after the answer and does not see it": (
        "stale read",
        [call("a", Append(X, 1), at=(0, 1)), call("b", Read(X, ()), at=(2, 3)), call("c", Read(X, (1,)))],
    ),
    "an acknowledged write that nobody ever sees": (
        "stale read",
        [call("a", Append(X, 1), at=(0, 1)), call("b", Read(X, ()), at=(2, 3))],
    ),
    "a read older than what another reader had before it began": (
        "stale read",
        [
            call("a", Append(X, 1)),
            call("b", Read(X, (1,)), at=(2, 3)),
            call("c", Read(X, ()), at=(4, 5)),
        ],
    ),
    "a reader that goes back in time": (
        "non-monotonic read",
        [call("a", Append(X, 1)), call("b", Read(X, (1,)), at=(2, 3)), call("b", Read(X, ()), at=(4, 5))],
    ),
    "a caller that does not see its own write": (
        "own write unread",
        [call("a", Append(X, 1), at=(0, 1)), call("a", Read(X, ()), at=(2, 3))],
    ),
    "a job that stands before one that was answered before it began": (
        "real-time order",
        [
            call("a", Append(X, 1), at=(0, 1)),
            call("b", Append(X, 2), at=(2, 3)),
            call("c", Read(X, (2, 1)), at=(4, 5)),
        ],
    ),
    "a caller's second write before its first": (
        "session order",
        [
            call("a", Append(X, 1), at=(0, 1)),
            call("a", Append(X, 2), at=(2, 3)),
            call("c", Read(X, (2, 1)), at=(4, 5)),
        ],
    ),
    "a transaction that does not see its own write": (
        "internal",
        [call("a", Append(X, 1), Read(X, ()))],
    ),
    "a snapshot that changes while it is open": (
        "internal",
        [call("a", Append(X, 1)), call("b", Read(X, ()), Read(X, (1,)))],
    ),
    "lists of which neither begins the other": (
        "incompatible orders",
        [call("a", Append(X, 1)), call("b", Append(X, 2)), call("c", Read(X, (1,))), call("d", Read(X, (2, 1)))],
    ),
    "a call that failed and should not": ("surprise", [Call("a", (), 0, 1, FAILED, surprise="a lock error")]),
    "an element twice": ("duplicate element", [call("a", Append(X, 1)), call("b", Read(X, (1, 1)))]),
    "an element that nobody wrote": ("element from nowhere", [call("a", Read(X, (7,)))]),
}


@pytest.mark.parametrize(("kind", "calls"), FOUND.values(), ids=FOUND)
def test_anomaly_is_found_under_its_name(kind: str, calls: list[Call]) -> None:
    assert kinds(*calls) == [kind]
    assert kinds(*reversed(calls)) == [kind]


def test_anomaly_is_told_with_the_calls_that_show_it() -> None:
    calls = [call("a", Append(X, 1), at=(0, 1)), call("b", Read(X, ()), at=(2, 3)), call("c", Read(X, (1,)))]
    (anomaly,) = anomalies(calls)
    assert {each.caller for each in anomaly.calls} == {"a", "b"}
    assert "it did not see the other's element" in anomaly.why
    assert report([anomaly]).startswith("1 of: stale read\nthe first, stale read: ")


def test_several_anomalies_are_all_found() -> None:
    _, torn = FOUND["a job half done"]
    _, lost = FOUND["an update that the other wrote over"]
    moved = [Call(c.caller, tuple(_on_list(step, 9) for step in c.steps), c.invoked, c.returned) for c in lost]
    assert sorted(kinds(*torn, *moved)) == ["G1b, intermediate read", "lost update"]


def _on_list(step: Append | Read, key: int) -> Append | Read:
    return Append(key, step.value) if isinstance(step, Append) else Read(key, step.values)


# What is in order


def test_calls_that_overlap_may_stand_in_any_order() -> None:
    appends = [call("a", Append(X, 1), at=(0, 10)), call("b", Append(X, 2), at=(5, 15))]
    for seen in [(), (1,), (2,), (1, 2), (2, 1)]:
        assert kinds(*appends, call("c", Read(X, seen), at=(5, 10))) == []


def test_calls_that_meet_at_an_instant_overlap() -> None:
    assert kinds(call("a", Append(X, 1), at=(0, 5)), call("b", Read(X, ()), at=(5, 6))) == []


def test_job_of_unknown_outcome_may_be_there_whole_or_not_at_all() -> None:
    job = call("a", Append(X, 1), Append(X, 2), at=(0, 1), outcome=UNKNOWN)
    assert kinds(job, call("b", Read(X, ()), at=(2, 3))) == []
    assert kinds(job, call("b", Read(X, (1, 2)), at=(2, 3))) == []
    assert kinds(job, call("b", Read(X, (1,)), at=(2, 3))) == ["G1b, intermediate read"]
    assert kinds(job, call("b", Read(X, (1, 2)), at=(2, 3)), call("b", Read(X, ()), at=(4, 5))) == [
        "non-monotonic read"
    ]


def test_transaction_may_read_what_it_wrote_and_what_it_took_back() -> None:
    steps = Read(X, (1,)), Append(X, 2), Append(X, 3, is_kept=False), Read(X, (1, 2)), Append(X, 4)
    assert kinds(call("a", Append(X, 1)), call("b", *steps), call("c", Read(X, (1, 2, 4)))) == []


def test_failed_transaction_saw_one_state_too() -> None:
    calls = [call("a", Append(X, 1), Append(Y, 2)), call("b", Read(X, ()), Read(Y, (2,)), outcome=FAILED)]
    assert kinds(*calls, call("c", Read(X, (1,)))) == ["G-single, read skew"]


# A serial run is in order, and stays so when its calls are stretched in time; one that is spoilt is not.


def serial_history(seed: int, length: int) -> tuple[list[Call], list[tuple[int, int, int]]]:
    """Return a history of one call after the other, stretched so that neighbours overlap, and its order."""
    draw = random.Random(seed)
    lists: dict[int, list[int]] = {key: [] for key in range(4)}
    order: list[tuple[int, int, int]] = []
    calls = []
    for n in range(length):
        steps: list[Append | Read] = []
        for key in draw.sample(range(4), draw.randint(1, 3)):
            if draw.random() < 0.5:
                order.append((len(order) + 1, key, len(order) + 1))
                lists[key].append(len(order))
                steps.append(Append(key, len(order), place=len(order)))
            else:
                steps.append(Read(key, tuple(lists[key]), len(order)))
        # Not longer than 7 calls, so that each caller has one call at a time.
        calls.append(Call(f"caller {n % 8}", tuple(steps), 10 * n - draw.randint(0, 35), 10 * n + draw.randint(0, 35)))
    return calls, order


@pytest.mark.parametrize("seed", range(5))
def test_serial_run_is_in_order(seed: int) -> None:
    calls, order = serial_history(seed, 400)
    assert anomalies(calls) == []
    assert against_order(calls, order) == []


@pytest.mark.parametrize("seed", range(20))
def test_serial_run_in_which_a_read_misses_one_element_is_not(seed: int) -> None:
    calls, order = serial_history(seed, 200)
    draw = random.Random(seed)
    chosen = draw.choice([n for n, each in enumerate(calls) if n > 100 and isinstance(each.steps[0], Read)])
    first = calls[chosen].steps[0]
    assert isinstance(first, Read)
    kept = len(first.values) - draw.randint(10, 15)  # as it was many calls ago
    spoilt = Read(first.key, first.values[:kept], first.place)
    each = calls[chosen]
    calls[chosen] = Call(each.caller, (spoilt, *each.steps[1:]), each.invoked, each.returned)
    assert anomalies(calls)
    assert "read is no prefix of the order" in [anomaly.kind for anomaly in against_order(calls, order)]


# Against the order that the database kept

ORDER = [(1, X, 1), (2, X, 2), (3, Y, 3)]

MISPLACED: dict[str, tuple[str, list[Call]]] = {
    "a job that another stands in": ("job is not in one piece", [call("a", Append(X, 1), Append(Y, 3))]),
    "a job whose steps stand the wrong way round": ("job is not in one piece", [call("a", Append(X, 2), Append(X, 1))]),
    "an acknowledged job that is gone": ("acknowledged write is missing", [call("a", Append(X, 7))]),
    "an acknowledged job that is half gone": ("acknowledged write is missing", [call("a", Append(Y, 3), Append(X, 7))]),
    "an unknown job that is half there": (
        "acknowledged write is missing",
        [call("a", Append(Y, 3), Append(X, 7), outcome=UNKNOWN)],
    ),
    "a failed job that is there": ("failed job left something", [call("a", Append(X, 1), outcome=FAILED)]),
    "a savepoint that was not taken back": ("failed job left something", [call("a", Append(X, 1, is_kept=False))]),
    "an answer from a run that was thrown away": ("answer tells another place", [call("a", Append(X, 2, place=1))]),
    "a snapshot of two moments": ("torn snapshot", [call("a", Read(X, (1,), 1), Read(Y, (3,), 3))]),
    "a read that lacks an element": ("read is no prefix of the order", [call("a", Read(X, (1,), 2))]),
    "a read that is ahead": ("read is no prefix of the order", [call("a", Read(X, (1, 2), 1))]),
    "a read from before an answer": (
        "order against time",
        [call("a", Append(X, 1), Append(X, 2), at=(0, 1)), call("b", Read(X, (1,), 1), at=(2, 3))],
    ),
    "a job that went before an answer": (
        "order against time",
        [call("a", Append(X, 2), at=(0, 1)), call("b", Append(X, 1), at=(2, 3))],
    ),
    "a job behind a read that saw it before it began": (
        "order against time",
        [call("a", Read(X, (1,), 1), at=(0, 1)), call("b", Append(X, 1), at=(2, 3))],
    ),
}


@pytest.mark.parametrize(("kind", "calls"), MISPLACED.values(), ids=MISPLACED)
def test_call_that_does_not_fit_the_order_is_found(kind: str, calls: list[Call]) -> None:
    assert [anomaly.kind for anomaly in against_order(calls, ORDER)] == [kind]


def test_gap_in_the_order_is_found() -> None:
    assert [anomaly.kind for anomaly in against_order([], [(1, X, 1), (3, X, 2)])] == ["gap in the order"]


def test_calls_that_fit_the_order_are_left_alone() -> None:
    calls = [
        call("a", Append(X, 1, place=1), Append(X, 2, place=2), at=(0, 5)),
        call("b", Read(X, (1, 2), 2), Append(X, 9, is_kept=False), Append(Y, 3, place=3), Read(Y, (3,), 3), at=(6, 9)),
        call("c", Read(X, (), 0), Read(Y, (), 0), at=(0, 20)),
        call("d", Append(X, 8), outcome=FAILED),
        call("e", Append(X, 7), outcome=UNKNOWN),
    ]
    assert against_order(calls, ORDER) == []
