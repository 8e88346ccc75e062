"""One batch of store operations: what it embeds, reads and writes, in terms of `_store_sql`. No I/O.

As `InMemoryStore` has it, the reads of a batch see the store as it was before the batch, and of several puts to one key
the last one counts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from enum import Enum
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

from walpool.errors import DataError
from walpool.langgraph import _store_filter
from walpool.langgraph import _store_sql as sql
from walpool.langgraph._steps import Statement, Steps, ask
from walpool.langgraph._store_dialects import StoreDialect
from walpool.langgraph._store_index import Index

_CHUNK: Final = 256  # items whose values are read at a time where Python filters
_MOST: Final = 1 << 61  # of a limit or an offset, so that SQLite can take their sum
_REFRESH_AFTER: Final = 1_000_000  # microseconds: an expiry that would move by less is not worth a commit

_Key = tuple[tuple[str, ...], str]


class Batch:
    """The operations of one call of `batch`.

    Args:
        dialect: what is said to the database.
        ops: LangGraph's operations.
        index: what is embedded; None where the store has no index.
        omit_expired: whether reads leave out what has expired and was not swept yet.

    Attributes:
        texts: what has to be embedded for the puts, each text once.
        queries: what has to be embedded for the searches, each query once.
        has_reads: whether `reads` has anything to do.
        is_one_read: whether all it does is one read, which is its own snapshot.
        has_puts: whether `job` writes more than refreshed TTLs.

    Raises:
        InvalidNamespaceError: a label is empty, no text, or holds a period.
        ValueError: an operator of a filter is unknown, a match type, or a kind of operation.
        DataError: a value is nested too deep for JSON.
        TypeError: a value has no JSON form.
    """

    def __init__(self, dialect: StoreDialect, ops: Iterable[Op], index: Index | None, *, omit_expired: bool) -> None:
        self._sql = dialect
        self._ops = list(ops)
        self._index = index
        self._now = sql.now()
        self._live_at = self._now if omit_expired else None
        self._puts: dict[_Key, PutOp] = {}
        self._refreshed: list[sql.ItemId] = []
        for op in self._ops:
            self._validate(op)
        self._values = {key: encode(op.value) for key, op in self._puts.items() if op.value is not None}
        self._vectors = {key: index.texts(op) if index else [] for key, op in self._puts.items()}
        self.texts = list(dict.fromkeys(text for pairs in self._vectors.values() for _, text in pairs))
        searches = [op for op in self._ops if isinstance(op, SearchOp)]
        self.queries = list(dict.fromkeys(op.query for op in searches if op.query)) if index else []
        self.has_reads = any(not isinstance(op, PutOp) for op in self._ops)
        self.has_puts = bool(self._puts)
        self.is_one_read = len(self._ops) == 1 and isinstance(self._ops[0], (GetOp, ListNamespacesOp))

    def __len__(self) -> int:
        return len(self._ops)

    def _validate(self, op: Op) -> None:
        validate_op_namespace(op)
        if isinstance(op, PutOp):
            self._puts[op.namespace, op.key] = op
        elif isinstance(op, SearchOp):
            _store_filter.validate(op.filter or {})
        elif isinstance(op, ListNamespacesOp):
            for condition in op.match_conditions or ():
                if condition.match_type not in ("prefix", "suffix"):
                    raise ValueError(f"Unsupported match type: {condition.match_type}")
        elif not isinstance(op, GetOp):
            raise ValueError(f"Unknown operation type: {type(op)}")

    def reads(self, queries: Mapping[str, bytes]) -> Steps[list[Result]]:
        """Return the steps that answer every operation, in order; a put's answer is None.

        Args:
            queries: the embedding of each of `queries`.
        """
        results: list[Result] = []
        for op in self._ops:
            if isinstance(op, GetOp):
                results.append((yield from self._get(op)))
            elif isinstance(op, SearchOp):
                results.append((yield from self._search(op, queries.get(op.query or ""))))
            elif isinstance(op, ListNamespacesOp):
                results.append((yield from self._namespaces(op)))
            else:
                results.append(None)
        return results

    def job(self, embeddings: Mapping[str, bytes], *, sweep: int) -> list[Statement]:
        """Return the statements that apply the puts and refresh the TTLs of what was read; to be run as one job.

        Args:
            embeddings: the embedding of each of `texts`.
            sweep: how many expired items to delete as well, at most, where anything is put.
        """
        statements: list[Statement] = []
        # In this order: what was read lives on, and what is put has the TTL that it was put with.
        if self._refreshed:
            statements.append(self._sql.refresh(self._refreshed, self._now))
        if self._puts and sweep:
            statements.append(self._sql.sweep(self._now, sweep))
        for place, key in self._in_order():
            op = self._puts[key]
            if op.value is None:
                statements.append(self._sql.delete(*key))
            else:
                vectors = [(path, embeddings[text]) for path, text in self._vectors[key]]
                ttl = None if op.ttl is None else sql.ttl_micros(op.ttl)
                statements += self._sql.put(
                    *key,
                    self._values[key],
                    vectors,
                    now=self._now,
                    ttl=ttl,
                    place=place,
                    is_indexed=self._index is not None,
                )
        return statements

    def _in_order(self) -> Iterable[tuple[int, _Key]]:
        """Return the keys that are put, each with its place among them."""
        places = list(enumerate(self._puts))
        return sorted(places, key=itemgetter(1)) if self._sql.in_key_order else places

    def _get(self, op: GetOp) -> Steps[Item | None]:
        found = yield from ask(self._sql.one(op.namespace, op.key, self._live_at))
        if found is None:
            return None
        self._note_read(found, op.refresh_ttl)
        return Item(
            value=found.value,
            key=found.key,
            namespace=found.namespace,
            created_at=found.created_at,
            updated_at=found.updated_at,
        )

    def _search(self, op: SearchOp, query: bytes | None) -> Steps[list[SearchItem]]:
        limit, offset = (min(max(number, 0), _MOST) for number in (op.limit, op.offset))
        if not limit:
            return []
        narrowed, is_exact = self._sql.narrow(op.filter or {})
        selection = self._sql.select(op.namespace_prefix, narrowed, self._live_at)
        if query is not None:
            if not is_exact:
                selection = self._sql.select_ids((yield from self._matching(selection, op, None)))
            ranked = yield from self._ranked(selection, query, limit, offset)
        elif is_exact:
            ids = yield from ask(sql.newest(selection, limit=limit, offset=offset))
            ranked = [(item, None) for item in ids]
        else:
            ids = yield from self._matching(selection, op, offset + limit)
            ranked = [(item, None) for item in ids[offset:]]
        return (yield from self._search_items(ranked, op.refresh_ttl))

    def _ranked(
        self, selection: sql.Selection, query: bytes, limit: int, offset: int
    ) -> Steps[list[tuple[sql.ItemId, float | None]]]:
        """Return one page of the selected items: the scored ones by falling score, then those that have no vector."""
        scored = yield from self._sql.nearest(query, selection, limit=offset + limit)
        page: list[tuple[sql.ItemId, float | None]] = [*scored[offset:]]
        if len(page) < limit:
            # Fewer than were asked for: these are all that have a score.
            beyond = max(offset - len(scored), 0)
            rest = self._sql.unscored(selection, len(query) // 4, limit=limit - len(page), offset=beyond)
            page += [(item, None) for item in (yield from ask(rest))]
        return page

    def _matching(self, selection: sql.Selection, op: SearchOp, enough: int | None) -> Steps[list[sql.ItemId]]:
        """Return the selected items that meet the filter, last put first; the first `enough` of them."""
        ids = yield from ask(sql.newest(selection, limit=_MOST, offset=0))
        matching: list[sql.ItemId] = []
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            found = yield from ask(self._sql.items(chunk))
            matching += [item for item in chunk if _store_filter.matches(found[item].value, op.filter or {})]
            if enough is not None and len(matching) >= enough:
                return matching[:enough]
        return matching

    def _search_items(
        self, ranked: Sequence[tuple[sql.ItemId, float | None]], refresh_ttl: bool
    ) -> Steps[list[SearchItem]]:
        if not ranked:
            return []
        items = yield from ask(self._sql.items([item for item, _ in ranked]))
        results = []
        for item, score in ranked:
            found = items[item]
            self._note_read(found, refresh_ttl)
            results.append(
                SearchItem(
                    value=found.value,
                    key=found.key,
                    namespace=found.namespace,
                    created_at=found.created_at,
                    updated_at=found.updated_at,
                    score=score,
                )
            )
        return results

    def _namespaces(self, op: ListNamespacesOp) -> Steps[list[tuple[str, ...]]]:
        conditions = op.match_conditions or ()
        found = yield from ask(self._sql.namespaces(_literal_prefix(conditions), self._live_at))
        chosen = {
            namespace[: op.max_depth] for namespace in found if all(_matches(namespace, one) for one in conditions)
        }
        start = max(op.offset, 0)
        return sorted(chosen)[start : start + max(op.limit, 0)]

    def _note_read(self, found: sql.Found, refresh_ttl: bool) -> None:
        if not refresh_ttl or found.ttl is None or found.expires_at is None:
            return
        if self._now + found.ttl - found.expires_at >= _REFRESH_AFTER:
            self._refreshed.append(found.id)


def encode(value: Mapping[str, Any]) -> str:
    """Return an item's value as JSON.

    Raises:
        DataError: it is nested too deep.
        TypeError: something in it has no JSON form.
    """
    try:
        text = json.dumps(dict(value), ensure_ascii=False, default=_json_form)
        text.encode()
    except RecursionError:  # a RuntimeError, which frameworks take for a shutting-down interpreter
        raise DataError("the value of an item is nested too deep for JSON") from None
    except UnicodeEncodeError:  # a lone surrogate, as models make them of half an emoji: JSON has an escape for it
        text = json.dumps(dict(value), default=_json_form)
    return text


def _json_form(value: object) -> object:
    """Return what JSON shall hold in place of a value it has no form for: what LangGraph's own stores make of it."""
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"an item's value holds a {type(value).__name__}, which has no JSON form")


def _literal_prefix(conditions: Sequence[MatchCondition]) -> tuple[str, ...]:
    """Return the labels that the namespaces begin with: those of a prefix condition, up to its first wildcard."""
    for condition in conditions:
        if condition.match_type == "prefix":
            return tuple(_until_wildcard(condition.path))
    return ()


def _until_wildcard(path: Iterable[str]) -> Iterator[str]:
    for label in path:
        if label == "*":
            return
        yield label


def _matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    compared = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(compared, path, strict=True))
