"""What is asked of every store of an agent's memories, and how its answers are checked.

Must not know how a store works, nor which sizes and targets there are (`memory_suite.py`). What is measured in a
process of its own stands in `memory_process.py`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benches.harness import Sample, Scale, settle
from benches.measure import Timing, run_in_turn, run_threads
from benches.memory_contenders import Store
from benches.memory_data import ALL, EACH, SELECTIONS, Corpus, Item, Selection, Synthetic, texts, truth
from benches.memory_process import fresh
from benches.targets import Target

LIMIT = 10  # hits
ASKED = 64  # questions that are timed, again and again
CHECKED = 50  # questions whose answers are compared with the exact ones
TRIED = 16  # text questions whose answers are looked at
NEW = 10_000_000  # the number of a worker's first record, times the worker's own; above all that are loaded


@dataclass(frozen=True)
class Memories:
    """What the workloads on memories share: a store that already holds `rows` records."""

    name: str
    title: str
    targets: Sequence[Target]
    rows: int
    contenders: Mapping[str, type[Any]]
    seconds: float = 1.2
    of: Callable[[int], Corpus] = Synthetic
    threads: int = 8
    synchronous: str = "full"  # LanceDB writes its files in its own way

    def filled(self, contender: str, folder: Path, corpus: Corpus) -> Path:
        """Return a folder with a store that holds the corpus; it is filled once, and kept in the parent of `folder`."""
        template = folder.parent / f"store-{contender}-{corpus.name}"
        if not _marks(template).exists():
            shutil.rmtree(template, ignore_errors=True)  # what an attempt that failed has left
            template.mkdir()
            seconds = self._fill(self.contenders[contender](), template, corpus)
            _marks(template).write_text(json.dumps({"seconds": seconds, "bytes": size_bytes(template)}))
            settle()
        return template

    def _fill(self, store: Store, folder: Path, corpus: Corpus) -> float:
        """Load the corpus block by block, and return how long the store took, without the making of the records."""
        seconds = 0.0
        with store.opened(folder, self.synchronous) as opened:
            for block in corpus.blocks():
                begun = time.perf_counter()
                opened.load(block)
                seconds += time.perf_counter() - begun
            begun = time.perf_counter()
            opened.settle()
        return seconds + time.perf_counter() - begun  # what is left to do at closing included


def _marks(template: Path) -> Path:
    return template.with_suffix(".json")


def size_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Load(Memories):
    """A store is filled, a thousand records at once, and settled as its makers advise after a bulk load."""

    most_runs = 1

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        told = json.loads(_marks(self.filled(contender, folder, corpus)).read_text())
        vectors = corpus.rows * corpus.dims * 4
        return Sample(
            {
                "records/s": corpus.rows / told["seconds"],
                "seconds": told["seconds"],
                "MB": told["bytes"] / 1e6,
                "× vectors": told["bytes"] / vectors,
            }
        )


class Recall(Memories):
    """The share of the ten nearest that a store finds, on average over the questions, against an exact search."""

    most_runs = 1

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        with self.contenders[contender]().opened(self.filled(contender, folder, corpus), self.synchronous) as store:
            shares, wrong = recall(store, corpus, min(CHECKED, corpus.rows // 4))
        figures = {f"recall {name}": share for name, share in shares.items()}
        return Sample({"recall@10": figures.pop("recall all")} | figures, wrong=wrong)


def recall(store: Any, corpus: Corpus, count: int) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return what a store finds of the exact answers, by selection, and what it must not answer at all."""
    right = truth(corpus, count, LIMIT)
    shares = dict.fromkeys((selection.name for selection in SELECTIONS), 0.0)
    mistakes: Counter[str] = Counter()
    for i, vector in enumerate(corpus.questions(count)):
        question = store.pack(vector)
        for selection in SELECTIONS:
            found = store.numbers(store.search(question, selection, LIMIT))
            shares[selection.name] += right.answers[selection.name][i].recall(found) / count
            mistakes.update(right.mistakes(selection, found))
    return shares, tuple(f"{times} times {mistake}" for mistake, times in mistakes.items())


