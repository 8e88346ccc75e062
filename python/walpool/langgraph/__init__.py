"""LangGraph on walpool: checkpoints, the store and the cache in one SQLite file that many agents write at once."""

from walpool.langgraph._import import Difference, ImportReport, import_sqlite
from walpool.langgraph.aio_saver import AsyncWalpoolSaver
from walpool.langgraph.cache import WalpoolCache
from walpool.langgraph.saver import WalpoolSaver
from walpool.langgraph.store import AsyncWalpoolStore, WalpoolStore

__all__ = [
    "AsyncWalpoolSaver",
    "AsyncWalpoolStore",
    "Difference",
    "ImportReport",
    "WalpoolCache",
    "WalpoolSaver",
    "WalpoolStore",
    "import_sqlite",
]
