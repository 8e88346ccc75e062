"""The search for the nearest items in SQLite, as the reads of one snapshot; no I/O.

`vec_nearest` ranks vectors, and an item may have several: its score is that of its best one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from walpool.langgraph._steps import Read, Steps, ask
from walpool.langgraph._store_sql import ItemId, Selection, ids_of
from walpool.types import Value

__all__ = ["nearest"]

_FEW: Final = 64
"""Items whose vectors are compared one by one: a small namespace is searched without a look at all the others."""
_MOST: Final = 1 << 61

_OF_ITEM: Final = "BETWEEN i.value << 16 AND (i.value << 16) + 65535"
_KEYS: Final = f"""(SELECT vec_key_set(s.key) FROM json_each(?) AS i
    CROSS JOIN langgraph_sketches AS s ON s.key {_OF_ITEM})"""


def nearest(embedding: bytes, selection: Selection, *, limit: int) -> Steps[list[tuple[ItemId, float]]]:
    """Return the reads of the `limit` selected items nearest to `embedding`: ids and cosines, by falling cosine.

    Exact. Of items without a vector of these dims nothing is said.
    """
    if not selection.condition:
        return (yield from _ranked(embedding, "NULL, NULL", (), limit))
    # A namespace is known to the sketches; of other conditions all that meet them have to be named.
    ids = yield from ask(_ids(selection, _FEW + 1 if selection.is_namespace else _MOST))
    if len(ids) <= _FEW:
        return (yield from ask(_of_few(embedding, ids, limit))) if ids else []
    if selection.is_namespace:
        scopes = f"(SELECT vec_key_set(scope) FROM langgraph_scopes {selection.where()})"
        return (yield from _ranked(embedding, f"{scopes}, NULL", selection.params, limit))
    return (yield from _ranked(embedding, f"NULL, {_KEYS}", (json.dumps(ids),), limit))


def _ids(selection: Selection, limit: int) -> Read[list[ItemId]]:
    return Read(f"SELECT id FROM langgraph_items {selection.where()} LIMIT ?", (*selection.params, limit), ids_of)


def _of_few(embedding: bytes, ids: Sequence[ItemId], limit: int) -> Read[list[tuple[ItemId, float]]]:
    """Return the read of the nearest of these items, from all of their vectors."""
    sql = f"""SELECT v.id >> 16 AS item, max(vec_cosine(v.embedding, ?)) AS score
        FROM json_each(?) AS i CROSS JOIN langgraph_vectors AS v ON v.id {_OF_ITEM}
        WHERE length(v.embedding) = ? GROUP BY item ORDER BY score DESC, item LIMIT ?"""
    params = (embedding, json.dumps(ids), len(embedding), limit)
    return Read(sql, params, lambda rows: [(row[0], row[1]) for row in rows])


def _ranked(embedding: bytes, sets: str, params: tuple[Value, ...], limit: int) -> Steps[list[tuple[ItemId, float]]]:
    """Return the reads of the nearest items.

    Args:
        embedding: the query.
        sets: the SQL of the scopes and the keys that may be found, as `vec_nearest` takes them.
        params: its parameters.
        limit: how many.
    """
    sql = f"""SELECT near.value >> 16, vec_cosine(v.embedding, ?)
        FROM json_each(vec_nearest('langgraph', ?, ?, 'cosine', ?, {sets}, NULL, NULL, NULL)) AS near
        CROSS JOIN langgraph_vectors AS v ON v.id = near.value ORDER BY near.key"""
    asked = 2 * limit  # vectors; with a few to spare, so that items of two or three seldom need a second look
    while True:
        asked = min(asked, _MOST)
        rows = yield from ask(Read(sql, (embedding, len(embedding) // 4, embedding, asked, *params), list))
        best: dict[ItemId, float] = {}
        for item, score in rows:
            best.setdefault(item, score)
        if len(best) >= limit or len(rows) < asked:
            return list(best.items())[:limit]
        asked *= 4