class SearchAlone(Memories):
    """One thread searches by an embedding: everywhere, and in each selection, in turn."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        with self.contenders[contender]().opened(self.filled(contender, folder, corpus), self.synchronous) as store:
            timings = search_in_turn(store, corpus, self.seconds * scale.window_s, scale.rounds)
        return Sample(searches(timings), sum((timing.errors for timing in timings.values()), Counter()))


def search_in_turn(store: Any, corpus: Corpus, window_s: float, least: int) -> dict[str, Timing]:
    """Time searches of one thread, by selection."""
    operations = {selection.name: search_of(store, corpus, selection, 0) for selection in SELECTIONS}
    return run_in_turn(operations, window_s, least=least)


def search_of(store: Any, corpus: Corpus, selection: Selection, worker: int) -> Callable[[int], Any]:
    """Return an operation that searches by one question after another."""
    questions = [store.pack(vector) for vector in corpus.questions(ASKED)]
    return lambda number: store.search(questions[(worker + number) % ASKED], selection, LIMIT)


def searches(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Return the figures of an unselected search, the medians of the others, and the worst of those over its own."""
    figures = {name: timing.figures() for name, timing in timings.items()}
    whole = figures.pop(ALL.name)
    medians = {f"{name} ms": figure["p50 ms"] for name, figure in figures.items()}
    return {
        "searches/s": whole["ops/s"],
        "p50 ms": whole["p50 ms"],
        "p99 ms": whole["p99 ms"],
        **medians,
        "worst ×": max(medians.values()) / whole["p50 ms"],
    }


class SearchTogether(Memories):
    """Eight threads search by an embedding: everywhere for a while, then in each selection."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        threads = scale.threads(self.threads)
        timings = {}
        with self.contenders[contender]().opened(self.filled(contender, folder, corpus), self.synchronous) as store:
            for selection in SELECTIONS:
                operations = [search_of(store, corpus, selection, worker) for worker in range(threads)]
                timings[selection.name] = run_threads(operations, self.seconds * scale.window_s)
        whole = timings[ALL.name].figures()
        figures = {"searches/s": whole["ops/s"], "p50 ms": whole["p50 ms"], "p99 ms": whole["p99 ms"]}
        rates = {f"{name}/s": timing.per_second for name, timing in timings.items() if name != ALL.name}
        return Sample(figures | rates, sum((timing.errors for timing in timings.values()), Counter()))


class Save(Memories):
    """Each thread saves one record after another, every one in a call of its own."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        shutil.copytree(self.filled(contender, folder, corpus), folder, dirs_exist_ok=True)
        settle()
        source = next(corpus.blocks())[:ASKED]
        with self.contenders[contender]().opened(folder, self.synchronous) as store:
            vectors = [store.pack(vector) for vector in corpus.questions(ASKED)]
            operations = [
                self._operation(store, source, vectors, worker) for worker in range(scale.threads(self.threads))
            ]
            timing = run_threads(operations, self.seconds * scale.window_s)
            found = store.count()
        figures = timing.figures()
        least = corpus.rows + timing.acknowledged
        wrong = () if least <= found <= least + timing.errors.total() else (f"{found} records where {least} should be",)
        return Sample({"saves/s": figures.pop("ops/s")} | figures, timing.errors, wrong)

    @staticmethod
    def _operation(store: Any, source: Sequence[Item], vectors: Sequence[Any], worker: int) -> Callable[[int], Any]:
        first = NEW * (worker + 1)

        def save(number: int) -> None:
            at = (worker + number) % len(source)
            store.save(replace(source[at], number=first + number), vectors[at])

        return save


