"""Taking checkpoints apart without making the objects in them: their classes may not be here. Pure.

A checkpoint of `langgraph-checkpoint-sqlite` is one serialized dict with the values of all channels in it; walpool's
savers keep each value by itself. Objects are extensions of msgpack, which go from one to the other as the bytes they
are; in JSON they are plain dicts.
"""

from __future__ import annotations

import json
from typing import Any, Final

import ormsgpack

from walpool.errors import DataError

FORMATS: Final = ("msgpack", "json")
_UNPACK: Final = ormsgpack.OPT_NON_STR_KEYS
_PACK: Final = ormsgpack.OPT_NON_STR_KEYS | ormsgpack.OPT_REPLACE_SURROGATES


class Extension:
    """An object as msgpack has it: the code of its kind, and its bytes."""

    __slots__ = ("code", "data")

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = bytes(data)

    def __repr__(self) -> str:
        return f"Extension({self.code}, {self.data!r})"


class RawSerializer:
    """A serializer for the savers' own code, which leaves what it does not know as it is.

    Args:
        format_: what values are written as: the format that they were read in.
    """

    def __init__(self, format_: str) -> None:
        if format_ not in FORMATS:
            raise DataError(f"a checkpoint is of the type {format_!r}, which only its own serializer can read")
        self._format = format_

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return the type and the bytes that LangGraph's serializer would have made."""
        if obj is None:
            return "null", b""
        if isinstance(obj, bytes):
            return "bytes", obj
        if self._format == "json":
            return "json", json.dumps(obj, ensure_ascii=False).encode()
        return "msgpack", ormsgpack.packb(obj, default=_extension, option=_PACK)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return plain values and extensions; the data itself of a type that is not known."""
        kind, content = data
        if kind == "null":
            return None
        if kind == "bytes":
            return content
        if kind == "json":
            return json.loads(content)
        if kind == "msgpack":
            return ormsgpack.unpackb(content, ext_hook=Extension, option=_UNPACK)
        return data


def _extension(value: object) -> ormsgpack.Ext:
    if isinstance(value, Extension):
        return ormsgpack.Ext(value.code, value.data)
    raise TypeError(f"{type(value).__name__} is not what msgpack was read as")
