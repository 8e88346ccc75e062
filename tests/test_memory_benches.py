"""The benchmarks on memories at their smallest size, and what they stand on: data, exact answers, turns, a process."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")

from benches import contenders, harness, measure, memory_data, memory_process, memory_suite, memory_text, run
from benches.memory_workloads import recall
from benches.workloads import WORKLOADS

# crewai's records call datetime.utcnow(), which Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

TRIES = 10  # a window lasts ten milliseconds, and may pass while other processes have the cores

# At the smallest size those of three sizes differ in little: everybody runs the middle one, walpool all of them. In
# processes of their own the imports of CrewAI would take longer than all else here.
ENTRIES = [
    (workload, contender)
    for workload in memory_suite.MEMORY_WORKLOADS
    for contender in workload.contenders
    if contender == "walpool"
    or "-real" in workload.name
    or ("-10k" in workload.name and (contender != "lancedb" or "-open-" not in workload.name))
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that keeps the filled stores."""
    return tmp_path_factory.mktemp("memories")


@pytest.mark.parametrize(("workload", "contender"), ENTRIES, ids=[f"{w.name}-{name}" for w, name in ENTRIES])
def test_contender_of_a_workload_on_memories_finds_and_keeps_what_it_should(
    workload: harness.Workload, contender: str, parent: Path
) -> None:
    reason = contenders.missing(workload.contenders[contender])
    if reason is not None:
        pytest.skip(reason)

    for _ in range(TRIES):
        sample = run._once(workload, contender, parent, harness.SMALLEST)
        assert sample.wrong == ()
        assert sample.errors == Counter()
        if next(iter(sample.figures.values())) > 0:
            break
    else:
        pytest.fail(f"nothing was done in any of {TRIES} windows: {sample.figures}")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("bench-")] == []


def test_workloads_on_memories_have_every_target_that_was_set() -> None:
    workloads = memory_suite.MEMORY_WORKLOADS

    assert {workload.name: len(workload.targets) for workload in workloads if workload.targets} == {
        "memory-recall-1k": 3,
        "memory-save-1k": 1,
        "memory-recall-10k": 3,
        "memory-search-10k-1": 2,
        "memory-search-10k-8": 1,
        "memory-save-10k": 1,
        "memory-recall-100k": 3,
        "memory-search-100k-1": 2,
        "memory-search-100k-8": 1,
        "memory-save-100k": 1,
        "memory-list-100k": 2,
        "memory-text-100k": 1,
        "memory-open-100k": 2,
        "memory-recall-real": 3,
        "memory-search-real-1": 1,
        "memory-million": 4,
    }


def test_memories_of_a_smaller_corpus_are_the_beginning_of_a_larger_one() -> None:
    small, large = (
        [item for block in memory_data.Synthetic(rows, 8).blocks() for item in block] for rows in (40, 1500)
    )

    assert [len(small), len(large)] == [40, 1500]
    assert [item.number for item in large] == list(range(1500))
    assert all((a.vector == b.vector).all() and a.content == b.content for a, b in zip(small, large, strict=False))


def test_memories_have_the_scopes_and_the_values_that_the_selections_ask_for() -> None:
    items = [item for block in memory_data.Synthetic(20_000, 4).blocks() for item in block]
    shares = {s.name: sum(map(s.takes, items)) / len(items) for s in memory_data.SELECTIONS}

    assert shares["all"] == shares["wide"] == 1.0
    assert shares["narrow"] == pytest.approx(1 / 200, rel=0.3)
    assert shares["1 %"] == pytest.approx(0.01, rel=0.3)
    assert shares["10 %"] == pytest.approx(0.10, rel=0.1)
    assert len({item.scope for item in items}) == 200
    assert sum(len(item.content) for item in items) / len(items) == pytest.approx(300, rel=0.15)


def test_text_question_has_six_to_ten_words_of_one_memory() -> None:
    corpus = memory_data.Synthetic(100, 4)
    contents = [set(item.content.split()) for block in corpus.blocks() for item in block]

    for words in map(str.split, memory_data.texts(corpus, 20)):
        assert 6 <= len(words) <= 10
        assert any(content.issuperset(words) for content in contents)


