"""CrewAI without a network: a model that answers from a script, and an embedder that hashes words.

The demo, the benchmarks and the tests share them. Both are deterministic: the same prompt gives the same answer and
the same text the same vector, in every process, so that what was stored can be checked afterwards.

Call `go_offline()` before crewai is imported for the first time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from hashlib import blake2b
from math import sqrt
from typing import Any

DIMS = 384
"""The length of `HashEmbedder`'s vectors."""

_OFFLINE = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_TESTING": "true",  # no first-run question on the terminal
    "OTEL_SDK_DISABLED": "true",
}


def go_offline() -> None:
    """Switch off, for this process and its children, everything of CrewAI's that would call home or ask a question."""
    os.environ.update(_OFFLINE)


go_offline()

from crewai import BaseLLM  # noqa: E402 - its telemetry reads the environment when it is imported
from crewai.memory.analyze import (  # noqa: E402
    ConsolidationPlan,
    ExtractedMemories,
    MemoryAnalysis,
    QueryAnalysis,
)
from crewai.rag.embeddings.providers.custom.custom_provider import CustomProvider  # noqa: E402
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction  # noqa: E402


class ScriptedLLM(BaseLLM):
    """A model that answers each of CrewAI's prompts from the prompt's own text; calls nothing and keeps no state.

    As an agent it answers a task with two sentences that name a number derived from the task, so that different tasks
    have different results. Asked what is worth remembering, it names these sentences; asked how to file a memory, it
    picks a scope and a category by the memory's words; asked what to search for, it repeats the question; and it never
    merges memories, so that the number of records stored can be foretold.
    """

    def __init__(self, **fields: Any) -> None:
        """Need no name of a model."""
        super().__init__(**{"model": "scripted", "provider": "scripted", **fields})

    def call(
        self,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> Any:
        """Return the scripted answer: a `response_model` where CrewAI wants one, else an agent's final answer."""
        prompt = _text_of(messages)
        if response_model is not None:
            return _ANSWERS[response_model.__name__](prompt)
        return answer_to(_after("Current Task:", prompt).split("This is the expected criteria")[0])

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `call` does."""
        return self.call(*args, **kwargs)

    def supports_function_calling(self) -> bool:
        """Return True: CrewAI then asks for structured answers by class, and wants final answers as plain text."""
        return True

    def get_context_window_size(self) -> int:
        """Return more tokens than any prompt here has."""
        return 1_000_000

    def get_input_tokens_count(self, messages: Any, tools: Any = None, response_model: Any = None) -> int:
        """Return an estimate, without the warning that CrewAI's own estimate writes to the log."""
        return len(_text_of(messages)) // 4


class HashEmbedder(CustomEmbeddingFunction):
    """An embedder of `DIMS` dimensions: each word adds to a few dimensions that its hash names; of length 1.

    Texts that share words are near each other. For a crew: `Crew(memory=True, embedder=EMBEDDER)`; for a `Memory`:
    `Memory(embedder=HashEmbedder())`.
    """

    def __init__(self) -> None:
        """Need nothing."""

    def __call__(self, input: Any) -> Any:  # noqa: A002 - the name that CrewAI calls it by
        """Return one vector for each text."""
        return [embed(text) for text in input]


EMBEDDER = CustomProvider(embedding_callable=HashEmbedder)
"""`HashEmbedder` as a crew's `embedder`."""


def embed(text: str, dims: int = DIMS) -> list[float]:
    """Return the embedding of a text: `dims` floats, of length 1 as a whole."""
    vector = [0.0] * dims
    for word in re.findall(r"\w+", text.lower()) or [""]:
        digest = blake2b(word.encode(), digest_size=32).digest()
        for at in range(0, 32, 4):
            vector[int.from_bytes(digest[at : at + 3], "big") % dims] += 1.0 if digest[at + 3] & 1 else -1.0
    length = sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


def answer_to(task: str) -> str:
    """Return the final answer that `ScriptedLLM` gives to a task with this description: two sentences."""
    number = int.from_bytes(blake2b(task.strip().encode(), digest_size=4).digest(), "big")
    subject = " ".join(re.findall(r"\w+", task)[:8])
    return f"The figure for {subject} is {number}. It was measured {number % 97 + 3} times."


def _extract(prompt: str) -> ExtractedMemories:
    sentences = re.findall(r"[^.\n]+\.", _after("Result:", prompt).split("\n\nExtract memory statements")[0])
    return ExtractedMemories(memories=[sentence.strip() for sentence in sentences])


def _file(prompt: str) -> MemoryAnalysis:
    content = _after("Content to store:", prompt).split("\n\nExisting scopes:")[0]
    topic = "figures" if "figure" in content else "measurements"
    return MemoryAnalysis(suggested_scope=f"/{topic}", categories=[topic], importance=0.6)


def _search_for(prompt: str) -> QueryAnalysis:
    question = _after("Query:", prompt).split("\n\nAvailable scopes:")[0].strip()
    return QueryAnalysis(recall_queries=[question[:200]], complexity="simple")


_ANSWERS: dict[str, Callable[[str], Any]] = {
    "ExtractedMemories": _extract,
    "MemoryAnalysis": _file,
    "QueryAnalysis": _search_for,
    "ConsolidationPlan": lambda _: ConsolidationPlan(actions=[], insert_new=True),
}


def _text_of(messages: Any) -> str:
    if isinstance(messages, str):
        return messages
    return "\n".join(str(message.get("content") or "") for message in messages)


def _after(label: str, text: str) -> str:
    """Return what follows the last `label` in a text; all of it where there is none."""
    return text.rpartition(label)[2]
