"""A `Query` as SQL: which rows of `memory_records` it selects, every name and value bound; no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Final

from walpool.errors import DataError
from walpool.memory import _sqlite_values as values
from walpool.memory._columns import fields, number
from walpool.memory._operations import Given, encoded
from walpool.memory.conditions import Contains, Equals, Exists, In, PythonEquals, Range
from walpool.memory.records import Query

__all__ = ["KEY_BITS", "SPACE", "Selection", "select", "under"]

SPACE: Final = "(SELECT space FROM memory_spaces WHERE tenant = ?1 AND collection = ?2)"
"""The number of the store's space; NULL, and so met by no row, as long as nothing was saved."""

KEY_BITS: Final = 40
"""Room for the records of a space: its keys begin behind (space - 1) << KEY_BITS and end with space << KEY_BITS."""

_LONG: Final = "typeof(m.value) = 'blob'"
_BOUNDS: Final = (("at_least", ">="), ("above", ">"), ("at_most", "<="), ("below", "<"))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of `memory_records AS r` take part: those that meet all of it, in the space."""

    scopes: str = ""
    """A condition on `memory_scopes AS s`; empty for every scope of the space."""
    keyed: tuple[str, ...] = ()
    """SELECTs of keys, each through an index that begins with the space."""
    ids: str = ""
    """A condition on the id of `r`."""
    rows: tuple[str, ...] = ()
    """Other conditions on `r`."""
    python: Mapping[Any, Any] = field(default_factory=dict)
    """What Python has to compare with the metadata of the rows that SQL leaves (`_rows.meets`)."""

    @property
    def is_scope(self) -> bool:
        """Whether nothing but the scope is asked for, so that the counters know the answer."""
        return not (self.keyed or self.ids or self.rows or self.python)

    @property
    def in_scopes(self) -> str:
        """The condition on `memory_scopes AS s`, the space included."""
        return f"s.space = {SPACE}" + (f" AND {self.scopes}" if self.scopes else "")

    @property
    def keys(self) -> str:
        """The SELECT of the keys, some of them perhaps twice; from the indexes alone where they know enough."""
        if self.scopes or self.ids or self.rows or not self.keyed:
            return f"SELECT r.key FROM memory_records AS r WHERE {self.where()}"
        first, *others = self.keyed
        return first + "".join(f" AND key IN ({other})" for other in others)

    def where(self, *, by_time: bool = False) -> str:
        """Return the condition on `memory_records AS r`; `by_time`: to be walked newest first, whatever the scope.

        The space is named only where nothing else implies it: SQLite would go through all of it, and look for each key
        in the sets. A plus keeps it from a term's index for the same reason.
        https://www.sqlite.org/optoverview.html#disqualifying_where_clause_terms_using_unary_
        """
        implied = (self.keyed or self.scopes) and not (self.ids or by_time)
        conditions = [] if implied else [f"r.space = {SPACE}"]
        if self.scopes:
            scope_plus = "+" if self.keyed or self.ids or by_time else ""
            conditions.append(f"{scope_plus}r.scope IN (SELECT s.scope FROM memory_scopes AS s WHERE {self.in_scopes})")
        conditions += [f"r.key IN ({keys})" for keys in self.keyed]
        return " AND ".join((*conditions, *((self.ids,) if self.ids else ()), *self.rows))


def select(query: Query, given: Given) -> Selection:
    """Return the selection of `query`; its values are added to the parameters."""
    scopes = "" if query.scope is None else under(query.scope, given)
    ids = "" if query.ids is None else f"r.id IN (SELECT value FROM json_each({given(encoded(query.ids))}))"
    rows = fields(query, given)
    keyed = []
    if query.categories is not None:
        named = f"category IN (SELECT value FROM json_each({given(encoded(query.categories))}))"
        keyed.append(f"SELECT key FROM memory_categories WHERE space = {SPACE} AND {named}")
    python: dict[Any, Any] = {}
    for key, wanted in (query.metadata or {}).items():
        if isinstance(wanted, PythonEquals):
            python[key] = wanted.value
            keyed += _narrowed(key, wanted.value, given)
        elif isinstance(wanted, Exists) and not wanted.wanted:
            rows.append(f"r.key NOT IN ({_entries(key, 0, given)})")
        else:
            keyed.append(_metadata(key, wanted, given))
    return Selection(scopes, tuple(keyed), ids, tuple(rows), python)


def under(scope: str, given: Given) -> str:
    """Return the condition on `memory_scopes AS s` that holds for `scope` and what lies below it."""
    # "0" is the character after "/": the range holds what lies below the scope, and no neighbour such as /a-b.
    return f"(s.path = {given(scope)} OR s.path >= {given(scope + '/')} AND s.path < {given(scope + '0')})"


def _metadata(name: Any, wanted: Any, given: Given) -> str:
    """Return the SELECT of the keys whose metadata meets a typed condition."""
    if isinstance(wanted, Exists):
        return _entries(name, 0, given)
    if isinstance(wanted, Range):
        return _range(name, wanted, given)
    if isinstance(wanted, Contains):
        return _one_of(name, 1, [wanted.element], given)
    if isinstance(wanted, In):
        return _one_of(name, 0, wanted.values, given)
    return _one_of(name, 0, [wanted.value if isinstance(wanted, Equals) else wanted], given)


def _entries(name: Any, element: int, given: Given) -> str:
    if not isinstance(name, str):
        raise DataError("the keys of metadata are texts")
    found = f"m.space = {SPACE} AND m.name = {given(name)} AND m.element = {element}"
    return f"SELECT m.key FROM memory_metadata AS m WHERE {found}"


def _one_of(name: str, element: int, wanted: Sequence[Any], given: Given) -> str:
    """Return the SELECT of the keys whose value, or an element of whose list, is one of these.

    They go in as one JSON list, through the same expressions that made the index. Of long values it holds beginnings:
    the records that share one are looked into.
    """
    real = [value for value in wanted if not (isinstance(value, float) and isnan(value))]  # NaN equals nothing
    entries = _entries(name, element, given)
    listed, key = given(_json(real)), given(name)
    entry = "e" if element else "j"
    source = "json_each(held.metadata) AS j" + (
        ", json_each(iif(j.type = 'array', j.value, '[]')) AS e" if element else ""
    )
    again = f"""EXISTS (SELECT 1 FROM memory_records AS held, {source}, json_each({listed}) AS w
        WHERE held.key = m.key AND j.key = {key} AND {values.kind(entry)} = {values.kind("w")}
        AND {values.full(entry)} = {values.full("w")})"""
    short = f"SELECT {values.kind('w')}, {values.value('w')} FROM json_each({listed}) AS w"
    return f"{entries} AND (m.kind, m.value) IN ({short}) AND (NOT {_LONG} OR {again})"


def _range(name: Any, wanted: Range, given: Given) -> str:
    bounds = [(sign, getattr(wanted, bound)) for bound, sign in _BOUNDS if getattr(wanted, bound) is not None]
    is_text = isinstance(bounds[0][1], str)
    named = [(sign, given(bound if is_text else number(bound))) for sign, bound in bounds]

    def holds(value: str) -> str:
        return " AND ".join(f"{value} {sign} {bound}" for sign, bound in named)

    entries = _entries(name, 0, given)
    if not is_text:
        return f"{entries} AND m.kind = 2 AND {holds('m.value')}"
    again = f"""EXISTS (SELECT 1 FROM memory_records AS held, json_each(held.metadata) AS j
        WHERE held.key = m.key AND j.key = {given(name)} AND j.type = 'text' AND {holds("j.atom")})"""
    # Two looks into the index, so that each is a range of it: every BLOB comes after every text.
    short = f"{entries} AND m.kind = 3 AND {holds('m.value')} AND typeof(m.value) = 'text'"
    long = f"{entries} AND m.kind = 3 AND m.value >= x'' AND {again}"
    return f"SELECT key FROM ({short} UNION ALL {long}) WHERE true"


def _narrowed(name: Any, value: Any, given: Given) -> list[str]:
    """Return SELECTs of the keys where `metadata.get(name) == value` may hold: Python decides on what they leave."""
    kinds: dict[type, str] = {bool: "1, 2", int: "1, 2", float: "1, 2", list: "4", dict: "4"}
    if isinstance(name, str) and type(value) is str:
        return [_one_of(name, 0, [value], given)]
    if not isinstance(name, str) or type(value) not in kinds:
        return []  # also None, which a lacking key meets
    found = f"{_entries(name, 0, given)} AND m.kind IN ({kinds[type(value)]})"
    if type(value) in (list, dict):
        return [found]
    return [f"{found} AND m.value = {given(number(value))}" if value == value else f"{found} AND false"]


def _json(wanted: Sequence[Any]) -> str:
    try:
        text = json.dumps(list(wanted))
    except RecursionError:  # a RuntimeError, which frameworks take for a shutting-down interpreter
        raise DataError("a condition on metadata is nested too deep for JSON") from None
    return text