def test_truth_is_the_exact_answer_in_each_selection() -> None:
    import numpy as np

    corpus = memory_data.Synthetic(1_200, 16)
    items = [item for block in corpus.blocks() for item in block]
    questions = corpus.questions(3)
    truth = memory_data.truth(corpus, 3, 10)

    for selection in memory_data.SELECTIONS:
        members = [item for item in items if selection.takes(item)]
        for question, exact in zip(questions, truth.answers[selection.name], strict=True):
            scores = np.array([np.dot(item.vector.astype(float), question.astype(float)) for item in members])
            best = [members[i].number for i in np.argsort(-scores)[:10]]
            assert exact.right.issuperset(best)
            assert exact.wanted == len(best) == min(10, len(members))


def test_recall_is_the_share_found_and_mistakes_are_told() -> None:
    class Careless:
        def pack(self, vector: Any) -> Any:
            return vector

        def search(self, question: Any, selection: memory_data.Selection, limit: int) -> Any:
            right = memory_data.truth(corpus, 50, 10).answers["all"]
            (exact,) = (e for e, asked in zip(right, corpus.questions(50), strict=True) if (asked == question).all())
            return [*sorted(exact.right)[:5]] * 2

        def numbers(self, answer: Any) -> Any:
            return answer

    corpus = memory_data.Synthetic(300, 16)

    shares, wrong = recall(Careless(), corpus, 50)

    assert shares["all"] == pytest.approx(0.5)
    assert any("found twice" in text for text in wrong)
    assert any("not in the selection: 1 %" in text for text in wrong)


def test_exact_answer_takes_a_tie_for_right_and_nothing_for_complete() -> None:
    exact = memory_data.Exact(frozenset({1, 2, 3}), wanted=2)

    assert [exact.recall(found) for found in ([1, 2], [1, 3], [1, 9], [])] == [1.0, 1.0, 0.5, 0.0]
    assert memory_data.Exact(frozenset(), wanted=0).recall([]) == 1.0


def test_operations_in_turn_are_counted_each_for_itself() -> None:
    called: list[str] = []

    def fails(number: int) -> None:
        called.append(f"b{number}")
        if number == 1:
            raise ValueError("as planned")

    timings = measure.run_in_turn({"a": lambda number: called.append(f"a{number}"), "b": fails}, 0.0, least=2)

    assert called == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert {name: len(timing.latencies_ns) for name, timing in timings.items()} == {"a": 2, "b": 2}
    assert {name: timing.acknowledged for name, timing in timings.items()} == {"a": 3, "b": 2}
    assert timings["b"].errors == Counter({"ValueError: as planned": 1})


def test_million_runs_only_when_it_is_asked_for_by_name() -> None:
    named = [workload.name for workload in run._chosen(["memory-*"])]

    assert "memory-million" not in named
    assert {"memory-recall-1k", "memory-search-100k-8"} <= set(named)
    assert [workload.name for workload in run._chosen(["memory-million"])] == ["memory-million"]
    assert WORKLOADS["memory-million"].contenders.keys() == {"walpool"}


def test_model_embeds_as_its_makers_publish() -> None:
    for module in memory_text.REQUIRES:
        pytest.importorskip(module)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]

    vectors = memory_text.Model().embed(texts)

    # https://www.sbert.net/docs/quickstart.html
    assert (vectors @ vectors.T)[0].tolist() == pytest.approx([1.0, 0.6660, 0.1046], abs=1e-3)


def test_passages_are_of_one_length_and_none_is_there_twice() -> None:
    passages = memory_text.passages()

    assert len(passages) > memory_suite.PASSAGES + memory_text.MOST_QUESTIONS
    assert len(set(passages)) == len(passages)
    assert max(map(len, passages)) <= memory_text.PASSAGE_CHARS


def test_store_in_a_process_of_its_own_tells_why_it_failed(tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").write_bytes(b"no array")

    with pytest.raises(OSError, match="numpy failed in a process of its own"):
        memory_process.fresh("numpy", tmp_path, memory_data.Synthetic(32), "full")
