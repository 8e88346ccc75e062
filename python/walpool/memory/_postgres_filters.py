"""A `Query` as SQL: which rows of `memory_records` it selects, every name and value bound; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from walpool.memory import _postgres_marks as marks
from walpool.memory._columns import fields
from walpool.memory._operations import Given, Space
from walpool.memory.conditions import PythonEquals
from walpool.memory.records import Query

__all__ = ["OWNER", "Selection", "among", "ids_are", "select", "under"]

OWNER: Final = "r.tenant = ?1 AND r.collection = ?2"
"""The condition that a row is of the store's space."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of `memory_records AS r` take part: those that meet all of it, in the space."""

    conditions: tuple[str, ...] = ()
    of_vectors: tuple[str, ...] | None = None
    """Conditions on `memory_vectors AS v`, where it knows enough: of a scope, or of nothing but the space.

    A row meets one of them at most; each is one range of the index, so that the server knows how many rows to expect.
    """
    python: Mapping[Any, Any] = field(default_factory=dict)
    """What Python has to compare with the metadata of the rows that SQL leaves (`_rows.meets`)."""

    @property
    def where(self) -> str:
        """The condition on `r`."""
        return " AND ".join((OWNER, *self.conditions))


def select(space: Space, query: Query, given: Given) -> Selection:
    """Return the selection of `query`; its values are added to the parameters."""
    conditions, ranges = ([], ["true"]) if query.scope is None else _within(query.scope, given)
    if query.ids is not None:
        conditions.append(ids_are(query.ids, given))
    if query.categories is not None:
        conditions.append(marks.is_category(space, query.categories, given))
    conditions += ["false"] if "\0" in (query.source or "") else fields(query, given)
    python: dict[Any, Any] = {}
    for key, wanted in (query.metadata or {}).items():
        if isinstance(wanted, PythonEquals):
            python[key] = wanted.value
            conditions += marks.narrowed(space, key, wanted.value, given)
        else:
            conditions.append(marks.condition(space, key, wanted, given))
    of_vectors = None
    if query == Query(scope=query.scope):
        of_vectors = tuple(f"v.tenant = ?1 AND v.collection = ?2 AND {part}" for part in ranges)
    return Selection(tuple(conditions), of_vectors, python)


def under(scope: str, given: Given) -> str:
    """Return the condition that holds for `scope` and what lies below it: one range of the index."""
    return _within(scope, given)[0][0]


def _within(scope: str, given: Given) -> tuple[list[str], list[str]]:
    """Return the condition that holds for `scope` and what lies below it, and the same on vectors, in two ranges."""
    if "\0" in scope:
        return ["false"], ["false"]  # no record has one, and PostgreSQL no such text
    # "0" is the character after "/": behind it lie neighbours such as /ab, before it those such as /a-b.
    itself, below, behind = given(scope), given(scope + "/"), given(scope + "0")
    return (
        [f"(r.scope >= {itself} AND r.scope < {behind} AND (r.scope = {itself} OR r.scope >= {below}))"],
        [f"v.scope = {itself}", f"v.scope >= {below} AND v.scope < {behind}"],
    )


def ids_are(ids: Iterable[str], given: Given) -> str:
    """Return the condition that a record has one of these ids; in one parameter, however many they are."""
    return f"r.id = ANY(CAST({given(marks.array(one for one in ids if chr(0) not in one))} AS TEXT[]))"


def among(keys: Sequence[int], given: Given) -> str:
    """Return the condition that a record has one of these keys."""
    return f"r.key = ANY(CAST({given('{' + ','.join(map(str, keys)) + '}')} AS BIGINT[]))"
