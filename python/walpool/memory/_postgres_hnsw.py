"""Searching through an HNSW index, for who asks for it (`index="hnsw"`): near enough, soon enough; no I/O.

The index answers with candidates, which are scored again from the embeddings themselves. Filters come while it is
walked: with `hnsw.iterative_scan` the walk goes on until enough records meet them, or until `hnsw.max_scan_tuples` were
looked at. Where it ended with fewer than were asked for, or came to records no nearer than those that have no
embedding, the exact search answers; and for all that the index does not know: other metrics, later pages, conditions
that Python compares.

One index serves the embeddings of one length of all collections. https://github.com/pgvector/pgvector#hnsw
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from walpool.errors import NotSupportedError
from walpool.memory import _postgres_sql as reads
from walpool.memory._operations import MOST, Given, Read, Search, Space, Steps, ask
from walpool.memory._postgres_filters import Selection, among, select
from walpool.memory._postgres_search import PostgresFinder
from walpool.memory._postgres_vectors import to_server
from walpool.memory._search import Chosen
from walpool.memory.records import Hits

__all__ = ["MOST_DIMS", "HnswFinder", "statement"]

MOST_DIMS: Final = 4_000
"""What an index holds; longer embeddings are searched exactly."""
_MOST_VECTOR_DIMS: Final = 2_000
_LEAST_EF: Final = 40  # candidates that the walk keeps; pgvector's own default
_MOST_EF: Final = 1_000  # and its limit
_ITERATIVE: Final = """SELECT set_config('hnsw.iterative_scan', 'strict_order', true),
    set_config('hnsw.ef_search', ?1, true)"""


def statement(dims: int) -> str:
    """Return the statement that makes the index for embeddings of a length, if there is none.

    Raises:
        NotSupportedError: it is more than pgvector indexes.
    """
    if dims > MOST_DIMS:
        raise NotSupportedError(f"an HNSW index holds embeddings of up to {MOST_DIMS} dims, not of {dims}")
    kind = _kind(dims)
    return f"""CREATE INDEX IF NOT EXISTS memory_vectors_hnsw_{dims} ON memory_vectors
        USING hnsw ((CAST(embedding AS {kind}({dims}))) {kind}_cosine_ops) WHERE vector_dims(embedding) = {dims}"""


class HnswFinder(PostgresFinder):
    """`PostgresFinder`, with an index for the cosine of embeddings."""

    def nearest(self, space: Space, asked: Search, embedding: bytes) -> Read[Hits] | Steps[Hits]:
        """Return the reads of a page of records near to an embedding, the nearest ones as a rule."""
        exact = super().nearest(space, asked, embedding)
        if asked.after is not None or not _is_indexed(asked, embedding) or not isinstance(exact, Read):
            return exact
        return self._nearest(space, asked, embedding, exact)

    def near(self, asked: Search, embedding: bytes, chosen: Chosen, depth: int) -> Steps[list[int]]:
        """Return the reads of the keys of near records, in order."""
        if chosen.narrowed is None and _is_indexed(asked, embedding):
            found = yield from _candidates(chosen.space, asked, embedding, depth)
            if len(found) >= depth:
                given = Given(chosen.space)
                best = reads.nearest_keys(given, Selection((among(found, given),)), asked, embedding, depth)
                rows = yield from ask(Read(best, given.values, list))
                if rows[-1][1] > 0:
                    return [row[0] for row in rows]
        return (yield from super().near(asked, embedding, chosen, depth))

    def _nearest(self, space: Space, asked: Search, embedding: bytes, exact: Read[Hits]) -> Steps[Hits]:
        wanted = min(asked.limit, MOST) + 1
        found = yield from _candidates(space, asked, embedding, wanted)
        if len(found) >= wanted:
            among_them = reads.nearest(space, asked, embedding, keys=found)
            hits = yield from ask(among_them) if isinstance(among_them, Read) else among_them
            if not hits or hits[-1].score > 0:
                return hits
        return (yield from ask(exact))


def _candidates(space: Space, asked: Search, embedding: bytes, limit: int) -> Steps[list[int]]:
    dims = len(embedding) // 4
    given = Given(space)
    where = replace(select(space, asked.query, given), python={}).where
    kind = f"{_kind(dims)}({dims})"
    sql = f"""SELECT v.key FROM memory_vectors AS v
        JOIN memory_records AS r ON r.tenant = v.tenant AND r.collection = v.collection AND r.key = v.key
        WHERE v.tenant = ?1 AND v.collection = ?2 AND vector_dims(v.embedding) = {dims} AND {where}
        ORDER BY CAST(v.embedding AS {kind}) <=> CAST(CAST({given(to_server(embedding))} AS VECTOR) AS {kind})
        LIMIT {given(limit)}"""
    yield from ask(Read(_ITERATIVE, (str(min(max(limit, _LEAST_EF), _MOST_EF)),), list))
    return (yield from ask(Read(sql, given.values, lambda rows: [row[0] for row in rows])))


def _is_indexed(asked: Search, embedding: bytes) -> bool:
    return asked.metric == "cosine" and len(embedding) // 4 <= MOST_DIMS


def _kind(dims: int) -> str:
    return "vector" if dims <= _MOST_VECTOR_DIMS else "halfvec"
