"""Embeddings in pgvector's terms: their binary form, how they are scored, and what their halves tell; no I/O.

A vector travels in binary: two bytes of dims, two of nothing, and its numbers, big-endian. So it comes back as it was,
and costs no printing and reading of numbers.

**What a half tells.** `half` is x / |x| in half precision. Each number of it is off by 2^-11 of itself at most, or by
2^-25 where it is tiny, so the half as a whole by less than e = 2^-11 + 2^-24 + 2^-25 * sqrt(dims), and the product of
two halves by 2 * e + e^2 from the cosine of x and q. Whatever order a sum of float32 products is taken in, it is off by
less than dims * 2^-24 of the product of the lengths; a cosine has such a sum above its line, and two roots of them
below. So the product of the halves and the score of the embedding, as pgvector computes them both, differ by less than
2 * e + e^2 + 4 * dims * 2^-24 < 1 / 1000 + dims / 4,000,000. It is no estimate: who is left out by it does not belong
to the answer.
"""

from __future__ import annotations

import struct
from array import array
from math import inf, isfinite
from typing import Final, NamedTuple

from walpool.errors import DataError
from walpool.memory.records import EmbeddingError, Metric, pack
from walpool.postgres.spelling.vectors import MOST_DIMS
from walpool.types import Binary

__all__ = ["SCORES", "Bounds", "around", "bounds", "from_server", "to_server"]

# Of the query, in a SELECT of its own: so the server computes it once, and not again for each row where it has planned
# the statement once for all.
_NORM: Final = "(SELECT vector_norm({query}))"
# Of what is longer or shorter, pgvector's sums of float32 products overflow or vanish; its lengths are float64.
_FITS: Final = "vector_norm({query}) BETWEEN 1e-12 AND 1e12"
_BOTH_FIT: Final = f"v.norm BETWEEN 1e-12 AND 1e12 AND {_NORM} BETWEEN 1e-12 AND 1e12"

# A record without an embedding counts as a zero vector, whose cosine is NaN to pgvector. A difference of vectors that
# overflows is an error, so those next to the end of float32 are left to pgvector's distance, which is infinite then.
SCORES: Final[dict[Metric, str]] = {
    "cosine": f"""coalesce(nullif(1 - CASE WHEN {_BOTH_FIT} THEN v.embedding <=> {{query}}
        ELSE l2_normalize(v.embedding) <=> l2_normalize({{query}}) END, CAST('NaN' AS DOUBLE PRECISION)), 0)""",
    "dot": f"""coalesce(CASE WHEN {_BOTH_FIT} THEN -(v.embedding <#> {{query}})
        ELSE -(l2_normalize(v.embedding) <#> l2_normalize({{query}})) * v.norm * {_NORM} END, 0)""",
    "l2": f"""1 / (1 + coalesce(CASE WHEN NOT ({_BOTH_FIT}) AND v.norm + {_NORM} < 1e38
        THEN vector_norm(v.embedding - {{query}}) ELSE v.embedding <-> {{query}} END, {_NORM}) ^ 2)""",
}
"""By the metric: the score of `memory_vectors AS v` against the SQL of a vector, higher is better."""

_HALF: Final = f"(SELECT CASE WHEN {_FITS} THEN CAST(l2_normalize({{query}}) AS HALFVEC) END)"
_SQUARE: Final = f"(SELECT CASE WHEN {_FITS} THEN vector_norm({{query}}) ^ 2 END)"
# Both halves are of length one, all but, so that the product is the cosine.
_COSINE: Final = f"-(v.half <#> {_HALF})"
# Without an embedding there is no norm; one without a half, or a query without, gives NULL: nothing is known.
_LENGTHS: Final = f"coalesce(v.norm, 0) * {_NORM}"
_SUM: Final = f"(coalesce(v.norm, 0) + {_NORM})"
_BOUNDS: Final[dict[Metric, tuple[str, str]]] = {
    "cosine": (f"CASE WHEN v.norm IS NULL THEN 0 ELSE {_COSINE} END", "CAST({off} AS DOUBLE PRECISION)"),
    "dot": (f"CASE WHEN v.norm IS NULL THEN 0 ELSE {_LENGTHS} * {_COSINE} END", f"{_LENGTHS} * {{off}}"),
    # The square of the distance, below zero; last what two scores may differ by and be written as one number.
    "l2": (
        f"CASE WHEN v.norm IS NULL THEN 0 ELSE 2 * {_LENGTHS} * {_COSINE} - v.norm ^ 2 END - {_SQUARE}",
        f"2 * {_LENGTHS} * {{off}} + {_SUM} ^ 2 * {{sum_off}} + 1e-12",
    ),
}


class Bounds(NamedTuple):
    """What `memory_vectors AS v` tells without the embedding: SQL, on a scale of the metric's own, higher is better."""

    middle: str
    """About where a row stands; NULL if that is not known."""
    error: str
    """By how much it may be off."""


def bounds(metric: Metric, query: str, dims: int) -> Bounds:
    """Return where a row stands against the SQL of a vector."""
    middle, error = _BOUNDS[metric]
    sum_off = dims / 4_000_000
    return Bounds(middle.format(query=query), error.format(query=query, off=1 / 1_000 + sum_off, sum_off=sum_off))


def around(metric: Metric, score: float) -> tuple[float, float]:
    """Return a score on the scale of `Bounds`, a little above it and a little below."""
    at = score
    if metric == "l2":
        at = 1 - 1 / score if score else -inf
    rounded = 1e-9 * (1 + abs(at)) if isfinite(at) else 0.0
    return at + rounded, at - rounded


def to_server(embedding: bytes) -> Binary:
    """Return a packed embedding as pgvector takes it.

    Raises:
        EmbeddingError: it is none, or longer than pgvector's vectors are.
    """
    pack(embedding)
    values = array("f", embedding)
    if len(values) > MOST_DIMS:
        raise EmbeddingError(f"pgvector holds embeddings of up to {MOST_DIMS} dims, not of {len(values)}")
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
