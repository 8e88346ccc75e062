"""Embeddings, as pgvector sends them: two bytes of dims, two of nothing, and its numbers, float32, big-endian. Pure."""

from __future__ import annotations

from math import isfinite
from struct import Struct
from typing import Any, Final

from walpool.postgres.spelling.spelling import Bad, Limits, Spelling, always, class_of

__all__ = ["MOST_DIMS", "VECTOR"]

MOST_DIMS: Final = 16_000
"""The most that a vector of pgvector's has."""

_HEAD: Final = Struct(">HH")
_DIM_BYTES: Final = 4


def _vector(value: Any, _: Limits) -> bytes:
    if not isinstance(value, bytes):
        raise Bad(f"{class_of(value)} in a column of embeddings")
    dims, rest = divmod(len(value) - _HEAD.size, _DIM_BYTES)
    if dims < 1 or rest:
        raise Bad("a BLOB that is no embedding of float32")
    if dims > MOST_DIMS:
        raise Bad(f"an embedding of {dims} dims: pgvector holds {MOST_DIMS} at most")
    if _HEAD.unpack_from(value) != (dims, 0):
        raise Bad("a BLOB that is no embedding of float32")
    # What is not finite spoils the sum; what is finite in 4 bytes does not add up to more than 8 can hold.
    if not isfinite(sum(Struct(f">{dims}f").unpack_from(value, _HEAD.size))):
        raise Bad("an embedding with a NaN or an infinity in it, which pgvector refuses")
    return value


VECTOR: Final = Spelling(read=_vector, zero=always(_HEAD.pack(1, 0) + bytes(_DIM_BYTES)), wire=bytes, sorts_alike=True)
