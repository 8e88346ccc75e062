"""Reading back the JSON that the integration stored."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

__all__ = ["decode"]


def decode(text: str) -> Any:
    """Return what `json.loads` returns for `text`, in about half the time.

    A kickoff's outputs are decoded all at once, by every thread that loads them, with the GIL held: that was more than
    half of a load. pydantic-core, which CrewAI stands on, refuses some of what `json.dumps` writes (lone surrogates).

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)