class Listings(Memories):
    """One thread lists the scopes one level below the crews', and all categories, with their numbers of records."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        with self.contenders[contender]().opened(self.filled(contender, folder, corpus), self.synchronous) as store:
            operations = {"scopes": lambda _: store.scopes(), "categories": lambda _: store.categories()}
            timings = run_in_turn(operations, self.seconds * scale.window_s, least=scale.rounds)
            counted = sum(store.categories().values()) / (corpus.rows * EACH)
        each = {f"{name} ms": timing.figures()["p50 ms"] for name, timing in timings.items()}
        both_s = sum(1 / timing.per_second for timing in timings.values())
        errors = sum((timing.errors for timing in timings.values()), Counter[str]())
        return Sample({"both/s": 1 / both_s} | each | {"counted": counted}, errors)


class Texts(Memories):
    """One thread asks by six to ten words and an embedding (hybrid), and by the words alone, in turn."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        asked = texts(corpus, ASKED)
        with self.contenders[contender]().opened(self.filled(contender, folder, corpus), self.synchronous) as store:
            questions = [store.pack(vector) for vector in corpus.questions(ASKED)]
            operations: dict[str, Callable[[int], Any]] = {
                "hybrid": lambda number: store.hybrid(asked[number % ASKED], questions[number % ASKED], LIMIT),
                "words": lambda number: store.words(asked[number % ASKED], LIMIT),
            }
            timings = run_in_turn(operations, self.seconds * scale.window_s, least=scale.rounds)
            wrong = self._check(store, asked[:TRIED], questions[:TRIED], min(LIMIT, corpus.rows))
        hybrid, words = timings["hybrid"].figures(), timings["words"].figures()
        figures = {"hybrid/s": hybrid["ops/s"], "p50 ms": hybrid["p50 ms"], "p99 ms": hybrid["p99 ms"]}
        figures |= {"words p50 ms": words["p50 ms"], "words p99 ms": words["p99 ms"]}
        return Sample(figures, timings["hybrid"].errors + timings["words"].errors, wrong)

    @staticmethod
    def _check(store: Any, asked: Sequence[str], questions: Sequence[Any], wanted: int) -> tuple[str, ...]:
        wrong: Counter[str] = Counter()
        for text, question in zip(asked, questions, strict=True):
            words = set(text.split())
            contents = store.contents(store.words(text, LIMIT))
            if not contents or not all(words <= set(content.lower().split()) for content in contents):
                wrong["a search by words found nothing, or a record without them"] += 1
            if len(store.numbers(store.hybrid(text, question, LIMIT))) != wanted:
                wrong[f"a hybrid search found another number of records than {wanted}"] += 1
        return tuple(f"{times} times {text}" for text, times in wrong.items())


class Opening(Memories):
    """In a process of its own: from opening a store to its first answer, warm and cold, and the memory it takes."""

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        figures = opening(contender, self.filled(contender, folder, corpus), corpus, self.synchronous, scale)
        return Sample({"first/s": 1_000 / figures["first ms"]} | figures)


def opening(contender: str, store: Path, corpus: Corpus, synchronous: str, scale: Scale) -> dict[str, float]:
    """Return what a fresh process measures of a filled store; memory with the smallest page cache that there is."""
    warm = fresh(contender, store, corpus, synchronous)
    cold = fresh(contender, store, corpus, synchronous, cold=True) if scale.share == 1 else {}
    small = fresh(contender, store, corpus, synchronous, cache_kib=64)
    return {
        "first ms": warm["first ms"],
        "cold ms": cold.get("first ms", math.nan),
        "memory MB": small["memory MB"],
        "peak MB": small["peak MB"],
        "memory ×": small["memory MB"] / small["sketches MB"] if small["sketches MB"] else math.nan,
    }


class Million(Memories):
    """A million records, once: all of the above that one store can show."""

    most_runs = 1
    on_request = True  # it takes long, and some ten gigabytes of disk

    def run(self, contender: str, folder: Path, scale: Scale) -> Sample:
        corpus = self.of(scale.rows(self.rows))
        template = self.filled(contender, folder, corpus)
        told = json.loads(_marks(template).read_text())
        with self.contenders[contender]().opened(template, self.synchronous) as store:
            timings = search_in_turn(store, corpus, self.seconds * scale.window_s, scale.rounds)
            shares, wrong = recall(store, corpus, min(2 * CHECKED, corpus.rows // 4))
        figures = {"records/s": corpus.rows / told["seconds"], "build s": told["seconds"], "MB": told["bytes"] / 1e6}
        figures |= {name: value for name, value in searches(timings).items() if name != "searches/s"}
        figures |= opening(contender, template, corpus, self.synchronous, scale)
        figures |= {"recall@10": shares[ALL.name], "recall 1 %": shares["1 %"]}
        return Sample(figures, sum((timing.errors for timing in timings.values()), Counter()), wrong)
