"""The OpenAI Agents SDK on walpool: sessions, that is, the histories of conversations.

    from walpool.openai_agents import WalpoolSession
    await Runner.run(agent, "Hello", session=WalpoolSession("user-1", pool))

docs/openai-agents.md has the rest.
"""

from __future__ import annotations

from walpool.openai_agents.session import SessionClosedError, WalpoolSession

__all__ = ["SessionClosedError", "WalpoolSession"]
