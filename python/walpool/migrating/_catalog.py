"""What a server says of the columns of a table: their types, down to what these are made of, by their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from walpool.migrating import _postgres_sql as sql
from walpool.postgres.binary import Form

if TYPE_CHECKING:
    from walpool.migrating._sides import Side

__all__ = ["Domain", "ServerColumn", "Type", "columns_of"]

_VARCHAR: Final = 1043
_FORMS: Final = {form.oid: form for form in Form if form.oid} | {_VARCHAR: Form.TEXT}
_POLYMORPHIC: Final = "ermc"  # kinds of types: enums, ranges, ranges of several pieces, rows
_LIMITED: Final = re.compile(r"[^(]+\((\d+)(?:,(-?\d+))?\).*")


class Domain(NamedTuple):
    """A domain, of which a type is made or its elements are."""

    name: str
    checks: tuple[str, ...]
    """Its constraints, each with its name."""
    is_required: bool
    """Whether it is NOT NULL."""


class Type(NamedTuple):
    """A type, behind the domains over it."""

    oid: int
    """Its number on this server; of a domain that of the domain."""
    shown: str
    """As SQL."""
    form: Form | None
    """What COPY fills; None where it is of no use to it."""
    limits: tuple[int | str, ...]
    element: Type | None
    """Of an array."""
    domains: tuple[Domain, ...]
    """Those over it, the outermost first."""
    behind: str
    """The type that its values are compared as, where the server does not look behind a domain by itself: its operators
    on enums, ranges and rows take any of these, but no domain. Empty if it does."""

    @property
    def is_required(self) -> bool:
        """Whether a domain over it is NOT NULL."""
        return any(domain.is_required for domain in self.domains)

    @property
    def judges(self) -> list[Domain]:
        """The domains that look at each value, and so may refuse one."""
        inner = [] if self.element is None else [d for d in self.element.domains if d.is_required or d.checks]
        return [domain for domain in self.domains if domain.checks] + inner


class ServerColumn(NamedTuple):
    """A column of a table that is on a server."""

    name: str
    shown: str
    """Its type as SQL, perhaps a domain."""
    type: Type
    is_required: bool
    """Whether it is NOT NULL; its type may be, too."""
    default: str | None
    """Its default as SQL."""
    is_identity: bool
    is_generated: bool
    collation: str
    number: int
    """Of it in its table, which constraints and indexes speak of."""


def columns_of(side: Side, oid: int) -> list[ServerColumn]:
    """Return the columns of a table, by the number of it."""
    chains = {number: _type(list(rows)) for number, rows in groupby(side.fetch(sql.TYPES, (oid,)), lambda row: row[0])}
    return [
        ServerColumn(name, shown, chains[number], required, default, bool(identity), bool(generated), collation, number)
        for name, shown, required, default, identity, generated, collation, number in side.fetch(sql.COLUMNS, (oid,))
    ]


def _type(chain: Sequence[tuple[Any, ...]]) -> Type:
    """Return the type that a chain begins with: over it are domains, under an array are its elements."""
    number = next(at for at, row in enumerate(chain) if row[3] != "d")
    domains = tuple(Domain(row[2], tuple(row[6]), row[5]) for row in chain[:number])
    _, oid, shown, kind, is_array, _, _, labels = chain[number]
    element = _type(chain[number + 1 :]) if is_array else None
    limits = tuple(labels) if kind == "e" else _limits(shown) if element is None else ()
    behind = shown if domains and kind in _POLYMORPHIC else ""
    return Type(chain[0][1], shown, _form(oid, shown, kind, element), limits, element, domains, behind)


def _form(oid: int, shown: str, kind: str, element: Type | None) -> Form | None:
    if element is not None:  # elements that are arrays themselves are a domain's, and no further dimension
        return None if element.form in (None, Form.ARRAY) else Form.ARRAY
    if kind == "e":
        return Form.ENUM
    form = _FORMS.get(oid)
    if form is Form.INTERVAL and " " in shown:  # `interval day to second` takes a part of it, and cuts the rest off
        return None
    return form


def _limits(shown: str) -> tuple[int, ...]:
    found = _LIMITED.fullmatch(shown)
    return () if found is None else tuple(int(limit) for limit in found.groups() if limit is not None)
