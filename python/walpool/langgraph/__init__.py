"""LangGraph on walpool: checkpoints in one SQLite file that many agents write at once."""

from walpool.langgraph.saver import WalpoolSaver

__all__ = ["WalpoolSaver"]
