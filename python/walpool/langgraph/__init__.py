"""LangGraph on walpool: checkpoints in one SQLite file that many agents write at once."""

from walpool.langgraph.aio_saver import AsyncWalpoolSaver
from walpool.langgraph.saver import WalpoolSaver

__all__ = [
    "AsyncWalpoolSaver",
    "WalpoolSaver",
]
