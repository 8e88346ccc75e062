"""A model that needs no network: it says what its script says, and calls the tools that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import ModelResponse, Usage
from agents.models.interface import Model
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


def says(text: str) -> ResponseOutputMessage:
    """Return an answer."""
    content = [ResponseOutputText(text=text, type="output_text", annotations=[], logprobs=[])]
    return ResponseOutputMessage(id="msg", type="message", role="assistant", content=list(content), status="completed")


def calls(tool: str, arguments: str) -> ResponseFunctionToolCall:
    """Return a call of a tool, with its arguments as JSON."""
    return ResponseFunctionToolCall(call_id=f"call-{tool}", type="function_call", name=tool, arguments=arguments)


class ScriptedModel(Model):
    """A `Model` that gives the outputs of its script, one a turn, and keeps what it was asked.

    Args:
        script: an output for each turn.

    Attributes:
        asked: the items of each request, in their order.
    """

    def __init__(self, *script: Any) -> None:
        self._script = list(script)
        self.asked: list[list[Any]] = []

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[Any],  # noqa: A002  (the name that the SDK gives it)
        *rest: Any,
        **more: Any,
    ) -> ModelResponse:
        self.asked.append(list(input) if isinstance(input, list) else [input])
        return ModelResponse(output=[self._script.pop(0)], usage=Usage(), response_id=None)

    def stream_response(self, *arguments: Any, **more: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def told(items: list[Any]) -> list[str]:
    """Return, of each item, the text that a person would read, or the name or output of a tool."""
    texts = []
    for item in items:
        content = item.get("content", item.get("output", item.get("name")))
        texts.append(content if isinstance(content, str) else content[0]["text"])
    return texts
