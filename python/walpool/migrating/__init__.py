"""Copying one database into another, SQLite and PostgreSQL in either direction: plan, copy, verify, repair, resume.

Needs psycopg 3: `pip install 'walpool[postgres]'`.
"""

from __future__ import annotations

from walpool.migrating.migration import Options, Refused, migrate
from walpool.migrating.plan import Barred, Column, Element, Fault, ForeignKey, Index, LongKeys, Plan, Table
from walpool.migrating.report import Progress, Report, TableReport
from walpool.migrating.retiring import unretire

__all__ = [
    "Barred",
    "Column",
    "Element",
    "Fault",
    "ForeignKey",
    "Index",
    "LongKeys",
    "Options",
    "Plan",
    "Progress",
    "Refused",
    "Report",
    "Table",
    "TableReport",
    "migrate",
    "unretire",
]

_ALL = (
    Barred,
    Column,
    Element,
    Fault,
    ForeignKey,
    Index,
    LongKeys,
    Options,
    Plan,
    Progress,
    Refused,
    Report,
    Table,
    TableReport,
    migrate,
    unretire,
)
for _public in _ALL:
    _public.__module__ = "walpool.migrating"
