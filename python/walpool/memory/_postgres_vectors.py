"""Embeddings in pgvector's terms: their binary form, and how they are scored; no I/O.

A vector travels in binary: two bytes of dims, two of nothing, and its numbers, big-endian. So it comes back as it was,
and costs no printing and reading of numbers.
"""

from __future__ import annotations

import struct
from array import array
from typing import Final

from walpool.errors import DataError
from walpool.memory.records import EmbeddingError, Metric, pack
from walpool.types import Binary

__all__ = ["SCORES", "from_server", "to_server"]

_MOST_DIMS: Final = 16_000

# A record without an embedding counts as a zero vector, whose cosine is NaN to pgvector.
SCORES: Final[dict[Metric, str]] = {
    "cosine": "coalesce(nullif(1 - (v.embedding <=> {query}), CAST('NaN' AS DOUBLE PRECISION)), 0)",
    "dot": "coalesce(-(v.embedding <#> {query}), 0)",
    "l2": "1 / (1 + coalesce((v.embedding <-> {query}) ^ 2, -({query} <#> {query})))",
}
"""By the metric: the score of `memory_vectors AS v` against the SQL of a vector, higher is better."""


def to_server(embedding: bytes) -> Binary:
    """Return a packed embedding as pgvector takes it.

    Raises:
        EmbeddingError: it is none, or longer than pgvector's vectors are.
    """
    pack(embedding)
    values = array("f", embedding)
    if len(values) > _MOST_DIMS:
        raise EmbeddingError(f"pgvector holds embeddings of up to {_MOST_DIMS} dims, not of {len(values)}")
    values.byteswap()  # packed ones are little-endian, whatever the machine
    return Binary(struct.pack(">HH", len(values), 0) + values.tobytes())


def from_server(vector: bytes | None) -> bytes | None:
    """Return the packed embedding of a vector from pgvector."""
    if vector is None:
        return None
    if not isinstance(vector, bytes):
        raise DataError("a vector came back in another form than its binary one")
    values = array("f", vector[4:])
    values.byteswap()
    return values.tobytes()
