"""LangGraph on walpool: its store and its cache, for synchronous and asynchronous programs.

See docs/langgraph.md.
"""

from walpool.langgraph.cache import WalpoolCache
from walpool.langgraph.store import AsyncWalpoolStore, WalpoolStore

__all__ = [
    "AsyncWalpoolStore",
    "WalpoolCache",
    "WalpoolStore",
]
